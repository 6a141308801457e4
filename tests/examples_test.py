"""The examples run: the script, the user's reward and judge, and the notebook."""

import importlib
import json
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny_cases
from processes import devices

from fgrlhf_jax.models import peft
from fgrlhf_jax.runtime import run_dir
from launch.shared import config_files

ROOT = Path(__file__).resolve().parents[1]
ENV = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": devices(1)}


def test_a_reward_of_ones_own():
    reward = runpy.run_path(str(ROOT / "examples" / "own_reward.py"))["reward"]
    tokens = [["the", " well", " is", "</s>"], ["basically"]]
    assert reward(["", ""], ["", ""], tokens, [True, False]) == [[0, -1, 0, 1], [-1]]


def test_a_judge_of_ones_own():
    judge = runpy.run_path(str(ROOT / "examples" / "vader_judge.py"))["judge"]
    good, bad, praise = judge([""] * 3, ["a good film", "a bad film", "good " * 20])
    assert bad < 0 < praise < good


def run(module: str, *flags: str) -> None:
    """A command, within this process."""
    command = importlib.import_module(module)
    command.main(config_files.parse(["", *flags], command.CONFIG))
    run_dir.unlock()


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory) -> Iterator[Path]:
    """The folder that the commands of examples/quickstart.sh leave, in a few updates."""
    folder, stub = (tmp_path_factory.mktemp(name) for name in ("quickstart", "stub"))
    (stub / "python").write_text('#!/bin/sh\necho "$*" >> "$0.log"\n')
    (stub / "python").chmod(0o755)
    env = ENV | {"QUICK": "1", "PATH": f"{stub}{os.pathsep}{os.environ['PATH']}"}
    script = str(ROOT / "examples" / "quickstart.sh")
    subprocess.run(["bash", script, str(folder)], cwd=ROOT, env=env, check=True)
    with pytest.MonkeyPatch.context() as patch:
        tiny_cases.one_device(patch)
        for line in (stub / "python.log").read_text().splitlines():
            run(*line.split()[1:])
        yield folder


@pytest.mark.slow
@pytest.mark.long
def test_quickstart_and_a_reward_of_ones_own_in_ppo(quickstart):
    assert json.loads((quickstart / "win_rate.json").read_text())
    assert (quickstart / "scores.html").stat().st_size > 1000
    flags = {
        "policy": quickstart / "sft",
        "prompts": quickstart / "sft" / "data" / "validation.jsonl",
        "reward_function": "examples.own_reward:reward",
        "run_dir": quickstart / "own",
        "steps": 1,
    }
    run("launch.ppo", *(f"--config.{name}={value}" for name, value in flags.items()))
    assert (quickstart / "own" / "export" / "config.json").exists()


@pytest.mark.slow
@pytest.mark.long
def test_the_library_example_of_the_readme(quickstart, tmp_path):
    (code,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
    (tmp_path / "runs").mkdir()
    for name, folder in {"ppo_tiny_token": "ppo", "rm_tiny_token_edit": "rm"}.items():
        (tmp_path / "runs" / name).symlink_to(quickstart / folder)
    options = {"cwd": tmp_path, "env": ENV, "capture_output": True, "text": True}
    result = subprocess.run([sys.executable, "-c", code], check=True, **options)
    rewards = [float(line.split()[-1]) for line in result.stdout.splitlines()[1:]]
    assert len(set(rewards)) > 1


@pytest.mark.slow
@pytest.mark.long
def test_the_notebook(quickstart, tmp_path, monkeypatch):
    """Every cell runs and the pictures are there.

    Its folders sft and rm are links to those of quickstart.sh, so their cells report finished runs.
    """
    import nbclient
    import nbformat

    for name in ("sft", "rm"):
        (tmp_path / name).symlink_to(quickstart / name)
    for name, value in (ENV | {"FGRLHF_QUICK": "1", "FGRLHF_RUN": str(tmp_path)}).items():
        monkeypatch.setenv(name, value)
    notebook = nbformat.read(ROOT / "examples" / "colab.ipynb", as_version=4)
    nbclient.NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": str(ROOT)}}
    ).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    kinds = {kind for output in outputs for kind in output.get("data", {})}
    assert {"image/png", "text/html"} <= kinds
    text = "".join(output.get("text", "") for output in outputs)
    assert "AUROC" in text
    assert "after   mean gold score" in text
    assert peft.read_lora(tmp_path / "ppo").rank == 16
