"""Fills a model's arrays with stored tensors, one by one, directly on their devices."""

import functools
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.models import hf_names, quantize

HEADS = re.compile(r"(lm_head|score|head)\.")  # tensors outside the backbone
BUFFER = re.compile(r".*rotary_emb\.inv_freq$")  # in old checkpoints, ignored


def check_fit(path: Path, stored: dict[str, hf_names.Stored], leaves: list) -> None:
    """Raises an InputError that names all missing, surplus and misshapen tensors."""
    expected = {
        name: hf_names.stored_shape(param, leaf.shape)
        for param, leaf in leaves
        for name in hf_names.stored_names(param, leaf.shape)
    }
    allowed = re.compile(rf"{HEADS.pattern}|{BUFFER.pattern}|.*\.lora_[AB]\.weight$")
    surplus = [name for name in stored if name not in expected and not allowed.match(name)]
    has_backbone = "model.norm.weight" in expected
    problems = {
        "missing": [name for name in expected if name not in stored],
        "surplus": surplus if has_backbone else [],
        "misshapen": [
            f"{name} is {list(stored[name].shape)} where {list(shape)} is expected"
            for name, shape in expected.items()
            if name in stored and stored[name].shape != shape
        ],
    }
    parts = [f"{problem}: {', '.join(names)}" for problem, names in problems.items() if names]
    if not parts:
        return
    name = "model.embed_tokens.weight"
    if name in expected and name in stored and stored[name].shape[0] != expected[name][0]:
        sizes = f"{stored[name].shape[0]} tokens and the model's {expected[name][0]}"
        parts.insert(0, f"its vocabulary has {sizes}")
    raise InputError(f"{path}: these weights do not fit the model; {'; '.join(parts)}")


@functools.lru_cache(maxsize=64)
def _inserter(transpose: bool, dtype, target):
    """(array or None, layer, stored tensor) -> (array with it, is it finite), array donated."""

    def insert(array, layer, raw):
        value = quantize.store(raw.T if transpose else raw, dtype)
        if array is not None:
            place = functools.partial(jax.lax.dynamic_update_index_in_dim, index=layer, axis=0)
            value = jax.tree.map(place, array, value)
        return value, jnp.isfinite(raw).all()

    return jax.jit(insert, donate_argnums=0, out_shardings=(target, None))


def _zeros(leaf) -> jax.Array:
    zeros = jax.jit(jnp.zeros, static_argnums=(0, 1), out_shardings=getattr(leaf, "sharding", None))
    return zeros(leaf.shape, leaf.dtype)


def place(array, layer: int, tensor, param: str, leaf) -> tuple[Any, bool]:
    """Puts one stored tensor into the array; also returns whether all of it is finite."""
    stacked, transpose = hf_names.is_stacked(param), hf_names.is_transposed(param)
    raw, target = tensor.read(), jax.tree.map(lambda x: getattr(x, "sharding", None), leaf)
    sharding = target.qvalue if quantize.is_quantized(leaf) else target
    if isinstance(sharding, NamedSharding):  # shard the stored tensor like its target
        spec = [*sharding.spec, *[None] * (len(leaf.shape) - len(sharding.spec))][stacked:]
        spec = PartitionSpec(*(spec[::-1] if transpose else spec))
        source = NamedSharding(sharding.mesh, spec)
        value = jax.make_array_from_callback(raw.shape, source, lambda index: raw[index])
    else:
        value = jax.device_put(raw, sharding)
    if stacked and layer == 0:
        array = jax.tree.map(_zeros, leaf)
    array, finite = _inserter(transpose, leaf.dtype, target)(array, layer, value)
    return array, bool(finite)
