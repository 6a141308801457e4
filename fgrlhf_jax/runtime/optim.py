"""AdamW with learning-rate schedules, clipping and frozen parameters; compiled train steps."""

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.runtime import sharding

SCHEDULES = ("constant", "linear", "cosine")


class TrainState(NamedTuple):
    """Parameters and optimizer state: everything that an update changes."""

    params: dict
    opt_state: optax.OptState


def schedule(name: str, peak: float, steps: int, warmup_steps: int) -> optax.Schedule:
    """A learning rate that warms up to ``peak``, then stays constant or decays to 0 at ``steps``.

    Raises InputError unless 0 <= ``warmup_steps`` < ``steps``.
    """
    if not 0 <= warmup_steps < steps:
        raise InputError(f"warmup_steps={warmup_steps} must be at least 0 and below steps={steps}")
    decay_steps = steps - warmup_steps
    decay = {
        "constant": optax.constant_schedule(peak),
        "linear": optax.linear_schedule(peak, 0.0, decay_steps),
        "cosine": optax.cosine_decay_schedule(peak, decay_steps),
    }[name]
    if not warmup_steps:
        return decay
    warmup = optax.linear_schedule(0.0, peak, warmup_steps)
    # The first update has rate peak / warmup_steps; a rate of 0 would waste it.
    return optax.join_schedules([lambda step: warmup(step + 1), decay], [warmup_steps])


def _path_mask(pattern: str) -> Callable:
    """A function from a parameter tree to a mask of the leaves whose path matches the pattern."""
    return lambda params: jax.tree.map_with_path(
        lambda path, _: bool(re.search(pattern, sharding.path_name(path))), params
    )


def adamw(
    learning_rate: optax.Schedule,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    clip_norm: float = 1.0,
    freeze: str = "",
) -> optax.GradientTransformation:
    """AdamW after clipping by the global norm; weight decay on matrices only.

    Its state stores :func:`update_rms`.

    Args:
      clip_norm: the largest global gradient norm; 0: no clipping.
      freeze: regular expression over parameter paths; matching parameters are not trained and have
        no moments. "": none.
    """
    decayed = _path_mask(r"(kernel|embedding|unembed|lora_[ab])$")
    transform = optax.chain(
        optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity(),
        optax.scale_by_adam(b1, b2, eps),
        optax.add_decayed_weights(weight_decay, decayed),
        optax.snapshot("update_rms", _rms),
        optax.scale_by_learning_rate(learning_rate),
    )
    if not freeze:
        return transform
    return optax.multi_transform({False: transform, True: optax.set_to_zero()}, _path_mask(freeze))


def _rms(tree) -> jax.Array:
    size = sum(leaf.size for leaf in jax.tree.leaves(tree))
    return jnp.float32(optax.tree.norm(tree) / max(size, 1) ** 0.5)


def update_rms(opt_state: optax.OptState) -> jax.Array:
    """Root mean square of the last update, divided by its learning rate.

    About 1 for gradients of a steady direction; far below 1 if the direction changes, or if
    gradients are small compared with ``eps``, which then reduces the effective learning rate.
    """
    return optax.tree.get(opt_state, "update_rms")


def without_frozen(params: dict, freeze: str) -> dict:
    """Replaces the parameters that match ``freeze``, see :func:`adamw`, by None.

    Gradients are taken with respect to this tree, so that none exist for frozen parameters.
    """
    if not freeze:
        return params
    return jax.tree.map(lambda frozen, x: None if frozen else x, _path_mask(freeze)(params), params)


def fill(tree: dict, params: dict) -> dict:
    """Replaces every None in a tree from :func:`without_frozen` by the leaf of ``params``."""
    return jax.tree.map(
        lambda x, y: y if x is None else x, tree, params, is_leaf=lambda x: x is None
    )


def apply_gradients(
    state: TrainState, grads: dict, optimizer: optax.GradientTransformation
) -> TrainState:
    """The train state after one step of ``optimizer``; a gradient of None counts as zero."""
    grads = fill(grads, jax.tree.map(jnp.zeros_like, state.params))
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    return TrainState(optax.apply_updates(state.params, updates), opt_state)


def abstract_state(params: dict, optimizer, mesh: Mesh) -> TrainState:
    """Shapes, dtypes and shardings of the train state of abstract ``params``; allocates nothing."""
    return TrainState(params, sharding.abstract(jax.eval_shape(optimizer.init, params), mesh))


def lower_step(step: Callable, abstract: TrainState, batch: dict, mesh: Mesh, *frozen: dict):
    """Lowers a train step ``(state, batch, *frozen) -> (state, metrics)``, to be compiled.

    The executable accepts exactly these shapes and never recompiles; the state is donated. It adds
    ``update_rms`` to the metrics.

    Args:
      abstract: from :func:`abstract_state`.
      batch: arrays on the mesh, or ShapeDtypeStructs with shardings; only shapes are used.
      *frozen: further abstract arguments, which are not updated.
    """

    def step_with_rms(state: TrainState, batch: dict, *frozen) -> tuple[TrainState, dict]:
        state, metrics = step(state, batch, *frozen)
        return state, metrics | {"update_rms": update_rms(state.opt_state)}

    layout = jax.tree.map(lambda x: x.sharding, abstract)
    replicated = NamedSharding(mesh, PartitionSpec())
    jitted = jax.jit(step_with_rms, donate_argnums=0, out_shardings=(layout, replicated))
    with jax.set_mesh(mesh):
        return jitted.lower(abstract, batch, *frozen)


def compile_all(lowered: dict[Any, jax.stages.Lowered]) -> dict[Any, jax.stages.Compiled]:
    """Compiles all programs at once, one in a thread: XLA uses little more than a core for each."""
    with ThreadPoolExecutor(len(lowered)) as pool:
        compiled = pool.map(lambda program: program.compile(), lowered.values())
        return dict(zip(lowered, compiled, strict=True))
