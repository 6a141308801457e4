"""KL, reward vectors, whitening and the metrics of PPO, by hand and against their definitions."""

import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from policy_cases import JUNK, draw, pad

from fgrlhf_jax.functional import policy_losses
from fgrlhf_jax.functional.masking import last_token, masked_mean


def test_masked_mean_and_last_token():
    x_BT, mask_BT = pad([[1.0, 2.0], [6.0]])
    assert masked_mean(x_BT, mask_BT) == 3.0  # 9 / 3: of tokens, not of rows (3.75)
    assert masked_mean(x_BT, np.zeros_like(mask_BT)) == 0.0
    assert masked_mean(mask_BT[:1], mask_BT[:1]) == 1.0  # a share of flags
    for junk in JUNK:
        slope = jax.grad(masked_mean)(pad([[1.0, 2.0], [6.0]], junk=junk)[0], mask_BT)
        np.testing.assert_allclose(slope, mask_BT / 3, rtol=1e-6)
    mask_BT = np.array([[0, 1, 1, 0], [0, 0, 0, 0], [1, 0, 0, 1]], bool)
    expected = [[0, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 1]]
    np.testing.assert_array_equal(last_token(mask_BT), expected)
    np.testing.assert_array_equal(jax.vmap(last_token)(mask_BT), expected)


def test_k3_is_never_negative_however_close_the_policies_are():
    rng = np.random.default_rng(5)
    difference = 10.0 ** rng.uniform(-12, 1, 20000) * rng.choice([-1, 1], 20000)
    difference = difference.astype(np.float32)
    kl = np.asarray(policy_losses.kl_estimate(difference, np.zeros_like(difference), "k3"))
    assert (kl >= 0).all()
    # And not by being rounded to 0: close by it is d^2 / 2.
    near = (np.abs(difference) > 1e-4) & (np.abs(difference) < 1e-3)
    np.testing.assert_allclose(kl[near], difference[near] ** 2 / 2, rtol=5e-3)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("none", [[1, 2, 0], [3, 0, 0], [4, 5, 6]]),
        ("replace", [[0, -9, 0], [3, 0, 0], [0, 0, -9]]),
        ("subtract", [[1, -7, 0], [3, 0, 0], [4, 5, -3]]),
    ],
)
def test_missing_eos(rule, expected):
    """The second response ended by itself and keeps its reward."""
    reward_BT, mask_BT = pad([[1.0, 2.0], [3.0], [4.0, 5.0, 6.0]], columns=3, junk=0.0)
    apply = jax.vmap(functools.partial(policy_losses.missing_eos, rule=rule, penalty=-9.0))
    found = apply(reward_BT, mask_BT, np.array([False, True, False]))
    np.testing.assert_array_equal(found, expected)


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
    reward_BT, mask_BT = pad([reward], columns=5)
    kl_BT, _ = pad([[0.5, -0.25, 1.0]], columns=5)
    vector_T = policy_losses.reward_vector(reward_BT[0], kl_BT[0], mask_BT[0], 0.5)
    chex.assert_type(vector_T, jnp.float32)
    assert vector_T.tolist() == [*expected, 0.0, 0.0]


def test_integer_rewards_are_refused():
    """0.7 stored as an integer is 0: such an array is refused, and 0.7 comes out as 0.7."""
    kl_T, real_T = jnp.zeros(3), jnp.ones(3, bool)
    whole_T, part_T = jnp.array([0, 0, 1]), jnp.array([0.0, 0.0, 0.7])
    for args in ((whole_T, kl_T), (part_T, whole_T)):
        with pytest.raises(AssertionError, match="type"):
            policy_losses.reward_vector(*args, real_T, 0.1)
        with pytest.raises(AssertionError, match="type"):
            policy_losses.gae(*args, real_T, 1.0, 1.0)
    replaced_T = policy_losses.missing_eos(
        whole_T, real_T, jnp.array(False), rule="replace", penalty=-0.7
    )
    assert replaced_T.tolist() == jnp.array([0, 0, -0.7]).tolist()
    _, return_T = policy_losses.gae(
        policy_losses.reward_vector(part_T, kl_T, real_T, 0.1), kl_T, real_T, 1.0, 1.0
    )
    np.testing.assert_allclose(return_T, [0.7] * 3)


