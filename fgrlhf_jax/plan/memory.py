"""Will it fit? Bytes and FLOPs of every compiled step of a run, from shapes alone.

Every step is compiled ahead of time, exactly as the run itself would compile it, for virtual
devices: no weights are read and nothing is allocated. The difference between the FLOPs of the model
and those of its compiled program is recomputation, padding, and work that every device does for
itself. Compiled for the CPU, a program computes bfloat16 products in float32, so that its
temporaries are rather more than on an accelerator.
"""

import math
from collections.abc import Callable

import jax

from fgrlhf_jax.plan import hlo_flops
from fgrlhf_jax.plan.shapes import Outline


def bytes_of(tree) -> int:
    """Bytes a device of an abstract tree that carries its shardings."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def measure(
    outline: Outline, memory: float, say: Callable[[str], None] = lambda what: None
) -> dict:
    """Compile every step; all figures are for one device, bytes and FLOPs.

    A step holds its arguments, temporaries and those outputs that do not reuse an argument, and
    beside it stands what the run holds anyway: models and optimizer state that this step is not
    given.

    Args:
      memory: bytes that a device has.
      say: told what is being compiled.
    """
    held = (outline.models, outline.optimizer)
    found = {
        "mesh": dict(outline.mesh.shape),
        "devices": outline.mesh.size,
        "memory": memory,
        "models": {
            name: {
                "parameters": sum(leaf.size for leaf in jax.tree.leaves(tree)),
                "dtype": str(jax.tree.leaves(tree)[0].dtype),
                "bytes": bytes_of(tree),
            }
            for name, tree in outline.models.items()
        },
        "optimizer": bytes_of(outline.optimizer),
        "cache": outline.cache,
        "steps": {},
    }
    for name, step in outline.steps.items():
        say(f"compiling {name} …")
        compiled = step.compile()
        sizes = compiled.memory_analysis()
        counted = hlo_flops.count(compiled.as_text())
        one = {
            "arguments": sizes.argument_size_in_bytes,
            "temporaries": sizes.temp_size_in_bytes,
            "outputs": sizes.output_size_in_bytes,
            "reused": sizes.alias_size_in_bytes,
            "beside": bytes_of(held) - bytes_of(step.given),
        }
        one["total"] = sum(one.values()) - 2 * one["reused"]  # in arguments and outputs both
        one["fits"] = one["total"] <= memory
        one["model_flops"] = step.flops / outline.mesh.size
        one["compiled_flops"] = counted.flops
        one["notes"] = list(counted.notes)
        found["steps"][name] = one
    found["fits"] = all(one["fits"] for one in found["steps"].values())
    return found


def table(found: dict) -> str:
    """What :func:`measure` found, for people."""
    steps = found["steps"]
    size, unit = scale(max(one["total"] for one in steps.values()), {"GB": 1e9, "MB": 1e6})
    flops, work = scale(
        max(one["model_flops"] for one in steps.values()), {"TFLOP": 1e12, "GFLOP": 1e9}
    )
    axes = " x ".join(f"{name} {n}" for name, n in found["mesh"].items())
    lines = [
        f"{found['devices']} devices ({axes}); for one of them, in {unit}:",
        "",
        f"{'held all the time':20}{'parameters':>12}{unit:>10}",
    ]
    for name, model in found["models"].items():
        many = f"{model['parameters'] / 1e6:,.1f} M"
        lines.append(f"{name:20}{many:>12}{model['bytes'] / size:10.3f}  {model['dtype']}")
    lines.append(f"{'optimizer state':32}{found['optimizer'] / size:10.3f}")
    together = found["optimizer"] + sum(model["bytes"] for model in found["models"].values())
    lines.append(f"{'together':32}{together / size:10.3f}")
    columns = ("arguments", "temporaries", "outputs", "reused", "beside", "total")
    head = "".join(f"{name:>12}" for name in columns)
    lines += ["", f"{'step':12}{head}   fits {found['memory'] / 1e9:g} GB"]
    for name, one in steps.items():
        sizes = "".join(f"{one[column] / size:12.3f}" for column in columns)
        lines.append(f"{name:12}{sizes}   {'yes' if one['fits'] else 'NO'}")
    if found["cache"]:
        lines.append(
            f"KV cache, among the temporaries of generate: {found['cache'] / size:.3f}"
        )
    lines += ["", f"{work:12}{'model':>12}{'compiled':>12}{'share':>9}"]
    for name, one in steps.items():
        model, compiled = one["model_flops"], one["compiled_flops"]
        lines.append(
            f"{name:12}{model / flops:12.1f}{compiled / flops:12.1f}{model / compiled:9.1%}"
        )
    notes = [f"{name}: {note}" for name, one in steps.items() for note in one["notes"]]
    return "\n".join([*lines, *notes])


def scale(largest: float, units: dict[str, float]) -> tuple[float, str]:
    """The first unit that ``largest`` is at least one of, or the last."""
    unit = next((name for name, one in units.items() if largest >= one), [*units][-1])
    return units[unit], unit
