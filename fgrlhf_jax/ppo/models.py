"""The models of a PPO run: policy, reference, critic and reward model, on one mesh."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from fgrlhf_jax.data.tokenizers import check_vocabulary
from fgrlhf_jax.errors import InputError
from fgrlhf_jax.models import hf_load, llama
from fgrlhf_jax.reward_model.scorer import RewardMeta, read_module


class Modules(NamedTuple):
    """What is static: everything that compiling needs to know of the models.

    Attributes:
      policy: also the reference's.
      critic: None where the value is a head on the policy's own trunk.
      scorer: the reward model and its meta data, None where a function gives the rewards.
    """

    policy: llama.CausalLM
    critic: llama.TokenValueModel | None
    scorer: llama.TokenValueModel | None
    meta: RewardMeta | None


def read_modules(config: ConfigDict) -> Modules:
    """From the config files of the checkpoints; loads no weights.

    Raises:
      InputError: for checkpoints that cannot be used, and for a reward model of another level.
    """
    how = config.model.to_dict()
    policy = llama.CausalLM(dataclasses.replace(hf_load.read_config(config.policy), **how))
    scorer = meta = None
    if config.reward_model:
        scorer, meta = read_module(config.reward_model, **how)
        if meta.level != config.level and not config.reward_function:
            raise InputError(
                f"level={config.level}: reward_model={config.reward_model} was trained with "
                f"loss={meta.settings['loss']}, which rewards every {meta.level}; use "
                f"--config=configs/ppo.py:MODEL,{meta.level} or another reward model"
            )
    if config.critic == "shared":
        critic = None
    else:
        critic = llama.TokenValueModel(scorer.cfg if scorer else policy.cfg, "after")
    return Modules(policy, critic, scorer, meta)


def read_tokenizer(config: ConfigDict, modules: Modules):
    """The policy's tokenizer, checked against the model's vocabulary and the reward model's.

    Raises:
      InputError: saying how they differ, when the reward model was made for other token ids.
    """
    tokenizer = hf_load.load_tokenizer(config.policy)
    check_vocabulary(tokenizer, modules.policy.cfg.vocab_size)
    if config.reward_model and (modules.critic or not config.reward_function):
        other = hf_load.load_tokenizer(config.reward_model)
        check_same(tokenizer, other, config.policy, config.reward_model)
    return tokenizer


def check_same(one, two, first: str, second: str) -> None:
    """Raises InputError where two tokenizers give a text different ids, saying how they differ."""
    a, b = one.get_vocab(), two.get_vocab()
    differing = sorted(t for t in a.keys() | b.keys() if a.get(t) != b.get(t))
    if differing:
        token = differing[0]
        how = (
            f"{len(a)} against {len(b)} tokens, {len(differing)} of them different, for example "
            f"{token!r} is {a.get(token, 'missing')} and {b.get(token, 'missing')}"
        )
    elif one.eos_token_id != two.eos_token_id:
        how = f"the end of sequence is {one.eos_token!r} and {two.eos_token!r}"
    else:
        return
    raise InputError(
        f"policy={first} and reward_model={second} have different tokenizers ({how}); rewards "
        "belong to token ids, so train the reward model from this policy's checkpoint"
    )


def abstract_params(modules: Modules, mesh: Mesh) -> dict:
    """{"policy", "critic"}: shapes, dtypes and shardings of what is trained."""
    policy = llama.abstract_params(modules.policy, mesh)
    if modules.critic is None:
        whole = llama.TokenValueModel(modules.policy.cfg, "after")
        head = llama.abstract_params(whole, mesh)["head"]
        return {"policy": policy, "critic": {"head": head}}
    return {"policy": policy, "critic": llama.abstract_params(modules.critic, mesh)}


def abstract_frozen(model, mesh: Mesh, dtype: str) -> dict:
    """Parameters of a model that is only read, in ``dtype``."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, jnp.dtype(dtype), sharding=x.sharding),
        llama.abstract_params(model, mesh),
    )


def initial_params(config: ConfigDict, modules: Modules, mesh: Mesh) -> dict:
    """The policy's checkpoint; and a critic with a zero head, on a copy of the reward model's
    backbone (of the policy's, where a function gives the rewards), or on the policy's own trunk.
    """
    abstract = abstract_params(modules, mesh)

    def zeros(leaf):
        make = functools.partial(jnp.zeros, leaf.shape, leaf.dtype)
        return jax.jit(make, out_shardings=leaf.sharding)()

    params = {"policy": hf_load.load_params(config.policy, abstract["policy"])}
    params["critic"] = {"head": jax.tree.map(zeros, abstract["critic"]["head"])}
    if modules.critic is not None:
        path = config.policy
        if modules.scorer is not None:
            path = config.reward_model
        backbone = {"backbone": abstract["critic"]["backbone"]}
        params["critic"] |= hf_load.load_params(path, backbone)
    return params


def frozen_params(config: ConfigDict, modules: Modules, mesh: Mesh) -> tuple[dict, dict]:
    """The reference policy's parameters and the reward model's ({} where there is none)."""
    with jax.set_mesh(mesh):
        dtype = config.inference_dtype
        reference = hf_load.load_params(
            config.policy, abstract_frozen(modules.policy, mesh, dtype)
        )
        if modules.scorer is None or config.reward_function:
            return reference, {}
        scorer = abstract_frozen(modules.scorer, mesh, dtype)
        return reference, hf_load.load_params(config.reward_model, scorer)
