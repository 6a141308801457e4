"""launch.data: figures of files of every form, and conversions on the command line."""

import json
import sys

import data_cases
import pyarrow
import pyarrow.parquet
import pytest
from data_cases import ANSWER, FILES

from fgrlhf_jax.data import describe, records
from fgrlhf_jax.data.records import Edit, Instruction, Preference
from fgrlhf_jax.data.tokenizers import train_tokenizer
from fgrlhf_jax.runtime.files import write_jsonl
from launch import data
from launch.shared import cli


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data_cases.write(tmp_path)
    return tmp_path


def run(monkeypatch, capsys, **fields) -> str:
    """What the command prints."""
    named = [f"--config.{name}={value}" for name, value in fields.items()]
    monkeypatch.setattr(sys, "argv", ["data", *named])
    data.main(cli.parse(sys.argv, "configs/data.py"))
    return capsys.readouterr().out


def figures(monkeypatch, capsys, **fields) -> dict:
    run(monkeypatch, capsys, output="figures.json", **fields)
    with open("figures.json", encoding="utf-8") as file:
        return json.load(file)


# --- figures ---------------------------------------------------------------------------------


def test_every_form_is_read_whole(monkeypatch, capsys):
    """Rows that are read and rows that are not are the rows there are."""
    found = figures(monkeypatch, capsys, input=",".join(FILES), invalid="drop")
    for one, rows in zip(found["files"], FILES.values(), strict=True):
        invalid = one.get("invalid", {"rows": 0})["rows"]
        assert one["rows"] + invalid == len(rows)
        assert sum(one["kinds"].values()) == one["rows"]
    kinds = {
        one["file"]: {k: n for k, n in one["kinds"].items() if n} for one in found["files"]
    }
    assert kinds == {
        "edits.jsonl": {"edits": 2},
        "compared.jsonl": {"edits": 1},
        "pairs.jsonl": {"preferences": 2},
        "annotations.json": {"preferences": 2},
        "answers.jsonl": {"instructions": 1, "prompts": 1},
    }


def test_figures_by_hand():
    edits = [
        Edit("Do it.", "now", "a b c d", "a", "1", ((0, 1), (2, 3))),
        Edit("Do it.", "now", "a b c d", "a", "2"),
        Edit("Do", "it. now", "a", "a b"),
    ]
    found = describe.describe_records(edits)
    assert found == {
        "rows": 3,
        "kinds": {"edits": 3, "preferences": 0, "instructions": 0, "prompts": 0},
        "distinct_prompts": 1,
        "with_input": 3,
        "duplicates": 1,
        "error_spans": {"rows": 1, "spans": 2},
        "words": {
            "prompt": {"median": 3, "p90": 3, "max": 3},
            "original": {"median": 4, "p90": 4, "max": 4},
            "edited": {"median": 1, "p90": 2, "max": 2},
        },
    }


def test_who_is_preferred():
    pairs = [Preference("a", "", "b", "c d", 1), Preference("a", "", "b", "c d", 2)]
    pairs += [Preference("a", "", "b", "c", 1), Preference("a", "", "b c d", "e", 1)]
    found = describe.describe_records(pairs)["preferred"]
    assert found == {"first": 0.75, "longer": (0 + 1 + 0.5 + 1) / 4}


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [([7], (7, 7, 7)), ([1, 2], (1, 2, 2)), (list(range(1, 101)), (50, 90, 100))],
)
def test_spread(lengths, expected):
    assert tuple(describe.length_quantiles(lengths[::-1]).values()) == expected


def test_tokens():
    """A letter or a line end is a token, <s> opens a prompt and </s> ends a response."""
    tokenizer = train_tokenizer(["Name a fruit.", "Fig"], 300)
    rows = [("ab", "cdef"), ("abc", "d"), ("a", "")]  # 4 + 5, 5 + 2, 3
    read = [Instruction(prompt, "", output) for prompt, output in rows]
    for max_length, over in ((9, 0), (8, 1), (6, 2), (2, 3)):
        ruler = describe.TokenLimits(tokenizer, "plain", max_length, 3)
        assert describe.describe_records(read, ruler)["tokens"] == {
            "template": "plain",
            "lengths": {
                "prompt": {"median": 4, "p90": 5, "max": 5},
                "output": {"median": 2, "p90": 5, "max": 5},
            },
            "max_length": max_length,
            "rows_over_max_length": over,
            "max_prompt_length": 3,
            "prompts_over_max_prompt_length": 2,
        }


def test_tokens_on_the_command_line(folder, monkeypatch, capsys):
    texts = [text for row in FILES["edits.jsonl"] for text in row.values()]
    train_tokenizer(texts, 300).save_pretrained(folder / "tokenizer")
    fields = {"input": "edits.jsonl", "tokenizer": "tokenizer", "max_length": 20}
    found = figures(monkeypatch, capsys, **fields)["files"][0]["tokens"]
    assert found["rows_over_max_length"] == 2
    assert "tokens: median" in run(monkeypatch, capsys, **fields)


