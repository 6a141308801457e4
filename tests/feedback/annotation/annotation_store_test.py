"""Rows are given out once, and every decision stands until it is taken back."""

import random
import threading
from pathlib import Path

import pytest
from annotations_cases import IMPORTED, items, lines

from fgrlhf_jax.data import records
from fgrlhf_jax.errors import InputError
from fgrlhf_jax.feedback.annotation.agreement import agreement, sentence
from fgrlhf_jax.feedback.annotation.history import EDITED, FINE, SKIPPED, Decision, Item, saved
from fgrlhf_jax.feedback.annotation.store import Annotations


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def output(tmp_path) -> Path:
    return tmp_path / "edits.jsonl"


def test_two_annotators_to_the_end(output):
    with Annotations(items(3), output) as store:
        assert store.take("Ann").id == "r0"
        assert store.take("Bob").id == "r1"
        assert store.take("Ann").id == "r0"  # another tab, or a reload
        assert store.accept("Ann", "r0", "This is number zero.").verdict == EDITED
        assert output.read_text().count("\n") == 1
        assert store.take("Ann").id == "r2"
        assert store.accept("Bob", "r1", "This is number 1.").verdict == FINE
        assert store.take("Bob") is None  # Ann has the last
        store.accept("Ann", "r2", "Two.")
        assert store.take("Ann") is None
        figures = store.progress("Ann")
    assert lines(output) == [
        {
            "id": "r0",
            "instruction": "Say 0.",
            "input": "",
            "original": "This is number 0.",
            "edited": "This is number zero.",
            "annotator": "Ann",
        },
        {
            "id": "r2",
            "instruction": "Say 2.",
            "input": "",
            "original": "This is number 2.",
            "edited": "Two.",
            "annotator": "Ann",
        },
    ]
    assert [edit.edited for edit in records.read(str(output))] == [
        "This is number zero.",
        "Two.",
    ]
    assert figures == {
        "rows": 3,
        "done": 3,
        "open_elsewhere": 0,
        EDITED: 2,
        FINE: 1,
        SKIPPED: 0,
        "mine": 2,
    }


def test_reopening_goes_on_where_it_stopped(output):
    with Annotations(items(4), output) as store:
        store.take("Ann")
        store.take("Bob")
        store.accept("Ann", "r0", "Zero.")
        store.take("Ann")
    with Annotations(items(4), output) as store:
        assert store.take("Cem").id == "r3"
        assert store.take("Bob").id == "r1"
        assert store.take("Ann").id == "r2"
        store.undo("Ann")
        assert output.read_text() == ""
        assert store.text("Ann", "r0") == "Zero."
        store.accept("Ann", "r0", "Null.")
    assert [row["edited"] for row in lines(output)] == ["Null."]


def test_undo_takes_back_every_kind_of_decision_in_turn(output):
    with Annotations(items(5), output) as store:
        for text in ("Zero.", "This is number 1.", None, "Three."):
            row = store.take("Ann").id
            store.skip("Ann", row) if text is None else store.accept("Ann", row, text)
        assert store.take("Ann").id == "r4"
        assert [store.undo("Ann").id for _ in range(4)] == ["r3", "r2", "r1", "r0"]
        assert lines(output) == []
        assert store.decisions() == []
        with pytest.raises(InputError, match="nothing to undo"):
            store.undo("Ann")
        assert store.take("Ann").id == "r0"
        assert [store.text("Ann", f"r{k}") for k in (0, 1, 3)] == [
            "Zero.",
            "This is number 1.",
            "Three.",
        ]


def test_undo_in_the_middle_of_the_file_leaves_the_others(output):
    with Annotations(items(4), output) as store:
        for name in ("Ann", "Bob", "Cem"):
            store.accept(name, store.take(name).id, f"Of {name}.")
        assert store.undo("Bob").id == "r1"
        assert [row["annotator"] for row in lines(output)] == ["Ann", "Cem"]
        store.accept("Bob", "r1", "Better.")
    assert [row["edited"] for row in lines(output)] == ["Of Ann.", "Of Cem.", "Better."]


