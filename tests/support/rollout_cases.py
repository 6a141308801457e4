"""Rollouts of a small policy with a critic and a reward model, and PPO settings for them."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tiny_cases

from fgrlhf_jax.models import decoding, heads, sampling
from fgrlhf_jax.ppo import algorithm, scoring
from fgrlhf_jax.ppo.algorithm import PPOSettings, Rollout
from fgrlhf_jax.ppo.models import Architectures, Frozen
from fgrlhf_jax.reward_model.model import Normalization


class Meta(NamedTuple):
    level: str = "token"


POLICY = heads.CausalLM(tiny_cases.CFG)
CRITIC = heads.TokenValueModel(tiny_cases.CFG, "after")
MODELS = Architectures(POLICY, CRITIC, CRITIC, Meta())
PARAMS = {"policy": tiny_cases.parameters(POLICY, 1), "critic": tiny_cases.parameters(CRITIC, 2)}
SHARED = {"policy": PARAMS["policy"], "critic": {"head": PARAMS["critic"]["head"]}}
REFERENCE = tiny_cases.parameters(POLICY, 3)
REWARD_MODEL = tiny_cases.parameters(CRITIC, 4)
FROZEN = Frozen({}, REFERENCE, REWARD_MODEL)
B, P, T, EOS = 8, 4, 6, 2  # as in tiny_cases.PPO_SETTINGS
SETTINGS = tiny_cases.PPO_SETTINGS
score_rollout = jax.jit(scoring.score_rollout, static_argnames=("models", "settings"))


def settings(**changes) -> PPOSettings:
    return dataclasses.replace(SETTINGS, **changes)


def generate(weights, model=POLICY) -> tuple:
    """Prompts, their masks, and sampled responses."""
    rng = np.random.default_rng(0)
    prompts = [rng.integers(3, 64, n).tolist() for n in (1, 2, 3, 4, 4, 2, 1, 3)]
    tokens, mask = tiny_cases.laid_out(prompts, "left", fill=0, width=P)
    prompt = jnp.array(tokens, jnp.int32), jnp.array(mask)
    options = {"model": model, "ends": (EOS,), "max_new": T, "temperature": 0.8}
    keys = sampling.row_keys(jax.random.key(0), B)
    return *prompt, sampling.generate(weights, *prompt, keys, **options)


@functools.cache
def sampled() -> tuple:
    """The result of :func:`generate` with responses cut to random lengths."""
    *prompt, responses = generate(decoding.decoding_weights(PARAMS["policy"], POLICY))
    lengths = np.random.default_rng(1).integers(1, T + 1, B)
    lengths = np.minimum(responses.length_B, lengths).astype(np.int32)
    real = np.arange(T)[None] < lengths[:, None]
    return *prompt, sampling.Sampled(
        jnp.where(real, responses.tokens_BT, 0),
        jnp.array(lengths),
        jnp.array(lengths < T),
        jnp.where(real, responses.logprob_BT, 0.0),
    )


@functools.cache
def rolled_out(shared: bool = False, learning: bool = True, **changes) -> Rollout:
    return score_rollout(
        SHARED if shared else PARAMS,
        FROZEN,
        Normalization(0.1, 2.0),
        learning,
        *sampled(),
        models=MODELS._replace(critic=None) if shared else MODELS,
        settings=settings(**changes),
    )


def experience_of(rollout: Rollout, kl_coef: float = 0.1, **changes):
    return algorithm.make_experience(rollout, jnp.float32(kl_coef), settings(**changes))


# Settings with one epoch of one minibatch per rollout
ONCE = {"ppo_epochs": 1, "minibatch_size": 8}
