"""The three kinds of records, and functions of their prompts and responses.

Edit         a prompt, original, edited                  (``edited`` is preferred)
Preference   a prompt, output_1, output_2, preference    (1 or 2)
Instruction  a prompt, output                            ("": a prompt without a response)
"""

import dataclasses
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from fgrlhf_jax.data import conversations

ROLES = ("system", "user", "assistant")
FINISHED = ("finished", "finished_1", "finished_2")
KINDS = ("edits", "preferences", "instructions", "prompts")


@dataclasses.dataclass(frozen=True)
class Message:
    """A turn of a conversation; ``role`` is one of ROLES."""

    role: str
    content: str


@dataclasses.dataclass(frozen=True)
class Edit:
    """A response and its minimal edit.

    The prompt of a record is either ``instruction`` and optional ``input``, or ``messages``: the
    turns before the response, the last of them the user's; the unused fields are empty.
    ``error_spans`` are (start, end) character offsets of annotated errors in ``original``.
    ``finished`` is False for a response that was cut at a length limit; in an edit, the original.
    """

    instruction: str
    input: str
    original: str
    edited: str
    id: str = ""
    error_spans: tuple[tuple[int, int], ...] = ()
    messages: tuple[Message, ...] = ()
    finished: bool = True


@dataclasses.dataclass(frozen=True)
class Preference:
    """Two responses to a prompt and which of them, 1 or 2, is better."""

    instruction: str
    input: str
    output_1: str
    output_2: str
    preference: int
    id: str = ""
    messages: tuple[Message, ...] = ()
    finished_1: bool = True
    finished_2: bool = True


@dataclasses.dataclass(frozen=True)
class Instruction:
    """A prompt with a response to imitate; ``output`` is "" without a response."""

    instruction: str
    input: str
    output: str
    messages: tuple[Message, ...] = ()
    finished: bool = True


RESPONSES = {  # the fields with responses
    Edit: ("original", "edited"),
    Preference: ("output_1", "output_2"),
    Instruction: ("output",),
}


Record = Edit | Preference | Instruction
RecordAndRow = tuple[Record, Mapping[str, Any]]  # the record, and the row it was read from


def kind_of(record: Record) -> str:
    """The kind of a record, one of KINDS; an instruction with a blank output is a prompt."""
    if isinstance(record, Edit):
        return "edits"
    if isinstance(record, Preference):
        return "preferences"
    return "instructions" if record.output.strip() else "prompts"


def responses_of(record: Record) -> dict[str, str]:
    """The non-blank responses of a record by field name."""
    responses = {name: getattr(record, name) for name in RESPONSES[type(record)]}
    return {name: text for name, text in responses.items() if text.strip()}


def shown_prompt(record: Record) -> tuple[str, str]:
    """(instruction, input) as shown to people and judges; (transcript, "") for several turns."""
    if not record.messages:
        return record.instruction, record.input
    return conversations.transcribe([dataclasses.asdict(turn) for turn in record.messages]), ""


def prompt_text(record: Record) -> str:
    """The prompt as shown to people and judges, as one text."""
    return conversations.join_prompt(*shown_prompt(record))


def prompt_fields(record: Record) -> dict[str, Any]:
    """Row fields of a record's prompt: instruction, input, and messages if it has several turns."""
    instruction, input = shown_prompt(record)
    turns = [dataclasses.asdict(turn) for turn in record.messages]
    return {"instruction": instruction, "input": input} | ({"messages": turns} if turns else {})


def alpaca_eval_prompt(record: Record) -> dict[str, Any]:
    """Row fields of a prompt for alpaca_eval: the whole prompt as instruction, and its parts."""
    fields = prompt_fields(record) | {"raw_instruction": record.instruction}
    if record.messages or not record.input:
        del fields["input"], fields["raw_instruction"]
    return fields | {"instruction": prompt_text(record)}


def sides(pair: Edit | Preference) -> tuple[str, str]:
    """The field names of a pair's better (edited or preferred) and worse response."""
    first, second = RESPONSES[type(pair)]
    is_first = isinstance(pair, Preference) and pair.preference == 1
    return (first, second) if is_first else (second, first)


def better_and_worse(pair: Edit | Preference) -> tuple[str, str]:
    """A pair's better (edited or preferred) and worse response."""
    better, worse = sides(pair)
    return getattr(pair, better), getattr(pair, worse)


def is_finished(record: Record, name: str) -> bool:
    """Whether the response in the field ``name`` is complete.

    The edit of a cut response counts as cut too, unless its last word differs: then the editor
    completed it.
    """
    if isinstance(record, Preference):
        return record.finished_1 if name == "output_1" else record.finished_2
    if name != "edited" or record.finished:
        return record.finished
    return record.edited.split()[-1:] != record.original.split()[-1:]


def unfinished_fields(record: Record, names: Sequence[str] = ()) -> dict[str, bool]:
    """The row fields ``finished…`` of cut responses, all False; {} if none was cut.

    Args:
      names: the record's fields that become the first and second response of a pair's row; () if
        the row has the record's own kind.
    """
    cut = {f"finished_{n}": is_finished(record, name) for n, name in enumerate(names, 1)}
    cut = cut or {name: getattr(record, name, True) for name in FINISHED}
    return {name: value for name, value in cut.items() if not value}


def as_instruction(record: Record, name: str) -> Instruction:
    """An Instruction with a record's prompt and the response in the field ``name``."""
    prompt = record.instruction, record.input
    return Instruction(*prompt, getattr(record, name), record.messages, is_finished(record, name))


def better_response(record: Record) -> Instruction:
    """An Instruction with a record's prompt and its only or better response."""
    return record if isinstance(record, Instruction) else as_instruction(record, sides(record)[0])


def prompt_key(record: Record) -> tuple[str, str]:
    """A key that distinguishes prompts: instruction and input without outer blanks."""
    instruction, input = shown_prompt(record)
    return instruction.strip(), input.strip()


def prompt_id(record: Record) -> str:
    """A key that ignores blanks, Unicode normal form and which part of the prompt is the input."""
    return " ".join(unicodedata.normalize("NFC", prompt_text(record)).split())
