"""What is annotated and what people decide: plain records."""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from typing import Any

EDITED, FINE, SKIPPED = VERDICTS = "edited", "fine", "skipped"


@dataclasses.dataclass(frozen=True)
class Item:
    """A response to edit.

    Attributes:
      suggestion: the text that editing starts from; "" for ``original``.
      turns: (role, text) of a conversation before the response; () for instruction and input.
      others: (annotator, text) of further edits of the row, at hand while editing.
    """

    id: str
    instruction: str
    input: str
    original: str
    suggestion: str = ""
    turns: tuple[tuple[str, str], ...] = ()
    others: tuple[tuple[str, str], ...] = ()


@dataclasses.dataclass(frozen=True)
class Decision:
    """An annotator's verdict on an item.

    Attributes:
      id: of the item.
      text: the response after it.
      seconds: of work on the row; 0 where unknown.
      over_limit: whether the annotator confirmed an edit beyond the limit.
    """

    id: str
    annotator: str
    verdict: str  # of VERDICTS
    text: str
    seconds: float = 0.0
    tags: tuple[str, ...] = ()
    comment: str = ""
    over_limit: bool = False

    def details(self) -> dict[str, Any]:
        """What was recorded besides the text, without what is empty."""
        values = {"seconds": round(self.seconds, 1), "tags": list(self.tags)}
        values |= {"comment": self.comment, "over_limit": self.over_limit}
        return {name: value for name, value in values.items() if value}


def edit_row(item: Item, decision: Decision) -> dict[str, Any]:
    """A row of the file of edits: an edit as ``data.records`` reads it, and the annotator."""
    prompt: dict[str, Any] = {"id": item.id, "instruction": item.instruction, "input": item.input}
    if item.turns:
        messages = [{"role": role, "content": text} for role, text in item.turns]
        prompt = {"id": item.id, "messages": messages}
    texts = {"original": item.original, "edited": decision.text}
    return {**prompt, **texts, "annotator": decision.annotator, **decision.details()}


def input_digest(items: Sequence[Item], imported: Sequence[Decision] = ()) -> str:
    """A hash of everything that must not change while it is annotated.

    What earlier versions did not have counts only where it is there, so that their digests hold.
    """
    rows: list = []
    for item in items:
        new = [item.turns, item.others] if item.turns or item.others else []
        rows.append([item.id, item.instruction, item.input, item.original, item.suggestion, *new])
    for decision in imported:
        details = [decision.details()] if decision.details() else []
        row = [decision.id, decision.annotator, decision.verdict, decision.text]
        rows.append(row + details)
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()
