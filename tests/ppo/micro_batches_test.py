"""Micro-batches of rows of about the same length."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rollout_cases import settings

from fgrlhf_jax.ppo import micro_batches
from fgrlhf_jax.runtime import sharding


@pytest.mark.parametrize("shape", ["", "2,2,2"])
def test_every_row_is_once_in_a_micro_batch_that_holds_it(shape):
    """And a micro-batch has no more tokens than one of the longest rows."""
    lengths = np.random.default_rng(1).integers(1, 33, 24)
    sizes = settings(widths=(8, 16, 24, 32), micro_batch_size=4, max_new_tokens=32)

    def count(carry, numbers, real, width):
        times_B, fits, tokens, batches = carry
        fits &= jnp.all(jnp.array(lengths)[numbers] <= width)
        tokens = jnp.maximum(tokens, width * len(numbers))
        return times_B.at[numbers].add(real), fits, tokens, batches + 1

    def fold(length_B):
        carry = jnp.zeros(24, jnp.int32), True, 0, 0
        return micro_batches.fold(count, carry, length_B, sizes)

    with jax.set_mesh(sharding.make_mesh(shape)) if shape else contextlib.nullcontext():
        times_B, fits, tokens, batches = jax.device_get(jax.jit(fold)(jnp.array(lengths)))
    assert (times_B == 1).all()
    assert fits
    assert tokens <= 4 * 32
    assert batches < 6


def test_few_widths_of_long_rows_and_one_of_short_ones():
    assert micro_batches.row_widths([32, 64], 64) == (128,)
    assert micro_batches.row_widths([64], 256) == (128, 192, 256, 320)
    assert micro_batches.row_widths([30, 40, 71], 100)[-1] == 171
    assert micro_batches.prompt_widths([3, 64]) == (64,)
    assert micro_batches.prompt_widths([38, 40, 57, 60, 186]) == (40, 64, 186)
