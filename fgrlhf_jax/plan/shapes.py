"""The models of a run and its steps as abstract shapes; nothing is allocated."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from fgrlhf_jax.data.bucketing import choose_buckets
from fgrlhf_jax.data.demonstrations import Demonstration
from fgrlhf_jax.data.pairs import Pair
from fgrlhf_jax.errors import InputError
from fgrlhf_jax.models import heads, hf_load, llama, lora
from fgrlhf_jax.models.sizes import SIZES
from fgrlhf_jax.plan.lengths import Lengths, dummy_pair, mean_trips
from fgrlhf_jax.ppo import programs as ppo_programs
from fgrlhf_jax.ppo.algorithm import PPOSettings
from fgrlhf_jax.ppo.model_flops import model_flops
from fgrlhf_jax.ppo.models import make_architectures
from fgrlhf_jax.reward_model.combined import first_backbone
from fgrlhf_jax.reward_model.model import Normalization
from fgrlhf_jax.reward_model.modules import RewardMeta, make_module, read_modules
from fgrlhf_jax.reward_model.train import make_trainer
from fgrlhf_jax.runtime import sharding
from fgrlhf_jax.training import dpo, setup, sft
from fgrlhf_jax.training.supervised import SupervisedTrainer

# PPO's models, in the order of the plan's table.
MODELS = ("base", "policy", "reference", "critic", "reward model")


class Step(NamedTuple):
    """One program of a run, not yet compiled."""

    compile: Callable[[], jax.stages.Compiled]
    resident: object  # models and optimizer state among its arguments
    flops: float  # of the model, over all devices
    stages: tuple[str, ...]  # one stage, or two: before and inside its loop
    trips: Mapping[str, float] = MappingProxyType({})  # see hlo_costs.count
    share: float = 1.0  # share of the updates that run this program


class RunShapes(NamedTuple):
    """The abstract models, optimizer state and steps of a run."""

    mesh: Mesh
    models: dict[str, dict]  # abstract parameters
    optimizer: object  # its abstract state
    cache: int  # bytes of the KV cache on one device, part of generate's temporaries
    steps: dict[str, Step]  # in the order in which they run


def model_config(path: str, size: str, fields: dict, length: int) -> llama.LlamaConfig:
    """The configuration of a local checkpoint, or of ``SIZES[size]`` if ``path`` is empty.

    Args:
      fields: fields of LlamaConfig that override the checkpoint's, such as ``dtype``.
      length: tokens of the longest row.

    Raises:
      InputError: for a missing path, an unknown size, or too few positions.
    """
    if path and not Path(path).exists():
        raise InputError(
            f"{path}: is no local folder or .gguf file, and a plan downloads nothing; leave the "
            f"path empty to plan for {size}"
        )
    if not path and size not in SIZES:
        raise InputError(f"size={size!r} is not one of {', '.join(SIZES)}")
    cfg = hf_load.read_config(path) if path else SIZES[size]
    if length > cfg.max_position:
        raise InputError(
            f"rows of {length} tokens are more than the model's {cfg.max_position} positions; "
            "lower the lengths in config.data"
        )
    cfg = dataclasses.replace(cfg, **fields)
    # Plans are compiled for the CPU, which has no flash kernel.
    return dataclasses.replace(cfg, attention="xla")


def ppo_shapes(config: ConfigDict, lengths: Lengths | None = None) -> RunShapes:
    """Shapes of a run with ``configs/ppo.py``.

    Rows have the lengths in ``lengths``; without them all have the maximum length. Without
    ``policy`` and ``reward_model`` all models have ``config.size``.
    """
    mesh = sharding.make_mesh(config.mesh)
    ppo_programs.check_sizes(config, mesh)
    B, P, T = (config.rollout_batch_size, config.data.max_prompt_length, config.data.max_new_tokens)
    prompt_widths, widths, prompts, responses = (P,), (), np.full(B, P), np.full(B, T)
    if lengths:
        lengths = lengths.within(P, T)
        prompt_widths = ppo_programs.prompt_widths(lengths.prompts.tolist())
        P, widths = prompt_widths[-1], ppo_programs.row_widths(lengths.prompts.tolist(), T)
        prompts, responses = map(np.concatenate, zip(*lengths.draw(B), strict=True))
    S, fields = P + T, config.model.to_dict()
    cfg = model_config(config.policy, config.size, fields, S)
    reward_model = meta = None
    if config.reward_model:
        reward_model, meta = read_modules(config.reward_model, config.ensemble_penalty, **fields)
    elif not config.reward_function:
        loss = "sequence" if config.level == "sequence" else "token_edit"
        head = "action" if config.algorithm == "distill" else "after"
        reward_model = make_module(cfg, loss, head)
        meta = RewardMeta(head, {"loss": loss}, Normalization(0.0, 1.0), {})
    architectures = make_architectures(config, cfg, reward_model, meta)
    optimizer, _ = ppo_programs.make_optimizer(config)
    options = {"ends": (0,), "prompt_widths": prompt_widths, "widths": widths}
    programs = ppo_programs.make(config, architectures, mesh, optimizer, **options)
    programs["score_rollout"] = training_only(programs["score_rollout"])
    settings = PPOSettings.from_config(config, widths)
    state = programs["update"].arguments[0]
    params, frozen = programs["score_rollout"].arguments[:2]

    flops = model_flops(
        *(architectures, settings, prompts, responses),
        scored=bool(frozen.reward_model),
        imitated=config.ptx_weight and [np.full(config.ppo_epochs * B, n) for n in (P, T)],
    )
    flops = {name: total * B / len(prompts) for name, total in flops.items()}
    trips: dict[str, dict] = {"score_rollout": {}, "update": {}}
    if len(widths) > 1:
        sizes = {"score_rollout": B, "update": config.minibatch_size}
        trips = {n: mean_trips(lengths, rows, settings, mesh) for n, rows in sizes.items()}
    adapts_critic = architectures.lora and architectures.critic  # on a reward model's weights
    critic_base = first_backbone(frozen.reward_model) if adapts_critic else {}
    resident = {
        "generate": (),
        "score_rollout": (params, frozen),
        "update": (state, frozen if config.algorithm == "distill" else (frozen.base, critic_base)),
    }
    steps = {
        name: Step(lambda name=name: programs[name].lower().compile(), resident[name], *values)
        for name, values in {
            "generate": (flops["generate"], ("prefill", "decode"), {"": T - 1}),
            **{name: (flops[name], (name,), trips[name]) for name in ("score_rollout", "update")},
        }.items()
    }
    cache = cache_bytes(cfg, programs["generate"].mesh, B, S, int8=config.sampling.int8_cache)
    models = {**params, **frozen._asdict(), "reward model": frozen.reward_model}
    models = {name: models[name] for name in MODELS if models.get(name)}
    return RunShapes(mesh, models, state.opt_state, cache, steps)


def training_only(score_rollout: ppo_programs.Program) -> ppo_programs.Program:
    """``score_rollout`` without its branch for rollouts that no update follows."""
    *first, _, prompt, mask, sampled = score_rollout.arguments

    def score(*arguments):
        return score_rollout.function(*arguments[:-3], True, *arguments[-3:])

    return score_rollout._replace(function=score, arguments=(*first, prompt, mask, sampled))


def cache_bytes(cfg: llama.LlamaConfig, mesh: Mesh, rows: int, columns: int, *, int8: bool) -> int:
    """Bytes of the keys and values of all layers on one device."""
    rows //= mesh.shape["data"] * mesh.shape["fsdp"]
    tensor = mesh.shape["tensor"]
    heads = cfg.num_kv_heads // tensor if cfg.num_kv_heads % tensor == 0 else cfg.num_kv_heads
    size = np.dtype(jax.numpy.dtype(cfg.dtype)).itemsize
    head_bytes = cfg.head_dim + 4 if int8 else cfg.head_dim * size  # int8 with a float32 scale
    return 2 * cfg.num_layers * rows * columns * heads * head_bytes


def reward_model_shapes(config: ConfigDict, rows: Sequence[Pair] = ()) -> RunShapes:
    """Shapes of a run with ``configs/rm.py``.

    Without ``rows``, pairs of the maximum length without common tokens, which fill rows of twice
    that length.
    """
    mesh = setup.make_mesh(config)
    cfg, length = supervised_model_config(config)
    model = make_module(cfg, config.loss, config.model.head)
    rows = rows or [dummy_pair(0, length, length)] * config.batch_size
    buckets = choose_buckets([pair.length for pair in rows], config.data.buckets)
    kinds = {"edits": list(rows)}
    trainer = make_trainer(config, mesh, model, kinds, kinds, buckets)
    return supervised_shapes(trainer, "reward model")


def dpo_shapes(config: ConfigDict, rows: Sequence[Pair] = ()) -> RunShapes:
    """Shapes of a run with ``configs/dpo.py``; rows as in :func:`reward_model_shapes`.

    The made-up rows consist of response tokens only. The step "evaluate" also covers the reference
    model's log-probabilities, computed in such batches before training.
    """
    mesh, config = setup.make_mesh(config), dpo.supervised_config(config)
    cfg, length = supervised_model_config(config)
    rows = rows or [dummy_pair(0, length, length)] * config.batch_size
    buckets = choose_buckets([pair.length for pair in rows], config.data.buckets)
    trainer = dpo.make_trainer(config, mesh, heads.CausalLM(cfg), list(rows), [], buckets)
    return supervised_shapes(trainer, "policy")


def sft_shapes(config: ConfigDict, rows: Sequence[Demonstration] = ()) -> RunShapes:
    """Shapes of a run with ``configs/sft.py``; without ``rows``, rows of the maximum length."""
    mesh = setup.make_mesh(config)
    cfg, length = supervised_model_config(config)
    rows = rows or [Demonstration(np.zeros(length, np.int32), 1)] * config.batch_size
    buckets = choose_buckets([len(row.tokens) for row in rows], config.data.buckets)
    trainer = sft.make_trainer(config, mesh, heads.CausalLM(cfg), list(rows), [], buckets)
    return supervised_shapes(trainer, "policy")


def supervised_model_config(config: ConfigDict) -> tuple[llama.LlamaConfig, int]:
    """The model's configuration, and the maximum length of a row."""
    names = ("dtype", "remat", "scan_layers", "attention", "float32_gradients")
    fields = {name: config.model[name] for name in names}
    if not config.model.path and config.model.size in setup.RANDOM_SIZES:
        fields["vocab_size"] = config.model.vocab_size
    length = config.data.max_length
    return model_config(config.model.path, config.model.size, fields, length), length


