"""Training a reward model: records in; an exported model, its evaluation and its log out."""

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
from fgrlhf_jax.reward_model.evaluate import PairPredictor, fit_normalization, make_tables
from fgrlhf_jax.reward_model.model import level_of, train_step
from fgrlhf_jax.reward_model.modules import RewardMeta, make_module
from fgrlhf_jax.reward_model.scorer import RewardModel
from fgrlhf_jax.runtime import run_dir
from fgrlhf_jax.training import run as training
from fgrlhf_jax.training import supervised
from fgrlhf_jax.training.supervised import SupervisedTrainer


def run(config: ConfigDict, sets: dict[str, list], tokenizer=None) -> dict:
    """Trains, evaluates and exports as ``config`` says; goes on where an earlier start stopped.

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
    mesh, cfg, tokenizer, data = supervised.set_up(config, sets["train"], tokenizer)
    model = make_module(cfg, config.loss, config.model.head)
    pairs = {name: encode_by_kind(rows, name, tokenizer, data) for name, rows in sets.items()}
    if config.loss == "token_edit":
        tell_preferences(pairs["train"])
    lengths = [pair.length for by_kind in pairs.values() for pair in chain(*by_kind.values())]
    buckets = choose_buckets(lengths, config.data.buckets)
    trainer, predictor = make_trainer(
        config, mesh, model, pairs["train"], pairs["validation"], buckets
    )
    folder = run_dir.open_run(config)
    predictor.warm_up(pairs["validation"])
    step, params = training.run(config, trainer, folder)
    params = trainer.whole(params)
    # On the validation set: the rejected responses of training pairs have been learned by heart.
    normalization = fit_normalization(
        predictor, params, pairs["validation"], level_of(config.loss), config.normalization_pairs
    )
    meta = RewardMeta(config.model.head, loss_settings(config), normalization, data)
    reward_model = RewardModel(model, params, tokenizer, meta, mesh)
    result = {
        name: make_tables(predictor, reward_model, pairs[name]) for name in sets if name != "train"
    }
    note = reward_model.save(
        folder / "export",
        dtype=config.export.dtype,
        origin=Origin(
            config.model.path,
            config.train,
            pair_metrics.format_table(result),
            base_digest=trainer.base_digest,
        ),
        adapter=None if config.export.merged else lora.from_config(config),
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
) -> tuple[SupervisedTrainer, PairPredictor]:
    """Training of ``model`` on pairs, given by kind, and what it is evaluated with."""
    settings, adapters = loss_settings(config), lora.from_config(config)
    trained, frozen = lora.split(heads.abstract_params(model, mesh), adapters, mesh)
    batch_size, whole = supervised.eval_batch_size(config, mesh), lora.join(frozen, trained)
    predictor = PairPredictor(model, settings, mesh, buckets, batch_size, whole)
    rows, held_out = (list(chain(*groups.values())) for groups in (train, validation))
    trainer = SupervisedTrainer(
        config,
        mesh,
        trained,
        frozen,
        rows,
        held_out,
        buckets=buckets,
        pad=pad_pairs,
        train_step=functools.partial(train_step, model=model, **settings),
        flops=functools.partial(pair_flops, model.cfg),
        initial_params=functools.partial(initial_params, config, model, trained),
        evaluate_model=lambda params: predictor.validation_metrics(params, validation),
    )
    return trainer, predictor


def loss_settings(config: ConfigDict) -> dict:
    """The loss and the weights of its parts."""
    names = ("loss", "consistency_weight", "center_weight", "center_scale")
    return {name: config[name] for name in names}


def initial_params(config: ConfigDict, model: heads.TokenValueModel, abstract: dict) -> dict:
    """Random, but the backbone (and state-action table) of the checkpoint in ``model.path``.

    With an adapter in ``abstract`` it is that and a head, both those of an adapter in
    ``model.path`` where it has such a head.

    Raises:
      InputError: for an adapter that has a table U of its own, which an export would not have.
    """
    path, key = config.model.path, jax.random.key(config.seed)
    random = {part: tree for part, tree in abstract.items() if part == "head" or not path}
    params = supervised.random_params(model, key, random)
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
