"""The examples run: the script, the user's reward and judge, and the notebook."""

import json
import os
import re
import runpy
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from processes import Process, devices

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


def run(folder: Path, *arguments: str) -> int:
    """The exit status of ``python`` with these arguments."""
    output = folder / f"{arguments[1]}.log"
    return Process([*arguments], output, output, XLA_FLAGS=devices(1)).wait()


# In the place of `python`: its arguments go to one pipe, its status comes from another.
PYTHON = """#!/bin/sh
echo "$*" > {folder}/arguments
read status < {folder}/status
exit $status
"""


def run_for_script(folder: Path) -> None:
    """Runs what the script below asks for until it asks for nothing."""
    while arguments := (folder / "arguments").read_text().split():
        (folder / "status").write_text(f"{run(folder, *arguments)}\n")


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory) -> Path:
    """The folder that examples/quickstart.sh leaves, in a few updates."""
    folder, pipes = (tmp_path_factory.mktemp(name) for name in ("quickstart", "pipes"))
    for name in ("arguments", "status"):
        os.mkfifo(pipes / name)
    (pipes / "python").write_text(PYTHON.format(folder=pipes))
    (pipes / "python").chmod(0o755)
    commands = threading.Thread(target=run_for_script, args=[pipes], daemon=True)
    commands.start()
    bash = ["bash", str(ROOT / "examples" / "quickstart.sh"), str(folder)]
    env = ENV | {"QUICK": "1", "PATH": f"{pipes}{os.pathsep}{os.environ['PATH']}"}
    script = subprocess.run(bash, cwd=ROOT, env=env, check=False)
    (pipes / "arguments").write_text("")
    commands.join()
    assert not script.returncode, [log.read_text()[-500:] for log in pipes.glob("*.log")]
    return folder


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
    flags = [f"--config.{name}={value}" for name, value in flags.items()]
    assert run(quickstart, "-m", "launch.ppo", *flags) == 0
    assert (quickstart / "own" / "export" / "config.json").exists()


@pytest.mark.slow
@pytest.mark.long
def test_the_library_example_of_the_readme(quickstart, tmp_path):
    (code,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
    (tmp_path / "runs").mkdir()
    for name, folder in {"ppo_tiny_token": "ppo", "rm_tiny_token_edit": "rm"}.items():
        (tmp_path / "runs" / name).symlink_to(quickstart / folder)
    command = [sys.executable, "-c", code]
    result = subprocess.run(
        command, cwd=tmp_path, env=ENV, capture_output=True, text=True, check=True
    )
    rewards = [float(line.split()[-1]) for line in result.stdout.splitlines()[1:]]
    assert len(rewards) > 1
    assert len(set(rewards)) > 1


@pytest.mark.slow
@pytest.mark.long
def test_the_notebook(quickstart, monkeypatch):
    """Every cell runs and the pictures are there; runs that quickstart.sh finished are read."""
    import nbclient
    import nbformat

    for name, value in (ENV | {"FGRLHF_QUICK": "1", "FGRLHF_RUN": str(quickstart)}).items():
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
