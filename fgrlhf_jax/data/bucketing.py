"""Batches of few fixed shapes from rows of any length, so that a step compiles once per shape.

A bucket is a width that a batch is padded to. :func:`choose_buckets` finds the best widths for rows
of known lengths. Training shuffles rows within their buckets (:func:`plan_epoch`); evaluation and
sampling sort them by length (:func:`by_length`).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fgrlhf_jax.errors import InputError


class Batch(NamedTuple):
    """The rows of one batch.

    Attributes:
      width: columns to pad to, one of the buckets.
      rows: int[n], row numbers, n at most the batch size.
      filled: int[batch size], ``rows`` with the last one repeated until the batch is full.
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
    """The at most ``count`` buckets, multiples of 8, that need the least padding for these lengths.

    Exact, by dynamic programming over the widths; deterministic.
    """
    widths, rows = np.unique(-(-np.asarray(lengths, int) // 8) * 8, return_counts=True)
    rows_before = np.concatenate([[0], np.cumsum(rows)])  # number of rows in the first n widths
    cost = np.where(rows_before == 0, 0.0, np.inf)  # least padded columns for them, with 0 buckets
    starts = []
    for _ in range(min(count, len(widths))):
        # Add a bucket: widths[j] takes the rows of widths[i] to widths[j].
        padded = cost[:-1, None] + widths * (rows_before[1:] - rows_before[:-1, None])
        padded = np.where(np.tri(len(widths), k=-1, dtype=bool), np.inf, padded)
        starts.append(padded.argmin(axis=0))
        cost = np.concatenate([[np.inf], padded.min(axis=0)])
    buckets, end = [], len(widths)
    for start in reversed(starts):
        buckets.append(int(widths[end - 1]))
        end = start[end - 1]
    return tuple(reversed(buckets))


def by_length(lengths: Sequence[int], batch_size: int, buckets: Sequence[int]) -> list[Batch]:
    """Batches of all rows, sorted by length, each batch in the narrowest bucket that holds it.

    Sorting reduces padding, and sampled rows end at about the same time. Rows of equal length keep
    their order.
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
    """Rows of different lengths as one array [rows, width], padded on the right with ``fill``."""
    padded = np.full((len(rows), width), fill, rows[0].dtype)
    for target, row in zip(padded, rows, strict=True):
        target[: len(row)] = row
    return padded


def fill_batch(rows: Sequence, batch_size: int | None) -> tuple[list, np.ndarray]:
    """Rows filled up to a whole batch (None: no filling) and their weights, float32 1 or 0.

    Filling repeats the last row with weight 0; an empty row could produce NaN.
    """
    size = batch_size or len(rows)
    assert 0 < len(rows) <= size, f"{len(rows)} rows for a batch of {size}"
    weights = (np.arange(size) < len(rows)).astype(np.float32)
    return [*rows, *[rows[-1]] * (size - len(rows))], weights


def plan_epoch(
    lengths: Sequence[int], batch_size: int, buckets: Sequence[int], *, seed: int, epoch: int
) -> list[tuple[int, np.ndarray]]:
    """The batches of one epoch: (bucket, row numbers int[batch_size]) in training order.

    Each row goes to the narrowest bucket that holds it. Rows that do not fill a batch there move to
    the next wider bucket; the rest of the widest is dropped for this epoch. So every epoch has
    ``len(lengths) // batch_size`` batches and no row twice. A pure function of its arguments; each
    epoch has another order and other batches.

    Raises InputError for fewer rows than ``batch_size``, or a row longer than every bucket.
    """
    lengths, buckets = np.asarray(lengths, int), np.sort(np.asarray(buckets, int))
    if len(lengths) < batch_size:
        raise InputError(
            f"batch_size: {batch_size} is more than the {len(lengths)} rows of the data; "
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
