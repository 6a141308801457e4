"""Replays the events of log.py into the decisions that stand and the rows that are open.

open       an annotator works on this row (or on none) and on no other
edited     a decision: the event has the edited text
fine       a decision: nothing is to be changed
skipped    a decision: this annotator leaves the row alone
undo       the decision is taken back, the row open again
"""

import dataclasses
import datetime
import hashlib
import json
import os
from collections.abc import Iterable, Sequence

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.feedback.annotation import log
from fgrlhf_jax.feedback.annotation.log import Event
from fgrlhf_jax.runtime import files

EDITED, FINE, SKIPPED = VERDICTS = "edited", "fine", "skipped"
OPEN, UNDO = "open", "undo"


@dataclasses.dataclass(frozen=True)
class Item:
    """A response to edit."""

    id: str
    instruction: str
    input: str
    original: str
    suggestion: str = ""  # the text that editing starts from; "" for `original`


@dataclasses.dataclass(frozen=True)
class Decision:
    """An annotator's verdict on an item."""

    id: str  # of the item
    annotator: str
    verdict: str  # of VERDICTS
    text: str  # the response after it


class History:
    """The state after a list of events: the decisions that stand, and who has which row open.

    Raises:
      InputError: for events that do not follow from one another.
    """

    def __init__(self, items: Sequence[Item], events: Iterable[Event] = ()):
        self.items = {item.id: item for item in items}
        self.decisions: list[Decision] = []
        self.verdicts: dict[str, dict[str, str]] = {}  # id -> annotator -> verdict
        self.open: dict[str, str] = {}  # annotator -> id
        for number, event in enumerate(events, 1):
            try:
                self.add(event)
            except (KeyError, TypeError, AttributeError, StopIteration) as error:
                raise InputError(
                    f"event {number} of the annotations makes no sense ({error!r}): their "
                    "state.jsonl is damaged; put back a copy of it"
                ) from error

    def add(self, event: Event) -> None:
        """Applies the next event."""
        kind, id, name = event["event"], event["id"], event["annotator"]
        if kind == OPEN and id is None:
            self.open.pop(name, None)
        elif kind == OPEN:
            self.open[name] = id
        elif kind == UNDO:
            self.decisions.remove(self.last(name, id))
            del self.verdicts[id][name]
            self.open[name] = id
        elif kind in VERDICTS:
            text = event.get("text", self.items[id].original)
            self.decisions.append(Decision(id, name, kind, text))
            self.verdicts.setdefault(id, {})[name] = kind
            if self.open.get(name) == id:
                del self.open[name]
        else:
            raise KeyError(kind)

    def last(self, name: str, id: str) -> Decision:
        """The annotator's decision on a row."""
        return next(d for d in reversed(self.decisions) if (d.annotator, d.id) == (name, id))

    def edit_lines(self, decisions: Iterable[Decision] | None = None) -> bytes:
        """The lines of the file of edits, for all decisions that stand or those given."""
        return b"".join(
            files.json_line(edit_row(self.items[decision.id], decision))
            for decision in (self.decisions if decisions is None else decisions)
            if decision.verdict == EDITED
        )


def make_event(kind: str, name: str, id: str | None, text: str | None = None) -> Event:
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    text = {"text": text} if kind == EDITED else {}
    return {"event": kind, "id": id, "annotator": name, "time": now, **text}


def edit_row(item: Item, decision: Decision) -> dict[str, str]:
    """A row of the file of edits: a ``records.Edit`` and the annotator."""
    prompt = {"id": item.id, "instruction": item.instruction, "input": item.input}
    texts = {"original": item.original, "edited": decision.text}
    return {**prompt, **texts, "annotator": decision.annotator}


def input_digest(items: Sequence[Item], imported: Sequence[Decision]) -> str:
    """A hash of everything that must not change while it is annotated."""
    rows = [dataclasses.astuple(row) for row in (*items, *imported)]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def read_decisions(
    items: Sequence[Item], output: str | os.PathLike, imported: Sequence[Decision] = ()
) -> list[Decision]:
    """The decisions so far in the files of ``output``, or else the imported ones.

    Another process may be writing the files.
    """
    events = log.read(output, input_digest(items, imported))
    return History(items, events).decisions if events else list(imported)
