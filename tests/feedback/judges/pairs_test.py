"""Pairs of responses: from two files, and from one, in any layout of rows."""

import re
from collections import Counter

import pytest

from fgrlhf_jax.data import sources
from fgrlhf_jax.data.records import Message
from fgrlhf_jax.errors import InputError
from fgrlhf_jax.feedback.judges import pairs
from fgrlhf_jax.feedback.judges.alpaca_eval import Comparison, prompt_key
from fgrlhf_jax.runtime.files import write_json


def read(name: str, rows: list[dict], need: str) -> pairs.Responses:
    write_json(name, rows)
    return pairs.Responses(name, sources.read_with_rows(name, need=need))


def match(ours: list[dict], theirs: list[dict], **options) -> list[Comparison]:
    sides = read("ours.json", ours, "any"), read("theirs.json", theirs, "any")
    return pairs.match_files(*sides, **options)


def pair(*rows: dict) -> tuple[list[Comparison], Counter]:
    return pairs.pair_responses(read("pairs.json", list(rows), "candidates"))


def response(instruction: str, output: str, **more) -> dict:
    return {"instruction": instruction, "output": output, **more}


NAMES = {"generator_1": "theirs", "generator_2": "ours"}
EDIT = {"instruction": "a", "input": "", "original": "bad", "edited": "good"}


def test_two_files_are_matched_by_their_prompts():
    ours = [response("b", "our b", input="more", generator="m", finished=False)]
    ours += [response(*texts, generator="m") for texts in (("a ", "our a"), ("b", "our other b"))]
    theirs = [*(response(name, f"their {name}") for name in "ab"), response("b", "", input=" more")]
    names = NAMES | {"generator_2": "m"}
    assert match(ours, theirs) == [
        Comparison("a", "", "their a", "our a", **names),
        Comparison("b", "", "their b", "our other b", **names),
        Comparison("b", " more", "", "our b", **names, finished_2=False),
    ]


def test_repeated_prompts_are_matched_in_order():
    ours = [response(*texts) for texts in ("a1", "b1", "a2")]
    theirs = [response(*texts) for texts in ("a3", "a4", "b2")]
    assert [(row.output_1, row.output_2) for row in match(ours, theirs)] == [
        *(("3", "1"), ("4", "2"), ("2", "1"))
    ]
    (common,) = match(ours, theirs[1:], common=True)  # which of "a" is missing is unknown
    assert common.instruction == "b"


def test_an_input_joined_to_the_instruction_matches_a_separate_one():
    ours = response("a\n\nmore", "1", input="more", raw_instruction="a")
    files = [ours, response("a\n\nmore", "2"), response("a", "3", input="more")]
    for first, second in ((0, 1), (1, 2), (2, 0)):
        (comparison,) = match([files[first]], [files[second]])
        assert prompt_key(comparison) == "a\n\nmore"


def test_files_of_different_prompts():
    ours, theirs = ([response(name, name) for name in names] for names in ("abc", "bcdef"))
    message = r"ours\.json has 1 prompts that theirs\.json lacks, and lacks 3 that it has"
    with pytest.raises(InputError, match=message + r" \(the first: 'a'"):
        match(ours, theirs)
    assert [row.instruction for row in match(ours, theirs, common=True)] == ["b", "c"]
    with pytest.raises(InputError, match="have no prompt in common"):
        match(ours, [response("x", "x")], common=True)


@pytest.mark.parametrize("order", [1, -1])
def test_refused_responses(order):
    for rows, message in (
        ([response(x, "1") for x in "aa"], r"\b1 (prompts )?that .*the first: 'a'"),
        ([EDIT], "row 1: is a pair; give one resp"),
    ):
        with pytest.raises(InputError, match=message):
            match(*(rows, [response("a", "1")])[::order])


def test_several_turns():
    texts = ("user", "Hi."), ("assistant", "Hello!"), ("user", "Sing.")
    turns = [{"role": role, "content": text} for role, text in texts]
    chosen, rejected = ([turns[1] | {"content": text}] for text in ("La", "No"))
    options = {"messages": tuple(Message(*each) for each in texts)}
    matched = match([{"messages": turns, "output": "La"}], [{"messages": turns + rejected}])
    assert matched == [Comparison("", "", "No", "La", **options, **NAMES)]
    comparisons, _ = pair({"prompt": turns, "chosen": chosen, "rejected": rejected})
    assert comparisons == [Comparison("", "", "La", "No", **options)]


def test_pairs_of_one_file_whatever_their_label():
    texts = {"output_1": "x", "output_2": "y"}
    comparisons, left_out = pair(
        {"instruction": "a", **texts, "preference": "?"},
        {"instruction": "c", "input": "d", **texts, "generator_1": "one", "generator_2": None},
        {"prompt": "e", "chosen": "x", "rejected": "y"},
        *(EDIT, response("f", "x"), response("f", "y")),
    )
    texts = ("a", "", "x", "y"), ("c", "d", "x", "y", None, "one"), ("e", "", "x", "y")
    texts = (*texts, ("a", "", "bad", "good"), ("f", "", "x", "y"))
    assert (comparisons, left_out.total()) == ([Comparison(*each) for each in texts], 0)


def test_samples_of_a_prompt_make_pairs():
    comparisons, left_out = pair(
        *(response("a", text, generator="m") for text in ("1", "2", "1", "3", "4", "5")),
        *(response("b", text) for text in ("6", "", "7")),
        *(response("b", text, input="more") for text in ("8", "8")),
        *(response("a", text) for text in ("9", "10")),
        *(response("c", text) for text in ("11", "12")),
    )
    assert [(row.instruction, row.output_1, row.output_2) for row in comparisons] == [
        *(("a", "1", "2"), ("a", "3", "4"), ("b", "6", "7")),
        *(("a", "9", "10"), ("c", "11", "12")),
    ]
    reasons = {"identical responses": 2, "empty responses": 1, "responses without another": 2}
    assert (left_out, comparisons[0].generator_1, comparisons[0].generator_2) == (reasons, "m", "m")
    with pytest.raises(InputError, match=re.escape("two different responses (2 responses without")):
        pair(response("a", "x"), response("b", "y"))
