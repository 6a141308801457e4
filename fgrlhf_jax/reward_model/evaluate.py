"""Evaluating a reward model on pairs: their values, and the table of what it gets right."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain

import jax
import numpy as np
from jax.sharding import Mesh

from fgrlhf_jax.data import records
from fgrlhf_jax.data.bucketing import by_length, choose_buckets
from fgrlhf_jax.data.pairs import Pair, encode_by_kind, pad_pairs
from fgrlhf_jax.functional import pair_metrics
from fgrlhf_jax.models import heads
from fgrlhf_jax.reward_model import model
from fgrlhf_jax.reward_model.scorer import RewardModel
from fgrlhf_jax.runtime import sharding


class PairPredictor:
    """Values of pairs in few fixed shapes, one executable a bucket.

    Attributes:
      batch_size: pairs at a time, a multiple of what the mesh divides.
      params: abstract ones of the model, with any adapter; None: those of the module.
      step: the jitted evaluation of one batch.
    """

    def __init__(
        self,
        module: heads.TokenValueModel,
        settings: dict,
        mesh: Mesh,
        buckets: Sequence[int],
        batch_size: int,
        params: dict | None = None,
    ):
        self.mesh, self.buckets = mesh, buckets
        self.batch_size = sharding.round_batch_size(batch_size, mesh)
        replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        step = functools.partial(model.eval_step, model=module, **settings)
        self.step = jax.jit(step, out_shardings=replicated)
        self.params = heads.abstract_params(module, mesh) if params is None else params
        self._compiled: dict = {}

    def predict(self, params: dict, pairs: Sequence[Pair]) -> tuple[dict[str, float], list]:
        """Sums of loss and accuracy, and the ``PairValues`` of each pair, in order."""
        total, scored = {"loss": 0.0, "accuracy": 0.0}, [None] * len(pairs)
        for rows, batch, on_mesh in self._batches(pairs):
            sums, value_B2S = self._executable(on_mesh)(params, on_mesh)
            total = {name: total[name] + float(sums[name]) for name in total}
            unpadded = pair_metrics.unpad(np.asarray(value_B2S), batch)
            for row, values in zip(rows, unpadded, strict=True):
                scored[row] = values
        return total, scored

    def validation_metrics(
        self, params: dict, pairs: Mapping[str, Sequence[Pair]]
    ) -> dict[str, float]:
        """Mean loss and accuracy (of the score that the loss trains) over all kinds of pairs."""
        sums = [self.predict(params, group)[0] for group in pairs.values()]
        count = sum(map(len, pairs.values()))
        names = ("loss", "accuracy")
        return {f"validation/{name}": sum(part[name] for part in sums) / count for name in names}

    def warm_up(self, pairs: Mapping[str, Sequence[Pair]]) -> None:
        """Compiles every shape that ``pairs`` (by kind) need."""
        for group in pairs.values():
            for *_, on_mesh in self._batches(group):
                self._executable(on_mesh)

    def _batches(self, pairs: Sequence[Pair]) -> Iterator[tuple[np.ndarray, dict, dict]]:
        """(rows, host batch, the same on the mesh) of similar length, in a fixed order."""
        lengths = [pair.length for pair in pairs]
        for bucket, rows, _ in by_length(lengths, self.batch_size, self.buckets):
            batch = pad_pairs([pairs[row] for row in rows], bucket, self.batch_size)
            yield rows, batch, sharding.put_batch(batch, self.mesh)

    def _executable(self, batch: dict):
        bucket = batch["tokens_BS"].shape[-1]
        if bucket not in self._compiled:
            with jax.set_mesh(self.mesh):
                self._compiled[bucket] = self.step.lower(self.params, batch).compile()
        return self._compiled[bucket]


def make_tables(
    predictor: PairPredictor, reward_model: RewardModel, pairs: Mapping[str, Sequence[Pair]]
) -> dict[str, dict]:
    """``eval.json``'s entry of one set of records: a table for each kind of pair in it."""
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
      sets: records by what messages call them.
      batch_size: pairs at a time, rounded up to what the mesh divides.
      buckets: numbers of columns, at most, that batches are padded to.
      **data: arguments of ``encode_pairs`` other than those of its training.

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
    predictor = PairPredictor(reward_model.module, settings, mesh, widths, batch_size)
    return {name: make_tables(predictor, reward_model, kinds) for name, kinds in pairs.items()}


def fit_normalization(
    predictor: PairPredictor,
    params: dict,
    pairs: Mapping[str, Sequence[Pair]],
    level: str,
    limit: int,
) -> model.Normalization:
    """From the responses nobody edited of at most ``limit`` pairs, spread evenly over all of them.

    These are the originals of edits and both sides of preferences: samples of the policy that the
    feedback was given to.
    """
    values, total = [], sum(len(group) for group in pairs.values())
    for kind, group in pairs.items():
        count = max(1, round(len(group) * min(1.0, limit / total)))
        chosen = [group[i] for i in np.linspace(0, len(group) - 1, count).astype(int)]
        _, scored = predictor.predict(params, chosen)
        values += [pair.value_j for pair in scored]
        values += [pair.value_i for pair in scored] if kind == "preferences" else []
    return model.fit_normalization(values, level=level)
