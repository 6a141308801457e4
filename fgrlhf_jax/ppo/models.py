"""The models of a PPO run: policy, reference, critic and reward model, on one mesh."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from fgrlhf_jax.data.templates import check_vocabulary
from fgrlhf_jax.data.tokenizers import check_same
from fgrlhf_jax.errors import InputError
from fgrlhf_jax.models import heads, hf_load, llama, lora, peft
from fgrlhf_jax.models.lora import Lora
from fgrlhf_jax.reward_model.combined import RewardModule, first_backbone
from fgrlhf_jax.reward_model.modules import RewardMeta, folders_of, load_params, read_modules


class Architectures(NamedTuple):
    """The modules of a run: all that compiling needs to know of the models."""

    policy: heads.CausalLM  # also the reference's
    critic: heads.TokenValueModel | None  # None: a head on the policy's own states, or none at all
    reward_model: RewardModule | None  # it and meta are None where a function gives the rewards
    meta: RewardMeta | None
    lora: Lora | None = None  # the policy's adapter; None: all of its parameters are trained
    adapted: bool = False  # whether the policy, and so its reference, starts from an adapter
    reward_lora: Lora | None = None  # the reward model's adapter on the policy's base; None: whole
    has_values: bool = True  # whether the algorithm has a critic, of its own or as a head


class Frozen(NamedTuple):
    """What is only read."""

    base: dict  # what all models share; {} where all of the policy's parameters are trained
    reference: dict  # what it has beside the base
    reward_model: dict  # likewise; {} where a function gives the rewards


def complete(params: dict, frozen: Frozen) -> dict:
    """All parameters of policy and critic, of those of their parameters that are trained."""
    bases = {"policy": frozen.base, "critic": {}}
    if frozen.base:  # the critic is as the reward model: on its weights, where it has its own
        backbone = first_backbone(frozen.reward_model) or frozen.base["backbone"]
        bases["critic"] = {"backbone": backbone}
    return {name: bases[name] | part for name, part in params.items()}


def complete_frozen(frozen: Frozen) -> tuple[dict, dict]:
    """All parameters of the reference and, or {}, of the reward model."""
    backbone = {"backbone": frozen.base["backbone"]} if frozen.base else {}
    reward_model = backbone | frozen.reward_model if frozen.reward_model else {}
    return frozen.base | frozen.reference, reward_model


def read_architectures(config: ConfigDict) -> Architectures:
    """From the config files of the checkpoints; loads no weights.

    Raises InputError as :func:`make_architectures`, and for checkpoints that cannot be used.
    """
    options = config.model.to_dict()
    hf_load.check_language_model(config.policy)
    cfg = dataclasses.replace(hf_load.read_config(config.policy), **options)
    reward_model = meta = None
    if config.reward_model:
        reward_model, meta = read_modules(config.reward_model, config.ensemble_penalty, **options)
        if meta.level != config.level and not config.reward_function:
            raise InputError(
                f"level={config.level}: reward_model={config.reward_model} was trained with "
                f"loss={meta.settings['loss']}, which rewards every {meta.level}; use "
                f"--config=configs/ppo.py:MODEL,{meta.level} or another reward model"
            )
    if config.algorithm == "distill":
        check_prices(config, cfg.vocab_size, reward_model)
    return make_architectures(config, cfg, reward_model, meta)


def check_prices(config: ConfigDict, vocab_size: int, reward_model: RewardModule | None) -> None:
    """Raises InputError where there is nothing to distill: no price of every next token."""
    one = isinstance(reward_model, heads.TokenValueModel) and not config.reward_function
    if not one or reward_model.kind == "after" or config.level != "token":
        raise InputError(
            f"algorithm=distill: {config.reward_function or config.reward_model} does not price "
            "every next token; give one reward model of tokens, with --config.model.head=action"
        )
    if (prices := reward_model.cfg.vocab_size) != vocab_size:
        raise InputError(
            f"algorithm=distill: reward_model={config.reward_model} prices {prices} tokens, and "
            f"policy={config.policy} has {vocab_size}; train it from this policy's checkpoint"
        )
    if not config.kl.coef:
        raise InputError("kl.coef=0: algorithm=distill divides rewards by it; give it above 0")


def make_architectures(
    config: ConfigDict,
    cfg: llama.LlamaConfig,
    reward_model: RewardModule | None,
    meta: RewardMeta | None,
) -> Architectures:
    """The modules of a policy with ``cfg`` and of this reward model.

    The critic is as large as the (first) reward model, or else as the policy. Raises InputError for
    adapters that do not go with ``config.lora``.
    """
    adapters, reward_lora, adapted = lora.from_config(config), None, False
    critic_cfg = reward_model.cfg if reward_model else cfg
    if adapters:
        cfg = dataclasses.replace(cfg, lora_scale=adapters.scale)
        if config.policy:
            peft.check_same(config.policy, adapters)
            adapted = peft.read_lora(config.policy) is not None
        reward_lora = shared_lora(config, adapters) if reward_model else None
        if reward_lora:
            critic_cfg = dataclasses.replace(reward_model.cfg, lora_scale=reward_lora.scale)
            reward_model = reward_model.clone(cfg=critic_cfg)
        else:  # without a reward model in memory the critic stands on the policy's base
            held = reward_model and not config.reward_function
            critic_cfg = reward_model.cfg if held else cfg
            critic_cfg = dataclasses.replace(critic_cfg, lora_scale=adapters.scale)
    has_values, critic = config.algorithm == "ppo", None
    if has_values and config.critic == "separate":
        critic = heads.TokenValueModel(critic_cfg, "after")
    return Architectures(
        heads.CausalLM(cfg),
        critic,
        *(reward_model, meta, adapters, adapted, reward_lora, has_values),
    )


def shared_lora(config: ConfigDict, adapters: Lora) -> Lora | None:
    """The reward model's adapter on the policy's base; None where it is held whole, as several are.

    Without a path it has the policy's ``adapters``. Raises InputError for an adapter on another
    base, unless the config says to hold both.
    """
    if not config.lora.share_base:
        return None
    if not config.reward_model:
        return adapters
    several = len(folders_of(config.reward_model)) > 1
    reward_lora = None if several else peft.read_lora(config.reward_model)
    if reward_lora is None:
        return None
    policy = config.policy or config.reward_model
    if not has_same_base(policy, config.reward_model):
        raise InputError(
            f"reward_model={config.reward_model}: is an adapter of "
            f"{peft.base_name(config.reward_model)}, and the policy's base is "
            f"{peft.base_name(policy)}; train it on the same base, or hold both in memory with "
            "--config.lora.share_base=False"
        )
    rounded = peft.recorded_base(config.reward_model).get("dtype", adapters.base_dtype)
    if rounded != adapters.base_dtype:
        print(
            f"reward_model={config.reward_model}: was trained on a base in {rounded}; here it is "
            f"in lora.base_dtype={adapters.base_dtype}, so that its rewards differ by the rounding"
        )
    return reward_lora


def has_same_base(policy: str, adapter: str) -> bool:
    """Whether an adapter was trained on the weights that a policy is, or is an adapter of.

    By their digests, which are recorded or else computed, unless both have the same files.
    """
    recorded = peft.recorded_digest(policy), peft.recorded_digest(adapter)
    if not all(recorded) and peft.base_of(policy).resolve() == peft.base_of(adapter).resolve():
        return True  # or load_frozen finds that they were changed
    return peft.is_same_base(hf_load.base_digest(policy), hf_load.base_digest(adapter))


def parts_of(models: Architectures) -> list[tuple[str, ...]]:
    """What is updated at a time: together where they share states."""
    if not models.has_values:
        return [("policy",)]
    return [("policy", "critic")] if models.critic is None else [("policy",), ("critic",)]


def read_tokenizer(config: ConfigDict, models: Architectures):
    """The policy's; raises InputError where it is not that of the model or the reward model."""
    tokenizer = hf_load.load_tokenizer(config.policy)
    check_vocabulary(tokenizer, models.policy.cfg.vocab_size, config.data.template or "chat")
    if config.reward_model and (models.critic or not config.reward_function):
        other = hf_load.load_tokenizer(folders_of(config.reward_model)[0])
        names = f"policy={config.policy}", f"reward_model={config.reward_model}"
        check_same(tokenizer, other, *names)
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


