"""launch.data: figures of files of every form, and conversions on the command line."""

import json
import sys
from pathlib import Path

import bad_input_cases
import data_cases
import pyarrow
import pyarrow.parquet
import pytest
from data_cases import ANSWER, FILES

from fgrlhf_jax.data import sources
from fgrlhf_jax.data.describe import TokenLimits, describe_records
from fgrlhf_jax.data.records import Edit, Instruction, Preference
from fgrlhf_jax.data.tokenizers import train_tokenizer
from fgrlhf_jax.runtime.files import write_jsonl
from launch import data
from launch.shared import config_files, reading


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data_cases.write(tmp_path)
    return tmp_path


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs the command with fields of its config; returns what it prints."""

    def run(**fields) -> str:
        flags = [f"--config.{name}={value}" for name, value in fields.items()]
        monkeypatch.setattr(sys, "argv", ["data", *flags])
        data.main(config_files.parse(sys.argv, "configs/data.py"))
        out, err = capsys.readouterr()
        sys.stderr.write(err)
        return out

    return run


def statistics(run, **fields) -> dict:
    run(output="statistics.json", overwrite=True, **fields)
    return json.loads(Path("statistics.json").read_text(encoding="utf-8"))


def test_every_form_is_read_whole(run):
    files = statistics(run, input=",".join(FILES), invalid="drop")["files"]
    assert all(sum(file["kinds"].values()) == file["rows"] for file in files)
    kinds = [{kind: n for kind, n in file["kinds"].items() if n} for file in files]
    assert dict(zip(FILES, kinds, strict=True)) == {
        "edits.jsonl": {"edits": 2},
        "compared.jsonl": {"edits": 1},
        "pairs.jsonl": {"preferences": 2},
        "annotations.json": {"preferences": 2},
        "answers.jsonl": {"instructions": 1, "prompts": 1},
    }
    files = statistics(run, input="pairs.jsonl,edits.jsonl", limit=1)["files"]
    assert [file["rows"] for file in files] == [1, 1]


def test_edits_by_hand():
    edits = [
        Edit("Do it.", "now", "a b c d", "a", "1", ((0, 1), (2, 3))),
        Edit("Do it.", "now", "a b c d", "a", "2"),
        Edit("Do", "it. now", "a", "a b"),
    ]
    assert describe_records(edits) == {
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


def test_prompts_and_preferences_by_hand():
    """An input makes another prompt, though not another text."""
    statistics = describe_records([Instruction("a", "b", "c"), Instruction("a", "", "c")])
    assert (statistics["distinct_prompts"], statistics["duplicates"]) == (2, 0)
    pairs = [Preference("a", "", "b", "c d", 1), Preference("a", "", "b", "c d", 2)]
    pairs += [Preference("a", "", "b", "c", 1), Preference("a", "", "b c d", "e", 1)]
    assert describe_records(pairs)["preferred"] == {"first": 0.75, "longer": (0 + 1 + 0.5 + 1) / 4}


def test_tokens(run, folder):
    """A letter or a line end is a token, <s> opens a prompt and </s> ends a response."""
    tokenizer = train_tokenizer(["Name a fruit.", "Fig"], 300)
    rows = [("ab", "cdef"), ("abc", "d"), ("a", "")]  # 4 + 5, 5 + 2, 3
    answers = [Instruction(prompt, "", output) for prompt, output in rows]
    for max_length, over in ((9, 0), (8, 1), (6, 2), (2, 3)):
        limits = TokenLimits(tokenizer, "plain", max_length, 3)
        lengths = {"prompt": (4, 5, 5), "output": (2, 5, 5)}
        names = ("median", "p90", "max")
        assert describe_records(answers, limits)["tokens"] == {
            "template": "plain",
            "lengths": {k: dict(zip(names, v, strict=True)) for k, v in lengths.items()},
            "max_length": max_length,
            "rows_over_max_length": over,
            "max_prompt_length": 3,
            "prompts_over_max_prompt_length": 2,
        }
    tokenizer.save_pretrained(folder / "tokenizer")
    fields = {"input": "edits.jsonl", "tokenizer": "tokenizer", "max_length": 20}
    assert statistics(run, **fields)["files"][0]["tokens"]["rows_over_max_length"] == 2
    assert "tokens: median" in run(**fields)
    tokenizer.chat_template = "{% for turn in messages %}{{ turn.content }}</s>{% endfor %}"
    tokenizer.save_pretrained(folder / "tokenizer")
    assert "(template chat)" in run(**fields)


def test_prompts_that_files_share(run):
    names = ["pairs.jsonl", "answers.jsonl", "edits.jsonl"]
    files = {"input": ",".join(names)}
    shared = statistics(run, **files)["shared_prompts"]
    assert [(*pair["files"], pair["prompts"]) for pair in shared] == [
        (*names[:2], 1),
        (names[0], names[2], 0),
        (*names[1:], 0),
    ]
    assert "prompts in two files:\n        1  pairs.jsonl  and  answers.jsonl" in run(**files)
    assert "No prompt is in two files." in run(input="pairs.jsonl,edits.jsonl")


def test_samples_are_whole_and_seeded(folder, run):
    long = "word " * 2000 + "end\nnext line"
    rows = [ANSWER | {"output": f"{long} {n}"} for n in range(9)]
    write_jsonl(folder / "long.jsonl", rows)
    fields = {"input": "long.jsonl", "samples": 2}
    out = run(**fields)
    assert out.count("-- row ") == out.count("source: seeds") == 2
    assert out.count("word " * 2000 + "end\n    next line") == 2
    assert out == run(**fields) != run(**fields, seed=1)
    for sample in statistics(run, **fields)["files"][0]["samples"]:
        assert sample["fields"] == rows[sample["row"] - 1]
    # What JSON cannot hold is shown as text.
    table = pyarrow.Table.from_pylist([ANSWER | {"seen": b"\xff"}])
    pyarrow.parquet.write_table(table, folder / "a.parquet")
    (sample,) = statistics(run, input="a.parquet")["files"][0]["samples"]
    assert sample["fields"]["seen"] == "b'\\xff'"


def test_rows_that_cannot_be_read(run, capsys):
    run(input="annotations.json", invalid="drop", samples=0)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "annotations.json: 3 rows left out"
    assert lines[1].startswith("  annotations.json:row 3: output_1 and output_2 are equal")
    assert "row 5: the response 'output_2' is empty" in lines[3]


def test_no_flag_shows_the_embedded_world(run):
    out = run()
    for name in ("sft", "edits", "preferences", "ppo"):
        assert f"embedded {name}\n" in out


def test_what_a_conversion_says_and_writes(run):
    fields = {"to": "instructions", "side": "worse", "output": "worse.jsonl"}
    assert run(input="pairs.jsonl", **fields) == "2 rows in worse.jsonl\n"
    texts = [row.output for row in sources.read("worse.jsonl")]  # that an editor edits
    assert texts == ["A brick, I think.", "Fig"]
    fields = {"input": "compared.jsonl", "to": "preferences", "columns": "predictions,preference"}
    assert run(output="p.jsonl", **fields) == "5 rows in p.jsonl\n"
    pairs = sources.read("p.jsonl")
    assert {type(pair) for pair in pairs} == {Preference}
    assert pairs[0].id == "dev/0/1-2"
    fields = {"input": "annotations.json,answers.jsonl,edits.jsonl", "invalid": "drop"}
    assert run(to="instructions", output="all.json", distinct=True, **fields) == (
        "4 rows in all.json\nleft out: 1 without an output\nleft out: 1 repeated\n"
    )
    assert len(sources.read("all.json")) == 4


def test_rows_with_a_prompt_of_the_training_file_are_counted(capsys):
    train = [Edit(f"Do {n}.", "", "a", "b") for n in range(3)]
    one = [Edit("Improve.", "", f"{n}", "b") for n in range(4)]  # one instruction for all
    for rows, test in ((train, [Edit("Do  2. ", "", "c", "d")]), (one[:3], one[2:])):
        reading.print_shared(rows, {"test": [*test, Edit("Do 7.", "", "a", "b")]})
        assert "test: 1 of " in capsys.readouterr().out


def test_prompts_that_texts_begin_with_or_templates_have_written_are_counted(run):
    ends = ["<|im_start|>assistant\n", "[/INST]", "### Response:", "<extra_id_1>Assistant\n"]
    ends += ["<|start_header_id|>assistant<|end_header_id|>\n\n", "an assistant", "A response:"]
    write_jsonl("a.jsonl", [{"prompt": f"Hi.\n{end}"} for end in ends])
    assert "a.jsonl: 5 prompts end as a template opens an answer" in run(input="a.jsonl")
    write_jsonl("trl.jsonl", [{"chosen": "The sky is blue.", "rejected": "The sky is green."}] * 2)
    assert "trl.jsonl: 2 pairs have no prompt field; their common beginning" in run(
        input="trl.jsonl"
    )


def test_conversations_whose_last_answer_is_imitated_are_counted(capsys):
    turns = [{"role": role, "content": "Hi."} for role in ("user", "assistant")]
    write_jsonl("chat.jsonl", [{"messages": turns * 2}, {"messages": turns}])
    assert len(reading.read(config_files.load("configs/sft.py"), "chat.jsonl", "responses")) == 2
    line = "chat.jsonl: 1 conversations; only their last responses are imitated"
    assert line in capsys.readouterr().out


CONVERT = {"input": "edits.jsonl", "to": "preferences", "output": "made.jsonl"}
BAD = [
    ({"input": "no.jsonl"}, "no.jsonl: there is no such file"),
    ({"input": "annotations.json"}, "annotations.json:row 3: output_1 and output_2 are equal"),
    ({"input": "none.jsonl", "invalid": "drop"}, "none.jsonl: no row can be read; the last"),
    ({"input": "edits.jsonl", "output": "a.jsonl"}, "output=a.jsonl: say which rows, --config.to="),
    (CONVERT | {"output": "a.csv"}, "give a FILE.jsonl or a FILE.json"),
    (CONVERT | {"output": "no/a.jsonl"}, "the folder no does not exist"),
    (CONVERT | {"output": "edits.jsonl"}, "output: would overwrite edits.jsonl, an input"),
    (CONVERT | {"input": ""}, "input is empty; give --config.input=FILE"),
    (CONVERT | {"output": "there.jsonl"}, "there.jsonl: exists; choose another, or overwrite"),
    (CONVERT | {"to": "trl", "input": "edits.jsonl,answers.jsonl"}, "are of several kinds (pair"),
    (CONVERT | {"input": "scored.jsonl"}, "chosen_score is 1, and rejected_score is 2"),
    (CONVERT | {"output": ""}, "output is empty; give --config.output="),
    (CONVERT | {"input": "answers.jsonl"}, "row 1: has a single response, not a"),
    (CONVERT | {"columns": "predictions"}, "edits.jsonl:1: misses the field 'predictions'"),
    ({"tokenizer": "nowhere"}, "nowhere: no such model"),
    ({"tokenizer": "tokenizer", "template": "chat"}, "has no chat template"),
]


@pytest.mark.parametrize(("fields", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_input(folder, refused, fields, message):
    (folder / "none.jsonl").write_text("{}\n{}\n")
    (folder / "there.jsonl").write_text("{}")
    scored = {"prompt": "a", "chosen": "b", "rejected": "c", "chosen_score": 1, "rejected_score": 2}
    (folder / "scored.jsonl").write_text(json.dumps(scored))
    train_tokenizer(["a"], 300).save_pretrained(folder / "tokenizer")
    before = bad_input_cases.read_files(folder)
    assert message in refused(data, **fields)
    assert bad_input_cases.read_files(folder) == before
