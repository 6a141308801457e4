"""Commands with random values of their fields: they work, or refuse with one sentence."""

import importlib
import json
import random
import sys

import pytest
from format_cases import LAYOUTS

from fgrlhf_jax.runtime.files import write_jsonl
from launch.shared import cli, config_files

# Flags with which a command is quick whatever the others are; their fields keep these values.
TRAINING = {"train": "good.jsonl", "distributed": False}
COMMANDS = {
    "data": {"samples": 1},
    "edit_report": {"input": "good.jsonl"},
    "annotate": {"input": "good.jsonl", "export": "export.json"},
    "collect_edits": {"input": "good.jsonl", "dry_run": True},
    "collect_preferences": {"input": "good.jsonl", "dry_run": True},
    "evaluate": {"annotations": "pairs.json"},
    "evaluate_rm": {"reward_model": "none"},
    "score": {"reward_model": "none"},
    "generate": {"model": "none"},
    "ppo": {"policy": "a", "reward_model": "b", "prompts": "good.jsonl", "distributed": False},
    "dpo": {"policy": "none"} | TRAINING,
    "sft": {"model.path": "none"} | TRAINING,
    "train_rm": {"model.path": "none"} | TRAINING,
}
VALUES = [
    *("", "0", "-1", "1", "7", "1e9", "nan", "inf", "True", "none", "é\u202e", "a,b", "[]", "{}"),
    *(".", "..", "/dev/null", "good.jsonl", "bad.jsonl", "pairs.json", "new.jsonl", "new.json"),
    *("no/folder/x.json", "org/name", "x" * 300, "trl", "drop", "prompt=a", "original,edited"),
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [row for row, _ in LAYOUTS.values()]
    write_jsonl("good.jsonl", rows)
    (tmp_path / "bad.jsonl").write_bytes(b'{"instruction": "a"\n\xff\n[]')
    pair = {"instruction": "a", "output_1": "b", "output_2": "c", "preference": 1.0}
    (tmp_path / "pairs.json").write_text(json.dumps([pair] * 3))


def value_of(field, rng: random.Random):
    """One that the field may take, or any."""
    usual = {bool: (True, False), int: range(9), float: (0.0, 0.5, 1.0)}
    usual = [*field.choices] or usual.get(type(field.default), VALUES)
    return rng.choice(VALUES if rng.random() < 0.3 else usual)


@pytest.mark.usefixtures("folder")
def test_random_flags(request, monkeypatch, capsys):
    rng = random.Random(0)
    for _ in range(request.config.getoption("--fuzz-commands")):
        name, fixed = rng.choice([*COMMANDS.items()])
        module = importlib.import_module(f"launch.{name}")
        _, fields = config_files.parse_described(["x"], module.CONFIG)
        names = rng.sample(sorted(fields.keys() - fixed.keys()), rng.randrange(1, 4))
        values = {name: value_of(fields[name], rng) for name in names}
        flags = [f"--config.{name}={value}" for name, value in (fixed | values).items()]
        monkeypatch.setattr(sys, "argv", [module.__name__, *flags])
        status = 0
        try:
            cli.command(module.main, module.CONFIG, module.__doc__)
        except SystemExit as stop:
            status = stop.code
        captured = capsys.readouterr()
        assert status in (0, 2), flags
        if status == 2:
            *_, sentence = captured.err.strip().split("\n")
            assert sentence.startswith("error: "), flags
            assert len(sentence) <= 1_000, flags
            assert "Traceback" not in captured.err
