"""Records as other kinds: every step that loses nothing there and back, the rest by hand."""

import dataclasses
import json
import random

import hub_cases
import pytest

from fgrlhf_jax.data import records
from fgrlhf_jax.data.convert import compared_predictions, convert_records, edit_as_preference
from fgrlhf_jax.data.records import (
    Edit,
    Instruction,
    Preference,
    better_and_worse,
    kind_of,
    responses_of,
)
from fgrlhf_jax.errors import InputError
from fgrlhf_jax.runtime.files import write_jsonl

EDIT = Edit("Sum up.", "A text.", "It rain.", "It rains.", "e/1", ((3, 7),))
FIRST = Preference("Name a fruit.", "", "Pear.", "Brick.", 1, "p/1")
SECOND = Preference("Name a fruit.", "", "Brick.", "Pear.", 2)
ANSWER = Instruction("Name a fruit.", "", "Fig.")
PROMPT = Instruction("Name a fruit.", "", " ")


def rows_of(*made, **further):
    """Records with rows as a file would have them."""
    return [(one, {**dataclasses.asdict(one), **further}) for one in made]


def converted(*made, to, further=None, **options):
    return convert_records(rows_of(*made, **(further or {})), to, **options)[0]


# --- by hand ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("record", "kind", "names"),
    [
        (EDIT, "edits", ["original", "edited"]),
        (FIRST, "preferences", ["output_1", "output_2"]),
        (ANSWER, "instructions", ["output"]),
        (PROMPT, "prompts", []),
    ],
)
def test_kinds(record, kind, names):
    assert kind_of(record) == kind
    assert list(responses_of(record)) == names


@pytest.mark.parametrize(
    ("record", "better", "worse"),
    [
        (EDIT, "It rains.", "It rain."),
        (FIRST, "Pear.", "Brick."),
        (SECOND, "Pear.", "Brick."),
    ],
)
def test_one_side_of_a_pair(record, better, worse):
    asked = {"instruction": record.instruction, "input": record.input}
    named = {"id": record.id} if record.id else {}
    for side, text in (("better", better), ("worse", worse)):
        (row,) = converted(record, to="instructions", side=side)
        assert row == {**named, **asked, "output": text}


def test_an_edit_as_a_preference():
    (row,) = converted(EDIT, to="preferences")
    texts = (row["output_1"], row["output_2"])
    assert set(texts) == {"It rain.", "It rains."}
    assert texts[row["preference"] - 1] == "It rains."
    assert {"id", "instruction", "input", "output_1", "output_2", "preference"} == set(row)
    assert row["id"] == "e/1"


def test_sides_are_shuffled_fairly_and_by_the_row_alone():
    edits = [Edit("a", "", f"old {n}", f"new {n}") for n in range(1000)]
    first = [edit_as_preference(edit, 3).preference for edit in edits]
    assert 450 < first.count(1) < 550  # 500 ± 3.2 standard errors
    assert [edit_as_preference(edit, 3).preference for edit in edits[::-1]] == first[::-1]
    other = [edit_as_preference(edit, 4).preference for edit in edits]
    assert 400 < sum(a != b for a, b in zip(first, other, strict=True)) < 600


def test_prompts_once_each():
    made, counts = convert_records(rows_of(FIRST, ANSWER, EDIT, PROMPT), "prompts")
    assert [row["instruction"] for row in made] == ["Name a fruit.", "Sum up."]
    assert made[0] == {"id": "p/1", "instruction": "Name a fruit.", "input": "", "output": ""}
    assert counts == {"rows": 4, "kept": 2, "repeated": 2}


def test_what_stays_what_it_is_keeps_its_fields():
    for record, to in ((EDIT, "edits"), (FIRST, "preferences"), (ANSWER, "instructions")):
        (row,) = converted(record, to=to, further={"annotator": "human", "seconds": 3})
        asked = json.loads(json.dumps(dataclasses.asdict(record)))
        assert row == {**asked, "annotator": "human", "seconds": 3}


