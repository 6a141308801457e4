"""The losses and figures of PPO against plain Python loops in float64, from the method's formulas.

The oracles never see a mask or a padded row: they take each response as a list of its own tokens,
so a mistake in masking cannot be made twice.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_cases
from policy_losses_cases import JUNK, draw, flat, oracle_mean, oracle_variance, pad

from fgrlhf_jax.functional import policy_losses as po
from fgrlhf_jax.functional.masking import masked_mean


def oracle_policy_loss(logprob, old, advantage, clip: float) -> float:
    ratio = math.exp(logprob - old)
    return max(-advantage * ratio, -advantage * min(max(ratio, 1 - clip), 1 + clip))


def oracle_value_loss(value, old, target, clip: float) -> float:
    near = min(max(value, old - clip), old + clip)
    return 0.5 * max((value - target) ** 2, (near - target) ** 2)


LOSSES = {
    "policy": (po.policy_loss, oracle_policy_loss),
    "value": (po.value_loss, oracle_value_loss),
}


# Losses


def loss_inputs(seed: int) -> tuple[list, list, list]:
    """(new, old, advantage or return) a token; ratios and moves on both sides of any clip."""
    old, signal = draw(seed), draw(seed + 1)
    new = [np.add(a, b).tolist() for a, b in zip(old, draw(seed + 2, scale=0.4), strict=True)]
    return new, old, signal


@pytest.mark.parametrize("clip", [0.1, 0.2, 0.5])
@pytest.mark.parametrize("name", LOSSES)
def test_losses_equal_the_loops(name, clip):
    loss, oracle = LOSSES[name]
    rows = loss_inputs(8)
    padded = [pad(x)[0] for x in rows]
    mask_BT = pad(rows[0])[1]
    found, clipped = jax.jit(functools.partial(loss, clip=clip))(*padded)
    expected = [oracle(*args, clip) for args in zip(*map(flat, rows), strict=True)]
    np.testing.assert_allclose(np.asarray(found)[mask_BT], expected, rtol=2e-5, atol=1e-6)
    assert clipped.dtype == bool
    assert 0.05 < masked_mean(clipped, mask_BT) < 0.95
    np.testing.assert_allclose(masked_mean(found, mask_BT), oracle_mean(expected), rtol=2e-5)


def test_policy_loss_by_hand():
    # Ratios 3/2 and 1/2, clipped to 5/4 and 3/4; columns: A = 2, A = -2 of each ratio.
    #   -A rho:       -3    3   -1    1
    #   -A clip(rho): -2.5  2.5 -1.5  1.5
    logprob = np.log(np.float32([1.5, 1.5, 0.5, 0.5]))
    advantage = np.float32([2, -2, 2, -2])
    loss, clipped = po.policy_loss(logprob, np.zeros(4, np.float32), advantage, 0.25)
    np.testing.assert_allclose(loss, [-2.5, 3.0, -1.0, 1.5], rtol=1e-6)
    assert clipped.tolist() == [True, False, False, True]
    slope = jax.grad(
        lambda x: po.policy_loss(x, np.zeros(4, np.float32), advantage, 0.25)[0].sum()
    )
    np.testing.assert_allclose(slope(logprob), [0.0, 3.0, -1.0, 0.0], rtol=1e-6)
    # Where the two branches meet, at the old policy, the gradient is the policy gradient's.
    assert slope(np.zeros(4, np.float32)).tolist() == (-advantage).tolist()


def test_value_loss_by_hand():
    # Old 1, clip 1/2.  V, V_clip, G:  2 1.5 0 | 2 1.5 3 | 0.25 0.5 1 | 1.25 1.25 1
    #   (V - G)^2:       4     1     0.5625  0.0625
    #   (V_clip - G)^2:  2.25  2.25  0.25    0.0625
    value, target = np.float32([2, 2, 0.25, 1.25]), np.float32([0, 3, 1, 1])
    loss, clipped = po.value_loss(value, np.ones(4, np.float32), target, 0.5)
    assert loss.tolist() == [2.0, 1.125, 0.28125, 0.03125]
    assert clipped.tolist() == [False, True, False, False]
    slope = jax.grad(lambda x: po.value_loss(x, np.ones(4, np.float32), target, 0.5)[0].sum())
    assert slope(value).tolist() == [2.0, 0.0, -0.75, 0.25]  # V - G, or 0 where it is clipped
    assert slope(np.ones(4, np.float32)).tolist() == [1.0, -2.0, 0.0, 0.0]


def test_no_value_within_the_clip_counts_as_clipped():
    rng = np.random.default_rng(11)
    value, target = rng.normal(size=(2, 10000)).astype(np.float32)
    old = value + rng.uniform(-0.19, 0.19, 10000).astype(np.float32)
    assert not po.value_loss(value, old, target, 0.2)[1].any()


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
    found = np.asarray(gradient(args[0]))
    assert found.dtype == np.float64
    expected = []
    for t in range(len(new)):
        ends = [oracle(new[t] + s, old[t], signal[t], clip) for s in (step, -step)]
        expected.append((ends[0] - ends[1]) / (2 * step) / len(new))
    np.testing.assert_allclose(found[mask_BT], expected, atol=1e-8)
    assert np.count_nonzero(expected) > 2
    # The value's clipped branch is the larger only where it is flat, as is the policy's.
    assert 2 < expected.count(0.0) == np.sum(np.asarray(loss(*args, clip)[1])[mask_BT])
    assert not found[~mask_BT].any()


# Padding


@pytest.mark.parametrize("columns", [7, 9, 40])
def test_padding_of_any_length_and_content_reaches_no_result(columns):
    """The same bits whatever stands there, and the same numbers however much of it there is."""

    @jax.jit
    def everything(reward_BT, value_BT, mask_BT):
        advantage_BT, return_BT = jax.vmap(functools.partial(po.gae, gamma=0.9, lam=0.8))(
            reward_BT, value_BT, mask_BT
        )
        vector_BT = jax.vmap(po.reward_vector, (0, 0, 0, None))(
            reward_BT, value_BT, mask_BT, 0.1
        )
        tokens = (advantage_BT, return_BT, vector_BT, po.whiten(reward_BT, mask_BT))
        scalars = (
            masked_mean(reward_BT, mask_BT),
            po.explained_variance(value_BT, reward_BT, mask_BT),
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
        jax.tree.map(np.testing.assert_array_equal, other, results[0])
    close = functools.partial(np.testing.assert_allclose, atol=2e-6)
    jax.tree.map(close, results[0][0], reference)
    jax.tree.map(close, results[0][2], scalars)
    assert not any(x_BT.any() for x_BT in results[0][1])


def test_padding_reaches_no_gradient_of_a_mean():
    for junk in JUNK:
        x_BT, mask_BT = pad([[1.0, 2.0], [6.0]], junk=junk)
        slope = jax.grad(masked_mean)(x_BT, mask_BT)
        np.testing.assert_allclose(slope, mask_BT / 3, rtol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_padding_reaches_no_loss_and_no_other_tokens_gradient(name):
    """The losses take no mask: the mean that follows has it.

    Numbers in padding then cost nothing at all. Of NaN, infinities and overflowing ratios the
    contract says less: they reach neither the loss nor a real token's gradient, but the gradient
    in their own column may be NaN, so whoever differentiates through it must not leave them there.
    """
    rows = loss_inputs(17)
    loss = functools.partial(LOSSES[name][0], clip=0.2)

    @jax.jit
    def run(*args):
        *args, mask_BT = args
        mean = lambda *args: masked_mean(loss(*args)[0], mask_BT)  # noqa: E731
        return jax.value_and_grad(mean, argnums=(0, 1, 2))(*args)

    reference, slopes = run(*[pad(x, junk=0.0)[0] for x in rows], pad(rows[0])[1])
    mask_BT = pad(rows[0])[1]
    for junk in (*JUNK, -2.0, 30.0):
        for place in range(3):
            args = [pad(x, junk=junk if i == place else 0.5)[0] for i, x in enumerate(rows)]
            value, others = run(*args, mask_BT)
            assert value == reference
            for slope, other in zip(slopes, others, strict=True):
                np.testing.assert_array_equal(slope[mask_BT], other[mask_BT])
                if abs(junk) <= 30.0:
                    assert not other[~mask_BT].any()


# Figures


def test_masked_mean_by_hand():
    x_BT, mask_BT = pad([[1.0, 2.0], [6.0]])
    assert masked_mean(x_BT, mask_BT) == 3.0  # 9 / 3: of tokens, not of rows (3.75)
    assert masked_mean(x_BT, np.zeros_like(mask_BT)) == 0.0
    assert masked_mean(mask_BT[:1], mask_BT[:1]) == 1.0  # a share of flags


def test_entropy():
    assert po.entropy(np.zeros((1, 4), np.float32)) == pytest.approx(math.log(4))
    # p = (1/4, 3/4): log 4 - 3/4 log 3; whatever is added to all logits.
    for shift in (0.0, 1e4, -1e4):
        found = po.entropy(np.float32([[shift, shift + math.log(3)]]))
        assert found == pytest.approx(math.log(4) - 0.75 * math.log(3), rel=2e-3)
    assert po.entropy(np.float32([[0.0, -1e9, -3e38]])) == 0.0  # certain
    rounded = jnp.array([[0.1, 2.3]], jnp.bfloat16)
    assert po.entropy(rounded) == po.entropy(rounded.astype(jnp.float32))


def test_entropy_of_logits_that_forbid_a_token():
    assert po.entropy(np.float32([[0.0, 0.0, -np.inf]])) == pytest.approx(math.log(2))


def test_explained_variance_by_hand():
    target_BT, mask_BT = pad([[1.0, 2.0, 3.0], [2.0]])  # variance 1/2
    explained = lambda rows: float(po.explained_variance(pad(rows)[0], target_BT, mask_BT))  # noqa: E731
    assert explained([[1.0, 2.0, 3.0], [2.0]]) == 1.0
    assert explained([[6.0, 7.0, 8.0], [7.0]]) == 1.0  # variance, not error: no bias is seen
    assert explained([[5.0, 5.0, 5.0], [5.0]]) == 0.0
    assert explained([[-1.0, -2.0, -3.0], [-2.0]]) == -3.0  # G - V = 2 G: 1 - 4
    assert po.explained_variance(target_BT, pad([[2.0] * 3, [2.0]])[0], mask_BT) == 0.0


def test_explained_variance_equals_the_loops():
    value, target = draw(20), draw(21, scale=3.0)
    left = [g - v for g, v in zip(flat(target), flat(value), strict=True)]
    expected = 1 - oracle_variance(left) / oracle_variance(flat(target))
    found = po.explained_variance(pad(value)[0], *pad(target))
    assert found == pytest.approx(expected, rel=1e-5)


def test_explained_variance_of_a_target_that_does_not_vary():
    target_BT, mask_BT = pad([[0.1] * n for n in (4, 4, 2)])
    assert po.explained_variance(pad(draw(22, (4, 4, 2)))[0], target_BT, mask_BT) == 0.0


def test_correlation():
    rng = np.random.default_rng(23)
    for _ in range(10):
        x, y = rng.normal(3, 2, (2, 17)).astype(np.float32)
        y += rng.choice([-1, 1]) * x
        assert po.correlation(x, y) == pytest.approx(np.corrcoef(x, y)[0, 1], abs=1e-5)
        assert po.correlation(x, 2 * x - 5) == pytest.approx(1.0)
        assert po.correlation(x, -x) == pytest.approx(-1.0)
    assert po.correlation(x, np.full(17, 2.0, np.float32)) == 0.0
    assert po.correlation(x[:1], y[:1]) == 0.0
    # Totals of rewards and lengths: 1, 3, 2 against 10, 30, 20 tokens less one that is off.
    # Deviations -1 1 0 and -10 20 -10: 30 / sqrt(2 * 600).
    found = po.correlation(np.float32([1, 3, 2]), np.float32([10, 40, 10]))
    assert found == pytest.approx(30 / math.sqrt(1200), rel=1e-5)


def test_correlation_of_what_does_not_vary():
    x = np.full(100, 1.7, np.float32)
    assert po.correlation(x, x) == pytest.approx(0.0, abs=1e-3)


@pytest.mark.parametrize(
    ("kl", "expected"),
    [
        (6.0, 0.1),  # on target
        (6.6, 0.105),  # a tenth above: 0.1 * (1 + 0.1 * 64 / 128)
        (4.8, 0.09),  # a fifth below: 0.1 * (1 - 0.2 / 2)
        (60.0, 0.11),  # the error is clipped to a fifth
        (-1.0, 0.09),
    ],
)
def test_the_adaptive_coefficient_by_hand(kl, expected):
    found = po.adapt_kl_coef(0.1, kl, target=6.0, horizon=128, rows=64)
    assert found == pytest.approx(expected, rel=1e-9)
