"""Rows of numbers for PPO's functions, with junk as padding, and exact means as oracles."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import tiny_cases

LENGTHS = (4, 1, 7, 2, 7, 5, 3, 6)


JUNK = (0.0, 1e6, -3e38, np.inf, -np.inf, np.nan)


def draw(seed: int, lengths=LENGTHS, scale: float = 1.0) -> list[list[float]]:
    """Random rows of numbers that float32 represents exactly."""
    rng = np.random.default_rng(seed)
    return [rng.normal(0.3, scale, n).astype(np.float32).tolist() for n in lengths]


def pad(rows, columns: int = 9, junk: float = np.nan) -> tuple[jax.Array, np.ndarray]:
    x_BT, mask_BT = tiny_cases.laid_out(rows, "right", float(junk), columns)
    return jnp.asarray(x_BT, jnp.float32), mask_BT


def flat(rows) -> list[float]:
    return [x for row in rows for x in row]


def oracle_mean(values) -> float:
    return math.fsum(values) / len(values)


def oracle_variance(values) -> float:
    mean = oracle_mean(values)
    return oracle_mean([(x - mean) ** 2 for x in values])
