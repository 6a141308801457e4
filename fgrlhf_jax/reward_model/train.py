"""Trains and evaluates a reward model: from records to an exported model, tables and a log."""

import functools
from collections.abc import Mapping, Sequence
from itertools import chain

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from fgrlhf_jax.data.bucketing import choose_buckets
from fgrlhf_jax.data.pairs import Pair, encode_by_kind, pad_pairs, print_preference_note
from fgrlhf_jax.data.records import Record
from fgrlhf_jax.errors import InputError
from fgrlhf_jax.functional import pair_metrics
from fgrlhf_jax.functional.pair_metrics import PairValues
from fgrlhf_jax.functional.reward_losses import reward_model_loss
from fgrlhf_jax.models import heads, hf_load, lora, peft
from fgrlhf_jax.models.cards import Origin
from fgrlhf_jax.models.flops import pair_flops
from fgrlhf_jax.reward_model.model import Normalization, fit_normalization, level_of
from fgrlhf_jax.reward_model.modules import RewardMeta, make_module
from fgrlhf_jax.reward_model.scorer import RewardModel
from fgrlhf_jax.runtime import run_dir
from fgrlhf_jax.training import run as training
from fgrlhf_jax.training import setup
from fgrlhf_jax.training.supervised import Predictor, SupervisedTrainer, eval_step

SHOWN = ("accuracy",)  # metrics of an evaluation


def run(config: ConfigDict, sets: dict[str, list], tokenizer=None) -> dict:
    """Trains, evaluates and exports as ``config`` (``configs/rm.py``) says, or resumes a run.

    Args:
      sets: records by name: ``train``, ``validation`` and optionally ``test``.
      tokenizer: for random weights; None trains one on the training records.

    Returns the content of ``eval.json``. Raises as ``training.run.run``, and InputError for an
    unusable config, data set or model.
    """
    mesh, cfg, tokenizer, data = setup.set_up(config, sets["train"], tokenizer)
    model = make_module(cfg, config.loss, config.model.head)
    pairs = {name: encode_by_kind(rows, name, tokenizer, data) for name, rows in sets.items()}
    if config.loss == "token_edit":
        print_preference_note(pairs["train"])
    lengths = [pair.length for by_kind in pairs.values() for pair in chain(*by_kind.values())]
    buckets = choose_buckets(lengths, config.data.buckets)
    trainer = make_trainer(config, mesh, model, pairs["train"], pairs["validation"], buckets)
    folder, predictor = run_dir.open_run(config), trainer.predictor
    for group in pairs["validation"].values():
        predictor.warm_up(lora.join(trainer.frozen, trainer.params), group)
    step, params = training.run(config, trainer, folder)
    params = trainer.all_params(params)
    # On the validation set, because the model has memorised the rejected training responses.
    normalization = normalize_on_pairs(
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
    return SupervisedTrainer(
        *(config, mesh, model, [*chain(*train.values())], [*validation.values()], buckets),
        pad=pad_pairs,
        losses=functools.partial(pair_losses, **settings),
        shown=SHOWN,
        flops=functools.partial(pair_flops, model.cfg),
        load_params=initial_params,
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


def pair_losses(params: dict, batch: dict, *, model: heads.TokenValueModel, **settings):
    """Per-pair losses [B], their metrics [B] and the values [B, 2, S] of a batch of pairs.

    The model reads each pair as one row of ``pairs.pad_pairs``; values and losses are then computed
    on each side's own tokens. ``settings`` are those of ``reward_model_loss``.
    """
    tokens_BS, positions_BS, previous_BS = (
        batch[f"{name}_BS"] for name in ("tokens", "positions", "previous")
    )
    attend = batch["mask_BS"], batch["branch_BS"]
    value_BS = model.apply(lora.variables(params), tokens_BS, positions_BS, attend, previous_BS)
    value_B2S = jnp.take_along_axis(value_BS[:, None], batch["columns_B2S"], axis=-1)
    loss_B, metrics_B = jax.vmap(functools.partial(reward_model_loss, **settings))(
        value_B2S, batch["response_B2S"], batch["changed_B2S"], batch["partner_BS"]
    )
    return loss_B, metrics_B, value_B2S


def unpad(value_2S: np.ndarray, pair: Pair) -> PairValues:
    """The values of a pair's response tokens."""
    i, j = pair.start_i, pair.start_j
    values = value_2S[0, i : len(pair.tokens_i)], value_2S[1, j : len(pair.tokens_j)]
    return PairValues(values[0], pair.changed_i[i:], values[1], pair.changed_j[j:])


def make_tables(
    predictor: Predictor, reward_model: RewardModel, pairs: Mapping[str, Sequence[Pair]]
) -> dict[str, dict]:
    """The entry of ``eval.json`` for one set of records: a table for each kind of pair."""
    meta, tables = reward_model.meta, {}
    for kind, group in pairs.items():
        sums, scored = predictor.predict(reward_model.params, group, unpad)
        tables[kind] = pair_metrics.compute_pair_metrics(
            scored, level=meta.level, edits=kind == "edits", center=meta.normalization.mean
        )
        tables[kind]["loss"] = sums["loss"] / len(group)
        if annotated := [k for k, pair in enumerate(group) if pair.marked_j.any()]:
            values = [scored[k].value_j for k in annotated]
            labels = [group[k].marked_j[group[k].start_j :] for k in annotated]
            tables[kind]["auroc_spans"] = pair_metrics.span_auroc(values, labels)
    return tables


def evaluate(
    reward_model: RewardModel,
    sets: Mapping[str, Sequence[Record]],
    *,
    batch_size: int,
    buckets: int = 6,
    **data,
) -> dict[str, dict]:
    """A reward model's table for each kind of pair ("edits", "preferences") of each set.

    Raises InputError as :func:`encode_by_kind`.

    Args:
      sets: records by the name of their set, as used in messages.
      batch_size: pairs at a time, rounded up to a multiple that the mesh divides.
      buckets: maximum number of different widths that batches are padded to.
      **data: arguments of ``encode_pairs`` that replace those of the model's training.
    """
    data, settings = reward_model.meta.data | data, reward_model.meta.settings
    tokenizer, mesh = reward_model.tokenizer, reward_model.mesh
    pairs = {name: encode_by_kind(rows, name, tokenizer, data) for name, rows in sets.items()}
    lengths = [pair.length for by_kind in pairs.values() for pair in chain(*by_kind.values())]
    widths = choose_buckets(lengths, buckets)
    losses = functools.partial(pair_losses, model=reward_model.module, **settings)
    step = functools.partial(eval_step, losses=losses, shown=SHOWN)
    predictor = Predictor(step, pad_pairs, mesh, widths, batch_size)
    return {name: make_tables(predictor, reward_model, kinds) for name, kinds in pairs.items()}


def normalize_on_pairs(
    predictor: Predictor, params: dict, pairs: Mapping[str, Sequence[Pair]], level: str, limit: int
) -> Normalization:
    """Fits the normalization on the unedited responses of at most ``limit`` evenly spaced pairs.

    These are the originals of edits and both sides of preferences: samples of the policy that
    received the feedback.
    """
    values, total = [], sum(len(group) for group in pairs.values())
    for kind, group in pairs.items():
        count = max(1, round(len(group) * min(1.0, limit / total)))
        chosen = [group[i] for i in np.linspace(0, len(group) - 1, count).astype(int)]
        _, scored = predictor.predict(params, chosen, unpad)
        values += [pair.value_j for pair in scored]
        values += [pair.value_i for pair in scored] if kind == "preferences" else []
    return fit_normalization(values, level=level)
