"""benchmarks.device at toy size on a CPU: every check holds, and a fault in one is recorded."""

import json
from unittest import mock

import pytest
import tiny_cases

from benchmarks import device, fresh, ours
from fgrlhf_jax.ppo.algorithm import PPOSettings

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def one_device(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        tiny_cases.one_device(patch)
        patch.setattr(fresh, "CACHE", tmp_path_factory.mktemp("cache"))
        yield


FIGURES = {
    "parity": {"float32", "bfloat16"},
    "sampler": {"debug/initial_log_ratio", "debug/sampler_mismatch_kl"},
    "attention": {"kernel", "seconds", "relative_difference"},
    "reward_model": {"seconds", "tflops"},
    "ppo": {"seconds", "tflops", "stages"},
    "decode": {"decode_1", "decode_2"},
    "plan": {"planned", "measured"},
}


@pytest.mark.long
def test_the_whole_script_runs_at_toy_size(monkeypatch, tmp_path):
    """The checks in this process; launch.plan in its own, as on a device."""

    def run(command, job, limit):
        return json.loads(json.dumps(device.run_check(command[-1].removeprefix("--check="), job)))

    monkeypatch.setattr(fresh, "run", run)
    monkeypatch.setattr(device, "SECONDS", 3600.0)
    file = tmp_path / "device.json"
    device.main([f"--json={file}", "--size=tiny"])
    results = json.loads(file.read_text())
    assert results.keys() == FIGURES.keys() == device.CHECKS.keys()
    for name, figures in FIGURES.items():
        assert figures | {"device", "wall_seconds"} <= results[name].keys(), results[name]
        assert results[name]["device"] == "cpu"
    assert results["ppo"]["stages"].keys() == {"rollout", "scoring", "update"}
    assert results["plan"]["planned"] > 1e5


def test_the_first_ratio_is_of_two_programs(monkeypatch):
    """With one pass for rollout and update it would be 1 by construction."""
    trainer = mock.Mock(side_effect=StopIteration)
    monkeypatch.setattr(ours, "PPOTrainer", trainer)
    with pytest.raises(StopIteration):
        device.run_check("sampler", {"model": "", "size": "tiny"})
    assert not PPOSettings.from_config(trainer.call_args.args[0], ()).one_pass


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
