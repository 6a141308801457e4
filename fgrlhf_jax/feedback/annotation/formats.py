"""Reads and writes responses to edit, and the decisions on them, in the files of other tools.

    edits          reads edits and instructions of data/records.py; writes edits
    argilla        the format of `dataset.records.to_json` and `dataset.records.from_json`; also
                   reads rows of `to_datasets`, which have the status of answers
    label_studio   a list of tasks, as Label Studio exports and imports as "JSON"

docs/feedback.md has the settings of these tools that fit our files.
"""

import contextlib
import dataclasses
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fgrlhf_jax.data import records, sources
from fgrlhf_jax.errors import InputError
from fgrlhf_jax.feedback.annotation import exports
from fgrlhf_jax.feedback.annotation.items import EDITED, Decision, Item, edit_row
from fgrlhf_jax.runtime.files import write_json, write_jsonl

FORMATS = ("argilla", "label_studio", "edits")


def read(
    spec: str, *, columns: str = "", refused: list[str] | None = None
) -> tuple[list[Item], list[Decision]]:
    """Reads the responses of a source, and the decisions on them that it contains.

    Args:
      spec: a file of Argilla or Label Studio, recognised by its rows, or any source of
        ``sources.read``. The item of an edit suggests the edited text; edits with the same id are
        one item. The id of a row without one is its number; a response may be empty.
      refused: if given, invalid rows are left out and their messages are appended to it.

    Raises InputError for the first invalid row if ``refused`` is None, or if no row is valid.
    """
    convert = None
    if spec.endswith((".json", ".jsonl", ".parquet")):
        with contextlib.suppress(InputError):  # raised again below, by sources
            rows = [row for _, row in sources.read_rows(spec)]
            convert = exports.find_tool(rows)
    if convert is None:
        rows = sources.read_with_rows(spec, columns=columns, refused=refused)
    items: dict[str, Item] = {}
    numbers: dict[str, int] = {}
    decisions: list[Decision] = []
    for number, row in enumerate(rows, 1):
        where = f"{spec}:row {number}"
        try:
            if convert:
                item, answers = exports.read_row(convert, row, where, number)
            else:
                item, answers = _item(*row, where, number), []
            if before := items.get(item.id):  # the edit of another annotator
                same = {"suggestion": before.suggestion, "others": before.others}
                if dataclasses.replace(item, **same) != before or not item.others:
                    raise InputError(
                        f"{where}: has the id of row {numbers[item.id]} ({item.id!r}); give every "
                        "row an id of its own, or none"
                    )
                item = dataclasses.replace(before, others=before.others + item.others)
        except InputError as error:
            if refused is None:
                raise InputError(f"{error}, {sources.OR_DROP}") from error
            refused.append(str(error))
            continue
        items[item.id] = item
        numbers.setdefault(item.id, number)
        decisions += answers
    if not items:
        raise InputError(f"{spec}: no row can be read; the last error: {refused[-1]}")
    return [*items.values()], decisions


def write(path: Path, format: str, items: Sequence[Item], decisions: Sequence[Decision]) -> int:
    """Writes a file in one of ``FORMATS`` atomically; returns the number of rows."""
    if format == "edits":
        by_id = {item.id: item for item in items}
        rows = [edit_row(by_id[d.id], d) for d in decisions if d.verdict == EDITED]
        write_jsonl(path, rows)
    else:
        by_item = defaultdict(list)
        for decision in decisions:
            by_item[decision.id].append(decision)
        convert = {"argilla": exports.argilla_row, "label_studio": exports.label_studio_row}[format]
        rows = [convert(item, by_item[item.id]) for item in items]
        write_json(path, rows)
    return len(rows)


def _item(record: records.Record, row: Mapping[str, Any], where: str, number: int) -> Item:
    """Returns the item of a record; ``row`` is what it was read from."""
    prompt = (exports.first_id(row.get("id"), number), record.instruction, record.input)
    turns = tuple((turn.role, turn.content) for turn in record.messages)
    if isinstance(record, records.Preference):
        raise InputError(f"{where}: is a preference; give the response to edit, as output")
    if isinstance(record, records.Instruction):
        return Item(*prompt, record.output, turns=turns, finished=record.finished)
    others = ((str(row["annotator"]), record.edited),) if row.get("annotator") else ()
    return Item(*prompt, record.original, record.edited, turns, others, record.finished)
