"""Normalization of the rewards of PPO, and what a run remembers of the models it started with."""

import json
import shutil

import numpy as np
import ppo_cases
import pytest
from ppo_cases import contents, rows

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.ppo import rollout as rollouts
from fgrlhf_jax.runtime import sharding

pytest_plugins = ["ppo_runs"]
pytestmark = pytest.mark.usefixtures("in_process")


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_before_ppo_a_response_is_worth_0_give_or_take_1(run, world, level, monkeypatch):
    """Watched on the very samples that calibrated it, the reward has mean 0; its deviation is 1."""
    totals = []
    fit = rollouts.fit_normalization

    def recorded(rewards, *, level):
        found = fit(rewards, level=level)
        sums = [
            (r - found.mean)[-1 if level == "sequence" else slice(None)].sum() for r in rewards
        ]
        totals.append(np.array(sums, np.float64) / found.std)
        return found

    monkeypatch.setattr(rollouts, "NORMALIZE", rollouts.EVALUATE)
    monkeypatch.setattr(rollouts, "fit_normalization", recorded)
    changes = {"reward_model": getattr(world, level), "level": level, "steps": 1}
    first, step = rows(run(**changes))
    (total,) = totals
    assert total.size == 20  # the validation prompts, none twice
    assert total.std() == pytest.approx(1, rel=1e-5)
    assert first["validation/reward"] == pytest.approx(0, abs=1e-5)
    mean, std = first["reward/normalization_mean"], first["reward/normalization_std"]
    shift = mean * step["response/length"] if level == "token" else mean
    assert step["reward/mean"] == pytest.approx((step["reward/raw"] - shift) / std, abs=1e-5)


@pytest.mark.parametrize(
    ("reward_normalization", "mean", "std"), [("reward_model", 0.1, 2.0), ("none", 0.0, 1.0)]
)
def test_the_normalization_of_the_reward_model_or_none(run, reward_normalization, mean, std):
    first, step = rows(run(reward_normalization=reward_normalization, steps=1))
    assert (first["reward/normalization_mean"], first["reward/normalization_std"]) == (
        mean,
        std,
    )
    paid = (step["reward/raw"] - mean * step["response/length"]) / std
    assert step["reward/mean"] == pytest.approx(paid, abs=1e-5)


def test_select_score_exports_the_start_where_nothing_is_better(run, world):
    """A policy that is frozen answers the same at every evaluation."""
    run_dir = run(best_metric="score", optimizer__freeze="policy/.*")
    assert json.loads((run_dir / "finished.json").read_text()) == {"step": 0}
    exported, start = (contents(folder) for folder in (run_dir / "export", world.policy))
    assert exported["model.safetensors"] == start["model.safetensors"]


@pytest.mark.parametrize("changed", ["policy", "reward_model"])
def test_weights_that_change_between_two_starts(run, world, tmp_path, changed):
    folder = tmp_path / "models"
    shutil.copytree(world.policy.parent, folder)
    models = {"policy": folder / "policy", "reward_model": folder / "token"}
    run_dir = run(max_to_keep=2, **models)
    if changed == "policy":
        ppo_cases.save_policy(models["policy"], seed=5, template="plain")
    else:
        ppo_cases.save_reward_model(models["reward_model"], "token_edit", seed=5)
    shutil.rmtree(run_dir / "checkpoints" / "4")
    with pytest.raises(
        InputError, match=f"the weights in {changed}=.* have changed since step 3"
    ):
        run(run_dir, max_to_keep=2, **models)


def test_validation_prompts_that_change_between_two_starts(run, world, tmp_path):
    validation = tmp_path / "validation.jsonl"
    lines = world.validation.read_text().splitlines(keepends=True)
    validation.write_text("".join(lines))
    run_dir = run(validation=validation)
    validation.write_text("".join(lines[1:]))
    with pytest.raises(InputError, match="data or the tokenizer has changed"):
        run(run_dir, validation=validation)


def test_a_frozen_model_of_two_bytes_has_a_fingerprint():
    one = {"a": np.ones((3, 5), np.float32).astype("bfloat16")}
    two = {"a": np.array(one["a"])}
    two["a"].view(np.uint16)[1, 2] ^= 1
    assert int(sharding.fingerprint(one)) != int(sharding.fingerprint(two))
