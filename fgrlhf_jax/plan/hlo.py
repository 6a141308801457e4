"""Parses the HLO text of a compiled program, ``compiled.as_text()``, into instructions."""

import math
import re
from typing import NamedTuple

BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f64": 8}
BYTES |= {"s64": 8, "u64": 8}  # other dtypes: 4


class Instruction(NamedTuple):
    """``name = shape opcode(arguments), attributes``; arguments are operands or a literal."""

    name: str
    shape: str
    opcode: str
    arguments: str
    attributes: str
    root: bool = False

    @property
    def operands(self) -> list[str]:
        return re.findall(r"%([\w.-]+)", self.arguments)

    @property
    def dtype(self) -> str:
        """The dtype of an array; "" for a tuple."""
        return re.match(r"\w*", self.shape)[0]

    @property
    def elements(self) -> list[str]:
        """The shapes of all arrays of a tuple, also nested ones; of an array its own shape."""
        return re.findall(r"\w+\[[\d,]*\]", self.shape)

    @property
    def bytes(self) -> int:
        """Bytes of an array; 0 for a tuple, whose elements other instructions define."""
        if not self.dtype:
            return 0
        return math.prod(dimensions(self.shape)) * BYTES.get(self.dtype, 4)

    def attribute(self, name: str) -> str:
        match = re.search(rf"\b{name}=%?([\w.-]+)", self.attributes)
        return match[1] if match else ""

    def numbers(self, name: str) -> list[int]:
        match = re.search(rf"\b{name}=\{{([\d,]*)\}}", self.attributes)
        return [int(n) for n in match[1].split(",") if n] if match else []

    @property
    def called(self) -> list[str]:
        """The names of the computations that it runs, including those of a reduction."""
        names = ("calls", "to_apply", "body", "condition")
        return [*filter(None, map(self.attribute, names)), *branches(self)]


Computation = dict[str, Instruction]  # name → instruction, in order of execution


def dimensions(shape: str) -> list[int]:
    """The dimensions of a shape: [2, 3] for ``f32[2,3]{1,0}``."""
    return [int(size) for size in re.search(r"\[([\d,]*)\]", shape)[1].split(",") if size]


def branches(conditional: Instruction) -> list[str]:
    """The branch computations of a conditional; [] for any other instruction."""
    names = re.search(r"branch_computations=\{([^}]*)\}", conditional.attributes)
    if names:
        return re.findall(r"%?([\w.-]+)", names[1])
    pair = (conditional.attribute(f"{branch}_computation") for branch in ("true", "false"))
    return [name for name in pair if name]


def root_of(computation: Computation) -> Instruction:
    return next(i for i in computation.values() if i.root)


def parse(text: str) -> tuple[dict[str, Computation], str]:
    """The instructions of every computation of a module, and the name of its entry."""
    computations, entry, name = {}, "", ""
    for line in text.splitlines():
        header = re.match(r"(ENTRY )?%?([\w.-]+) \(.*\{$", line)
        if header:
            name = header[2]
            computations[name] = {}
            entry = name if header[1] else entry
        elif line == "}":
            name = ""
        elif name and (instruction := parse_instruction(line)):
            computations[name][instruction.name] = instruction
    return computations, entry


def parse_instruction(line: str) -> Instruction | None:
    match = re.match(r"\s*(ROOT )?%?([\w.-]+) = (.*)", line)
    if not match:
        return None
    root, name, rest = match.groups()
    # The shape of a tuple contains blanks and brackets; other shapes contain no blank.
    end = closing_bracket(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    shape, call = rest[:end], rest[end:].lstrip()
    start = call.index("(")
    stop = closing_bracket(call, start)
    arguments = call[start + 1 : stop]
    return Instruction(name, shape, call[:start], arguments, call[stop + 1 :], bool(root))


def closing_bracket(text: str, start: int) -> int:
    """The position of the bracket that closes the one at ``start``."""
    depth = 0
    for bracket in re.compile(r"[()]").finditer(text, start):
        depth += 1 if bracket[0] == "(" else -1
        if not depth:
            return bracket.start()
    raise ValueError(f"a bracket is not closed: {text[start : start + 80]}")
