"""The smallest change of a config that makes a run fit the memory of its devices.

Only what leaves the algorithm as it is may change: the micro-batch, the mesh, dtypes and remat.
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

MICRO = "micro_batch_size"


def smallest_change(
    config: ConfigDict,
    make_shapes: Callable[[ConfigDict], RunShapes],
    memory: float,
    report: Callable[[str], None],
) -> dict | None:
    """The fewest fields to change so that every step of a run fits.

    Where a change fits with the smallest micro-batch only, the largest one that does is looked for.
    (A single micro-batch can need less than two of them, whose gradients are summed.)

    Args:
      config: of a run that does not fit.
      make_shapes: its ``ppo_shapes``, ``reward_model_shapes`` or ``sft_shapes``.
      memory: bytes that a device has.
      report: called with a line before each candidate is compiled.

    Returns:
      Field names -> new values, or None where no such change fits.
    """

    def fits(change: dict) -> bool:
        report(f"trying {format_change(change)} …")
        try:
            shapes = make_shapes(changed(config, change))
        except InputError:  # of a mesh that the batches do not divide over
            return False
        resident = _resident(shapes)
        return resident <= memory and all(
            measure_step(step, resident, memory, shapes.mesh.size)["fits"]
            for step in reversed(shapes.steps.values())  # the largest one is the last
        )

    for _, of_size in itertools.groupby(_changes(config), key=len):
        with_smaller_batches = []
        for change in of_size:
            if change and fits(change):
                return change
            sizes = _micro_batches(config, change)
            if len(sizes) > 1 and fits(change | {MICRO: sizes[0]}):
                with_smaller_batches.append(change)
        if with_smaller_batches:
            return _with_largest(config, with_smaller_batches[0], fits)
    return None


def holds_models(
    config: ConfigDict, make_shapes: Callable[[ConfigDict], RunShapes], memory: float
) -> bool:
    """Whether models and optimizer state fit ``memory`` bytes, as they are or with a change."""
    for change in _changes(config):
        for size in _micro_batches(config, change)[:1]:
            with contextlib.suppress(InputError):  # of a mesh that the batches do not divide over
                if _resident(make_shapes(changed(config, change | {MICRO: size}))) <= memory:
                    return True
    return False


def _resident(shapes: RunShapes) -> int:
    return sum(map(bytes_per_device, [*shapes.models.values(), shapes.optimizer]))


def changed(config: ConfigDict, change: dict) -> ConfigDict:
    """A copy of a config with other values of some fields."""
    config = ConfigDict(config.to_dict())
    config.update_from_flattened_dict(change)
    return config


def format_change(change: dict) -> str:
    """A change as flags."""
    return " ".join(f"--config.{name}={value}" for name, value in change.items())


def _changes(config: ConfigDict) -> Iterator[dict]:
    """Every choice of remat, dtypes and mesh, without the micro-batch, the fewest fields first."""
    options: dict[str, list] = {} if config.model.remat else {"model.remat": [True]}
    dtypes = {"model.dtype": config.model.dtype, "inference_dtype": config.get("inference_dtype")}
    options |= {n: ["bfloat16"] for n, dtype in dtypes.items() if dtype == "float32"}
    devices, mesh = jax.device_count(), sharding.make_mesh(config.mesh)
    present = tuple(mesh.shape.values())
    tensors = (n for n in range(1, devices + 1) if devices % n == 0 and n & (n - 1) == 0)
    shapes = [(1, devices // n, n) for n in tensors]
    meshes = [",".join(map(str, shape)) for shape in shapes if shape != present]
    options |= {"mesh": meshes} if meshes else {}
    for count in range(len(options) + 1):
        for names in itertools.combinations(options, count):
            if "inference_dtype" in names and "model.dtype" in set(options) - set(names):
                continue  # it may not be below the dtype of the computation
            for values in itertools.product(*(options[name] for name in names)):
                yield dict(zip(names, values, strict=True))


def _micro_batches(config: ConfigDict, change: dict) -> list[int]:
    """Sizes of a micro-batch that divide the config's own and the mesh, ascending."""
    mesh = sharding.make_mesh(change.get("mesh", config.mesh))
    size = config[MICRO] or config.get("minibatch_size") or config.batch_size
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    return [n for n in range(shards, size + 1, shards) if size % n == 0]


def _with_largest(config: ConfigDict, change: dict, fits: Callable[[dict], bool]) -> dict:
    """The change with the largest micro-batch that fits; the smallest does, the present not."""
    sizes = _micro_batches(config, change)[:-1]
    low, high = 0, len(sizes)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(change | {MICRO: sizes[middle]}) else (low, middle)
    return change | {MICRO: sizes[low]}
