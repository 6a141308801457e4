"""The compiled programs of a PPO step: generate, score_rollout, update.

They are compiled ahead of time from shapes alone: a run cannot recompile, and a plan needs no
memory.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from fgrlhf_jax.data.bucketing import choose_buckets
from fgrlhf_jax.errors import InputError
from fgrlhf_jax.models import decoding, sampling
from fgrlhf_jax.models.sampling import Sampled
from fgrlhf_jax.ppo import learning, scoring
from fgrlhf_jax.ppo.algorithm import GROUPED, PPOSettings, Rollout, Rows, samples_per_prompt
from fgrlhf_jax.ppo.models import Architectures, abstract_frozen, abstract_params, merge_base
from fgrlhf_jax.reward_model.model import Normalization
from fgrlhf_jax.runtime import optim, sharding
from fgrlhf_jax.runtime.optim import abstract_state

SHORT_ROW = 160  # columns up to which rows have a single width
SHORT_PROMPT = 64  # likewise of prompts


class Program(NamedTuple):
    """A pure function, its abstract arguments, and its mesh.

    ``donated`` are the positions of donated arguments.
    """

    function: Callable
    arguments: tuple
    mesh: Mesh
    donated: tuple[int, ...] = ()
    out_shardings: object = None

    def lower(self):
        """The jitted function, lowered for these arguments."""
        jitted = jax.jit(
            self.function, donate_argnums=self.donated, out_shardings=self.out_shardings
        )
        with jax.set_mesh(self.mesh):
            return jitted.lower(*self.arguments)


def row_widths(prompts: Sequence[int], max_new_tokens: int) -> tuple[int, ...]:
    """The widths of rows with prompts of these lengths: one for short rows, else at most four.

    They minimise the padding if responses of a quarter, a half, three quarters and the whole of
    ``max_new_tokens`` are equally frequent.
    """
    longest = max(prompts) + max_new_tokens
    if longest <= SHORT_ROW:
        return (longest,)
    lengths = np.add.outer(prompts, max_new_tokens * np.arange(1, 5) // 4)
    return tuple(min(width, longest) for width in choose_buckets(lengths.ravel(), 4))


def prompt_widths(prompts: Sequence[int]) -> tuple[int, ...]:
    """The widths at which these prompts are prefilled: one for short prompts, else three."""
    longest = max(prompts)
    if longest <= SHORT_PROMPT:
        return (longest,)
    return tuple(min(width, longest) for width in choose_buckets(prompts, 3))


def make_optimizer(config: ConfigDict) -> tuple[optax.GradientTransformation, dict]:
    """One AdamW for the policy and one for the critic, and the learning rates of every step.

    Returns:
      The optax transformation, and float[steps] by part: the rates of each step's first update.
    """
    options = config.optimizer.to_dict()
    step_updates = config.ppo_epochs * (config.rollout_batch_size // config.minibatch_size)
    updates = config.steps * step_updates
    warmup = min(options.pop("warmup_steps") * step_updates, updates - 1)
    name, peak = options.pop("schedule"), options.pop("learning_rate")
    critic_peak = options.pop("critic_learning_rate") or peak
    freeze = options.pop("freeze")
    peaks = {"policy": peak}
    if config.algorithm == "ppo":
        peaks["critic"] = critic_peak
    rates = {part: optim.schedule(name, p, updates, warmup) for part, p in peaks.items()}
    parts = {part: optim.adamw(rate, freeze=freeze, **options) for part, rate in rates.items()}
    if "critic" in parts:
        # value_coef balances both losses on shared states. A separate critic's gradients have their
        # own optimizer, where it would only distort clip_norm and eps.
        scale = optax.scale(1 / (config.value_coef or 1))
        parts["critic"] = optax.chain(scale, parts["critic"])
    first_updates = jnp.arange(config.steps) * step_updates
    table = {part: np.asarray(jax.vmap(rate)(first_updates)) for part, rate in rates.items()}
    return by_part(parts), table


def by_part(parts: dict[str, optax.GradientTransformation]) -> optax.GradientTransformation:
    """One optimizer per part of the parameters; an update may cover some of the parts only."""

    def init(params: dict) -> dict:
        return {name: parts[name].init({name: part}) for name, part in params.items()}

    def update(grads: dict, states: dict, params: dict) -> tuple[dict, dict]:
        updates, new_states = {}, {}
        for name in grads:
            args = {name: grads[name]}, states[name], {name: params[name]}
            part_updates, new_states[name] = parts[name].update(*args)
            updates |= part_updates
        return updates, new_states

    return optax.GradientTransformation(init, update)


def check_sizes(config: ConfigDict, mesh: Mesh) -> None:
    """Raises InputError for batch sizes that do not divide each other or over a mesh.

    Also for too few samples per prompt for the algorithm, and for a critic that it does not have.
    """
    samples = samples_per_prompt(config)
    if config.algorithm in GROUPED and samples < 2:
        raise InputError(
            f"samples_per_prompt={samples}: algorithm={config.algorithm} compares the samples of a "
            "prompt; give at least 2"
        )
    if config.algorithm != "ppo" and config.critic != "separate":
        raise InputError(
            f"critic={config.critic}: algorithm={config.algorithm} has no critic; drop the flag"
        )
    if config.rollout_batch_size % samples:
        raise InputError(
            f"rollout_batch_size={config.rollout_batch_size} is not a multiple of "
            f"samples_per_prompt={samples}"
        )
    micro_batch = config.micro_batch_size or config.minibatch_size
    sharding.check_batch(mesh, micro_batch)
    names = ("rollout_batch_size", "minibatch_size", "micro_batch_size")
    for name, divisor in itertools.pairwise(names):
        size = config[divisor] or micro_batch
        if config[name] % size:
            raise InputError(
                f"{name}={config[name]} is not a multiple of {divisor}={size}; change one of them"
            )
    decoding = generation_mesh(config, mesh)
    sharding.check_batch(decoding, config.rollout_batch_size, "rollout_batch_size")


def generation_mesh(config: ConfigDict, mesh: Mesh) -> Mesh:
    """The mesh for decoding: the same devices in the config's ``generation_mesh`` shape."""
    return sharding.reshape_mesh(mesh, "generation_mesh", config.generation_mesh)


