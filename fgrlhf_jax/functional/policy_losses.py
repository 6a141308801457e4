"""Policy optimisation as pure functions: rewards, advantages, losses. Each takes ONE response.

Callers ``vmap`` over the batch. Exceptions: ``whiten``, ``masked_mean`` and ``explained_variance``
take the whole batch, ``leave_one_out`` the K samples of one prompt. A response has T columns; its
mask is True on the real tokens, which come first. Values beyond them, even NaN, affect no result.
"""

import chex
import jax
import jax.numpy as jnp

from fgrlhf_jax.functional.masking import last_token, masked_mean

KL_ESTIMATORS = ("k1", "k3", "k1_clipped")
MISSING_EOS = ("none", "replace", "subtract")


def whiten(x: jax.Array, mask: jax.Array, *, shift_mean: bool = True) -> jax.Array:
    """(x - mu) * rsqrt(var + 1e-8) where ``mask``, 0 elsewhere; mu and var over ``mask`` only.

    ``shift_mean=False`` adds mu again, so that the variance becomes one and the mean stays, as
    AlpacaFarm whitens rewards. Applied to the rewards [K, T] of one prompt's samples this is GRPO's
    normalization (Shao et al. 2024, arXiv:2402.03300): over all tokens for token rewards (Section
    4.1.3), over the last tokens for sequence rewards (4.1.2).
    """
    mean = masked_mean(x, mask)
    variance = masked_mean(jnp.square(jnp.where(mask, x - mean, 0.0)), mask)
    whitened = (x - mean) * jax.lax.rsqrt(variance + 1e-8)
    return jnp.where(mask, whitened if shift_mean else whitened + mean, 0.0)


def kl_estimate(logprob_T: jax.Array, ref_logprob_T: jax.Array, estimator: str) -> jax.Array:
    """Per-token estimate of KL(policy || reference) from the sampled tokens.

    With d = log p - log p_ref: k1 is d, unbiased; k3 is exp(-d) - 1 + d, unbiased and never
    negative (Schulman 2020, "Approximating KL divergence"); k1_clipped is max(d, 0), AlpacaFarm's.
    """
    chex.assert_equal_shape([logprob_T, ref_logprob_T])
    difference_T = logprob_T - ref_logprob_T
    if estimator == "k1":
        return difference_T
    if estimator == "k3":
        return jnp.expm1(-difference_T) + difference_T
    if estimator == "k1_clipped":
        return jnp.maximum(difference_T, 0.0)
    raise ValueError(f"KL estimator {estimator!r} is not one of {KL_ESTIMATORS}")


def missing_eos(
    reward_T: jax.Array, response_T: jax.Array, finished: jax.Array, *, rule: str, penalty: float
) -> jax.Array:
    """Rewards after the rule for responses that were cut at the length limit.

    Args:
      reward_T: float32 rewards, 0 beyond the response.
      finished: bool scalar; the rewards of a finished response stay as they are.
      rule: ``none``; ``replace``: all rewards are 0 except ``penalty`` at the last token;
        ``subtract``: ``penalty``, usually negative, is added to the last token's reward.
    """
    chex.assert_equal_shape([reward_T, response_T])
    penalty_T = jnp.where(last_token(response_T), penalty, 0.0)
    if rule == "none":
        return reward_T
    if rule == "replace":
        return jnp.where(finished, reward_T, penalty_T)
    if rule == "subtract":
        return reward_T + jnp.where(finished, 0.0, penalty_T)
    raise ValueError(f"missing_eos {rule!r} is not one of {MISSING_EOS}")


def reward_vector(
    reward_T: jax.Array, kl_T: jax.Array, response_T: jax.Array, kl_coef: jax.Array | float
) -> jax.Array:
    """[R_1 - beta KL_1, ..., R_T - beta KL_T] (Xu et al. 2024, Section 2.2), 0 in padding.

    A sequence-level reward R is at the last token only: [-beta KL_1, ..., R - beta KL_T].
    """
    chex.assert_equal_shape([reward_T, kl_T, response_T])
    chex.assert_type([reward_T, kl_T, response_T], [jnp.float32, jnp.float32, bool])
    return jnp.where(response_T, reward_T - kl_coef * kl_T, 0.0)


