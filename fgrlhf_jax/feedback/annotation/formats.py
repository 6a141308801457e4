"""Responses to edit, and what was decided about them, from and to files of other tools.

    plain          edits or instructions as records.py reads them; "edits" writes them
    argilla        what `dataset.records.to_json` writes and `dataset.records.from_json` reads
    label_studio   a list of tasks, as Label Studio exports and imports as "JSON"

Our Argilla files suit settings with the fields instruction, input (not required) and response, the
text question edited, and the terms metadata annotators. Those for Label Studio suit

    <View>
      <Text name="instruction" value="$instruction"/> <Text name="input" value="$input"/>
      <Text name="response" value="$response"/>
      <TextArea name="edited" toName="response" value="$response" maxSubmissions="1"
                editable="true"/>
    </View>

An answer equal to the response means that it is fine; a discarded or cancelled one was skipped
(Argilla's own exports do not tell which were discarded).
"""

import dataclasses
import json
import re
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from fgrlhf_jax.data import records
from fgrlhf_jax.errors import InputError
from fgrlhf_jax.feedback.annotation.history import (
    EDITED,
    FINE,
    SKIPPED,
    Decision,
    Item,
    edit_row,
)
from fgrlhf_jax.runtime.files import write_json, write_jsonl

FORMATS = ("argilla", "label_studio", "edits")
QUESTION = "edited"
# What the texts are called elsewhere.
NAMES = {
    "instruction": ("instruction", "prompt", "question"),
    "input": ("input", "context"),
    "response": ("response", "original", "output", "completion", "answer", "text"),
}
_EMAIL = re.compile(r"[^@\s]+@[^@\s]+\.[^@\s]+")

Row = dict[str, Any]


def read(spec: str) -> tuple[list[Item], list[Decision]]:
    """The responses of a source, and the decisions that it holds already.

    A FILE.json of Argilla or Label Studio is known by its rows; all else is read by records.py,
    where edits are responses with an edit to begin from. Rows without an id get their number; a
    response may be empty.
    Raises InputError for the first thing that is wrong.
    """
    rows = _foreign(spec)
    if rows is None:
        read_rows = records.read_with_rows(spec)
        items = [_plain(*pair, f"{spec}:row {n}", n) for n, pair in enumerate(read_rows, 1)]
        decisions: list[Decision] = []
    else:
        convert = _from_argilla if "fields" in rows[0] else _from_label_studio
        pairs = [_checked(convert, row, f"{spec}:row {n}", n) for n, row in enumerate(rows, 1)]
        items = [item for item, _ in pairs]
        decisions = [decision for _, made in pairs for decision in made]
    seen: dict[str, int] = {}
    for number, item in enumerate(items, 1):
        if item.id in seen:
            raise InputError(
                f"{spec}:row {number}: has the id {item.id!r} of row {seen[item.id]}; give every "
                "row an id of its own, or none"
            )
        seen[item.id] = number
    return items, decisions


def write(path: Path, format: str, items: Sequence[Item], decisions: Sequence[Decision]) -> int:
    """Writes one of `FORMATS`, all or nothing; how many rows it has."""
    if format == "edits":
        by_id = {item.id: item for item in items}
        rows = [edit_row(by_id[one.id], one) for one in decisions if one.verdict == EDITED]
        write_jsonl(path, rows)
        return len(rows)
    made = defaultdict(list)
    for one in decisions:
        made[one.id].append(one)
    convert = {"argilla": argilla_row, "label_studio": label_studio_row}[format]
    write_json(path, [convert(item, made[item.id]) for item in items])
    return len(items)


def _foreign(spec: str) -> list[Row] | None:
    """The rows of a file of another tool, None for any other source."""
    path = Path(spec)
    if path.suffix != ".json" or not path.is_file():
        return None
    try:
        rows = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None  # records.py says what is wrong
    if not isinstance(rows, list) or not rows or not isinstance(rows[0], dict):
        return None
    foreign = any(isinstance(rows[0].get(name), dict) for name in ("fields", "data"))
    return rows if foreign else None


def _id(given: object, otherwise: object) -> str:
    return str(otherwise if given in (None, "") else given)


def _plain(record: records.Record, row: Row, where: str, number: int) -> Item:
    id = _id(row.get("id"), number)
    prompt = (id, record.instruction, record.input)
    if isinstance(record, records.Edit):
        return Item(*prompt, record.original, record.edited)
    if isinstance(record, records.Preference):
        raise InputError(
            f"{where}: is a preference, which has two responses; give rows with the one to edit, "
            "as output or original"
        )
    return Item(*prompt, record.output)


def _checked(
    convert: Callable[[Row, str, int], tuple[Item, list[Decision]]],
    row: Row,
    where: str,
    number: int,
) -> tuple[Item, list[Decision]]:
    """A row's item and decisions; whatever shape the row has, an error is an InputError."""
    try:
        item, decisions = convert(row, where, number)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise InputError(
            f"{where}: is not in the form of the rows before it ({error!r}); export it again"
        ) from error
    for text in (*dataclasses.astuple(item), *(one.text for one in decisions)):
        if isinstance(text, str) and any("\ud800" <= letter <= "\udfff" for letter in text):
            raise InputError(f"{where}: holds invalid Unicode (half of a surrogate pair)")
    names = set()
    for one in decisions:
        if not isinstance(one.text, str) or not (one.text.strip() or one.verdict == SKIPPED):
            raise InputError(
                f"{where}: the answer of {one.annotator} is empty or no text; take it out"
            )
        if one.annotator in names:
            raise InputError(f"{where}: has two answers of {one.annotator}; take one out")
        names.add(one.annotator)
    return item, decisions


