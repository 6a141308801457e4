"""Reads records from files and datasets, for every command.

An invalid row stops the run with ``file:line: what is wrong; what to do``.
"""

import ast
import gzip
import itertools
import json
import os
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fgrlhf_jax.data import formats, hub_datasets, message_trees, row_fields, tables
from fgrlhf_jax.data.conversations import ROLES, is_transcript, load_json
from fgrlhf_jax.data.records import Record
from fgrlhf_jax.data.tables import Rows, check_size, invalid_utf8
from fgrlhf_jax.errors import InputError

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet", ".jsonl.gz", ".json.gz", ".csv.gz")
OR_DROP = "or leave such rows out with invalid=drop"
NEEDS = ("any", "pairs", "candidates", "responses", "prompts", "rows")
# Fields that are never messages.
_TEXT_FIELDS = {"instruction", "raw_instruction", "input", "system", "output", "response"}
_TEXT_FIELDS |= {"original", "edited", "output_1", "output_2", "text"}
# Matches a text with an object that begins like a message and has a role and a content.
MESSAGES = re.compile(
    r"(?s)\s*+(?:\[\s*+)?\{\s*(?=[\"'](?:role|content|from|value)[\"']\s*:)"
    rf"(?=.*[\"'](?:role|from)[\"']\s*:\s*[\"'](?:{'|'.join(ROLES)})[\"'])"
    r"(?=.*[\"'](?:content|value)[\"']\s*:)"
)


def read(spec: str, **options: Any) -> list[Record]:
    """Reads the records of one or several comma-separated sources, in order.

    Args:
      spec: each source is a file (``SUFFIXES``), or a dataset ORG/NAME[:CONFIG[:SPLIT]] or
        FOLDER:CONFIG[:SPLIT] (``hub_datasets``), whose rows have a layout of ``formats``.
      options: as for :func:`read_with_rows`.

    Raises:
      InputError: for the first fault, ``file:line: …``, or ``file:row N: …`` in formats without
        lines.
    """
    return [record for record, _ in read_with_rows(spec, **options)]


def read_with_rows(
    spec: str, *, need: str = "any", columns: str = "", refused: list[str] | None = None
) -> list[tuple[Record, dict[str, Any]]]:
    """As :func:`read`, with each record also the row that it was read from.

    Args:
      need: one of NEEDS: "pairs" rejects single responses, "candidates" accepts pairs without a
        label, "prompts" and "rows" accept rows without a response. See ``message_trees.unfold`` for
        trees.
      columns: other field names, for ``row_fields.parse_columns``.
      refused: if given, invalid rows are left out and their error messages are added to it.
    """
    column_of, pairs = row_fields.parse_columns(columns), []
    for source in split_sources(spec):
        if not source:
            raise InputError(f"{spec!r:.200}: has an empty name; give FILE.jsonl[,FILE.jsonl…]")
        first, without_prompt = len(pairs), []
        message = f"{source}: holds no rows; give a file with at least one"
        rows = read_rows(source)
        head = [*itertools.islice(rows, 1)]
        rows = itertools.chain(head, rows)
        if any(message_trees.messages_of(row) for _, row in head):
            rows = message_trees.unfold(rows, need)
        for where, row in rows:
            try:
                parsed = formats.parse_row(row, where, need, column_of)
                if is_prompt_in_texts(row, column_of):
                    without_prompt.append((where, len(pairs)))
                pairs += [(record, with_id(row, column_of)) for record in parsed]
            except InputError as error:
                if refused is None:
                    raise InputError(f"{error}, {OR_DROP}") from error
                refused.append(str(error))
                message = f"{source}: no row can be read; the last error: {error}"
        if 0 < len(without_prompt) < len(pairs) - first:
            reason = "has no prompt, but other rows have; give it in the field 'prompt'"
            if refused is None:
                raise InputError(f"{without_prompt[0][0]}: {reason}, {OR_DROP}")
            for where, index in reversed(without_prompt):
                refused.append(f"{where}: {reason}")
                del pairs[index]
        if len(pairs) == first:
            raise InputError(message)
    return pairs


