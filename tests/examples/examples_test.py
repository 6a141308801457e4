"""The examples run: the script, the user's reward and judge, and the notebook."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ENV = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}


def test_a_reward_of_ones_own():
    from examples.own_reward import reward

    tokens = [["the", " well", " is", "</s>"], ["basically"]]
    assert reward(["", ""], ["", ""], tokens, [True, False]) == [[0, -1, 0, 1], [-1]]


def test_a_judge_of_ones_own():
    from examples.vader_judge import judge

    good, bad, praise = judge([""] * 3, ["a good film", "a bad film", "good " * 20])
    assert bad < 0 < praise < good


@pytest.mark.slow
def test_quickstart(tmp_path):
    """The script makes every file that it names; then a reward of one's own in PPO."""
    bash = ["bash", str(ROOT / "examples" / "quickstart.sh"), str(tmp_path)]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = ENV | {"QUICK": "1", "PATH": path}
    subprocess.run(bash, check=True, cwd=ROOT, env=env, capture_output=True, text=True)
    assert json.loads((tmp_path / "win_rate.json").read_text())
    assert (tmp_path / "scores.html").stat().st_size > 1000
    flags = {
        "policy": tmp_path / "sft",
        "prompts": tmp_path / "sft" / "data" / "validation.jsonl",
        "reward_function": "examples.own_reward:reward",
        "run_dir": tmp_path / "own",
        "steps": 1,
    }
    flags = [f"--config.{name}={value}" for name, value in flags.items()]
    subprocess.run([sys.executable, "-m", "launch.ppo", *flags], check=True, cwd=ROOT, env=ENV)
    assert (tmp_path / "own" / "export" / "config.json").exists()
