"""Pairs of responses: from two files, and from one."""

import json
import re
from collections import Counter

import pytest

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.feedback.judges import pairs
from fgrlhf_jax.feedback.judges.alpaca_eval import Comparison


def saved(folder, name: str, rows: list) -> str:
    path = folder / name
    path.write_text(
        json.dumps(rows) if path.suffix == ".json" else "\n".join(map(json.dumps, rows))
    )
    return str(path)


def said(instruction: str, output: str, **more) -> dict:
    return {"instruction": instruction, "output": output, **more}


def test_two_files_are_matched_by_their_prompts(tmp_path):
    ours = [
        said("b", "our b", input="more", generator="m", finished=False),
        said("a ", "our a", generator="m"),
        said("b", "our other b", generator="m"),
    ]
    theirs = [said("a", "their a"), said("b", "their b"), said("b", "", input=" more")]
    paths = saved(tmp_path, "ours.json", ours), saved(tmp_path, "theirs.jsonl", theirs)
    names = {"generator_1": "theirs", "generator_2": "m"}
    assert pairs.match(*paths) == [
        Comparison("a", "", "their a", "our a", **names),
        Comparison("b", "", "their b", "our other b", **names),
        Comparison("b", " more", "", "our b", **names, finished_2=False),
    ]


def test_several_files_have_the_name_of_all(tmp_path):
    ours = saved(tmp_path, "ours.json", [said("a", "1"), said("b", "2")])
    parts = [saved(tmp_path, f"{name}.json", [said(name, name)]) for name in "ab"]
    names = [(one.generator_1, one.generator_2) for one in pairs.match(ours, ", ".join(parts))]
    assert names == 2 * [("a, b", "ours")]


def test_files_of_different_prompts(tmp_path):
    ours = saved(tmp_path, "ours.json", [said(name, name) for name in "abc"])
    theirs = saved(tmp_path, "theirs.json", [said(name, name) for name in "bcdef"])
    message = (
        r"ours\.json has 1 prompts that .*theirs\.json lacks, and lacks 3 that it has \(the f"
    )
    with pytest.raises(InputError, match=message + "irst: 'a'"):
        pairs.match(ours, theirs)
    assert [one.instruction for one in pairs.match(ours, theirs, common=True)] == ["b", "c"]
    other = saved(tmp_path, "other.json", [said("x", "x")])
    with pytest.raises(InputError, match="have no prompt in common"):
        pairs.match(ours, other, common=True)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([said("a", "1"), said("b", "2"), said("a", "3")], "row 3: its prompt stands there"),
        (
            [{"instruction": "a", "original": "x", "edited": "y"}],
            "row 1: is of a pair; give responses",
        ),
        ([{"instruction": "a"}], "misses the field 'output'"),
    ],
)
@pytest.mark.parametrize("side", [0, 1])
def test_files_that_are_no_responses(tmp_path, rows, message, side):
    paths = saved(tmp_path, "bad.json", rows), saved(tmp_path, "good.json", [said("a", "1")])
    with pytest.raises(InputError, match=message):
        pairs.match(*paths[:: -1 if side else 1])


def test_pairs_of_one_file(tmp_path):
    rows = [
        {"instruction": "a", "output_1": "x", "output_2": "y", "preference": 2},
        {"instruction": "a", "input": None, "output_1": "x", "output_2": "x"},
        {"instruction": "", "input": "b", "output_1": "x", "output_2": " "},
        {"instruction": "c", "input": "d", "output_1": "x", "output_2": "y"}
        | {"generator_1": "one", "generator_2": None},
    ]
    found, left_out = pairs.read(saved(tmp_path, "pairs.jsonl", rows))
    assert found == [
        Comparison("a", "", "x", "y"),
        Comparison("c", "d", "x", "y", generator_1="one"),
    ]
    assert left_out == Counter({"empty responses": 1, "identical responses": 1})


def test_edits_are_pairs_too(tmp_path):
    rows = [{"instruction": "a", "input": "", "original": "bad", "edited": "good"}]
    found, _ = pairs.read(saved(tmp_path, "edits.jsonl", rows))
    assert found == [Comparison("a", "", "bad", "good")]


def test_samples_of_a_prompt_make_pairs(tmp_path):
    rows = [
        *(said("a", text, generator="m") for text in ("1", "2", "1", "3", "4", "5")),
        *(said("b", text, finished=bool(text)) for text in ("6", "", "7")),
        *(said("b", text, input="more") for text in ("8", "8")),
        *(said("a", text) for text in ("9", "10")),
        said("c", "11", finished=False),
        said("c", "12", finished=True),
    ]
    found, left_out = pairs.read(saved(tmp_path, "samples.json", rows))
    made = [(one.instruction, one.output_1, one.output_2) for one in found]
    assert made == [
        ("a", "1", "2"),
        ("a", "3", "4"),
        ("b", "6", "7"),
        ("a", "9", "10"),
        ("c", "11", "12"),
    ]
    assert left_out == Counter(
        {"identical responses": 2, "empty responses": 1, "responses without another": 2}
    )
    assert (found[0].generator_1, found[0].generator_2) == ("m", "m")
    assert (found[-1].finished_1, found[-1].finished_2) == (False, True)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"instruction": "a", "answer": "x"}], "row 1: has neither output_1 and output_2"),
        ([said("a", "x"), said("b", "y")], "no pair of two different responses (2 responses w"),
        (
            [{"instruction": "a", "output_1": "x", "output_2": "x"}],
            "no pair of two different responses (1 identical responses)",
        ),
        ([said("a", "x"), {"instruction": "a"}], "row 2: misses output; every row needs"),
        ([said("a", "x"), said("a", 3)], "row 2: output is 3, not a string"),
        ([said(" ", "x")], "row 1: instruction and input are both empty"),
        ([said("a", "x", input=["b"])], "row 1: input is ['b'], not a string"),
        ([{"output": "x"}], "row 1: misses instruction"),
        ([3], "row 1: is not an object"),
    ],
)
def test_files_without_pairs(tmp_path, rows, message):
    path = saved(tmp_path, "file.json", rows)
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        pairs.read(path)
    assert str(caught.value).startswith(path)
