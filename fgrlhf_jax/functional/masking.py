"""Checks, sums, means, last positions. Values outside a mask, even NaN, have no effect."""

import chex
import jax
import jax.numpy as jnp


def check(rank: int, values: jax.Array, *masks: jax.Array) -> None:
    """Raises AssertionError unless these are floats and bool masks of one shape of this rank."""
    chex.assert_equal_shape([values, *masks])
    chex.assert_rank(values, rank)
    chex.assert_type([values, *masks], [float, *[bool] * len(masks)])


def masked_sum(x: jax.Array, mask: jax.Array) -> jax.Array:
    """Sum of ``x`` (any shape) where ``mask`` (the same shape)."""
    chex.assert_equal_shape([x, mask])
    return jnp.sum(jnp.where(mask, x, 0.0))


def masked_mean(x: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean of ``x`` (any shape) where ``mask`` (the same shape); 0 where the mask is empty."""
    return masked_sum(x, mask) / jnp.maximum(jnp.sum(mask), 1)


def last_token(mask: jax.Array) -> jax.Array:
    """bool[..., T]: only the last True of every row of ``mask``; an empty row has none."""
    columns = jax.lax.broadcasted_iota(jnp.int32, mask.shape, mask.ndim - 1)
    return columns == jnp.max(jnp.where(mask, columns, -1), axis=-1, keepdims=True)
