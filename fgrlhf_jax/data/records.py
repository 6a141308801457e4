"""Reads the three kinds of records (edits, preferences, instructions) and checks every row.

    Edit         instruction, input, original, edited            (``edited`` is preferred)
    Preference   instruction, input, output_1, output_2, preference (1 or 2), as AlpacaFarm's
    Instruction  instruction, input, output                       ("" is a prompt without one)

Rows are objects of a JSONL, JSON or Parquet file or of a dataset that the ``datasets`` library
loads. A row's kind follows from its fields, and further fields are ignored. ``input`` may be
missing or null, and so may ``output`` in a file of prompts. Anything else that is wrong stops the
run with ``file:line: what is wrong; what to do``.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fgrlhf_jax.data import hub_datasets
from fgrlhf_jax.errors import InputError

SUFFIXES = (".jsonl", ".json", ".parquet")
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
    """

    instruction: str
    input: str
    original: str
    edited: str
    id: str = ""
    error_spans: tuple[tuple[int, int], ...] = ()
    messages: tuple[Message, ...] = ()


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


@dataclasses.dataclass(frozen=True)
class Instruction:
    """A prompt with a response to imitate; ``output`` is "" where there is none."""

    instruction: str
    input: str
    output: str
    messages: tuple[Message, ...] = ()


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
    if len(record.messages) == 1:
        return record.messages[0].content, ""
    turns = (f"{turn.role.capitalize()}: {turn.content}" for turn in record.messages)
    return "\n\n".join(turns), ""


def better_and_worse(pair: Edit | Preference) -> tuple[str, str]:
    """The edited or preferred response of a pair, and the other one."""
    if isinstance(pair, Edit):
        return pair.edited, pair.original
    texts = pair.output_1, pair.output_2
    return texts if pair.preference == 1 else texts[::-1]


def read(spec: str, *, prompts: bool = False) -> list[Record]:
    """The records of one or several comma-separated sources, in order.

    Args:
      spec: each source is a FILE.jsonl (an object a line; blank lines and a byte order mark are
        passed over), FILE.json (one list of objects, or as JSONL), FILE.parquet, or a dataset
        ORG/NAME[:CONFIG[:SPLIT]] or FOLDER:CONFIG[:SPLIT] (``hub_datasets``).
      prompts: whether a row without a response is read as an Instruction without output.

    Raises:
      InputError: for the first fault, ``file:line: …`` (``file:row N: …`` of other forms).
    """
    return [record for record, _ in read_with_rows(spec, prompts=prompts)]


def read_with_rows(
    spec: str, *, prompts: bool = False, refused: list[str] | None = None
) -> list[tuple[Record, dict[str, Any]]]:
    """As :func:`read`, each record with all fields of the row that it was read from.

    Args:
      refused: where given, wrong rows are left out and the messages about them are added to it.
    """
    pairs = []
    for source in sources(spec):
        if not source:
            raise InputError(f"{spec!r}: names no file; give FILE.jsonl[,FILE.jsonl…].")
        count = len(pairs)
        message = f"{source}: holds no rows; give a file with at least one."
        for where, row in read_rows(source):
            try:
                pairs.append((parse_record(row, where, prompts=prompts), row))
            except InputError as error:
                if refused is None:
                    raise
                refused.append(str(error))
                message = f"{source}: no row of it can be read; the last one: {error}"
        if len(pairs) == count:
            raise InputError(message)
    return pairs


def sources(spec: str) -> list[str]:
    """The sources of a comma-separated list; a file that has commas in its name is one."""
    return [spec] if os.path.exists(spec) else [source.strip() for source in spec.split(",")]


def read_rows(source: str) -> Iterator[tuple[str, Any]]:
    """(where, row) of one source, unchecked; ``where`` is "file:line" or "file:row N"."""
    path = Path(source)
    if os.path.isdir(source):
        raise InputError(f"{source}: is a folder; name the files in it, separated by commas.")
    if not os.path.exists(source):
        if path.suffix not in SUFFIXES and hub_datasets.is_dataset(source):
            return hub_datasets.read_rows(source)
        raise InputError(f"{source}: there is no such file; check the path.")
    if path.suffix not in SUFFIXES:
        raise InputError(f"{source}: is none of {', '.join(SUFFIXES)}; convert it to one of them.")
    try:
        return _parquet_rows(path) if path.suffix == ".parquet" else _json_rows(path)
    except OSError as error:
        raise InputError(f"{source}: cannot be read ({error.strerror}).") from error


def _json_rows(path: Path) -> Iterator[tuple[str, Any]]:
    data = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    if path.suffix == ".json" and data.lstrip().startswith(b"["):
        rows = _parse_json(data, path, 1)
        return ((f"{path}:row {n}", row) for n, row in enumerate(rows, 1))
    lines = enumerate(data.split(b"\n"), 1)
    return ((f"{path}:{n}", _parse_json(line, path, n)) for n, line in lines if line.strip())