def abstract_params(models: Architectures, mesh: Mesh) -> dict:
    """{"policy", "critic"}, or {"policy"}: shapes, dtypes and shardings of what is trained."""
    policy = lora.trained(heads.abstract_params(models.policy, mesh), models.lora, mesh)
    if not models.has_values:
        return {"policy": policy}
    if models.critic is None:
        model = heads.TokenValueModel(models.policy.cfg, "after")
        head = heads.abstract_params(model, mesh)["head"]
        return {"policy": policy, "critic": {"head": head}}
    critic = heads.abstract_params(models.critic, mesh)
    # It starts from the reward model's adapter where that is one. Not split from a base: it may be
    # on a whole reward model, which is not quantized.
    adapters = models.reward_lora or models.lora
    return {"policy": policy, "critic": lora.trained(critic, adapters, mesh)}


def abstract_frozen(config: ConfigDict, models: Architectures, mesh: Mesh) -> Frozen:
    """Shapes of what is only read.

    With ``inference_dtype=bfloat16`` whole models are in the dtypes that are computed with: the
    reference gives the bits that the policy gives.
    """

    def abstract(model) -> dict:
        params = heads.abstract_params(model, mesh)
        if config.inference_dtype == "float32":
            return params
        return jax.tree.map(
            lambda x, dtype: x.update(dtype=dtype), params, heads.compute_dtypes(model, params)
        )

    base, reference, reward_model = {}, abstract(models.policy), {}
    if models.lora:
        adapter, base = lora.split(heads.abstract_params(models.policy, mesh), models.lora, mesh)
        reference = adapter if models.adapted else {}
    if models.reward_lora:
        whole = heads.abstract_params(models.reward_model, mesh)
        reward_model = lora.trained(whole, models.reward_lora, mesh) | {"head": whole["head"]}
    elif models.reward_model is not None:
        reward_model = abstract(models.reward_model)
    return Frozen(base, reference, {} if config.reward_function else reward_model)


