"""Finds float32 arrays of a CPU program that are bfloat16 on a device, and their memory.

A CPU emulates bfloat16 in float32: its compiler widens the operands of a product or a collective
and rounds the result. A float32 array of a compiled program stands for a bfloat16 array if

* all its numbers come from bfloat16 arrays by data movement only (gather, slice, transpose …), or
* every instruction that reads it first rounds it to bfloat16.

A program without bfloat16 has no such array. The memory cost of emulation is the difference in the
peak of temporaries between two replays of the program's instructions: one with the CPU's arrays,
each live from its definition to its last use, and one with the emulated arrays halved and without
the copies that only widen or round.
"""

import functools
from collections import defaultdict

import jax

from fgrlhf_jax.plan.hlo import Computation, Instruction, branches, root_of

HALF_DTYPES = ("bf16", "f16")
MOVES = {
    *("copy", "bitcast", "reshape", "transpose", "broadcast", "slice", "dynamic-slice", "gather"),
    *("concatenate", "select", "dynamic-update-slice", "pad", "reverse", "negate", "abs"),
    *("maximum", "minimum", "all-gather", "all-to-all", "collective-permute"),
    "optimization-barrier",
}
IN_PLACE = {"bitcast", "while", "optimization-barrier", "dynamic-update-slice"}
SUMS = {"all-reduce", "reduce-scatter"}
# Levels of an array's numbers: constants only; representable in bfloat16; any number.
CONSTANT, NARROW, WIDE = range(3)
Names = dict[str, set[str]]  # computation -> names of its emulated arrays


def emulated(computations: dict[str, Computation], entry: str) -> Names:
    """The float32 arrays of every computation that stand for bfloat16 arrays."""
    narrow, rounded = _narrow(computations, entry), _rounded(computations)

    def is_input(i: Instruction, computation: Computation) -> bool:
        while i.opcode in ("get-tuple-element", "bitcast"):
            i = computation[i.operands[0]]
        return i.opcode in ("parameter", "while")  # such as float32 weights: no emulated result

    return {
        name: {
            i.name
            for i in computation.values()
            if i.dtype == "f32"
            and (
                i.name in narrow.get(name, ())
                or (not is_input(i, computation) and rounded(name, i.name))
            )
        }
        for name, computation in computations.items()
    }


def _narrow(computations: dict[str, Computation], entry: str) -> Names:
    """Arrays whose numbers all come from bfloat16 arrays by data movement."""
    narrow: Names = {}

    def walk(name: str, arguments: list) -> object:
        """The level of a computation's root; for a tuple a nested list of levels."""
        levels, computation = {}, computations[name]
        for i in computation.values():
            levels[i.name] = level(i, [levels.get(o, WIDE) for o in i.operands], arguments)
        narrow[name] = {n for n, value in levels.items() if value == NARROW}
        return levels[root_of(computation).name]

    def level(i: Instruction, operands: list, arguments: list):
        if i.opcode == "parameter":
            index = int(i.arguments)
            return arguments[index] if index < len(arguments) else dtype_level(i)
        if i.opcode == "tuple":
            return operands
        if i.opcode == "get-tuple-element":
            whole = operands[0]
            known = isinstance(whole, list)
            return whole[int(i.attribute("index"))] if known else dtype_level(i)
        if i.opcode in ("fusion", "call"):
            return walk(i.called[0], operands)
        if i.opcode == "while":
            return loop_level(i.attribute("body"), operands[0])
        if i.opcode == "conditional":
            ends = (walk(name, [x]) for name, x in zip(branches(i), operands[1:], strict=True))
            return functools.reduce(join, ends)
        if i.opcode == "optimization-barrier" and not i.dtype:
            return operands[0]
        if i.dtype in HALF_DTYPES:
            return NARROW
        if i.opcode == "constant":
            return CONSTANT
        moved = [x for x in operands if not isinstance(x, list)]
        if i.dtype == "f32" and (i.opcode in MOVES or i.opcode == "convert") and moved:
            # Indices and conditions have the level of constants.
            return max(moved)
        return CONSTANT if i.dtype not in ("", "f32") else WIDE

    def loop_level(body: str, start):
        """The level of a loop's state: the highest over all iterations."""
        while (after := join(start, walk(body, [start]))) != start:
            start = after
        return start

    def join(a, b):
        if isinstance(a, list) and isinstance(b, list):
            return [join(*pair) for pair in zip(a, b, strict=True)]
        return WIDE if isinstance(a, list) or isinstance(b, list) else max(a, b)

    walk(entry, [])
    return narrow


def dtype_level(i: Instruction) -> int:
    """The level of an array of which only the dtype is known."""
    return NARROW if i.dtype in HALF_DTYPES else WIDE if i.dtype in ("", "f32") else CONSTANT


def _rounded(computations: dict[str, Computation]):
    """A function (computation, array) → whether all its readers first round to bfloat16."""
    users = {name: _users(computation) for name, computation in computations.items()}
    fused = {
        i.called[0]: (name, i.name)
        for name, computation in computations.items()
        for i in computation.values()
        if i.opcode == "fusion"
    }

    @functools.cache
    def rounded(name: str, array: str) -> bool:
        computation = computations[name]
        reads = users[name].get(array, [])
        results = [rounds_operand(name, computation[user], place) for user, place in reads]
        if computation[array].root:
            results.append(name in fused and rounded(*fused[name]))
        return bool(results) and all(results)

    def rounds_operand(name: str, user: Instruction, place: int) -> bool:
        if user.opcode == "convert":
            return user.dtype in HALF_DTYPES
        if user.opcode == "fusion":
            inner = computations[user.called[0]]
            parameters = {
                int(i.arguments): i.name for i in inner.values() if i.opcode == "parameter"
            }
            return rounded(user.called[0], parameters[place])
        return user.dtype == "f32" and user.opcode in MOVES | SUMS and rounded(name, user.name)

    return rounded