def test_prompts_that_files_share(monkeypatch, capsys):
    given = {"input": "pairs.jsonl,answers.jsonl,edits.jsonl"}
    found = figures(monkeypatch, capsys, **given)["shared_prompts"]
    assert found == [
        {"files": ["pairs.jsonl", "answers.jsonl"], "prompts": 1},
        {"files": ["pairs.jsonl", "edits.jsonl"], "prompts": 0},
        {"files": ["answers.jsonl", "edits.jsonl"], "prompts": 0},
    ]
    out = run(monkeypatch, capsys, **given)
    assert "prompts in two files:\n        1  pairs.jsonl  and  answers.jsonl" in out
    assert "No prompt is in two files." in run(
        monkeypatch, capsys, input="pairs.jsonl,edits.jsonl"
    )


def test_samples_are_whole_and_seeded(folder, monkeypatch, capsys):
    long = "word " * 2000 + "end\nnext \x1b[31m line"
    rows = [ANSWER | {"output": f"{long} {n}"} for n in range(9)]
    write_jsonl(folder / "long.jsonl", rows)
    out = run(monkeypatch, capsys, input="long.jsonl", samples=2)
    assert out.count("-- row ") == 2
    assert out.count("word " * 2000 + "end\n    next \N{REPLACEMENT CHARACTER}[31m line") == 2
    assert out.count("source: seeds") == 2
    assert out == run(monkeypatch, capsys, input="long.jsonl", samples=2)
    assert out != run(monkeypatch, capsys, input="long.jsonl", samples=2, seed=1)
    found = figures(monkeypatch, capsys, input="long.jsonl", samples=2)
    for sample in found["files"][0]["samples"]:
        assert sample["fields"] == rows[sample["row"] - 1]


def test_rows_that_cannot_be_read(monkeypatch, capsys):
    out = run(monkeypatch, capsys, input="annotations.json", invalid="drop", samples=0)
    assert "left out: 3 rows that cannot be read, the first being\n" in out
    assert "  annotations.json:row 3: output_1 and output_2 are equal" in out


def test_limit(monkeypatch, capsys):
    found = figures(monkeypatch, capsys, input="pairs.jsonl,edits.jsonl", limit=1)
    assert [one["rows"] for one in found["files"]] == [1, 1]


def test_a_row_of_parquet_that_json_cannot_hold(folder, monkeypatch, capsys):
    table = pyarrow.Table.from_pylist([ANSWER | {"seen": b"\xff"}])
    pyarrow.parquet.write_table(table, folder / "a.parquet")
    (sample,) = figures(monkeypatch, capsys, input="a.parquet")["files"][0]["samples"]
    assert sample["fields"]["seen"] == "b'\\xff'"


def test_no_flag_shows_the_embedded_world(monkeypatch, capsys):
    out = run(monkeypatch, capsys)
    for name in ("sft", "edits", "preferences", "ppo"):
        assert f"embedded {name}\n" in out


# --- conversions -------------------------------------------------------------------------------


def test_what_is_to_be_edited(monkeypatch, capsys):
    """Preferences to the responses that an editor edits."""
    fields = {"to": "instructions", "side": "worse", "output": "worse.jsonl"}
    out = run(monkeypatch, capsys, input="pairs.jsonl", **fields)
    assert out == "2 rows in worse.jsonl\n"
    assert records.read("worse.jsonl") == [
        Instruction("Name a fruit.", "", "A brick, I think."),
        Instruction("Name a fruit.", "", "Fig"),
    ]


def test_comparisons_of_predictions(monkeypatch, capsys):
    fields = {"input": "compared.jsonl", "to": "preferences", "predictions": True}
    out = run(monkeypatch, capsys, output="p.jsonl", **fields)
    assert out == "5 rows in p.jsonl\nleft out: 1 ties\n"
    read = records.read("p.jsonl")
    assert {type(record) for record in read} == {Preference}
    assert read[0].id == "dev/0/1-2"


def test_several_files_at_once_and_what_is_left_out(monkeypatch, capsys):
    fields = {"input": "annotations.json,answers.jsonl,edits.jsonl", "invalid": "drop"}
    out = run(
        monkeypatch, capsys, to="instructions", output="all.jsonl", distinct=True, **fields
    )
    assert out == (
        "4 rows in all.jsonl\nleft out: 3 that cannot be read\n"
        "left out: 1 without an output\nleft out: 1 repeated\n"
    )


@pytest.mark.parametrize(
    ("source", "to"),
    [
        ("edits.jsonl", "edits"),
        ("edits.jsonl", "preferences"),
        ("edits.jsonl", "prompts"),
        ("pairs.jsonl", "alpaca_farm"),
        ("answers.jsonl", "alpaca_farm"),
        ("pairs.jsonl", "alpaca_eval"),
    ],
)
@pytest.mark.parametrize("suffix", ["jsonl", "json"])
def test_what_is_written_can_be_read(monkeypatch, capsys, source, to, suffix):
    output = f"made.{suffix}"
    run(monkeypatch, capsys, input=source, to=to, output=output)
    assert len(records.read(output)) == (1 if to == "prompts" else 2)
