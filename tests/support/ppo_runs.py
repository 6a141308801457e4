"""Fixtures of runs of launch.ppo on the tiny policy: `pytest_plugins = ["ppo_runs"]`."""

from pathlib import Path

import ppo_cases
import pytest


@pytest.fixture(scope="module")
def in_process(quick_compilation):
    with pytest.MonkeyPatch.context() as patch:
        ppo_cases.one_device(patch)
        ppo_cases.compile_once(patch)
        yield


@pytest.fixture(scope="module")
def world(in_process, tmp_path_factory) -> ppo_cases.World:
    return ppo_cases.world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def run(world, tmp_path):
    """Run launch.ppo in a folder of its own, or go on in it; returns the folder."""

    def run(run_dir: Path = tmp_path / "run", **changes) -> Path:
        ppo_cases.run(ppo_cases.fields(world, run_dir, **changes))
        return run_dir

    return run


@pytest.fixture(scope="module")
def undisturbed(world, tmp_path_factory) -> Path:
    run_dir = tmp_path_factory.mktemp("runs") / "undisturbed"
    ppo_cases.run(ppo_cases.fields(world, run_dir))
    return run_dir
