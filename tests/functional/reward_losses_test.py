"""The losses by hand, what must not change them, and what they refuse."""

import functools
import math

import jax
import numpy as np
import pytest
from reward_losses_cases import Pair, pad, pairs

from fgrlhf_jax.functional import reward_losses


def test_a_pair_that_only_deletes_still_trains():
    pair = Pair(2, ([0.5, -1.0], [0.5, 2.0, -1.0]), [(0, 0), (1, 2)])
    reward_2S, response_2S, changed_2S, partner_S = pad(pair, 8)
    assert not changed_2S[0].any()
    score = jax.vmap(reward_losses.edit_score)(reward_2S, changed_2S, response_2S)
    np.testing.assert_allclose(score, [0.0, 2.0 / 3.0], rtol=1e-6)
    loss, _ = reward_losses.reward_model_loss(
        reward_2S, response_2S, changed_2S, partner_S, loss="token_edit", center_weight=0.0
    )
    np.testing.assert_allclose(loss, math.log(1 + math.exp(2 / 3)), rtol=1e-6)


@pytest.mark.parametrize("loss", reward_losses.LOSSES)
def test_padding_of_any_length_changes_nothing(loss):
    """Bit for bit, wherever the padding stands and whatever the model said there."""
    compute = jax.jit(
        functools.partial(
            reward_losses.reward_model_loss,
            loss=loss,
            consistency_weight=0.5,
            center_weight=0.3,
        )
    )
    layouts = [(14, (0, 0)), (17, (3, 0)), (64, (41, 50))]
    for pair in pairs(8):
        results = []
        for columns, left in layouts:
            for junk in (0.0, -3e8, np.inf, np.nan):
                reward_2S, *masks = pad(pair, columns, left=left, junk=junk)
                results.append(compute(reward_2S.astype(np.float32), *masks))
        for other in results[1:]:
            jax.tree.map(np.testing.assert_array_equal, other, results[0])


@pytest.mark.parametrize("loss", reward_losses.LOSSES)
def test_vmap_and_jit_agree_with_one_pair(loss):
    compute = functools.partial(
        reward_losses.reward_model_loss, loss=loss, consistency_weight=0.5, center_weight=0.3
    )
    padded = [pad(pair, 24) for pair in pairs(6)]
    padded = [(p[0].astype(np.float32), *p[1:]) for p in padded]
    together = jax.jit(jax.vmap(compute))(*map(np.stack, zip(*padded, strict=True)))
    for row, one in enumerate(padded):
        alone = compute(*one)
        jax.tree.map(
            lambda a, b, row=row: np.testing.assert_allclose(a[row], b, rtol=2e-6),
            together,
            alone,
        )


def test_swapping_the_sides_negates_the_margin():
    for pair in pairs(10):
        swapped = Pair(pair.prompt, pair.reward[::-1], [match[::-1] for match in pair.matched])
        for loss in reward_losses.LOSSES:
            value, metrics = reward_losses.reward_model_loss(*pad(pair, 16), loss=loss)
            other, swapped_metrics = reward_losses.reward_model_loss(
                *pad(swapped, 16), loss=loss
            )
            assert metrics["reward/margin"] == -swapped_metrics["reward/margin"]
            assert metrics["accuracy"] == 1 - swapped_metrics["accuracy"]
            # -log s(x) - (-log s(-x)) = -x, and the regularisers know no order.
            np.testing.assert_allclose(value - other, -metrics["reward/margin"], atol=2e-5)


def test_a_preference_pair_makes_equation_4_equation_3():
    for pair in pairs(8):
        pair = pair._replace(matched=[])
        full, _ = reward_losses.reward_model_loss(*pad(pair, 16), loss="token_full")
        edit, metrics = reward_losses.reward_model_loss(*pad(pair, 16), loss="token_edit")
        assert full == edit
        assert metrics["reward/center_penalty"] == metrics["reward/consistency_penalty"] == 0.0


# Worked out by hand: y^i = a b c d, y^j = a x d; a and d match.
HAND = Pair(2, ([1.0, 3.0, -2.0, 0.5], [0.0, 6.0, -1.5]), [(0, 0), (3, 2)])


def test_by_hand():
    reward_2S, response_2S, changed_2S, partner_S = pad(HAND, 10, junk=np.nan)
    unchanged_2S = response_2S & ~changed_2S
    assert reward_losses.last_score(reward_2S[0], response_2S[0]) == 0.5
    assert reward_losses.last_score(reward_2S[1], response_2S[1]) == -1.5
    assert reward_losses.mean_score(reward_2S[0], response_2S[0]) == 0.625  # 2.5 / 4
    assert reward_losses.mean_score(reward_2S[1], response_2S[1]) == 1.5  # 4.5 / 3
    assert (
        reward_losses.edit_score(reward_2S[0], changed_2S[0], response_2S[0]) == 0.25
    )  # 1 / 4
    assert reward_losses.edit_score(reward_2S[1], changed_2S[1], response_2S[1]) == 2.0  # 6 / 3
    assert reward_losses.consistency(reward_2S, partner_S) == 2.5  # (1^2 + 2^2) / 2
    assert reward_losses.center(reward_2S, unchanged_2S) == 0.875  # (1 + 0.25 + 0 + 2.25) / 4
    np.testing.assert_allclose(
        reward_losses.bradley_terry_loss(1.0, 1.0), math.log(2), rtol=1e-6
    )
    np.testing.assert_allclose(
        reward_losses.bradley_terry_loss(0.25, 2.0), math.log(1 + math.exp(1.75)), rtol=1e-6
    )
    loss, metrics = reward_losses.reward_model_loss(
        reward_2S,
        response_2S,
        changed_2S,
        partner_S,
        loss="token_edit",
        consistency_weight=2.0,
        center_weight=4.0,
    )
    np.testing.assert_allclose(loss, math.log(1 + math.exp(1.75)) + 5.0 + 3.5, rtol=1e-6)
    assert metrics["reward/margin"] == -1.75
    assert metrics["accuracy"] == 0.0


