"""Log-probabilities of chosen input tokens under a language model."""

import jax
import jax.numpy as jnp

from fgrlhf_jax.functional.policy_losses import logprob_and_entropy
from fgrlhf_jax.models.heads import CausalLM, next_tokens_at


def token_logprobs(
    params: dict,
    model: CausalLM,
    inputs: tuple[jax.Array, jax.Array, jax.Array],
    previous_BT: jax.Array,
    columns_BT: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Log-probability of each token, float32[B, T] in nats; whether it is the most likely, bool.

    ``columns_BT`` int32 are the columns of the tokens, ``previous_BT`` those before each, whose
    states give the logits; the other arguments are those of ``heads.next_tokens_at``.
    """
    _, logits_BTV = next_tokens_at(model, params, inputs, previous_BT)
    token_BT = jnp.take_along_axis(inputs[0], columns_BT, axis=1)
    logprob_BT, _ = jax.vmap(logprob_and_entropy)(logits_BTV, token_BT)
    logit_BT = jnp.take_along_axis(logits_BTV, token_BT[..., None], axis=-1)[..., 0]
    return logprob_BT, logit_BT >= jnp.max(logits_BTV, axis=-1)
