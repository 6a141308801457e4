"""A run of PPO with rewards of every kind: a function of one's own, a model of sequences."""

import sys
import types

import numpy as np
import pytest
from ppo_cases import kept_samples, rows, same_run, without_clock

from fgrlhf_jax.errors import InputError

pytest_plugins = ["ppo_runs"]
pytestmark = pytest.mark.usefixtures("in_process")


@pytest.fixture
def mine(monkeypatch):
    """A module of the user's, by the name "mine"."""
    module = types.ModuleType("mine")
    monkeypatch.setitem(sys.modules, "mine", module)
    return module


def test_a_function_of_ones_own_with_a_head_on_the_policy_and_after_a_fault_in_it(
    run, mine, tmp_path
):
    """One number a response; a run that it stops goes on when it is repaired."""
    given = {"reward_model": "", "reward_function": "mine:pay", "critic": "shared"}
    said, paid = [], []

    def pay(prompts, responses, finished):
        said.append((prompts, responses, finished))
        paid.append(
            [len(r.split()) - 2.0 * f for r, f in zip(responses, finished, strict=True)]
        )
        if len(said) == mine.fails_at:
            raise ValueError("out of\nmoney")
        return paid[-1]

    mine.pay, mine.fails_at = pay, 0
    whole = run(tmp_path / "whole", **given)
    for prompts, responses, finished in said:
        assert len(prompts) == len(responses) == len(finished) == 16
        assert not any("</s>" in r for r, f in zip(responses, finished, strict=True) if f)
    steps = rows(whole)[1:]
    # Calls 1, 2, then 5, 6, then 9, 10 watch; the others are of steps 1 to 4.
    for row, call in zip(steps, (2, 3, 6, 7), strict=True):
        assert row["reward/mean"] == row["reward/raw"] == pytest.approx(np.mean(paid[call]))
        assert row["reward/std"] == pytest.approx(np.std(paid[call]), abs=1e-5)
        assert row["response/unfinished"] == 1 - np.mean(said[call][2])
    assert steps[-1]["value/mean"] != 0
    assert steps[-1]["value/grad_norm"] > 0
    for sample in kept_samples(whole):
        *before, last = sample["rewards"]
        assert not any(before)
        assert last == len(sample["output"].split()) - 2.0 * sample["finished"]

    said.clear()
    mine.fails_at = 7
    with pytest.raises(
        InputError,
        match=r"mine:pay: raised ValueError: out of money at .*ppo_rewards_test.py:\d+$",
    ):
        run(tmp_path / "stopped", **given)
    stopped = tmp_path / "stopped"
    assert without_clock(stopped) == without_clock(whole)[:3]
    assert not (stopped / "export").exists()
    mine.fails_at = 0
    same_run(run(stopped, **given), whole)


def test_a_function_that_pays_every_token(run, mine):
    def pay(prompts, responses, tokens):
        return [[0.5] * len(some) for some in tokens]

    mine.pay = pay
    run_dir = run(reward_model="", reward_function="mine:pay", critic="shared", steps=4)
    for row in rows(run_dir)[1:]:
        assert (
            row["reward/mean"]
            == row["reward/raw"]
            == pytest.approx(0.5 * row["response/length"])
        )
        varies = row["reward/std"] > 0
        assert row["reward/length_correlation"] == pytest.approx(float(varies), abs=1e-4)
    for sample in kept_samples(run_dir):
        assert sample["rewards"] == [0.5] * len(sample["tokens"])


def test_a_reward_model_of_sequences_pays_at_the_last_token(run, world):
    run_dir = run(level="sequence", reward_model=world.sequence, steps=1, eval_every=0)
    first, row = rows(run_dir)
    mean, std = first["reward/normalization_mean"], first["reward/normalization_std"]
    assert row["reward/mean"] == pytest.approx((row["reward/raw"] - mean) / std, abs=1e-5)
    samples = kept_samples(run_dir)
    assert any(len(sample["rewards"]) > 1 for sample in samples)
    for sample in samples:
        *before, last = sample["rewards"]
        assert not any(before)
        assert last != 0
