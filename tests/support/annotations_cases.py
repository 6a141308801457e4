"""Rows to annotate and decisions on them, for tests of annotation files."""

import json
from pathlib import Path

from fgrlhf_jax.feedback.annotation.items import EDITED, FINE, SKIPPED, Decision, Item
from fgrlhf_jax.feedback.annotation.store import Annotations

IMPORTED = [
    Decision("r1", "Ann", EDITED, "One."),
    Decision("r0", "Bob", FINE, "This is number 0."),
    Decision("r2", "Ann", SKIPPED, "This is number 2."),
    Decision("r2", "Bob", EDITED, "Two."),
]


def items(n: int) -> list[Item]:
    return [Item(f"r{k}", f"Say {k}.", "", f"This is number {k}.") for k in range(n)]


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def edits(path: Path) -> list[tuple[str, str]]:
    """(edited, annotator) for every row of a file of edits."""
    return [(row["edited"], row["annotator"]) for row in lines(path)]


def accept(store: Annotations, name: str, id: str, text: str, **details) -> Decision:
    return store.decide(Decision(id, name, EDITED, text, **details))


def accept_next(store: Annotations, name: str, text: str) -> Decision:
    return accept(store, name, store.take(name).id, text)


def skip(store: Annotations, name: str, id: str) -> Decision:
    return store.decide(Decision(id, name, SKIPPED, ""))


def draft(store: Annotations, name: str, id: str, text: str, **details) -> bool:
    return store.draft(Decision(id, name, "draft", text, **details))
