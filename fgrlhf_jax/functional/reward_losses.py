"""Losses of reward models, as pure functions. One formula each; every function takes ONE pair.

Callers ``vmap`` over the batch. S are the columns of a padded row (prompt, response and padding); a
leading "2" are the two sides of a pair, 0 the preferred or edited response (the paper's i) and 1
the other (j). In all functions ``reward`` are float rewards per token, ``response`` and ``changed``
are bool masks of response tokens and of those that the edit changed (the paper's U1). Equations are
those of Xu et al. 2024, "Aligning Large Language Models via Fine-grained Supervision".
"""

import chex
import jax
import jax.numpy as jnp

from fgrlhf_jax.functional.masking import check, last_token, masked_mean, masked_sum

LOSSES = ("token_edit", "token_full", "tlcr", "sequence")
SCALES = ("score", "reward")
CENTER_WEIGHT = 100.0

_EPS = 1e-6  # smallest probability whose logarithm is taken


def last_score(reward_S: jax.Array, response_S: jax.Array) -> jax.Array:
    """Sequence score: the value at the last of at least one response token, never at padding."""
    check(1, reward_S, response_S)
    return reward_S[jnp.argmax(last_token(response_S))]


def mean_score(reward_S: jax.Array, response_S: jax.Array) -> jax.Array:
    """Equation 1: R = (1/T) sum_t r_t over the response's own T tokens."""
    check(1, reward_S, response_S)
    return masked_mean(reward_S, response_S)


def edit_score(reward_S: jax.Array, changed_S: jax.Array, response_S: jax.Array) -> jax.Array:
    """One side of Equation 4: (1/T) sum of r_t over the changed tokens U1; 0 if U1 is empty.

    T is the number of response tokens, of which U1 is a subset.
    """
    check(1, reward_S, changed_S, response_S)
    return masked_sum(reward_S, changed_S) / jnp.maximum(jnp.sum(response_S), 1)


def bradley_terry_loss(score_i: jax.Array, score_j: jax.Array) -> jax.Array:
    """Equations 2 and 3: -log sigmoid(R_i - R_j), i preferred; stable for any difference."""
    return -jax.nn.log_sigmoid(score_i - score_j)


def consistency(reward_2S: jax.Array, partner_S: jax.Array) -> jax.Array:
    """Mean of (r^i_t - r^j_t')^2 over matched pairs of unchanged tokens; 0 if there are none.

    ``partner_S`` is int: for a column of side 0 the matched column of side 1, or -1.
    """
    chex.assert_shape(reward_2S, (2, *partner_S.shape))
    chex.assert_rank(partner_S, 1)
    chex.assert_type([reward_2S, partner_S], [float, int])
    matched_S = partner_S >= 0
    difference_S = reward_2S[0] - reward_2S[1][jnp.maximum(partner_S, 0)]
    # Masked before it is squared: the gradient of a square at NaN is NaN, masked or not.
    return masked_mean(jnp.square(jnp.where(matched_S, difference_S, 0.0)), matched_S)


def center(
    reward_2S: jax.Array, response_2S: jax.Array, changed_2S: jax.Array, scale: str = "score"
) -> jax.Array:
    """Mean of (r_t / T)^2 over the unchanged tokens (U0) of both sides; 0 if there are none.

    Equation 4 does not train these rewards, but PPO reads every token; this term keeps them near 0.
    It penalises what an unchanged token adds to the score, r_t / T, since rewards grow with the
    length T of a response. ``scale="reward"`` penalises r_t itself.
    """
    if scale not in SCALES:
        raise ValueError(f"scale {scale!r} is not one of {SCALES}")
    check(2, reward_2S, response_2S, changed_2S)
    unchanged_2S = response_2S & ~changed_2S
    squares_2 = jnp.sum(jnp.square(jnp.where(unchanged_2S, reward_2S, 0.0)), axis=1)
    if scale == "score":
        squares_2 /= jnp.square(jnp.maximum(jnp.sum(response_2S, axis=1), 1))
    return jnp.sum(squares_2) / jnp.maximum(jnp.sum(unchanged_2S), 1)


