"""Supervised fine-tuning: one pure train step, its loss on the response only."""

import functools

import jax
import jax.numpy as jnp
import optax

from fgrlhf_jax.functional import reward_losses
from fgrlhf_jax.models.llama import CausalLM, positions_and_mask
from fgrlhf_jax.runtime.optim import TrainState


def token_sums(params: dict, batch: dict, *, model: CausalLM) -> dict[str, jax.Array]:
    """Sums over the real response tokens of a batch: ``loss``, ``accuracy`` and ``tokens``.

    Args:
      batch: the arrays of ``demonstrations.pad_demonstrations``.

    Returns:
      float32 scalars: negative log-likelihood in nats, tokens that greedy decoding would have
      taken, and how many tokens there are. Rows of weight 0 count nothing.
    """
    tokens_BS = batch["tokens_BS"]
    where = positions_and_mask(batch["mask_BS"])
    logits_BSV = model.apply({"params": params}, tokens_BS, *where)
    logprob_BS = jax.vmap(reward_losses.token_logprobs)(logits_BSV, tokens_BS)
    greedy_BS = jnp.pad(jnp.argmax(logits_BSV, axis=-1), ((0, 0), (1, 0)))[:, :-1]
    counted_BS = _counted(batch)

    def total(x_BS):
        return jnp.sum(jnp.where(counted_BS, x_BS, 0.0))

    return {
        "loss": total(-logprob_BS),
        "accuracy": total(greedy_BS == tokens_BS),
        "tokens": total(jnp.float32(1)),
    }


def _counted(batch: dict) -> jax.Array:
    """bool[..., B, S]: the response tokens of rows that weigh anything."""
    return batch["response_BS"] & (batch["weight_B"] > 0)[..., None]


def train_step(
    state: TrainState,
    batch: dict,
    *,
    model: CausalLM,
    optimizer: optax.GradientTransformation,
) -> tuple[TrainState, dict]:
    """One update from micro-batches [A, B, ...]: the mean over all their response tokens.

    Returns:
      The new state, and float32 scalars: loss (nats a token), accuracy, grad_norm.
    """
    tokens = jnp.maximum(jnp.sum(_counted(batch)), 1)

    def share(params, micro):
        sums = token_sums(params, micro, model=model)
        return sums["loss"] / tokens, sums

    def accumulate(total, micro):
        grads, sums = jax.grad(share, has_aux=True)(state.params, micro)
        return jax.tree.map(jnp.add, total, grads), sums

    zeros = jax.tree.map(jnp.zeros_like, state.params)
    grads, sums_A = jax.lax.scan(accumulate, zeros, batch)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    metrics = {name: jnp.sum(sums_A[name]) / tokens for name in ("loss", "accuracy")}
    metrics["grad_norm"] = optax.tree.norm(grads)
    return TrainState(optax.apply_updates(state.params, updates), opt_state), metrics


@functools.partial(jax.jit, static_argnames="model")
def eval_step(params: dict, batch: dict, *, model: CausalLM) -> dict[str, jax.Array]:
    """:func:`token_sums`, compiled."""
    return token_sums(params, batch, model=model)
