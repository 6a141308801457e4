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

with a conversation as the instruction: a chat field, and <Paragraphs name="instruction"
value="$instruction" nameKey="role" textKey="content"/>.

An answer equal to the response means that it is fine; a discarded or cancelled one was skipped
(Argilla's own exports do not say which were discarded). Seconds, tags and a comment are JSON, in
Argilla's metadata and behind the name in Label Studio's meta.
"""

import dataclasses
import json
import re
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fgrlhf_jax.data import records
from fgrlhf_jax.errors import InputError
from fgrlhf_jax.feedback.annotation.items import EDITED, FINE, SKIPPED, Decision, Item, edit_row
from fgrlhf_jax.runtime.files import write_json, write_jsonl

FORMATS = ("argilla", "label_studio", "edits")
QUESTION = "edited"
# The fields of other tools that may hold each text.
FIELD_NAMES = {
    "instruction": ("instruction", "prompt", "question", "messages", "chat"),
    "input": ("input", "context"),
    "response": ("response", "original", "output", "completion", "answer", "text"),
}
_EMAIL = re.compile(r"[^@\s]+@[^@\s]+\.[^@\s]+")

Row = dict[str, Any]
ItemAndDecisions = tuple[Item, list[Decision]]


def read(
    spec: str, *, columns: str = "", refused: list[str] | None = None
) -> tuple[list[Item], list[Decision]]:
    """The responses of a source, and the decisions that it holds already.

    Args:
      spec: a FILE.json of Argilla or Label Studio, recognised by its rows, or any source of
        ``records.read``, where edits are responses with an edit to begin from, several edits of a
        row one response. Rows without an id get their number; a response may be empty.
      columns: other names of fields, as for ``records.read_with_rows``.
      refused: where given, wrong rows are left out and the messages about them are added to it.

    Raises:
      InputError: for the first row that is wrong, or where none is left.
    """
    rows = _rows_of_other_tool(spec)
    if rows is None:
        pairs = records.read_with_rows(spec, columns=columns, refused=refused)
        numbered = enumerate(pairs, 1)
        convert: Callable[..., ItemAndDecisions] = _from_record
    else:
        numbered = enumerate(rows, 1)
        convert = _from_argilla if "fields" in rows[0] else _from_label_studio
    items: dict[str, Item] = {}
    first: dict[str, int] = {}
    decisions: list[Decision] = []
    for number, row in numbered:
        where = f"{spec}:row {number}"
        try:
            item, answers = _checked(convert, row, where, number)
            if item.id in items:
                item = _merged(items[item.id], item, f"{where}: has the id of row {first[item.id]}")
        except InputError as error:
            if refused is None:
                raise
            refused.append(str(error))
            continue
        items[item.id] = item
        first.setdefault(item.id, number)
        decisions += answers
    if not items:
        raise InputError(f"{spec}: no row of it can be read; {refused[-1] if refused else ''}")
    return list(items.values()), decisions


def write(path: Path, format: str, items: Sequence[Item], decisions: Sequence[Decision]) -> int:
    """Writes one of ``FORMATS``, all or nothing, and returns the number of rows."""
    if format == "edits":
        by_id = {item.id: item for item in items}
        rows = [edit_row(by_id[d.id], d) for d in decisions if d.verdict == EDITED]
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


def _checked(convert: Callable[..., ItemAndDecisions], row: Any, where: str, number: int):
    """A row's item and decisions; a row of any other shape is an InputError."""
    try:
        item, decisions = convert(row, where, number)
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        raise InputError(
            f"{where}: is not in the form of an export's rows ({error!r}); export it again"
        ) from error
    for text in _texts([item, *decisions]):
        if any("\ud800" <= letter <= "\udfff" for letter in text):
            raise InputError(f"{where}: holds invalid Unicode (half of a surrogate pair)")
    names = Counter(decision.annotator for decision in decisions)
    for decision in decisions:
        text, name = decision.text, decision.annotator
        if not isinstance(text, str) or not (text.strip() or decision.verdict == SKIPPED):
            raise InputError(f"{where}: the answer of {name} is empty or no text; take it out")
        if names[name] > 1:
            raise InputError(f"{where}: has two answers of {name}; take one out")
    return item, decisions


def _texts(value: Any) -> Iterable[str]:
    """All texts in records, lists and tuples."""
    if isinstance(value, str):
        yield value
    elif dataclasses.is_dataclass(value):
        yield from _texts(dataclasses.astuple(value))
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _texts(part)


def _merged(item: Item, other: Item, where: str) -> Item:
    """An item with the edit of another row of it, as two annotators of a row leave them."""
    alike = dataclasses.replace(other, suggestion=item.suggestion, others=item.others)
    if alike != item or not other.others:
        raise InputError(f"{where} ({item.id!r}); give every row an id of its own, or none")
    return dataclasses.replace(item, others=item.others + other.others)


def _id(value: object, default: object) -> str:
    return str(default if value in (None, "") else value)


def _from_record(pair: records.RecordAndRow, where: str, number: int) -> ItemAndDecisions:
    record, row = pair
    prompt = (_id(row.get("id"), number), record.instruction, record.input)
    turns = tuple((turn.role, turn.content) for turn in record.messages)
    if isinstance(record, records.Preference):
        raise InputError(
            f"{where}: is a preference, which has two responses; give rows with the one to edit, "
            "as output or original"
        )
    if isinstance(record, records.Instruction):
        return Item(*prompt, record.output, turns=turns), []
    annotator = row.get("annotator")
    others = ((str(annotator), record.edited),) if annotator else ()
    return Item(*prompt, record.original, record.edited, turns, others), []


def _item(id: str, row: Row, suggestion: str, where: str) -> Item:
    """The item of a row whose texts have any of ``FIELD_NAMES``."""
    texts = {}
    for field, names in FIELD_NAMES.items():
        text = next((row[name] for name in names if row.get(name) is not None), None)
        text = "" if text is None and field == "input" else text
        is_conversation = field == "instruction" and isinstance(text, list) and text
        if not is_conversation and (
            not isinstance(text, str) or (field == "instruction" and not text.strip())
        ):
            raise InputError(
                f"{where}: has no {field} (it has {', '.join(row) or 'nothing'}); name one "
                f"{' or '.join(names)}"
            )
        texts[field] = text
    instruction, turns = texts["instruction"], ()
    if isinstance(instruction, list):
        turns = tuple((str(turn["role"]), str(turn["content"])) for turn in instruction)
        instruction = ""
    return Item(id, instruction, texts["input"], texts["response"], suggestion, turns)


def _instruction(item: Item) -> str | list[Row]:
    turns = [{"role": role, "content": text} for role, text in item.turns]
    return turns or item.instruction


def _decision(item: Item, name: str, text: str, is_skipped: bool, details: str = "") -> Decision:
    values = json.loads(details) if details else {}
    values["tags"] = tuple(values.get("tags", ()))
    if is_skipped:
        return Decision(item.id, name, SKIPPED, item.original, **values)
    return Decision(item.id, name, FINE if text == item.original else EDITED, text, **values)


def _details(decision: Decision) -> list[str]:
    """What was recorded besides the text, as JSON; [] where nothing was."""
    details = decision.details()
    return [json.dumps(details, ensure_ascii=False)] if details else []


def _annotator_id(name: str) -> str:
    """The UUID by which Argilla knows a user."""
    try:
        return str(uuid.UUID(name))
    except ValueError:
        return str(uuid.uuid5(uuid.NAMESPACE_OID, f"annotator {name}"))


def argilla_row(item: Item, decisions: Sequence[Decision]) -> Row:
    answers, metadata = [], defaultdict(list)
    for decision in decisions:
        status = "discarded" if decision.verdict == SKIPPED else "submitted"
        user = _annotator_id(decision.annotator)
        answers.append({"value": decision.text, "user_id": user, "status": status})
        metadata["annotators"].append(decision.annotator)
        metadata["details"].append(*_details(decision) or [""])
    if not any(metadata["details"]):
        del metadata["details"]
    suggestion = {"value": item.suggestion, "score": None, "agent": None}
    input = {"input": item.input} if item.input else {}
    return {
        "id": item.id,
        "fields": {"instruction": _instruction(item), **input, "response": item.original},
        "metadata": dict(metadata),
        "suggestions": {QUESTION: suggestion} if item.suggestion else {},
        "responses": {QUESTION: answers} if answers else {},
        "vectors": {},
    }


def _from_argilla(row: Row, where: str, number: int) -> ItemAndDecisions:
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
    metadata = row.get("metadata") or {}
    names = {_annotator_id(name): name for name in metadata.get("annotators", [])}
    details = dict(zip(names.values(), metadata.get("details", []), strict=False))
    item = _item(_id(row.get("id"), number), row["fields"], suggestions.get(question, ""), where)
    decisions = []
    for answer in answers.get(question, []):
        name = names.get(str(answer["user_id"]), str(answer["user_id"]))
        if answer.get("status") != "draft":
            is_skipped = answer.get("status") == "discarded"
            text = answer["value"]
            decisions.append(_decision(item, name, text, is_skipped, details.get(name, "")))
    return item, decisions


def label_studio_row(item: Item, decisions: Sequence[Decision]) -> Row:
    data = {"instruction": _instruction(item), "input": item.input, "response": item.original}
    annotations = []
    for decision in decisions:
        result = [_text_area(decision.text, [decision.annotator, *_details(decision)])]
        annotation = {"result": result, "was_cancelled": decision.verdict == SKIPPED}
        # An address that Label Studio does not know would make it refuse the file.
        if _EMAIL.fullmatch(decision.annotator):
            annotation["completed_by"] = {"email": decision.annotator}
        if decision.seconds:
            annotation["lead_time"] = decision.seconds
        annotations.append(annotation | {"ground_truth": False})
    return {
        "data": {"id": item.id, **data},
        "annotations": annotations,
        "predictions": [{"result": [_text_area(item.suggestion)]}] if item.suggestion else [],
    }


def _text_area(text: str, meta: Sequence[str] = ()) -> Row:
    return {
        "from_name": QUESTION,
        "to_name": "response",
        "type": "textarea",
        "value": {"text": [text]},
        **({"meta": {"text": list(meta)}} if meta else {}),
    }


def _from_label_studio(row: Row, where: str, number: int) -> ItemAndDecisions:
    data = row["data"]
    id = _id(data.get("id"), _id(row.get("id"), number))
    # Its own exports have the numbers of predictions in place of these.
    predictions = [p for p in row.get("predictions") or [] if isinstance(p, Mapping)]
    suggestions = [text for p in predictions for text, _ in _answers(p, where)]
    suggestion = next((text for text in suggestions if isinstance(text, str)), "")
    item = _item(id, data, suggestion, where)
    decisions: list[Decision] = []
    for annotation in row.get("annotations") or []:
        user = annotation.get("completed_by")
        user = user.get("email") or user.get("id") if isinstance(user, dict) else user
        answers = _answers(annotation, where)
        meta = next((meta for _, meta in answers if meta), [str(user or "label_studio")])
        name, is_skipped = str(meta[0]), bool(annotation.get("was_cancelled"))
        if any(decision.annotator == name for decision in decisions) and annotation.get("id"):
            name = f"{name} #{annotation['id']}"  # several answers of a user are allowed there
        details = meta[1] if len(meta) > 1 else ""
        if not details and annotation.get("lead_time"):
            details = json.dumps({"seconds": float(annotation["lead_time"])})
        if is_skipped or answers:
            text = answers[0][0] if answers else ""
            decisions.append(_decision(item, name, text, is_skipped, details))
    return item, decisions


def _answers(annotation: Row, where: str) -> list[tuple[str, list[str]]]:
    """(text, its meta texts) of the text areas of an annotation or prediction."""
    areas = [r for r in annotation.get("result") or [] if r.get("type") == "textarea"]
    question = _edit_question([area["from_name"] for area in areas], where)
    answers = []
    for area in areas:
        if area["from_name"] == question:
            text = area["value"]["text"]
            text = "\n".join(text) if isinstance(text, list) else text
            answers.append((text, (area.get("meta") or {}).get("text") or []))
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
