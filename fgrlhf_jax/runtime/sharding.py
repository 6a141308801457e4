"""Shardings of parameters, Adam moments and batches: one mesh and one table.

Axes: ``data`` (replicas), ``fsdp`` (splits parameters, moments and the batch) and ``tensor``
(splits heads, hidden width and vocabulary). Models only call ``constrain``.
"""

import contextlib
import math
import re
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from fgrlhf_jax.errors import InputError

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")

# The first pattern that matches a leaf's path decides. Kernels of blocks have a leading layer axis;
# quantized kernels consist of kernel/qvalue and kernel/scale.
PARAM_SPECS = (
    (r"embed/embedding$|head/unembed$", P("tensor", "fsdp")),
    (r"lm_head/kernel$", P("fsdp", "tensor")),
    (r"(q|k|v|gate|up)/kernel(/|$)", P(None, "fsdp", "tensor")),
    (r"(o|down)/kernel(/|$)", P(None, "tensor", "fsdp")),
    (r"(q|k|v|gate|up)/bias$", P(None, "tensor")),
    (r"(q|k|v|gate|up)/lora_a$", P(None, "fsdp", None)),
    (r"(o|down)/lora_b$", P(None, None, "fsdp")),
    (r"(q|k|v|gate|up)/lora_b$", P(None, None, "tensor")),
    (r"(o|down)/lora_a$", P(None, "tensor", None)),
    (r"", P()),
)


def make_mesh(shape: str, devices=None) -> Mesh:
    """A ("data", "fsdp", "tensor") mesh from three comma-separated sizes, one of which may be -1.

    Raises InputError if the sizes are malformed or their product is not the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = _mesh_sizes("mesh", shape, len(devices))
    return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def reshape_mesh(mesh: Mesh, field: str, shape: str) -> Mesh:
    """A mesh of the same devices in another shape, the value of a field; "": the same mesh.

    Raises InputError as :func:`make_mesh`.
    """
    if not shape:
        return mesh
    devices = mesh.devices.reshape(_mesh_sizes(field, shape, mesh.size))
    return Mesh(devices, AXES, axis_types=(AxisType.Auto,) * 3)


def _mesh_sizes(field: str, shape: str, devices: int) -> tuple[int, ...]:
    with contextlib.suppress(AttributeError, ValueError):
        sizes = [int(size) for size in shape.split(",")]
        if len(sizes) == 3 and min(sizes) >= -1:
            return np.arange(devices).reshape(sizes).shape
    raise InputError(
        f"{field}={shape!r}: give data,fsdp,tensor as three sizes whose product is the number of "
        f"devices, {devices}; one of them may be -1: '1,-1,1'"
    )


def check_batch(mesh: Mesh, rows: int, field: str = "micro_batch_size") -> None:
    """Raises InputError if a batch does not divide over the mesh's data and fsdp axes."""
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    if rows % shards:
        raise InputError(
            f"{field}={rows} does not divide over data x fsdp = {shards} devices "
            f"of the mesh; make it a multiple of {shards}"
        )


