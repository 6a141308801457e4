"""Evaluates a reward model on pairs: accuracy, AUROC and the other metrics of its table."""

import functools
from collections.abc import Mapping, Sequence
from itertools import chain

import numpy as np

from fgrlhf_jax.data import records
from fgrlhf_jax.data.bucketing import choose_buckets
from fgrlhf_jax.data.pairs import Pair, encode_by_kind, pad_pairs
from fgrlhf_jax.functional import pair_metrics
from fgrlhf_jax.functional.pair_metrics import PairValues
from fgrlhf_jax.reward_model import model
from fgrlhf_jax.reward_model.scorer import RewardModel
from fgrlhf_jax.training.supervised import Predictor


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
        sums, scored = predictor.predict(reward_model.params, group)
        tables[kind] = pair_metrics.compute_pair_metrics(
            scored, level=meta.level, edits=kind == "edits", center=meta.normalization.mean
        )
        tables[kind]["loss"] = sums["loss"] / len(group)
        if marked := [k for k, pair in enumerate(group) if pair.marked_j.any()]:
            values = [scored[k].value_j for k in marked]
            labels = [group[k].marked_j[group[k].start_j :] for k in marked]
            tables[kind]["auroc_spans"] = pair_metrics.span_auroc(values, labels)
    return tables


def evaluate(
    reward_model: RewardModel,
    sets: Mapping[str, Sequence[records.Record]],
    *,
    batch_size: int,
    buckets: int = 6,
    **data,
) -> dict[str, dict]:
    """The tables of a reward model on sets of records.

    Args:
      sets: records by the name of their set, as used in messages.
      batch_size: pairs at a time, rounded up to a multiple that the mesh divides.
      buckets: maximum number of different widths that batches are padded to.
      **data: arguments of ``encode_pairs`` that replace those of the model's training.

    Returns:
      A table for each kind of pair ("edits", "preferences"), for each set.

    Raises:
      InputError: as :func:`encode_by_kind`.
    """
    data, settings = reward_model.meta.data | data, reward_model.meta.settings
    tokenizer, mesh = reward_model.tokenizer, reward_model.mesh
    pairs = {name: encode_by_kind(rows, name, tokenizer, data) for name, rows in sets.items()}
    lengths = [pair.length for by_kind in pairs.values() for pair in chain(*by_kind.values())]
    widths = choose_buckets(lengths, buckets)
    step = functools.partial(model.eval_step, model=reward_model.module, **settings)
    predictor = Predictor(step, pad_pairs, mesh, widths, batch_size, unpad)
    return {name: make_tables(predictor, reward_model, kinds) for name, kinds in pairs.items()}


def fit_normalization(
    predictor: Predictor, params: dict, pairs: Mapping[str, Sequence[Pair]], level: str, limit: int
) -> model.Normalization:
    """Fits the normalization on the unedited responses of at most ``limit`` evenly spaced pairs.

    These are the originals of edits and both sides of preferences: samples of the policy that
    received the feedback.
    """
    values, total = [], sum(len(group) for group in pairs.values())
    for kind, group in pairs.items():
        count = max(1, round(len(group) * min(1.0, limit / total)))
        chosen = [group[i] for i in np.linspace(0, len(group) - 1, count).astype(int)]
        _, scored = predictor.predict(params, chosen)
        values += [pair.value_j for pair in scored]
        values += [pair.value_i for pair in scored] if kind == "preferences" else []
    return model.fit_normalization(values, level=level)
