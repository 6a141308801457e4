"""A run as shapes: its models, and every step that it compiles; nothing is allocated.

FLOPs of the model are what the mathematics needs: 2 a weight and token forward, and 4 a head
channel, query and key for the attention (both halves of the square, as is usual); twice as much
again for the backward pass. Norms, rotations and scalar heads are left out.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from fgrlhf_jax.data.demonstrations import Demonstration, pad_demonstrations
from fgrlhf_jax.data.pairs import Pair, pad_pairs
from fgrlhf_jax.errors import InputError
from fgrlhf_jax.models import hf_load, llama
from fgrlhf_jax.ppo import models as ppo_models
from fgrlhf_jax.ppo import programs as ppo_programs
from fgrlhf_jax.reward_model import model as reward
from fgrlhf_jax.reward_model import scorer as reward_eval
from fgrlhf_jax.reward_model import train as reward_loop
from fgrlhf_jax.runtime import sharding
from fgrlhf_jax.training import sft, sft_loop, supervised


class Step(NamedTuple):
    """One compiled program of a run.

    Attributes:
      compile: makes it.
      given: of what the run holds all the time (models and optimizer), the part that it is given.
      flops: of the model, over all devices.
    """

    compile: Callable[[], jax.stages.Compiled]
    given: object
    flops: float


class Outline(NamedTuple):
    """A run as shapes.

    Attributes:
      models: abstract parameters by name.
      optimizer: its abstract state.
      cache: bytes a device of the KV cache, which is among the temporaries of "generate".
      steps: by name, in the order in which they run.
    """

    mesh: Mesh
    models: dict[str, dict]
    optimizer: object
    cache: int
    steps: dict[str, Step]


def shape_of(path: str, size: str, how: dict, tokens: int) -> llama.LlamaConfig:
    """The model of a local checkpoint, or of ``llama.SIZES`` where ``path`` is empty.

    Args:
      how: fields of LlamaConfig on how to compute, such as ``dtype``.
      tokens: of the longest row.

    Raises:
      InputError: for a path that is not here, an unknown size, or too few positions.
    """
    if path and not Path(path).exists():
        raise InputError(
            f"{path}: is no local folder or .gguf file, and a plan downloads nothing; leave the "
            f"path empty to plan for {size}"
        )
    if not path and size not in llama.SIZES:
        raise InputError(f"size={size!r} is not one of {', '.join(llama.SIZES)}")
    cfg = hf_load.read_config(path) if path else llama.SIZES[size]
    if tokens > cfg.max_position:
        raise InputError(
            f"rows of {tokens} tokens are more than the model's {cfg.max_position} positions; "
            "lower the lengths in config.data"
        )
    return dataclasses.replace(cfg, **how)


def forward_flops(cfg: llama.LlamaConfig, tokens: int, pairs: int) -> float:
    """Of all layers.

    Args:
      tokens: that go through them.
      pairs: of a query and a key that it may look at.
    """
    attention = 2 * cfg.hidden_size * cfg.head_dim * (cfg.num_heads + cfg.num_kv_heads)
    weights = cfg.num_layers * (attention + 3 * cfg.hidden_size * cfg.intermediate_size)
    return 2.0 * weights * tokens + 4.0 * cfg.num_layers * cfg.num_heads * cfg.head_dim * pairs


def rows_flops(cfg: llama.LlamaConfig, rows: int, columns: int) -> float:
    """:func:`forward_flops` of whole rows."""
    return forward_flops(cfg, rows * columns, rows * columns**2)


def logits_flops(cfg: llama.LlamaConfig, tokens: int) -> float:
    """Of the language model's head, forward."""
    return 2.0 * cfg.hidden_size * cfg.vocab_size * tokens


def ppo(config: ConfigDict) -> Outline:
    """Of ``configs/ppo.py``: generate, assess, learn, for prompts as long as they may be.

    Without ``policy`` and ``reward_model`` all models have ``config.size``.
    """
    mesh = sharding.make_mesh(config.mesh)
    ppo_programs.check(config, mesh)
    B, P, T = (
        config.rollout_batch_size,
        config.data.max_prompt_length,
        config.data.max_new_tokens,
    )
    S, how = P + T, config.model.to_dict()
    cfg = shape_of(config.policy, config.size, how, S)
    scorer = meta = None
    if config.reward_model:
        scorer, meta = reward_eval.read_model(config.reward_model, how)
    elif not config.reward_function:
        loss = "sequence" if config.level == "sequence" else "token_edit"
        scorer = reward_eval.make_model(cfg, loss, "after")
        meta = reward_eval.Meta("after", {"loss": loss}, reward.Normalization(0.0, 1.0), {})
    critic = None
    if config.critic == "separate":
        critic = llama.TokenValueModel(scorer.cfg if scorer else cfg, "after")
    modules = ppo_models.Modules(llama.CausalLM(cfg), critic, scorer, meta)
    optimizer, _ = ppo_programs.make_optimizer(config)
    programs = ppo_programs.make(config, modules, mesh, optimizer, eos=0, prompt_width=P)
    state = programs["learn"].arguments[0]
    params, reference, scorer_params = programs["assess"].arguments[:3]

    policy = rows_flops(cfg, B, S) + logits_flops(cfg, B * T)
    value = rows_flops(critic.cfg, B, S) if critic else 0.0
    score = rows_flops(scorer.cfg, B, S) if scorer_params else 0.0
    # The last token is drawn and not read again.
    said = forward_flops(cfg, B * (S - 1), B * (P * P + sum(range(P + 1, S))))
    flops = {
        "generate": said + logits_flops(cfg, B * T),
        "assess": 2 * policy + value + score,
        "learn": 3 * config.ppo_epochs * (policy + value),
    }
    given = {
        "generate": params["policy"],
        "assess": (params, reference, scorer_params),
        "learn": state,
    }
    models = {
        "policy": params["policy"],
        "reference": reference,
        "critic": params["critic"],
        "reward model": scorer_params,
    }
    return Outline(
        mesh,
        {name: tree for name, tree in models.items() if tree},
        state.opt_state,
        cache_bytes(cfg, mesh, B, S),
        {
            name: Step(lambda one=one: one.lower(mesh).compile(), given[name], flops[name])
            for name, one in programs.items()
        },
    )


