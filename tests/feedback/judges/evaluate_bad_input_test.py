"""What a user may get wrong with launch.evaluate: one sentence, exit status 2."""

import json

import bad_input_cases
import llm_server
import pytest

from launch import evaluate

DEFAULT = "configs/evaluate.py"


@pytest.fixture(autouse=True)
def files(monkeypatch, tmp_path) -> dict[str, str]:
    """Responses of three models to 40 prompts, 14 of them with an input."""
    monkeypatch.setenv("OPENAI_API_KEY", llm_server.KEY)
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b", "c"):
        rows = [
            {"instruction": f"do {n}", "input": "fast" * (n % 3 == 0), "output": f"{name} {n}"}
            for n in range(40)
        ]
        save(f"{name}.json", rows)
    return {"outputs": "a.json", "reference": "b.json"}


def save(name: str, rows: list[dict]) -> None:
    with open(name, "w") as file:
        json.dump(rows, file)


BAD = {
    "nothing to compare with": (
        {"outputs": "a.json"},
        "reference is empty; give --config.outputs=FILE --config.reference=FILE",
    ),
    "nothing to compare": ({"reference": "b.json"}, "outputs is empty; give --config.outputs"),
    "both kinds": (
        {"annotations": "x.json", "outputs": "a.json"},
        "annotations are judged already; give either them or outputs and reference",
    ),
    "dry annotations": ({"annotations": "x.json", "dry_run": True}, "dry_run asks nothing"),
    "three models": ({"BOTH": 1, "outputs": "a.json,b.json,c.json"}, "at most two files"),
    "no model": ({"BOTH": 1}, "model is empty; give --config.provider="),
    "no output": ({"BOTH": 1, "model": "m"}, "output is empty; give --config.provider="),
    "no such judge": ({"BOTH": 1, "judge": "vader"}, "judge='vader' is neither llm nor a Py"),
    "no such function": (
        {"BOTH": 1, "judge": "nowhere:judge"},
        "nowhere:judge: cannot be loaded",
    ),
    "provider": (
        {"BOTH": 1, "provider": "openay"},
        "provider='openay' is not one of anthropic",
    ),
    "address": ({"LLM": 1, "base_url": "localhost"}, "base_url is no address; give http://"),
    "no key": ({"LLM": 1, "KEY": ""}, "openai needs a key; set the environment variable OPEN"),
    "wrong suffix": ({"LLM": 1, "output": "x.txt"}, "x.txt: give a FILE.json"),
    "no folder": ({"LLM": 1, "output": "none/x.json"}, "the folder none does not exist"),
    "over the input": (
        {"LLM": 1, "output": "a.json"},
        "would write over a.json, which is read",
    ),
    "over one of several references": (
        {"LLM": 1, "reference": "b.json, c.json", "output": "c.json"},
        "would write over c.json, which is read",
    ),
    "over annotations": (
        {"annotations": "x.json", "output": "x.json"},
        "would write over x.json, which is read",
    ),
    "missing file": ({"LLM": 1, "outputs": "none.json"}, "none.json: there is no such file"),
    "missing annotations": ({"annotations": "none.json"}, "none.json: cannot be read (No such"),
    "no annotations": (
        {"annotations": "a.json"},
        "a.json:row 1: misses output_1, output_2, pre",
    ),
    "empty annotations": ({"annotations": "empty.json"}, "empty.json: holds no rows"),
    "empty responses": ({"LLM": 1, "outputs": "empty.json"}, "empty.json: holds no rows"),
    "no template": (
        {"LLM": 1, "template_file": "none.txt"},
        "template_file=none.txt: cannot be read (No such file or directory)",
    ),
    "template": (
        {"LLM": 1, "template_file": "bad.txt"},
        "template_file=bad.txt: does not show {{ second }}",
    ),
    "template without the input": (
        {"LLM": 1, "template_file": "short.txt"},
        "the template shows no {{ input }}, and 14 rows have one; add it",
    ),
    "limit": ({"annotations": "x.json", "limit": -1}, "limit=-1 must be at least 0"),
    "no tokens": ({"LLM": 1, "max_new_tokens": 0}, "max_new_tokens=0 must be at least 1"),
    "cache": ({"LLM": 1, "cache": "a.json"}, "cache a.json: cannot be used"),
    "typo": (
        {"outputt": "x"},
        "--config.outputt: there is no such field; did you mean output?",
    ),
    "no prompt in common": (
        {"annotations": "x.json,z.json", "limit": 1},
        "the two models have no prompt in common",
    ),
    "other references": (
        {"annotations": "x.json,y.json"},
        "output_1 differs at 1 of 1 prompts; compare both models with the same reference",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(files, monkeypatch, capsys, name):
    fields, message = BAD[name]
    fields = dict(fields)
    save("empty.json", [])
    one = {"instruction": "x", "output_1": "1", "output_2": "2", "preference": 1}
    save("x.json", [one])
    save("y.json", [one | {"output_1": "3"}])
    save("z.json", [one | {"instruction": "z"}])
    shown = "{{ instruction }} {{ first }}"
    for path, text in {"bad.txt": shown, "short.txt": shown + " {{ second }}"}.items():
        with open(path, "w") as file:
            file.write(text)
    if fields.pop("BOTH", None):
        fields = files | fields
    if fields.pop("LLM", None):
        usual = {"provider": "openai", "model": "m", "output": "eval.json"}
        fields = files | usual | fields
    if "KEY" in fields:
        monkeypatch.setenv("OPENAI_API_KEY", fields.pop("KEY"))
    status = bad_input_cases.launch(monkeypatch, capsys, evaluate, DEFAULT, **fields)
    assert message in bad_input_cases.only(status)


def test_a_key_that_is_refused_is_not_repeated(files, monkeypatch, capsys):
    with llm_server.running(key="another") as server:
        fields = files | {"provider": "openai", "model": "m", "output": "eval.json"}
        fields["base_url"] = f"{server.url}/v1"
        status, lines = bad_input_cases.launch(monkeypatch, capsys, evaluate, DEFAULT, **fields)
    assert status == 2
    assert "does not accept the key" in lines[-1]
    assert llm_server.KEY not in "".join(lines)
