"""The models of a PPO run: policy, reference, critic and reward model, on one mesh."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from fgrlhf_jax.data.chat import check_vocabulary
from fgrlhf_jax.data.tokenizers import check_same
from fgrlhf_jax.errors import InputError
from fgrlhf_jax.models import heads, hf_load, llama, lora, peft
from fgrlhf_jax.models.lora import Lora
from fgrlhf_jax.reward_model.combined import LogRatio, RewardModule, first_backbone, models_of
from fgrlhf_jax.reward_model.modules import RewardMeta, folders_of, load_params, read_modules


class Architectures(NamedTuple):
    """The modules of a run: all information about the models that compiling needs."""

    policy: heads.CausalLM  # also the reference's
    critic: heads.TokenValueModel | None  # None: a head on the policy's own states, or no critic
    reward_model: RewardModule | None  # this and meta are None if a function gives the rewards
    meta: RewardMeta | None
    lora: Lora | None = None  # the policy's adapter; None: all of its parameters are trained
    adapted: bool = False  # whether the policy, and so its reference, starts from an adapter
    reward_lora: Lora | None = None  # the reward model's adapter on the policy's base; None: whole
    has_values: bool = True  # whether the algorithm has a critic, separate or as a head


class Frozen(NamedTuple):
    """Parameters that are not trained."""

    base: dict  # shared by all models; {} if all of the policy's parameters are trained
    reference: dict  # the reference's parameters besides the base
    reward_model: dict  # likewise; {} if a function gives the rewards


def merge_base(params: dict, frozen: Frozen) -> dict:
    """All parameters of policy and critic, given their trained ones."""
    bases = {"policy": frozen.base, "critic": {}}
    if frozen.base:  # the critic has the reward model's own backbone, if any, else the base
        backbone = first_backbone(frozen.reward_model) or frozen.base["backbone"]
        bases["critic"] = {"backbone": backbone}
    return {name: bases[name] | part for name, part in params.items()}


def merge_frozen(frozen: Frozen) -> tuple[dict, dict]:
    """All parameters of the reference, and of the reward model ({} if there is none)."""
    backbone = {"backbone": frozen.base["backbone"]} if frozen.base else {}
    reward_model = backbone | frozen.reward_model if frozen.reward_model else {}
    return frozen.base | frozen.reference, reward_model


def read_architectures(config: ConfigDict) -> Architectures:
    """The modules, from the config files of the checkpoints; loads no weights.

    Raises InputError as :func:`make_architectures`, and for unusable checkpoints.
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
        check_rewards(config, cfg.vocab_size, reward_model)
    return make_architectures(config, cfg, reward_model, meta)


def check_rewards(config: ConfigDict, vocab_size: int, reward_model: RewardModule | None) -> None:
    """Raises InputError if distillation has no reward model that scores every next token."""
    scores_all = getattr(reward_model, "kind", "after") != "after"
    scores_all |= isinstance(reward_model, LogRatio)
    if not scores_all or config.reward_function or config.level != "token":
        raise InputError(
            f"algorithm=distill: {config.reward_function or config.reward_model} does not score "
            "every next token; give one reward model of tokens, trained with "
            "--config.model.head=action, or the log-ratio POLICY:REFERENCE of two policies"
        )
    sizes = {model.cfg.vocab_size for model in models_of(reward_model)}
    if sizes != {vocab_size}:
        raise InputError(
            f"algorithm=distill: reward_model={config.reward_model} scores "
            f"{' and '.join(map(str, sorted(sizes)))} tokens, and policy={config.policy} has "
            f"{vocab_size}; train it from this policy's checkpoint"
        )
    if not config.kl.coef:
        raise InputError("kl.coef=0: algorithm=distill divides rewards by it; give it above 0")


