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
    """The log that belongs to a file of edits."""
    output = Path(output).resolve()
    return output.with_name(output.name + ".state.jsonl")


def read(output: str | os.PathLike, digest: str) -> list[Event]:
    """The events so far, of a log that another process may be writing; [] where there is none."""
    path = state_path(output)
    try:
        data = path.read_bytes() if path.exists() else b""
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    return _parse(path, data, digest)


def _parse(path: Path, data: bytes, digest: str) -> list[Event]:
    rows = files.parse_jsonl(data, path)
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


class Log:
    """Both files, for this process alone until :meth:`close`.

    Args:
      output: the file of edits.
      digest: hash of the input that the events are about.
      render: the bytes of the file of edits that follow from a list of events.

    Raises:
      InputError: when another process has the files, they belong to another digest, the edits are
        not those of the log, or something cannot be read or written.
    """

    def __init__(
        self, output: str | os.PathLike, digest: str, render: Callable[[Sequence[Event]], bytes]
    ):
        self.output, self.path = Path(output).resolve(), state_path(output)
        try:
            with contextlib.ExitStack() as stack:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                lock = files.Lock(self.path.with_name(f".{self.path.name}.lock"))
                stack.callback(lock.close)
                self._file = files.JsonlFile(self.path)
                stack.callback(self._file.close)
                self.events = _parse(self.path, self.path.read_bytes(), digest)
                self._restore_edits(render(self.events), render(self.events[:-1]))
                if not self._file.size:
                    self._file.append(files.json_line({"format": FORMAT, "input": digest}))
                files.sync_folder(self.path.parent)
                self._open = stack.pop_all()
        except BlockingIOError as error:
            raise InputError(
                f"{self.output}: another process is annotating into it; open its page, or stop it "
                "first"
            ) from error
        except OSError as error:
            raise InputError(
                f"{error.filename or self.path}: cannot be written ({error.strerror}); choose "
                "another output"
            ) from error

    def _restore_edits(self, edits: bytes, edits_before: bytes) -> None:
        """Writes the edits where they lag behind the log by its last event."""
        content = self.output.read_bytes() if self.output.exists() else None
        if content and not self._file.size:
            raise InputError(
                f"{self.output}: exists, but {self.path.name} beside it, which says what was "
                "decided, does not; choose another output"
            )
        if content is not None and content != edits_before and not edits.startswith(content):
            raise InputError(
                f"{self.output}: holds other edits than {self.path.name} tells of; undo the "
                "change, or move the file away to have it made again"
            )
        if content != edits:
            files.replace(self.output, [edits])
        self._edits_size = len(edits)

    def close(self) -> None:
        """Gives the files back to other processes."""
        if self._file is not None:
            self._file = None
            self._open.close()

    def write(
        self, events: Sequence[Event], *, added: bytes = b"", edits: bytes | None = None
    ) -> None:
        """Appends events, and ``added`` to the edits, or replaces these with ``edits``.

        Raises:
          InputError: when they are not on the disk; both files are then as before.
        """
        if self._file is None:
            raise InputError("not saved: the file has been closed; start the command again")
        size = self._file.size
        try:
            self._file.append(b"".join(map(files.json_line, events)))
            if edits is not None:
                files.replace(self.output, [edits])
                self._edits_size = len(edits)
            elif added:
                if self.output.stat().st_size != self._edits_size:
                    raise OSError(None, "another program has changed it", str(self.output))
                with contextlib.closing(
                    files.JsonlFile(self.output, size=self._edits_size)
                ) as file:
                    file.append(added)
                self._edits_size = file.size
        except OSError as error:
            self._file.cut(size)
            raise InputError(
                f"not saved: {error.filename or self.output.parent} cannot be written "
                f"({error.strerror}); free some space and try again, your text is still here"
            ) from error
        self.events += events
