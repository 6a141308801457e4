"""Batches of few fixed shapes from rows of any length: a compiled step sees no new shape.

A bucket is a number of columns that a batch is padded to. For rows that are known beforehand
:func:`choose_buckets` finds the best ones. Training shuffles rows within their buckets
(:func:`plan_epoch`); evaluation and sampling take them by length (:func:`by_length`).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fgrlhf_jax.errors import InputError


class Batch(NamedTuple):
    """Which rows are computed together.

    Attributes:
      width: columns to pad to, one of the buckets.
      rows: int[n], row numbers, n at most the batch size.
      filled: int[batch size], the same, the last one repeated where the batch is not full.
    """

    width: int
    rows: np.ndarray
    filled: np.ndarray


def make_buckets(max_length: int, smallest: int = 64) -> tuple[int, ...]:
    """``smallest`` and its doublings below ``max_length``, then ``max_length`` itself."""
    buckets = []
    while smallest < max_length:
        buckets.append(smallest)
        smallest *= 2
    return (*buckets, max_length)


def choose_buckets(lengths: Sequence[int], count: int) -> tuple[int, ...]:
    """At most ``count`` buckets, multiples of 8, in which rows of these lengths are padded least.

    By dynamic programming over the widths, so that it is exact; fixed by the lengths alone.
    """
    widths, rows = np.unique(-(-np.asarray(lengths, int) // 8) * 8, return_counts=True)
    before = np.concatenate([[0], np.cumsum(rows)])  # how many rows the first n widths have
    columns = np.where(before == 0, 0.0, np.inf)  # and how many they fill, in no bucket yet
    firsts = []
    for _ in range(min(count, len(widths))):
        # One more bucket, widths[j], takes the rows of widths[i] to widths[j].
        padded = columns[:-1, None] + widths * (before[1:] - before[:-1, None])
        padded = np.where(np.tri(len(widths), k=-1, dtype=bool), np.inf, padded)
        firsts.append(padded.argmin(axis=0))
        columns = np.concatenate([[np.inf], padded.min(axis=0)])
    buckets, end = [], len(widths)
    for first in reversed(firsts):
        buckets.append(int(widths[end - 1]))
        end = first[end - 1]
    return tuple(reversed(buckets))


def by_length(lengths: Sequence[int], batch_size: int, buckets: Sequence[int]) -> list[Batch]:
    """Batches that cover all rows once, shortest first, each in the shortest bucket that holds it.

    Little is padded this way, and sampled rows end at about the same time. Rows of one length stay
    in their order.
    """
    lengths = np.asarray(lengths, int)
    order = np.argsort(lengths, kind="stable")
    batches = []
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        width = min(bucket for bucket in buckets if bucket >= lengths[rows[-1]])
        filled = np.pad(rows, (0, batch_size - len(rows)), mode="edge")
        batches.append(Batch(width, rows, filled))
    return batches


def pad_right(rows: Sequence[np.ndarray], width: int, fill: int = 0) -> np.ndarray:
    """Rows of different lengths as one array [rows, width], with ``fill`` behind their ends."""
    padded = np.full((len(rows), width), fill, rows[0].dtype)
    for target, row in zip(padded, rows, strict=True):
        target[: len(row)] = row
    return padded


def fill_batch(rows: Sequence, batch_size: int | None) -> tuple[list, np.ndarray]:
    """Rows for a whole batch (None: as many as there are) and their weights, float32 1 or 0.

    The last row is repeated with weight 0: its numbers are real, not the NaN an empty row can make.
    """
    size = batch_size or len(rows)
    assert 0 < len(rows) <= size, f"{len(rows)} rows for a batch of {size}"
    weights = (np.arange(size) < len(rows)).astype(np.float32)
    return [*rows, *[rows[-1]] * (size - len(rows))], weights


def plan_epoch(
    lengths: Sequence[int], batch_size: int, buckets: Sequence[int], *, seed: int, epoch: int
) -> list[tuple[int, np.ndarray]]:
    """The batches of one epoch: (bucket, row numbers int[batch_size]) in training order.

    Each row goes to the shortest bucket that holds it. What does not fill a batch there moves up to
    the next longer bucket; what is left of the longest is dropped for this epoch. So every epoch
    has ``len(lengths) // batch_size`` batches and no row twice. A pure function: the same (seed,
    epoch) gives the same plan, another epoch another order and other company.

    Raises InputError for fewer rows than ``batch_size``, or a row longer than any bucket.
    """
    lengths, buckets = np.asarray(lengths, int), np.sort(np.asarray(buckets, int))
    if len(lengths) < batch_size:
        raise InputError(
            f"batch_size: {batch_size} is more than the {len(lengths)} rows there are; "
            "lower it or give more data"
        )
    if lengths.max() > buckets[-1]:
        raise InputError(
            f"a row of {lengths.max()} tokens fits no bucket up to {buckets[-1]}; raise max_length"
        )
    rng = np.random.default_rng((seed, epoch))
    bucket_of_row = np.searchsorted(buckets, lengths)
    batches, left_over = [], np.array([], int)
    for index, bucket in enumerate(buckets):
        rows = np.concatenate([left_over, np.flatnonzero(bucket_of_row == index)])
        rows = rng.permutation(rows)
        full = len(rows) // batch_size * batch_size
        batches += [(int(bucket), batch) for batch in rows[:full].reshape(-1, batch_size)]
        left_over = rows[full:]
    return [batches[i] for i in rng.permutation(len(batches))]
