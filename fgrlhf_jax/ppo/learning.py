"""The updates from one rollout: gradients of policy and critic by micro-batches."""

import functools

import jax
import jax.numpy as jnp
import optax

from fgrlhf_jax.ppo import micro_batches
from fgrlhf_jax.ppo.algorithm import (
    Experience,
    PPOSettings,
    Rollout,
    losses,
    make_experience,
)
from fgrlhf_jax.ppo.models import Architectures, Frozen, complete, parts_of
from fgrlhf_jax.ppo.scoring import predict
from fgrlhf_jax.runtime.optim import TrainState, apply_gradients, stop_gradients, update_rms


def minibatch_rows(key: jax.Array, rows: int, settings: PPOSettings) -> jax.Array:
    """int32[minibatches of all epochs, minibatch]: a fresh permutation for every epoch."""
    fold = functools.partial(jax.random.fold_in, key)
    keys = jax.vmap(fold)(jnp.arange(settings.ppo_epochs))
    order = jax.vmap(lambda k: jax.random.permutation(k, rows))(keys)
    return order.reshape(-1, settings.minibatch_size)


def tokens_of(batch: Experience) -> jax.Array:
    """Response tokens of a minibatch, at least 1."""
    return jnp.maximum(jnp.sum(batch.response_BT), 1)


def sum_gradients(
    params: dict,
    frozen: Frozen,
    batch: Experience,
    *,
    models: Architectures,
    settings: PPOSettings,
) -> tuple[dict, dict[str, jax.Array]]:
    """Gradients and metrics of a minibatch, of the parts that ``params`` has, by micro-batches."""
    parts, tokens = tuple(params), tokens_of(batch)

    def loss(params, rows, real, width):
        params = complete(stop_gradients(params, settings.freeze), frozen)
        part = micro_batches.take(batch, rows, width)
        part = part._replace(response_BT=part.response_BT & real[:, None])
        predictions = predict(params, part.rows, models=models, settings=settings)
        return losses(predictions, part, tokens, parts, settings)

    def gradient(rows, real, width):
        grads, (sums, maxima) = jax.grad(loss, has_aux=True)(params, rows, real, width)
        return (grads, sums), maxima

    def add(total, rows, real, width):
        sums, maxima = gradient(rows, real, width)
        added = jax.tree.map(jnp.add, total[0], sums)
        return added, jax.tree.map(jnp.maximum, total[1], maxima)

    one = jnp.zeros(1, jnp.int32), jnp.ones(1, bool)
    shapes = jax.eval_shape(lambda: gradient(*one, settings.widths[-1]))

    def zeros():
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    def every():
        return micro_batches.fold(add, zeros(), batch.rows.length_B, settings)

    # The compiler does not mix what is in a branch with the gradients of another part.
    (grads, sums), maxima = jax.lax.cond(jnp.any(batch.response_BT), every, zeros)
    return grads, sums | maxima


