"""The losses against plain Python loops in float64, written from the paper's formulas.

The oracles never see a mask or a padded row: they take each side as a list of its own response
tokens, so a mistake in masking cannot be made twice.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reward_losses_cases import Pair, pad, pairs

from fgrlhf_jax.functional import reward_losses

WEIGHTS = [(0.0, 0.0), (0.0, 0.3), (0.7, 0.0), (0.4, 1.1)]


def oracle_minus_log_sigmoid(x: float) -> float:
    return math.log1p(math.exp(-x)) if x >= 0 else -x + math.log1p(math.exp(x))


def oracle_score(rewards: list[float], changed: list[bool], loss: str) -> float:
    if loss == "sequence":
        return rewards[-1]
    total = 0.0
    for r, is_changed in zip(rewards, changed, strict=True):
        if loss == "token_full" or is_changed:
            total += r
    return total / len(rewards)


def oracle_consistency(pair: Pair) -> float:
    total = 0.0
    for t, other in pair.matched:
        total += (pair.reward[0][t] - pair.reward[1][other]) ** 2
    return total / len(pair.matched) if pair.matched else 0.0


def oracle_center(pair: Pair) -> float:
    total, count = 0.0, 0
    for side in (0, 1):
        for r, is_changed in zip(pair.reward[side], pair.changed(side), strict=True):
            if not is_changed:
                total, count = total + r * r, count + 1
    return total / count if count else 0.0


def oracle_loss(
    pair: Pair, loss: str, consistency_weight: float, center_weight: float
) -> float:
    scores = [oracle_score(pair.reward[side], pair.changed(side), loss) for side in (0, 1)]
    total = oracle_minus_log_sigmoid(scores[0] - scores[1])
    if loss != "sequence":
        total += consistency_weight * oracle_consistency(pair)
        total += center_weight * oracle_center(pair)
    return total


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("consistency_weight", "center_weight"), WEIGHTS)
@pytest.mark.parametrize("loss", reward_losses.LOSSES)
def test_loss_equals_the_loops(loss, consistency_weight, center_weight):
    weights = {"consistency_weight": consistency_weight, "center_weight": center_weight}
    compute = jax.jit(functools.partial(reward_losses.reward_model_loss, loss=loss, **weights))
    for pair in pairs(40):
        value, metrics = compute(*pad(pair, 24, left=(2, 5)))
        assert value.dtype == jnp.float64
        expected = oracle_loss(pair, loss, consistency_weight, center_weight)
        np.testing.assert_allclose(value, expected, rtol=1e-13)
        score = [oracle_score(pair.reward[s], pair.changed(s), loss) for s in (0, 1)]
        np.testing.assert_allclose(metrics["reward/margin"], score[0] - score[1], atol=1e-14)
        np.testing.assert_allclose(
            metrics["preference_loss"],
            oracle_minus_log_sigmoid(score[0] - score[1]),
            rtol=1e-13,
        )
        assert metrics["accuracy"] == (0.5 if score[0] == score[1] else score[0] > score[1])
        if loss != "sequence":
            np.testing.assert_allclose(
                metrics["reward/consistency_penalty"], oracle_consistency(pair)
            )
            np.testing.assert_allclose(metrics["reward/center_penalty"], oracle_center(pair))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("consistency_weight", "center_weight"), [WEIGHTS[0], WEIGHTS[3]])
@pytest.mark.parametrize("loss", reward_losses.LOSSES)
def test_gradient_equals_differences_of_the_loops(loss, consistency_weight, center_weight):
    weights = {"consistency_weight": consistency_weight, "center_weight": center_weight}
    gradient = jax.jit(
        jax.grad(lambda *p: reward_losses.reward_model_loss(*p, loss=loss, **weights)[0])
    )
    step = 1e-5
    for pair in pairs(12):
        reward_2S, response_2S, *rest = pad(pair, 24, left=(2, 5))
        found_2S = np.array(gradient(reward_2S, response_2S, *rest))
        expected_2S = np.zeros_like(found_2S)
        for side in (0, 1):
            for t in range(len(pair.reward[side])):
                ends = []
                for sign in (1, -1):
                    moved = [list(r) for r in pair.reward]
                    moved[side][t] += sign * step
                    moved = pair._replace(reward=tuple(moved))
                    ends.append(oracle_loss(moved, loss, consistency_weight, center_weight))
                column = np.flatnonzero(response_2S[side])[t]
                expected_2S[side, column] = (ends[0] - ends[1]) / (2 * step)
        np.testing.assert_allclose(found_2S, expected_2S, atol=1e-9)
        # Not merely small: a prompt, a padding token gets no gradient at all.
        assert not found_2S[~response_2S].any()


@pytest.mark.parametrize("loss", reward_losses.LOSSES)
def test_which_tokens_a_loss_trains(loss):
    """The letter of each equation: gradient on its own tokens, down on side i, up on side j."""

    weights = {"consistency_weight": 0.0, "center_weight": 0.0}
    gradient = jax.jit(
        jax.grad(lambda *p: reward_losses.reward_model_loss(*p, loss=loss, **weights)[0])
    )
    for pair in pairs(20):
        _, response_2S, changed_2S, _ = padded = pad(pair, 24, left=(3, 0), junk=0.25)
        trained_2S = {"token_full": response_2S, "token_edit": changed_2S}.get(loss)
        if trained_2S is None:
            last_2 = [np.flatnonzero(side)[-1] for side in response_2S]
            trained_2S = np.arange(24) == np.array(last_2)[:, None]
        found_2S = np.array(gradient(padded[0].astype(np.float32), *padded[1:]))
        np.testing.assert_array_equal(found_2S[0] < 0, trained_2S[0])
        np.testing.assert_array_equal(found_2S[1] > 0, trained_2S[1])
        assert not found_2S[~trained_2S].any()


def oracle_logprobs(logits: np.ndarray, tokens: np.ndarray) -> list[float]:
    found = [0.0]
    for s in range(1, len(tokens)):
        row = logits[s - 1].astype(np.float64)
        top = max(row)
        total = 0.0
        for logit in row:
            total += math.exp(logit - top)
        found.append(row[tokens[s]] - top - math.log(total))
    return found


@pytest.mark.parametrize("columns", [1, 2, 9])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_token_logprobs(columns, dtype, scale):
    rng = np.random.default_rng(columns)
    logits_SV = jnp.asarray(rng.normal(size=(columns, 13)) * scale, dtype)
    tokens_S = rng.integers(0, 13, columns).astype(np.int32)
    found = reward_losses.token_logprobs(logits_SV, tokens_S)
    assert found.dtype == jnp.float32
    assert found.shape == (columns,)
    expected = oracle_logprobs(np.asarray(logits_SV, np.float64), tokens_S)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
