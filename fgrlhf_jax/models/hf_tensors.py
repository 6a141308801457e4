"""Writes a model's arrays to safetensors files: merged, gathered, and in shards."""

import functools
import json
import math
from pathlib import Path
from typing import Any

import huggingface_hub
import jax
import numpy as np
import safetensors.numpy
from jax.sharding import NamedSharding, PartitionSpec

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.models import hf_names, lora, peft, quantize
from fgrlhf_jax.models.hf_names import INDEX, SIDECAR
from fgrlhf_jax.runtime import sharding


@functools.partial(jax.jit, static_argnames=("scale", "transpose", "dtype", "target"))
def _extract(leaf, pair, layer, *, scale: float, transpose: bool, dtype, target):
    if layer is not None:
        leaf, pair = jax.tree.map(
            lambda x: jax.lax.dynamic_index_in_dim(x, layer, 0, False), (leaf, pair)
        )
    value = lora.merge_kernel(leaf, pair, scale)
    value = (value.T if transpose else value).astype(dtype)
    return value if target is None else jax.lax.with_sharding_constraint(value, target)


def fetch(leaf, layer: int | None, param: str, pair, *, scale: float, dtype) -> np.ndarray:
    """One tensor in its stored form, merged and gathered from all devices."""
    target = getattr(jax.tree.leaves(leaf)[0], "sharding", None)
    is_placed = isinstance(target, NamedSharding)
    target = NamedSharding(target.mesh, PartitionSpec()) if is_placed else None
    options = {"transpose": hf_names.is_transposed(param), "dtype": dtype, "target": target}
    return np.ascontiguousarray(_extract(leaf, pair, layer, scale=scale, **options))


def stored_tensors(params, is_whole: bool) -> dict[str, tuple[Any, int | None, str, dict | None]]:
    """Stored name: (its array, its layer or None, our name, (A, B) to add or None).

    In the order of the table in ``hf_names``.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params, is_leaf=quantize.is_quantized)
    leaves, pairs = {sharding.path_name(path): leaf for path, leaf in leaves}, {}
    for path in [name for name in leaves if is_whole and name.startswith("lora/")]:
        layer, x = path.removeprefix("lora/").rsplit("/", 1)
        pairs.setdefault(f"{layer}/kernel", {})[x] = leaves.pop(path)
    if unknown := set(leaves) - set(hf_names.HF_NAME):
        raise ValueError(f"no Hugging Face name for {sorted(unknown)}")
    return {
        name: (leaves[path], layer if hf_names.is_stacked(path) else None, path, pairs.get(path))
        for path in hf_names.HF_NAME
        if path in leaves
        for layer, name in enumerate(hf_names.stored_names(path, leaves[path].shape))
    }


def write(
    folder: Path, tensors: dict[str, tuple], limit: int, is_whole: bool, *, scale: float, dtype
) -> list[str]:
    """Writes weight files of at most about ``limit`` bytes and their index; returns their names.

    An adapter is one file of any size. ``scale`` and ``dtype`` are those of :func:`fetch`.
    """
    stem = "model"
    if not is_whole:
        stem, limit = "adapter_model", 1 << 62
        tensors = {n if n.startswith("head.") else peft.PREFIX + n: t for n, t in tensors.items()}
    plan = huggingface_hub.split_state_dict_into_shards_factory(
        {name: value for name, value in tensors.items() if not name.startswith("head.")},
        get_storage_size=lambda tensor: (
            dtype.itemsize * math.prod(hf_names.stored_shape(tensor[2], tensor[0].shape))
        ),
        filename_pattern=f"{stem}{{suffix}}.safetensors",
        max_shard_size=limit,
    )
    sidecar = [name for name in tensors if name.startswith("head.")]
    files = plan.filename_to_tensors | ({SIDECAR: sidecar} if sidecar else {})
    for file, names in files.items():
        # Every process takes part in gathering a tensor; process 0 writes.
        arrays = {name: fetch(*tensors[name], scale=scale, dtype=dtype) for name in names}
        if overflowed := [name for name, value in arrays.items() if not np.isfinite(value).all()]:
            raise InputError(
                f"export.dtype={dtype}: {overflowed[0]} has numbers beyond its range; use bfloat16"
            )
        if jax.process_index() == 0:
            safetensors.numpy.save_file(arrays, folder / file, metadata={"format": "pt"})
    if plan.is_sharded and jax.process_index() == 0:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        (folder / INDEX).write_text(json.dumps(index, indent=2))
    return list(files)
