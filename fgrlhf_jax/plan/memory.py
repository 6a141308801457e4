"""Bytes and FLOPs of every compiled step of a run, without the run's devices.

Every step is compiled ahead of time for virtual devices, exactly as the run would compile it; no
weights are read and nothing is allocated. The compiled program has more FLOPs than the model:
recomputation, padding, and work that every device repeats. Memory that only the CPU's emulation of
bfloat16 needs is subtracted, see ``emulation``.
"""

import math
from collections.abc import Callable

import jax
import numpy as np

from fgrlhf_jax.models.quantize import is_quantized
from fgrlhf_jax.plan import emulation, hlo, hlo_costs
from fgrlhf_jax.plan.shapes import RunShapes, Step


def bytes_per_device(tree) -> int:
    """Bytes on one device of an abstract tree with shardings."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def measure(shapes: RunShapes, memory: float, report: Callable[[str], None] | None = None) -> dict:
    """Compiles every step of a run and measures it.

    ``memory`` is in bytes per device; ``report`` gets a line before each compilation.

    Returns:
      A dict for JSON, per device: bytes of ``models``, ``optimizer`` and ``cache``, and for each of
      the ``steps`` the result of :func:`measure_step`.
    """
    models = {}
    for name, tree in shapes.models.items():
        leaves = jax.tree.leaves(tree, is_leaf=is_quantized)
        numbers = sum(math.prod(leaf.shape) for leaf in leaves)
        dtype = str(max(leaves, key=lambda leaf: math.prod(leaf.shape)).dtype)
        models[name] = {"parameters": numbers, "dtype": dtype, "bytes": bytes_per_device(tree)}
    optimizer, devices = bytes_per_device(shapes.optimizer), shapes.mesh.size
    resident = optimizer + sum(model["bytes"] for model in models.values())
    steps = {}
    for name, step in shapes.steps.items():
        if report:
            report(f"compiling {name} …")
        steps[name] = measure_step(step, resident, memory, devices)
    return {
        "mesh": dict(shapes.mesh.shape),
        "devices": devices,
        "memory": memory,
        "models": models,
        "optimizer": optimizer,
        "cache": shapes.cache,
        "steps": steps,
        "fits": resident <= memory and all(step["fits"] for step in steps.values()),
    }


def measure_step(step: Step, resident: int, memory: float, devices: int) -> dict:
    """Compiles one step and returns its bytes and FLOPs per device.

    A step needs its arguments, temporaries and the outputs that do not reuse an argument, and
    ``beside`` them the run's models and optimizer state that are not among its arguments.

    ``resident`` are the bytes of all models and the optimizer state, ``memory`` of a device.

    Returns:
      A dict for JSON: bytes of the parts and their ``total``; ``emulated``, bytes subtracted from
      the temporaries; ``fits``; ``model_flops`` and ``compiled_flops``; ``notes``; and per stage
      (``generate`` has two) ``flops``, ``memory_bytes`` and ``link_bytes``.
    """
    compiled = step.compile()
    sizes, module = compiled.memory_analysis(), hlo.parse(compiled.as_text())
    halved = emulation.emulated(*module)
    narrow, wide = (emulation.peak_bytes(*module, halved=names) for names in (halved, {}))
    count = hlo_costs.count(module, step.trips, halved)
    parts = {
        "arguments": sizes.argument_size_in_bytes,
        "temporaries": sizes.temp_size_in_bytes - (wide - narrow),
        "outputs": sizes.output_size_in_bytes,
        "reused": sizes.alias_size_in_bytes,
        "beside": resident - bytes_per_device(step.resident),
    }
    total = sum(parts.values()) - 2 * parts["reused"]  # counted as arguments and outputs
    return parts | {
        "total": total,
        "emulated": wide - narrow,
        "fits": total <= memory,
        "model_flops": step.flops / devices,
        "compiled_flops": count.flops,
        "notes": [*count.notes, *([f"{step.share:.0%} of the updates"] if step.share < 1 else ())],
        "stages": _stages(step, module, halved, count, parts["arguments"] + parts["outputs"]),
    }


def _stages(step: Step, module, halved, count: hlo_costs.Costs, io_bytes: int) -> dict[str, dict]:
    """FLOPs and bytes per stage, averaged over updates.

    Elementwise operations are assumed to be fused with products. ``io_bytes`` are the bytes of the
    arguments and outputs, each read or written at least once.
    """
    costs = {step.stages[-1]: np.array(count[:3])}
    if len(step.stages) == 2:  # before and inside the loop
        once = hlo_costs.count(module, dict.fromkeys(step.trips, 0), halved)
        costs = dict(zip(step.stages, (once[:3], np.subtract(count[:3], once[:3])), strict=True))
    costs[step.stages[0]] += np.array([0, io_bytes, 0])
    names = ("flops", "memory_bytes", "link_bytes")
    return {
        stage: dict(zip(names, map(float, step.share * c), strict=True))
        for stage, c in costs.items()
    }


def format_table(plan: dict) -> str:
    """The result of :func:`measure` as text."""
    steps = plan["steps"]
    together = plan["optimizer"] + sum(model["bytes"] for model in plan["models"].values())
    largest = max([together, *(step["total"] for step in steps.values())])
    size, unit = (1e9, "GB") if largest >= 1e9 else (1e6, "MB")
    large = any(step["model_flops"] >= 1e12 for step in steps.values())
    flops, flops_unit = (1e12, "TFLOP") if large else (1e9, "GFLOP")
    axes = " x ".join(f"{name} {n}" for name, n in plan["mesh"].items())
    lines = [
        f"{plan['devices']} devices ({axes}); for one of them, in {unit}:",
        "",
        f"{'held all the time':20}{'parameters':>12}{unit:>10}",
    ]
    for name, model in plan["models"].items():
        millions = f"{model['parameters'] / 1e6:,.1f} M"
        lines.append(f"{name:20}{millions:>12}{model['bytes'] / size:10.3f}  {model['dtype']}")
    lines.append(f"{'optimizer state':32}{plan['optimizer'] / size:10.3f}")
    lines.append(f"{'together':32}{together / size:10.3f}")
    if not steps:
        return "\n".join([*lines, "", "No step was compiled: these alone fit on no mesh."])
    columns = ("arguments", "temporaries", "outputs", "reused", "beside", "total")
    head = "".join(f"{name:>12}" for name in columns)
    lines += ["", f"{'step':14}{head}   fits {plan['memory'] / 1e9:g} GB"]
    for name, step in steps.items():
        sizes = "".join(f"{step[column] / size:12.3f}" for column in columns)
        lines.append(f"{name:14}{sizes}   {'yes' if step['fits'] else 'NO'}")
    if emulated := {name: step["emulated"] for name, step in steps.items() if step["emulated"]}:
        sizes = ", ".join(f"{name} {bytes_ / size:.3f}" for name, bytes_ in emulated.items())
        lines.append(f"Subtracted from temporaries, float32 only for emulation: {sizes}")
    if plan["cache"]:
        lines.append(f"KV cache, among the temporaries of generate: {plan['cache'] / size:.3f}")
    lines += ["", f"{flops_unit:14}{'model':>12}{'compiled':>12}{'share':>9}"]
    for name, step in steps.items():
        model, compiled = step["model_flops"], step["compiled_flops"]
        lines.append(
            f"{name:14}{model / flops:12.1f}{compiled / flops:12.1f}{model / compiled:9.1%}"
        )
    notes = [f"{name}: {', '.join(step['notes'])}" for name, step in steps.items() if step["notes"]]
    return "\n".join([*lines, *notes])


def format_advice(change: str | None, memory: float) -> str:
    """Advice for a run that does not fit: the flags of a change that fits, or that none does."""
    size = f"{memory / 1e9:g} GB"
    if change is None:
        return (
            f"It does not fit {size}, whatever the micro-batch, mesh, dtypes and remat; use more "
            "or larger devices, shorter rows, or a smaller model"
        )
    return f"It does not fit {size}; the smallest change that does: {change}"
