"""What a user may get wrong with launch.data: one sentence, and no file is written."""

import bad_input_cases
import data_cases
import pytest

from fgrlhf_jax.data.tokenizers import train_tokenizer
from launch import data


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data_cases.write(tmp_path)
    (tmp_path / "malformed.jsonl").write_text('{"instruction": ')
    (tmp_path / "none.jsonl").write_text("{}\n{}\n")
    return tmp_path


CONVERT = {"input": "edits.jsonl", "to": "preferences", "output": "made.jsonl"}
BAD = {
    "no such file": ({"input": "no.jsonl"}, "no.jsonl: there is no such file"),
    "malformed": ({"input": "malformed.jsonl"}, "malformed.jsonl:1: malformed JSON"),
    "malformed, dropped": (
        {"input": "malformed.jsonl", "invalid": "drop"},
        "malformed.jsonl:1: malformed JSON",
    ),
    "a bad row": (
        {"input": "annotations.json"},
        "annotations.json:row 3: output_1 and output_2 are equal and teach nothing; drop the row",
    ),
    "nothing but bad rows": (
        {"input": "none.jsonl", "invalid": "drop"},
        "none.jsonl: no row of it can be read; the last one: none.jsonl:2: misses the field",
    ),
    "a folder": ({"input": "."}, ".: is a folder; name the files in it"),
    "no file between commas": ({"input": "edits.jsonl,"}, "names no file"),
    "output for rows": (
        {"input": "edits.jsonl", "output": "a.jsonl"},
        "output=a.jsonl: say which rows, --config.to=…, or give a .json",
    ),
    "output of another kind": (
        CONVERT | {"output": "a.csv"},
        "give a FILE.jsonl or a FILE.json",
    ),
    "output nowhere": (CONVERT | {"output": "no/a.jsonl"}, "the folder no does not exist"),
    "output is the input": (
        CONVERT | {"output": "edits.jsonl"},
        "output=edits.jsonl: is what is read; give another file",
    ),
    "nothing to convert": (CONVERT | {"input": ""}, "input is empty; give --config.input=FILE"),
    "nowhere to convert to": (
        CONVERT | {"output": ""},
        "output is empty; give --config.output=",
    ),
    "impossible": (
        CONVERT | {"input": "answers.jsonl"},
        "row 1: a single response is no prefer",
    ),
    "no predictions": (
        CONVERT | {"predictions": True},
        "row 1: has no comparison of predictions",
    ),
    "no tokenizer": ({"tokenizer": "nowhere"}, "nowhere: no such model"),
    "no template": ({"tokenizer": "TOKENIZER", "template": "chat"}, "has no chat template"),
    "an id that cannot be had": (
        {"input": "no/such:a:b"},
        "no/such:a:b: datasets cannot load it",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(folder, monkeypatch, capsys, case):
    fields, message = BAD[case]
    if "TOKENIZER" in fields.values():
        train_tokenizer(["a"], 300).save_pretrained(folder / "tokenizer")
    fields = {
        name: bad_input_cases.filled(value, {"TOKENIZER": "tokenizer"})
        for name, value in fields.items()
    }
    before = bad_input_cases.contents(folder)
    said = bad_input_cases.only(
        bad_input_cases.launch(monkeypatch, capsys, data, "configs/data.py", **fields)
    )
    assert message in said
    assert bad_input_cases.contents(folder) == before | bad_input_cases.contents(
        folder / "tokenizer"
    )
