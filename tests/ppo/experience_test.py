"""Advantages of a rollout: penalties, whitening, the samples of a prompt against one another."""

import chex
import numpy as np
import pytest
from rollout_cases import T, experience_of, rolled_out

from fgrlhf_jax.ppo.algorithm import Rollout


def penalised(rollout: Rollout) -> list[np.ndarray]:
    """float64, of each response: rewards less the KL."""
    kl_BT = np.asarray(rollout.logprob_BT - rollout.ref_logprob_BT, np.float64)
    reward_BT = np.asarray(rollout.reward_BT, np.float64) - 0.1 * kl_BT
    return [row[m] for row, m in zip(reward_BT, np.asarray(rollout.response_BT), strict=True)]


def sum_to_go(rewards) -> np.ndarray:
    return np.array([sum(rewards[t:]) for t in range(len(rewards))])


def group_advantages(name: str, level: str, rewards: list[np.ndarray]) -> list[np.ndarray]:
    """Of the samples of one prompt, by the letter of either paper."""
    scores, others = np.array([row.sum() for row in rewards]), len(rewards) - 1
    if level == "sequence":
        centred = [s - (scores.sum() - s) / others for s in scores]
        if name == "grpo":
            centred = (scores - scores.mean()) / scores.std()
        return [np.full(len(row), a) for row, a in zip(rewards, centred, strict=True)]
    if name == "grpo":
        every = np.concatenate(rewards)
        return [sum_to_go((row - every.mean()) / every.std()) for row in rewards]
    returns = [np.pad(sum_to_go(row), (0, T - len(row))) for row in rewards]
    total = np.sum(returns, axis=0)
    return [(g - (total - g) / others)[: len(r)] for g, r in zip(returns, rewards, strict=True)]


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("name", ["rloo", "grpo"])
def test_advantages_within_the_samples_of_a_prompt(name, level):
    """Rows 0 to 3 are of one prompt, 4 to 7 of another; the KL is part of the rewards."""
    group = {"algorithm": name, "samples_per_prompt": 4, "whiten_advantages": False, "level": level}
    experience, metrics = experience_of(rolled_out(), **group, missing_eos="none")
    rewards = penalised(rolled_out())
    expected = [
        a for rows in (rewards[:4], rewards[4:]) for a in group_advantages(name, level, rows)
    ]
    for b, advantage in enumerate(expected):
        found_T = experience.advantage_BT[b]
        np.testing.assert_allclose(found_T[: len(advantage)], advantage, atol=3e-5)
        assert not np.any(found_T[len(advantage) :])
    assert not any(metric.startswith("value/") for metric in metrics)


def test_kl_is_reported_but_not_paid_for_to_the_letter():
    literal, metrics = experience_of(rolled_out(), 9.0, kl_in_reward=False)
    free, _ = experience_of(rolled_out(), 0.0)
    chex.assert_trees_all_close(literal.advantage_BT, free.advantage_BT, atol=1e-6)
    assert abs(float(metrics["policy/kl"])) > 0.1


def test_rewards_are_whitened_where_that_is_asked_for():
    plain, white = (experience_of(rolled_out(), whiten_rewards=x)[0] for x in (False, True))
    assert not np.allclose(white.return_BT, plain.return_BT)
