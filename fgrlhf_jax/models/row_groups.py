"""Reorders and groups the rows of a batch so that each device keeps its own rows.

Shape letters as in llama.py; each of G devices has N rows, B = G N.
"""

import jax
import jax.numpy as jnp

from fgrlhf_jax.runtime import sharding


def order_by(key_B: jax.Array) -> jax.Array:
    """order_GN: each device's row indices, sorted by ascending key."""
    return jnp.argsort(_by_device(key_B), axis=1, stable=True)


def take(tree, order_GN: jax.Array):
    """The rows of arrays [B, ...] in the order of :func:`order_by`."""

    def take_leaf(x):
        return _flatten(jax.vmap(lambda x, rows: x[rows])(_by_device(x), order_GN))

    return jax.tree.map(take_leaf, tree)


def split(tree, size: int):
    """Arrays [B, ...] as groups [groups, G size, ...] with ``size`` rows from each device."""

    def split_leaf(x):
        x = _by_device(x)
        x = x.reshape(x.shape[0], -1, size, *x.shape[2:]).swapaxes(0, 1)
        return x.reshape(x.shape[0], -1, *x.shape[3:])

    return jax.tree.map(split_leaf, tree)


def unsplit(tree):
    """The inverse of :func:`split`."""

    def join_leaf(x):
        x = x.reshape(x.shape[0], sharding.batch_shards(), -1, *x.shape[2:]).swapaxes(0, 1)
        return _flatten(x.reshape(x.shape[0], -1, *x.shape[3:]))

    return jax.tree.map(join_leaf, tree)


def _by_device(x: jax.Array) -> jax.Array:
    return x.reshape(sharding.batch_shards(), -1, *x.shape[1:])


def _flatten(x: jax.Array) -> jax.Array:
    x = x.reshape(-1, *x.shape[2:])
    return sharding.constrain_cache(x) if x.ndim == 4 else sharding.constrain(x)
