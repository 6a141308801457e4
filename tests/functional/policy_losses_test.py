"""The functions of PPO against plain Python loops in float64, from the method's formulas.

The oracles never see a mask or a padded row: they take each response as a list of its own tokens,
so a mistake in masking cannot be made twice. Padded columns hold NaN unless a test says otherwise.
"""

import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_cases
from absl.testing import parameterized
from policy_cases import JUNK, draw, flat, oracle_mean, oracle_variance, pad

from fgrlhf_jax.functional import policy_losses
from fgrlhf_jax.functional.masking import masked_mean


def oracle_policy_loss(logprob, old, advantage, clip: float) -> float:
    ratio = math.exp(logprob - old)
    return max(-advantage * ratio, -advantage * min(max(ratio, 1 - clip), 1 + clip))


def oracle_value_loss(value, old, target, clip: float) -> float:
    near = min(max(value, old - clip), old + clip)
    return 0.5 * max((value - target) ** 2, (near - target) ** 2)


def oracle_kl(p: float, ref: float, estimator: str) -> float:
    """Of log-probabilities; Schulman's k3 is (r - 1) - log r with r = p_ref / p."""
    if estimator == "k3":
        ratio = math.exp(ref) / math.exp(p)
        return (ratio - 1) - math.log(ratio)
    return p - ref if estimator == "k1" else max(p - ref, 0.0)


def oracle_gae(reward, value, gamma: float, lam: float) -> list[float]:
    """Equation 16 as it stands: the sum over l of (gamma lam)^l delta_{t+l}."""
    value = [*value, 0.0]
    advantages = []
    for t in range(len(reward)):
        total = 0.0
        for k in range(t, len(reward)):
            delta = reward[k] + gamma * value[k + 1] - value[k]
            total += (gamma * lam) ** (k - t) * delta
        advantages.append(total)
    return advantages


LOSSES = {
    "policy": (policy_losses.policy_loss, oracle_policy_loss),
    "value": (policy_losses.value_loss, oracle_value_loss),
}


def loss_inputs(seed: int) -> tuple[list, list, list]:
    """(new, old, advantage or return) a token; ratios and moves on both sides of any clip."""
    old, signal = draw(seed), draw(seed + 1)
    new = [np.add(a, b).tolist() for a, b in zip(old, draw(seed + 2, scale=0.4), strict=True)]
    return new, old, signal


class LoopsTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.product(name=[*LOSSES], clip=[0.1, 0.5])
    def test_losses(self, name, clip):
        loss, oracle = LOSSES[name]
        rows = loss_inputs(8)
        mask_BT = pad(rows[0])[1]
        apply = self.variant(jax.vmap(functools.partial(loss, clip=clip)))
        loss_BT, clipped_BT = apply(*[pad(x)[0] for x in rows])
        expected = [oracle(*args, clip) for args in zip(*map(flat, rows), strict=True)]
        np.testing.assert_allclose(loss_BT[mask_BT], expected, rtol=2e-5, atol=1e-6)
        chex.assert_type(clipped_BT, bool)
        assert 0.05 < masked_mean(clipped_BT, mask_BT) < 0.95
        np.testing.assert_allclose(masked_mean(loss_BT, mask_BT), oracle_mean(expected), rtol=2e-5)

    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.parameters((1, 1), (1.0, 0.95), (0.9, 0.8), (0.9, 0), (0, 1))
    def test_gae(self, gamma, lam):
        rows, values = draw(6), draw(7)
        reward_BT, mask_BT = pad(rows, 7)  # two of them fill it
        gae = self.variant(jax.vmap(functools.partial(policy_losses.gae, gamma=gamma, lam=lam)))
        advantage_BT, return_BT = gae(reward_BT, pad(values, 7)[0], mask_BT)
        chex.assert_type([advantage_BT, return_BT], jnp.float32)
        advantages = [oracle_gae(r, v, gamma, lam) for r, v in zip(rows, values, strict=True)]
        returns = [np.add(a, v) for a, v in zip(advantages, values, strict=True)]
        expected = pad(advantages, 7, 0.0)[0], pad(returns, 7, 0.0)[0]
        chex.assert_trees_all_close((advantage_BT, return_BT), expected, atol=5e-6)

    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.parameters(*policy_losses.KL_ESTIMATORS)
    def test_kl(self, estimator):
        p, ref = flat(draw(2, scale=2.0)), flat(draw(3, scale=2.0))
        kl = self.variant(functools.partial(policy_losses.kl_estimate, estimator=estimator))
        kl_T = kl(np.float32(p), np.float32(ref))
        expected = [oracle_kl(a, b, estimator) for a, b in zip(p, ref, strict=True)]
        chex.assert_type(kl_T, jnp.float32)
        np.testing.assert_allclose(kl_T, expected, rtol=2e-6, atol=1e-6)
        assert not kl(np.float32(p), np.float32(p)).any()

    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.parameters(True, False)
    def test_whitening(self, shift_mean):
        """Over all tokens of the batch, not a row at a time."""
        rows = draw(0, scale=5.0)
        mean, variance = oracle_mean(flat(rows)), oracle_variance(flat(rows))
        kept = 0.0 if shift_mean else mean
        expected, _ = pad(
            [[(x - mean) / math.sqrt(variance + 1e-8) + kept for x in row] for row in rows],
            junk=0.0,
        )
        white = self.variant(functools.partial(policy_losses.whiten, shift_mean=shift_mean))(
            *pad(rows)
        )
        chex.assert_type(white, jnp.float32)
        chex.assert_trees_all_close(white, expected, rtol=1e-5, atol=1e-6)

    @chex.variants(with_jit=True, without_jit=True)
    def test_explained_variance(self):
        value, target = draw(20), draw(21, scale=3.0)
        rest = [g - v for g, v in zip(flat(target), flat(value), strict=True)]
        expected = 1 - oracle_variance(rest) / oracle_variance(flat(target))
        explained = self.variant(policy_losses.explained_variance)(pad(value)[0], *pad(target))
        np.testing.assert_allclose(explained, expected, rtol=1e-5)

    @chex.variants(with_jit=True, without_jit=True)
    def test_correlation(self):
        rng, correlation = np.random.default_rng(23), self.variant(policy_losses.correlation)
        for _ in range(10):
            x, y = rng.normal(3, 2, (2, 17)).astype(np.float32)
            y += rng.choice([-1, 1]) * x
            assert correlation(x, y) == pytest.approx(np.corrcoef(x, y)[0, 1], abs=1e-5)
            assert correlation(x, 2 * x - 5) == pytest.approx(1.0)
        assert correlation(x, np.full(17, 2.0, np.float32)) == 0.0
        assert correlation(x[:1], y[:1]) == 0.0
        same = np.full(100, 1.7, np.float32)
        assert correlation(same, same) == pytest.approx(0.0, abs=1e-3)


# Losses


def test_the_gradients_where_a_branch_begins_and_where_it_is_clipped():
    logprob = np.log(np.float32([1.5, 1.5, 0.5, 0.5]))
    advantage, old = np.float32([2, -2, 2, -2]), np.zeros(4, np.float32)
    slope = jax.grad(lambda x: policy_losses.policy_loss(x, old, advantage, 0.25)[0].sum())
    np.testing.assert_allclose(slope(logprob), [0.0, 3.0, -1.0, 0.0], rtol=1e-6)
    # Where the two branches meet, at the old policy, the gradient is the policy gradient's.
    assert slope(old).tolist() == (-advantage).tolist()
    value, target = np.float32([2, 2, 0.25, 1.25]), np.float32([0, 3, 1, 1])
    slope = jax.grad(
        lambda x: policy_losses.value_loss(x, np.ones(4, np.float32), target, 0.5)[0].sum()
    )
    assert slope(value).tolist() == [2.0, 0.0, -0.75, 0.25]  # V - G, or 0 where it is clipped
    assert slope(np.ones(4, np.float32)).tolist() == [1.0, -2.0, 0.0, 0.0]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("clip", [0.1, 0.5])
