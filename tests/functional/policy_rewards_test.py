"""PPO's rewards and advantages against plain Python loops in float64, from the method's formulas.

The oracles never see a mask or a padded row: they take each response as a list of its own tokens,
so a mistake in masking cannot be made twice.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from policy_losses_cases import JUNK, LENGTHS, draw, flat, oracle_mean, oracle_variance, pad

from fgrlhf_jax.functional import policy_losses as po
from fgrlhf_jax.functional.masking import last_token
from fgrlhf_jax.runtime import sharding


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


# KL


@pytest.mark.parametrize("estimator", po.KL_ESTIMATORS)
def test_kl_equals_its_formula(estimator):
    p, ref = flat(draw(2, scale=2.0)), flat(draw(3, scale=2.0))
    found = po.kl_estimate(np.float32(p), np.float32(ref), estimator)
    expected = [oracle_kl(a, b, estimator) for a, b in zip(p, ref, strict=True)]
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, rtol=2e-6, atol=1e-6)
    same = po.kl_estimate(np.float32(p), np.float32(p), estimator)
    assert not same.any()


def test_kl_by_hand():
    # log p - log p_ref = log 2, then -log 2: ratios p_ref / p of 1/2 and 2.
    p, ref = np.log(np.float32([0.5, 0.25])), np.log(np.float32([0.25, 0.5]))
    log2 = math.log(2)
    for estimator, expected in {
        "k1": [log2, -log2],
        "k3": [0.5 - 1 + log2, 2 - 1 - log2],
        "k1_clipped": [log2, 0.0],
    }.items():
        np.testing.assert_allclose(po.kl_estimate(p, ref, estimator), expected, rtol=1e-6)
    with pytest.raises(ValueError, match=r"'k2'.*k1_clipped"):
        po.kl_estimate(p, ref, "k2")


def test_kl_estimators_in_expectation():
    """Over all that could be sampled: k1 and k3 give the divergence, k1_clipped more."""
    rng = np.random.default_rng(4)
    for _ in range(10):
        p, ref = rng.dirichlet(np.ones(6)), rng.dirichlet(np.ones(6))
        args = np.log(np.float32(p)), np.log(np.float32(ref))
        mean = {e: float(p @ np.asarray(po.kl_estimate(*args, e))) for e in po.KL_ESTIMATORS}
        divergence = sum(a * math.log(a / b) for a, b in zip(p, ref, strict=True))
        assert mean["k1"] == pytest.approx(divergence, rel=1e-4)
        assert mean["k3"] == pytest.approx(divergence, rel=1e-4)
        assert mean["k1_clipped"] > divergence * 1.001


def test_k3_is_never_negative_however_close_the_policies_are():
    rng = np.random.default_rng(5)
    difference = 10.0 ** rng.uniform(-12, 1, 20000) * rng.choice([-1, 1], 20000)
    difference = difference.astype(np.float32)
    found = np.asarray(po.kl_estimate(difference, np.zeros_like(difference), "k3"))
    assert (found >= 0).all()
    # And not by being rounded to 0: close by it is d^2 / 2.
    near = (np.abs(difference) > 1e-4) & (np.abs(difference) < 1e-3)
    np.testing.assert_allclose(found[near], difference[near] ** 2 / 2, rtol=5e-3)


# Rewards


def test_last_token():
    for length in (1, 3, 5):
        _, mask_BT = pad([[0.0] * length], columns=5)
        assert np.flatnonzero(last_token(mask_BT[0])).tolist() == [length - 1]
    assert not last_token(np.zeros(5, bool)).any()


def rewards(rule: str, finished: bool, penalty: float = -10.0) -> list[float]:
    reward_BT, mask_BT = pad([[1.0, -1.0, 0.5]], columns=5, junk=0.0)
    apply = jax.jit(functools.partial(po.missing_eos, rule=rule, penalty=penalty))
    return apply(reward_BT[0], mask_BT[0], np.bool_(finished)).tolist()


@pytest.mark.parametrize("rule", po.MISSING_EOS)
def test_missing_eos(rule):
    assert rewards(rule, finished=True) == [1.0, -1.0, 0.5, 0.0, 0.0]
    assert (
        rewards(rule, finished=False)
        == {
            "none": [1.0, -1.0, 0.5, 0.0, 0.0],
            "replace": [0.0, 0.0, -10.0, 0.0, 0.0],
            "subtract": [1.0, -1.0, -9.5, 0.0, 0.0],
        }[rule]
    )


def test_missing_eos_is_about_each_response_alone():
    reward_BT, mask_BT = pad([[1.0, 2.0], [3.0], [4.0, 5.0, 6.0]], columns=3, junk=0.0)
    apply = jax.vmap(functools.partial(po.missing_eos, rule="subtract", penalty=-1.0))
    found = apply(reward_BT, mask_BT, np.array([False, True, False]))
    np.testing.assert_array_equal(found, [[1, 1, 0], [3, 0, 0], [4, 5, 5]])
    with pytest.raises(ValueError, match=r"'clip'.*replace"):
        po.missing_eos(reward_BT[0], mask_BT[0], True, rule="clip", penalty=0.0)


@pytest.mark.parametrize(
    ("reward", "expected"),
    [
        # A sequence score of 2: [-b KL_1, -b KL_2, 2 - b KL_3].
        ([0.0, 0.0, 2.0], [-0.25, 0.125, 1.5]),
        # A reward a token: [1 - 0.25, -1 + 0.125, 0.5 - 0.5].
        ([1.0, -1.0, 0.5], [0.75, -0.875, 0.0]),
    ],
)
def test_reward_vector_by_hand(reward, expected):
    for junk in JUNK:
        reward_BT, mask_BT = pad([reward], columns=5, junk=junk)
        kl_BT, _ = pad([[0.5, -0.25, 1.0]], columns=5, junk=junk)
        found = po.reward_vector(reward_BT[0], kl_BT[0], mask_BT[0], 0.5)
        assert found.dtype == jnp.float32
        assert found.tolist() == [*expected, 0.0, 0.0]
        letter = po.reward_vector(reward_BT[0], kl_BT[0] * 0, mask_BT[0], 0.0)
        assert letter.tolist() == [*reward, 0.0, 0.0]


def test_integer_rewards_are_refused():
    """0.7 stored as an integer is 0: such an array is refused, and 0.7 comes out as 0.7."""
    kl_T, real_T = jnp.zeros(3), jnp.ones(3, bool)
    whole_T, part_T = jnp.array([0, 0, 1]), jnp.array([0.0, 0.0, 0.7])
    for args in ((whole_T, kl_T), (part_T, whole_T)):
        with pytest.raises(AssertionError, match="type"):
            po.reward_vector(*args, real_T, 0.1)
        with pytest.raises(AssertionError, match="type"):
            po.gae(*args, real_T, 1.0, 1.0)
    replaced_T = po.missing_eos(whole_T, real_T, jnp.array(False), rule="replace", penalty=-0.7)
    assert replaced_T.tolist() == jnp.array([0, 0, -0.7]).tolist()
    _, return_T = po.gae(po.reward_vector(part_T, kl_T, real_T, 0.1), kl_T, real_T, 1.0, 1.0)
    np.testing.assert_allclose(return_T, [0.7] * 3)


# Advantages


def batched_gae(gamma, lam):
    return jax.jit(jax.vmap(functools.partial(po.gae, gamma=gamma, lam=lam)))


@pytest.mark.parametrize(("gamma", "lam"), [(1, 1), (1.0, 0.95), (0.9, 0.8), (0.9, 0), (0, 1)])
def test_gae_of_a_batch_equals_the_loops(gamma, lam):
    rows, values = draw(6), draw(7)
    reward_BT, mask_BT = pad(rows, 7)  # two of them fill it
    value_BT, _ = pad(values, 7)
    advantage_BT, return_BT = map(
        np.asarray, batched_gae(gamma, lam)(reward_BT, value_BT, mask_BT)
    )
    assert advantage_BT.dtype == return_BT.dtype == np.float32
    for b, (reward, value) in enumerate(zip(rows, values, strict=True)):
        n, expected = len(reward), oracle_gae(reward, value, gamma, lam)
        np.testing.assert_allclose(advantage_BT[b, :n], expected, atol=5e-6)
        np.testing.assert_allclose(return_BT[b, :n], np.add(expected, value), atol=5e-6)
        assert not advantage_BT[b, n:].any()
        assert not return_BT[b, n:].any()


def test_gae_by_hand():
    # gamma = lam = 1/2 and V_3 = 0 after the end.
    # delta: 1 + 0.5 * 1 - 0.5 = 1;   0 + 0.5 * -1 - 1 = -1.5;   2 + 0 + 1 = 3
    # A:     1 + 0.25 * -0.75 = 0.8125;   -1.5 + 0.25 * 3 = -0.75;   3
    reward_BT, mask_BT = pad([[1.0, 0.0, 2.0]], columns=4)
    value_BT, _ = pad([[0.5, 1.0, -1.0]], columns=4)
    advantage, target = po.gae(reward_BT[0], value_BT[0], mask_BT[0], 0.5, 0.5)
    assert advantage.tolist() == [0.8125, -0.75, 3.0, 0.0]
    assert target.tolist() == [1.3125, 0.25, 2.0, 0.0]  # A + V


# Whitening


@pytest.mark.parametrize("shift_mean", [True, False])
def test_whitening_equals_the_loops(shift_mean):
    rows = draw(0, scale=5.0)
    mean, variance = oracle_mean(flat(rows)), oracle_variance(flat(rows))
    expected, mask_BT = pad(
        [
            [(x - mean) / math.sqrt(variance + 1e-8) + (0 if shift_mean else mean) for x in row]
            for row in rows
        ],
        junk=0.0,
    )
    found = jax.jit(functools.partial(po.whiten, shift_mean=shift_mean))(*pad(rows))
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert not np.asarray(found)[~mask_BT].any()


def test_whitening_by_hand():
    # Mean 2, variance (9 + 9 + 1 + 1) / 4 = 5.
    x_BT, mask_BT = pad([[5.0, -1.0, 3.0], [1.0]], columns=3)
    expected = np.array([[3.0, -3.0, 1.0], [-1.0, 0.0, 0.0]]) / math.sqrt(5)
    np.testing.assert_allclose(po.whiten(x_BT, mask_BT), expected, rtol=1e-6)
    # Mean 1e-4, variance 1e-8, and 1e-8 is added to it: 1e-4 / sqrt(2e-8) = sqrt(1/2).
    tiny = po.whiten(np.float32([0.0, 2e-4]), np.ones(2, bool))
    np.testing.assert_allclose(tiny, [-math.sqrt(0.5), math.sqrt(0.5)], rtol=1e-4)
    # Nothing varies, or there is nothing at all: no NaN.
    assert not po.whiten(np.float32([2.0, 2.0]), np.ones(2, bool)).any()
    assert not po.whiten(np.float32([2.0, np.nan]), np.zeros(2, bool)).any()


def test_whitening_is_over_the_whole_batch():
    """Not a row at a time, and not a device at a time."""
    rows = draw(1)
    x_BT, mask_BT = pad(rows)
    whole = np.asarray(po.whiten(x_BT, mask_BT))
    joined = po.whiten(np.float32(flat(rows)), np.ones(sum(LENGTHS), bool))
    np.testing.assert_allclose(whole[mask_BT], joined, atol=1e-6)
    assert max(abs(x_T[m_T].mean()) for x_T, m_T in zip(whole, mask_BT, strict=True)) > 0.3

    mesh = sharding.make_mesh("8,1,1")
    with jax.set_mesh(mesh):
        placed = sharding.put_batch((np.asarray(x_BT), mask_BT), mesh)
        np.testing.assert_allclose(jax.jit(po.whiten)(*placed), whole, atol=1e-6)
