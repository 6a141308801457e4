"""What the commands of feedback refuse: each with one sentence, before anything is sent."""

import pytest

from fgrlhf_jax.feedback.annotation import server
from fgrlhf_jax.runtime.files import write_json, write_jsonl
from launch import annotate, collect_edits, collect_preferences, edit_report, evaluate
from launch.shared import llm

EDIT = {"instruction": "q", "original": "a", "edited": "b"}
PAIR = {"instruction": "q", "output_1": "a", "output_2": "b", "preference": 1}
PLACE = {"provider": "anthropic", "model": "m", "base_url": "http://127.0.0.1:9"}
GOLD = "fgrlhf_jax.tiny_world.judge:judge"
ANNOTATE = annotate, {"input": "rows.jsonl", "output": "new.jsonl", "port": 0}
COLLECT = collect_edits, PLACE | {"input": "rows.jsonl", "output": "new.jsonl"}
REPORT = edit_report, {"input": "edits.jsonl"}
FILES = {"outputs": "a.json", "reference": "b.json"}
JUDGE = evaluate, PLACE | FILES | {"output": "eval.json"}
ANNOTATED = evaluate, {"annotations": "x.json"}
LABEL = collect_preferences, {"input": "pairs.jsonl", "output": "labels.jsonl", "judge": GOLD}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for variable in (server.PASSWORD, "OPENAI_API_KEY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(llm.requests, "collect_replies", None)  # nothing gets that far
    rows = {
        "rows": [{"instruction": "Say one.", "output": "Won."}],
        "blank": [{"instruction": "q", "output": ""}],
        "empty": [],
        "pairs": [PAIR],
        "chosen": [{"prompt": "q", "chosen": "a", "rejected": "b"}],
        "draws": [PAIR | {"instruction": "capital of hungary"}],
        "mixed": [EDIT, PAIR],
        "same": [EDIT | {"edited": "a"}],
        **{name: [EDIT] for name in ("edits", "odd", "odd.rejected", "more")},
    }
    for name in rows:
        write_jsonl(f"{name}.jsonl", rows[name])
    for name in "abc":
        write_json(f"{name}.json", [{"instruction": "do", "output": f"says {name}"}])
    for name in "xz":
        write_json(f"{name}.json", [PAIR | {"instruction": name}])
    (tmp_path / "bad.txt").write_text("{{ response }} {{ answer }}")
    (tmp_path / "one.txt").write_text("{{ instruction }} {{ first }}")


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("command", "fields", "message"),
    [
        (ANNOTATE, {"input": "no.jsonl"}, "no.jsonl: there is no such file"),
        (ANNOTATE, {"output": "edits.json"}, "give --config.output=FILE.jsonl"),
        (ANNOTATE, {"output": "rows.jsonl"}, "rows.jsonl:1: is not a row of rows.jsonl.sqlite"),
        (ANNOTATE, {"guidelines": "no.md"}, "guidelines=no.md: cannot be read"),
        (ANNOTATE, {"root_path": "example.org/x"}, "root_path=example.org/x: "),
        (ANNOTATE, {"root_path": "/x"}, "root_path=/x: "),
        (ANNOTATE, {"export": "out.txt"}, "give a FILE.json"),
        (ANNOTATE, {"export": "out.json", "format": "edits"}, "give a FILE.jsonl"),
        (ANNOTATE, {"export": "no/out.json"}, "export=no/out.json: the folder no does not exist"),
        (ANNOTATE, {"export": "o.json"}, "output=new.jsonl: nothing was annotated into it ("),
        *(
            (ANNOTATE, {"format": "edits", "export": path}, "export: would overwrite ")
            for path in ("./rows.jsonl", "new.jsonl", "new.jsonl.state.jsonl")
        ),
        (ANNOTATE, {"host": "0.0.0.0"}, "set a password in the environment variable FGRLHF_ANNO"),
        (COLLECT, {"model": ""}, "model is empty; give --config.provider=anthropic|openai|local"),
        (COLLECT, {"output": ""}, "output is empty; give --config.provider="),
        (COLLECT, {"provider": "openai", "base_url": ""}, "openai needs a key; set the envir"),
        (COLLECT, {"base_url": "nowhere"}, "base_url is not an address; give http://HOST:PORT/v1"),
        (COLLECT, {"input": "nowhere.jsonl"}, "nowhere.jsonl: there is no such file"),
        (COLLECT, {"input": "blank.jsonl"}, "none of its rows has a response to edit"),
        (COLLECT, {"input": "empty.jsonl"}, "empty.jsonl: holds no rows"),
        (COLLECT, {"output": "edits.json"}, "edits.json: give a FILE.jsonl"),
        (COLLECT, {"output": "no/e.jsonl"}, "no does not exist; create it"),
        (COLLECT, {"output": "blank.jsonl"}, "blank.jsonl:1: does not belong to row 1"),
        (COLLECT, {"cache": "blank.jsonl"}, "cache blank.jsonl: cannot be used"),
        (COLLECT, {"template_file": "bad.txt"}, "there is no field {{ answer }}; there are"),
        (COLLECT, {"provider": "local", "model": "no/model/x"}, "no/model/x: no such model; give "),
        (REPORT, {"input": "nowhere.jsonl"}, "nowhere.jsonl: there is no such file"),
        (REPORT, {"input": "mixed.jsonl"}, "mixed.jsonl: row 2 is not an edit (instruction"),
        (REPORT, {"input": "chosen.jsonl"}, "set --config.columns=original=rejected,edited=c"),
        (REPORT, {"input": "same.jsonl"}, "same.jsonl:1: original and edited are equal"),
        (REPORT, {"input": "odd.jsonl"}, "odd.rejected.jsonl:1: is not a rejected row"),
        (REPORT, {"output": "x.pdf"}, "x.pdf: give a FILE.html or a FILE.json"),
        (REPORT, {"input": "x.json,./more.json", "output": "more.json"}, "more.json, an input"),
        (REPORT, {"tokenizer": "nowhere/at/all"}, "nowhere/at/all: no such model"),
        (JUDGE, {"reference": ""}, "reference is empty; give --config.outputs=FILE --config"),
        (ANNOTATED, {"outputs": "a.json"}, "annotations are judged already; give ei"),
        (ANNOTATED, {"dry_run": True}, "dry_run sends no requests, and annotations"),
        (JUDGE, {"outputs": "a.json,b.json,c.json"}, "at most two files"),
        (JUDGE, {"judge": "vader"}, "judge='vader': is neither llm nor MODULE"),
        (JUDGE, {"output": "a.json"}, "would overwrite a.json, an input"),
        (JUDGE, {"reference": "b.json, c.json", "output": "c.json"}, "would overwrite c.json"),
        (ANNOTATED, {"annotations": "a.json"}, "a.json:row 1: misses the field 'output_1'"),
        (JUDGE, {"template_file": "one.txt"}, "template_file=one.txt: does not show {{ second }}"),
        (JUDGE, {"labels": "A"}, "labels=A: give two or three different ones by commas"),
        (ANNOTATED, {"annotations": "x.json,z.json", "limit": 1}, "have no prompt in common"),
        (LABEL, {"judge": "llm"}, "model is empty; give --config.provider="),
        (LABEL, {"output": "x.json"}, "output=x.json: give a FILE.jsonl"),
        (LABEL, {"output": "pairs.jsonl"}, "would overwrite pairs.jsonl, an input"),
        (LABEL, {"input": "draws.jsonl"}, "none of 1 pairs has a label; set draws=random"),
    ],
)
def test_bad_input(refused, command, fields, message):
    module, given = command
    assert message in refused(module, **given | fields)
