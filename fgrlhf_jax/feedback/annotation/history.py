"""What was decided about which response, as it follows from the events of annotation_log.py.

open       an annotator has a row (or none), and only this one
edited     it was decided: the event has its text
fine       it was decided: nothing is to be changed
skipped    it was decided: this annotator leaves it alone
undo       the decision is taken back, the row open again
"""

import dataclasses
import datetime
import hashlib
import json
import os
from collections.abc import Iterable, Sequence

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.feedback.annotation import log as annotation_log
from fgrlhf_jax.runtime import files

EDITED, FINE, SKIPPED = VERDICTS = "edited", "fine", "skipped"
OPEN, UNDO = "open", "undo"


@dataclasses.dataclass(frozen=True)
class Item:
    """A response to edit. suggestion: the text that editing starts from, "" for `original`."""

    id: str
    instruction: str
    input: str
    original: str
    suggestion: str = ""


@dataclasses.dataclass(frozen=True)
class Decision:
    """What an annotator made of the item with that id. text: the response after it."""

    id: str
    annotator: str
    verdict: str
    text: str


class History:
    """What a list of events comes to: the decisions that stand, and who has which row open."""

    def __init__(self, items: Sequence[Item], events: Iterable[dict] = ()):
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

    def add(self, event: dict) -> None:
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
        return next(d for d in reversed(self.decisions) if (d.annotator, d.id) == (name, id))

    def edits(self) -> bytes:
        """The file of edits."""
        return b"".join(
            files.json_line(edit_row(self.items[one.id], one))
            for one in self.decisions
            if one.verdict == EDITED
        )


def event(kind: str, name: str, id: str | None, text: str | None = None) -> dict:
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    text = {"text": text} if kind == EDITED else {}
    return {"event": kind, "id": id, "annotator": name, "time": now, **text}


def edit_row(item: Item, decision: Decision) -> dict[str, str]:
    """A row of the file of edits."""
    prompt = {"id": item.id, "instruction": item.instruction, "input": item.input}
    texts = {"original": item.original, "edited": decision.text}
    return {**prompt, **texts, "annotator": decision.annotator}


def digest(items: Sequence[Item], imported: Sequence[Decision]) -> str:
    """Of everything that must not change while it is annotated."""
    rows = [dataclasses.astuple(one) for one in (*items, *imported)]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def saved(
    items: Sequence[Item], output: str | os.PathLike, imported: Sequence[Decision] = ()
) -> list[Decision]:
    """The decisions in the files of `output`, which another process may be writing; or imported."""
    events = annotation_log.read(output, digest(items, imported))
    return History(items, events).decisions if events else list(imported)
