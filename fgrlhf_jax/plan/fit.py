"""Finds the smallest config change with which a run fits its devices, and the largest micro-batch.

Only fields that do not change the algorithm may vary: micro-batch, meshes, dtypes and remat.
"""

import contextlib
import itertools
from collections.abc import Callable, Iterator

import jax
from ml_collections import ConfigDict

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.plan.memory import bytes_per_device, measure_step
from fgrlhf_jax.plan.shapes import RunShapes
from fgrlhf_jax.runtime import sharding

MICRO_BATCH = "micro_batch_size"
NO_MICRO_BATCH = ("generate",)  # steps that take no micro-batches
MakeShapes = Callable[[ConfigDict], RunShapes]
Report = Callable[[str], None]


def smallest_change(
    config: ConfigDict, make_shapes: MakeShapes, memory: float, report: Report
) -> dict | None:
    """The smallest set of fields to change so that every step of a run fits.

    It includes the largest micro-batch that fits then, if that differs from the present one.
    ``memory`` is in bytes per device; ``report`` gets a line before each candidate is compiled.

    Returns:
      Field names -> new values, or None if no such change fits.
    """
    fits = _make_fits(config, make_shapes, memory, report, {})
    for _, changes in itertools.groupby(_changes(config), key=len):
        with_smaller_batches = []
        for change in changes:
            sizes, current = _micro_batches(config, change)
            smallest = sizes[0] if sizes else current
            is_full = current == max(sizes, default=current)
            if smallest < current and fits(change | {MICRO_BATCH: smallest}):
                with_smaller_batches.append(change)
            elif smallest < current and not is_full:
                continue
            # One micro-batch can need less memory than two, whose gradients are summed.
            if change and fits(change):
                return _with_largest(config, change, fits)
        if with_smaller_batches:
            return _with_largest(config, with_smaller_batches[0], fits, below=True)
    return None


def largest_micro_batch(
    config: ConfigDict, make_shapes: MakeShapes, memory: float, report: Report
) -> dict:
    """The change to the largest micro-batch with which a run that fits still does, {} if none."""
    known = {(name, ""): True for name in NO_MICRO_BATCH}
    return _with_largest(config, {}, _make_fits(config, make_shapes, memory, report, known))


def _make_fits(
    config: ConfigDict, make_shapes: MakeShapes, memory: float, report: Report, known: dict
) -> Callable[[dict], bool]:
    """A function that tells whether a run with a change of the config fits.

    ``known`` caches the answer for steps without micro-batches, by step name and flags.
    """

    def fits(change: dict) -> bool:
        report(f"trying {format_change(change)} …")
        try:
            shapes = make_shapes(changed(config, change))
        except InputError:  # the batches do not divide over the mesh
            return False
        resident = _resident(shapes)
        flags = format_change({name: v for name, v in change.items() if name != MICRO_BATCH})

        def step_fits(name: str) -> bool:
            if (name, flags) in known:
                return known[name, flags]
            result = measure_step(shapes.steps[name], resident, memory, shapes.mesh.size)["fits"]
            if name in NO_MICRO_BATCH:
                known[name, flags] = result
            return result

        # The last step is usually the largest.
        return resident <= memory and all(map(step_fits, reversed(shapes.steps)))

    return fits


def holds_models(config: ConfigDict, make_shapes: MakeShapes, memory: float) -> bool:
    """Whether models and optimizer state alone fit ``memory`` bytes, with or without a change."""
    for change in _changes(config):
        for size in _micro_batches(config, change)[0][:1]:
            with contextlib.suppress(InputError):  # the batches do not divide over the mesh
                if _resident(make_shapes(changed(config, change | {MICRO_BATCH: size}))) <= memory:
                    return True
    return False


def _resident(shapes: RunShapes) -> int:
    return sum(map(bytes_per_device, [*shapes.models.values(), shapes.optimizer]))


def changed(config: ConfigDict, change: dict) -> ConfigDict:
    """A copy of a config with the fields of ``change`` replaced."""
    config = ConfigDict(config.to_dict())
    config.update_from_flattened_dict(change)
    return config


def format_change(change: dict) -> str:
    """A change as command-line flags."""
    return " ".join(f"--config.{name}={value}" for name, value in change.items())


def _changes(config: ConfigDict) -> Iterator[dict]:
    """All combinations of remat, dtypes and meshes, the fewest changed fields first."""
    options: dict[str, list] = {} if config.model.remat else {"model.remat": [True]}
    dtypes = {"model.dtype": config.model.dtype, "inference_dtype": config.get("inference_dtype")}
    options |= {n: ["bfloat16"] for n, dtype in dtypes.items() if dtype == "float32"}
    devices, mesh = jax.device_count(), sharding.make_mesh(config.mesh)
    current = tuple(mesh.shape.values())
    tensors = (n for n in range(1, devices + 1) if devices % n == 0 and n & (n - 1) == 0)
    shapes = [(1, devices // n, n) for n in tensors]
    meshes = [",".join(map(str, shape)) for shape in shapes if shape != current]
    options |= {"mesh": meshes} if meshes else {}
    if config.lora.rank and config.lora.base_dtype == "float32":
        options["lora.base_dtype"] = ["bfloat16", "int8", "nf4"]
    decoding = f"1,1,{devices}"
    if devices > 1 and config.get("generation_mesh", decoding) not in (decoding, "1,1,-1"):
        options["generation_mesh"] = [decoding]
    for count in range(len(options) + 1):
        for names in itertools.combinations(options, count):
            if "inference_dtype" in names and "model.dtype" in set(options) - set(names):
                continue  # it may not be narrower than model.dtype
            for values in itertools.product(*(options[name] for name in names)):
                yield dict(zip(names, values, strict=True))


def _micro_batches(config: ConfigDict, change: dict) -> tuple[list[int], int]:
    """Sizes of a micro-batch that fit batch and mesh, ascending, and the present size."""
    mesh = sharding.make_mesh(change.get("mesh", config.mesh))
    batch = config.get("minibatch_size") or config.batch_size
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    sizes = [n for n in range(shards, batch + 1, shards) if batch % n == 0]
    return sizes, config[MICRO_BATCH] or batch


def _with_largest(
    config: ConfigDict, change: dict, fits: Callable[[dict], bool], below: bool = False
) -> dict:
    """``change`` with the largest micro-batch that fits, by bisection.

    The present size must fit; with ``below`` it does not fit, but the smallest size does.
    """
    sizes, current = _micro_batches(config, change)
    sizes = [n for n in sizes if (n < current if below else n >= current)]
    low, high = 0, len(sizes)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(change | {MICRO_BATCH: sizes[middle]}) else (low, middle)
    return change if not sizes or sizes[low] == current else change | {MICRO_BATCH: sizes[low]}
