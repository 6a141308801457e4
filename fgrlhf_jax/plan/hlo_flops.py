"""FLOPs of a compiled program, counted in its optimised HLO text.

XLA's own cost analysis counts the body of a loop once, whether a model has one layer or eighty.
Here every body counts as often as it runs. Matrix products and convolutions count, 2 FLOPs a
multiplication; elementwise operations do not. The text of a program for several devices describes
one of them, and so does the count.
"""

import functools
import math
import re
from typing import NamedTuple


class Count(NamedTuple):
    """FLOPs of a program.

    Attributes:
      flops: of one run, on one device.
      notes: assumptions that were made where the text is not enough.
    """

    flops: float
    notes: tuple[str, ...]


class Instruction(NamedTuple):
    """``name = shape opcode(arguments), attributes``; arguments are operands, or a literal."""

    name: str
    shape: str
    opcode: str
    arguments: str
    attributes: str

    @property
    def operands(self) -> list[str]:
        return re.findall(r"%([\w.-]+)", self.arguments)

    def attribute(self, name: str) -> str:
        match = re.search(rf"\b{name}=%?([\w.-]+)", self.attributes)
        return match[1] if match else ""

    def numbers(self, name: str) -> list[int]:
        match = re.search(rf"\b{name}=\{{([\d,]*)\}}", self.attributes)
        return [int(n) for n in match[1].split(",") if n] if match else []


class Computation(NamedTuple):
    """Instructions by name, in order, and the name of the root."""

    instructions: dict[str, Instruction]
    root: str


def count(text: str) -> Count:
    """FLOPs of the program whose ``compiled.as_text()`` this is.

    A loop whose number of iterations is not known to the compiler is taken to run as often as its
    condition's comparison with a constant allows; of branches the most expensive one is taken.

    Raises:
      ValueError: when this is no HLO module.
    """
    computations, entry = parse(text)
    notes = dict.fromkeys(())  # an ordered set

    @functools.cache
    def total(name: str) -> float:
        """FLOPs of a computation."""
        instructions = computations[name].instructions
        return sum(flops(instruction, name) for instruction in instructions.values())

    def flops(instruction: Instruction, name: str) -> float:
        instructions = computations[name].instructions
        match instruction.opcode:
            case "dot":
                return dot_flops(instruction, instructions)
            case "convolution":
                return convolution_flops(instruction, instructions)
            case "while":
                body = total(instruction.attribute("body"))
                return iterations(instruction, name) * body if body else 0.0
            case "conditional":
                return max(map(total, branches(instruction)))
            case "custom-call" if re.search(r"mat_?mul|gemm|conv", instruction.attributes):
                target = re.search(r'custom_call_target="([^"]*)"', instruction.attributes)
                called = target[1] if target else instruction.name
                notes[f"custom call {called} is not counted"] = None
        called = map(instruction.attribute, ("calls", "to_apply"))
        return sum(total(computation) for computation in called if computation)

    def iterations(loop: Instruction, name: str) -> int:
        known = re.search(r'known_trip_count"?[=:]\s*\{"?n"?[=:]"?(\d+)', loop.attributes)
        if known:
            return int(known[1])
        limit = max_iterations(loop, name, computations)
        if limit is None:
            notes["a loop with an unknown number of rounds is counted once"] = None
            return 1
        notes[f"a loop that may end earlier is counted with its most rounds, {limit}"] = None
        return limit

    return Count(total(entry), tuple(notes))


def dot_flops(dot: Instruction, instructions: dict[str, Instruction]) -> float:
    """2 x every element of the result x the contracted dimensions."""
    left = dimensions(instructions[dot.operands[0]].shape)
    contracted = math.prod(left[axis] for axis in dot.numbers("lhs_contracting_dims"))
    return 2.0 * math.prod(dimensions(dot.shape)) * contracted


def convolution_flops(convolution: Instruction, instructions: dict[str, Instruction]) -> float:
    """2 x every element of the result x the kernel's elements for one output feature."""
    kernel = dimensions(instructions[convolution.operands[1]].shape)
    labels = convolution.attribute("dim_labels").split("_")[1].split("-")[0]
    elements = math.prod(kernel) / kernel[labels.index("o")]
    return 2.0 * math.prod(dimensions(convolution.shape)) * elements


def dimensions(shape: str) -> list[int]:
    """[2, 3] of ``f32[2,3]{1,0}``."""
    return [int(size) for size in re.search(r"\[([\d,]*)\]", shape)[1].split(",") if size]


def branches(conditional: Instruction) -> list[str]:
    names = re.search(r"branch_computations=\{([^}]*)\}", conditional.attributes)
    if names:
        return re.findall(r"%?([\w.-]+)", names[1])
    return [conditional.attribute(f"{branch}_computation") for branch in ("true", "false")]


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
        elif name and (instruction := parse_instruction(line)):
            instructions[instruction.name] = instruction
            root = instruction.name if line.lstrip().startswith("ROOT ") else root
    if not entry:
        raise ValueError("this is not the text of an HLO module: it has no ENTRY computation")
    return computations, entry