def gae(
    reward_T: jax.Array, value_T: jax.Array, response_T: jax.Array, gamma: float, lam: float
) -> tuple[jax.Array, jax.Array]:
    """Generalised advantage estimation (Schulman et al. 2016, arXiv:1506.02438, Equation 16).

    delta_t = r_t + gamma V_{t+1} - V_t and A_t = delta_t + gamma lam A_{t+1}; beyond the last real
    token both V and A are 0. Returns advantage_T and return_T = A_t + V_t, float32, 0 beyond the
    last token.
    """
    chex.assert_equal_shape([reward_T, value_T, response_T])
    chex.assert_rank(reward_T, 1)
    chex.assert_type([reward_T, value_T, response_T], [jnp.float32, jnp.float32, bool])
    reward_T = jnp.where(response_T, reward_T, 0.0)
    value_T = jnp.where(response_T, value_T, 0.0)
    next_value_T = jnp.append(value_T[1:], jnp.float32(0))
    delta_T = reward_T + gamma * next_value_T - value_T

    def backwards(advantage, delta):
        advantage = delta + gamma * lam * advantage
        return advantage, advantage

    _, advantage_T = jax.lax.scan(backwards, jnp.float32(0), delta_T, reverse=True)
    advantage_T = jnp.where(response_T, advantage_T, 0.0)
    return advantage_T, advantage_T + value_T


def return_to_go(reward_T: jax.Array, response_T: jax.Array, gamma: float) -> jax.Array:
    """G_t = r_t + gamma G_{t+1}, float32[T], 0 beyond the last real token."""
    return gae(reward_T, jnp.zeros_like(reward_T), response_T, gamma, 1.0)[0]


def leave_one_out(return_KT: jax.Array, response_KT: jax.Array, ended_K: jax.Array) -> jax.Array:
    """Advantages of RLOO (Ahmadian et al. 2024, arXiv:2402.14740, Section 3.3) per position.

    A^i_t = G^i_t - 1 / (K - 1) sum_{j != i} G^j_t. The baseline depends on the other samples only,
    so the gradient is unbiased.

    Args:
      return_KT: float32, :func:`return_to_go` of the K >= 2 samples of one prompt.
      response_KT: bool, True on real tokens.
      ended_K: float32, the value of a sample beyond its end, for the others' baseline. With token
        rewards 0, its return to go; with sequence rewards its score, which gives exactly the
        paper's RLOO.
    """
    chex.assert_equal_shape([return_KT, response_KT])
    chex.assert_rank(return_KT, 2)
    chex.assert_axis_dimension_gt(return_KT, 0, 1)
    return_KT = jnp.where(response_KT, return_KT, ended_K[:, None])
    sum_others_KT = jnp.sum(return_KT, axis=0, keepdims=True) - return_KT
    return jnp.where(response_KT, return_KT - sum_others_KT / (return_KT.shape[0] - 1), 0.0)


def policy_loss(
    logprob_T: jax.Array, old_logprob_T: jax.Array, advantage_T: jax.Array, clip: float
) -> tuple[jax.Array, jax.Array]:
    """max(-A rho, -A clip(rho, 1 - eps, 1 + eps)) per token (Schulman et al. 2017, 1707.06347).

    Returns the loss of every token, and bool: whether the clipped branch is the larger one.
    """
    chex.assert_equal_shape([logprob_T, old_logprob_T, advantage_T])
    ratio_T = jnp.exp(logprob_T - old_logprob_T)
    unclipped_T = -advantage_T * ratio_T
    clipped_T = -advantage_T * jnp.clip(ratio_T, 1.0 - clip, 1.0 + clip)
    return jnp.maximum(unclipped_T, clipped_T), clipped_T > unclipped_T


def value_loss(
    value_T: jax.Array, old_value_T: jax.Array, return_T: jax.Array, clip: float
) -> tuple[jax.Array, jax.Array]:
    """1/2 max((V - G)^2, (V_clip - G)^2) per token, V_clip within ``clip`` of the old value.

    Returns the loss of every token, and bool: whether the clipped branch is the larger one.
    """
    chex.assert_equal_shape([value_T, old_value_T, return_T])
    clipped_value_T = jnp.clip(value_T, old_value_T - clip, old_value_T + clip)
    unclipped_T, clipped_T = jnp.square(value_T - return_T), jnp.square(clipped_value_T - return_T)
    return 0.5 * jnp.maximum(unclipped_T, clipped_T), clipped_T > unclipped_T