def round_batch_size(batch_size: int, mesh: Mesh) -> int:
    """``batch_size`` rounded up to a multiple of the mesh's data x fsdp devices."""
    if batch_size < 1:
        raise InputError(f"batch_size={batch_size} must be at least 1")
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    return -(-batch_size // shards) * shards


def path_name(path) -> str:
    """Formats a key path of ``jax.tree_util``, such as ``backbone/layers/attention/q/kernel``."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _spec(name: str, leaf, mesh: Mesh, split_axes=AXES) -> P:
    spec = next(spec for pattern, spec in PARAM_SPECS if re.search(pattern, name))
    if leaf.ndim == len(spec) - 1 and spec[0] is None:  # a single layer, without the layer axis
        spec = spec[1:]
    if len(spec) > leaf.ndim:  # scalars of an optimizer state
        return P()
    # A dimension that the axis does not divide (a tiny model on a large mesh) is not split.
    fits = (a in split_axes and leaf.shape[i] % mesh.shape[a] == 0 for i, a in enumerate(spec))
    return P(*(a if fit else None for a, fit in zip(spec, fits, strict=True)))


def shardings(tree, mesh: Mesh, split_axes: Sequence[str] = AXES):
    """A tree of NamedSharding for any tree whose paths end in parameter paths (params, moments).

    Parameters are split over the axes ``split_axes`` of the mesh, and replicated over the others.
    """
    return jax.tree.map_with_path(
        lambda path, leaf: NamedSharding(mesh, _spec(path_name(path), leaf, mesh, split_axes)), tree
    )


def abstract(tree, mesh: Mesh, split_axes: Sequence[str] = AXES):
    """The same tree as ShapeDtypeStructs that carry their :func:`shardings`."""
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        *(tree, shardings(tree, mesh, split_axes)),
    )


def constrain(x: jax.Array) -> jax.Array:
    """Shards the rows of an activation over data and fsdp; no-op without a mesh."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, P(BATCH_AXES, *(None,) * (x.ndim - 1)))


def batch_shards() -> int:
    """Number of devices over which the rows of a batch are split; 1 without a mesh."""
    sizes = jax.sharding.get_abstract_mesh().shape
    return int(np.prod([sizes.get(axis, 1) for axis in BATCH_AXES]))


def look_up(table_VD: jax.Array, tokens_BS: jax.Array) -> jax.Array:
    """Looks up rows [B, S, D] of an embedding that ``PARAM_SPECS`` splits over tensor and fsdp.

    It gathers the table along D first, as for every weight before its product, so that the result
    is split as the tokens. XLA by itself would gather each device's columns of all rows.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty:
        vocabulary = "tensor" if table_VD.shape[0] % mesh.shape["tensor"] == 0 else None
        table_VD = jax.lax.with_sharding_constraint(table_VD, P(vocabulary, None))
    return constrain(jnp.take(table_VD, tokens_BS, axis=0))


def gather(tree, name: str):
    """Gathers the parameters under the path ``name`` over all axes but tensor, before their use.

    XLA by itself might gather the results computed from them, which may be larger.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return tree
    return jax.tree.map_with_path(
        lambda path, leaf: jax.lax.with_sharding_constraint(
            leaf, _spec(f"{name}/{path_name(path)}", leaf, mesh, ("tensor",))
        ),
        tree,
    )


def constrain_cache(x: jax.Array) -> jax.Array:
    """Shards a cache [..., B, K, S, H]: rows over data and fsdp, heads over tensor."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    heads = "tensor" if x.shape[-3] % mesh.shape["tensor"] == 0 else None
    spec = P(*(None,) * (x.ndim - 4), BATCH_AXES, heads, None, None)
    return jax.lax.with_sharding_constraint(x, spec)


def map_rows_and_heads(f, *heads_BSNH: jax.Array) -> jax.Array:
    """Applies ``f`` to each device's rows and heads, for kernels that XLA cannot split.

    ``f`` maps arrays [B, S, heads, H] to one such array; rows must be independent.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return f(*heads_BSNH)

    def axes(names, axis):
        size = math.prod(mesh.shape[name] for name in names)
        return names if all(x.shape[axis] % size == 0 for x in heads_BSNH) else None

    spec = P(axes(BATCH_AXES, 0), None, axes(("tensor",), 2), None)
    return jax.shard_map(f, in_specs=spec, out_specs=spec, check_vma=False)(*heads_BSNH)


def batch_sharding(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """Splits rows over data and fsdp; ``axis`` is the rows' axis (1 after a micro-batch axis)."""
    return NamedSharding(mesh, P(*(None,) * axis, BATCH_AXES))


def put_batch(batch, mesh: Mesh, axis: int = 0):
    """Places host arrays on the mesh; every process has the whole batch and places its own rows."""
    sharding = batch_sharding(mesh, axis)
    return jax.tree.map(
        lambda x: jax.make_array_from_callback(x.shape, sharding, lambda index: x[index]), batch
    )


def to_host(tree):
    """Copies sharded arrays to the host: complete NumPy arrays, on every process."""

    def gather(x):
        if isinstance(x, jax.Array) and not x.is_fully_addressable:
            return multihost_utils.process_allgather(x, tiled=True)
        return x

    return jax.device_get(jax.tree.map(gather, tree))


@jax.jit
def fingerprint(tree) -> jax.Array:
    """A uint32 checksum that changes with every flipped bit and does not depend on the sharding.

    It is a position-weighted sum of the bits in wrapping integer arithmetic, exact in every order.
    Leaves have items of 1, 2 or 4 bytes.
    """
    total = jnp.uint32(0)
    for number, leaf in enumerate(jax.tree.leaves(tree)):
        dtype = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[leaf.dtype.itemsize]
        bits = jax.lax.bitcast_convert_type(leaf, dtype).astype(jnp.uint32)
        weight = jnp.ones((), jnp.uint32)
        for axis, size in enumerate(bits.shape):
            shape = [size if a == axis else 1 for a in range(bits.ndim)]
            odd_weights = 2 * jnp.arange(size, dtype=jnp.uint32) + 1
            weight = weight * jnp.reshape(odd_weights * jnp.uint32(2 * axis + 3), shape)
        total += jnp.uint32(2 * number + 1) * jnp.sum(bits * weight, dtype=jnp.uint32)
    return total