def pessimistic_reward(reward_N: jax.Array, penalty: float) -> jax.Array:
    """An ensemble's reward, mean_n r_n - penalty std_n r_n: lower where its models disagree.

    The rewards are float, of N models on one scale, with any axes after the first; std is over N,
    not N - 1. ``penalty=0`` gives the mean; 1, with two models, the lower reward. Coste et al. 2023
    (arXiv:2310.02743) subtract the variance instead.
    """
    chex.assert_type(reward_N, float)
    return jnp.mean(reward_N, axis=0) - penalty * jnp.std(reward_N, axis=0)


def tlcr_loss(reward_2S: jax.Array, response_2S: jax.Array, changed_2S: jax.Array) -> jax.Array:
    """TLCR (Yoon et al. 2024, arXiv:2407.16574): cross-entropy of a discriminator of tokens.

    The reward is r_t = 2 D_t - 1, where D_t is the probability that the edit inserted the token.
    The loss is the mean cross-entropy of D_t and a label: 1 for inserted tokens, 0 for removed
    tokens, 1/2 for kept tokens. At its minimum r_t = P(inserted) - P(removed), in (-1, 1).
    """
    check(2, reward_2S, response_2S, changed_2S)
    label_21 = jnp.array([[1.0], [0.0]])
    label_2S = jnp.where(changed_2S, label_21, 0.5)
    reward_2S = jnp.where(response_2S, reward_2S, 0.0)  # the gradient at NaN is NaN, masked or not
    prob_2S = jnp.clip((1.0 + reward_2S) / 2, _EPS, 1.0 - _EPS)
    loss_2S = -label_2S * jnp.log(prob_2S) - (1.0 - label_2S) * jnp.log1p(-prob_2S)
    return masked_mean(loss_2S, response_2S)


def pair_scores(reward_2S, response_2S, changed_2S, loss: str) -> jax.Array:
    """The scores float[2] that ``loss`` compares; for tlcr those of Equation 1."""
    if loss == "sequence":
        return jax.vmap(last_score)(reward_2S, response_2S)
    if loss in ("token_full", "tlcr"):
        return jax.vmap(mean_score)(reward_2S, response_2S)
    if loss == "token_edit":
        return jax.vmap(edit_score)(reward_2S, changed_2S, response_2S)
    raise ValueError(f"loss {loss!r} is not one of {LOSSES}")


def reward_model_loss(
    reward_2S: jax.Array,
    response_2S: jax.Array,
    changed_2S: jax.Array,
    partner_S: jax.Array,
    *,
    loss: str,
    consistency_weight: float = 0.0,
    center_weight: float = CENTER_WEIGHT,
    center_scale: str = "score",
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Loss of one pair: Bradley-Terry on the scores of ``loss``, plus the two regularisers.

    ``loss="tlcr"`` has the cross-entropy of :func:`tlcr_loss` instead of Bradley-Terry.

    The regularisers are means within the pair, so the batch loss is a mean over pairs and gradient
    accumulation over micro-batches is exact. They apply to the token losses only. In a preference
    pair every response token is marked as changed: Equation 4 equals Equation 3, without centring.

    Args:
      partner_S: as for :func:`consistency`.
      loss: one of ``LOSSES``; ``token_edit`` with both weights 0 is exactly Equation 4.
      center_scale: one of ``SCALES``, see :func:`center`.

    Returns:
      The scalar loss, and scalars: ``preference_loss``, ``reward/consistency_penalty``,
      ``reward/center_penalty``, ``reward/margin`` (R_i - R_j) and ``accuracy`` (1, 0, or one half
      for a tie).
    """
    score_2 = pair_scores(reward_2S, response_2S, changed_2S, loss)
    if loss == "tlcr":
        preference_loss = tlcr_loss(reward_2S, response_2S, changed_2S)
    else:
        preference_loss = bradley_terry_loss(score_2[0], score_2[1])
    total = preference_loss
    margin = score_2[0] - score_2[1]
    metrics = {
        "preference_loss": preference_loss,
        "reward/margin": margin,
        "accuracy": 0.5 * (1.0 + jnp.sign(margin)),
    }
    if loss != "sequence":
        consistency_penalty = consistency(reward_2S, partner_S)
        center_penalty = center(reward_2S, response_2S, changed_2S, center_scale)
        metrics["reward/consistency_penalty"] = consistency_penalty
        metrics["reward/center_penalty"] = center_penalty
        total += consistency_weight * consistency_penalty + center_weight * center_penalty
    return total, metrics
