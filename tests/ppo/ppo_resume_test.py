"""A run of PPO that was stopped or killed goes on as if it had not been."""

import shutil
from pathlib import Path

import jax
import ppo_cases
import pytest
from ppo_cases import same_run
from rm_cases import saved, without_clock

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.ppo import rollout
from fgrlhf_jax.runtime.checkpoint import Checkpoints

pytest_plugins = ["runs"]
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("in_process")]


# Asked to stop; peer fault 10: a resume that forgets


@pytest.fixture(scope="module")
def interrupted(in_process, world, tmp_path_factory) -> Path:
    """A run that was asked to stop during its second step."""
    run_dir = tmp_path_factory.mktemp("runs") / "interrupted"
    ppo_cases.run_until_asked_to_stop(ppo_cases.fields(world, run_dir, save_every=0))
    return run_dir


def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(interrupted, ppo_run, run, tmp_path):
    assert saved(interrupted) == [2]
    assert without_clock(interrupted) == without_clock(ppo_run)[:3]
    assert not (interrupted / "export").exists()
    same_run(run(shutil.copytree(interrupted, tmp_path / "run")), ppo_run)


def forget(part: str, name: str):
    """A restore that finds this part as it is at the start of a run."""
    restore = Checkpoints.restore

    def changed(self, step, abstract):
        parts = restore(self, step, abstract)
        if part not in parts or (part == "params" and "critic" not in parts["params"]):
            return parts
        zeros = jax.tree.map(lambda x: x * 0, parts[part])
        if part == "params":
            return parts | {"params": parts["params"] | {name: zeros[name]}}
        return parts | {part: parts[part] | {name: zeros[name]}}

    return Checkpoints, "restore", changed


def forget_coefficient():
    loop = Checkpoints.loop

    def changed(self, step):
        progress = loop(self, step)
        return progress | {"memory": progress["memory"] | {"kl_coef": 0.1}}

    return Checkpoints, "loop", changed


def from_the_start(module, name: str):
    """The step of a data position or a random key counted from the start of the process."""
    function = getattr(module, name)

    def changed(*args, **options):
        if "step" in options:
            return function(*args, **options | {"step": options["step"] - 2})
        seed, purpose, step = args
        return function(seed, purpose, step - 2 if purpose != rollout.EVALUATE else step)

    return module, name, changed


FORGOTTEN = {
    "critic": lambda: forget("params", "critic"),
    "policy's moments": lambda: forget("opt_state", "policy"),
    "critic's moments": lambda: forget("opt_state", "critic"),
    "KL coefficient": forget_coefficient,
    "data position": lambda: from_the_start(rollout, "rows_of_step"),
    "random keys": lambda: from_the_start(rollout, "step_key"),
}


@pytest.mark.parametrize("fault", FORGOTTEN.values(), ids=FORGOTTEN)
def test_fault_10_put_in_shows_in_the_metrics(
    fault, interrupted, ppo_run, run, tmp_path, monkeypatch
):
    """That the run above ended the same says that it forgot none of these."""
    monkeypatch.setattr(*fault())
    resumed = run(shutil.copytree(interrupted, tmp_path / "run"))
    ours, theirs = (without_clock(folder) for folder in (resumed, ppo_run))
    assert ours[:3] == theirs[:3]
    assert ours[3:] != theirs[3:]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ("policy", "the weights in policy=.* have changed since the run began"),
        ("token", "the weights in reward_model=.* have changed since the run began"),
        ("validation", "data or the tokenizer has changed since step 2"),
    ],
)
def test_what_may_not_change_after_a_start(interrupted, world, run, tmp_path, changed, message):
    path, other = getattr(world, changed), tmp_path / "other"
    if changed == "policy":
        ppo_cases.save_policy(other, seed=5, template="plain")
    elif changed == "token":
        ppo_cases.save_reward_model(other, "token_edit", seed=5)
    else:
        other.write_bytes(path.read_bytes().partition(b"\n")[2])
    run_dir = shutil.copytree(interrupted, tmp_path / "run")
    path.rename(tmp_path / "before")
    try:
        other.rename(path)
        with pytest.raises(InputError, match=message):
            run(run_dir, save_every=0)
    finally:
        path.rename(other)
        (tmp_path / "before").rename(path)
    assert saved(run_dir) == [2]


def test_killed_and_resumed(ppo_run, world, run, tmp_path):
    run_dir = tmp_path / "run"
    ppo_cases.run_until_killed(ppo_cases.fields(world, run_dir), tmp_path / "log")
    same_run(run(run_dir), ppo_run)


@pytest.mark.long
@pytest.mark.parametrize("algorithm", ["rloo", "grpo", "distill"])
def test_without_a_critic_killed_and_resumed(algorithm, world, run, tmp_path):
    changes = {"algorithm": algorithm}
    if algorithm == "distill":
        changes |= {"reward_model": f"{world.policy}:{world.policy}:0", "kl__target": 0.0}
    else:
        changes |= {"samples_per_prompt": 4}
    fields = ppo_cases.fields(world, tmp_path / "killed", **changes)
    ppo_cases.run_until_killed(fields, tmp_path / "log")
    same_run(*(run(tmp_path / name, **changes) for name in ("killed", "whole")))
