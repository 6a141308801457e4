"""Buckets and the plan of an epoch: each row at most once, and the same plan for ever."""

import itertools

import numpy as np
import pytest

from fgrlhf_jax.data.bucketing import by_length, choose_buckets, make_buckets, plan_epoch
from fgrlhf_jax.errors import InputError


@pytest.mark.parametrize(
    ("max_length", "smallest", "buckets"),
    [
        *((512, 64, (64, 128, 256, 512)), (300, 64, (64, 128, 256, 300))),
        *((64, 64, (64,)), (40, 64, (40,)), (65, 16, (16, 32, 64, 65))),
    ],
)
def test_buckets(max_length, smallest, buckets):
    assert make_buckets(max_length, smallest) == buckets


@pytest.mark.parametrize("count", [1, 2, 3, 9])
def test_chosen_buckets_pad_least(count):
    """Of all choices of so many multiples of 8."""
    lengths = np.random.default_rng(count).choice([5, 9, 16, 17, 30, 41, 50, 63], 12)

    def columns(buckets):
        return sum(min(bucket for bucket in buckets if bucket >= n) for n in lengths)

    chosen = choose_buckets(lengths, count)
    assert len(chosen) <= count
    assert set(chosen) <= {8, 16, 24, 32, 48, 56, 64}
    longest = max(chosen)
    assert 0 <= longest - lengths.max() < 8
    choices = itertools.combinations(range(8, longest, 8), min(count, longest // 8) - 1)
    assert columns(chosen) == min(columns((*rest, longest)) for rest in choices)


def test_no_more_buckets_are_chosen_than_there_are_widths():
    assert choose_buckets([3, 8, 9, 16, 12], 6) == (8, 16)
    assert choose_buckets([7], 1) == (8,)


@pytest.mark.parametrize("rows", [8, 9, 61, 200])
@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_plan(rows, batch_size):
    lengths = np.random.default_rng(rows).integers(1, 101, size=rows)
    buckets = (16, 32, 64, 100)
    seen = set()
    for epoch in range(12):
        plan = plan_epoch(lengths, batch_size, buckets, seed=3, epoch=epoch)
        assert len(plan) == rows // batch_size
        numbers = np.concatenate([batch for _, batch in plan])
        assert len(numbers) == len(set(numbers)) == rows // batch_size * batch_size
        seen |= set(numbers.tolist())
        moved = 0
        for bucket, batch in plan:
            assert batch.shape == (batch_size,)
            assert lengths[batch].max() <= bucket
            moved += (lengths[batch] <= {16: 0, 32: 16, 64: 32, 100: 64}[bucket]).sum()
        # Only what filled no batch of its own moves up, and that at most once a bucket.
        assert moved <= (batch_size - 1) * (len(buckets) - 1)
    assert len(seen) == rows  # no row is left over in every epoch


def test_plan_is_a_function_of_seed_and_epoch():
    lengths = np.random.default_rng(0).integers(1, 101, size=90)

    def order(seed, epoch):
        plan = plan_epoch(lengths, 8, (32, 100), seed=seed, epoch=epoch)
        return [(bucket, *batch.tolist()) for bucket, batch in plan]

    assert order(0, 0) == order(0, 0)
    orders = [order(0, 0), order(0, 1), order(1, 0), order(1, 1), order(0, 2)]
    for first, second in itertools.combinations(orders, 2):
        assert {frozenset(batch) for batch in first} != {frozenset(batch) for batch in second}
    buckets = [bucket for bucket, *_ in orders[0]]
    assert buckets != sorted(buckets)  # lengths come mixed, not short ones first


@pytest.mark.parametrize(
    ("lengths", "batch_size", "message"),
    [
        ([5, 5, 5], 4, "batch_size: 4 is more than the 3 rows"),
        ([], 4, "batch_size: 4 is more than the 0 rows"),
        ([5, 9, 5], 2, "a row of 9 tokens fits no bucket up to 8"),
    ],
)
def test_plan_refuses(lengths, batch_size, message):
    with pytest.raises(InputError, match=message):
        plan_epoch(lengths, batch_size, (4, 8), seed=0, epoch=0)


def test_by_length():
    batches = by_length([5, 3, 9, 3, 1, 9, 2, 9], 3, (4, 8, 9))
    assert [batch.width for batch in batches] == [4, 9, 9]
    assert [batch.rows.tolist() for batch in batches] == [[4, 6, 1], [3, 0, 2], [5, 7]]
    assert [batch.filled.tolist() for batch in batches] == [[4, 6, 1], [3, 0, 2], [5, 7, 7]]
    assert by_length([], 3, (4,)) == []
