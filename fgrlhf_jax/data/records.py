"""The three kinds of records, and the reader of them that every command shares.

    Edit         a prompt, original, edited                  (``edited`` is preferred)
    Preference   a prompt, output_1, output_2, preference    (1 or 2)
    Instruction  a prompt, output                            ("" is a prompt without one)

What is wrong with a row stops the run with ``file:line: what is wrong; what to do``.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from fgrlhf_jax.data import conversations, formats, trees
from fgrlhf_jax.data.rows import read_rows, sources
from fgrlhf_jax.errors import InputError

ROLES = ("system", "user", "assistant")
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

_TYPES = {formats.EDIT: Edit, formats.PREFERENCE: Preference, formats.RESPONSE: Instruction}
NEEDS = ("any", "pairs", "candidates", "responses", "prompts")

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
    cut = cut or {name: getattr(record, name, True) for name in formats.FINISHED}
    return {name: value for name, value in cut.items() if not value}


def as_instruction(record: Record, name: str) -> Instruction:
    """A record's prompt with the response in the field ``name``."""
    prompt = record.instruction, record.input
    return Instruction(*prompt, getattr(record, name), record.messages, is_finished(record, name))


def read(spec: str, **options: Any) -> list[Record]:
    """The records of one or several comma-separated sources, in order.

    Args:
      spec: each source is a file (``rows.SUFFIXES``), or a dataset ORG/NAME[:CONFIG[:SPLIT]] or
        FOLDER:CONFIG[:SPLIT] (``hub_datasets``), whose rows have a layout of ``formats``.
      options: those of :func:`read_with_rows`.

    Raises:
      InputError: for the first fault, ``file:line: …`` (``file:row N: …`` of other forms).
    """
    return [record for record, _ in read_with_rows(spec, **options)]


def read_with_rows(
    spec: str, *, need: str = "any", columns: str = "", refused: list[str] | None = None
) -> list[tuple[Record, dict[str, Any]]]:
    """As :func:`read`, each record with all fields of the row that it was read from.

    Args:
      need: of NEEDS: "pairs" refuses single responses, "candidates" takes pairs without a label,
        "prompts" rows without a response; of message trees each takes what it can use.
      columns: other names of fields, as ``formats.parse_columns`` reads them.
      refused: where given, wrong rows are left out and the messages about them are added to it.
    """
    names, pairs = formats.parse_columns(columns), []
    for source in sources(spec):
        if not source:
            raise InputError(f"{spec!r:.200}: names no file; give FILE.jsonl[,FILE.jsonl…]")
        count, unprompted = len(pairs), []
        message = f"{source}: holds no rows; give a file with at least one"
        for where, row in trees.unfold(read_rows(source), need):
            try:
                parsed = parse_row(row, where, need, names)
                if formats.is_prompt_in_texts(row, names):
                    unprompted.append((where, len(pairs)))
                pairs += [(record, formats.with_id(row, names)) for record in parsed]
            except InputError as error:
                if refused is None:
                    hint = "or leave such rows out with invalid=drop"
                    raise InputError(f"{error}, {hint}") from error
                refused.append(str(error))
                message = f"{source}: no row of it can be read; the last one: {error}"
        if 0 < len(unprompted) < len(pairs) - count:
            reason = "has no prompt, as other rows of the file have; give it in the field 'prompt'"
            if refused is None:
                raise InputError(
                    f"{unprompted[0][0]}: {reason}, or leave such rows out with invalid=drop"
                )
            for where, place in reversed(unprompted):
                refused.append(f"{where}: {reason}")
                del pairs[place]
        if len(pairs) == count:
            raise InputError(message)
    return pairs


def parse_row(
    row: Any, where: str, need: str = "any", columns: Mapping[str, str] = formats.NO_COLUMNS
) -> list[Record]:
    """The records in a row, checked; ``where`` opens every message about it."""
    records = []
    for kind, values in formats.normalize(row, where, columns, need):
        messages = tuple(Message(**turn) for turn in values.pop("messages", ()))
        prompt = {"instruction": "", "input": "", "messages": messages} if messages else {}
        records.append(_TYPES[kind](**values | prompt))
        if need == "pairs" and kind == formats.RESPONSE:
            raise InputError(
                f"{where}: has one response or none; what is learned from here is edits (original, "
                "edited) or preferences (chosen, rejected or output_1, output_2, preference)"
            )
    return records


def parse_record(row: Any, where: str) -> Record:
    """The one record in a row, which needs no response."""
    return parse_row(row, where, "prompts")[0]


def better_response(record: Record) -> Instruction:
    """A record's prompt with its only or its better response."""
    return record if isinstance(record, Instruction) else as_instruction(record, sides(record)[0])


def prompt_key(record: Record) -> tuple[str, str]:
    """What prompts are told apart by: instruction and input without outer blanks."""
    instruction, input = shown_prompt(record)
    return instruction.strip(), input.strip()
