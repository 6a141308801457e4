"""Trains a reward model: from records to an exported model, its evaluation and its log."""

import functools
from itertools import chain

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from fgrlhf_jax.data.bucketing import choose_buckets
from fgrlhf_jax.data.pairs import Pair, encode_by_kind, pad_pairs, tell_preferences
from fgrlhf_jax.errors import InputError
from fgrlhf_jax.functional import pair_metrics
from fgrlhf_jax.models import heads, hf_load, lora, peft
from fgrlhf_jax.models.cards import Origin
from fgrlhf_jax.models.flops import pair_flops
from fgrlhf_jax.reward_model.evaluate import fit_normalization, make_tables, unpad
from fgrlhf_jax.reward_model.model import eval_step, level_of, pair_losses
from fgrlhf_jax.reward_model.modules import RewardMeta, make_module
from fgrlhf_jax.reward_model.scorer import RewardModel
from fgrlhf_jax.runtime import run_dir
from fgrlhf_jax.training import run as training
from fgrlhf_jax.training import setup
from fgrlhf_jax.training.supervised import SupervisedTrainer, train_step


def run(config: ConfigDict, sets: dict[str, list], tokenizer=None) -> dict:
    """Trains, evaluates and exports as ``config`` says; resumes an interrupted run.

    Args:
      config: ``configs/rm.py``.
      sets: records by name: ``train``, ``validation`` and optionally ``test``.
      tokenizer: for random weights; None trains one on the training records.

    Returns:
      The content of ``eval.json``.

    Raises as ``training.run.run``, and InputError for an unusable config, data set or model.
    """
    mesh, cfg, tokenizer, data = setup.set_up(config, sets["train"], tokenizer)
    model = make_module(cfg, config.loss, config.model.head)
    pairs = {name: encode_by_kind(rows, name, tokenizer, data) for name, rows in sets.items()}
    if config.loss == "token_edit":
        tell_preferences(pairs["train"])
    lengths = [pair.length for by_kind in pairs.values() for pair in chain(*by_kind.values())]
    buckets = choose_buckets(lengths, config.data.buckets)
    trainer = make_trainer(config, mesh, model, pairs["train"], pairs["validation"], buckets)
    folder, predictor = run_dir.open_run(config), trainer.predictor
    for group in pairs["validation"].values():
        predictor.warm_up(lora.join(trainer.frozen, trainer.params), group)
    step, params = training.run(config, trainer, folder)
    params = trainer.whole(params)
    # On the validation set, because the model has memorised the rejected training responses.
    normalization = fit_normalization(
        predictor, params, pairs["validation"], level_of(config.loss), config.normalization_pairs
    )
    meta = RewardMeta(config.model.head, loss_settings(config), normalization, data)
    reward_model = RewardModel(model, params, tokenizer, meta, mesh)
    result = {n: make_tables(predictor, reward_model, pairs[n]) for n in sets if n != "train"}
    note = reward_model.save(
        folder / "export",
        dtype=config.export.dtype,
        origin=Origin(
            config.model.path,
            config.train,
            pair_metrics.format_table(result),
            base_digest=trainer.base_digest,
        ),
        adapter=lora.from_config(config),
        merged=config.export.merged,
    )
    run_dir.finish(folder, step, note, result)
    return result


def make_trainer(
    config: ConfigDict,
    mesh: Mesh,
    model: heads.TokenValueModel,
    train: dict[str, list[Pair]],
    validation: dict[str, list[Pair]],
    buckets: tuple[int, ...],
) -> SupervisedTrainer:
    """Training of ``model`` on pairs, given by kind."""
    settings = {"model": model, **loss_settings(config)}
    losses = functools.partial(pair_losses, **settings)
    return SupervisedTrainer(
        *(config, mesh, model, [*chain(*train.values())], [*validation.values()], buckets),
        pad=pad_pairs,
        train_step=functools.partial(train_step, losses=losses),
        eval_step=functools.partial(eval_step, **settings),
        flops=functools.partial(pair_flops, model.cfg),
        load_params=initial_params,
        unpad=unpad,
    )


def loss_settings(config: ConfigDict) -> dict:
    """The loss and the weights of its terms."""
    names = ("loss", "consistency_weight", "center_weight", "center_scale")
    return {name: config[name] for name in names}


def initial_params(config: ConfigDict, model: heads.TokenValueModel, abstract: dict) -> dict:
    """Random parameters, with the backbone (and token table U) of the checkpoint in ``model.path``.

    If ``abstract`` has an adapter: an adapter and a head, taken from ``model.path`` if that is an
    adapter with such a head.

    Raises InputError for an adapter with its own table U, which an export would not contain.
    """
    path, key = config.model.path, jax.random.key(config.seed)
    random = {part: tree for part, tree in abstract.items() if part == "head" or not path}
    params = setup.random_params(model, key, random)
    if config.model.head_init == "zero" and "kernel" in params["head"]:
        params["head"]["kernel"] = jnp.zeros_like(params["head"]["kernel"])
    if "lora" in abstract:
        if peft.has_head(path, ["unembed"]):
            raise InputError(
                f"model.path={path}: trained its head's table of tokens too, as is no longer done; "
                f"give its base, {peft.base_name(path)}, or train all weights with "
                "--config.lora.rank=0"
            )
        params["lora"] = hf_load.initial_adapter(path, key, abstract["lora"])
        if peft.has_head(path, abstract["head"]):
            params |= hf_load.load_params(path, {"head": abstract["head"]})
            return params
    elif path:
        params |= hf_load.load_params(path, {"backbone": abstract["backbone"]})
    if path and "unembed" in params["head"]:
        unembed = {"unembed": abstract["head"]["unembed"]}
        params["head"] |= hf_load.load_params(path, {"head": unembed})["head"]
    return params