def test_what_is_skipped_goes_to_others_and_only_then_cannot_be_taken_back(output):
    with Annotations(items(2), output) as store:
        store.accept("Ann", store.take("Ann").id, "Zero.")
        store.skip("Ann", store.take("Ann").id)
        assert store.take("Ann") is None
        assert store.take("Bob").id == "r1"
        assert store.undo("Ann").id == "r0"  # not r1, which Bob has
        store.accept("Ann", "r0", "Zero again.")
        store.accept("Bob", "r1", "One.")
        assert store.progress("Ann")["done"] == 2


def test_next_puts_a_row_back_until_all_others_have_been_seen(output):
    with Annotations(items(3), output) as store:
        assert store.take("Ann").id == "r0"
        assert store.take("Ann", put_back="r0").id == "r1"
        assert store.take("Bob").id == "r0"  # free again
        store.accept("Ann", "r1", "One.")
        assert store.take("Ann").id == "r2"
        assert store.take("Ann", put_back="r2").id == "r2"  # there is no other
        assert store.take("Ann", put_back="r1").id == "r2"  # from a tab that is out of date
    with Annotations(items(3), output) as store:
        assert store.take("Bob", put_back="r0").id == "r0"
        store.accept("Bob", "r0", "Zero.")
        assert store.take("Bob") is None
        assert store.take("Ann", put_back="r2").id == "r2"


def test_a_silent_annotators_row_is_given_away_when_no_other_is_left(output):
    clock = Clock()
    with Annotations(items(3), output, release_after=10, clock=clock) as store:
        assert store.take("Ann").id == "r0"
        clock.now = 11
        assert store.take("Bob").id == "r1"  # r0 can wait for Ann
        store.accept("Bob", "r1", "One.")
        store.accept("Bob", store.take("Bob").id, "Two.")
        clock.now = 15
        store.touch("Ann")
        assert store.take("Bob") is None
        clock.now = 26
        assert store.take("Bob").id == "r0"
        with pytest.raises(InputError, match="somebody else has this row now"):
            store.accept("Ann", "r0", "Mine.")
        assert store.take("Ann") is None
        store.accept("Bob", "r0", "Zero.")
    assert [row["annotator"] for row in lines(output)] == ["Bob"] * 3


def test_a_silent_annotator_who_comes_back_in_time_keeps_the_row(output):
    clock = Clock()
    with Annotations(items(1), output, release_after=10, clock=clock) as store:
        store.take("Ann")
        clock.now = 100
        store.accept("Ann", "r0", "Zero.")
        assert lines(output)[0]["annotator"] == "Ann"


def test_the_row_of_an_annotator_who_crashed_with_the_server_is_released(output):
    clock = Clock()
    with Annotations(items(1), output) as store:
        store.take("Ann")
    with Annotations(items(1), output, release_after=10, clock=clock) as store:
        assert store.take("Bob") is None
        clock.now = 11
        assert store.take("Bob").id == "r0"


def test_sent_twice_counts_once_and_something_else_is_refused(output):
    with Annotations(items(2), output) as store:
        store.take("Ann")
        for _ in range(2):
            store.accept("Ann", "r0", "Zero.")
        assert len(lines(output)) == 1
        for late in (
            lambda: store.accept("Ann", "r0", "Null."),
            lambda: store.skip("Ann", "r0"),
        ):
            with pytest.raises(InputError, match="decided this row before"):
                late()
        assert len(lines(output)) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "cannot be empty"), (" \n", "cannot be empty"), ("a\ud83d", "half a character")],
)
def test_what_cannot_be_an_edit_is_refused(output, text, message):
    with Annotations(items(1), output) as store:
        store.take("Ann")
        with pytest.raises(InputError, match=message):
            store.accept("Ann", "r0", text)
        with pytest.raises(InputError, match="no row 'r9'"):
            store.accept("Ann", "r9", "Nine.")
        assert store.take("Ann").id == "r0"
        assert store.decisions() == []


def test_texts_are_kept_to_the_letter(output):
    odd = "  \ttabs, \u2028 lines\r\nand \u202e marks, \x00, 😀 <script>\n\n"
    with Annotations([Item("1", odd, odd, odd)], output) as store:
        store.take("Ann")
        store.accept("Ann", "1", odd + "!")
    (edit,) = records.read(str(output))
    assert (edit.instruction, edit.input, edit.original, edit.edited) == (
        odd,
        odd,
        odd,
        odd + "!",
    )
    with Annotations([Item("1", odd, odd, odd)], output) as store:
        assert store.decisions()[0].text == odd + "!"