def test_whitening_of_little_and_of_nothing():
    # Mean 1e-4, variance 1e-8, and 1e-8 is added to it: 1e-4 / sqrt(2e-8) = sqrt(1/2).
    tiny = policy_losses.whiten(np.float32([0.0, 2e-4]), np.ones(2, bool))
    np.testing.assert_allclose(tiny, [-math.sqrt(0.5), math.sqrt(0.5)], rtol=1e-4)
    assert not policy_losses.whiten(np.float32([2.0, 2.0]), np.ones(2, bool)).any()
    assert not policy_losses.whiten(np.float32([2.0, np.nan]), np.zeros(2, bool)).any()


def test_entropy():
    def entropy(logits_TV) -> float:
        (entropy,) = policy_losses.logprob_and_entropy(jnp.asarray(logits_TV), jnp.array([0]))[1]
        return float(entropy)

    assert entropy(np.zeros((1, 4), np.float32)) == pytest.approx(math.log(4))
    # p = (1/4, 3/4): log 4 - 3/4 log 3; whatever is added to all logits.
    for shift in (0.0, 1e4, -1e4):
        nats = entropy(np.float32([[shift, shift + math.log(3)]]))
        assert nats == pytest.approx(math.log(4) - 0.75 * math.log(3), rel=2e-3)
    assert entropy(np.float32([[0.0, -1e9, -3e38]])) == 0.0  # certain
    assert entropy(np.float32([[0.0, 0.0, -np.inf]])) == pytest.approx(math.log(2))
    rounded = jnp.array([[0.1, 2.3]], jnp.bfloat16)
    assert entropy(rounded) == entropy(rounded.astype(jnp.float32))


def test_the_log_probability_of_a_token_has_its_gradient_and_the_entropy_none():
    logits_TV, token_T = draw(23, (5, 5, 5)), np.array([0, 4, 4])

    def chosen(logits_TV):
        logprobs_TV = jax.nn.log_softmax(logits_TV)
        return jnp.sum(jnp.arange(1.0, 4.0) * logprobs_TV[jnp.arange(3), token_T])

    def ours(logits_TV):
        logprob_T, entropy_T = policy_losses.logprob_and_entropy(logits_TV, token_T)
        return jnp.sum(jnp.arange(1.0, 4.0) * logprob_T + entropy_T)

    grads = [jax.grad(f)(jnp.float32(logits_TV)) for f in (ours, chosen)]
    np.testing.assert_allclose(*grads, atol=1e-6)


def test_explained_variance_of_biases_and_of_what_does_not_vary():
    target_BT, mask_BT = pad([[1.0, 2.0, 3.0], [2.0]])  # variance 1/2

    def explained(rows) -> float:
        return float(policy_losses.explained_variance(pad(rows)[0], target_BT, mask_BT))

    assert explained([[6.0, 7.0, 8.0], [7.0]]) == 1.0  # variance, not error: no bias is seen
    assert explained([[5.0, 5.0, 5.0], [5.0]]) == 0.0
    assert explained([[-1.0, -2.0, -3.0], [-2.0]]) == -3.0  # G - V = 2 G: 1 - 4
    same_BT, mask_BT = pad([[0.1] * n for n in (4, 4, 2)])
    assert policy_losses.explained_variance(pad(draw(22, (4, 4, 2)))[0], same_BT, mask_BT) == 0.0


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
    found = policy_losses.adapt_kl_coef(0.1, kl, target=6.0, horizon=128, rows=64)
    assert found == pytest.approx(expected, rel=1e-9)
