"""Which row an annotator gets; decisions, undo, drafts, earlier versions of a text, agreement."""

from unittest import mock

import pytest
from annotations_cases import IMPORTED, accept, accept_next, draft, edits, items, lines, skip

from fgrlhf_jax.data import sources
from fgrlhf_jax.errors import InputError
from fgrlhf_jax.feedback.annotation.agreement import describe, measure_agreement
from fgrlhf_jax.feedback.annotation.items import EDITED, FINE, SKIPPED, Decision, Item
from fgrlhf_jax.feedback.annotation.store import Annotations


def undo(store: Annotations, name: str = "Ann") -> str:
    """Undoes the last decision, in a tab that is up to date."""
    item = store.take(name)
    return store.reopen(name, item.id if item else "").id


def test_two_annotators_to_the_end(output):
    with Annotations(items(3), output) as store:
        assert [store.take(name).id for name in ("Ann", "Bob", "Ann")] == ["r0", "r1", "r0"]
        assert accept(store, "Ann", "r0", "This is number zero.").verdict == EDITED
        assert store.take("Ann").id == "r2"
        assert accept(store, "Bob", "r1", "This is number 1.").verdict == FINE
        assert store.take("Bob") is None  # Ann has the last
        accept(store, "Ann", "r2", "Two.")
        assert store.take("Ann") is None
        counts = {"rows": 3, "overlap": 1, "done": 3, "mine": 2, "left": 0, "open": 0}
        counts |= {"open_elsewhere": 0, "skipped_by": {}}
        assert store.progress("Ann") == {**counts, EDITED: 2, FINE: 1, SKIPPED: 0}
        store.write_edits()
    prompt = {"id": "r0", "instruction": "Say 0.", "input": ""}
    texts = {"original": "This is number 0.", "edited": "This is number zero."}
    assert lines(output)[0] == {**prompt, **texts, "annotator": "Ann"}


def test_reopened_files_continue_where_they_stopped(output):
    with Annotations(items(4), output) as store:
        assert [store.take(name).id for name in ("Ann", "Bob")] == ["r0", "r1"]
        accept(store, "Ann", "r0", "Zero.")
        store.take("Ann")
        draft(store, "Ann", "r2", "Tw")
    with Annotations(items(4), output) as store:
        assert edits(output) == [("Zero.", "Ann")]
        assert [store.take(name).id for name in ("Cem", "Bob", "Ann")] == ["r3", "r1", "r2"]
        assert store.latest("Ann", "r2").text == "Tw"
        undo(store)
        store.write_edits()
        assert output.read_text() == ""
        assert store.latest("Ann", "r0").text == "Zero."


def test_undo_reverses_decisions_of_every_kind_in_turn(output):
    with Annotations(items(7), output) as store:
        for text in ("Zero.", "This is number 1.", None, "Three."):
            row = store.take("Ann").id
            skip(store, "Ann", row) if text is None else accept(store, "Ann", row, text)
        store.take("Bob", put_back=store.take("Bob").id)
        accept_next(store, "Bob", "Four.")
        accept_next(store, "Ann", "Five.")
        assert [undo(store) for _ in range(5)] == ["r5", "r3", "r2", "r1", "r0"]
        assert [d.text for d in store.decisions()] == ["Four."]
        with pytest.raises(InputError, match="You have decided nothing yet"):
            undo(store)
        assert store.reopen("Ann", "r9") is None
        assert store.take("Ann").id == "r0"
        texts = [store.latest("Ann", f"r{k}").text for k in (0, 1, 3)]
        assert texts == ["Zero.", "This is number 1.", "Three."]


def test_a_skipped_row_can_be_reopened_until_another_annotator_gets_it(output):
    with Annotations(items(2), output) as store:
        accept_next(store, "Ann", "Zero.")
        skip(store, "Ann", store.take("Ann").id)
        assert store.take("Ann") is None
        assert store.take("Bob").id == "r1"
        with pytest.raises(InputError, match="Row r1 is with somebody else now"):
            store.reopen("Ann", "r1")
        assert store.reopen("Ann", "").id == "r0"  # not r1, which Bob has
        accept(store, "Ann", "r0", "Zero again.")
        accept(store, "Bob", "r1", "One.")
        assert store.progress("Ann")["done"] == 2


def test_next_shows_all_other_rows_first(output):
    with Annotations(items(3), output) as store:
        assert store.take("Ann").id == "r0"
        assert store.take("Ann", put_back="r0").id == "r1"
        assert store.take("Bob").id == "r0"  # free again
        accept(store, "Ann", "r1", "One.")
        assert store.take("Ann").id == "r2"
        assert store.take("Ann", put_back="r2").id == "r2"  # there is no other
        assert store.take("Ann", put_back="r1").id == "r2"  # from a tab that is out of date