def test_a_field_that_json_cannot_hold():
    (row,) = converted(ANSWER, to="instructions", further={"a": {1}, "b": "\ud83d"})
    assert (row["a"], row["b"]) == ("{1}", "?")


def test_rows_without_an_output_are_counted():
    made, counts = convert_records(rows_of(PROMPT, ANSWER), "instructions")
    assert [row["output"] for row in made] == ["Fig."]
    assert counts == {"rows": 2, "kept": 1, "without_output": 1}


def test_distinct_rows():
    again = dataclasses.replace(FIRST, id="another")
    for distinct, expected in ((False, 2), (True, 1)):
        assert len(converted(FIRST, again, to="preferences", distinct=distinct)) == expected


def test_alpaca_eval_annotations():
    told = {"generator_1": "davinci", "generator_2": "mine", "annotator": "judge"}
    (row,) = converted(FIRST, to="alpaca_eval", further=told)
    assert row == {
        "instruction": "Name a fruit.",
        "output_1": "Pear.",
        "output_2": "Brick.",
        "preference": 1.0,
        **told,
    }
    (row,) = converted(EDIT, to="alpaca_eval", generator="people")
    assert row["instruction"] == "Sum up.\n\nA text."
    assert (row["output_1"], row["generator_1"]) == ("It rain.", "original")
    assert (row["preference"], row["annotator"]) == (2.0, "people")


def test_alpaca_eval_outputs():
    (row,) = converted(ANSWER, to="alpaca_eval", generator="mine")
    assert row == {"instruction": "Name a fruit.", "output": "Fig.", "generator": "mine"}
    (row,) = converted(ANSWER, to="alpaca_eval", generator="no", further={"generator": "mine"})
    assert row["generator"] == "mine"


# --- there and back ----------------------------------------------------------------------------


def random_text(rng: random.Random) -> str:
    letters = 'a "\\{}<>&\n\r\t,é字😀\u2028\x00\x7f'
    return "".join(rng.choice(letters) for _ in range(rng.randrange(12)))


def random_preference(rng: random.Random) -> Preference:
    return Preference(
        "x" + random_text(rng),
        random_text(rng),
        "y" + random_text(rng),
        "z" + random_text(rng),
        rng.choice((1, 2)),
        rng.choice(("", "id/7")),
    )


@pytest.mark.parametrize("suffix", ["jsonl", "json"])
def test_preferences_to_alpaca_farm_and_back(tmp_path, suffix):
    rng = random.Random(0)
    given = [random_preference(rng) for _ in range(300)]
    rows = converted(*given, to="alpaca_farm")
    path = tmp_path / f"farm.{suffix}"
    if suffix == "json":
        path.write_text(json.dumps(rows))
    else:
        write_jsonl(path, rows)
    assert records.read(str(path)) == given
    assert {"instruction", "input", "output_1", "output_2", "preference"} <= set(rows[0])


def test_alpaca_farms_rows_come_back_as_they_were(tmp_path):
    for name, rows in hub_cases.alpaca_farm().items():
        path = tmp_path / "farm.json"
        path.write_text(json.dumps(rows))
        made, _ = convert_records(records.read_with_rows(str(path)), "alpaca_farm")
        columns = ("instruction", "input", "output")
        if name.startswith("alpaca_farm_evaluation"):
            rows = [{column: row[column] for column in columns} for row in rows]
        assert made == rows


def test_edits_to_preferences_and_back(tmp_path):
    """Both sides and which is better survive the shuffling."""
    rng = random.Random(1)
    edits = [Edit("a", "", "y" + random_text(rng), "z" + random_text(rng)) for _ in range(100)]
    write_jsonl(tmp_path / "p.jsonl", converted(*edits, to="preferences"))
    pairs = records.read(str(tmp_path / "p.jsonl"))
    found = [better_and_worse(pair) for pair in pairs]
    assert found == [(edit.edited, edit.original) for edit in edits]


# --- the labels of all pairs of four predictions -------------------------------------------------


def compared(labels=(0, 1, 2, 1, 1, 2), texts=("a", "b", "c", "d"), **fields):
    row = dataclasses.asdict(EDIT) | {"predictions": list(texts), "preference": list(labels)}
    return [(EDIT, row | fields)]


