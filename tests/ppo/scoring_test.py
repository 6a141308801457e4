"""What the models make of a rollout: log-probabilities, values and rewards, however batched."""

import contextlib
import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rollout_cases as cases
import tiny_cases
from rollout_cases import CRITIC, PARAMS, POLICY, SETTINGS, B, P, T, rolled_out, sampled, settings

from fgrlhf_jax.models import heads
from fgrlhf_jax.models.sampling import Sampled
from fgrlhf_jax.ppo import programs, scoring
from fgrlhf_jax.ppo.algorithm import Rows, rows_of
from fgrlhf_jax.ppo.models import Architectures, Frozen
from fgrlhf_jax.reward_model.model import Normalization
from fgrlhf_jax.runtime import sharding


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
@pytest.mark.parametrize("shape", ["1,1,1", "2,2,2", "1,8,1"])
def test_rows_sorted_by_length_change_no_scores(shape):
    """On meshes too; of 24 rows the last micro-batch is not full."""
    rng = np.random.default_rng(0)
    prompts = [rng.integers(3, 64, 1 + n % P) for n in range(24)]
    tokens_BP, mask_BP = tiny_cases.laid_out(prompts, "left", fill=0, width=P)
    length_B = np.maximum(1, rng.integers(-3, T + 1, 24)).astype(np.int32)
    tokens_BT = rng.integers(3, 64, (24, T)).astype(np.int32)
    responses = Sampled(tokens_BT, length_B, length_B < T, np.zeros((24, T), np.float32))
    models, rows = (PARAMS, cases.FROZEN), (tokens_BP.astype(np.int32), mask_BP, responses)

    def score(models, rows, settings):
        rest = Normalization(0.1, 2.0), True
        out = cases.score_rollout(*models, *rest, *rows, models=cases.MODELS, settings=settings)
        return jax.device_get(out)

    plain = score(models, rows, SETTINGS)
    mesh = sharding.make_mesh(shape, jax.devices() if shape != "1,1,1" else jax.devices()[:1])
    with jax.set_mesh(mesh):
        several = settings(widths=(4, 7, P + T), micro_batch_size=11)
        counts = scoring.count_micro_batches(rows_of(plain).length_B, several)
        assert all(counts.values())
        assert sum(n * scoring.rows_of_width(width, several) for width, n in counts.items()) > 24
        placed = jax.device_put(models, sharding.shardings(models, mesh))
        out = score(placed, sharding.put_batch(rows, mesh), several)
    chex.assert_trees_all_close(out, plain, atol=1e-5)


def test_a_rollout_that_is_not_learned_from_has_no_values():
    once = {**cases.ONCE, "micro_batch_size": 8}
    for rollout in (rolled_out(learning=False), rolled_out(learning=False, **once)):
        assert not np.any(rollout.value_BT)
        expected = rolled_out()._replace(value_BT=rollout.value_BT)
        chex.assert_trees_all_close(rollout, expected, atol=1e-5)


@pytest.mark.parametrize("shape", ["", "2,2,2"])
def test_every_row_is_once_in_a_micro_batch_that_holds_it(shape):
    """And a micro-batch has no more tokens than one of the longest rows."""
    lengths = np.random.default_rng(1).integers(1, 33, 24)
    sizes = settings(widths=(8, 16, 24, 32), micro_batch_size=4, max_new_tokens=32)

    def count(carry, part, numbers, real):
        times_B, fits, tokens, batches = carry
        width = part.tokens_BS.shape[1]
        fits &= jnp.all(part.start_B == jnp.array(lengths)[numbers])
        fits &= jnp.all(part.start_B <= width)
        tokens = jnp.maximum(tokens, width * len(numbers))
        return times_B.at[numbers].add(real), fits, tokens, batches + 1

    def fold(length_B):
        carry = jnp.zeros(24, jnp.int32), True, 0, 0
        batch = Rows(jnp.zeros((24, 32), jnp.int32), length_B, jnp.zeros((24, 32), bool))
        return scoring.fold(count, carry, batch, sizes)

    with jax.set_mesh(sharding.make_mesh(shape)) if shape else contextlib.nullcontext():
        times_B, fits, tokens, batches = jax.device_get(jax.jit(fold)(jnp.array(lengths)))
    assert (times_B == 1).all()
    assert fits
    assert tokens <= 4 * 32
    assert batches < 6


def test_few_widths_of_long_rows_and_one_of_short_ones():
    assert programs.row_widths([32, 64], 64) == (128,)
    assert programs.row_widths([64], 256) == (128, 192, 256, 320)
    assert programs.row_widths([30, 40, 71], 100)[-1] == 171
    assert programs.prompt_widths([3, 64]) == (64,)
    assert programs.prompt_widths([38, 40, 57, 60, 186]) == (40, 64, 186)
