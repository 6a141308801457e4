"""Micro-batches of rows of similar length, within a compiled program.

Rows begin at column 0 and are padded on the right. They are taken longest first; each micro-batch
has the narrowest width that holds its longest row, and as many rows as its tokens allow. A program
has one loop body per width, runs it as often as the lengths require, and is never recompiled.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from fgrlhf_jax.data.bucketing import choose_buckets
from fgrlhf_jax.ppo.algorithm import PPOSettings
from fgrlhf_jax.runtime import sharding

SHORT_ROW = 160  # columns up to which rows have a single width
SHORT_PROMPT = 64  # likewise of prompts


def row_widths(prompts: Sequence[int], max_new_tokens: int) -> tuple[int, ...]:
    """The widths of rows with prompts of these lengths: one for short rows, else at most four.

    They minimise the padding if responses of a quarter, a half, three quarters and the whole of
    ``max_new_tokens`` are equally frequent.
    """
    longest = max(prompts) + max_new_tokens
    if longest <= SHORT_ROW:
        return (longest,)
    lengths = np.add.outer(prompts, max_new_tokens * np.arange(1, 5) // 4)
    return tuple(min(width, longest) for width in choose_buckets(lengths.ravel(), 4))


def prompt_widths(prompts: Sequence[int]) -> tuple[int, ...]:
    """The widths at which these prompts are prefilled: one for short prompts, else three."""
    longest = max(prompts)
    if longest <= SHORT_PROMPT:
        return (longest,)
    return tuple(min(width, longest) for width in choose_buckets(prompts, 3))


def rows_of_width(width: int, settings: PPOSettings) -> int:
    """Number of rows of a micro-batch of this width.

    As many as have no more tokens, and no more response columns, than ``micro_batch_size`` rows of
    the last width; a multiple of the devices.
    """
    full, rows, T = settings.widths[-1], settings.micro_batch_size, settings.max_new_tokens
    count = rows * min(full / width, min(full, T) / min(width, T))
    shards = sharding.batch_shards()
    return max(int(count) // shards * shards, shards)


def fold(function: Callable, carry, length_B: jax.Array, settings: PPOSettings):
    """``carry = function(carry, numbers, real, width)`` over micro-batches of all rows.

    Args:
      function: receives the row indices int32[n], bool[n] (False on rows that only fill up a
        micro-batch), and the width.
      length_B: int32, tokens of each row. With a single width the rows stay in order, and
        ``micro_batch_size`` divides B.
    """
    B, widths = length_B.shape[0], settings.widths
    sizes = [min(rows_of_width(width, settings), B) for width in widths]
    if len(widths) == 1:
        (n,) = sizes
        all_real = jnp.ones(n, bool)

        def body(number, carry):
            return function(carry, number * n + jnp.arange(n), all_real, widths[0])

        return body(0, carry) if n == B else jax.lax.fori_loop(0, B // n, body, carry)
    order_B = jnp.argsort(-length_B, stable=True)
    sorted_B = length_B[order_B]
    start = jnp.int32(0)
    for width, n, narrower in zip(widths[::-1], sizes[::-1], (*widths[-2::-1], 0), strict=True):

        def unfinished(state, narrower=narrower):
            start = state[0]
            return (start < B) & (sorted_B[jnp.minimum(start, B - 1)] > narrower)

        def step(state, width=width, n=n):
            start, carry = state
            places = start + jnp.arange(n)
            numbers = order_B[jnp.minimum(places, B - 1)]
            return start + n, function(carry, numbers, places < B, width)

        with jax.named_scope(scope(width)):
            start, carry = jax.lax.while_loop(unfinished, step, (start, carry))
    return carry


def scope(width: int) -> str:
    """The name of a width's loop in the compiled program."""
    return f"width_{width}"


def count_micro_batches(lengths: Sequence[int], settings: PPOSettings) -> dict[int, int]:
    """The number of micro-batches of each width that :func:`fold` makes for these lengths."""
    ordered, start, counts = np.sort(lengths)[::-1], 0, {}
    for width, narrower in zip(settings.widths[::-1], (*settings.widths[-2::-1], 0), strict=True):
        counts[width] = 0
        while start < len(ordered) and ordered[start] > narrower:
            start += min(rows_of_width(width, settings), len(ordered))
            counts[width] += 1
    return counts


def take(tree, rows: jax.Array, width: int):
    """Rows of arrays [B, ...], sharded over the mesh; of [B, S] at most ``width`` columns."""

    def take_leaf(x):
        x = x[rows]
        return sharding.constrain(x[:, :width] if x.ndim == 2 else x)

    return jax.tree.map(take_leaf, tree)
