"""Pairs of responses: from two files, and from one, in any layout of rows."""

import json
import re
from collections import Counter

import pytest

from fgrlhf_jax.data import records
from fgrlhf_jax.data.records import Message
from fgrlhf_jax.errors import InputError
from fgrlhf_jax.feedback.judges import pairs
from fgrlhf_jax.feedback.judges.alpaca_eval import Comparison


def read(spec: str, need: str = "any") -> pairs.Responses:
    return pairs.Responses(spec, records.read_with_rows(spec, need=need))


def match_files(outputs: str, reference: str, **options) -> list[Comparison]:
    return pairs.match_files(read(outputs), read(reference), **options)


def read_pairs(spec: str) -> tuple[list[Comparison], Counter]:
    return pairs.pair_responses(read(spec, "candidates"))


@pytest.fixture
def save(tmp_path):
    def write(name: str, rows: list) -> str:
        as_lines = "\n".join(map(json.dumps, rows))
        (tmp_path / name).write_text(json.dumps(rows) if name.endswith(".json") else as_lines)
        return str(tmp_path / name)

    return write


def response(instruction: str, output: str, **more) -> dict:
    return {"instruction": instruction, "output": output, **more}


def test_two_files_are_matched_by_their_prompts(save):
    ours = [
        response("b", "our b", input="more", generator="m", finished=False),
        response("a ", "our a", generator="m"),
        response("b", "our other b", generator="m"),
    ]
    theirs = [response(name, f"their {name}") for name in "ab"]
    theirs.append(response("b", "", input=" more"))
    paths = save("ours.json", ours), save("theirs.jsonl", theirs)
    names = {"generator_1": "theirs", "generator_2": "m"}
    assert match_files(*paths) == [
        Comparison("a", "", "their a", "our a", **names),
        Comparison("b", "", "their b", "our other b", **names),
        Comparison("b", " more", "", "our b", **names, finished_2=False),
    ]


def test_several_files_have_the_name_of_all(save):
    ours = save("ours.json", [response("a", "1"), response("b", "2")])
    parts = [save(f"{name}.json", [response(name, name)]) for name in "ab"]
    matched = match_files(ours, ", ".join(parts))
    assert [(pair.generator_1, pair.generator_2) for pair in matched] == 2 * [("a, b", "ours")]


def test_files_of_different_prompts(save):
    ours = save("ours.json", [response(name, name) for name in "abc"])
    theirs = save("theirs.json", [response(name, name) for name in "bcdef"])
    message = r"ours\.json has 1 prompts that .*theirs\.json lacks, and lacks 3 that it has"
    with pytest.raises(InputError, match=message + r" \(the first: 'a'"):
        match_files(ours, theirs)
    matched = match_files(ours, theirs, common=True)
    assert [pair.instruction for pair in matched] == ["b", "c"]
    other = save("other.json", [response("x", "x")])
    with pytest.raises(InputError, match="have no prompt in common"):
        match_files(ours, other, common=True)


EDIT = {"instruction": "a", "input": "", "original": "bad", "edited": "good"}
TWICE = [response("a", "1"), response("b", "2"), response("a", "3")]


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize(
    ("rows", "message"),
    [(TWICE, "row 3: an earlier row has the same"), ([EDIT], "row 1: is of a pair; give resp")],
)
def test_refused_responses(save, rows, message, order):
    paths = save("bad.json", rows), save("good.json", [response("a", "1")])
    with pytest.raises(InputError, match=message):
        match_files(*paths[::order])


def test_pairs_of_one_file_whatever_their_label(save):
    rows = [
        {"instruction": "a", "output_1": "x", "output_2": "y", "preference": "?"},
        {"instruction": "c", "input": "d", "output_1": "x", "output_2": "y"}
        | {"generator_1": "one", "generator_2": None},
        {"prompt": "e", "chosen": "x", "rejected": "y"},
        EDIT,
        response("f", "x"),
        response("f", "y"),
    ]
    comparisons, left_out = read_pairs(save("pairs.jsonl", rows))
    assert comparisons == [
        Comparison("a", "", "x", "y"),
        Comparison("c", "d", "x", "y", generator_1="one"),
        Comparison("e", "", "x", "y"),
        Comparison("a", "", "bad", "good"),
        Comparison("f", "", "x", "y"),
    ]
    assert left_out.total() == 0


TURNS = [
    {"role": "user", "content": "Hi."},
    {"role": "assistant", "content": "Hello!"},
    {"role": "user", "content": "Sing."},
]


def test_several_turns(save):
    ours = save("ours.jsonl", [{"messages": TURNS, "output": "La"}])
    theirs = save("theirs.jsonl", [{"messages": [*TURNS, TURNS[1] | {"content": "No"}]}])
    messages = tuple(Message(**turn) for turn in TURNS)
    (comparison,) = match_files(ours, theirs)
    names = {"generator_1": "theirs", "generator_2": "ours"}
    assert comparison == Comparison("", "", "No", "La", messages=messages, **names)
    chosen, rejected = ([TURNS[1] | {"content": text}] for text in ("La", "No"))
    rows = [{"prompt": TURNS, "chosen": chosen, "rejected": rejected}]
    (comparison,), _ = read_pairs(save("pairs.jsonl", rows))
    assert comparison == Comparison("", "", "La", "No", messages=messages)


def test_an_input_that_is_joined_to_the_instruction_matches_one_that_is_not(save):
    ours = [{"instruction": "a\n\nmore", "input": "more", "raw_instruction": "a", "output": "1"}]
    paths = [save("ours.json", ours)]
    paths += [save("alpaca_eval.json", [response("a\n\nmore", "2")])]
    paths += [save("apart.json", [response("a", "3", input="more")])]
    for first, second in ((0, 1), (1, 2), (2, 0)):
        (comparison,) = match_files(paths[first], paths[second])
        assert comparison.prompt == "a\n\nmore"


def test_samples_of_a_prompt_make_pairs(save):
    rows = [
        *(response("a", text, generator="m") for text in ("1", "2", "1", "3", "4", "5")),
        *(response("b", text, finished=bool(text)) for text in ("6", "", "7")),
        *(response("b", text, input="more") for text in ("8", "8")),
        *(response("a", text) for text in ("9", "10")),
        response("c", "11", finished=False),
        response("c", "12", finished=True),
    ]
    comparisons, left_out = read_pairs(save("samples.json", rows))
    assert [(pair.instruction, pair.output_1, pair.output_2) for pair in comparisons] == [
        *(("a", "1", "2"), ("a", "3", "4"), ("b", "6", "7")),
        *(("a", "9", "10"), ("c", "11", "12")),
    ]
    assert left_out == Counter(
        {"identical responses": 2, "empty responses": 1, "responses without another": 2}
    )
    assert (comparisons[0].generator_1, comparisons[0].generator_2) == ("m", "m")
    assert (comparisons[-1].finished_1, comparisons[-1].finished_2) == (False, True)


SAME = {"instruction": "a", "output_1": "x", "output_2": "x"}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([response("a", "x"), response("b", "y")], "no two different responses (2 responses wi"),
        ([SAME], "no two different responses (1 identical responses"),
        ([response("a", "x"), {"instruction": "a"}], "row 2: misses the field 'output'"),
        ([response("a", "x"), response("a", 3)], "row 2: the field 'output' is 3, not a"),
    ],
)
def test_files_without_pairs(save, rows, message):
    path = save("file.json", rows)
    with pytest.raises(InputError, match=re.escape(message)) as error:
        read_pairs(path)
    assert str(error.value).startswith(path)
