"""Converts responses and decisions from and to rows of Argilla's and Label Studio's exports.

An answer equal to the response is read as "fine", a discarded or cancelled one as "skipped". The
details of a decision are JSON, in Argilla's metadata and after the name in Label Studio's meta.
"""

import dataclasses
import json
import re
import uuid
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from fgrlhf_jax.data.row_fields import check_row, read_flag
from fgrlhf_jax.data.text_forms import restore_line_ends
from fgrlhf_jax.errors import InputError
from fgrlhf_jax.feedback.annotation.items import EDITED, FINE, SKIPPED, Decision, Item

QUESTION = "edited"
# text -> the fields of exports that may hold it; the first that is set is read.
FIELD_NAMES = {
    "instruction": ("instruction", "prompt", "question", "messages", "chat"),
    "input": ("input", "context"),
    "response": ("response", "original", "output", "completion", "answer", "text"),
}
_EMAIL = re.compile(r"[^@\s]+@[^@\s]+\.[^@\s]+")

Row = dict[str, Any]
ItemAndDecisions = tuple[Item, list[Decision]]
Convert = Callable[[Any, str, int], ItemAndDecisions]


def find_tool(rows: Iterable) -> Convert | None:
    """Returns the function that reads rows of this tool; None for neither tool's rows."""
    for row in rows:
        if isinstance(row, dict) and (_questions(row) or isinstance(row.get("fields"), dict)):
            return _from_argilla
        if isinstance(row, dict) and isinstance(row.get("data"), dict):
            return _from_label_studio
    return None


def read_row(convert: Convert, row: Any, where: str, number: int) -> ItemAndDecisions:
    """Returns a row's item and decisions; raises InputError for an invalid row."""
    check_row(row, where)
    try:
        item, decisions = convert(row, where, number)
        json.dumps([*map(dataclasses.astuple, (item, *decisions))], ensure_ascii=False).encode()
    except InputError:
        raise
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        raise InputError(
            f"{where}: is not in the form of an export's rows ({error!r}); export it again"
        ) from error
    names = [decision.annotator for decision in decisions]
    for text, name, verdict in ((d.text, d.annotator, d.verdict) for d in decisions):
        shown = f"{' '.join(str(name).split()):.60}"
        is_text = isinstance(text, str) and isinstance(name, str)
        if not is_text or not (text.strip() or verdict == SKIPPED):
            raise InputError(f"{where}: the answer of {shown} is empty or not a text; remove it")
        if names.count(name) > 1:
            raise InputError(f"{where}: has two answers of {shown}; take one out")
    return item, decisions


def first_id(*values: object) -> str:
    return next(str(value) for value in values if value not in (None, ""))


def _item(id: str, row: Row, suggestion: str, where: str, marks: Row) -> Item:
    """Returns the item of a row with ``FIELD_NAMES``; ``marks`` may have a flag ``finished``."""
    texts, turns = [], ()
    for field, names in FIELD_NAMES.items():
        missing = "" if field == "input" else None
        value = next((row[name] for name in names if row.get(name) is not None), missing)
        if field == "instruction" and isinstance(value, list) and value:
            turns = tuple((str(turn["role"]), str(turn["content"])) for turn in value)
            value = ""
        elif not isinstance(value, str) or (field == "instruction" and not value.strip()):
            raise InputError(
                f"{where}: has no {field} (it has {', '.join(row) or 'nothing'}); name one "
                f"{' or '.join(names)}"
            )
        texts.append(value)
    return Item(id, *texts, suggestion, turns, finished=read_flag(marks, "finished", where))


def _decision(item: Item, name: str, text: str, is_skipped: bool, details: str) -> Decision:
    if is_skipped:
        text = item.original
    elif isinstance(text, str):
        text = restore_line_ends(text, item.original)  # a browser may have changed them
    verdict = SKIPPED if is_skipped else FINE if text == item.original else EDITED
    return Decision(item.id, name, verdict, text).with_details(details)


def _annotator_id(name: str) -> str:
    """Returns the name if it is a UUID of Argilla, else a UUID made from it."""
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
    names, details = ([getattr(d, name) for d in decisions] for name in ("annotator", "details"))
    metadata = {"annotators": names, "details": details}
    metadata = {name: values for name, values in metadata.items() if any(values)}
    suggestion = {"value": item.suggestion, "score": None, "agent": None}
    prompt, input = item.messages or item.instruction, {"input": item.input} if item.input else {}
    return {
        "id": item.id,
        "fields": {"instruction": prompt, **input, "response": item.original},
        "metadata": metadata | ({} if item.finished else {"finished": "false"}),
        "suggestions": {QUESTION: suggestion} if item.suggestion else {},
        "responses": {QUESTION: answers} if answers else {},
        "vectors": {},
    }


def _questions(row: Row) -> list[str]:
    """Returns the questions in a row of ``records.to_datasets`` or ``to_list(flatten=True)``."""
    users = ".responses.users"
    return [name.removesuffix(users) for name in row if name.endswith(users)]


def _nested(row: Row, question: str) -> Row:
    """Converts a row that has :func:`_questions` to the form of ``to_json``."""
    columns = (row[f"{question}.responses{name}"] or () for name in ("", ".users", ".status"))
    names = "value", "user_id", "status"
    answers = [dict(zip(names, answer, strict=True)) for answer in zip(*columns, strict=True)]
    suggestions = {question: {"value": row.get(f"{question}.suggestion")}}
    nested = {"id": row.get("id"), "fields": row, "metadata": row}
    return nested | {"responses": {question: answers}, "suggestions": suggestions}


