"""Normalized rewards: by hand, and what they promise."""

import types

import numpy as np
import pytest

from fgrlhf_jax.functional import pair_metrics
from fgrlhf_jax.reward_model import model, train
from fgrlhf_jax.reward_model.model import Normalization


def scored(value_i, value_j):
    value_i, value_j = np.array(value_i), np.array(value_j)
    return pair_metrics.PairValues(value_i, value_i > 0, value_j, value_j > 0)


def test_normalization_by_hand():
    rewards = [np.array([1.0, 2.0, 3.0]), np.array([5.0])]
    # Mean 11/4; centred sums 6 - 33/4 and 5 - 11/4, that is -9/4 and 9/4.
    assert model.fit_normalization(rewards, level="token") == Normalization(2.75, 2.25)
    assert model.fit_normalization(rewards, level="sequence") == Normalization(4.0, 1.0)
    assert model.fit_normalization(rewards[:1], level="token") == Normalization(2.0, 1.0)
    assert model.fit_normalization(rewards[:1], level="sequence") == Normalization(3.0, 1.0)

    reward_BT = np.array([[9, 1, 2, 3, 9], [9, 9, 5, 9, 9]], np.float32)
    response_BT = np.array([[0, 1, 1, 1, 0], [0, 0, 1, 0, 0]], bool)
    token = model.normalize_rewards(
        reward_BT, response_BT, Normalization(2.75, 2.25), level="token"
    )
    want = [[0, -1.75 / 2.25, -0.75 / 2.25, 0.25 / 2.25, 0], [0, 0, 1, 0, 0]]
    np.testing.assert_allclose(token, want, rtol=1e-6)
    last = model.normalize_rewards(
        reward_BT, response_BT, Normalization(4.0, 2.0), level="sequence"
    )
    np.testing.assert_allclose(last, [[0, 0, 0, -0.5, 0], [0, 0, 0.5, 0, 0]])


def test_normalization_reads_the_responses_that_nobody_edited():
    edits = [scored([9.0], [float(n)]) for n in range(6)]
    preferences = [scored([20.0 + n], [30.0 + n]) for n in range(2)]
    pairs = {"edits": edits, "preferences": preferences}

    def found(limit):
        predictor = types.SimpleNamespace(predict=lambda params, group, unpad: ({}, group))
        return train.normalize_on_pairs(predictor, None, pairs, "sequence", limit)

    def of(*values):
        return pytest.approx((np.mean(values), np.std(values)))

    assert tuple(found(8)) == of(0, 1, 2, 3, 4, 5, 20, 21, 30, 31)
    assert found(100) == found(8)
    assert tuple(found(4)) == of(0, 2, 5, 20, 30)  # three of six and one of two, spread evenly