def with_id(row: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """Sets ``id`` from its column in ``columns``; drops ids and error spans of another field."""
    used = {"id", "error_spans"} & {column for name, column in columns.items() if name != column}
    fields = {name: value for name, value in row.items() if name not in used}
    return fields | {"id": row[columns["id"]]} if "id" in columns else fields


def is_prompt_in_texts(row: Mapping[str, Any], columns: Mapping[str, str]) -> bool:
    """Whether a valid row's prompt is the common beginning of its two texts, as in TRL."""
    chosen = row.get(columns.get("chosen", "chosen"))
    has_text = isinstance(chosen, str) and not is_transcript(chosen)
    return has_text and not any(name in row or name in columns for name in row_fields.PROMPTS)


def split_sources(spec: str) -> list[str]:
    """Splits a comma-separated list of sources; an existing file with commas stays whole."""
    return [spec] if os.path.exists(spec) else [source.strip() for source in spec.split(",")]


def read_rows(source: str) -> Rows:
    """Yields (where, row) of one source, unchecked; ``where`` is "file:line" or "file:row N".

    A line that is not JSON, or has the wrong number of cells, is yielded as an InputError. Texts
    that hold messages are parsed.

    Raises InputError for unreadable sources, and for more than ``tables.SOURCE_BYTES``.
    """
    name, is_known = f"{source:.300}", source.endswith(SUFFIXES)
    if os.path.isdir(source):
        raise InputError(f"{name}: is a folder; name the files in it, separated by commas")
    if not os.path.exists(source):
        if not is_known and hub_datasets.is_dataset(source):
            return with_messages(tables.dataset_rows(source))
        raise InputError(f"{name}: there is no such file; check the path")
    if not is_known:
        raise InputError(f"{name}: is none of {', '.join(SUFFIXES)}; convert it to one of them")
    if source.endswith(".parquet"):
        return with_messages(tables.parquet_rows(source))
    try:
        with open(source, "rb") as file:  # a download may be unpacked or not, whatever its suffix
            is_gzip = file.peek(2).startswith(b"\x1f\x8b")
            data = (gzip.GzipFile(fileobj=file) if is_gzip else file).read(tables.SOURCE_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{name}: cannot be read ({reason}); use a sound copy") from error
    check_size(source, len(data))
    data = data.removeprefix(b"\xef\xbb\xbf")
    is_csv = ".csv" in Path(source).suffixes
    rows = tables.csv_rows(data, source) if is_csv else _json_rows(data, source)
    return with_messages(rows)


def with_messages(rows: Rows) -> Rows:
    """Replaces texts that are lists of messages, in JSON or Python's notation, by the lists."""
    for where, row in rows:
        try:
            if isinstance(row, dict):
                row = {n: v if n in _TEXT_FIELDS else _parse(v, where) for n, v in row.items()}
        except InputError as error:
            row = error
        yield where, row


def _parse(text: Any, where: str) -> Any:
    if not (isinstance(text, str) and MESSAGES.match(text)):
        return text
    for parse in (load_json, ast.literal_eval):
        try:
            return parse(text)
        except KeyError as error:
            reason = f"a message has the field {error.args[0]!r:.60} twice; remove one"
            raise InputError(f"{where}: {reason}") from error
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    reason = f"{text[:60]!r} is not a list of messages in JSON"
    raise InputError(f"{where}: {reason}; correct it, or save lists of objects")


def _json_rows(data: bytes, source: str) -> Rows:
    """Yields rows of JSONL, a list of objects, such a list in an object ("data"), or one object."""
    stripped = data.strip()
    first, _, rest = stripped.partition(b"\n")
    if not (first.startswith(b"{") and rest and isinstance(_json(first, source, 1), dict)):
        value = _json(data, source, 1)
        if isinstance(value, dict):
            lists = [
                each
                for each in value.values()
                if isinstance(each, list) and any(isinstance(row, dict) for row in each)
            ]
            if len(lists) == 1 and value.keys().isdisjoint(row_fields.FIELDS):
                value = lists[0]
            elif rest:
                value = [value]
        if isinstance(value, list):
            return ((f"{source}:row {n}", row) for n, row in enumerate(value, 1))
        if first.strip() in (b"{", b"[") or first.startswith(b"["):
            raise value
    lines = enumerate(data.split(b"\n"), 1)
    return ((f"{source}:{n}", _json(line, source, n)) for n, line in lines if line.strip())


def _json(data: bytes, source: str, line: int) -> Any:
    """Parses ``data``, which starts at ``line`` of the file; returns an InputError on failure."""
    try:
        return load_json(text := data.decode("utf-8"))
    except UnicodeDecodeError as error:
        return invalid_utf8(error, source, line)
    except KeyError as error:
        name, position = error.args
        line += text.count("\n", 0, position)
        reason = f"an object has the field {name!r:.60} twice; remove one"
    except json.JSONDecodeError as error:
        line += error.lineno - 1
        reason = f"malformed JSON ({error.msg} at column {error.colno}); correct this line"
    except (RecursionError, ValueError) as error:
        reason = f"JSON that cannot be read ({error}); correct this line"
    return InputError(f"{source}:{line}: {reason}")
