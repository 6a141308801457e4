"""launch.collect_preferences: pairs and samples to labels that launch.train_rm reads."""

import json
import re

import llm_server
import pytest

from fgrlhf_jax.data import records
from launch import collect_preferences
from launch.shared import config_files

DEFAULT = "configs/collect_preferences.py"
GOLD = "fgrlhf_jax.tiny_world.judge:judge"
RIGHT, WRONG = "the capital of hungary is budapest", "the capital of hungary is lisbon"


@pytest.fixture(autouse=True)
def here(monkeypatch, tmp_path):
    monkeypatch.setenv("OPENAI_API_KEY", llm_server.KEY)
    monkeypatch.chdir(tmp_path)


def save(name: str, rows: list[dict]) -> str:
    with open(name, "w") as file:
        file.write("\n".join(map(json.dumps, rows)))
    return name


def pair(first: str, second: str, **fields) -> dict:
    texts = {"output_1": first, "output_2": second}
    return {"instruction": "capital of hungary", **texts, **fields}


def run(**fields) -> None:
    flags = [f"--config.{name.replace('__', '.')}={value}" for name, value in fields.items()]
    collect_preferences.main(config_files.parse(["collect_preferences", *flags], DEFAULT))


def labels(path: str = "labels.jsonl") -> list[int]:
    return [row.preference for row in records.read(path)]


def test_pairs_get_labels(capsys):
    rows = [
        pair(RIGHT, WRONG),
        pair(WRONG, RIGHT, preference=1),  # a label that is ignored
        pair(WRONG, WRONG),
        pair(WRONG, "the capital of hungary is cairo"),  # as wrong
        pair(RIGHT, ""),
    ]
    run(input=save("pairs.jsonl", rows), output="labels.jsonl", judge=GOLD)
    assert records.read("labels.jsonl") == [
        records.Preference("capital of hungary", "", RIGHT, WRONG, 1),
        records.Preference("capital of hungary", "", WRONG, RIGHT, 2),
    ]
    out = capsys.readouterr().out
    assert "1 empty responses" in out
    assert "1 identical responses" in out
    assert "2 preferences of 3 pairs; 1 draws dropped, 0 unparsed, 0 labels flipped" in out
    fields = {"input": "pairs.jsonl", "output": "labels.jsonl", "overwrite": True, "judge": GOLD}
    run(**fields, draws="random", label_noise=0.5)
    out = capsys.readouterr().out
    assert len(labels()) == 3
    assert "1 draws kept at random" in out
    assert "labels flipped (label_noise=0.5)" in out
    with open("labels.annotations.json") as file:  # the judge's preferences are kept
        assert [row["preference"] for row in json.load(file)] == [1.0, 2.0, 1.5]


def test_a_language_model_labels(capsys):
    def prefer_longer(prompt: str) -> str:
        first, second = re.findall(r"<response_[ab]>\n(.*?)\n</response", prompt, re.DOTALL)
        better = "AB"[len(second) > len(first)]
        return "Not sure" if "odd" in first + second else f"VERDICT: {better}"

    rows = [pair(f"number {n}", f"number {n}{'!' * (n % 2)}?") for n in range(12)]
    fields = {"input": save("pairs.jsonl", [*rows, pair("odd", "odder")]), "model": "m"}
    fields |= {"output": "labels.jsonl", "provider": "openai"}
    with llm_server.running(answer=prefer_longer) as server:
        fields["base_url"] = f"{server.url}/v1"
        run(**fields)
        run(**fields, overwrite=True)
        assert list(server.delivered.values()) == [1] * 13
    assert labels() == [2] * 12
    out = capsys.readouterr().out
    assert "12 preferences of 13 pairs; 0 draws dropped, 1 unparsed" in out


PAIRS = {"input": "pairs.jsonl"}
BAD = [
    (PAIRS, "model is empty; give --config.provider="),
    ({"output": "x.json", "judge": GOLD}, "output=x.json: give a FILE.jsonl"),
    (PAIRS | {"output": "pairs.jsonl", "judge": GOLD}, "would write over pairs.jsonl, which"),
    ({"input": "draws.jsonl", "judge": GOLD}, "none of 1 pairs has a label; set draws=random"),
]


@pytest.mark.parametrize(("fields", "message"), BAD)
def test_bad_input(refused, fields, message):
    save("pairs.jsonl", [pair(RIGHT, WRONG)])
    save("draws.jsonl", [pair(WRONG, "the capital of hungary is cairo")])
    assert message in refused(collect_preferences, **fields)
