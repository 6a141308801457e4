"""Losses on pairs against plain Python loops in float64, from the papers' formulas.

The oracles take each side as a list of its own response tokens and never see a mask or padding.
"""

import functools
import math
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized

from fgrlhf_jax.functional.preference_losses import (
    LOSSES,
    PreferenceSettings,
    TokenWeights,
    dpo_loss,
    preference_loss,
)

WEIGHTS = TokenWeights(1.1, 0.9, 0.3, 0.2)
LIMIT = 0.6


class Side(NamedTuple):
    logprob: list[float]
    changed: list[bool]


def draw(seed: int) -> tuple[tuple[Side, Side], np.ndarray]:
    """Two responses of 1 to 8 tokens, some of them nearly certain, and a reference's sums."""
    rng = np.random.default_rng(seed)
    sides = []
    for _ in range(2):
        length = int(rng.integers(1, 9))
        logprob = -rng.exponential(1.0, length) * rng.choice([0.01, 1.0], length)
        changed = rng.random(length) < rng.choice([0.0, 0.5, 1.0])
        sides.append(Side(logprob.tolist(), changed.tolist()))
    return tuple(sides), rng.normal(-5, 3, (2, 2))


def padded(sides, junk: float, columns: int = 12):
    """logprob_2S, response_2S, changed_2S with each side at another place."""
    logprob_2S = np.full((2, columns), junk, np.float32)
    response_2S, changed_2S = np.zeros((2, 2, columns), bool)
    for side, (logprob, changed) in enumerate(sides):
        at = slice(1 + side, 1 + side + len(logprob))
        logprob_2S[side, at], response_2S[side, at], changed_2S[side, at] = logprob, True, changed
    return jnp.asarray(logprob_2S), jnp.asarray(response_2S), jnp.asarray(changed_2S)


def dense(side: Side, gamma: float, normalize: bool) -> float:
    """(1 / N) (sum over y_u of log p + gamma sum over y_c of log p), N = |y_u| + gamma |y_c|."""
    total = count = 0.0
    for logprob, changed in zip(*side, strict=True):
        total += gamma * logprob if changed else logprob
        count += gamma if changed else 1
    return total / count if normalize else total


def by_hand(sides, reference, settings: PreferenceSettings) -> float:
    """The loss of one pair."""
    edited, original = sides
    if settings.loss in ("dpo", "ddpo"):
        gamma = settings.gamma if settings.loss == "ddpo" else 1.0
        normalize = settings.loss == "ddpo" and settings.normalize
        pairs = zip(sides, reference[:, 0], strict=True)
        gains = [dense(side, gamma, normalize) - logprob for side, logprob in pairs]
        return math.log1p(math.exp(-settings.beta * (gains[0] - gains[1])))
    w, total, count = settings.weights, 0.0, 0
    if settings.loss == "salt":
        for logprob, changed in zip(*edited, strict=True):
            total += (w.inserted if changed else w.kept) * -logprob / len(edited.logprob)
        for logprob, changed in zip(*original, strict=True):
            unlikely = -math.log(1 - math.exp(logprob))
            each = w.removed * unlikely if changed else w.original * -logprob
            total += each / len(original.logprob)
        return total
    for logprob, changed in zip(*edited, strict=True):
        weight = w.inserted if changed else w.kept
        total, count = total - weight * logprob, count + (weight != 0)
    for logprob, changed in zip(*original, strict=True):
        weight = w.original
        if changed:
            weight = -w.removed if -logprob < settings.limit else 0.0
        total, count = total - weight * logprob, count + (weight != 0)
    return total / max(count, 1)


class PapersTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.product(loss=LOSSES, junk=[0.0, math.nan])
    def test_losses(self, loss, junk):
        settings = PreferenceSettings(loss, 0.3, 2.5, False, WEIGHTS, LIMIT)
        drawn = [draw(seed) for seed in range(40)]
        arrays = [(*padded(sides, junk), jnp.float32(reference)) for sides, reference in drawn]
        arrays = [jnp.stack(x) for x in zip(*arrays, strict=True)]
        each = [settings, settings._replace(normalize=True, weights=WEIGHTS._replace(kept=0.0))]
        for changed in each:
            compute = jax.vmap(functools.partial(preference_loss, settings=changed))
            values = jax.device_get(self.variant(compute)(*arrays))
            for b, (sides, reference) in enumerate(drawn):
                value, metrics, logprob_22 = jax.tree.map(lambda x, b=b: x[b], values)
                expected = by_hand(sides, reference, changed)
                assert value == pytest.approx(expected, rel=1e-4, abs=1e-6)
                plain = [sum(side.logprob) for side in sides]
                np.testing.assert_allclose(logprob_22[:, 1], plain, rtol=1e-5)
                assert metrics["logprob/chosen"] == pytest.approx(plain[0], rel=1e-5)
                assert metrics["logprob/rejected"] == pytest.approx(plain[1], rel=1e-5)
                if loss not in ("dpo", "ddpo"):
                    assert metrics["accuracy"] == 0.5 * (1 + np.sign(plain[0] - plain[1]))
                    assert "reference_kl" not in metrics
                    continue
                gain = settings.beta * (logprob_22[:, 0] - reference[:, 0])
                assert metrics["reward/margin"] == pytest.approx(gain[0] - gain[1], abs=1e-4)
                assert metrics["accuracy"] == 0.5 * (1 + np.sign(gain[0] - gain[1]))
                lost = reference[1, 1] - plain[1]
                assert metrics["reference_kl"] == pytest.approx(lost, abs=1e-4)


@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_are_finite_and_of_response_tokens_alone(loss):
    """Where a token is certain too, of which -log(1 - p) has no bound."""
    sides = (Side([-1.0, 0.0], [True, False]), Side([0.0, -0.5, -2.0], [True, True, False]))
    logprob_2S, *masks = padded(sides, math.nan)
    settings = PreferenceSettings(loss, 0.3, 2.5, False, WEIGHTS, LIMIT)

    def value(logprob_2S):
        return preference_loss(logprob_2S, *masks, jnp.zeros((2, 2)), settings)[0]

    gradient_2S = jax.grad(value)(logprob_2S)
    assert np.isfinite(value(logprob_2S))
    assert np.isfinite(gradient_2S).all()
    assert not gradient_2S[~masks[0]].any()


def test_a_tie_has_log_2_and_large_margins_are_stable():
    zeros = jnp.zeros(2)
    assert dpo_loss(zeros, zeros, 0.1) == pytest.approx(math.log(2))
    assert dpo_loss(jnp.array([-1e4, 0.0]), zeros, 1.0) == pytest.approx(1e4)
    assert dpo_loss(jnp.array([0.0, -1e4]), zeros, 1.0) == 0


@pytest.mark.parity
def test_dpo_is_the_sigmoid_loss_of_trl():
    """As TRL documents it, on logits: the loss, the rewards, and gradients by torch."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    logits_22TV = rng.normal(size=(2, 2, 5, 7)).astype(np.float32)  # policy and reference, sides
    tokens_2T, beta = rng.integers(0, 7, (2, 5)), 0.2

    theirs = torch.tensor(logits_22TV, requires_grad=True)
    index = torch.tensor(tokens_2T)[None, :, :, None].expand(2, 2, 5, 1)
    logps_22 = theirs.log_softmax(-1).gather(-1, index)[..., 0].sum(-1)
    (chosen, rejected), (ref_chosen, ref_rejected) = logps_22[0], logps_22[1].detach()
    logits = (chosen - rejected) - (ref_chosen - ref_rejected)
    loss = -torch.nn.functional.logsigmoid(beta * logits)
    loss.backward()

    def ours(logits_2TV):
        logprob_22T = jnp.stack(
            [
                jnp.take_along_axis(jax.nn.log_softmax(x), tokens_2T[..., None], axis=-1)[..., 0]
                for x in (logits_2TV, logits_22TV[1])
            ]
        )
        masks = jnp.ones((2, 5), bool), jnp.zeros((2, 5), bool)
        reference_22 = jnp.repeat(logprob_22T[1].sum(-1)[:, None], 2, axis=1)
        settings = PreferenceSettings("dpo", beta)
        value, metrics, _ = preference_loss(logprob_22T[0], *masks, reference_22, settings)
        return value, metrics

    (value, metrics), gradient = jax.value_and_grad(ours, has_aux=True)(jnp.asarray(logits_22TV[0]))
    assert value == pytest.approx(loss.item(), rel=1e-5)
    assert metrics["reward/chosen"] == pytest.approx(beta * (chosen - ref_chosen).item(), rel=1e-4)
    np.testing.assert_allclose(gradient, theirs.grad[0], atol=1e-6)
