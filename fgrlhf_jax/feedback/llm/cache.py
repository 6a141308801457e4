"""What survives a killed process: a cache of replies, and a file of rows that is continued.

Both are on the disk (fsync) before the next step is taken. Every row holds the key of its request,
so that an interrupted file is recognised, cut where its last line is torn, and continued.
"""

import contextlib
import fcntl
import os
from collections.abc import Callable, Generator, Sequence
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
BUSY_TIMEOUT = 60.0  # seconds to wait for other processes that use it
KEY = "request_key"  # the field of a row with the key of its request


class Cache:
    """Replies by key, in an SQLite file that processes share; InputError where it is unusable."""

    def __init__(self, path: Path):
        advice = "name another cache; what it holds is kept"
        self._database = Database(path, f"cache {path}", advice, BUSY_TIMEOUT)
        with contextlib.ExitStack() as stack:
            stack.callback(self._database.close)
            with self._database.transaction():  # no other process creates the same table now
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
        """On the disk when it returns."""
        columns = "VALUES (:key, :text, :stop, :input_tokens, :output_tokens)"
        self._database.query(f"INSERT OR IGNORE INTO replies {columns}", key=key, **reply._asdict())

    def claim(self, key: str, release: bool = False) -> bool:
        """Whether no other process has claimed a key; lasts until released, or this one's end."""
        operation = fcntl.LOCK_UN if release else fcntl.LOCK_EX | fcntl.LOCK_NB
        try:  # a byte of the lock file stands for a key
            fcntl.lockf(self._claims, operation, 1, int(key[:15], 16))
        except OSError as error:
            return error.errno in files.UNSUPPORTED_ERRNOS
        return True

    def close(self) -> None:
        self._database.close()
        os.close(self._claims)


def rejected_path(output: Path) -> Path:
    """The file beside ``output`` for rejected rows."""
    return output.with_name(f"{output.stem}.rejected{output.suffix}")


def append_rows(
    output: Path, keys: Sequence[str], rows: Callable[[int], Generator[tuple[dict, bool]]]
) -> tuple[int, int]:
    """Appends one row for each key, in order, to ``output`` or to the file of rejected rows.

    Args:
      output: a JSONL file, continued where it stopped, however it stopped: it ends up byte for byte
        as if it never had.
      keys: the key of everything that determines a row, for all rows of the complete file.
      rows: called with the number of rows that exist already, gives the others: (row, whether it
        goes to ``output``).

    Returns how many rows each file holds.
    """
    paths = (Path(output), rejected_path(Path(output)))
    with contextlib.ExitStack() as stack:
        try:
            lock = files.Lock(paths[0].with_name(f".{paths[0].name}.lock"))
            stack.callback(lock.close)
            counts = _count_written(paths, keys)
            writers = [stack.enter_context(contextlib.closing(files.JsonlFile(p))) for p in paths]
        except BlockingIOError as error:
            raise InputError(f"{output}: another process is writing it; wait for it") from error
        except OSError as error:
            raise InputError(f"{output}: cannot be written ({error.strerror})") from error
        done = sum(counts)
        remaining = stack.enter_context(contextlib.closing(rows(done)))
        for key, (row, accepted) in zip(keys[done:], remaining, strict=True):
            number = 0 if accepted else 1
            with files.as_input_error(paths[number]):
                writers[number].append(files.json_line({**row, KEY: key[:16]}))
            counts[number] += 1
        if not counts[1]:
            paths[1].unlink(missing_ok=True)
    return counts[0], counts[1]


def _count_written(paths: Sequence[Path], keys: Sequence[str]) -> list[int]:
    """How many rows each file has, which together must be of the first of ``keys``, in order."""
    to_do, counts = "choose another output, or move this one away", [0] * len(paths)
    contents = [path.read_bytes() if path.exists() else b"" for path in paths]
    rows = [files.parse_jsonl(*each, to_do) for each in zip(contents, paths, strict=True)]
    written = [[isinstance(row, dict) and row.get(KEY) for row in of_file] for of_file in rows]
    for key in keys:
        heads = [row_keys[n : n + 1] for n, row_keys in zip(counts, written, strict=True)]
        if [key[:16]] not in heads:
            break
        counts[heads.index([key[:16]])] += 1
    for path, row_keys, count in zip(paths, written, counts, strict=True):
        if count < len(row_keys):
            raise InputError(
                f"{path}:{count + 1}: does not belong to row {sum(counts) + 1} of the input: it is "
                f"no output of this command, or what is asked with the input has changed; {to_do}"
            )
    return counts
