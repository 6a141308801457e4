"""The updates from one rollout: gradients of policy and critic by micro-batches."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from fgrlhf_jax.ppo.algorithm import (
    Experience,
    PPOSettings,
    Rollout,
    Rows,
    losses,
    make_experience,
    rows_of,
)
from fgrlhf_jax.ppo.models import Architectures, Frozen, merge_base, merge_frozen, parts_of
from fgrlhf_jax.ppo.scoring import Target, fold, predict
from fgrlhf_jax.runtime.optim import TrainState, apply_gradients, fill, update_rms, without_frozen

GROUPS = {"policy": "policy", "critic": "value"}  # part of the parameters: group of its metrics


def minibatch_rows(key: jax.Array, rows: int, settings: PPOSettings) -> jax.Array:
    """Row indices, int32[minibatches of all epochs, minibatch]; a new permutation every epoch."""
    keys = jax.vmap(functools.partial(jax.random.fold_in, key))(jnp.arange(settings.ppo_epochs))
    order = jax.vmap(lambda k: jax.random.permutation(k, rows))(keys)
    return order.reshape(-1, settings.minibatch_size)


def rl_loss(
    params: dict,
    batch: Experience,
    tokens: jax.Array,
    *,
    frozen: Frozen,
    target: Target | None,
    models: Architectures,
    settings: PPOSettings,
) -> tuple[jax.Array, tuple[dict, dict]]:
    """``algorithm.losses`` for the predictions of ``params`` and the parts that it contains."""
    all_params = merge_base(params, frozen)
    predictions = predict(all_params, rows_of(batch), target, models=models, settings=settings)
    return losses(predictions, batch, tokens, tuple(params), settings)


def imitation_loss(
    params: dict,
    rows: Rows,
    tokens: jax.Array,
    *,
    frozen: Frozen,
    models: Architectures,
    settings: PPOSettings,
) -> tuple[jax.Array, tuple[dict, dict]]:
    """``ptx_weight`` times the cross-entropy (nats per token, at temperature 1) of demonstrations.

    Ouyang et al. 2022, arXiv:2203.02155, Equation 2.
    """
    settings = dataclasses.replace(settings, temperature=1.0)
    predictions = predict(merge_base(params, frozen), rows, models=models, settings=settings)
    loss = jnp.sum(jnp.where(rows.response_BT, -predictions.logprob_BT, 0.0)) / tokens
    return settings.ptx_weight * loss, ({"ptx/loss": loss}, {})


def sum_gradients(
    params: dict, batch: Experience | Rows, objective: Callable, settings: PPOSettings
) -> tuple[dict, dict[str, jax.Array]]:
    """Gradients and metrics of a minibatch, accumulated over micro-batches, for ``params``' parts.

    ``objective`` is (params, rows of the batch, response tokens of the batch) -> loss, (sums,
    maxima); the losses of all micro-batches sum to the loss of the minibatch. Frozen parameters
    have None as gradient. Unlike ``supervised.train_step``, micro-batches have several widths.
    """
    trained = without_frozen(params, settings.freeze)
    tokens = jnp.maximum(jnp.sum(batch.response_BT), 1)

    def loss(trained, part):
        return objective(fill(trained, params), part, tokens)

    def add(total, part, _, is_real):
        part = part._replace(response_BT=part.response_BT & is_real[:, None])
        grads, (sums, maxima) = jax.grad(loss, has_aux=True)(trained, part)
        added = jax.tree.map(jnp.add, total[0], (grads, sums))
        return added, jax.tree.map(jnp.maximum, total[1], maxima)

    def one_row():
        return loss(trained, jax.tree.map(lambda x: x[:1], batch))

    _, (sums, maxima) = jax.eval_shape(one_row)

    def zeros():
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), ((trained, sums), maxima))

    def accumulate():
        return fold(add, zeros(), batch, settings)

    # Inside a branch the compiler does not interleave this with the gradients of another part.
    (grads, sums), maxima = jax.lax.cond(jnp.any(batch.response_BT), accumulate, zeros)
    return grads, sums | maxima


def update(
    state: TrainState,
    frozen: Frozen,
    rollout: Rollout,
    kl_coef: jax.Array,
    key: jax.Array,
    demonstrations: Rows | None = None,
    reward_std: jax.Array | None = None,
    *,
    models: Architectures,
    settings: PPOSettings,
    optimizer: optax.GradientTransformation,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """All updates from one rollout: epochs of minibatches of micro-batches.

    Policy and critic are updated one after the other, so that only one of them holds gradients at a
    time, and, but for :func:`update_once`, activations.

    Args:
      state: its ``params`` have "policy" and, if the algorithm has one, "critic".
      frozen: only the base of adapters is read, except for distillation.
      key: random key of this rollout; every epoch draws its own permutation from it.
      demonstrations: arrays [minibatches of all epochs, minibatch, ...] to imitate in each
        minibatch; None: none.
      reward_std: for distillation, the divisor of the reward model's rewards; else None.
      optimizer: ``programs.by_part``.

    Returns:
      The new state; the metrics of the rollout, and means over the minibatches.
      ``debug/initial_log_ratio`` and ``debug/initial_kl`` are those of the first minibatch, when
      the policy is still the one that sampled: both are 0 except for rounding.
    """
    static, target = {"models": models, "settings": settings}, None
    if settings.algorithm == "distill":
        target = Target(*merge_frozen(frozen), kl_coef * reward_std)
    if settings.one_pass:
        arguments = state, frozen, rollout, kl_coef, target, demonstrations
        state, rollout_metrics, metrics = update_once(*arguments, optimizer=optimizer, **static)
        metrics = jax.tree.map(lambda x: x[None], metrics)
    else:
        experience, rollout_metrics = make_experience(rollout, kl_coef, settings)
        objective = functools.partial(rl_loss, frozen=frozen, target=target, **static)

        def step(state: TrainState, minibatch):
            rows, ptx_rows = minibatch
            batch = jax.tree.map(lambda x: x[rows], experience)
            metrics = {}
            for names in parts_of(models):
                params = {name: state.params[name] for name in names}
                grads, sums = sum_gradients(params, batch, objective, settings)
                grads, ptx = add_imitation(grads, params, frozen, ptx_rows, **static)
                state, norms = apply_part(state, grads, optimizer, settings)
                metrics |= sums | ptx | norms
            return state, metrics

        rows = minibatch_rows(key, experience.tokens_BS.shape[0], settings)
        state, metrics = jax.lax.scan(step, state, (rows, demonstrations))
    initial = {
        "debug/initial_log_ratio": metrics.pop("log_ratio_max")[0],
        "debug/initial_kl": metrics["policy/approx_kl"][0],
    }
    return state, rollout_metrics | jax.tree.map(jnp.mean, metrics) | initial


def add_imitation(
    grads: dict, params: dict, frozen: Frozen, demonstrations: Rows | None, **static
) -> tuple[dict, dict[str, jax.Array]]:
    """Adds the gradients of :func:`imitation_loss`; returns the sum and the metrics."""
    if demonstrations is None or "policy" not in params:
        return grads, {}
    objective = functools.partial(imitation_loss, frozen=frozen, **static)
    policy = {"policy": params["policy"]}
    ptx, metrics = sum_gradients(policy, demonstrations, objective, static["settings"])
    return grads | {"policy": jax.tree.map(jnp.add, grads["policy"], ptx["policy"])}, metrics


def update_once(
    state: TrainState,
    frozen: Frozen,
    rollout: Rollout,
    kl_coef: jax.Array,
    target: Target | None,
    demonstrations: Rows | None,
    *,
    models: Architectures,
    settings: PPOSettings,
    optimizer: optax.GradientTransformation,
) -> tuple[TrainState, dict, dict]:
    """One update from a whole rollout; its forward passes also give old log-probabilities, values.

    Every ratio is therefore 1. The activations of a separate critic are kept during the policy's
    backward pass, and its gradients follow. The metrics are those of the rollout and of the update.
    """
    static = {"models": models, "settings": settings}
    groups = parts_of(models)

    def forward(names: tuple[str, ...]):
        params = {name: state.params[name] for name in names}

        def apply(trained):
            all_params = merge_base(fill(trained, params), frozen)
            return predict(all_params, rows_of(rollout), target, **static)

        return params, *jax.vjp(apply, without_frozen(params, settings.freeze))

    passes = [forward(names) for names in groups]
    old = {"logprob_BT": passes[0][1].logprob_BT, "value_BT": passes[-1][1].value_BT}
    old = jax.tree.map(lambda x_BT: jnp.where(rollout.response_BT, x_BT, 0.0), old)
    experience, rollout_metrics = make_experience(rollout._replace(**old), kl_coef, settings)
    tokens = jnp.maximum(jnp.sum(experience.response_BT), 1)
    ptx_rows, metrics = jax.tree.map(lambda x: x[0], demonstrations), {}
    for names, (params, predictions, backward) in zip(groups, passes, strict=True):
        loss = functools.partial(losses, parts=names, settings=settings)
        gradient = jax.grad(loss, has_aux=True)
        cotangents, (sums, maxima) = gradient(predictions, experience, tokens)
        (grads,) = backward(cotangents)
        grads, ptx = add_imitation(grads, params, frozen, ptx_rows, **static)
        state, norms = apply_part(state, grads, optimizer, settings)
        metrics |= sums | maxima | ptx | norms
        # Always true, but depends on the policy's gradients: the critic's are computed after them.
        is_next = metrics["policy/grad_norm"] != -1.0
        experience = experience._replace(response_BT=experience.response_BT & is_next)
    return state, rollout_metrics, metrics


def apply_part(
    state: TrainState, grads: dict, optimizer: optax.GradientTransformation, settings: PPOSettings
) -> tuple[TrainState, dict[str, jax.Array]]:
    """The state after an optimizer step of the parts with gradients; gradient norms, update sizes.

    The critic's norm is the clipped one: without ``value_coef``, which its optimizer does not use.
    """
    part = TrainState(*({name: tree[name] for name in grads} for tree in state))
    part = apply_gradients(part, grads, optimizer)
    weights, metrics = {"policy": 1.0, "critic": settings.value_coef or 1.0}, {}
    for name, grad in grads.items():
        metrics[f"{GROUPS[name]}/grad_norm"] = optax.tree.norm(grad) / weights[name]
        metrics[f"{GROUPS[name]}/update_rms"] = update_rms(part.opt_state[name])
    return TrainState(state.params | part.params, state.opt_state | part.opt_state), metrics
