"""Reads and writes responses to edit, and the decisions on them, in the files of other tools.

    edits          edits or instructions as records.py reads them; edits as it writes them
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
(Argilla's own exports do not say which were discarded).
"""

import dataclasses
import json
import re
import uuid
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fgrlhf_jax.data import records
from fgrlhf_jax.errors import InputError
from fgrlhf_jax.feedback.annotation import history
from fgrlhf_jax.feedback.annotation.history import EDITED, FINE, SKIPPED, Decision, Item
from fgrlhf_jax.runtime.files import write_json, write_jsonl

FORMATS = ("argilla", "label_studio", "edits")
QUESTION = "edited"
# The fields of other tools that may hold each text.
FIELD_NAMES = {
    "instruction": ("instruction", "prompt", "question"),
    "input": ("input", "context"),
    "response": ("response", "original", "output", "completion", "answer", "text"),
}
_EMAIL = re.compile(r"[^@\s]+@[^@\s]+\.[^@\s]+")

Row = dict[str, Any]


def read(spec: str) -> tuple[list[Item], list[Decision]]:
    """The responses of a source, and the decisions that it holds already.

    Args:
      spec: a FILE.json of Argilla or Label Studio, recognised by its rows, or any source of
        ``records.read``, where edits are responses with an edit to begin from. Rows without an id
        get their number; a response may be empty.

    Raises:
      InputError: for the first row that is wrong.
    """
    rows = _rows_of_other_tool(spec)
    if rows is None:
        rows = enumerate(records.read_with_rows(spec), 1)
        pairs = [(_from_record(*pair, f"{spec}:row {n}", n), []) for n, pair in rows]
    else:
        convert = _from_argilla if "fields" in rows[0] else _from_label_studio
        pairs = [_checked(convert, row, f"{spec}:row {n}", n) for n, row in enumerate(rows, 1)]
    items = [item for item, _ in pairs]
    decisions = [decision for _, of_row in pairs for decision in of_row]
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
    """Writes one of ``FORMATS``, all or nothing, and returns the number of rows."""
    if format == "edits":
        by_id = {item.id: item for item in items}
        rows = [history.edit_row(by_id[d.id], d) for d in decisions if d.verdict == EDITED]
        write_jsonl(path, rows)
        return len(rows)
    by_item = defaultdict(list)
    for decision in decisions:
        by_item[decision.id].append(decision)
    convert = {"argilla": argilla_row, "label_studio": label_studio_row}[format]
    write_json(path, [convert(item, by_item[item.id]) for item in items])
    return len(items)


def _rows_of_other_tool(spec: str) -> list[Row] | None:
    """The rows of a file of Argilla or Label Studio, None for any other source."""
    path = Path(spec)
    if path.suffix != ".json" or not path.is_file():
        return None
    try:
        rows = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None  # records.py says what is wrong
    if not isinstance(rows, list) or not rows or not isinstance(rows[0], dict):
        return None
    is_other = any(isinstance(rows[0].get(name), dict) for name in ("fields", "data"))
    return rows if is_other else None


def _id(value: object, default: object) -> str:
    return str(default if value in (None, "") else value)


def _from_record(record: records.Record, row: Row, where: str, number: int) -> Item:
    prompt = (_id(row.get("id"), number), record.instruction, record.input)
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
    """A row's item and decisions; a row of any other shape is an InputError."""
    try:
        item, decisions = convert(row, where, number)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise InputError(
            f"{where}: is not in the form of the rows before it ({error!r}); export it again"
        ) from error
    for text in (*dataclasses.astuple(item), *(decision.text for decision in decisions)):
        if isinstance(text, str) and any("\ud800" <= letter <= "\udfff" for letter in text):
            raise InputError(f"{where}: holds invalid Unicode (half of a surrogate pair)")
    names = set()
    for decision in decisions:
        text, name = decision.text, decision.annotator
        if not isinstance(text, str) or not (text.strip() or decision.verdict == SKIPPED):
            raise InputError(f"{where}: the answer of {name} is empty or no text; take it out")
        if name in names:
            raise InputError(f"{where}: has two answers of {name}; take one out")
        names.add(name)
    return item, decisions


def _item(id: str, row: Row, suggestion: str, where: str) -> Item:
    """The item of a row whose texts have any of ``FIELD_NAMES``."""
    texts = {}
    for field, names in FIELD_NAMES.items():
        text = next((row[name] for name in names if row.get(name) is not None), None)
        text = "" if text is None and field == "input" else text
        if not isinstance(text, str) or (field == "instruction" and not text.strip()):
            raise InputError(
                f"{where}: has no {field} (it has {', '.join(row) or 'nothing'}); name one "
                f"{' or '.join(names)}"
            )
        texts[field] = text
    return Item(id, texts["instruction"], texts["input"], texts["response"], suggestion)