@pytest.mark.parametrize("loss", reward_losses.LOSSES)
def test_a_tie_counts_one_half(loss):
    padded = pad(Pair(1, ([0.5, 0.5], [0.5, 0.5]), [(0, 0)]), 4)
    value, metrics = reward_losses.reward_model_loss(*padded, loss=loss, center_weight=0.0)
    np.testing.assert_allclose(value, math.log(2), rtol=1e-6)
    assert metrics["accuracy"] == 0.5


def test_center_weighs_tokens_not_sides():
    """Truncation leaves U0 of unequal size on the two sides: 3 and 1 tokens are 4 tokens."""
    unchanged_2S = np.array([[True, True, True, False], [False, True, False, False]])
    reward_2S = np.array([[1.0, 1.0, 1.0, 9.0], [9.0, 3.0, 9.0, 9.0]])
    assert reward_losses.center(reward_2S, unchanged_2S) == 3.0


@pytest.mark.parametrize(("difference", "loss", "slope"), [(1e4, 0.0, 0.0), (-1e4, 1e4, -1.0)])
def test_huge_scores(difference, loss, slope):
    value, gradient = jax.value_and_grad(reward_losses.bradley_terry_loss)(difference, 0.0)
    assert value == loss
    assert gradient == slope
    padded = pad(Pair(1, ([difference], [0.0]), []), 4)
    for name in reward_losses.LOSSES:
        assert reward_losses.reward_model_loss(*padded, loss=name)[0] == loss


def test_integer_rewards_are_refused():
    """0.7 stored as an integer is 0: such an array never gets as far as a sum."""
    reward_2S, response_2S, changed_2S, partner_S = pad(HAND, 10)
    reward_2S = reward_2S.astype(np.int32)
    calls = [
        lambda: reward_losses.last_score(reward_2S[0], response_2S[0]),
        lambda: reward_losses.mean_score(reward_2S[0], response_2S[0]),
        lambda: reward_losses.edit_score(reward_2S[0], changed_2S[0], response_2S[0]),
        lambda: reward_losses.consistency(reward_2S, partner_S),
        lambda: reward_losses.center(reward_2S, response_2S),
    ]
    for call in calls:
        with pytest.raises(AssertionError, match="type"):
            call()
    for loss in reward_losses.LOSSES:
        with pytest.raises(AssertionError, match="type"):
            reward_losses.reward_model_loss(
                reward_2S, response_2S, changed_2S, partner_S, loss=loss
            )


def test_masks_that_are_not_boolean_are_refused():
    """~1 is -2: an integer mask would make every token unchanged."""
    reward_2S, response_2S, changed_2S, partner_S = pad(HAND, 10)
    for loss in reward_losses.LOSSES:
        with pytest.raises(AssertionError, match="type"):
            reward_losses.reward_model_loss(
                reward_2S, response_2S.astype(int), changed_2S.astype(int), partner_S, loss=loss
            )


def test_an_unknown_loss_is_named():
    with pytest.raises(ValueError, match=r"'pairwise'.*token_edit"):
        reward_losses.reward_model_loss(*pad(HAND, 10), loss="pairwise")


def test_token_logprobs_ignores_the_last_column_of_logits():
    logits_SV = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)
    tokens_S = np.array([1, 2, 3, 4, 5], np.int32)
    before = reward_losses.token_logprobs(logits_SV, tokens_S)
    logits_SV[-1] = np.nan
    np.testing.assert_array_equal(reward_losses.token_logprobs(logits_SV, tokens_S), before)


def test_gradient_ignores_junk_outside_the_masks():
    """A NaN or infinite reward in padding reaches neither the loss nor any gradient."""
    rng = np.random.default_rng(0)
    reward_2S = rng.standard_normal((2, 6)).astype(np.float32)
    reward_2S[:, 4], reward_2S[:, 5] = np.nan, np.inf
    response_2S = np.array([[0, 1, 1, 1, 0, 0]] * 2, bool)
    changed_2S = np.array([[0, 0, 1, 0, 0, 0]] * 2, bool)
    partner_S = np.array([-1, 1, -1, 3, -1, -1], np.int32)

    def loss(reward_2S):
        return reward_losses.reward_model_loss(
            reward_2S,
            response_2S,
            changed_2S,
            partner_S,
            loss="token_edit",
            consistency_weight=0.5,
            center_weight=0.3,
        )[0]

    value, gradient_2S = jax.value_and_grad(loss)(reward_2S)
    assert np.isfinite(value)
    assert np.isfinite(gradient_2S).all()
    assert not np.any(gradient_2S[~response_2S])