@pytest.mark.parametrize("name", LOSSES)
def test_gradients_equal_differences_of_the_loops(name, clip):
    """Of the mean over the batch's tokens, by the new log-probabilities or values."""
    loss, oracle = LOSSES[name]
    rows, step = loss_inputs(12), 1e-6
    new, old, signal = map(flat, rows)
    args = [tiny_cases.laid_out(x, "right", 1.0, 9)[0] for x in rows]
    mask_BT = tiny_cases.laid_out(rows[0], "right", 1.0, 9)[1]
    gradient = jax.grad(lambda x: masked_mean(loss(x, *args[1:], clip)[0], mask_BT))
    slope_BT = np.asarray(gradient(args[0]))
    assert slope_BT.dtype == np.float64
    expected = []
    for t in range(len(new)):
        ends = [oracle(new[t] + s, old[t], signal[t], clip) for s in (step, -step)]
        expected.append((ends[0] - ends[1]) / (2 * step) / len(new))
    np.testing.assert_allclose(slope_BT[mask_BT], expected, atol=1e-8)
    assert np.count_nonzero(expected) > 2
    # The value's clipped branch is the larger only where it is flat, as is the policy's.
    assert 2 < expected.count(0.0) == np.sum(np.asarray(loss(*args, clip)[1])[mask_BT])
    assert not slope_BT[~mask_BT].any()


# Padding


@pytest.mark.parametrize("columns", [7, 40])
def test_padding_of_any_length_and_content_reaches_no_result(columns):
    """The same bits whatever stands there, and the same numbers however much of it there is."""

    @jax.jit
    def everything(reward_BT, value_BT, mask_BT):
        gae = jax.vmap(functools.partial(policy_losses.gae, gamma=0.9, lam=0.8))
        vector = jax.vmap(functools.partial(policy_losses.reward_vector, kl_coef=0.1))
        tokens = (
            *gae(reward_BT, value_BT, mask_BT),
            vector(reward_BT, value_BT, mask_BT),
            policy_losses.whiten(reward_BT, mask_BT),
        )
        scalars = (
            masked_mean(reward_BT, mask_BT),
            policy_losses.explained_variance(value_BT, reward_BT, mask_BT),
        )
        return [x_BT[:, :7] for x_BT in tokens], [x_BT[:, 7:] for x_BT in tokens], scalars

    rows, values = draw(15), draw(16)
    reference, _, scalars = everything(pad(rows, 7)[0], *pad(values, 7))
    results = [
        everything(pad(rows, columns, junk)[0], *pad(values, columns, other))
        for junk in JUNK
        for other in JUNK
    ]
    for other in results[1:]:
        chex.assert_trees_all_equal(other, results[0])
    first, beyond, _ = results[0]
    chex.assert_trees_all_close((first, results[0][2]), (reference, scalars), atol=2e-6)
    assert not any(x_BT.any() for x_BT in beyond)


@pytest.mark.parametrize("name", LOSSES)
def test_padding_reaches_no_loss_and_no_other_tokens_gradient(name):
    """The losses take no mask: the mean that follows has it.

    Numbers in padding then cost nothing at all. Of NaN, infinities and overflowing ratios the
    contract says less: they reach neither the loss nor a real token's gradient, but the gradient
    in their own column may be NaN, so whoever differentiates through it must not leave them there.
    """
    rows = loss_inputs(17)
    mask_BT = pad(rows[0])[1]
    loss = functools.partial(LOSSES[name][0], clip=0.2)

    @jax.jit
    def run(*args):
        mean = lambda *args: masked_mean(loss(*args)[0], mask_BT)  # noqa: E731
        return jax.value_and_grad(mean, argnums=(0, 1, 2))(*args)

    reference, slopes = run(*[pad(x, junk=0.0)[0] for x in rows])
    for junk in (*JUNK, -2.0, 30.0):
        for place in range(3):
            args = [pad(x, junk=junk if i == place else 0.5)[0] for i, x in enumerate(rows)]
            value, others = run(*args)
            assert value == reference
            for slope, other in zip(slopes, others, strict=True):
                np.testing.assert_array_equal(slope[mask_BT], other[mask_BT])
                if abs(junk) <= 30.0:
                    assert not other[~mask_BT].any()
