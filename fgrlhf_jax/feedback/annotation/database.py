"""The SQLite table of all events of an annotation, including decisions that were undone.

    event     row  annotator  text
    input                     digest of the input: the first event
    open      id   name       text of the decision that was undone, else NULL
    draft     id   name       text typed so far
    edited, fine, skipped     a decision: the resulting response
    closed    id   name       NULL: the row was given back without a decision

`standing` marks the current event of a row and an annotator. Unique indices ensure that there is
only one, and that an annotator has one open row. Several processes may use the file at once.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.feedback.annotation.items import OTHER_INPUT, VERDICTS, Decision, Item, edit_row
from fgrlhf_jax.runtime import files
from fgrlhf_jax.runtime.database import Database

INPUT, OPEN, DRAFT, CLOSED = "input", "open", "draft", "closed"
SCHEMA = """
CREATE TABLE events (
  n INTEGER PRIMARY KEY,
  time REAL NOT NULL,         -- seconds since 1970
  event TEXT NOT NULL,
  row TEXT NOT NULL,          -- its id in the input
  annotator TEXT NOT NULL,
  text TEXT,
  details TEXT NOT NULL,      -- JSON of seconds, tags, comment, over_limit; '' for nothing
  standing INTEGER NOT NULL,
  seen REAL NOT NULL          -- last request of the browser that has the row open
);
CREATE UNIQUE INDEX standing ON events (row, annotator) WHERE standing;
CREATE UNIQUE INDEX one_open_row ON events (annotator) WHERE standing AND event = 'open';
CREATE INDEX by_annotator ON events (annotator, row);
"""
REPLACE = """
UPDATE events SET standing = 0 WHERE standing AND annotator = :annotator
  AND (row = :row OR event = 'open' AND :event = 'open')"""
INSERT = """
INSERT INTO events (time, event, row, annotator, text, details, standing, seen)
  VALUES (:time, :event, :row, :annotator, :text, :details, :standing, :now)"""

OPEN_WITH_NAME = "standing AND event = 'open' AND annotator = :name"
SILENT = """
SELECT annotator FROM events WHERE standing AND event = 'open' AND row = :row
  AND annotator != :name AND seen <= :since"""
# Per row: others who decided it or have it open, those of them not silent, and if :name decided it.
TAKEN = """
SELECT row,
  sum(annotator != :name AND event != 'skipped'),
  sum(annotator != :name AND (event IN ('edited', 'fine') OR event = 'open' AND seen > :since)),
  max(annotator = :name AND event != 'open')
FROM events WHERE standing"""


class Events:
    """The table of events. Methods that change it must be called inside a ``transaction``.

    A browser that has sent nothing for ``release_after`` seconds of the clock is called silent.
    """

    def __init__(self, path: Path, clock: Callable[[], float], release_after: float):
        self.path, self._clock, self._release_after = path, clock, release_after
        advice = "choose another output; what was not saved is still on the page"
        database = Database(path, str(path), advice)
        self.query, self.transaction = database.query, database.transaction
        self.create, self.close = database.create, database.close

    def begin(self, digest: str) -> bool:
        """Creates a missing table; returns whether it did. Raises InputError for another input."""
        if is_new := self.create(SCHEMA):
            self.add(INPUT, text=digest)
        if self.query("SELECT event, text FROM events ORDER BY n LIMIT 1") != [(INPUT, digest)]:
            raise InputError(f"{self.path}: {OTHER_INPUT}")
        return is_new

    def select(self, condition: str, **values: Any) -> list[tuple[float, Decision]]:
        """Returns (time, decision or draft) of the events for an SQL condition, in order."""
        query = "SELECT time, details, row, annotator, event, text FROM events WHERE"
        rows = self.query(f"{query} {condition} ORDER BY n", **values)
        return [(time, Decision(*texts).with_details(details)) for time, details, *texts in rows]

    def add(self, event: str, row: str = "", annotator: str = "", **columns: Any) -> None:
        """Adds an event, which becomes the current one unless it is a draft."""
        now, standing = self._clock(), event in (OPEN, *VERDICTS)
        values = {"text": None, "details": "", "time": now, "now": now, **columns}
        values |= {"event": event, "row": row, "annotator": annotator, "standing": standing}
        if event not in (INPUT, DRAFT):
            self.query(REPLACE, **values)
        self.query(INSERT, **values)

    def record(self, decision: Decision) -> None:
        """Adds a decision or a draft."""
        texts = {"text": decision.text, "details": decision.details}
        self.add(decision.verdict, decision.id, decision.annotator, **texts)

    def touch(self, name: str) -> None:
        """Records that the annotator's browser is still connected."""
        update = f"UPDATE events SET seen = :now WHERE {OPEN_WITH_NAME}"
        self.query(update, now=self._clock(), name=name)

    def open_row(self, name: str) -> str:
        """Returns the id of the annotator's open row, "" if there is none."""
        rows = self.query(f"SELECT row FROM events WHERE {OPEN_WITH_NAME}", name=name)
        return rows[0][0] if rows else ""

    def taken(self, name: str, row: str = "") -> dict[str, tuple[int, ...]]:
        """Returns the counts of the query ``TAKEN``, by row; only of one row if it is given."""
        query = f"{TAKEN} {'AND row = :row' if row else ''} GROUP BY row"
        rows = self.query(query, name=name, row=row, since=self._clock() - self._release_after)
        return {id: tuple(counts) for id, *counts in rows}

    def silent(self, name: str, row: str) -> list[str]:
        """Returns the other annotators who have a row open in a silent browser."""
        since = self._clock() - self._release_after
        return [other for (other,) in self.query(SILENT, row=row, name=name, since=since)]

    def write_edits(self, output: Path, item: Callable[[str], Item]) -> None:
        """Writes the current edits. Raises InputError if the file has lines not from this table."""
        edits, all_edits = (
            [files.json_line(edit_row(item(edit.id), edit)) for _, edit in self.select(condition)]
            for condition in ("standing AND event = 'edited'", "event = 'edited'")
        )
        with files.as_input_error(output, f"the edits are safe in {self.path}"):
            content = output.read_bytes() if output.exists() else b""
            *lines, torn = content.split(b"\n")  # an earlier version appended lines
            known = {b"", *all_edits, *(edit[: len(torn)] for edit in all_edits)}
            for number, line in enumerate([*(line + b"\n" for line in lines), torn], 1):
                if line not in known:
                    reason = f"is not a row of {self.path.name} beside it"
                    to_do = "move the file away, or choose another output"
                    raise InputError(f"{output}:{number}: {reason}; {to_do}")
            if content != b"".join(edits) or not output.exists():
                files.replace(output, edits)
