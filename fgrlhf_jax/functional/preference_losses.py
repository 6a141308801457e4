"""Losses of a policy on pairs of responses, as pure functions. Each takes ONE pair.

Callers ``vmap`` over the batch. S are the tokens of a padded side; a leading "2" are the two sides,
0 the preferred or edited response (i) and 1 the other, the original (j). Log-probabilities are
float32, in nats, per token; values outside the masks, even NaN, have no effect. Masks are bool:
``response``, the response tokens, and ``changed``, those that an edit changed (U1; U0 are the
others). In a preference pair every token is in U1.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from fgrlhf_jax.functional.masking import check, masked_mean, masked_sum

LOSSES = ("dpo", "ddpo", "salt", "figa")
WITH_REFERENCE = ("dpo", "ddpo")


class TokenWeights(NamedTuple):
    """Weights of the four classes of tokens, for :func:`salt_loss` and :func:`figa_loss`."""

    inserted: float  # U1 of side i
    kept: float  # U0 of side i
    removed: float  # U1 of side j: their likelihood falls
    original: float  # U0 of side j


class PreferenceSettings(NamedTuple):
    """A loss and its parameters.

    Attributes:
      loss: one of ``LOSSES``.
      beta: for ``dpo`` and ``ddpo``, see :func:`dpo_loss`.
      gamma, normalize: for ``ddpo``, see :func:`dense_logprob`.
      weights: for ``salt`` and ``figa``.
      limit: for ``figa``, nats.
    """

    loss: str
    beta: float = 0.1
    gamma: float = 1.0
    normalize: bool = False
    weights: TokenWeights = TokenWeights(1.0, 1.0, 1.0, 0.0)
    limit: float = 0.6


def dpo_loss(logprob_2: jax.Array, ref_logprob_2: jax.Array, beta: float) -> jax.Array:
    """-log sigmoid(beta ((l_i - ref_i) - (l_j - ref_j))) (Rafailov et al. 2023, 2305.18290, Eq. 7).

    l and ref are log-probabilities of responses under policy and reference; the larger beta, above
    0, the closer the policy stays to the reference.
    """
    chex.assert_shape([logprob_2, ref_logprob_2], (2,))
    ratio_2 = logprob_2 - ref_logprob_2
    return -jax.nn.log_sigmoid(beta * (ratio_2[0] - ratio_2[1]))


def dense_logprob(
    logprob_S: jax.Array, response_S: jax.Array, changed_S: jax.Array, gamma: float, normalize: bool
) -> jax.Array:
    """Dense DPO's log-probability of a response: sum over U0 + gamma sum over U1.

    RLHF-V (Yu et al. 2024, 2312.00849, Eq. 3) divides it by N = |U0| + gamma |U1| (``normalize``),
    so that longer responses do not score higher; the authors' training code does not divide. With
    gamma = 1 the sum is the log-probability, and its :func:`dpo_loss` is DPO; normalized, it is DPO
    on means.
    """
    check(1, logprob_S, response_S, changed_S)
    weight_S = jnp.where(changed_S, gamma, 1.0)
    total = masked_sum(weight_S * logprob_S, response_S)
    return total / jnp.maximum(masked_sum(weight_S, response_S), 1e-6) if normalize else total


def unlikelihood(logprob_S: jax.Array) -> jax.Array:
    """-log(1 - p) of every token, p at most 1 - 1e-6 (Welleck et al. 2020, 1908.04319)."""
    return -jnp.log(-jnp.expm1(jnp.minimum(logprob_S, -1e-6)))


def salt_loss(
    logprob_2S: jax.Array, response_2S: jax.Array, changed_2S: jax.Array, weights: TokenWeights
) -> jax.Array:
    """SALT: likelihood of inserted and kept tokens, unlikelihood of removed ones, nats per token.

    Sequence alignment (un)likelihood training (Yao et al. 2023, 2310.05857, Section 3), with -log p
    and the :func:`unlikelihood` u:

        mean over i's tokens of (inserted on U1, kept on U0) (-log p)
        + mean over j's tokens of (removed u on U1, original (-log p) on U0)
    """
    check(2, logprob_2S, response_2S, changed_2S)
    logprob_2S = jnp.where(response_2S, logprob_2S, 0.0)
    edited_S = jnp.where(changed_2S[0], weights.inserted, weights.kept) * -logprob_2S[0]
    original_S = jnp.where(
        changed_2S[1],
        weights.removed * unlikelihood(logprob_2S[1]),
        weights.original * -logprob_2S[1],
    )
    return masked_mean(edited_S, response_2S[0]) + masked_mean(original_S, response_2S[1])


def figa_loss(
    logprob_2S: jax.Array,
    response_2S: jax.Array,
    changed_2S: jax.Array,
    weights: TokenWeights,
    limit: float,
) -> jax.Array:
    """FIGA: log-likelihood with negative weight on removed tokens (Guo et al. 2024, 2311.04072).

    -sum_t w_t log p_t / (number of tokens with w_t != 0), where w_t is ``inserted`` (alpha) and
    ``kept`` (gamma) on i, -``removed`` (beta) and ``original`` (0) on j. As in the authors' code a
    removed token counts only while its -log p is below ``limit`` nats: otherwise its likelihood
    would fall without bound.
    """
    check(2, logprob_2S, response_2S, changed_2S)
    loss_2S = -jnp.where(response_2S, logprob_2S, 0.0)
    removed_S = jnp.where(loss_2S[1] < limit, -weights.removed, 0.0)
    weight_2S = jnp.stack(
        [
            jnp.where(changed_2S[0], weights.inserted, weights.kept),
            jnp.where(changed_2S[1], removed_S, weights.original),
        ]
    )
    counted_2S = response_2S & (weight_2S != 0)
    return masked_mean(weight_2S * loss_2S, counted_2S)


def preference_loss(
    logprob_2S: jax.Array,
    response_2S: jax.Array,
    changed_2S: jax.Array,
    ref_logprob_22: jax.Array,
    settings: PreferenceSettings,
) -> tuple[jax.Array, dict[str, jax.Array], jax.Array]:
    """The loss ``settings.loss`` of one pair.

    Args:
      ref_logprob_22: float32, this function's third result for the reference; used by ``dpo`` and
        ``ddpo``.

    Returns:
      - the scalar loss;
      - scalar metrics: ``accuracy`` (1 if i is preferred, else 0; one half for a tie),
        ``logprob/chosen``, ``logprob/rejected`` (nats per response); with a reference also
        ``reward/chosen``, ``reward/rejected``, ``reward/margin`` (beta times the gain in the loss's
        log-probabilities) and ``reference_kl`` (the rejected response's loss in nats, an estimate
        of KL(reference || policy) if it was sampled from the reference);
      - float32[2, 2]: for each side the log-probability that the loss compares, and the plain sum.
    """
    sum_2 = jax.vmap(masked_sum)(logprob_2S, response_2S)
    margin_2, metrics = sum_2, {"logprob/chosen": sum_2[0], "logprob/rejected": sum_2[1]}
    score_2 = sum_2
    if settings.loss == "ddpo":
        score_2 = jax.vmap(dense_logprob, in_axes=(0, 0, 0, None, None))(
            logprob_2S, response_2S, changed_2S, settings.gamma, settings.normalize
        )
    if settings.loss in WITH_REFERENCE:
        loss = dpo_loss(score_2, ref_logprob_22[:, 0], settings.beta)
        margin_2 = settings.beta * (score_2 - ref_logprob_22[:, 0])
        metrics["reward/chosen"], metrics["reward/rejected"] = margin_2
        metrics["reward/margin"] = margin_2[0] - margin_2[1]
        metrics["reference_kl"] = ref_logprob_22[1, 1] - sum_2[1]
    elif settings.loss == "salt":
        loss = salt_loss(logprob_2S, response_2S, changed_2S, settings.weights)
    elif settings.loss == "figa":
        loss = figa_loss(logprob_2S, response_2S, changed_2S, settings.weights, settings.limit)
    else:
        raise ValueError(f"loss {settings.loss!r} is not one of {LOSSES}")
    metrics["accuracy"] = 0.5 * (1.0 + jnp.sign(margin_2[0] - margin_2[1]))
    return loss, metrics, jnp.stack([score_2, sum_2], axis=1)
