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
import json
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.feedback.annotation.items import VERDICTS, Decision

INPUT, OPEN, DRAFT, CLOSED = "input", "open", "draft", "closed"
SCHEMA = """
CREATE TABLE events (
  n INTEGER PRIMARY KEY,
  time REAL NOT NULL,  -- seconds since 1970
  event TEXT NOT NULL,
  row TEXT,            -- its id in the input
  annotator TEXT,
  text TEXT,
  seconds REAL NOT NULL DEFAULT 0,
  tags TEXT NOT NULL DEFAULT '[]',
  comment TEXT NOT NULL DEFAULT '',
  over_limit INTEGER NOT NULL DEFAULT 0,
  standing INTEGER NOT NULL DEFAULT 0,
  seen REAL            -- last sign of life of a browser that has the row open
);
CREATE UNIQUE INDEX standing ON events (row, annotator) WHERE standing;
CREATE UNIQUE INDEX one_open_row ON events (annotator) WHERE standing AND event = 'open';
CREATE INDEX by_annotator ON events (annotator, row);
"""
COLUMNS = "time, row, annotator, event, text, seconds, tags, comment, over_limit"


class Events:
    """The table, made where it is missing. What is called after `transaction` is inside of one.

    Raises:
      InputError: for a file that cannot be opened.
    """

    def __init__(self, path: Path, clock: Callable[[], float]):
        self.path, self._clock = path, clock
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(
                path, timeout=30, isolation_level=None, check_same_thread=False
            )
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
        """Makes the table, if it is missing, for the input of this digest.

        Returns:
          Whether it was made.

        Raises:
          InputError: where it is of another input.
        """
        is_new = not self.query("SELECT 1 FROM sqlite_master")
        if is_new:
            for statement in SCHEMA.split(";"):
                self._db.execute(statement)
            self.add(INPUT, text=digest)
        if self.query("SELECT event, text FROM events ORDER BY n LIMIT 1") != [(INPUT, digest)]:
            raise InputError(
                f"{self.path}: was begun with another input, or the input has changed since; put "
                "it back or choose another output"
            )
        return is_new

    def query(self, sql: str, **values: Any) -> list[tuple]:
        return self._db.execute(sql, values).fetchall()

    def select(self, condition: str, **values: Any) -> list[tuple[float, Decision]]:
        """(time, decision or draft) of the events for which a condition holds."""
        return [
            (time, Decision(*texts, tuple(json.loads(tags)), comment, bool(over_limit)))
            for time, *texts, tags, comment, over_limit in self.query(
                f"SELECT {COLUMNS} FROM events WHERE {condition}", **values
            )
        ]

    def add(self, event: str, row: str | None = None, annotator: str = "", **columns: Any) -> None:
        """Adds an event, which stands instead of the one before it unless it is a draft."""
        now, standing = self._clock(), event in (OPEN, *VERDICTS)
        values = {"time": now, "event": event, "row": row, "annotator": annotator}
        values |= {"standing": standing, "seen": now, **columns}
        if standing or event == CLOSED:
            self.query(
                "UPDATE events SET standing = 0 WHERE standing AND annotator = :annotator "
                "AND (row = :row OR event = 'open' AND :event = 'open')",
                **values,
            )
        names = ", ".join(f":{name}" for name in values)
        self.query(f"INSERT INTO events ({', '.join(values)}) VALUES ({names})", **values)

    def add_decision(self, decision: Decision) -> None:
        self.add(decision.verdict, decision.id, decision.annotator, **columns_of(decision))

    def change(self, n: int, draft: Decision) -> None:
        """Puts a later draft in the place of one."""
        columns = columns_of(draft)
        changes = ", ".join(f"{name} = :{name}" for name in columns)
        self.query(f"UPDATE events SET {changes} WHERE n = :n", n=n, **columns)


def columns_of(decision: Decision) -> dict[str, Any]:
    """What an event has of a decision besides its verdict, row and annotator."""
    return {
        "text": decision.text,
        "seconds": decision.seconds,
        "tags": json.dumps(decision.tags),
        "comment": decision.comment,
        "over_limit": decision.over_limit,
    }
