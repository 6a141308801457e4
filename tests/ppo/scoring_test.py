"""What the models make of a rollout: log-probabilities, values and rewards, however batched."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rollout_cases as cases
import tiny_cases
from rollout_cases import CRITIC, PARAMS, POLICY, SETTINGS, B, P, T, rolled_out, sampled

from fgrlhf_jax.models import heads
from fgrlhf_jax.ppo.algorithm import rows_of
from fgrlhf_jax.ppo.models import Architectures, Frozen
from fgrlhf_jax.reward_model.model import Normalization


def test_the_sampler_and_the_scorer_agree_at_a_temperature():
    rollout, drawn_BT = rolled_out(), sampled()[2].logprob_BT
    logprob_BT = np.where(rollout.response_BT, rollout.logprob_BT, 0)
    np.testing.assert_allclose(logprob_BT, drawn_BT, atol=1e-5)


def test_in_bfloat16_frozen_models_give_the_bits_of_trained_ones():
    """Whatever of their parameters is stored in bfloat16."""
    half = POLICY.clone(cfg=dataclasses.replace(tiny_cases.CFG, dtype="bfloat16"))
    scorer = CRITIC.clone(cfg=half.cfg)
    models = Architectures(half, scorer, scorer, cases.Meta())
    rollouts = []
    for stored in (lambda model, params: params, in_compute_dtypes):
        frozen = Frozen({}, stored(half, PARAMS["policy"]), stored(scorer, cases.REWARD_MODEL))
        options = {"models": models, "settings": SETTINGS}
        args = PARAMS, frozen, Normalization(0.1, 2.0), True, *sampled()
        rollouts.append(cases.score_rollout(*args, **options))
    np.testing.assert_array_equal(rollouts[1].logprob_BT, rollouts[1].ref_logprob_BT)
    chex.assert_trees_all_equal(*rollouts)


def in_compute_dtypes(model, params: dict) -> dict:
    return jax.tree.map(jnp.asarray, params, heads.compute_dtypes(model, params))


def test_values_come_from_before_and_rewards_from_at_the_token():
    """In each row alone, without padding before it."""
    rollout = rolled_out()

    @jax.jit
    def values_of(params, tokens, mask):
        return CRITIC.apply({"params": params}, tokens, *heads.positions_and_mask(mask))[0]

    close = functools.partial(np.testing.assert_allclose, atol=1e-5)
    for b in range(B):
        length = int(rollout.response_BT[b].sum())
        row = np.asarray(rollout.tokens_BS[b])[: int(rollout.start_B[b]) + length]
        arrays = tiny_cases.laid_out([row], "right", fill=0, width=P + T)
        value, score = (
            values_of(params, *arrays)[: len(row)]
            for params in (PARAMS["critic"], cases.REWARD_MODEL)
        )
        close(rollout.value_BT[b, :length], value[-length - 1 : -1])
        close(rollout.raw_reward_BT[b, :length], score[-length:])
        close(rollout.reward_BT[b, :length], (score[-length:] - 0.1) / 2.0)
        assert not np.asarray(rollout.reward_BT[b, length:]).any()


@pytest.mark.slow
def test_rows_sorted_by_length_change_no_scores():
    lengths = np.asarray(rows_of(rolled_out()).length_B)
    assert len(set(np.searchsorted(cases.SORTED["widths"], lengths))) == 3
    # Of the eight rows in threes, the last micro-batch is not full.
    chex.assert_trees_all_close(rolled_out(**cases.SORTED), rolled_out(), atol=1e-5)


def test_a_rollout_that_is_not_learned_from_has_no_values():
    once = {**cases.ONCE, "micro_batch_size": 8}
    for rollout in (rolled_out(learning=False), rolled_out(learning=False, **once)):
        assert not np.any(rollout.value_BT)
        expected = rolled_out()._replace(value_BT=rollout.value_BT)
        chex.assert_trees_all_close(rollout, expected, atol=1e-5)
