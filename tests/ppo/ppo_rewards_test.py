"""PPO with rewards of every kind: a user's function, a model of sequences; their normalization."""

import numpy as np
import pytest
from ppo_cases import FUNCTION, read_samples, same_run
from rm_cases import contents, rows, without_clock

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.functional.policy_losses import MISSING_EOS, missing_eos
from fgrlhf_jax.ppo import rollout
from fgrlhf_jax.runtime.run_dir import read_finished

pytest_plugins = ["runs"]
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("in_process")]


def test_a_users_function_with_a_head_on_the_policy_and_after_a_fault_in_it(run, mine, tmp_path):
    """One number a response; a run that it stops goes on when it is repaired."""
    calls, paid = [], []

    def pay(prompts, responses, finished):
        calls.append((prompts, responses, finished))
        paid.append([len(r.split()) - 2.0 * f for r, f in zip(responses, finished, strict=True)])
        if len(calls) == mine.fails_at:
            raise ValueError("out of\nmoney")
        return paid[-1]

    mine.pay, mine.fails_at = pay, 0
    whole = run(tmp_path / "whole", **FUNCTION)
    for prompts, responses, finished in calls:
        assert len(prompts) == len(responses) == len(finished) == 16
        assert not any("</s>" in r for r, f in zip(responses, finished, strict=True) if f)
    steps = rows(whole)[1:]
    # Calls 1, 2, then 5, 6, then 9, 10 evaluate; the others are of steps 1 to 4.
    for row, call in zip(steps, (2, 3, 6, 7), strict=True):
        assert row["reward/mean"] == row["reward/raw"] == pytest.approx(np.mean(paid[call]))
        assert row["reward/std"] == pytest.approx(np.std(paid[call]), abs=1e-5)
        assert row["response/unfinished"] == 1 - np.mean(calls[call][2])
    assert steps[-1]["value/mean"] != 0
    assert steps[-1]["value/grad_norm"] > 0
    for sample in read_samples(whole):
        *before, last = sample["rewards"]
        assert not any(before)
        assert last == len(sample["output"].split()) - 2.0 * sample["finished"]

    calls.clear()
    mine.fails_at = 7
    stopped = tmp_path / "stopped"
    message = r"mine:pay: raised ValueError: out of money at .*ppo_rewards_test.py:\d+$"
    with pytest.raises(InputError, match=message):
        run(stopped, **FUNCTION)
    assert without_clock(stopped) == without_clock(whole)[:3]
    assert not (stopped / "export").exists()
    mine.fails_at = 0
    same_run(run(stopped, **FUNCTION), whole)


def test_a_function_that_pays_every_token(run, mine):
    mine.pay = lambda prompts, responses, tokens: [[0.5] * len(row) for row in tokens]
    run_dir = run(**FUNCTION)
    for row in rows(run_dir)[1:]:
        assert row["reward/mean"] == row["reward/raw"]
        assert row["reward/mean"] == pytest.approx(0.5 * row["response/length"])
        varies = row["reward/std"] > 0
        assert row["reward/length_correlation"] == pytest.approx(float(varies), abs=1e-4)
    for sample in read_samples(run_dir):
        assert sample["rewards"] == [0.5] * len(sample["tokens"])


# Normalization


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_before_ppo_a_response_is_worth_0_give_or_take_1(run, world, monkeypatch, level):
    """One step whose first evaluation is of the very samples that the rewards are fitted to."""
    fit, scores = rollout.fit_normalization, []

    def recorded(rewards, *, level):
        normalization = fit(rewards, level=level)
        part = -1 if level == "sequence" else slice(None)
        totals = [(row - normalization.mean)[part].sum() for row in rewards]
        scores.append(np.array(totals, np.float64) / normalization.std)
        return normalization

    monkeypatch.setattr(rollout, "NORMALIZE", rollout.EVALUATE)
    monkeypatch.setattr(rollout, "fit_normalization", recorded)
    changes = {"reward_model": getattr(world, level), "level": level, "steps": 1}
    run_dir = run(**changes, eval_every=0)
    (totals,) = scores
    assert totals.size == 20  # the validation prompts, none twice
    assert totals.std() == pytest.approx(1, rel=1e-5)
    assert rows(run_dir)[0]["validation/reward"] == pytest.approx(0, abs=1e-5)
    if level == "sequence":
        paid_at_the_last_token(run_dir)


def test_of_one_validation_prompt_there_are_several_samples(run):
    """A single response has no spread, and the scale would be 1 whatever the rewards are."""
    first, _ = rows(run(validation_prompts=1, steps=1, eval_every=0))
    assert first["reward/normalization_std"] != 1


def paid_at_the_last_token(run_dir) -> None:
    first, row = rows(run_dir)
    mean, std = first["reward/normalization_mean"], first["reward/normalization_std"]
    assert row["reward/mean"] == pytest.approx((row["reward/raw"] - mean) / std, abs=1e-5)
    samples = read_samples(run_dir)
    assert any(len(sample["rewards"]) > 1 for sample in samples)
    for sample in samples:
        *before, last = sample["rewards"]
        assert not any(before)
        assert last != 0


@pytest.mark.parametrize(
    ("reward_normalization", "mean", "std"), [("reward_model", 0.1, 2.0), ("none", 0.0, 1.0)]
)
def test_the_normalization_of_the_reward_model_or_none(run, reward_normalization, mean, std):
    first, step = rows(run(reward_normalization=reward_normalization, steps=1, eval_every=0))
    assert first["reward/normalization_mean"] == mean
    assert first["reward/normalization_std"] == std
    normalized = (step["reward/raw"] - mean * step["response/length"]) / std
    assert step["reward/mean"] == pytest.approx(normalized, abs=1e-5)


@pytest.mark.parametrize("rule", MISSING_EOS)
def test_the_best_reward_counts_a_missing_end_as_ppo_does(rule):
    """Of every response the sum of what ``missing_eos`` makes of its tokens' rewards."""
    reward_BT = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    finished_B, response_T = np.array([True, False, True, False]), np.ones(3, bool)
    got = rollout.apply_missing_eos(reward_BT.sum(axis=1), finished_B, rule, -0.7)
    for b, finished in enumerate(finished_B):
        want_T = missing_eos(reward_BT[b], response_T, finished, rule=rule, penalty=-0.7)
        assert got[b] == pytest.approx(float(want_T.sum()), abs=1e-6)


# Models that are frozen


def test_the_best_score_exports_the_start_where_nothing_is_better(run, world):
    """A policy that is frozen gives the same responses at every evaluation; FLOPs are unknown."""
    run_dir = run(best_metric="score", optimizer__freeze="policy/.*", steps=1)
    assert "tflops_per_device" not in rows(run_dir)[-1]
    assert read_finished(run_dir)["step"] == 0
    exported, start = (contents(folder) for folder in (run_dir / "export", world.policy))
    assert exported["model.safetensors"] == start["model.safetensors"]