def parse_instruction(line: str) -> Instruction | None:
    match = re.match(r"\s*(?:ROOT )?%?([\w.-]+) = (.*)", line)
    if not match:
        return None
    name, rest = match.groups()
    # A tuple's shape has blanks and brackets in it, any other has no blank.
    end = closing_bracket(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    shape, call = rest[:end], rest[end:].lstrip()
    start = call.index("(")
    stop = closing_bracket(call, start)
    return Instruction(name, shape, call[:start], call[start + 1 : stop], call[stop + 1 :])


def closing_bracket(text: str, start: int) -> int:
    """Where the bracket that opens at ``start`` is closed."""
    depth = 0
    for bracket in re.compile(r"[()]").finditer(text, start):
        depth += 1 if bracket[0] == "(" else -1
        if not depth:
            return bracket.start()
    raise ValueError(f"a bracket is not closed: {text[start : start + 80]}")


def max_iterations(loop: Instruction, name: str, computations) -> int | None:
    """How often a while loop runs if only its comparisons with constants can end it.

    Args:
      name: the computation that the loop is in.

    Returns:
      The least that any comparison of its condition allows; None where none can be understood.
    """

    def root_value(computation: str):
        return symbolic_value(
            computation, computations[computation].root, ["state"], computations
        )

    start = symbolic_value(name, loop.operands[0], None, computations)
    after = root_value(loop.attribute("body"))

    def element(values, index: int):
        return values[index] if isinstance(values, list) and index < len(values) else None

    def resolve(value):
        """A constant that the loop carries along is a constant."""
        if (
            isinstance(value, tuple)
            and value[0] == "state"
            and element(after, value[1]) == value
        ):
            return element(start, value[1])
        return value

    limits = []
    condition = root_value(loop.attribute("condition"))
    for direction, left, right in condition if isinstance(condition, list) else []:
        left, right = resolve(left), resolve(right)
        if isinstance(left, int):
            left, right = right, left
            direction = direction.translate(str.maketrans("LG", "GL"))
        if not (isinstance(left, tuple) and left[0] == "state" and isinstance(right, int)):
            continue
        first, change = element(start, left[1]), element(after, left[1])
        if not (isinstance(first, int) and isinstance(change, tuple) and change[0] == "add"):
            continue
        _, counter, step = change
        if counter != left or not step:
            continue
        distance = (right - first) / step
        if direction in ("LE", "GE"):
            limits.append(math.floor(distance) + 1)
        elif direction in ("LT", "GT", "NE"):
            limits.append(math.ceil(distance))
    return max(0, min(limits)) if limits else None


def symbolic_value(name: str, wanted: str, parameters: list | None, computations):
    """The value of an instruction, as far as counters of loops depend on it.

    Args:
      name: the computation that the instruction ``wanted`` is in.
      parameters: values of the computation's parameters; "state" is all that a loop carries.

    Returns:
      An int; a list, of a tuple's elements; ("state", i); ("add", value, int); a list of
      (direction, value, value), comparisons all of which must hold; or None.
    """
    instruction = computations[name].instructions[wanted]

    def operand(number: int):
        return symbolic_value(name, instruction.operands[number], parameters, computations)

    def operands() -> list:
        return [operand(number) for number in range(len(instruction.operands))]

    match instruction.opcode:
        case "constant":
            literal = instruction.arguments
            return int(literal) if re.fullmatch(r"-?\d+", literal) else None
        case "parameter":
            return parameters[int(instruction.arguments)] if parameters is not None else None
        case "copy" | "bitcast" | "convert" | "reshape" | "optimization-barrier":
            return operand(0)
        case "tuple":
            return operands()
        case "get-tuple-element":
            values, index = operand(0), int(instruction.attribute("index"))
            if values == "state":
                return ("state", index)
            return values[index] if isinstance(values, list) else None
        case "fusion" | "call":
            called = instruction.attribute("calls") or instruction.attribute("to_apply")
            return symbolic_value(called, computations[called].root, operands(), computations)
        case "add" | "subtract" if not dimensions(instruction.shape):
            left, right = operand(0), operand(1)
            if instruction.opcode == "add" and isinstance(left, int):
                left, right = right, left
            if not isinstance(right, int) or left is None:
                return None
            return ("add", left, right if instruction.opcode == "add" else -right)
        case "compare":
            return [(instruction.attribute("direction"), operand(0), operand(1))]
        case "and":
            tests = [value for value in (operand(0), operand(1)) if isinstance(value, list)]
            return [test for comparisons in tests for test in comparisons]
    return None