def update(
    state: TrainState,
    frozen: Frozen,
    rollout: Rollout,
    kl_coef: jax.Array,
    key: jax.Array,
    *,
    models: Architectures,
    settings: PPOSettings,
    optimizer: optax.GradientTransformation,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """All updates from one rollout: several epochs, in minibatches, in micro-batches.

    Policy and critic are updated one after the other, so that the activations and gradients of one
    of them are held at a time.

    Args:
      state: its ``params`` have "policy" and "critic".
      frozen: only what adapters are on is read.
      key: of this rollout; every epoch draws its own permutation from it.
      optimizer: ``programs.by_part``.

    Returns:
      The new state; the metrics of the rollout, and means over the minibatches.
      ``debug/initial_log_ratio`` and ``debug/initial_kl`` are of the first one, where the policy is
      still the one that sampled: both are 0 but for rounding.
    """
    static = {"models": models, "settings": settings}
    if settings.one_pass:
        state, rollout_metrics, metrics = update_in_one_pass(
            state, frozen, rollout, kl_coef, optimizer=optimizer, **static
        )
        metrics = jax.tree.map(lambda x: x[None], metrics)
    else:
        experience, rollout_metrics = make_experience(rollout, kl_coef, settings)

        def update_on(state: TrainState, rows):
            batch = jax.tree.map(lambda x: x[rows], experience)
            metrics = {}
            for names in parts_of(models):
                params = {name: state.params[name] for name in names}
                grads, new = sum_gradients(params, frozen, batch, **static)
                state, norms = apply_part(state, grads, optimizer, settings)
                metrics |= new | norms
            return state, metrics

        rows = minibatch_rows(key, experience.tokens_BS.shape[0], settings)
        state, metrics = jax.lax.scan(update_on, state, rows)
    first = {
        "debug/initial_log_ratio": metrics.pop("log_ratio_max")[0],
        "debug/initial_kl": metrics["policy/approx_kl"][0],
    }
    return state, rollout_metrics | jax.tree.map(jnp.mean, metrics) | first


def update_in_one_pass(
    state: TrainState,
    frozen: Frozen,
    rollout: Rollout,
    kl_coef: jax.Array,
    *,
    models: Architectures,
    settings: PPOSettings,
    optimizer: optax.GradientTransformation,
) -> tuple[TrainState, dict, dict]:
    """One update from a whole rollout, whose forward pass gives the old log-probabilities.

    They are those of the policy's loss, so that every ratio is 1; so are the values where policy
    and critic share states. A critic of its own follows, when the policy's activations are gone.

    Returns:
      The new state, the metrics of the rollout and those of the update.
    """
    static = {"models": models, "settings": settings}
    first, *others = parts_of(models)

    def apply(params):
        params = complete(stop_gradients(params, settings.freeze), frozen)
        return predict(params, rollout.rows, **static)

    predictions, backward = jax.vjp(apply, {name: state.params[name] for name in first})
    old = {"logprob_BT": predictions.logprob_BT}
    if "critic" in first:
        old["value_BT"] = predictions.value_BT
    experience, rollout_metrics = make_experience(rollout._replace(**old), kl_coef, settings)
    loss = functools.partial(losses, parts=first, settings=settings)
    gradient = jax.grad(loss, has_aux=True)
    cotangents, (sums, maxima) = gradient(predictions, experience, tokens_of(experience))
    state, norms = apply_part(state, *backward(cotangents), optimizer, settings)
    metrics = sums | maxima | norms
    # Always true, but known with the policy's gradients only: its activations are gone by then.
    is_next = metrics["policy/grad_norm"] != -1.0
    experience = experience._replace(response_BT=experience.response_BT & is_next)
    for names in others:
        params = {name: state.params[name] for name in names}
        grads, new = sum_gradients(params, frozen, experience, **static)
        state, norms = apply_part(state, grads, optimizer, settings)
        metrics |= new | norms
    return state, rollout_metrics, metrics


def apply_part(
    state: TrainState, grads: dict, optimizer: optax.GradientTransformation, settings: PPOSettings
) -> tuple[TrainState, dict[str, jax.Array]]:
    """The state after a step of the parts that have gradients; norms of these, sizes of updates.

    The critic's norm is the one that is clipped: without ``value_coef``, as its optimizer has it.
    """
    part = TrainState(*({name: tree[name] for name in grads} for tree in state))
    part = apply_gradients(part, grads, optimizer)
    groups = {"policy": "policy", "critic": "value"}
    weights, metrics = {"policy": 1.0, "critic": settings.value_coef or 1.0}, {}
    for name, grad in grads.items():
        metrics[f"{groups[name]}/grad_norm"] = optax.tree.norm(grad) / weights[name]
        metrics[f"{groups[name]}/update_rms"] = update_rms(part.opt_state[name])
    return TrainState(state.params | part.params, state.opt_state | part.opt_state), metrics