def supervised_shapes(trainer: SupervisedTrainer, name: str) -> RunShapes:
    """Shapes of a run that updates the model ``name`` and evaluates it.

    Updates are compiled for every batch width of an epoch, the evaluation for the longest row.
    """
    mesh, state = trainer.mesh, trainer.abstract
    epoch = [trainer.batch(n) for n in range(min(trainer.updates_per_epoch, trainer.steps))]
    steps = {}
    for width in sorted({width for width, _ in epoch}):
        batches = [batch for w, batch in epoch if w == width]
        share = len(batches) / len(epoch)
        step_name = "train" if share == 1 else f"train_{width}"
        steps[step_name] = Step(
            lambda batch=batches[0]: trainer.lower(abstract_batch(batch, mesh, axis=1)).compile(),
            (state, trainer.frozen),
            trainer.passes * float(np.mean([*map(trainer.flops, batches)])),
            (step_name,),
            share=share,
        )
    longest = max(trainer.train, key=lambda row: row.length)
    eval_batch = trainer.pad([longest] * trainer.predictor.batch_size, trainer.buckets[-1])
    params = lora.join(trainer.frozen, trainer.params)

    def compile_evaluation():
        with jax.set_mesh(mesh):
            return trainer.predictor.step.lower(params, abstract_batch(eval_batch, mesh)).compile()

    flops = float(trainer.flops(eval_batch))
    steps["evaluate"] = Step(compile_evaluation, params, flops, ("evaluate",))
    models = {name: state.params} | ({"base": trainer.frozen} if trainer.frozen else {})
    return RunShapes(mesh, models, state.opt_state, 0, steps)


def abstract_batch(batch: dict, mesh: Mesh, axis: int = 0) -> dict:
    """The abstract arrays of a host batch, with rows sharded over the mesh."""
    rows = sharding.batch_sharding(mesh, axis)
    return {n: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=rows) for n, x in batch.items()}
