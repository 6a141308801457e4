"""Kernels of a frozen base in 8 or 4 bits, for training adapters on it (QLoRA).

The two kinds store a kernel [..., in, out] as

    kind   qvalue                      scale [..., groups, out], float32     bits a number
    int8   int8 [..., in, out]         largest |number| of a column / 127    8
    nf4    uint8 [..., in / 2, out]    largest |number| of BLOCK rows        4.5

nf4, NormalFloat (Dettmers et al. 2023, arXiv:2305.14314), has the 16 levels between -1 and 1 that
are equally frequent for normally distributed numbers; a byte holds rows 2i (low bits) and 2i + 1.
Leading axes are kept, so that a scan over layers slices the stored arrays and restores one layer
at a time. Scales are not quantized.
"""

import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.runtime import sharding

KINDS = ("int8", "nf4")
BLOCK = 64  # input rows that share a scale in nf4
PATTERN = r"(q|k|v|o|gate|up|down)/kernel$"  # every linear layer of the blocks
# Appendix E of the paper.
LEVELS = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)


# Largest change of a number in a base of each kind, or in bfloat16.
ROUNDING = {
    "bfloat16": "0.4 % of itself",
    "int8": "0.4 % of the largest of its column",
    "nf4": f"15.2 % of the largest of its block of {BLOCK}",
}


class Quantized(NamedTuple):
    """A quantized kernel, in the kernel's place in a tree of parameters."""

    qvalue: jax.Array
    scale: jax.Array

    @property
    def dtype(self) -> str:
        """The kind of quantization."""
        return "nf4" if self.qvalue.dtype == jnp.uint8 else "int8"

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the kernel, [..., in, out]."""
        *stack, rows, columns = self.qvalue.shape
        return *stack, rows * (2 if self.dtype == "nf4" else 1), columns


def quantize(kernel: jax.Array, kind: str) -> Quantized:
    """Quantizes a kernel [..., in, out] to ``kind``, one of KINDS, with the nearest levels.

    Raises InputError if nf4's blocks do not divide the input width.
    """
    *stack, rows, columns = kernel.shape
    size = rows if kind == "int8" else BLOCK
    if rows % size:
        raise InputError(
            f"lora.base_dtype={kind}: a kernel's input width of {rows} is not a multiple of its "
            f"blocks of {size}; use int8 or bfloat16"
        )
    blocks = kernel.astype(jnp.float32).reshape(*stack, rows // size, size, columns)
    absmax = jnp.max(jnp.abs(blocks), axis=-2, keepdims=True)
    scale = jnp.where(absmax > 0, absmax, 1.0) / (127 if kind == "int8" else 1)
    scaled = (blocks / scale).reshape(*stack, rows, columns)
    if kind == "int8":
        qvalue = jnp.round(scaled).astype(jnp.int8)
    else:
        thresholds = (np.float32(LEVELS[1:]) + np.float32(LEVELS[:-1])) / 2
        codes = sum((scaled > level).astype(jnp.uint8) for level in thresholds)
        pairs = codes.reshape(*stack, rows // 2, 2, columns)
        qvalue = pairs[..., 0, :] | (pairs[..., 1, :] << 4)
    return Quantized(qvalue, scale.squeeze(-2))


def dequantize(stored: Quantized, dtype) -> jax.Array:
    """Restores the kernel [..., in, out], computed in float32 and rounded to ``dtype``."""
    *stack, rows, columns = stored.shape
    numbers = stored.qvalue
    if stored.dtype == "nf4":
        shifts = jnp.array([0, 4], jnp.uint8).reshape((1,) * len(stack) + (1, 2, 1))
        codes = (numbers[..., None, :] >> shifts).astype(jnp.int32)
        # Four rounds of selection by bits. Exact; avoids a gather, which is slow on accelerators,
        # and constants as large as a kernel, kept for all layers.
        bits = np.float32(LEVELS).view(np.int32).tolist()
        for bit in range(4):
            mask = -(codes >> bit & 1)
            pairs = zip(bits[::2], bits[1::2], strict=True)
            bits = [low ^ (mask & (low ^ high)) for low, high in pairs]
        numbers = jax.lax.bitcast_convert_type(bits[0], jnp.float32)
    groups = stored.scale.shape[-2]
    blocks = numbers.astype(jnp.float32).reshape(*stack, groups, rows // groups, columns)
    return (blocks * stored.scale[..., None, :]).reshape(*stack, rows, columns).astype(dtype)


def is_quantized(x) -> bool:
    return isinstance(x, Quantized)


def store(x: jax.Array, kind) -> jax.Array | Quantized:
    """Quantizes ``x`` to ``kind``, one of KINDS, or casts it to ``kind``, a float dtype."""
    return quantize(x, kind) if str(kind) in KINDS else x.astype(kind)


def quantize_params(params: dict, kind: str) -> dict:
    """Applies :func:`store` to the parameters whose path matches PATTERN.

    Call it under ``jax.eval_shape``; ``sharding.abstract`` then adds the shardings, and
    ``hf_load.load_params`` fills the result.
    """

    def stored(path, x):
        return store(x, kind) if re.search(PATTERN, sharding.path_name(path)) else x

    return jax.tree.map_with_path(stored, params)


def dequantize_params(params: dict) -> dict:
    """Restores all quantized parameters to float32."""
    restore = lambda x: dequantize(x, "float32") if is_quantized(x) else x  # noqa: E731
    return jax.tree.map(restore, params, is_leaf=is_quantized)
