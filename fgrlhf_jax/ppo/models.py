"""The models of a PPO run: policy, reference, critic and reward model, on one mesh."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from fgrlhf_jax.data.templates import check_vocabulary
from fgrlhf_jax.errors import InputError
from fgrlhf_jax.models import hf_load, llama
from fgrlhf_jax.reward_model.scorer import RewardMeta, read_module


class Architectures(NamedTuple):
    """The modules of a run: all that compiling needs to know of the models.

    Attributes:
      policy: also the reference's.
      critic: None where the value is a head on the policy's own states.
      reward_model, meta: None where a function gives the rewards.
    """

    policy: llama.CausalLM
    critic: llama.TokenValueModel | None
    reward_model: llama.TokenValueModel | None
    meta: RewardMeta | None


def read_architectures(config: ConfigDict) -> Architectures:
    """From the config files of the checkpoints; loads no weights.

    Raises:
      InputError: for checkpoints that cannot be used, and for a reward model of another level.
    """
    options = config.model.to_dict()
    hf_load.check_language_model(config.policy)
    policy = llama.CausalLM(dataclasses.replace(hf_load.read_config(config.policy), **options))
    reward_model = meta = None
    if config.reward_model:
        reward_model, meta = read_module(config.reward_model, **options)
        if meta.level != config.level and not config.reward_function:
            raise InputError(
                f"level={config.level}: reward_model={config.reward_model} was trained with "
                f"loss={meta.settings['loss']}, which rewards every {meta.level}; use "
                f"--config=configs/ppo.py:MODEL,{meta.level} or another reward model"
            )
    return Architectures(policy, make_critic(config, policy, reward_model), reward_model, meta)


def make_critic(config: ConfigDict, policy, reward_model) -> llama.TokenValueModel | None:
    """As large as the reward model, or else as the policy; None shares the policy's states."""
    if config.critic == "shared":
        return None
    return llama.TokenValueModel(reward_model.cfg if reward_model else policy.cfg, "after")


def parts_of(models: Architectures) -> list[tuple[str, ...]]:
    """What is updated at a time: together where they share states."""
    return [("policy", "critic")] if models.critic is None else [("policy",), ("critic",)]


def read_tokenizer(config: ConfigDict, models: Architectures):
    """The policy's tokenizer, checked against the model's vocabulary and the reward model's.

    Raises:
      InputError: saying how they differ, when the reward model was made for other token ids.
    """
    tokenizer = hf_load.load_tokenizer(config.policy)
    check_vocabulary(tokenizer, models.policy.cfg.vocab_size, config.data.template or "chat")
    if config.reward_model and (models.critic or not config.reward_function):
        other = hf_load.load_tokenizer(config.reward_model)
        check_same(tokenizer, other, config.policy, config.reward_model)
    needs_chat = (
        models.meta and not config.reward_function and models.meta.data["template"] == "chat"
    )
    if needs_chat and not tokenizer.chat_template:
        raise InputError(
            f"policy={config.policy}: has no chat template, with which reward_model="
            f"{config.reward_model} was trained; copy chat_template.jinja from the reward model's "
            "export into the policy's folder"
        )
    return tokenizer


def check_same(policy_tokenizer, reward_tokenizer, policy: str, reward_model: str) -> None:
    """Raises InputError where two tokenizers give a text different ids, saying how they differ."""
    ours, theirs = policy_tokenizer.get_vocab(), reward_tokenizer.get_vocab()
    differing = sorted(t for t in ours.keys() | theirs.keys() if ours.get(t) != theirs.get(t))
    if differing:
        token = differing[0]
        difference = (
            f"{len(ours)} against {len(theirs)} tokens, {len(differing)} of them different, for "
            f"example {token!r} is {ours.get(token, 'missing')} and {theirs.get(token, 'missing')}"
        )
    elif policy_tokenizer.eos_token_id != reward_tokenizer.eos_token_id:
        difference = (
            f"the end of sequence is {policy_tokenizer.eos_token!r} and "
            f"{reward_tokenizer.eos_token!r}"
        )
    else:
        return
    raise InputError(
        f"policy={policy} and reward_model={reward_model} have different tokenizers "
        f"({difference}); rewards belong to token ids, so train the reward model from this "
        "policy's checkpoint"
    )


def abstract_params(models: Architectures, mesh: Mesh) -> dict:
    """{"policy", "critic"}: shapes, dtypes and shardings of what is trained."""
    policy = llama.abstract_params(models.policy, mesh)
    if models.critic is None:
        model = llama.TokenValueModel(models.policy.cfg, "after")
        head = llama.abstract_params(model, mesh)["head"]
        return {"policy": policy, "critic": {"head": head}}
    return {"policy": policy, "critic": llama.abstract_params(models.critic, mesh)}


def abstract_frozen(config: ConfigDict, models: Architectures, mesh: Mesh) -> tuple[dict, dict]:
    """Shapes of what is only read: the reference's and the reward model's parameters.

    The latter are {} where a function gives the rewards. With ``inference_dtype=bfloat16`` they are
    in the dtypes that are computed with: the reference gives the bits that the policy gives.
    """

    def abstract(model) -> dict:
        params = llama.abstract_params(model, mesh)
        if config.inference_dtype == "float32":
            return params
        return jax.tree.map(
            lambda x, dtype: x.update(dtype=dtype), params, llama.compute_dtypes(model, params)
        )

    scored = models.reward_model is not None and not config.reward_function
    return abstract(models.policy), abstract(models.reward_model) if scored else {}


def initial_params(config: ConfigDict, models: Architectures, mesh: Mesh) -> dict:
    """The policy's checkpoint, and a critic with a head of zeros.

    The critic's backbone is a copy of the reward model's (of the policy's, where a function gives
    the rewards), or it has none of its own.
    """
    abstract = abstract_params(models, mesh)

    def zeros(leaf):
        make = functools.partial(jnp.zeros, leaf.shape, leaf.dtype)
        return jax.jit(make, out_shardings=leaf.sharding)()

    params = {"policy": hf_load.load_params(config.policy, abstract["policy"])}
    params["critic"] = {"head": jax.tree.map(zeros, abstract["critic"]["head"])}
    if models.critic is not None:
        path = config.policy
        if models.reward_model is not None:
            path = config.reward_model
        backbone = {"backbone": abstract["critic"]["backbone"]}
        params["critic"] |= hf_load.load_params(path, backbone)
    return params


def frozen_params(config: ConfigDict, models: Architectures, mesh: Mesh) -> tuple[dict, dict]:
    """The parameters of :func:`abstract_frozen`, loaded."""
    reference, reward_model = abstract_frozen(config, models, mesh)
    with jax.set_mesh(mesh):
        reference = hf_load.load_params(config.policy, reference)
        if reward_model:
            reward_model = hf_load.load_params(config.reward_model, reward_model)
    return reference, reward_model
