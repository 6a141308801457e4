"""Reads the log of earlier versions, OUTPUT.jsonl.state.jsonl, without changing it.

Its first line has the digest of the input. Every other line is an event {"event", "id",
"annotator", "time"}: open (id None: the open row was given back), edited (with "text"), fine,
skipped, or undo, which opens the row again.
"""

import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.feedback.annotation.items import OTHER_INPUT, VERDICTS, Item
from fgrlhf_jax.runtime import files

FORMAT = "fgrlhf_jax annotations, version 1"


def path_of(output: Path) -> Path:
    """Returns the path of the log that belongs to a file of edits."""
    return output.with_name(output.name + ".state.jsonl")


def read(path: Path, items: Sequence[Item], digest: str) -> list[dict[str, Any]]:
    """Returns events for the database; raises InputError if damaged or for another input."""
    head, *rows = files.read_jsonl(path) or [{}]
    if not isinstance(head, dict) or head.get("format") != FORMAT:
        raise InputError(f"{path}: is not of the form {FORMAT!r}; choose another output")
    if head.get("input") != digest:
        raise InputError(f"{path}: {OTHER_INPUT}")
    originals = {item.id: item.original for item in items}
    decided: dict[tuple[str, str], str] = {}  # (annotator, id) -> text
    opened: dict[str, str] = {}  # annotator -> id
    events = []
    try:
        for row in rows:
            event, id, name, text = row["event"], row["id"], row["annotator"], None
            if event == "open" and id is None:
                event, id = "closed", opened.pop(name)
            elif event in ("open", "undo"):
                text, opened[name] = decided.pop((name, id)) if event == "undo" else None, id
                event = "open"
            else:
                text = decided[name, id] = row.get("text", originals[id])
                event = VERDICTS[VERDICTS.index(event)]
                opened.pop(name, None)
            time = datetime.datetime.fromisoformat(row["time"]).timestamp()
            originals[id]  # KeyError if it is not in the input
            events += [{"event": event, "row": id, "annotator": name, "text": text, "time": time}]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise InputError(
            f"{path}: its events are inconsistent ({error!r}); put back a copy of the file"
        ) from error
    return events