def _texts(row: Row, where: str) -> dict[str, str]:
    """instruction, input and response, by whatever name they have."""
    found = {}
    for what, names in NAMES.items():
        text = next((row[name] for name in names if row.get(name) is not None), None)
        text = "" if text is None and what == "input" else text
        if not isinstance(text, str) or (what == "instruction" and not text.strip()):
            raise InputError(
                f"{where}: has no {what} (it has {', '.join(row) or 'nothing'}); name one "
                f"{' or '.join(names)}"
            )
        found[what] = text
    return found


def _verdict(text: str, original: str) -> str:
    return FINE if text == original else EDITED


def _annotator_id(name: str) -> str:
    """Argilla knows its users by UUID."""
    try:
        return str(uuid.UUID(name))
    except ValueError:
        return str(uuid.uuid5(uuid.NAMESPACE_OID, f"annotator {name}"))


def argilla_row(item: Item, decisions: Sequence[Decision]) -> Row:
    answers = [
        {
            "value": one.text,
            "user_id": _annotator_id(one.annotator),
            "status": "discarded" if one.verdict == SKIPPED else "submitted",
        }
        for one in decisions
    ]
    suggestion = {"value": item.suggestion, "score": None, "agent": None}
    return {
        "id": item.id,
        "fields": {
            "instruction": item.instruction,
            **({"input": item.input} if item.input else {}),
            "response": item.original,
        },
        "metadata": {"annotators": [one.annotator for one in decisions]} if decisions else {},
        "suggestions": {QUESTION: suggestion} if item.suggestion else {},
        "responses": {QUESTION: answers} if answers else {},
        "vectors": {},
    }


def _from_argilla(row: Row, where: str, number: int) -> tuple[Item, list[Decision]]:
    if isinstance(row.get("responses"), list):
        raise InputError(
            f"{where}: is of Argilla 1; load it into Argilla 2 and export it with records.to_json"
        )
    texts = _texts(row["fields"], where)
    answers = row.get("responses") or {}
    suggestions = {  # those of other questions may be ratings
        name: one["value"]
        for name, one in (row.get("suggestions") or {}).items()
        if isinstance((one or {}).get("value"), str)
    }
    question = _only([*answers, *suggestions], where)
    named = {
        _annotator_id(name): name for name in (row.get("metadata") or {}).get("annotators", [])
    }
    id = _id(row.get("id"), number)
    item = Item(
        id,
        texts["instruction"],
        texts["input"],
        texts["response"],
        suggestions.get(question, ""),
    )
    decisions = []
    for answer in answers.get(question, []):
        name = named.get(str(answer["user_id"]), str(answer["user_id"]))
        if answer.get("status") == "discarded":
            decisions.append(Decision(id, name, SKIPPED, item.original))
        elif answer.get("status") != "draft":
            text = answer["value"]
            decisions.append(Decision(id, name, _verdict(text, item.original), text))
    return item, decisions


def label_studio_row(item: Item, decisions: Sequence[Decision]) -> Row:
    data = {"id": item.id, "instruction": item.instruction, "input": item.input}
    return {
        "data": {**data, "response": item.original},
        "annotations": [
            {
                "result": [_text_area(one.text, one.annotator)],
                "was_cancelled": one.verdict == SKIPPED,
                "ground_truth": False,
                # An address that Label Studio does not know would make it refuse the file.
                **(
                    {"completed_by": {"email": one.annotator}}
                    if _EMAIL.fullmatch(one.annotator)
                    else {}
                ),
            }
            for one in decisions
        ],
        "predictions": [{"result": [_text_area(item.suggestion)]}] if item.suggestion else [],
    }


def _text_area(text: str, annotator: str = "") -> Row:
    return {
        "from_name": QUESTION,
        "to_name": "response",
        "type": "textarea",
        "value": {"text": [text]},
        **({"meta": {"text": [annotator]}} if annotator else {}),
    }


def _from_label_studio(row: Row, where: str, number: int) -> tuple[Item, list[Decision]]:
    data = row["data"]
    texts = _texts(data, where)
    id = _id(data.get("id"), _id(row.get("id"), number))
    suggestions = [
        text
        for one in row.get("predictions") or []
        for text, _ in _answers(one, where)
        if isinstance(text, str)
    ]
    item = Item(
        id, texts["instruction"], texts["input"], texts["response"], (suggestions or [""])[0]
    )
    decisions = []
    for annotation in row.get("annotations") or []:
        by = annotation.get("completed_by")
        by = by.get("email") or by.get("id") if isinstance(by, dict) else by
        answers = list(_answers(annotation, where))
        name = next((name for _, name in answers if name), None) or str(by or "label_studio")
        if annotation.get("was_cancelled"):
            decisions.append(Decision(id, name, SKIPPED, item.original))
        elif answers:
            text = answers[0][0]
            decisions.append(Decision(id, name, _verdict(text, item.original), text))
    return item, decisions


def _answers(annotation: Row, where: str) -> Iterator[tuple[str, str]]:
    """(text, annotator or "") of the text area of an annotation or prediction."""
    areas = [r for r in annotation.get("result") or [] if r.get("type") == "textarea"]
    name = _only([area["from_name"] for area in areas], where)
    for area in areas:
        if area["from_name"] == name:
            text, by = area["value"]["text"], (area.get("meta") or {}).get("text") or [""]
            yield "\n".join(text) if isinstance(text, list) else text, by[0]


def _only(names: Sequence[str], where: str) -> str:
    """The question that asks for the edit: the one of that name, or the only one."""
    names = list(dict.fromkeys(names))
    if QUESTION in names or not names:
        return QUESTION
    if len(names) > 1:
        raise InputError(
            f"{where}: answers the questions {', '.join(names)}; call the one for the edited "
            f"response {QUESTION!r}"
        )
    return names[0]
