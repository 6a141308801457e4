"""benchmarks.device at toy size on a CPU: every check holds, and a fault in one is recorded."""

import json
import subprocess
from pathlib import Path

import pytest
import tiny_cases

from benchmarks import device, fresh
from launch import plan as launch_plan
from launch.shared import config_files

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def one_device(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        tiny_cases.one_device(patch)
        patch.setattr(fresh, "CACHE", tmp_path_factory.mktemp("cache"))
        yield


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "figures"),
    [
        ("parity", {"float32", "bfloat16"}),
        ("sampler", {"debug/initial_log_ratio", "debug/sampler_mismatch_kl"}),
        ("attention", {"kernel", "seconds", "relative_difference"}),
        ("reward_model", {"seconds", "tflops"}),
        ("decode", {"decode_1", "decode_2"}),
        ("plan", {"planned", "measured"}),
    ],
)
def test_every_check_holds_at_toy_size(name, figures, monkeypatch):
    """PPO's is that of the sampler and of the reward model; a plan has its own tests."""

    def plan(command, **_):
        *flags, _, file = command[3:]
        config_files.parse(["", *flags], launch_plan.CONFIG, *launch_plan.OTHERS)
        steps = {"train": {"total": 1e6}}
        Path(file.removeprefix("--json=")).write_text(json.dumps({"steps": steps}))
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(device.subprocess, "run", plan)
    result = json.loads(json.dumps(device.run_check(name, {"model": "", "size": "tiny"})))
    assert figures <= result.keys()
    assert result["device"] == "cpu"


def test_a_fault_is_recorded_and_the_others_go_on(monkeypatch, tmp_path):
    def run(command, job, limit):
        assert 0 < limit <= device.SECONDS
        if command[-1] == "--check=ppo":
            raise RuntimeError("out of memory")
        return {"seconds": 1.0}

    monkeypatch.setattr(fresh, "run", run)
    file = tmp_path / "device.json"
    assert not device.main([f"--json={file}"])
    results = json.loads(file.read_text())
    assert results.keys() == device.CHECKS.keys()
    assert results["ppo"]["error"] == "out of memory"
    assert results["plan"]["seconds"] == 1.0
    assert device.main([f"--json={file}", "--only=plan"])

    monkeypatch.setattr(device, "SECONDS", 0.0)
    assert not device.main([f"--json={file}", "--only=plan"])
    assert "time is up" in json.loads(file.read_text())["plan"]["error"]