def _decision(item: Item, name: str, text: str) -> Decision:
    return Decision(item.id, name, FINE if text == item.original else EDITED, text)


def _annotator_id(name: str) -> str:
    """The UUID by which Argilla knows a user."""
    try:
        return str(uuid.UUID(name))
    except ValueError:
        return str(uuid.uuid5(uuid.NAMESPACE_OID, f"annotator {name}"))


def argilla_row(item: Item, decisions: Sequence[Decision]) -> Row:
    answers = []
    for decision in decisions:
        status = "discarded" if decision.verdict == SKIPPED else "submitted"
        user = _annotator_id(decision.annotator)
        answers.append({"value": decision.text, "user_id": user, "status": status})
    annotators = [decision.annotator for decision in decisions]
    suggestion = {"value": item.suggestion, "score": None, "agent": None}
    input = {"input": item.input} if item.input else {}
    return {
        "id": item.id,
        "fields": {"instruction": item.instruction, **input, "response": item.original},
        "metadata": {"annotators": annotators} if annotators else {},
        "suggestions": {QUESTION: suggestion} if item.suggestion else {},
        "responses": {QUESTION: answers} if answers else {},
        "vectors": {},
    }


def _from_argilla(row: Row, where: str, number: int) -> tuple[Item, list[Decision]]:
    if isinstance(row.get("responses"), list):
        raise InputError(
            f"{where}: is of Argilla 1; load it into Argilla 2 and export it with records.to_json"
        )
    answers = row.get("responses") or {}
    suggestions = {  # those of other questions may be ratings
        question: suggestion["value"]
        for question, suggestion in (row.get("suggestions") or {}).items()
        if isinstance((suggestion or {}).get("value"), str)
    }
    question = _edit_question([*answers, *suggestions], where)
    annotators = (row.get("metadata") or {}).get("annotators", [])
    names = {_annotator_id(name): name for name in annotators}
    id = _id(row.get("id"), number)
    item = _item(id, row["fields"], suggestions.get(question, ""), where)
    decisions = []
    for answer in answers.get(question, []):
        name = names.get(str(answer["user_id"]), str(answer["user_id"]))
        if answer.get("status") == "discarded":
            decisions.append(Decision(id, name, SKIPPED, item.original))
        elif answer.get("status") != "draft":
            decisions.append(_decision(item, name, answer["value"]))
    return item, decisions


def label_studio_row(item: Item, decisions: Sequence[Decision]) -> Row:
    data = {"instruction": item.instruction, "input": item.input, "response": item.original}
    annotations = []
    for decision in decisions:
        result = [_text_area(decision.text, decision.annotator)]
        annotation = {"result": result, "was_cancelled": decision.verdict == SKIPPED}
        # An address that Label Studio does not know would make it refuse the file.
        if _EMAIL.fullmatch(decision.annotator):
            annotation["completed_by"] = {"email": decision.annotator}
        annotations.append(annotation | {"ground_truth": False})
    return {
        "data": {"id": item.id, **data},
        "annotations": annotations,
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
    id = _id(data.get("id"), _id(row.get("id"), number))
    predictions = [_answers(prediction, where) for prediction in row.get("predictions") or []]
    suggestions = [text for answers in predictions for text, _ in answers]
    suggestion = next((text for text in suggestions if isinstance(text, str)), "")
    item = _item(id, data, suggestion, where)
    decisions = []
    for annotation in row.get("annotations") or []:
        user = annotation.get("completed_by")
        user = user.get("email") or user.get("id") if isinstance(user, dict) else user
        answers = _answers(annotation, where)
        name = next((name for _, name in answers if name), None) or str(user or "label_studio")
        if annotation.get("was_cancelled"):
            decisions.append(Decision(id, name, SKIPPED, item.original))
        elif answers:
            decisions.append(_decision(item, name, answers[0][0]))
    return item, decisions


def _answers(annotation: Row, where: str) -> list[tuple[str, str]]:
    """(text, annotator or "") of the text areas of an annotation or prediction."""
    areas = [r for r in annotation.get("result") or [] if r.get("type") == "textarea"]
    question = _edit_question([area["from_name"] for area in areas], where)
    answers = []
    for area in areas:
        if area["from_name"] == question:
            text, name = area["value"]["text"], (area.get("meta") or {}).get("text") or [""]
            answers.append(("\n".join(text) if isinstance(text, list) else text, name[0]))
    return answers


def _edit_question(names: Sequence[str], where: str) -> str:
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
