"""An SQLite file that threads and processes share; its errors become InputErrors."""

import contextlib
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fgrlhf_jax.errors import InputError

REMEDIES = {
    sqlite3.SQLITE_BUSY: "another process keeps it; wait for it",
    **dict.fromkeys((sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR), "free some space"),
    **dict.fromkeys((sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB), "put back a copy"),
}


class Database:
    """A connection that every thread may use; committed data is on disk (fsync).

    Args:
      path: created if missing, with its folder.
      name: name of the file in messages.
      otherwise: alternative remedy in messages.
      timeout: seconds to wait for other processes.

    Every method raises InputError for errors of the file.
    """

    def __init__(self, path: Path, name: str, alternative: str, timeout: float = 30.0):
        self._name, self._alternative, self._lock = name, alternative, threading.RLock()
        options = {"timeout": timeout, "isolation_level": None, "check_same_thread": False}
        with self._faults_as_input_errors():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(path, **options)
        try:
            self.query("PRAGMA synchronous = FULL")
        except InputError:
            self.close()
            raise

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    def query(self, sql: str, **values: Any) -> list[tuple]:
        with self._lock, self._faults_as_input_errors():
            return self._connection.execute(sql, values).fetchall()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """An atomic transaction, on disk at the end; other threads and processes wait."""
        with self._lock, self._faults_as_input_errors(), self._connection:
            self._connection.execute("BEGIN IMMEDIATE")
            yield

    def create(self, schema: str) -> bool:
        """Creates the tables of a new file, within a transaction; returns whether it was new."""
        is_new = not self.query("SELECT 1 FROM sqlite_master")
        for statement in schema.split(";\n") if is_new else ():
            self.query(statement)
        return is_new

    @contextlib.contextmanager
    def _faults_as_input_errors(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            remedy = REMEDIES.get(code, "check its folder and its rights")
            raise InputError(
                f"{self._name}: cannot be used ({error}); {remedy}, or {self._alternative}"
            ) from error