def _parse_json(data: bytes, path: Path, line: int) -> Any:
    """The JSON value in ``data``, which starts at ``line`` of the file."""
    try:
        return json.loads(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        line += data.count(b"\n", 0, error.start)
        reason = f"invalid UTF-8 (byte 0x{data[error.start]:02x}); save the file as UTF-8"
    except json.JSONDecodeError as error:
        line += error.lineno - 1
        reason = f"malformed JSON ({error.msg} at column {error.colno}); correct this line"
    except (RecursionError, ValueError) as error:
        reason = f"JSON that cannot be read ({error}); correct this line"
    raise InputError(f"{path}:{line}: {reason}.")


def _parquet_rows(path: Path) -> Iterator[tuple[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.ParquetFile(path).read().to_pylist()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: a text is invalid UTF-8; write UTF-8 strings.") from error
    except pyarrow.ArrowException as error:
        raise InputError(f"{path}: is not a readable Parquet file ({error}).") from error
    return ((f"{path}:row {n}", row) for n, row in enumerate(rows, 1))


def parse_record(row: Any, where: str, *, prompts: bool = False) -> Record:
    """The record in a row, checked; ``where`` opens every message about it.

    With ``prompts`` a row that has an instruction and no response is an Instruction without output.
    """
    prompt = prompt_of(row, where)
    if "edited" in row or "original" in row:
        kind = Edit
    elif "preference" in row or "output_1" in row:
        kind = Preference
    elif prompts and row.get("output") is None:
        return Instruction(*prompt, output="")
    else:
        return Instruction(*prompt, output=text_of(row, "output", where, blank=True))
    texts = {name: text_of(row, name, where) for name in RESPONSES[kind]}
    if len(set(texts.values())) == 1:
        names = " and ".join(texts)
        raise InputError(f"{where}: {names} are equal and teach nothing; drop the row.")
    id = "" if row.get("id") is None else str(row["id"])
    if kind is Edit:
        spans = _spans(row.get("error_spans"), len(texts["original"]), where)
        return Edit(*prompt, **texts, id=id, error_spans=spans)
    preference = _field(row, "preference", where)
    if isinstance(preference, bool) or preference not in (1, 2):
        value = json.dumps(preference, default=str)[:40]
        raise InputError(f"{where}: preference is {value}; it must be 1 or 2, the better output.")
    return Preference(*prompt, **texts, preference=int(preference), id=id)


def prompt_of(row: Any, where: str) -> tuple[str, str]:
    """The instruction and the input of a row; raises InputError where both are empty."""
    if not isinstance(row, Mapping):
        raise InputError(f"{where}: is not an object; each row is {{field: value, …}}.")
    instruction = text_of(row, "instruction", where, blank=True)
    input = "" if row.get("input") is None else text_of(row, "input", where, blank=True)
    if not (instruction.strip() or input.strip()):
        raise InputError(f"{where}: instruction and input are both empty; give a prompt.")
    return instruction, input


def _field(row: dict, name: str, where: str) -> Any:
    if name not in row:
        raise InputError(
            f"{where}: misses the field {name!r} (it has {', '.join(row) or 'none'}); besides "
            "instruction, an edit has original and edited, a preference output_1, output_2 and "
            "preference, a plain instruction output."
        )
    return row[name]


def text_of(row: dict, name: str, where: str, blank: bool = False) -> str:
    """The text in a field of a row; raises InputError where there is none.

    Args:
      blank: whether the text may be empty.
    """
    text = _field(row, name, where)
    if not isinstance(text, str):
        value = json.dumps(text, default=str)[:40]
        raise InputError(f"{where}: the field {name!r} is {value}, not a string; put a text there.")
    if not blank and not text.strip():
        raise InputError(f"{where}: the response {name!r} is empty; fill it in or drop the row.")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        reason = f"invalid Unicode (half of a surrogate pair at character {error.start})"
        raise InputError(f"{where}: the field {name!r} is {reason}; remove it.") from error
    return text


def _spans(spans: Any, length: int, where: str) -> tuple[tuple[int, int], ...]:
    """(start, end) of spans given as {"start", "end"} objects or as [start, end]."""
    if spans is not None and not isinstance(spans, list | tuple):
        raise InputError(f"{where}: error_spans is {spans!r}, not a list of spans.")
    checked = []
    for span in spans or ():
        pair = (span.get("start"), span.get("end")) if isinstance(span, dict) else span
        match pair:
            case [start, end] if type(start) is type(end) is int and 0 <= start < end <= length:
                checked.append((start, end))
            case _:
                raise InputError(
                    f"{where}: error_spans holds {span!r}; give start and end as character "
                    f"offsets into the original (0 to {length})."
                )
    return tuple(checked)


def prompt_key(record: Record) -> tuple[str, str]:
    """What prompts are told apart by: instruction and input without outer blanks."""
    instruction, input = shown_prompt(record)
    return instruction.strip(), input.strip()


def split(records: Sequence[Record], share: float, seed: int) -> tuple[list[Record], list[Record]]:
    """(train, validation), about ``share`` of the prompts in the latter, in their order.

    A hash of (seed, prompt) decides: the rows of a prompt are on one side, whatever the others are.

    Raises:
      InputError: where a side is empty.
    """
    sides: tuple[list[Record], list[Record]] = ([], [])
    for record in records:
        key = json.dumps([seed, *prompt_key(record)])
        digest = hashlib.sha256(key.encode()).digest()
        sides[int.from_bytes(digest[:8], "big") < share * 2**64].append(record)
    for name, side in zip(("training", "validation"), sides, strict=True):
        if not side:
            raise InputError(
                f"validation share {share}: of {len(records)} rows none is left for {name}; "
                "change the share or give a validation file."
            )
    return sides