def _from_argilla(row: Row, where: str, number: int) -> ItemAndDecisions:
    if questions := _questions(row):
        row = _nested(row, _edit_question(questions, where))
    if isinstance(row.get("responses"), list):
        raise InputError(f"{where}: is in Argilla 1's format; export it with to_json of Argilla 2")
    answers = row.get("responses") or {}
    values = {name: (s or {}).get("value") for name, s in (row.get("suggestions") or {}).items()}
    suggestions = {name: text for name, text in values.items() if isinstance(text, str)}
    question = _edit_question([*answers, *suggestions], where)  # other questions may be ratings
    metadata = row.get("metadata") or {}
    names = metadata.get("annotators") or []
    details = metadata.get("details") or [""] * len(names)
    users = {_annotator_id(name): (name, more) for name, more in zip(names, details, strict=True)}
    suggestion = suggestions.get(question, "")
    item = _item(first_id(row.get("id"), number), row["fields"], suggestion, where, metadata)
    decisions = []
    for answer in answers.get(question, []):
        user, status = str(answer["user_id"] or "argilla"), answer.get("status") or "submitted"
        name, more = users.get(user, (user, ""))
        if status in ("submitted", "discarded"):
            is_skipped = status == "discarded"
            decisions.append(_decision(item, name, answer["value"], is_skipped, more))
        elif status not in ("draft", "pending"):
            raise InputError(
                f"{where}: an answer has the unknown status {status!r:.40}; correct it"
            )
    return item, decisions


def label_studio_row(item: Item, decisions: Sequence[Decision]) -> Row:
    prompt = item.messages or item.instruction
    data = {"instruction": prompt, "input": item.input, "response": item.original}
    data |= {} if item.finished else {"finished": False}
    annotations = []
    for decision in decisions:
        result = [_text_area(decision.text, decision.annotator, decision.details)]
        annotation = {"result": result, "was_cancelled": decision.verdict == SKIPPED}
        # Label Studio refuses a file with another value than the email address of a user.
        if _EMAIL.fullmatch(decision.annotator):
            annotation["completed_by"] = {"email": decision.annotator}
        annotations.append(annotation | {"lead_time": decision.seconds, "ground_truth": False})
    return {
        "data": {"id": item.id, **data},
        "annotations": annotations,
        "predictions": [{"result": [_text_area(item.suggestion)]}] if item.suggestion else [],
    }


def _text_area(text: str, *meta: str) -> Row:
    area = {"from_name": QUESTION, "to_name": "response", "type": "textarea"}
    area["value"] = {"text": [text]}
    return area | ({"meta": {"text": [*filter(None, meta)]}} if meta else {})


def _from_label_studio(row: Row, where: str, number: int) -> ItemAndDecisions:
    data = row["data"]
    if "completions" in row:
        raise InputError(f"{where}: is from Label Studio before 1.0; export it from a newer one")
    # Label Studio's own exports have ids in place of predictions.
    predictions = [p for p in row.get("predictions") or [] if isinstance(p, dict)]
    suggestions = [text for p in predictions for text, *_ in _answers(p, where)]
    suggestion = next((text for text in suggestions if isinstance(text, str)), "")
    item = _item(first_id(data.get("id"), row.get("id"), number), data, suggestion, where, data)
    decisions: list[Decision] = []
    for annotation in row.get("annotations") or []:
        user = annotation.get("completed_by")
        user = user.get("email") or user.get("id") if isinstance(user, dict) else user
        is_skipped, answers = annotation.get("was_cancelled"), _answers(annotation, where)
        if not (is_skipped or answers):
            continue
        if len(answers) > 1:
            raise InputError(
                f"{where}: an annotation has {len(answers)} answers; leave one of them"
            )
        text, name, details = answers[0] if answers else ("", "", "")
        name = name or str(user or "label_studio")
        if any(name == decision.annotator for decision in decisions):  # Label Studio allows it
            name = f"{name} #{annotation['id']}"
        if details and not details.startswith("{"):  # a user's note
            details = json.dumps({"comment": details})
        if not details and annotation.get("lead_time"):
            details = json.dumps({"seconds": float(annotation["lead_time"])})
        decisions.append(_decision(item, name, text, is_skipped, details))
    return item, decisions


def _answers(annotation: Row, where: str) -> list[tuple[str, str, str]]:
    """Returns [(text, annotator or "", details or "")] of an annotation's or prediction's areas."""
    areas = [r for r in annotation.get("result") or [] if r.get("type") == "textarea"]
    question = _edit_question([area["from_name"] for area in areas], where)
    answers = []
    for area in areas:
        if area["from_name"] == question:
            text = area["value"]["text"]
            meta = (area.get("meta") or {}).get("text") or []
            name, details, *_ = [*([meta] if isinstance(meta, str) else meta), "", ""]
            texts = text if isinstance(text, list) else [text]
            answers += [(text, name, details) for text in texts]
    return answers


def _edit_question(names: Sequence[str], where: str) -> str:
    """Returns the question about the edit: the one named ``QUESTION``, or the only one."""
    names = list(dict.fromkeys(names))
    if QUESTION in names or not names:
        return QUESTION
    if len(names) > 1:
        raise InputError(
            f"{where}: answers the questions {', '.join(names)}; call the one for the edited "
            f"response {QUESTION!r}"
        )
    return names[0]
