"""Two files that never disagree: a log of events, and the edits that follow from it.

    OUTPUT.jsonl              the edits
    OUTPUT.jsonl.state.jsonl  the log; its first line says which input it belongs to

An event is one line of the log. It is on the disk (fsync), and the edits with it, before
:meth:`Log.write` returns; where either cannot be written both are put back as they were. A process
that is killed in between leaves edits that lag behind the log by one event, and opening the files
again finishes the work. Any other difference is refused: somebody else has changed the edits.
"""

import contextlib
import fcntl
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fgrlhf_jax.errors import InputError

FORMAT = "fgrlhf_jax annotations, version 1"
Event = dict[str, Any]


def state_path(output: str | os.PathLike) -> Path:
    output = Path(output).resolve()
    return output.with_name(output.name + ".state.jsonl")


def line(row: dict) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode() + b"\n"


def read(output: str | os.PathLike, digest: str) -> list[Event]:
    """The events so far, of a log that another process may be writing; [] where there is none."""
    path = state_path(output)
    try:
        data = path.read_bytes() if path.exists() else b""
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    return _events(path, data, digest)


class Log:
    """Both files, for this process alone until :meth:`close`.

    Args:
      output: the file of edits.
      digest: of what the events are about.
      edits: the bytes of the file of edits that follow from a list of events.

    Raises:
      InputError: when another process has the files, they belong to another digest, the edits are
        not those of the log, or something cannot be read or written.
    """

    def __init__(
        self,
        output: str | os.PathLike,
        digest: str,
        edits: Callable[[Sequence[Event]], bytes],
    ):
        self.output, self.path = Path(output).resolve(), state_path(output)
        self._file = _open_locked(self.path)
        try:
            data = self.path.read_bytes()
            self.events = _events(self.path, data, digest)
            self._size = data.rfind(b"\n") + 1  # a line that a crash tore never counted
            now, before = edits(self.events), edits(self.events[:-1])
            self._check_edits(now, before)
            self._edits_size = len(now)
            if not self._size:
                self._append(line({"format": FORMAT, "input": digest}))
            _sync_folder(self.path.parent)
        except BaseException as error:
            self.close()
            if not isinstance(error, OSError):
                raise
            where = error.filename or self.path
            raise InputError(f"{where}: cannot be used ({error.strerror})") from error

    def _check_edits(self, now: bytes, before: bytes) -> None:
        found = self.output.read_bytes() if self.output.exists() else None
        if found and not self._size:
            raise InputError(
                f"{self.output}: exists, but {self.path.name} beside it, which says what was "
                "decided, does not; choose another output"
            )
        if found is not None and found != before and not now.startswith(found):
            raise InputError(
                f"{self.output}: holds other edits than {self.path.name} tells of; undo the "
                "change, or move the file away to have it made again"
            )
        if found != now:
            _replace(self.output, now)

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
        self._file = None

    def write(
        self, events: Sequence[Event], *, added: bytes = b"", edits: bytes | None = None
    ) -> None:
        """Append events, and `added` to the edits, or replace these with `edits`.

        Raises:
          InputError: when it is not on the disk; both files are then as before.
        """
        if self._file is None:
            raise InputError("not saved: the file has been closed; start the command again")
        before = self._size
        try:
            self._append(b"".join(map(line, events)))
            if edits is not None:
                _replace(self.output, edits)
                self._edits_size = len(edits)
            elif added:
                self._add(added)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, before)
            self._size = before
            raise InputError(
                f"not saved: {error.filename or self.output.parent} cannot be written "
                f"({error.strerror}); free some space and try again, your text is still here"
            ) from error
        self.events += events

    def _append(self, data: bytes) -> None:
        _write_at(self._file, data, self._size)
        self._size += len(data)

    def _add(self, data: bytes) -> None:
        file = os.open(self.output, os.O_WRONLY | os.O_CLOEXEC)
        try:
            if os.fstat(file).st_size != self._edits_size:
                raise OSError(None, "another program has changed it", str(self.output))
            _write_at(file, data, self._edits_size)
        finally:
            os.close(file)
        self._edits_size += len(data)


def _open_locked(path: Path) -> int:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written ({error.strerror}); choose another output"
        ) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(file)
        raise InputError(
            f"{path}: another process is annotating into it; open its page, or stop it first"
        ) from error
    except OSError:  # a file system without locks
        pass
    return file


def _events(path: Path, data: bytes, digest: str) -> list[Event]:
    lines = data[: data.rfind(b"\n") + 1].splitlines()
    try:
        rows = [json.loads(row) for row in lines]
    except ValueError as error:
        raise InputError(f"{path}: is damaged ({error}); put back a copy of it") from error
    if not rows:
        return []
    head, *events = rows
    if not isinstance(head, dict) or head.get("format") != FORMAT:
        raise InputError(f"{path}: is not of this version ({FORMAT}); choose another output")
    if head.get("input") != digest:
        raise InputError(
            f"{path}: was begun with another input, or the input has changed since; put it back "
            "or choose another output"
        )
    return events


def _write_at(file: int, data: bytes, offset: int) -> None:
    """Write and fsync at the end of a file, or leave it as it was."""
    try:
        if os.fstat(file).st_size > offset:  # what an earlier failure could not take back
            os.ftruncate(file, offset)
        done = 0
        while done < len(data):
            done += os.pwrite(file, data[done:], offset + done)
        os.fsync(file)
    except OSError:
        with contextlib.suppress(OSError):
            os.ftruncate(file, offset)
        raise


def _replace(path: Path, data: bytes) -> None:
    """All or nothing, and on the disk."""
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise
    _sync_folder(path.parent)


def _sync_folder(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
