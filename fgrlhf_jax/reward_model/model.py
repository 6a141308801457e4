"""The reward model: ``score_tokens``, the only interface for other modules.

A reward model gives every token a value, read from the state *at* that token (after the action).
Its ``level`` defines the meaning: in "token" models each value is a reward, in "sequence" models
the value at the last token is the score of the whole response.
"""

import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from fgrlhf_jax.functional.masking import last_token
from fgrlhf_jax.models import lora
from fgrlhf_jax.models.heads import TokenValueModel, positions_and_mask


class Normalization(NamedTuple):
    """Scales raw rewards to about one unit per response (normalized rewards, for PPO)."""

    mean: float  # of the scores (sequence level) or of all tokens' rewards (token level)
    std: float  # of the scores, or of the responses' centred sums


def level_of(loss: str) -> str:
    """ "sequence" for the sequence loss, "token" for the others."""
    return "sequence" if loss == "sequence" else "token"


@functools.partial(jax.jit, static_argnames=("model", "level"))
def score_tokens(
    params: dict, tokens_BS, mask_BS, *, model: TokenValueModel, level: str
) -> jax.Array:
    """The reward of every token, before normalization: float32[B, S], 0 in padding.

    Use only the columns of response tokens.

    Args:
      params: parameters of ``model``.
      tokens_BS: int token ids of prompt and response, padded on either side.
      mask_BS: bool, True on real tokens.
      level: "token", or "sequence": the score at the last real token, 0 elsewhere.
    """
    chex.assert_equal_shape([tokens_BS, mask_BS])
    chex.assert_type([tokens_BS, mask_BS], [int, bool])
    value_BS = model.apply(lora.variables(params), tokens_BS, *positions_and_mask(mask_BS))
    return jnp.where(last_token(mask_BS) if level == "sequence" else mask_BS, value_BS, 0.0)


def normalize_rewards(
    reward_BT, response_BT, normalization: Normalization, *, level: str
) -> jax.Array:
    """Normalized rewards: (r - mean) / std on response tokens, for "sequence" on the last one.

    Args:
      reward_BT: float32 from :func:`score_tokens`.
      response_BT: bool, True on response tokens, which end a row's real tokens.
      normalization: from :func:`fit_normalization`.
      level: as for :func:`score_tokens`.
    """
    if level == "sequence":
        response_BT = last_token(response_BT)
    return jnp.where(response_BT, (reward_BT - normalization.mean) / normalization.std, 0.0)


def fit_normalization(rewards: list[np.ndarray], *, level: str) -> Normalization:
    """Fits the normalization to per-token values of responses, one float array [T] each (host).

    Sequence level: mean and standard deviation of the last values. Token level: the mean over all
    tokens, and the standard deviation of sum_t (r_t - mean) over responses. Without spread (one
    response) the standard deviation is taken as 1.
    """
    if level == "sequence":
        totals = np.array([r[-1] for r in rewards], np.float64)
        mean = float(totals.mean())
    else:
        mean = float(np.concatenate(rewards).mean(dtype=np.float64))
        totals = np.array([np.sum(r - mean, dtype=np.float64) for r in rewards])
    return Normalization(mean, float(totals.std()) or 1.0)
