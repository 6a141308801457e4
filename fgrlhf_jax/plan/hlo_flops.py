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
    """FLOPs of one run of a program on one device."""

    flops: float
    notes: tuple[str, ...]  # assumptions that were made where the text is not enough


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


def count(text: str, max_iterations: int | None = None) -> Count:
    """FLOPs of a program. Of branches the most expensive one is counted.

    Args:
      text: the program's ``compiled.as_text()``; raises ValueError when it is no HLO module.
      max_iterations: of a loop whose number of iterations the compiler does not know.
    """
    computations, entry = parse(text)
    notes = dict.fromkeys(())  # an ordered set

    @functools.cache
    def total(name: str) -> float:
        instructions = computations[name]
        return sum(flops(instruction, instructions) for instruction in instructions.values())

    def flops(instruction: Instruction, instructions: dict[str, Instruction]) -> float:
        match instruction.opcode:
            case "dot":
                return dot_flops(instruction, instructions)
            case "convolution":
                return convolution_flops(instruction, instructions)
            case "while":
                body = total(instruction.attribute("body"))
                return iterations(instruction) * body if body else 0.0
            case "conditional":
                return max(map(total, branches(instruction)))
            case "custom-call" if re.search(r"mat_?mul|gemm|conv", instruction.attributes):
                target = re.search(r'custom_call_target="([^"]*)"', instruction.attributes)
                called = target[1] if target else instruction.name
                notes[f"custom call {called} is not counted"] = None
        called = map(instruction.attribute, ("calls", "to_apply"))
        return sum(total(computation) for computation in called if computation)

    def iterations(loop: Instruction) -> int:
        known = re.search(r'known_trip_count"?[=:]\s*\{"?n"?[=:]"?(\d+)', loop.attributes)
        if known:
            return int(known[1])
        if max_iterations is None:
            notes["a loop with an unknown number of rounds is counted once"] = None
            return 1
        note = f"a loop that may end earlier is counted with its most rounds, {max_iterations}"
        notes[note] = None
        return max_iterations

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


def parse(text: str) -> tuple[dict[str, dict[str, Instruction]], str]:
    """The instructions of every computation of a module, and the name of its entry."""
    computations, entry, name = {}, "", ""
    for line in text.splitlines():
        head = re.match(r"(ENTRY )?%?([\w.-]+) \(.*\{$", line)
        if head:
            name = head[2]
            computations[name] = {}
            entry = name if head[1] else entry
        elif line == "}":
            name = ""
        elif name and (instruction := parse_instruction(line)):
            computations[name][instruction.name] = instruction
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