def make_architectures(
    config: ConfigDict,
    cfg: llama.LlamaConfig,
    reward_model: RewardModule | None,
    meta: RewardMeta | None,
) -> Architectures:
    """The modules for a policy with ``cfg`` and this reward model.

    The critic has the size of the (first) reward model, else of the policy. Raises InputError for
    adapters that do not match ``config.lora``.
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
        else:  # without a reward model in memory the critic uses the policy's base
            is_loaded = reward_model and not config.reward_function
            critic_cfg = reward_model.cfg if is_loaded else cfg
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
    """The reward model's adapter on the policy's base; None if it is held whole, as several are.

    Without a path it has the policy's ``adapters``. Raises InputError for an adapter on another
    base, unless the config allows holding both.
    """
    if not config.lora.share_base:
        return None
    if not config.reward_model:
        return adapters
    is_ensemble = len(folders_of(config.reward_model)) > 1
    reward_lora = None if is_ensemble else peft.read_lora(config.reward_model)
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
    dtype = peft.recorded_base(config.reward_model).get("dtype", adapters.base_dtype)
    if dtype != adapters.base_dtype:
        print(
            f"reward_model={config.reward_model}: was trained on a base in {dtype}; here it is "
            f"in lora.base_dtype={adapters.base_dtype}, so that its rewards differ by the rounding"
        )
    return reward_lora


def has_same_base(policy: str, adapter: str) -> bool:
    """Whether an adapter was trained on a policy's weights, or on the base of a policy's adapter.

    Compares digests, recorded or computed, unless both have the same files.
    """
    recorded = peft.recorded_digest(policy), peft.recorded_digest(adapter)
    if not all(recorded) and peft.base_of(policy).resolve() == peft.base_of(adapter).resolve():
        return True  # if they were changed, load_frozen finds out
    return peft.is_same_base(hf_load.base_digest(policy), hf_load.base_digest(adapter))


def parts_of(models: Architectures) -> list[tuple[str, ...]]:
    """Groups of parts that are updated together: policy and critic if they share states."""
    if not models.has_values:
        return [("policy",)]
    return [("policy", "critic")] if models.critic is None else [("policy",), ("critic",)]


def read_tokenizer(config: ConfigDict, models: Architectures):
    """The policy's tokenizer; raises InputError if it does not match model or reward model."""
    tokenizer = hf_load.load_tokenizer(config.policy)
    check_vocabulary(tokenizer, models.policy.cfg.vocab_size, config.data.template or "chat")
    if config.reward_model and (models.critic or not config.reward_function):
        reward_tokenizer = hf_load.load_tokenizer(folders_of(config.reward_model)[0])
        names = f"policy={config.policy}", f"reward_model={config.reward_model}"
        check_same(tokenizer, reward_tokenizer, *names)
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
    """{"policy"[, "critic"]}: shapes, dtypes and shardings of the trained parameters."""
    policy = lora.trained(heads.abstract_params(models.policy, mesh), models.lora, mesh)
    if not models.has_values:
        return {"policy": policy}
    if models.critic is None:
        model = heads.TokenValueModel(models.policy.cfg, "after")
        head = heads.abstract_params(model, mesh)["head"]
        return {"policy": policy, "critic": {"head": head}}
    critic = heads.abstract_params(models.critic, mesh)
    # The critic starts from the reward model's adapter, if it is one. Not split from a base: that
    # may be a whole reward model, which is not quantized.
    adapters = models.reward_lora or models.lora
    return {"policy": policy, "critic": lora.trained(critic, adapters, mesh)}


def abstract_frozen(config: ConfigDict, models: Architectures, mesh: Mesh) -> Frozen:
    """Shapes, dtypes and shardings of the frozen parameters.

    With ``inference_dtype=bfloat16`` whole models are stored in their compute dtypes, so that the
    reference computes the same bits as the policy.
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
        full = heads.abstract_params(models.reward_model, mesh)
        reward_model = lora.trained(full, models.reward_lora, mesh) | {"head": full["head"]}
    elif models.reward_model is not None:
        reward_model = abstract(models.reward_model)
    return Frozen(base, reference, {} if config.reward_function else reward_model)


def initial_params(config: ConfigDict, models: Architectures, mesh: Mesh) -> dict:
    """The policy's checkpoint and, if the algorithm has one, a critic with a head of zeros.

    The critic's backbone is a copy of the reward model's (of the policy's, if a function gives the
    rewards), unless it shares the policy's. Adapters are those of the checkpoints, or new ones.
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
    rest = {name: tree for name, tree in abstract.items() if name != "head"}
    if not rest:
        return critic
    if models.lora and not models.reward_lora:
        return critic | {"lora": lora.init_adapter(jax.random.fold_in(key, 1), rest["lora"])}
    path = folders_of(config.reward_model)[0] if models.reward_model else config.policy
    return critic | hf_load.load_params(path, rest)


def load_frozen(config: ConfigDict, models: Architectures, mesh: Mesh) -> tuple[Frozen, str]:
    """The parameters of :func:`abstract_frozen`, loaded, and the digest of the base, or "".

    Raises InputError for a reward model that was trained as an adapter on other weights.
    """
    base, reference, reward_model = abstract_frozen(config, models, mesh)
    digest = ""
    with jax.set_mesh(mesh):
        if base:
            base, digest = hf_load.load_base(config.policy, base)
        expected = peft.recorded_digest(config.reward_model) if models.reward_lora else ""
        if expected and not peft.is_same_base(expected, digest):
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