def test_an_inactive_annotators_row_is_reassigned_when_no_other_is_left(output):
    clock = mock.Mock(return_value=0.0)
    with Annotations(items(3), output, release_after=10, clock=clock) as store:
        assert store.take("Ann").id == "r0"
        clock.return_value = 11
        assert store.take("Bob").id == "r1"  # r0 stays with Ann
        accept(store, "Bob", "r1", "One.")
        accept_next(store, "Bob", "Two.")
        clock.return_value = 15
        store.touch("Ann")
        assert store.take("Bob") is None
        clock.return_value = 26
        assert store.take("Bob").id == "r0"
        with pytest.raises(InputError, match="this row went to somebody else; copy"):
            accept(store, "Ann", "r0", "Mine.")
        assert store.take("Ann") is None
        accept(store, "Bob", "r0", "Zero.")
        assert [d.annotator for d in store.decisions()] == ["Bob"] * 3
        store.reopen("Bob", "r0")
    with Annotations(items(3), output, release_after=10, clock=clock) as store:
        assert store.take("Ann") is None
        clock.return_value = 37  # neither has returned after a crash
        assert store.take("Ann").id == "r0"


def test_texts_are_stored_exactly(output):
    odd = "  \ttabs, \u2028 lines\r\nand \u202e marks, \x00, 😀 <script>\n\n"
    details = {"tags": (odd, "b"), "comment": odd, "seconds": 2.5, "over_limit": True}
    with Annotations([Item("1", odd, odd, odd)], output) as store:
        store.take("Ann")
        edit = accept(store, "Ann", "1", odd + "!", **details)
        assert store.decisions() == [edit]
        store.write_edits()
    ((record, row),) = sources.read_with_rows(str(output))
    assert [record.instruction, record.input, record.original] == 3 * [odd]
    assert record.edited == odd + "!"
    assert {name: row[name] for name in details} == details | {"tags": [odd, "b"]}


def test_editing_starts_from_the_draft_the_decision_or_the_suggestion(output):
    with Annotations([Item("1", "Say.", "", "One.", "Won."), *items(1)], output) as store:
        assert store.latest("Ann", store.take("Ann").id).text == "Won."
        assert draft(store, "Ann", "1", "Wo", seconds=3, tags=("a",))
        assert not draft(store, "Ann", "r0", "not open")
        drafted = store.latest("Ann", "1")
        assert (drafted.text, drafted.seconds, drafted.tags) == ("Wo", 3, ("a",))
        assert store.latest("Bob", "1").text == "Won."
        for text in ("Won.", "One.", "Two."):
            accept(store, "Ann", "1", text)
            undo(store)
            assert store.latest("Ann", "1").text == text


def test_overwritten_texts_are_offered_again(output):
    clock = mock.Mock(return_value=0.0)
    with Annotations(items(1), output, clock=clock) as store:
        store.take("Ann")

        def type(*texts: str) -> list[str]:
            for text in texts:
                clock.return_value += 1
                draft(store, "Ann", "r0", text)
            return [version.text for _, version in store.versions("Ann", "r0")]

        assert type("This", "This is", "This i", "This is long.") == ["This is long.", "This is"]
        assert type("x", "xy", "aa", "a")[:4] == ["a", "aa", "xy", "This is long."]
        original, last = store.item("r0").original, "This is number 0!"
        for text in ("This is number Budapest 0.", "This is 0."):  # each is reset at once
            assert type(text, original, last)[:3] == [last, original, text]
        accept(store, "Ann", "r0", "Saved.")
        undo(store)
        assert type("y")[:2] == ["y", "Saved."]
        deleted = ["A long text, deleted key by key."[:n] for n in range(32, 0, -4)]
        assert deleted[0] in type(*deleted)


def test_imported_decisions_come_first(output):
    for _ in range(2):
        with Annotations(items(4), output, imported=IMPORTED) as store:
            assert store.decisions()[:4] == IMPORTED
            assert store.take("Ann").id == "r3"
    assert edits(output) == [("One.", "Ann"), ("Two.", "Bob")]


def test_agreement():
    rows = [Item("1", "Say.", "", "a b c d"), Item("2", "Say.", "", "e f")]
    decisions = [Decision("1", "Ann", EDITED, "a 2 c d"), Decision("1", "Bob", EDITED, "a 2 3 d")]
    decisions += [Decision("2", "Ann", FINE, "e f"), Decision("2", "Bob", EDITED, "f")]
    decisions += [Decision("2", "Cem", SKIPPED, "e f")]
    agreement = measure_agreement(rows, decisions)
    # Ann deletes word 1 and inserts after 0; Bob deletes 1 and 2, inserts after 0: 2 · 2 / (2 + 3).
    shares = {"verdict": 0.5, "same_text": 0.0, "changed_words": pytest.approx(0.8)}
    assert agreement == {"rows": 2, "pairs": 2, **shares}
    assert describe(agreement).endswith("agreement on the changed words 0.80")
    assert describe(measure_agreement(rows, decisions[2:])).endswith("the same text in 0%")
    assert measure_agreement(rows, decisions[:1]) is None
    agreement = measure_agreement(rows, [Decision("1", name, EDITED, "d") for name in "AB"])
    assert agreement["changed_words"] == agreement["same_text"] == 1
