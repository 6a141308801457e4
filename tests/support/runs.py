"""Fixtures with one tiny run of every trainer per session; use `pytest_plugins = ["runs"]`."""

import sys
import types
from pathlib import Path

import ppo_cases
import pytest
import rm_cases
import tiny_cases

from launch import sft


@pytest.fixture
def one_device(monkeypatch):
    """Limits meshes of runs in this process to one device."""
    tiny_cases.one_device(monkeypatch)


@pytest.fixture(scope="module")
def in_process():
    """The conditions of the PPO runs: one device, each program compiled once."""
    with ppo_cases.conditions():
        yield


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> ppo_cases.World:
    with ppo_cases.conditions():
        return ppo_cases.world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="session")
def ppo_run(world, tmp_path_factory) -> Path:
    """The run folder of four steps of PPO."""
    run_dir = tmp_path_factory.mktemp("runs") / "ppo"
    with ppo_cases.conditions():
        ppo_cases.run(ppo_cases.fields(world, run_dir))
    return run_dir


@pytest.fixture
def run(world, tmp_path):
    """A function that runs or resumes launch.ppo in a folder, and returns the folder."""

    def run(run_dir: Path = tmp_path / "run", **changes) -> Path:
        ppo_cases.run(ppo_cases.fields(world, run_dir, **changes))
        return run_dir

    return run


@pytest.fixture(scope="session")
def sft_fields(world) -> dict:
    """Fields of a quick run of launch.sft; the rate changes from update to update."""
    fields = {"train": world.prompts, "validation": world.validation, "export__dtype": "bfloat16"}
    fields |= {"batch_size": 8, "micro_batch_size": 4, "optimizer__learning_rate": 1e-2}
    return fields | ppo_cases.OFTEN | ppo_cases.SHORT_ROWS | {"model__vocab_size": 300}


@pytest.fixture(scope="session")
def sft_run(sft_fields, tmp_path_factory) -> Path:
    """The run folder of six updates of SFT."""
    run_dir = tmp_path_factory.mktemp("runs") / "sft"
    with ppo_cases.conditions():
        ppo_cases.launch(sft, sft_fields | {"run_dir": run_dir})
    return run_dir


@pytest.fixture(scope="session")
def rm_files(tmp_path_factory) -> dict[str, Path]:
    return rm_cases.write_files(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def rm_run(rm_files, tmp_path_factory) -> rm_cases.Command:
    """A finished launch.train_rm, run in a new process."""
    command = rm_cases.Command(rm_files, tmp_path_factory.mktemp("runs") / "rm")
    status, _, stderr = command.end()
    assert status == 0, stderr
    return command


@pytest.fixture
def mine(monkeypatch):
    """An empty user module with the name "mine"."""
    module = types.ModuleType("mine")
    monkeypatch.setitem(sys.modules, "mine", module)
    return module
