"""Training a reward model: records in; a calibrated, exported model, its table and its log out."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from fgrlhf_jax.data.bucketing import make_buckets
from fgrlhf_jax.data.pairs import pad_pairs
from fgrlhf_jax.models import hf_load, llama
from fgrlhf_jax.reward_model import model as reward
from fgrlhf_jax.reward_model.evaluate import (
    PairPredictor,
    encode_by_kind,
    fit_normalization,
    make_tables,
)
from fgrlhf_jax.reward_model.scorer import RewardMeta, RewardModel, make_module
from fgrlhf_jax.runtime import multihost, optim, run_dir
from fgrlhf_jax.runtime.files import write_json
from fgrlhf_jax.training import supervised


def run(config: ConfigDict, sets: dict[str, list], tokenizer=None) -> dict:
    """Train, evaluate and export as ``config`` says; go on where an earlier start stopped.

    Args:
      config: ``configs/rm.py``.
      sets: records by name: ``train``, ``validation`` and, if there is one, ``test``.
      tokenizer: for random weights; None trains one on the training records.

    Returns:
      The content of ``eval.json``.

    Raises:
      InputError: for anything in the config, data, model or folder that cannot be used, and when
        the loss stops being finite.
      KeyboardInterrupt: after Ctrl-C or SIGTERM, once the state is saved.
    """
    mesh, micro_size = supervised.check(config)
    cfg, tokenizer = supervised.model_and_tokenizer(config, sets["train"], tokenizer)
    model = make_module(cfg, config.loss, config.model.head)
    data = config.data.to_dict()
    buckets = make_buckets(data["max_length"], data.pop("smallest_bucket"))
    pairs = {name: encode_by_kind(rows, name, tokenizer, data) for name, rows in sets.items()}
    settings = {
        "loss": config.loss,
        "consistency_weight": config.consistency_weight,
        "center_weight": config.center_weight,
    }
    supervised.check_freeze(config.optimizer.freeze, llama.abstract_params(model, mesh))
    recipe = make_recipe(
        config,
        [pair for group in pairs["train"].values() for pair in group],
        buckets,
        micro_size,
        [pair for group in pairs["validation"].values() for pair in group],
    )
    predictor = PairPredictor(
        model, settings, mesh, buckets, config.eval_batch_size or micro_size
    )
    folder = run_dir.open_run(config)
    params = supervised.train(
        config,
        recipe,
        abstract_state(model, recipe.optimizer, mesh),
        mesh,
        folder,
        initial=lambda: initial_params(config, model, mesh),
        step=train_step(model=model, optimizer=recipe.optimizer, **settings),
        warm_up=lambda: predictor.warm_up(pairs["validation"]),
        figures=lambda params: predictor.validation_metrics(params, pairs["validation"]),
    )
    # On the validation set: the rejected responses of training pairs have been learned by heart.
    normalization = fit_normalization(
        predictor,
        params,
        pairs["validation"],
        reward.level_of(config.loss),
        config.normalization_pairs,
    )
    meta = RewardMeta(config.model.head, settings, normalization, data)
    reward_model = RewardModel(model, params, tokenizer, meta, mesh)
    result = {
        name: make_tables(predictor, reward_model, pairs[name], rows)
        for name, rows in sets.items()
        if name != "train"
    }
    note = reward_model.save(folder / "export")
    if jax.process_index() == 0:
        print(note)
        write_json(folder / "eval.json", result)
    multihost.wait_for_all()
    return result


def make_recipe(
    config: ConfigDict, pairs: list, buckets, micro_size: int, held: list = ()
) -> supervised.Recipe:
    """:func:`supervised.make_recipe` of pairs, and those ``held`` to validate on."""
    names = ("tokens_i", "tokens_j", "changed_i", "changed_j", "partner")
    return supervised.make_recipe(
        config,
        [pair.length for pair in pairs],
        lambda rows, bucket: pad_pairs([pairs[r] for r in rows], bucket),
        (getattr(pair, name) for pair in pairs for name in names),
        (getattr(pair, name) for pair in held for name in names),
        buckets,
        micro_size,
    )


def train_step(**settings) -> Callable:
    """(state, batch) -> (state, metrics); the arguments are those of ``reward.train_step``."""
    return functools.partial(reward.train_step, **settings)


def abstract_state(model: llama.TokenValueModel, optimizer, mesh: Mesh) -> optim.TrainState:
    """Shapes, dtypes and shardings of the train state; allocates nothing."""
    params = llama.abstract_params(model, mesh)
    return supervised.abstract_state(params, optimizer, mesh)


def compile_step(abstract: optim.TrainState, batch: dict, mesh: Mesh, **settings):
    """``reward.train_step`` compiled ahead of time, see :func:`supervised.compile_step`."""
    return supervised.compile_step(train_step(**settings), abstract, batch, mesh)


def initial_params(config: ConfigDict, model: llama.TokenValueModel, mesh: Mesh) -> dict:
    """Random parameters, but the backbone (and state-action table) of a checkpoint where given."""
    abstract = llama.abstract_params(model, mesh)
    path, loaded = config.model.path, {"backbone"} if config.model.path else set()
    drawn = {part: tree for part, tree in abstract.items() if part not in loaded}
    params = supervised.random_params(model, jax.random.key(config.seed), drawn)
    if config.model.head_init == "zero":
        params["head"]["kernel"] = jnp.zeros_like(params["head"]["kernel"])
    if loaded:
        params |= hf_load.load_params(path, {"backbone": abstract["backbone"]})
        if "unembed" in params["head"]:
            unembed = {"unembed": abstract["head"]["unembed"]}
            params["head"] |= hf_load.load_params(path, {"head": unembed})["head"]
    return params
