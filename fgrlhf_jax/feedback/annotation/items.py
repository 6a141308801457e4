"""The records of annotation: responses to edit, and annotators' decisions on them."""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from typing import Any

OTHER_INPUT = (
    "was begun with another input, or the input has changed since; put it back or choose another "
    "output"
)
EDITED, FINE, SKIPPED = VERDICTS = "edited", "fine", "skipped"
DETAILS = {  # field of a Decision -> conversion from JSON
    "seconds": float,
    "tags": lambda tags: tuple(map(str, tags)),
    "comment": str,
    "over_limit": bool,
}


@dataclasses.dataclass(frozen=True)
class Item:
    """A response to edit."""

    id: str
    instruction: str
    input: str
    original: str
    suggestion: str = ""  # the text that editing starts from; "" for the original
    turns: tuple[tuple[str, str], ...] = ()  # (role, text), in place of instruction and input
    others: tuple[tuple[str, str], ...] = ()  # (annotator, text) of edits in the input
    finished: bool = True  # whether the response ended by itself

    @property
    def messages(self) -> list[dict[str, str]]:
        return [{"role": role, "content": text} for role, text in self.turns]

    @property
    def edits(self) -> dict[str, list[str]]:
        """The edits in the input: text -> its annotators, or ["suggestion"]."""
        texts = {self.suggestion: []} if self.suggestion else {}
        for name, text in self.others:
            texts.setdefault(text, []).append(name)
        return {text: names or ["suggestion"] for text, names in texts.items()}


@dataclasses.dataclass(frozen=True)
class Decision:
    """An annotator's verdict on an item, and the resulting response."""

    id: str  # of the item
    annotator: str
    verdict: str  # of VERDICTS
    text: str
    seconds: float = 0.0  # of work on the row; 0 if unknown
    tags: tuple[str, ...] = ()
    comment: str = ""
    over_limit: bool = False  # whether the annotator confirmed an edit beyond the limit

    @property
    def details(self) -> str:
        """The fields in ``DETAILS`` that are set, as JSON; "" if none is."""
        values = {name: getattr(self, name) for name in DETAILS if getattr(self, name)}
        return json.dumps(values, ensure_ascii=False) if values else ""

    def with_details(self, details: str) -> "Decision":
        values = json.loads(details or "{}")
        typed = {name: DETAILS[name](values[name]) for name in DETAILS if name in values}
        return dataclasses.replace(self, **typed)


def edit_row(item: Item, decision: Decision) -> dict[str, Any]:
    """Returns an edit as a row for ``data.records``, with the annotator and the details."""
    prompt: dict[str, Any] = {"instruction": item.instruction, "input": item.input}
    prompt = {"messages": item.messages} if item.turns else prompt
    texts = {"original": item.original, "edited": decision.text, "annotator": decision.annotator}
    cut = {} if item.finished else {"finished": False}
    return {"id": item.id, **prompt, **texts, **cut, **json.loads(decision.details or "{}")}


def input_digest(items: Sequence[Item], imported: Sequence[Decision] = ()) -> str:
    """Returns a hash of the items and imported decisions, which must not change meanwhile.

    Fields that earlier versions lacked are hashed only if they are set: old digests stay valid.
    """
    rows: list[tuple] = []
    for item in items:
        *fields, turns, others, finished = dataclasses.astuple(item)
        further = (turns, others) if turns or others else ()
        rows.append((*fields, *further) if finished else (*fields, turns, others, finished))
    for decision in imported:
        fields = dataclasses.astuple(decision)[:4]
        rows.append((*fields, decision.details) if decision.details else fields)
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()
