"""The SQLite table of everything that annotators did; decisions that are taken back stay in it.

    event     row  annotator  text
    input                     digest of what is annotated: the first event
    open      id   name       the text to go on with, where a decision was taken back
    draft     id   name       what was typed so far
    edited, fine, skipped     a decision: the response after it
    closed    id   name       put back undecided

`standing` marks how an annotator and a row stand now; it is a unique index, and so is the one row
that an annotator has open. Several processes may use the file at once.
"""

import contextlib
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.feedback.annotation.items import OTHER_INPUT, VERDICTS, Decision, Item, edit_row
from fgrlhf_jax.runtime import files

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
  seen REAL NOT NULL          -- last sign of life of a browser that has the row open
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


class Events:
    """The table, made where it is missing. Its other methods are called inside a `transaction`."""

    def __init__(self, path: Path, clock: Callable[[], float]):
        self.path, self._clock = path, clock
        self._lock = threading.Lock()
        options = {"timeout": 30, "isolation_level": None, "check_same_thread": False}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, **options)
            self._db.execute("PRAGMA synchronous = FULL")
        except (OSError, sqlite3.Error) as error:
            raise InputError(
                f"{path}: cannot be opened ({error}); choose another output"
            ) from error

    def use_wal(self) -> None:
        """Makes a commit one write at the end of a log, where the file system can do that."""
        with self._lock, contextlib.suppress(sqlite3.OperationalError):
            self._db.execute("PRAGMA journal_mode = WAL")

    def close(self) -> None:
        with self._lock:
            self._db.close()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing, on the disk at the end; other threads and processes wait."""
        try:
            with self._lock, self._db:
                self._db.execute("BEGIN IMMEDIATE")
                yield
        except sqlite3.Error as error:
            raise InputError(
                f"not saved: {self.path}: {error}; free some space, or put back a copy if it is "
                "damaged, and try again: your text is still here"
            ) from error

    def begin(self, digest: str) -> bool:
        """Whether the table was missing and is made; InputError where it is of another input."""
        is_new = not self.query("SELECT 1 FROM sqlite_master")
        if is_new:
            for statement in SCHEMA.split(";\n"):
                self.query(statement)
            self.add(INPUT, text=digest)
        if self.query("SELECT event, text FROM events ORDER BY n LIMIT 1") != [(INPUT, digest)]:
            raise InputError(f"{self.path}: {OTHER_INPUT}")
        return is_new

    def query(self, sql: str, **values: Any) -> list[tuple]:
        return self._db.execute(sql, values).fetchall()

    def select(self, condition: str, **values: Any) -> list[tuple[float, Decision]]:
        """(time, decision or draft) of the events for which a condition holds."""
        query = "SELECT time, details, row, annotator, event, text FROM events WHERE"
        rows = self.query(f"{query} {condition}", **values)
        return [(time, Decision(*texts).with_details(details)) for time, details, *texts in rows]

    def add(self, event: str, row: str = "", annotator: str = "", **columns: Any) -> None:
        """Adds an event, which stands instead of the one before it unless it is a draft."""
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

    def write_edits(self, output: Path, item: Callable[[str], Item]) -> None:
        """Writes those that stand; InputError where the file holds others than this table's."""
        edits = self.select("standing AND event = 'edited' ORDER BY n")
        lines = [files.json_line(edit_row(item(edit.id), edit)) for _, edit in edits]
        with files.as_input_error(output, f"the edits are safe in {self.path}"):
            content = output.read_bytes() if output.exists() else b""
            if not self._holds_only_edits(content, output, lines):
                raise InputError(
                    f"{output}: holds other rows than {self.path.name} beside it; move the file "
                    "away, or choose another output"
                )
            if content != b"".join(lines) or not output.exists():
                files.replace(output, lines)

    def _holds_only_edits(self, content: bytes, output: Path, lines: list[bytes]) -> bool:
        """Whether all rows were edits once; the last one may be torn, of a line to be written."""
        query = "SELECT DISTINCT row, annotator, text FROM events WHERE event = 'edited'"
        known, names = set(self.query(query)), ("id", "annotator", "edited")
        rows = files.parse_jsonl(content, output, "move the file away")
        torn = content[content.rfind(b"\n") + 1 :]
        return (not torn or any(line.startswith(torn) for line in lines)) and all(
            isinstance(row, dict) and tuple(str(row.get(name)) for name in names) in known
            for row in rows
        )
