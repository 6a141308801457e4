"""The three kinds of records, and what is asked of them.

Edit         a prompt, original, edited                  (``edited`` is preferred)
Preference   a prompt, output_1, output_2, preference    (1 or 2)
Instruction  a prompt, output                            ("" is a prompt without one)
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

    The prompt of any record is either ``instruction`` (with ``input`` or not) or ``messages``, the
    turns before the response, of which the last is the user's; the other fields are empty then.
    ``error_spans`` are (start, end) characters of ``original`` that somebody marked as wrong.
    ``finished``, of any record, says whether a response ended by itself: of an edit the original.
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
    """A prompt with a response to imitate; ``output`` is "" where there is none."""

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
RecordAndRow = tuple[Record, Mapping[str, Any]]  # with the row that it was read from


def kind_of(record: Record) -> str:
    """One of KINDS; a prompt is an instruction with a blank output."""
    if isinstance(record, Edit):
        return "edits"
    if isinstance(record, Preference):
        return "preferences"
    return "instructions" if record.output.strip() else "prompts"


def responses_of(record: Record) -> dict[str, str]:
    """The responses of a record by the names of their fields, without blank ones."""
    responses = {name: getattr(record, name) for name in RESPONSES[type(record)]}
    return {name: text for name, text in responses.items() if text.strip()}


def shown_prompt(record: Record) -> tuple[str, str]:
    """(instruction, input) as people and judges read them; of several turns (transcript, "")."""
    if not record.messages:
        return record.instruction, record.input
    return conversations.transcribe([dataclasses.asdict(turn) for turn in record.messages]), ""


def prompt_text(record: Record) -> str:
    """The prompt as people and judges read it, as one text."""
    return conversations.join_prompt(*shown_prompt(record))


def prompt_fields(record: Record) -> dict[str, Any]:
    """Fields of a row that show a record's prompt; messages too where it has several turns."""
    instruction, input = shown_prompt(record)
    turns = [dataclasses.asdict(turn) for turn in record.messages]
    return {"instruction": instruction, "input": input} | ({"messages": turns} if turns else {})


def alpaca_eval_prompt(record: Record) -> dict[str, Any]:
    """A prompt as alpaca_eval reads it, all of it in the instruction, with its parts beside."""
    fields = prompt_fields(record) | {"raw_instruction": record.instruction}
    if record.messages or not record.input:
        del fields["input"], fields["raw_instruction"]
    return fields | {"instruction": prompt_text(record)}


def sides(pair: Edit | Preference) -> tuple[str, str]:
    """The fields of the edited or preferred response of a pair, and of the other one."""
    first, second = RESPONSES[type(pair)]
    is_first = isinstance(pair, Preference) and pair.preference == 1
    return (first, second) if is_first else (second, first)


def better_and_worse(pair: Edit | Preference) -> tuple[str, str]:
    """The edited or preferred response of a pair, and the other one."""
    better, worse = sides(pair)
    return getattr(pair, better), getattr(pair, worse)


def is_finished(record: Record, name: str) -> bool:
    """Whether the response in the field ``name`` ended by itself.

    The edit of a response that was cut is cut too, unless its last word is another: then an editor
    gave it an end.
    """
    if isinstance(record, Preference):
        return record.finished_1 if name == "output_1" else record.finished_2
    if name != "edited" or record.finished:
        return record.finished
    return record.edited.split()[-1:] != record.original.split()[-1:]


def unfinished_fields(record: Record, names: Sequence[str] = ()) -> dict[str, bool]:
    """The fields of a row that say which responses were cut; {} where none was.

    Args:
      names: the fields of a record's responses that are first and second in a row of a pair; ()
        where the row is of the record's own kind.
    """
    cut = {f"finished_{n}": is_finished(record, name) for n, name in enumerate(names, 1)}
    cut = cut or {name: getattr(record, name, True) for name in FINISHED}
    return {name: value for name, value in cut.items() if not value}


def as_instruction(record: Record, name: str) -> Instruction:
    """A record's prompt with the response in the field ``name``."""
    prompt = record.instruction, record.input
    return Instruction(*prompt, getattr(record, name), record.messages, is_finished(record, name))


def better_response(record: Record) -> Instruction:
    """A record's prompt with its only or its better response."""
    return record if isinstance(record, Instruction) else as_instruction(record, sides(record)[0])


def prompt_key(record: Record) -> tuple[str, str]:
    """What prompts are told apart by: instruction and input without outer blanks."""
    instruction, input = shown_prompt(record)
    return instruction.strip(), input.strip()


def same_prompt(record: Record) -> str:
    """One text for all spellings of a prompt: other blanks, normal form or share of an input."""
    return " ".join(unicodedata.normalize("NFC", prompt_text(record)).split())