@pytest.mark.parametrize("as_text", [False, True])
def test_labels_of_predictions(as_text):
    texts = ["a", "b", "c", "d"]
    given = compared(predictions=json.dumps(texts) if as_text else texts)
    made, counts = compared_predictions(given)
    assert counts == {"rows": 1, "pairs": 6, "ties": 1, "equal": 0}
    assert [pair.id for pair, _ in made] == [
        f"e/1/{n}" for n in ("1-3", "1-4", "2-3", "2-4", "3-4")
    ]
    found = [better_and_worse(pair) for pair, _ in made]
    assert found == [("a", "c"), ("d", "a"), ("b", "c"), ("b", "d"), ("d", "c")]
    rows, _ = convert_records(made, "preferences")
    assert [row["preference"] for row in rows] == [pair.preference for pair, _ in made]
    assert rows[0]["id"] == "e/1/1-3"


def test_sides_of_predictions_are_shuffled():
    """In the data the first is better in 60 % of the pairs."""
    rng = random.Random(0)
    given = []
    for n in range(200):
        labels = [1 if rng.random() < 0.6 else 2 for _ in range(6)]
        given += compared(labels, [f"{side} {n}" for side in "abcd"])
    made, _ = compared_predictions(given)
    assert 0.46 < sum(pair.preference == 1 for pair, _ in made) / 1200 < 0.54


def test_pairs_of_predictions_are_called_by_their_row():
    for given, ids in ((0, ["0/1-2"]), ("", [None]), (None, [None])):
        (record, row), *_ = compared(texts="ab", labels=[1])
        made, _ = compared_predictions([(record, row | {"id": given})])
        assert [row.get("id") for _, row in made] == ids


def test_equal_predictions_are_left_out():
    _, counts = compared_predictions(compared(texts=("a", "b", "a", "d")))
    assert counts == {"rows": 1, "pairs": 6, "ties": 1, "equal": 1}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"predictions": None}, "row 1: has no comparison of predictions"),
        ({"predictions": "no JSON"}, "row 1: has no comparison of predictions"),
        ({"predictions": ["a"]}, "row 1: has no comparison of predictions"),
        ({"predictions": ["a", "b", "c", " "]}, "row 1: has no comparison of predictions"),
        ({"preference": 1}, "row 1: has no comparison of predictions"),
        ({"preference": [1, 2]}, "row 1: has no comparison of predictions"),
        ({"preference": [1, 2, 0, 1, 2, 3]}, "each label must be 1 .*, 2 .* or 0"),
        ({"preference": [1, 2, 0, 1, 2, "1"]}, "each label must be 1"),
        ({"preference": [0] * 6}, "all 6 pairs are ties"),
    ],
)
def test_bad_comparisons(fields, message):
    with pytest.raises(InputError, match=message):
        compared_predictions(compared(**fields))


# --- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("made", "to", "options", "message"),
    [
        ([FIRST], "edits", {}, "row 1: preferences hold no edits; have responses edited"),
        ([EDIT, ANSWER], "edits", {}, "row 2: instructions hold no edits"),
        ([ANSWER], "preferences", {}, "row 1: a single response is no preference; give edits"),
        ([PROMPT], "preferences", {}, "row 1: a single response is no preference"),
        ([ANSWER], "instructions", {"side": "worse"}, "no worse one; choose side=better"),
        ([PROMPT], "instructions", {}, "none of the 1 rows has an output; choose prompts"),
        ([EDIT, ANSWER], "alpaca_farm", {}, "both pairs and single responses"),
        ([ANSWER, FIRST], "alpaca_eval", {}, "both pairs and single responses"),
        ([EDIT], "pairs", {}, "to: 'pairs' is not one of edits, preferences"),
        ([EDIT], "instructions", {"side": "left"}, "side: 'left' is not one of better, worse"),
    ],
)
def test_what_cannot_be_converted(made, to, options, message):
    with pytest.raises(InputError, match=message):
        converted(*made, to=to, **options)
