"""FLOPs of a compiled program, read from its optimised HLO text.

XLA's own cost analysis counts the body of a loop once, whether a model has one layer or eighty.
Here every body counts as often as it runs. Matrix products and convolutions count, 2 FLOPs a
multiplication; what is done element by element does not. The text of a program that is spread over
devices is that of one device, and so is the count.
"""

import functools
import math
import re
from typing import NamedTuple


class Count(NamedTuple):
    """What a program computes.

    Attributes:
      flops: of one run, on one device.
      notes: what the text alone does not settle, and how it was taken.
    """

    flops: float
    notes: tuple[str, ...]


class Instruction(NamedTuple):
    """``name = shape opcode(inside), attributes``; ``inside`` are operands, or a literal."""

    name: str
    shape: str
    opcode: str
    inside: str
    attributes: str

    @property
    def operands(self) -> list[str]:
        return re.findall(r"%([\w.-]+)", self.inside)

    def attribute(self, name: str) -> str:
        found = re.search(rf"\b{name}=%?([\w.-]+)", self.attributes)
        return found[1] if found else ""

    def numbers(self, name: str) -> list[int]:
        found = re.search(rf"\b{name}=\{{([\d,]*)\}}", self.attributes)
        return [int(n) for n in found[1].split(",") if n] if found else []


class Computation(NamedTuple):
    """Instructions by name, in order, and the name of the root."""

    instructions: dict[str, Instruction]
    root: str


def count(text: str) -> Count:
    """FLOPs of the program whose ``compiled.as_text()`` this is.

    A loop whose number of rounds is not known to the compiler is taken to run as often as its
    condition's comparison with a constant allows; of branches the most expensive one is taken.

    Raises:
      ValueError: when this is no HLO module.
    """
    computations, entry = parse(text)
    notes = dict.fromkeys(())  # an ordered set

    @functools.cache
    def of(name: str) -> float:
        total = 0.0
        for one in computations[name].instructions.values():
            if one.opcode == "dot":
                total += dot(one, computations[name].instructions)
            elif one.opcode == "convolution":
                total += convolution(one, computations[name].instructions)
            elif one.opcode == "while":
                total += loop(one, name)
            elif one.opcode == "conditional":
                total += max(of(branch) for branch in branches(one))
            else:
                if one.opcode == "custom-call" and re.search(
                    r"mat_?mul|gemm|conv", one.attributes
                ):
                    target = re.search(r'custom_call_target="([^"]*)"', one.attributes)
                    notes[f"custom call {target[1] if target else one.name} is not counted"] = (
                        None
                    )
                total += sum(of(c) for c in map(one.attribute, ("calls", "to_apply")) if c)
        return total

    def loop(one: Instruction, inside: str) -> float:
        body = of(one.attribute("body"))
        if not body:
            return 0.0
        known = re.search(r'known_trip_count"?[=:]\s*\{"?n"?[=:]"?(\d+)', one.attributes)
        if known:
            return int(known[1]) * body
        rounds = most_rounds(one, inside, computations)
        if rounds is None:
            notes["a loop with an unknown number of rounds is counted once"] = None
            return body
        notes[f"a loop that may end earlier is counted with its most rounds, {rounds}"] = None
        return rounds * body

    return Count(of(entry), tuple(notes))


def dot(one: Instruction, around: dict[str, Instruction]) -> float:
    """2 x every element of the result x the contracted dimensions."""
    left = dimensions(around[one.operands[0]].shape)
    contracted = math.prod(left[axis] for axis in one.numbers("lhs_contracting_dims"))
    return 2.0 * math.prod(dimensions(one.shape)) * contracted


def convolution(one: Instruction, around: dict[str, Instruction]) -> float:
    """2 x every element of the result x the kernel's elements for one output feature."""
    kernel = dimensions(around[one.operands[1]].shape)
    features = kernel[one.attribute("dim_labels").split("_")[1].split("-")[0].index("o")]
    return 2.0 * math.prod(dimensions(one.shape)) * math.prod(kernel) / features


def dimensions(shape: str) -> list[int]:
    """[2, 3] of ``f32[2,3]{1,0}``."""
    return [int(size) for size in re.search(r"\[([\d,]*)\]", shape)[1].split(",") if size]


def branches(one: Instruction) -> list[str]:
    listed = re.search(r"branch_computations=\{([^}]*)\}", one.attributes)
    if listed:
        return re.findall(r"%?([\w.-]+)", listed[1])
    return [one.attribute("true_computation"), one.attribute("false_computation")]


