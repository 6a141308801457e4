"""Records as other kinds: every step that loses nothing there and back, the rest by hand."""

import dataclasses
import json
import random

import hub_cases
import pytest

from fgrlhf_jax.data import records, sources
from fgrlhf_jax.data.convert import SIDES, as_preference, convert_records
from fgrlhf_jax.data.records import Edit, Instruction, Preference, better_and_worse
from fgrlhf_jax.errors import InputError
from fgrlhf_jax.runtime.files import write_jsonl

EDIT = Edit("Sum up.", "A text.", "It rain.", "It rains.", "e/1", ((3, 7),))
FIRST = Preference("Name a fruit.", "", "Pear.", "Brick.", 1, "p/1")
SECOND = Preference("Name a fruit.", "", "Brick.", "Pear.", 2)
ANSWER = Instruction("Name a fruit.", "", "Fig.")
PROMPT = Instruction("Name a fruit.", "", " ")


def with_rows(*records, **further):
    """Records with rows as a file would have them."""
    return [(record, {**dataclasses.asdict(record), **further}) for record in records]


def converted(*records, to, further=None, **options):
    return convert_records(with_rows(*records, **(further or {})), to, **options)[0]


@pytest.mark.parametrize(
    ("record", "better", "worse"),
    [(EDIT, "It rains.", "It rain."), (FIRST, "Pear.", "Brick."), (SECOND, "Pear.", "Brick.")],
)
def test_one_side_of_a_pair(record, better, worse):
    rows = {side: converted(record, to="instructions", side=side) for side in SIDES}
    new = {"instruction": record.instruction, "input": record.input}
    new |= {"id": record.id} if record.id else {}
    assert rows == {"better": [new | {"output": better}], "worse": [new | {"output": worse}]}


def test_sides_are_shuffled_fairly_and_by_the_row_alone():
    edits = [Edit("a", "", f"old {n}", f"new {n}") for n in range(1000)]
    (row,) = converted(EDIT, to="preferences", further={"output_1": "of other columns"})
    assert {row[f"output_{row['preference']}"], row["output_1"]} <= {"It rains.", "It rain."}
    first, backwards, other_seed = (
        [as_preference(edit, seed).preference for edit in rows]
        for rows, seed in ((edits, 3), (edits[::-1], 3), (edits, 4))
    )
    assert 450 < first.count(1) < 550  # 500 ± 3.2 standard errors
    assert backwards == first[::-1]
    assert 400 < sum(a != b for a, b in zip(first, other_seed, strict=True)) < 600


def test_a_row_that_keeps_its_kind_keeps_its_fields():
    further = {"annotator": "human", "a set": {1}}
    for record, to in ((EDIT, "edits"), (FIRST, "preferences"), (ANSWER, "instructions")):
        (row,) = converted(record, to=to, further=further)
        fields = json.loads(json.dumps(dataclasses.asdict(record)))
        for name in ("messages", *records.FINISHED):
            fields.pop(name, None)
        assert row == {**fields, "annotator": "human", "a set": "{1}"}


def test_rows_that_are_left_out_are_counted():
    rows, counts = convert_records(with_rows(FIRST, ANSWER, EDIT, PROMPT), "prompts")
    assert rows == [
        {"id": "p/1", "instruction": "Name a fruit.", "input": "", "output": ""},
        {"id": "e/1", "instruction": "Sum up.", "input": "A text.", "output": ""},
    ]
    assert counts == {"rows": 4, "kept": 2, "repeated": 2}
    rows, counts = convert_records(with_rows(PROMPT, ANSWER), "instructions")
    assert [row["output"] for row in rows] == ["Fig."]
    assert counts == {"rows": 2, "kept": 1, "without_output": 1}
    again = dataclasses.replace(FIRST, id="another")
    for distinct, expected in ((False, 2), (True, 1)):
        assert len(converted(FIRST, again, to="preferences", distinct=distinct)) == expected


def test_alpaca_eval_annotations():
    names = {"generator_1": "davinci", "generator_2": "mine", "annotator": "judge"}
    (row,) = converted(FIRST, to="alpaca_eval", further=names)
    texts = {"output_1": "Pear.", "output_2": "Brick.", "preference": 1.0}
    assert row == {"id": "p/1", "instruction": "Name a fruit."} | texts | names
    (row,) = converted(EDIT, to="alpaca_eval", generator="people")
    names = {"generator_1": "original", "generator_2": "edited", "annotator": "people"}
    texts = {"output_1": "It rain.", "output_2": "It rains.", "preference": 2.0}
    parts = {"input": "A text.", "raw_instruction": "Sum up."}
    assert row == {"id": "e/1", "instruction": "Sum up.\n\nA text.", **parts, **texts, **names}
    for further, generator in (({}, "mine"), ({"generator": "other"}, "other")):
        (row,) = converted(ANSWER, to="alpaca_eval", generator="mine", further=further)
        assert row == {"instruction": "Name a fruit.", "output": "Fig.", "generator": generator}