def _users(computation: Computation) -> dict[str, list[tuple[str, int]]]:
    """Per array the instructions that read it, with the index of the operand."""
    users: dict[str, list[tuple[str, int]]] = {}
    for i in computation.values():
        for index, operand in enumerate(i.operands):
            users.setdefault(operand, []).append((i.name, index))
    return users


def peak_bytes(computations: dict[str, Computation], entry: str, halved: Names) -> int:
    """The peak size of a program's temporaries, in bytes.

    Arrays in ``halved`` count half the bytes of their dtype, see :func:`emulated`.
    """

    @functools.cache
    def peak(name: str) -> int:
        computation = computations[name]
        buffers, sizes, ends = _buffers(computations, name, halved)
        live, highest = 0, 0
        allocated, freed = defaultdict(int), defaultdict(int)
        for buffer, size in sizes.items():
            allocated[buffer[0]] += size
            freed[ends[buffer]] += size
        for index, i in enumerate(computation.values()):
            reused = sizes.get(_reused(i, computation, buffers, ends, index), 0)
            live += allocated[index] - reused
            inner = i.called if i.opcode in ("while", "call", "conditional") else []
            highest = max(highest, live + max(map(peak, inner), default=0))
            live -= freed[index] - reused
        return highest

    return peak(entry)


def _buffers(computations: dict[str, Computation], name: str, halved: Names):
    """The buffers of a computation, as three dicts.

    Instruction name → buffers of its value (nested lists for a tuple); buffer → bytes; buffer →
    index of the last instruction that reads it. A buffer is a pair: the index of the instruction
    that defines it, and the index among its results. Parameters and results belong to the caller
    and have no bytes here.
    """
    computation = computations[name]
    flat = functools.partial(jax.tree.leaves, is_leaf=lambda each: isinstance(each, tuple))
    value, sizes, ends = {}, {}, {}
    elements: dict[str, list[Instruction]] = {}
    for i in computation.values():
        if i.opcode == "get-tuple-element":
            elements.setdefault(i.operands[0], []).append(i)
    for index, i in enumerate(computation.values()):
        operands = [value[o] for o in i.operands if o in value]
        for buffer in flat(operands):
            ends[buffer] = index
        if i.opcode in ("parameter", "constant"):
            value[i.name] = []
        elif i.opcode == "tuple":
            value[i.name] = operands
        elif i.opcode == "get-tuple-element":
            place = int(i.attribute("index"))
            value[i.name] = operands[0][place] if place < len(operands[0]) else []
        elif i.opcode in IN_PLACE or _converts(i, computations, name, halved):
            value[i.name] = operands[0]
        elif i.opcode == "fusion" and (place := _updated(computations[i.called[0]])) is not None:
            value[i.name] = value.get(i.operands[place], [])
        else:
            value[i.name] = [(index, 0)]
            arrays = {(index, 0): i}
            if not i.dtype:  # a tuple: its elements that are read are named
                arrays = {(index, int(e.attribute("index"))): e for e in elements.get(i.name, ())}
                value[i.name] = [[(index, k)] for k in range(len(i.elements))]
            for buffer, array in arrays.items():
                sizes[buffer] = array.bytes // (2 if array.name in halved.get(name, ()) else 1)
            ends |= dict.fromkeys(arrays, index)
    sizes |= dict.fromkeys(sizes.keys() & set(flat(value[root_of(computation).name])), 0)
    return value, sizes, ends


def _converts(i: Instruction, computations: dict[str, Computation], name: str, halved: Names):
    """Whether an instruction only converts between two arrays that a device has in bfloat16."""
    inner = computations[i.called[0]].values() if i.opcode == "fusion" else [i]
    if not halved or not {x.opcode for x in inner} <= {"parameter", "convert", "bitcast"}:
        return False
    both = (i, *(computations[name][o] for o in i.operands))
    return len(both) == 2 and all(x.dtype in HALF_DTYPES or x.name in halved[name] for x in both)


def _updated(fused: Computation) -> int | None:
    """The index of the operand that a fusion updates in place, or None."""
    i = root_of(fused)
    while i.opcode == "bitcast":
        i = fused[i.operands[0]]
    if i.opcode != "dynamic-update-slice":
        return None
    i = fused[i.operands[0]]
    while i.opcode == "bitcast":
        i = fused[i.operands[0]]
    return int(i.arguments) if i.opcode == "parameter" else None


def _reused(i: Instruction, computation: Computation, buffers, ends, index: int):
    """The operand's buffer that an elementwise fusion overwrites with its result, or None."""
    if i.attribute("kind") != "kLoop" or buffers[i.name] != [(index, 0)]:
        return None
    same = (o for o in i.operands if o in computation and computation[o].shape == i.shape)
    candidates = (buffer for operand in same for buffer in buffers[operand])
    return next((buffer for buffer in candidates if ends[buffer] == index), None)
