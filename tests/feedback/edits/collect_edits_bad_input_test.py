"""What a user may get wrong with launch.collect_edits, and what is then said."""

import bad_input_cases
import pytest

from launch import collect_edits
from launch.shared import asking

DEFAULT = "configs/collect_edits.py"
BAD = {
    "no model": (
        {"model": ""},
        "model is empty; give --config.provider=anthropic|openai|local",
    ),
    "no output": ({"output": ""}, "output is empty; give --config.provider="),
    "no key": (
        {"provider": "openai", "base_url": ""},
        "openai needs a key; set the environment",
    ),
    "address": ({"base_url": "nowhere"}, "base_url is no address; give http://HOST:PORT/v1"),
    "key in the address": (
        {"base_url": "http://me:secret@h/v1"},
        "keys come from the environment",
    ),
    "missing input": ({"input": "nowhere.jsonl"}, "nowhere.jsonl: there is no such file"),
    "no responses": (
        {"input": "DATA/prompts.jsonl"},
        "none of its rows has a response to edit",
    ),
    "empty": ({"input": "DATA/empty.jsonl"}, "empty.jsonl: holds no rows"),
    "suffix": ({"output": "DATA/edits.json"}, "edits.json: give a FILE.jsonl"),
    "missing folder": ({"output": "DATA/no/e.jsonl"}, "no does not exist; make it"),
    "somebody's file": ({"output": "DATA/prompts.jsonl"}, "prompts.jsonl:1: is no row of ours"),
    "somebody's cache": (
        {"cache": "DATA/prompts.jsonl"},
        "cache DATA/prompts.jsonl: cannot be used",
    ),
    "missing template": (
        {"template_file": "DATA/t.txt"},
        "t.txt: cannot be read (No such file",
    ),
    "template": (
        {"template_file": "DATA/bad.txt"},
        "there is no field {{ answer }}; there are",
    ),
    "no local model": (
        {"provider": "local", "model": "nowhere/at/all"},
        "nowhere/at/all: no such model; give a ",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case, tmp_path, monkeypatch, capsys):
    fields, says = BAD[case]
    (tmp_path / "prompts.jsonl").write_text('{"instruction": "q", "output": ""}\n')
    (tmp_path / "asked.jsonl").write_text('{"instruction": "q", "output": "a"}\n')
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "bad.txt").write_text("{{ response }} {{ answer }}")
    base = {
        "input": tmp_path / "asked.jsonl",
        "output": tmp_path / "edits.jsonl",
        "provider": "anthropic",
        "model": "m",
        "base_url": "http://127.0.0.1:9",
    }
    monkeypatch.setenv("ANTHROPIC_API_KEY", "a-key")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    given = {name: bad_input_cases.filled(v, {"DATA": tmp_path}) for name, v in fields.items()}
    monkeypatch.setattr(asking.requests, "collect_replies", None)  # nothing gets that far
    code, said = bad_input_cases.launch(
        monkeypatch, capsys, collect_edits, DEFAULT, **base | given
    )
    assert code == 2
    assert bad_input_cases.filled(says, {"DATA": tmp_path}) in said[-1]
    assert len(said) == 1
