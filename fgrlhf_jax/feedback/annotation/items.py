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
      finished: whether the response ended by itself.
    """

    id: str
    instruction: str
    input: str
    original: str
    suggestion: str = ""
    turns: tuple[tuple[str, str], ...] = ()
    others: tuple[tuple[str, str], ...] = ()
    finished: bool = True


@dataclasses.dataclass(frozen=True)
class Decision:
    """An annotator's verdict on an item, and the response after it.

    Attributes:
      seconds: of work on the row; 0 where unknown.
      over_limit: whether the annotator confirmed an edit beyond the limit.
    """

    id: str  # of the item
    annotator: str
    verdict: str  # of VERDICTS
    text: str
    seconds: float = 0.0
    tags: tuple[str, ...] = ()
    comment: str = ""
    over_limit: bool = False

    @property
    def details(self) -> str:
        """What was recorded besides the text, as JSON; "" where nothing was."""
        names = ("seconds", "tags", "comment", "over_limit")
        values = {name: getattr(self, name) for name in names if getattr(self, name)}
        return json.dumps(values, ensure_ascii=False) if values else ""

    def with_details(self, details: str) -> "Decision":
        values = json.loads(details or "{}")
        return dataclasses.replace(
            self,
            seconds=float(values.get("seconds", 0)),
            tags=tuple(map(str, values.get("tags", ()))),
            comment=str(values.get("comment", "")),
            over_limit=bool(values.get("over_limit", False)),
        )


def edit_row(item: Item, decision: Decision) -> dict[str, Any]:
    """A row of the file of edits: an edit as ``data.records`` reads it, and the annotator."""
    prompt: dict[str, Any] = {"instruction": item.instruction, "input": item.input}
    if item.turns:
        prompt = {"messages": [{"role": role, "content": text} for role, text in item.turns]}
    texts = {"original": item.original, "edited": decision.text, "annotator": decision.annotator}
    cut = {} if item.finished else {"finished": False}
    return {"id": item.id, **prompt, **texts, **cut, **json.loads(decision.details or "{}")}


def input_digest(items: Sequence[Item], imported: Sequence[Decision] = ()) -> str:
    """A hash of everything that must not change while it is annotated.

    Fields that earlier versions did not have count where they are filled: old digests hold.
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
