"""A cache of replies in SQLite; a stored reply is on the disk (fsync)."""

import contextlib
import fcntl
import os
from pathlib import Path

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.feedback.llm.client import Reply
from fgrlhf_jax.runtime import files
from fgrlhf_jax.runtime.database import Database

VERSION = 1  # of the cache's table
TABLE = f"""
CREATE TABLE replies (key TEXT PRIMARY KEY, text TEXT NOT NULL, stop TEXT NOT NULL,
  input_tokens INTEGER NOT NULL, output_tokens INTEGER NOT NULL) WITHOUT ROWID;
PRAGMA user_version = {VERSION}"""
BUSY_TIMEOUT = 60.0  # seconds to wait for other processes that write to it


class Cache:
    """Replies by key, in an SQLite file that processes share. Raises InputError if unusable."""

    def __init__(self, path: Path):
        advice = "name another cache; what it holds is kept"
        self._database = Database(path, f"cache {path}", advice, BUSY_TIMEOUT)
        with contextlib.ExitStack() as stack:
            stack.callback(self._database.close)
            with self._database.transaction():  # one process creates the table
                self._database.create(TABLE)
            ((version,),) = self._database.query("PRAGMA user_version")
            if version != VERSION:
                raise InputError(
                    f"{path}: is not a cache of this version (its version is {version}, not "
                    f"{VERSION}); name another cache, or move this file away"
                )
            lock, flags = path.with_name(f".{path.name}.lock"), os.O_CREAT | os.O_NOFOLLOW
            with files.as_input_error(lock):
                self._claims = os.open(lock, os.O_RDWR | flags, 0o666)
            stack.pop_all()

    def get(self, key: str) -> Reply | None:
        rows = self._database.query("SELECT * FROM replies WHERE key = :key", key=key)
        return Reply(*rows[0][1:]) if rows else None

    def put(self, key: str, reply: Reply) -> None:
        """Stores a reply, which is on the disk when this returns."""
        columns = "VALUES (:key, :text, :stop, :input_tokens, :output_tokens)"
        self._database.query(f"INSERT OR IGNORE INTO replies {columns}", key=key, **reply._asdict())

    def claim(self, key: str, release: bool = False) -> bool:
        """Claims a key until its release or the process's end; False if another process has it."""
        operation = fcntl.LOCK_UN if release else fcntl.LOCK_EX | fcntl.LOCK_NB
        try:  # locks a byte of the file per key; filelock only locks whole files
            fcntl.lockf(self._claims, operation, 1, int(key[:15], 16))
        except OSError as error:
            return error.errno in files.UNSUPPORTED_ERRNOS
        return True

    def close(self) -> None:
        self._database.close()
        os.close(self._claims)
