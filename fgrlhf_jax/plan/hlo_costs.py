"""FLOPs and bytes of one run of a compiled program, counted in its optimised HLO text.

XLA's own cost analysis counts a loop's body once, whether a model has one layer or eighty. Here a
body counts as often as it runs. The text of a program for several devices describes one device, so
the counts are per device.
"""

import functools
import math
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from fgrlhf_jax.plan.emulation import Names
from fgrlhf_jax.plan.hlo import Computation, Instruction, branches, dimensions


class Costs(NamedTuple):
    """Costs of one run of a program on one device.

    Attributes:
      flops: FLOPs of matrix products and convolutions, 2 per multiplication; elementwise
        operations do not count.
      product_bytes: bytes that these products read and write, each operand and result once.
      link_bytes: bytes that collectives send to other devices by ring algorithms: all data but the
        device's own share, and twice that for an all-reduce.
      notes: assumptions about facts that the text does not state.
    """

    flops: float
    product_bytes: float
    link_bytes: float
    notes: tuple[str, ...]


def count(
    module: tuple[dict[str, Computation], str],
    trips: Mapping[str, float] = MappingProxyType({}),
    halved: Names | None = None,
) -> Costs:
    """Costs of a program; of a conditional only the branch with the most FLOPs.

    Args:
      module: from ``hlo.parse``.
      trips: iterations of loops whose number the compiler does not know, by a part of their
        ``op_name``, which contains ``jax.named_scope``; the first match counts.
      halved: arrays that count half the bytes of their dtype, see ``emulation``.
    """
    (computations, entry), halved = module, halved or {}
    notes = dict.fromkeys(())  # an ordered set

    @functools.cache
    def total(name: str) -> np.ndarray:
        return sum((cost(i, name) for i in computations[name].values()), np.zeros(3))

    def cost(i: Instruction, name: str) -> np.ndarray:
        computation, half = computations[name], halved.get(name, ())

        def size(array: str) -> float:
            return computation[array].bytes / (2 if array in half else 1)

        match i.opcode:
            case "dot" | "convolution":
                flops = dot_flops if i.opcode == "dot" else convolution_flops
                return np.array([flops(i, computation), sum(map(size, [i.name, *i.operands])), 0.0])
            case "while":
                inside = total(i.attribute("body")) + total(i.attribute("condition"))
                return iterations(i) * inside if inside.any() else inside
            case "conditional":
                return max(map(total, branches(i)), key=lambda costs: costs[0])
            case "custom-call" if re.search(r"mat_?mul|gemm|conv", i.attributes):
                target = re.search(r'custom_call_target="([^"]*)"', i.attributes)
                notes[f"custom call {target[1] if target else i.name} is not counted"] = None
        kind = i.opcode.removesuffix("-start")
        if kind in LINK_BYTES:
            sizes = [size(name) for name in i.operands]
            return np.array([0.0, 0.0, LINK_BYTES[kind](sum(sizes), group_size(i.attributes))])
        called = map(i.attribute, ("calls", "to_apply"))
        return sum((total(computation) for computation in called if computation), np.zeros(3))

    def iterations(loop: Instruction) -> float:
        known = re.search(r'known_trip_count"?[=:]\s*\{"?n"?[=:]"?(\d+)', loop.attributes)
        if known:
            return int(known[1])
        label = re.search(r'op_name="([^"]*)"', loop.attributes)
        for part, number in trips.items():
            if part in (label[1] if label else ""):
                early = f"a loop that may end early is counted with all its {number:g} rounds"
                notes[f"{part.split('/')[0]} {number:g} times" if part else early] = None
                return number
        notes["a loop with an unknown number of rounds is counted once"] = None
        return 1

    return Costs(*map(float, total(entry)), tuple(notes))


# Bytes that one device in a group of n sends, from the bytes of its operands.
LINK_BYTES = {
    "all-gather": lambda size, n: size * (n - 1),
    "reduce-scatter": lambda size, n: size * (n - 1) / n,
    "all-to-all": lambda size, n: size * (n - 1) / n,
    "all-reduce": lambda size, n: 2 * size * (n - 1) / n,
    "collective-permute": lambda size, n: size,
}


def group_size(attributes: str) -> int:
    """Devices per group in ``{{0,1},{2,3}}``, ``[2,4]<=[8]`` or ``mesh['a'=2,'b'=4] {'b'}``."""
    axes = r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\([^{]*\))?\s*\{([^}]*)\}"
    if mesh := re.search(axes, attributes):
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", mesh[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'([^']+)'", mesh[2]))
    if iota := re.search(r"replica_groups=\[(\d+),(\d+)\]", attributes):
        return int(iota[2])
    listed = re.search(r"replica_groups=\{\{([\d,]*)\}", attributes)
    return len(listed[1].split(",")) if listed else 1


def dot_flops(dot: Instruction, instructions: Computation) -> float:
    """2 x elements of the result x size of the contracted dimensions."""
    left = dimensions(instructions[dot.operands[0]].shape)
    contracted = math.prod(left[axis] for axis in dot.numbers("lhs_contracting_dims"))
    return 2.0 * math.prod(dimensions(dot.shape)) * contracted


def convolution_flops(convolution: Instruction, instructions: Computation) -> float:
    """2 x elements of the result x the kernel's elements per output feature."""
    kernel = dimensions(instructions[convolution.operands[1]].shape)
    labels = convolution.attribute("dim_labels").split("_")[1].split("-")[0]
    elements = math.prod(kernel) / kernel[labels.index("o")]
    return 2.0 * math.prod(dimensions(convolution.shape)) * elements
