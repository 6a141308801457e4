"""The three compiled programs of a PPO step: generate, assess, learn.

They are made ahead of time from shapes alone, so that a run cannot recompile and a plan can be
made without any memory.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.models import sampling
from fgrlhf_jax.ppo import algorithm as ppo
from fgrlhf_jax.ppo import models as ppo_models
from fgrlhf_jax.reward_model import model as reward
from fgrlhf_jax.runtime import optim, sharding
from fgrlhf_jax.training import supervised


class Program(NamedTuple):
    """A pure function and what it is called with; ``donated`` are numbers of arguments."""

    function: Callable
    arguments: tuple
    donated: tuple[int, ...] = ()
    out_shardings: object = None

    def lower(self, mesh: Mesh):
        """The jitted function, lowered for these arguments."""
        jitted = jax.jit(
            self.function, donate_argnums=self.donated, out_shardings=self.out_shardings
        )
        with jax.set_mesh(mesh):
            return jitted.lower(*self.arguments)


def make_optimizer(config: ConfigDict):
    """One AdamW for the policy and one for the critic, and both rates of every PPO step.

    Returns:
      The optax transformation, and float[steps, 2]: learning rates at each step's first update.
    """
    options = config.optimizer.to_dict()
    per_step = config.ppo_epochs * (config.rollout_batch_size // config.minibatch_size)
    updates = config.steps * per_step
    warmup = min(options.pop("warmup_steps") * per_step, updates - 1)
    name, peak = options.pop("schedule"), options.pop("learning_rate")
    critic_peak = options.pop("critic_learning_rate") or peak
    freeze = options.pop("freeze")
    rates = [optim.schedule(name, p, updates, warmup) for p in (peak, critic_peak)]
    policy, critic = (optim.adamw(rate, freeze=freeze, **options) for rate in rates)
    firsts = jnp.arange(config.steps) * per_step
    table = np.stack([np.asarray(jax.vmap(rate)(firsts)) for rate in rates], axis=1)
    return ppo.optimizer(policy, critic), table


def check(config: ConfigDict, mesh: Mesh) -> int:
    """The rows of a micro-batch; raises InputError where sizes do not divide one another."""
    micro = config.micro_batch_size or config.minibatch_size
    sharding.check_batch(mesh, micro)
    for whole, part in (
        ("rollout_batch_size", "minibatch_size"),
        ("minibatch_size", "micro_batch_size"),
    ):
        size = config[part] or micro
        if config[whole] % size:
            raise InputError(f"{whole}={config[whole]} is not a multiple of {part}={size}")
    return micro


def make(
    config: ConfigDict,
    modules: ppo_models.Modules,
    mesh: Mesh,
    optimizer,
    *,
    eos: int,
    prompt_width: int,
) -> dict[str, Program]:
    """``generate``, ``assess`` and ``learn`` for the shapes of ``config``; nothing is computed.

    generate: (policy, prompt_BP, mask_BP, key_B) -> Sampled
    assess: (params, reference, reward model, Normalization, prompt_BP, mask_BP, Sampled)
            -> Rollout, raw_BT
    learn: (state, Rollout, kl_coef, key) -> state, metrics
    """
    micro = check(config, mesh)
    B, P, T = config.rollout_batch_size, prompt_width, config.data.max_new_tokens
    temperature = config.sampling.temperature
    params = ppo_models.abstract_params(modules, mesh)
    state = supervised.abstract_state(params, optimizer, mesh)
    reference = ppo_models.abstract_frozen(modules.policy, mesh, config.inference_dtype)
    scorer = {}
    if modules.scorer is not None and not config.reward_function:
        scorer = ppo_models.abstract_frozen(modules.scorer, mesh, config.inference_dtype)
    rows = sharding.batch_sharding(mesh)
    whole = NamedSharding(mesh, PartitionSpec())

    def array(dtype, *shape, where=rows):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=where)

    prompt = array(jnp.int32, B, P), array(bool, B, P)
    sampled = sampling.Sampled(
        tokens_BT=array(jnp.int32, B, T),
        length_B=array(jnp.int32, B),
        finished_B=array(bool, B),
        logprob_BT=array(jnp.float32, B, T),
    )
    per_token = array(jnp.float32, B, T)
    rollout = ppo.Rollout(
        tokens_BS=array(jnp.int32, B, P + T),
        mask_BS=array(bool, B, P + T),
        response_BT=array(bool, B, T),
        finished_B=array(bool, B),
        logprob_BT=per_token,
        ref_logprob_BT=per_token,
        value_BT=per_token,
        reward_BT=per_token,
    )
    keys = jax.eval_shape(lambda: sampling.row_keys(jax.random.key(0), B))
    keys = array(keys.dtype, B)
    one_key = jax.eval_shape(lambda: jax.random.key(0))
    generate = functools.partial(
        sampling.generate,
        model=modules.policy,
        eos=eos,
        max_new=T,
        temperature=temperature,
        unroll=config.sampling.unroll,
    )
    models = {"policy": modules.policy, "critic": modules.critic, "temperature": temperature}

    def assess(params, reference, scorer, normalization, prompt_BP, prompt_mask_BP, sampled):
        tokens_BS, mask_BS, response_BT = ppo.join(prompt_BP, prompt_mask_BP, sampled)
        logprob_BT, ref_logprob_BT, value_BT = ppo.assess(
            params, reference, tokens_BS, mask_BS, micro=micro, length=T, **models
        )
        raw_BT = reward_BT = jnp.zeros((B, T), jnp.float32)
        if scorer:
            raw_BT, reward_BT = ppo.score(
                scorer,
                tokens_BS,
                mask_BS,
                response_BT,
                micro=micro,
                model=modules.scorer,
                level=modules.meta.level,
                normalization=normalization,
            )
        parts = (logprob_BT, ref_logprob_BT, value_BT, reward_BT)
        return ppo.Rollout(tokens_BS, mask_BS, response_BT, sampled.finished_B, *parts), raw_BT

    def learn(state, rollout, kl_coef, key):
        experience, seen = ppo.advantages(
            rollout,
            kl_coef,
            estimator=config.kl.estimator,
            kl_in_reward=config.kl.in_reward,
            missing_eos=config.missing_eos,
            missing_eos_penalty=config.missing_eos_penalty,
            gamma=config.gamma,
            lam=config.gae_lambda,
            whiten_rewards=config.whiten_rewards,
            whiten_advantages=config.whiten_advantages,
        )
        state, learned = ppo.update(
            state,
            experience,
            key,
            optimizer=optimizer,
            epochs=config.ppo_epochs,
            minibatch=config.minibatch_size,
            micro=micro,
            clip=config.clip_ratio,
            value_clip=config.value_clip_ratio,
            value_coef=config.value_coef,
            **models,
        )
        return state, seen | learned

    laid_out = functools.partial(jax.tree.map, lambda x: x.sharding)
    scalar = jax.ShapeDtypeStruct((), jnp.float32, sharding=whole)
    normalization = reward.Normalization(scalar, scalar)
    return {
        "generate": Program(generate, (params["policy"], *prompt, keys)),
        "assess": Program(
            assess,
            (params, reference, scorer, normalization, *prompt, sampled),
            out_shardings=rows,
        ),
        "learn": Program(
            learn,
            (state, rollout, scalar, one_key),
            donated=(0,),
            out_shardings=(laid_out(state), whole),
        ),
    }