def initial_params(config: ConfigDict, models: Architectures, mesh: Mesh) -> dict:
    """The policy's checkpoint and, for an algorithm that has one, a critic with a head of zeros.

    The critic's backbone is a copy of the reward model's (of the policy's, where a function gives
    the rewards), or it has none of its own. Adapters are those of the checkpoints, or fresh ones.
    """
    abstract, key = abstract_params(models, mesh), jax.random.key(config.seed)
    if models.lora:
        policy = hf_load.initial_adapter(config.policy, key, abstract["policy"]["lora"])
        params = {"policy": {"lora": policy}}
    else:
        params = {"policy": hf_load.load_params(config.policy, abstract["policy"])}
    if models.has_values:
        params["critic"] = _initial_critic(config, models, abstract["critic"], key)
    return params


def _initial_critic(
    config: ConfigDict, models: Architectures, abstract: dict, key: jax.Array
) -> dict:
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype, device=x.sharding), abstract["head"])
    critic = {"head": zeros}
    others = {name: tree for name, tree in abstract.items() if name != "head"}
    if not others:
        return critic
    if models.lora and not models.reward_lora:
        return critic | {"lora": lora.init_adapter(jax.random.fold_in(key, 1), others["lora"])}
    path = folders_of(config.reward_model)[0] if models.reward_model else config.policy
    return critic | hf_load.load_params(path, others)


def load_frozen(config: ConfigDict, models: Architectures, mesh: Mesh) -> tuple[Frozen, str]:
    """The parameters of :func:`abstract_frozen`, loaded, and the digest of the base, or "".

    Raises InputError for a reward model that was trained as an adapter on other weights.
    """
    base, reference, reward_model = abstract_frozen(config, models, mesh)
    digest = ""
    with jax.set_mesh(mesh):
        if base:
            base, digest = hf_load.load_base(config.policy, base)
        recorded = peft.recorded_digest(config.reward_model) if models.reward_lora else ""
        if recorded and not peft.is_same_base(recorded, digest):
            raise InputError(
                f"reward_model={config.reward_model}: is an adapter of another base: the weights "
                f"in {peft.base_name(config.policy)} are not those that it was trained on; put "
                "these back, or train it again"
            )
        if reference:
            reference = hf_load.load_params(config.policy, reference)
        if reward_model:
            reward_model = load_params(config.reward_model, reward_model)
    return Frozen(base, reference, reward_model), digest
