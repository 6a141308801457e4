"""Buckets and the plan of an epoch: each row at most once, and the same plan for ever."""

import numpy as np
import pytest

from fgrlhf_jax.data.bucketing import by_length, make_buckets, plan_epoch
from fgrlhf_jax.errors import InputError


@pytest.mark.parametrize(
    ("max_length", "smallest", "buckets"),
    [
        (512, 64, (64, 128, 256, 512)),
        (300, 64, (64, 128, 256, 300)),
        (64, 64, (64,)),
        (40, 64, (40,)),
        (65, 16, (16, 32, 64, 65)),
    ],
)
def test_buckets(max_length, smallest, buckets):
    assert make_buckets(max_length, smallest) == buckets


@pytest.mark.parametrize("rows", [8, 9, 61, 200])
@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_plan(rows, batch_size):
    lengths = np.random.default_rng(rows).integers(1, 101, size=rows)
    buckets = (16, 32, 64, 100)
    seen = set()
    for epoch in range(5):
        plan = plan_epoch(lengths, batch_size, buckets, seed=3, epoch=epoch)
        assert len(plan) == rows // batch_size
        chosen = np.concatenate([batch for _, batch in plan])
        assert len(chosen) == len(set(chosen)) == rows // batch_size * batch_size
        seen |= set(chosen.tolist())
        moved = 0
        for bucket, batch in plan:
            assert bucket in buckets
            assert batch.shape == (batch_size,)
            assert lengths[batch].max() <= bucket
            smaller = max((b for b in buckets if b < bucket), default=0)
            moved += (lengths[batch] <= smaller).sum()
        # Only what filled no batch of its own moves up, and that at most once a bucket.
        assert moved <= (batch_size - 1) * (len(buckets) - 1)
    if rows // batch_size > 5:
        assert len(seen) > rows // batch_size * batch_size or rows % batch_size == 0


def test_plan_is_a_function_of_seed_and_epoch():
    lengths = np.random.default_rng(0).integers(1, 101, size=90)

    def order(seed, epoch):
        plan = plan_epoch(lengths, 8, (32, 100), seed=seed, epoch=epoch)
        return [(bucket, *batch.tolist()) for bucket, batch in plan]

    assert order(0, 0) == order(0, 0)
    different = [order(0, 0), order(0, 1), order(1, 0), order(1, 1), order(0, 2)]
    for i, one in enumerate(different):
        for other in different[:i]:
            assert one != other
            assert {frozenset(b) for b in one} != {frozenset(b) for b in other}
    buckets = [bucket for bucket, *_ in order(0, 0)]
    assert buckets != sorted(buckets)  # lengths come mixed, not short ones first


def test_every_row_is_met_over_the_epochs():
    """Nobody is the leftover for ever."""
    lengths = np.random.default_rng(0).integers(1, 101, size=45)
    met = set()
    for epoch in range(12):
        for _, batch in plan_epoch(lengths, 8, (32, 64, 100), seed=0, epoch=epoch):
            met |= set(batch.tolist())
    assert met == set(range(45))


def test_plan_refuses():
    with pytest.raises(InputError, match="batch_size: 4 is more than the 3 rows"):
        plan_epoch([5, 5, 5], 4, (8,), seed=0, epoch=0)
    with pytest.raises(InputError, match="batch_size: 4 is more than the 0 rows"):
        plan_epoch([], 4, (8,), seed=0, epoch=0)
    with pytest.raises(InputError, match="a row of 9 tokens fits no bucket up to 8"):
        plan_epoch([5, 9, 5], 2, (4, 8), seed=0, epoch=0)


def test_by_length():
    lengths = [5, 3, 9, 3, 1, 9, 2]
    batches = by_length(lengths, 3, (4, 8, 9))
    assert [batch.width for batch in batches] == [4, 9, 9]
    assert [batch.rows.tolist() for batch in batches] == [[4, 6, 1], [3, 0, 2], [5]]
    assert [batch.filled.tolist() for batch in batches] == [[4, 6, 1], [3, 0, 2], [5, 5, 5]]
    assert by_length([], 3, (4,)) == []