def parse(text: str) -> tuple[dict[str, Computation], str]:
    """The computations of a module by name, and the name of its entry.

    Raises:
      ValueError: when there is no entry.
    """
    computations, entry, name = {}, "", ""
    for line in text.splitlines():
        head = re.match(r"(ENTRY )?%?([\w.-]+) \(.*\{$", line)
        if head:
            name, instructions, root = head[2], {}, ""
            entry = name if head[1] else entry
        elif line == "}" and name:
            computations[name], name = Computation(instructions, root), ""
        elif name and (made := instruction(line)):
            instructions[made.name] = made
            root = made.name if line.lstrip().startswith("ROOT ") else root
    if not entry:
        raise ValueError("this is not the text of an HLO module: it has no ENTRY computation")
    return computations, entry


def instruction(line: str) -> Instruction | None:
    found = re.match(r"\s*(?:ROOT )?%?([\w.-]+) = (.*)", line)
    if not found:
        return None
    name, rest = found.groups()
    # A tuple's shape has blanks and brackets in it, any other has no blank.
    end = closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    shape, call = rest[:end], rest[end:].lstrip()
    start = call.index("(")
    stop = closing(call, start)
    return Instruction(name, shape, call[:start], call[start + 1 : stop], call[stop + 1 :])


def closing(text: str, start: int) -> int:
    """Where the bracket that opens at ``start`` is closed."""
    depth = 0
    for found in re.compile(r"[()]").finditer(text, start):
        depth += 1 if found[0] == "(" else -1
        if not depth:
            return found.start()
    raise ValueError(f"a bracket is not closed: {text[start : start + 80]}")


def most_rounds(one: Instruction, inside: str, computations) -> int | None:
    """How often a while loop runs if only its comparisons with constants can end it.

    Args:
      inside: the computation that the loop is in.

    Returns:
      The least that any comparison of its condition allows; None where none can be understood.
    """

    def root(name: str):
        return meaning(name, computations[name].root, ["state"], computations)

    start = meaning(inside, one.operands[0], None, computations)
    after = root(one.attribute("body"))

    def element(values, index: int):
        return values[index] if isinstance(values, list) and index < len(values) else None

    def settled(value):
        """A constant that the loop carries along is a constant."""
        if (
            isinstance(value, tuple)
            and value[0] == "state"
            and element(after, value[1]) == value
        ):
            return element(start, value[1])
        return value

    allowed = []
    condition = root(one.attribute("condition"))
    for how, left, right in condition if isinstance(condition, list) else []:
        left, right = settled(left), settled(right)
        if isinstance(left, int):
            left, right = right, left
            how = how.translate(str.maketrans("LG", "GL"))
        if not (isinstance(left, tuple) and left[0] == "state" and isinstance(right, int)):
            continue
        first, change = element(start, left[1]), element(after, left[1])
        if not (isinstance(first, int) and isinstance(change, tuple) and change[0] == "add"):
            continue
        _, counter, by = change
        if counter != left or not by:
            continue
        distance = (right - first) / by
        if how in ("LE", "GE"):
            allowed.append(math.floor(distance) + 1)
        elif how in ("LT", "GT", "NE"):
            allowed.append(math.ceil(distance))
    return max(0, min(allowed)) if allowed else None


def meaning(name: str, wanted: str, arguments: list | None, computations):
    """What an instruction computes, as far as counters of loops need to know it.

    Args:
      name: the computation that the instruction ``wanted`` is in.
      arguments: meanings of its parameters; "state" is all that a loop carries.

    Returns:
      An int; a list, of a tuple's elements; ("state", i); ("add", meaning, int); a list of
      (direction, meaning, meaning), all of which must hold; or None.
    """
    one = computations[name].instructions[wanted]

    def operand(number: int):
        return meaning(name, one.operands[number], arguments, computations)

    match one.opcode:
        case "constant":
            return int(one.inside) if re.fullmatch(r"-?\d+", one.inside) else None
        case "parameter":
            return arguments[int(one.inside)] if arguments is not None else None
        case "copy" | "bitcast" | "convert" | "reshape" | "optimization-barrier":
            return operand(0)
        case "tuple":
            return [operand(number) for number in range(len(one.operands))]
        case "get-tuple-element":
            whole, index = operand(0), int(one.attribute("index"))
            if whole == "state":
                return ("state", index)
            return whole[index] if isinstance(whole, list) else None
        case "fusion" | "call":
            called = one.attribute("calls") or one.attribute("to_apply")
            given = [operand(number) for number in range(len(one.operands))]
            return meaning(called, computations[called].root, given, computations)
        case "add" | "subtract" if not dimensions(one.shape):
            left, right = operand(0), operand(1)
            if one.opcode == "add" and isinstance(left, int):
                left, right = right, left
            if not isinstance(right, int) or left is None:
                return None
            return ("add", left, right if one.opcode == "add" else -right)
        case "compare":
            return [(one.attribute("direction"), operand(0), operand(1))]
        case "and":
            both = operand(0), operand(1)
            return [test for tests in both if isinstance(tests, list) for test in tests]
    return None