def test_rows_for_trl_have_one_form():
    """Where one row is a conversation, texts become messages too."""
    chat = (records.Message("system", "Be brief."), records.Message("user", "Hi."))
    turns = Preference("", "", "Hello.", "What?", 1, messages=chat)
    read_as_turns = Preference("Go on.", "", "Human: a\n\nAssistant: b", "c", 1)
    texts = converted(FIRST, EDIT, to="trl")
    assert {type(row[name]) for row in texts for name in ("prompt", "chosen")} == {str}
    read_as_list = Preference("Go on.", "", '[{"role": "user", "content": "a"}]', "c", 1)
    for other in (turns, read_as_turns, read_as_list):
        mixed = converted(FIRST, other, EDIT, to="trl")
        names = ("prompt", "chosen", "rejected")
        assert {type(row[name]) for row in mixed for name in names} == {list}
        assert mixed[0]["prompt"] == [{"role": "user", "content": FIRST.instruction}]
        for text, row in zip(texts, mixed[::2], strict=True):
            assert row["chosen"] == [{"role": "assistant", "content": text["chosen"]}]


def random_text(rng: random.Random, first: str = "") -> str:
    letters = 'a "\\{}<>&\n\r\t,é字😀\u2028\x00\x7f'
    return first + "".join(rng.choice(letters) for _ in range(rng.randrange(12)))


def test_to_preferences_and_back(tmp_path):
    """AlpacaFarm's rows have all of a preference; both sides of an edit survive the shuffling."""
    rng, path = random.Random(0), tmp_path / "pairs.jsonl"
    texts = [[random_text(rng, first) for first in ("x", "", "y", "z")] for _ in range(300)]
    ended = [rng.choice(([True, True], [True, False], [False, True])) for _ in texts]
    pairs = [
        Preference(*t, rng.choice((1, 2)), rng.choice(("", "id/7")), (), *ends)
        for t, ends in zip(texts, ended, strict=True)
    ]
    write_jsonl(path, converted(*pairs, to="alpaca_farm"))
    assert sources.read(str(path)) == pairs
    edits = [Edit(*t, finished=ends[0]) for t, ends in zip(texts, ended, strict=True)]
    for to in ("preferences", "trl"):
        write_jsonl(path, converted(*edits, to=to))
        for edit, pair in zip(edits, sources.read(str(path)), strict=True):
            sides = records.sides(pair)
            assert better_and_worse(pair) == (edit.edited, edit.original)
            assert [records.is_finished(pair, side) for side in sides] == [
                records.is_finished(edit, side) for side in ("edited", "original")
            ]


def test_alpaca_farms_rows_come_back_as_they_were(tmp_path):
    path = tmp_path / "farm.json"
    for name, rows in hub_cases.alpaca_farm().items():
        path.write_text(json.dumps(rows))
        back, _ = convert_records(sources.read_with_rows(str(path)), "alpaca_farm")
        if name.startswith("alpaca_farm_evaluation"):
            columns = ("instruction", "input", "output")
            rows = [{column: row[column] for column in columns} for row in rows]
        assert back == rows


@pytest.mark.parametrize(
    ("rows", "to", "options", "message"),
    [
        ([FIRST], "edits", {}, "row 1: preferences hold no edits; have responses edited"),
        ([EDIT, ANSWER], "edits", {}, "row 2: instructions hold no edits"),
        ([ANSWER], "preferences", {}, "row 1: has a single response, not a preference; give"),
        ([ANSWER], "instructions", {"side": "worse"}, "has only one response; choose side=better"),
        ([PROMPT], "instructions", {}, "none of the 1 rows has an output; choose prompts"),
        ([EDIT, ANSWER], "alpaca_farm", {}, "of several kinds"),
        ([ANSWER, FIRST], "alpaca_eval", {}, "of several kinds"),
        ([EDIT], "pairs", {}, "to: 'pairs' is not one of edits, preferences"),
        ([EDIT], "instructions", {"side": "left"}, "side: 'left' is not one of better, worse"),
    ],
)
def test_what_cannot_be_converted(rows, to, options, message):
    with pytest.raises(InputError, match=message):
        converted(*rows, to=to, **options)