def test_a_draft_and_a_suggestion_are_where_editing_starts(output):
    rows = [Item("1", "Say.", "", "One.", "Won."), *items(1)]
    with Annotations(rows, output) as store:
        store.take("Ann")
        assert store.text("Ann", "1") == "Won."
        assert store.draft("Ann", "1", "Wo")
        assert not store.draft("Ann", "r0", "not open")
        assert store.text("Ann", "1") == "Wo"
        assert store.text("Bob", "1") == "Won."
        assert store.draft("Ann", "1", "W", older=True)
        assert store.text("Ann", "1") == "Wo"
        store.accept("Ann", "1", "Won.")
        assert store.text("Ann", "1") == "Won."
        assert store.take("Ann").id == "r0"
        for text in ("One.", "Two."):  # what was decided, fine as it was or edited
            store.undo("Ann")
            store.accept("Ann", "1", text)
            store.undo("Ann")
            assert store.text("Ann", "1") == text
            store.accept("Ann", "1", "Won.")


@pytest.mark.parametrize("overlap", [1, 2, 3])
def test_many_threads_never_share_a_row_beyond_the_overlap(output, overlap):
    names = [f"A{k}" for k in range(6)]
    with Annotations(items(12), output, overlap=overlap) as store:
        faults = []

        def annotate(name):
            rng = random.Random(name)
            while (item := store.take(name)) is not None or (
                store.progress(name)["done"] < 12 and store.progress(name)["open_elsewhere"]
            ):
                if item is None:
                    continue
                try:
                    act = rng.random()
                    if act < 0.2:
                        store.take(name, put_back=item.id)
                    elif act < 0.3 and store.progress(name)["mine"]:
                        store.undo(name)
                    else:
                        store.accept(name, item.id, f"{item.original} By {name}.")
                except InputError as error:
                    faults.append(error)

        threads = [threading.Thread(target=annotate, args=(name,)) for name in names]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not faults
        decisions = store.decisions()
    per_row = {
        item.id: [d.annotator for d in decisions if d.id == item.id] for item in items(12)
    }
    assert all(len(who) == len(set(who)) == overlap for who in per_row.values())
    assert [(row["id"], row["annotator"]) for row in lines(output)] == [
        (d.id, d.annotator) for d in decisions
    ]
    with Annotations(items(12), output, overlap=overlap) as store:
        assert store.decisions() == decisions


def test_imported_decisions_come_first(output):
    assert saved(items(4), output, IMPORTED) == IMPORTED
    for _ in range(2):
        with Annotations(items(4), output, imported=IMPORTED) as store:
            assert store.decisions()[:4] == IMPORTED
            assert store.take("Ann").id == "r3"
            assert saved(items(4), output, IMPORTED) == IMPORTED  # read while it is open
    assert [row["edited"] for row in lines(output)] == ["One.", "Two."]


def test_agreement():
    rows = [Item("1", "Say.", "", "one two three four"), Item("2", "Say.", "", "five six")]
    made = [
        Decision("1", "Ann", EDITED, "one 2 three four"),
        Decision("1", "Bob", EDITED, "one 2 3 four"),
        Decision("2", "Ann", FINE, "five six"),
        Decision("2", "Bob", EDITED, "six"),
        Decision("2", "Cem", SKIPPED, "five six"),
    ]
    figures = agreement(rows, made)
    # Ann: out {1}, in behind 0; Bob: out {1, 2}, in behind 0 twice. 2 · 2 / (2 + 3).
    assert figures == {
        "rows": 2,
        "pairs": 2,
        "verdict": 0.5,
        "same_text": 0.0,
        "changed_words": pytest.approx(0.8),
    }
    assert "50% of 2 pairs" in sentence(figures)
    assert sentence(figures).endswith("agreement on the changed words 0.80")
    assert sentence(agreement(rows, made[2:])).endswith(
        "the same text in 0%"
    )  # none edited by two
    assert agreement(rows, made[:1]) is None
    twice = [Decision("1", name, EDITED, "four") for name in ("Ann", "Bob")]
    assert agreement(rows, twice)["changed_words"] == agreement(rows, twice)["same_text"] == 1
