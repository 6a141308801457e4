"""launch.collect_preferences: pairs and samples to labels that launch.train_rm reads."""

import re

import llm_server
from request_cases import launch

from fgrlhf_jax.data import records, sources
from fgrlhf_jax.feedback.judges import alpaca_eval
from fgrlhf_jax.runtime.files import write_jsonl
from launch import collect_preferences

GOLD = "fgrlhf_jax.tiny_world.judge:judge"
RIGHT, WRONG = "the capital of hungary is budapest", "the capital of hungary is lisbon"


def pair(first: str, second: str, **fields) -> dict:
    texts = {"output_1": first, "output_2": second}
    return {"instruction": "capital of hungary", **texts, **fields}


def run(**fields) -> None:
    launch(collect_preferences, **{"input": "pairs.jsonl", "output": "labels.jsonl"} | fields)


def test_pairs_get_labels(capsys):
    rows = [pair(RIGHT, WRONG), pair(WRONG, RIGHT, preference=1)]  # a label that is ignored
    rows += [pair(WRONG, WRONG), pair(WRONG, f"{WRONG[:-6]}cairo"), pair(RIGHT, "")]
    write_jsonl("pairs.jsonl", rows)
    run(judge=GOLD)
    assert sources.read("labels.jsonl") == [
        records.Preference("capital of hungary", "", RIGHT, WRONG, 1),
        records.Preference("capital of hungary", "", WRONG, RIGHT, 2),
    ]
    counts = "2 preferences of 3 pairs; 1 draws dropped, 0 unparsed, 0 labels flipped"
    out = capsys.readouterr().out
    assert all(text in out for text in ("1 empty responses", "1 identical responses", counts))
    run(overwrite=True, judge=GOLD, draws="random", label_noise=0.5)
    counts = r"3 preferences .* 1 draws kept at random, .* labels flipped \(label_noise=0.5\)"
    assert re.search(counts, capsys.readouterr().out)
    assert len(sources.read("labels.jsonl")) == 3
    kept = alpaca_eval.read("labels.annotations.json")
    assert [row.preference for row in kept] == [1.0, 2.0, 1.5]


def test_a_language_model_labels(capsys):
    def prefer_longer(prompt: str) -> str:
        first, second = re.findall(r"<response_[ab]>\n(.*?)\n</response", prompt, re.DOTALL)
        better = "AB"[len(second) > len(first)]
        return "Not sure" if "odd" in first + second else f"VERDICT: {better}"

    rows = [pair(f"number {n}", f"number {n}{'!' * (n % 2)}?") for n in range(12)]
    write_jsonl("pairs.jsonl", [*rows, pair("odd", "odder")])
    with llm_server.running(answer=prefer_longer) as server:
        for _ in range(2):
            run(model="m", provider="openai", base_url=f"{server.url}/v1", overwrite=True)
        assert list(server.delivered.values()) == [1] * 13
    assert [row.preference for row in sources.read("labels.jsonl")] == [2] * 12
    assert "12 preferences of 13 pairs; 0 draws dropped, 1 unparsed" in capsys.readouterr().out
