"""RLOO and GRPO on small worlds whose every response can be written down, and against loops."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from policy_cases import draw, pad

from fgrlhf_jax.functional import policy_losses

LENGTHS = (4, 1, 7, 5)


def returns_of(rewards, gamma: float) -> list[float]:
    """sum over s >= t of gamma^(s - t) r_s, as it stands."""
    count = len(rewards)
    return [sum(gamma ** (s - t) * rewards[s] for s in range(t, count)) for t in range(count)]


@pytest.mark.parametrize("gamma", [1.0, 0.9])
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_leave_one_out_is_a_loop(gamma, level):
    rewards = draw(3, LENGTHS)
    if level == "sequence":
        rewards = [[0.0] * (len(row) - 1) + row[-1:] for row in rewards]
    reward_KT, mask_KT = pad(rewards, 7)
    return_KT = jax.vmap(functools.partial(policy_losses.return_to_go, gamma=gamma))(
        reward_KT, mask_KT
    )
    ended = [row[-1] if level == "sequence" else 0.0 for row in rewards]
    found_KT = policy_losses.leave_one_out(return_KT, mask_KT, jnp.array(ended))
    returns = [returns_of(row, gamma) for row in rewards]
    for k, own in enumerate(returns):
        for t, value in enumerate(own):
            others = [
                row[t] if t < len(row) else ended[j] for j, row in enumerate(returns) if j != k
            ]
            assert float(found_KT[k, t]) == pytest.approx(value - sum(others) / 3, abs=1e-5)
    assert not np.asarray(found_KT)[~mask_KT].any()


# A world of two tokens: 0 ends the response, 1 and 2 go on to a second and last one

STATES = ((), (1,), (2,))
RESPONSES = [(0,), *itertools.product((1, 2), (0, 1, 2))]
LOGITS = jnp.array([[0.3, -0.2, 0.5], [0.1, 0.9, -0.4], [-0.6, 0.2, 0.0]])
REWARDS = np.random.default_rng(0).normal(1.0, 1.0, (3, 3)).astype(np.float32)


def arrays(response) -> tuple[list, list, list]:
    """States, actions and rewards of the two columns; which are real."""
    states = [0, STATES.index(response[:1])] if len(response) == 2 else [0, 0]
    actions, real = [*response, 0][:2], [True, len(response) == 2]
    return (
        states,
        actions,
        [REWARDS[s, a] * r for s, a, r in zip(states, actions, real, strict=True)],
        real,
    )


STATE_RT, ACTION_RT, REWARD_RT, REAL_RT = map(jnp.array, zip(*map(arrays, RESPONSES), strict=True))


def logprob_of(logits) -> jax.Array:
    """float32[R, 2], of every token of every response; 0 where there is none."""
    return jnp.where(REAL_RT, jax.nn.log_softmax(logits)[STATE_RT, ACTION_RT], 0.0)


def true_gradient(total_R: jax.Array) -> jax.Array:
    """Of the expected reward of a response."""
    return jax.grad(lambda x: jnp.sum(jnp.exp(logprob_of(x).sum(axis=1)) * total_R))(LOGITS)


def expected_gradient(advantages, samples: int) -> jax.Array:
    """Of minus the clipped loss over every group of samples, each as often as it is drawn."""
    old_RT = logprob_of(LOGITS)
    groups_GK = jnp.array(list(itertools.product(range(len(RESPONSES)), repeat=samples)))
    weight_G = jnp.exp(old_RT.sum(axis=1)[groups_GK].sum(axis=1))
    advantage_GKT = jax.vmap(lambda rows: advantages(REWARD_RT[rows], REAL_RT[rows]))(groups_GK)

    def gain(logits):
        new_GKT = logprob_of(logits)[groups_GK]
        loss_GKT, _ = policy_losses.policy_loss(new_GKT, old_RT[groups_GK], advantage_GKT, 0.2)
        return -jnp.sum(weight_G * loss_GKT.sum(axis=2).mean(axis=1))

    return jax.grad(gain)(LOGITS)


def to_go(reward_KT, real_KT):
    return jax.vmap(functools.partial(policy_losses.return_to_go, gamma=1.0))(reward_KT, real_KT)


@pytest.mark.parametrize("samples", [2, 3])
def test_rloo_expects_the_true_gradient(samples):
    """Of token rewards, and of scores of whole responses, whatever their lengths."""

    def of_tokens(reward_KT, real_KT):
        ended_K = jnp.zeros(len(real_KT))
        return policy_losses.leave_one_out(to_go(reward_KT, real_KT), real_KT, ended_K)

    def of_scores(reward_KT, real_KT):
        total_K = reward_KT.sum(axis=1)
        return policy_losses.leave_one_out(
            jnp.where(real_KT, total_K[:, None], 0.0), real_KT, total_K
        )

    expected = true_gradient(REWARD_RT.sum(axis=1))
    for advantages in (of_tokens, of_scores):
        np.testing.assert_allclose(expected_gradient(advantages, samples), expected, atol=2e-6)
    biased = expected_gradient(
        lambda r, m: to_go(r, m) - to_go(r, m).mean(axis=0, keepdims=True), samples
    )
    assert np.abs(biased - expected).max() > 0.01


@pytest.mark.parametrize("samples", [2, 4])
def test_grpo_expects_the_gradient_of_a_success_over_its_deviation(samples):
    """Scores of 0 and 1 with chance p: E[std of a group] / (p (1 - p)) times the gradient of p."""
    success_R = jnp.array([r[-1] == 1 for r in RESPONSES], jnp.float32)
    at_end_RT = success_R[:, None] * policy_losses.last_token(REAL_RT)
    chance = float(jnp.sum(jnp.exp(logprob_of(LOGITS).sum(axis=1)) * success_R))

    def advantages(reward_KT, real_KT):
        last_KT = policy_losses.last_token(real_KT)
        return to_go(policy_losses.whiten(reward_KT, last_KT), real_KT)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"{__name__}.REWARD_RT", at_end_RT)
        found = expected_gradient(advantages, samples)
    deviation = sum(
        math.comb(samples, n)
        * chance**n
        * (1 - chance) ** (samples - n)
        * math.sqrt(n / samples * (1 - n / samples))
        for n in range(samples + 1)
    )
    expected = deviation / (chance * (1 - chance)) * true_gradient(success_R)
    np.testing.assert_allclose(found, expected, atol=1e-5)
