"""Two files that never disagree: a log of events, and the edits that follow from it.

    OUTPUT.jsonl              the edits
    OUTPUT.jsonl.state.jsonl  the log; its first line says which input it belongs to

An event is one line of the log. It is on the disk (fsync), and the edits with it, before
:meth:`Log.write` returns; where either cannot be written both are put back as they were. A process
that is killed in between leaves edits that lag behind the log by one event, and opening the files
again finishes the work. Any other difference is refused: somebody else has changed the edits.
"""

import contextlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.runtime import files

FORMAT = "fgrlhf_jax annotations, version 1"
Event = dict[str, Any]


def state_path(output: str | os.PathLike) -> Path:
    output = Path(output).resolve()
    return output.with_name(output.name + ".state.jsonl")


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
        self._closing = contextlib.ExitStack()
        self._open()
        try:
            self.events = _events(self.path, self.path.read_bytes(), digest)
            now, before = edits(self.events), edits(self.events[:-1])
            self._check_edits(now, before)
            self._edits_size = len(now)
            if not self._file.size:
                self._file.append(files.json_line({"format": FORMAT, "input": digest}))
            files.sync_folder(self.path.parent)
        except BaseException as error:
            self.close()
            if not isinstance(error, OSError):
                raise
            where = error.filename or self.path
            raise InputError(f"{where}: cannot be used ({error.strerror})") from error

    def _open(self) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            lock = files.Lock(self.path.with_name(f".{self.path.name}.lock"))
            self._closing.callback(lock.close)
            self._file = files.JsonlFile(self.path)
            self._closing.callback(self._file.close)
        except BlockingIOError as error:
            raise InputError(
                f"{self.path}: another process is annotating into it; open its page, or stop it "
                "first"
            ) from error
        except OSError as error:
            self.close()
            raise InputError(
                f"{self.path}: cannot be written ({error.strerror}); choose another output"
            ) from error

    def _check_edits(self, now: bytes, before: bytes) -> None:
        found = self.output.read_bytes() if self.output.exists() else None
        if found and not self._file.size:
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
            files.replace(self.output, [now])

    def close(self) -> None:
        self._closing.close()
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
        before = self._file.size
        try:
            self._file.append(b"".join(map(files.json_line, events)))
            if edits is not None:
                files.replace(self.output, [edits])
                self._edits_size = len(edits)
            elif added:
                self._add(added)
        except OSError as error:
            self._file.cut(before)
            raise InputError(
                f"not saved: {error.filename or self.output.parent} cannot be written "
                f"({error.strerror}); free some space and try again, your text is still here"
            ) from error
        self.events += events

    def _add(self, data: bytes) -> None:
        if self.output.stat().st_size != self._edits_size:
            raise OSError(None, "another program has changed it", str(self.output))
        with contextlib.closing(files.JsonlFile(self.output, size=self._edits_size)) as edits:
            edits.append(data)
        self._edits_size = edits.size


def _events(path: Path, data: bytes, digest: str) -> list[Event]:
    rows, size = files.parse_jsonl(data)
    if b"\n" in data[size:]:
        raise InputError(
            f"{path}: is damaged (line {len(rows) + 1} is no JSON); put back a copy of it"
        )
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