@jax.custom_vjp
def logprob_and_entropy(logits_TV: jax.Array, token_T: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Log-probability of each token, and entropy of its distribution, in nats, both float32[T].

    The entropy has no gradient. The backward pass (one-hot minus probabilities) keeps the logits
    only. These are float, already divided by any temperature; tokens are int.
    """
    return _logprob_and_entropy(logits_TV, token_T)[0]


def _logprob_and_entropy(logits_TV, token_T):
    chex.assert_shape(logits_TV, (*token_T.shape, None))
    chex.assert_rank(token_T, 1)
    logits_TV = logits_TV.astype(jnp.float32)
    logsumexp_T = jax.nn.logsumexp(logits_TV, axis=-1)
    logit_T = jnp.take_along_axis(logits_TV, token_T[:, None], axis=-1)[:, 0]
    surprise_TV = logsumexp_T[:, None] - logits_TV
    probability_TV = jnp.exp(-surprise_TV)
    entropy_T = jnp.sum(jnp.where(probability_TV > 0, probability_TV * surprise_TV, 0.0), axis=-1)
    return (logit_T - logsumexp_T, entropy_T), (logits_TV, logsumexp_T, token_T)


def _logits_gradient(residuals, cotangents):
    (logits_TV, logsumexp_T, token_T), (d_logprob_T, _) = residuals, cotangents
    columns_1V = jnp.arange(logits_TV.shape[-1])[None]
    one_hot_TV = (columns_1V == token_T[:, None]).astype(jnp.float32)
    return d_logprob_T[:, None] * (one_hot_TV - jnp.exp(logits_TV - logsumexp_T[:, None])), None


logprob_and_entropy.defvjp(_logprob_and_entropy, _logits_gradient)


def kl_to_target(logits_TV: jax.Array, target_logits_TV: jax.Array) -> jax.Array:
    """KL(target || policy) over the whole vocabulary at each position, in nats, float32[T].

    sum_a p(a) (log p(a) - log q(a)), p and q the softmax of ``target_logits_TV`` and ``logits_TV``.
    """
    chex.assert_equal_shape([logits_TV, target_logits_TV])
    target_TV, logprob_TV = (
        jax.nn.log_softmax(x.astype(jnp.float32)) for x in (target_logits_TV, logits_TV)
    )
    probability_TV = jnp.exp(target_TV)
    difference_TV = jnp.where(probability_TV > 0, target_TV - logprob_TV, 0.0)
    return jnp.sum(probability_TV * difference_TV, axis=-1)


def explained_variance(value: jax.Array, target: jax.Array, mask: jax.Array) -> jax.Array:
    """1 - Var(G - V) / Var(G) over ``mask``; 0 if the target G is constant."""

    def variance(x):
        return masked_mean(jnp.square(jnp.where(mask, x - masked_mean(x, mask), 0.0)), mask)

    chex.assert_equal_shape([value, target, mask])
    total = variance(target)
    # In float32 the mean of equal numbers is not exactly that number.
    varies = total > 1e-10 * masked_mean(jnp.square(jnp.where(mask, target, 0.0)), mask)
    unexplained = variance(target - value) / jnp.where(varies, total, 1.0)
    return jnp.where(varies, 1.0 - unexplained, 0.0)


def correlation(x_B: jax.Array, y_B: jax.Array) -> jax.Array:
    """Pearson's r of two float32[B]; 0 if one of them is constant."""

    def normalize(v_B):
        centred_B = v_B - jnp.mean(v_B)
        norm = jnp.linalg.norm(centred_B)
        varies = norm > 1e-5 * jnp.linalg.norm(v_B)
        return jnp.where(varies, centred_B / jnp.where(varies, norm, 1.0), 0.0)

    return jnp.sum(normalize(x_B) * normalize(y_B))


def adapt_kl_coef(kl_coef: float, kl: float, *, target: float, horizon: float, rows: int) -> float:
    """The next coefficient of an adaptive controller (Ziegler et al. 2019, arXiv:1909.08593).

    beta * (1 + clip(KL / target - 1, -0.2, 0.2) * rows / horizon)

    ``kl`` is in nats per response; ``horizon`` is the number of responses over which to adapt,
    ``rows`` the number in this rollout.
    """
    error = min(max(kl / target - 1.0, -0.2), 0.2)
    return kl_coef * (1.0 + error * rows / horizon)
