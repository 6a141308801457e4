"""Fixtures of runs of launch.ppo on the tiny policy: `pytest_plugins = ["ppo_runs"]`."""

from pathlib import Path

import ppo_small
import pytest


@pytest.fixture(scope="module")
def in_process(quick_compilation):
    with pytest.MonkeyPatch.context() as patch:
        ppo_small.one_device(patch)
        ppo_small.compile_once(patch)
        yield


@pytest.fixture(scope="module")
def world(in_process, tmp_path_factory) -> ppo_small.World:
    return ppo_small.world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def run(world, tmp_path):
    """Run launch.ppo in a folder of its own, or go on in it; returns the folder."""

    def run(run_dir: Path = tmp_path / "run", **changes) -> Path:
        ppo_small.run(ppo_small.fields(world, run_dir, **changes))
        return run_dir

    return run


@pytest.fixture(scope="module")
def undisturbed(world, tmp_path_factory) -> Path:
    run_dir = tmp_path_factory.mktemp("runs") / "undisturbed"
    ppo_small.run(ppo_small.fields(world, run_dir))
    return run_dir