def make(
    config: ConfigDict,
    models: Architectures,
    mesh: Mesh,
    optimizer,
    *,
    ends: tuple[int, ...],
    prompt_widths: tuple[int, ...],
    widths: tuple[int, ...] = (),
) -> dict[str, Program]:
    """The programs for the shapes of a run, by name; nothing is computed.

    ``prompt_widths`` come from :func:`prompt_widths`, ``widths`` from :func:`row_widths` (empty:
    all rows have full length).

    generate: (DecodingWeights, prompt_BP, mask_BP, key_B) -> Sampled
    score_rollout: (params, Frozen, Normalization, learning, prompt_BP, mask_BP, Sampled) -> Rollout
    update: (state, Frozen, Rollout, kl_coef, key, demonstrations, reward_std) -> state, metrics
    """
    check_sizes(config, mesh)
    widths = widths or (prompt_widths[-1] + config.data.max_new_tokens,)
    settings = PPOSettings.from_config(config, widths)
    params, frozen = abstract_params(models, mesh), abstract_frozen(config, models, mesh)
    state = abstract_state(params, optimizer, mesh)
    row_sharding, replicated = sharding.batch_sharding(mesh), NamedSharding(mesh, PartitionSpec())
    *prompt, sampled, rollout = _abstract_rows(settings, prompt_widths[-1], row_sharding)
    scalar, flag = (
        jax.ShapeDtypeStruct((), dtype, sharding=replicated) for dtype in (jnp.float32, bool)
    )
    generation = generation_mesh(config, mesh)
    decode_sharding = sharding.batch_sharding(generation)
    keys = jax.eval_shape(lambda: sampling.row_keys(jax.random.key(0), len(sampled.tokens_BT)))
    inputs = jax.tree.map(lambda x: x.update(sharding=decode_sharding), (*prompt, keys))
    policy = merge_base(params, frozen)["policy"]
    weights = decoding.abstract_weights(policy, models.policy, generation)
    static = {"models": models, "settings": settings}
    generate = functools.partial(
        sampling.generate,
        model=models.policy,
        ends=ends,
        max_new=settings.max_new_tokens,
        temperature=settings.temperature,
        int8_cache=config.sampling.int8_cache,
        prompt_widths=prompt_widths,
    )
    score = functools.partial(scoring.score_rollout, **static)
    update = functools.partial(learning.update, optimizer=optimizer, **static)
    key, reward_std = jax.eval_shape(lambda: jax.random.key(0)), None
    if settings.algorithm == "distill":
        reward_std = scalar
    learned = state, frozen, rollout, scalar, key, _demonstrations(settings, mesh), reward_std
    scored = params, frozen, Normalization(scalar, scalar), flag, *prompt, sampled
    layout = jax.tree.map(lambda x: x.sharding, state)
    return {
        "generate": Program(generate, (weights, *inputs), generation, out_shardings=row_sharding),
        "score_rollout": Program(score, scored, mesh, out_shardings=row_sharding),
        "update": Program(update, learned, mesh, donated=(0,), out_shardings=(layout, replicated)),
    }


def _demonstrations(settings: PPOSettings, mesh: Mesh) -> Rows | None:
    """Shapes of a step's demonstrations, see ``imitation.draw``."""
    if not settings.ptx_weight:
        return None
    size, row_sharding = settings.minibatch_size, sharding.batch_sharding(mesh, axis=1)
    updates = settings.ppo_epochs * (settings.rollout_batch_size // size)
    specs = (jnp.int32, settings.widths[-1]), (jnp.int32,), (bool, settings.max_new_tokens)
    arrays = (
        jax.ShapeDtypeStruct((updates, size, *shape), dtype, sharding=row_sharding)
        for dtype, *shape in specs
    )
    return Rows(*arrays)


def _abstract_rows(settings: PPOSettings, P: int, row_sharding: NamedSharding) -> tuple:
    """Shapes of prompts, their mask, Sampled and Rollout."""
    B, T = settings.rollout_batch_size, settings.max_new_tokens

    def array(dtype, *shape):
        return jax.ShapeDtypeStruct((B, *shape), dtype, sharding=row_sharding)

    int_B, bool_B, float_BT = array(jnp.int32), array(bool), array(jnp.float32, T)
    rows = array(jnp.int32, P + T), int_B, array(bool, T)
    return (
        array(jnp.int32, P),
        array(bool, P),
        Sampled(array(jnp.int32, T), int_B, bool_B, float_BT),
        Rollout(*rows, bool_B, *[float_BT] * 6),
    )