def cache_bytes(cfg: llama.LlamaConfig, mesh: Mesh, rows: int, columns: int) -> int:
    """Keys and values of all layers, a device."""
    rows //= mesh.shape["data"] * mesh.shape["fsdp"]
    tensor = mesh.shape["tensor"]
    heads = cfg.num_kv_heads // tensor if cfg.num_kv_heads % tensor == 0 else cfg.num_kv_heads
    size = np.dtype(jax.numpy.dtype(cfg.dtype)).itemsize
    return 2 * cfg.num_layers * rows * columns * heads * cfg.head_dim * size


def reward_model(config: ConfigDict) -> Outline:
    """Of ``configs/rm.py``: an update and a batch of the evaluation, for the longest rows."""
    mesh, micro = supervised.check(config)
    cfg, length = supervised_shape(config)
    model = reward_eval.make_model(cfg, config.loss, config.model.head)
    settings = {
        "loss": config.loss,
        "consistency_weight": config.consistency_weight,
        "center_weight": config.center_weight,
    }
    tokens = np.zeros(2, np.int32)
    pair = Pair(tokens, tokens, 1, tokens > 0, tokens > 0, tokens, 0)
    recipe = reward_loop.make_recipe(config, [pair] * config.batch_size, (length,), micro)
    state = reward_loop.abstract_state(model, recipe.optimizer, mesh)
    step = reward_loop.train_step(model=model, optimizer=recipe.optimizer, **settings)
    size = config.eval_batch_size or micro
    predict = reward_eval.Predictor(model, settings, mesh, (length,), size)
    some = on_mesh(pad_pairs([pair], length, predict.batch_size), mesh)
    return supervised_outline(
        config,
        mesh,
        state,
        name="reward model",
        train=(step, on_mesh(recipe.batch(0), mesh, axis=1)),
        evaluate=lambda: predict.step.lower(state.params, some),
        row_flops=2 * rows_flops(cfg, 1, length),
        eval_rows=predict.batch_size,
    )


def supervised_fine_tuning(config: ConfigDict) -> Outline:
    """Of ``configs/sft.py``: an update and a batch of the evaluation, for the longest rows."""
    mesh, micro = supervised.check(config)
    cfg, length = supervised_shape(config)
    model = llama.CausalLM(cfg)
    row = Demonstration(np.zeros(2, np.int32), 1)
    recipe = sft_loop.make_recipe(config, [row] * config.batch_size, (length,), micro)
    state = supervised.abstract_state(
        llama.abstract_params(model, mesh), recipe.optimizer, mesh
    )
    size = sharding.round_batch_size(config.eval_batch_size or micro, mesh)
    some = on_mesh(pad_demonstrations([row], length, size), mesh)

    def step(state, batch):
        return sft.train_step(state, batch, model=model, optimizer=recipe.optimizer)

    return supervised_outline(
        config,
        mesh,
        state,
        name="policy",
        train=(step, on_mesh(recipe.batch(0), mesh, axis=1)),
        evaluate=lambda: sft.eval_step.lower(state.params, some, model=model),
        row_flops=rows_flops(cfg, 1, length) + logits_flops(cfg, length),
        eval_rows=size,
    )


def supervised_shape(config: ConfigDict) -> tuple[llama.LlamaConfig, int]:
    """The model, and the length of the longest rows."""
    how = {name: config.model[name] for name in ("dtype", "remat", "scan_layers", "attention")}
    if not config.model.path and config.model.size in supervised.RANDOM:
        how["vocab_size"] = config.model.vocab_size
    length = config.data.max_length
    return shape_of(config.model.path, config.model.size, how, length), length


def supervised_outline(
    config: ConfigDict,
    mesh: Mesh,
    state,
    *,
    name: str,
    train: tuple[Callable, dict],
    evaluate: Callable[[], jax.stages.Lowered],
    row_flops: float,
    eval_rows: int,
) -> Outline:
    """What both kinds of supervised training have in common."""
    supervised.check_freeze(config.optimizer.freeze, state.params)
    step, batch = train

    def compile_evaluation():
        with jax.set_mesh(mesh):
            return evaluate().compile()

    steps = {
        "train": Step(
            lambda: supervised.compile_step(step, state, batch, mesh),
            state,
            3 * config.batch_size * row_flops,
        ),
        "evaluate": Step(compile_evaluation, state.params, eval_rows * row_flops),
    }
    return Outline(mesh, {name: state.params}, state.opt_state, 0, steps)


def on_mesh(batch: dict, mesh: Mesh, axis: int = 0) -> dict:
    """The shapes of a host batch whose rows are spread over the mesh."""
    where = sharding.batch_sharding(mesh, axis)
    return {
        name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)
        for name, x in batch.items()
    }
