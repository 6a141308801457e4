"""launch.evaluate without a judge: edits that a policy was not trained on, and fluency."""

import json
from pathlib import Path

import ppo_cases
import pytest
import tiny_cases

from fgrlhf_jax.data import sources
from fgrlhf_jax.models.language_model import LanguageModel
from fgrlhf_jax.runtime.files import write_jsonl
from fgrlhf_jax.tiny_world.datasets import make_feedback
from fgrlhf_jax.training import correction
from launch import evaluate
from launch.shared import config_files


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two policies, edits of the embedded world, and responses to its prompts."""
    folder = tmp_path_factory.mktemp("corrections")
    for seed, name in enumerate(("policy", "start")):
        ppo_cases.save_policy(folder / name, seed=seed, template="plain")
    edits, _ = make_feedback(20, 0)
    write_jsonl(folder / "edits.jsonl", edits)
    for name in ("original", "edited"):
        rows = [{"instruction": e.instruction, "output": getattr(e, name)} for e in edits]
        (folder / f"{name}.json").write_text(json.dumps(rows))
    return folder


@pytest.fixture(autouse=True)
def inside(folder, monkeypatch):
    monkeypatch.chdir(folder)
    tiny_cases.one_device(monkeypatch)


def run(**fields) -> dict:
    fields |= {"output": "o.json", "overwrite": True}
    flags = [f"--config.{name}={value}" for name, value in fields.items()]
    evaluate.main(config_files.parse(["x", *flags], evaluate.CONFIG))
    return json.loads(Path("o.json").read_text())


def test_before_and_after(capsys):
    result = run(edits="edits.jsonl", model="policy", reference="start", limit=12)
    edits = sources.read("edits.jsonl")[:12]
    policy, start = (LanguageModel.load(name, lazy=True) for name in ("policy", "start"))
    expected = correction.evaluate(policy, edits, start)
    assert {key: result[key] for key in expected} == json.loads(json.dumps(expected))
    assert [result[key] for key in ("model", "compared_with")] == ["policy", "start"]
    printed = capsys.readouterr().out
    percent = f"{100 * expected['sampled']['mean']:.1f} ± {100 * expected['sampled']['se']:.1f} %"
    for text in (percent, "gain", "moved"):
        assert text in printed


def test_how_likely_both_sides_are(capsys):
    result = run(
        outputs="edited.json",
        reference="original.json",
        judge="fgrlhf_jax.tiny_world.judge:judge",
        fluency_model="start",
    )
    edits = sources.read("edits.jsonl")
    model = LanguageModel.load("start", lazy=True)
    for name, side in (("fluency", "edited"), ("reference_fluency", "original")):
        texts = [getattr(edit, side) for edit in edits]
        assert result[name] == pytest.approx(correction.fluency(model, edits, texts), abs=1e-5)
    assert f"fluency         {result['fluency']['mean']:.3f} ± " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "model is empty; give --config.model=FOLDER of the policy"),
        ({"model": "policy", "outputs": "edited.json"}, "outputs=edited.json: cannot be used with"),
        ({"model": "policy", "output": "o.csv"}, "output=o.csv: give a FILE.json"),
        ({"model": "policy", "edits": "edited.json"}, "edits: some rows are no edits"),
    ],
)
def test_refused(refused, fields, message):
    assert message in refused(evaluate, **{"edits": "edits.jsonl"} | fields)
