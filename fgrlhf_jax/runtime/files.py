"""Files that survive a kill or a full disk: atomic writes, appended JSONL, locks."""

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import filelock

from fgrlhf_jax.errors import InputError

# Errors of file systems that cannot lock a file or fsync a folder.
UNSUPPORTED_ERRNOS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
RETRY_REMEDY = "correct this and run the same command again"
RERUN_REMEDY = "delete it and run the same command, which writes it again"


def advice(error: OSError, remedy: str = RETRY_REMEDY) -> str:
    """The remedy for a file that could not be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "free some space and run the same command again"
    return remedy


def system_error(error: Exception) -> OSError:
    """The OSError wrapped by a storage library's error, whose text has the error number."""
    match = re.search(r"\b(?:os_error_code='|code: )(\d+)", str(error))
    if code := int(match[1]) if match else getattr(error, "errno", None):
        return OSError(code, os.strerror(code))
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return OSError(0, lines[0][:100])


@contextlib.contextmanager
def as_input_error(path: Path, remedy: str = RETRY_REMEDY) -> Iterator[None]:
    """Turns an OSError into the InputError ``path: cannot be written (reason); advice``."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        full_remedy = advice(error, remedy)
        raise InputError(f"{path}: cannot be written ({reason}); {full_remedy}") from error


def replace(path: Path, chunks: Iterable[bytes]) -> None:
    """Writes a file atomically: it keeps its content until all ``chunks`` are on disk.

    Raises OSError if it cannot be written; the file then keeps its content.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    _remove_partial_files(path.parent)
    try:
        with partial.open("wb") as file:
            file.writelines(chunks)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()
    sync_folder(path.parent)


def _remove_partial_files(folder: Path) -> None:
    """Removes partial files that killed processes left in ``folder``."""
    for partial in folder.glob(".*.partial"):
        pid = partial.name.split(".")[-2]
        try:
            os.kill(int(pid), 0)
        except ProcessLookupError:
            with contextlib.suppress(OSError):
                partial.unlink()
        except (ValueError, OSError, OverflowError):  # not this package's file; another user's
            continue


def sync_folder(path: Path) -> None:
    """Fsyncs a folder, which makes the names of its files durable, if the file system can."""
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    except OSError as error:
        if error.errno not in UNSUPPORTED_ERRNOS:
            raise
    finally:
        os.close(folder)


def _write(path: str | os.PathLike, chunks: Iterable[bytes]) -> None:
    path = Path(path)
    with as_input_error(path, "choose another folder"):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace(path, chunks)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes a text file atomically and creates its folder.

    Raises InputError if it cannot be written; the file then keeps its content.
    """
    _write(path, [text.encode(errors="backslashreplace")])


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Writes ``value`` as indented JSON, as :func:`write_text`."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_jsonl(path: str | os.PathLike, rows: Iterable[Any]) -> None:
    """Writes one JSON object per line (see :func:`json_line`), as :func:`write_text`."""
    _write(path, map(json_line, rows))


def json_line(row: Any) -> bytes:
    """A dict or dataclass as a line of JSON; values without a JSON type, such as dates, as text."""

    def convert(value):
        return dataclasses.asdict(value) if dataclasses.is_dataclass(value) else str(value)

    text = json.dumps(row, ensure_ascii=False, default=convert) + "\n"
    return text.encode(errors="backslashreplace")  # escapes unpaired surrogates as JSON does


def read_json(path: str | os.PathLike, like: Any, remedy: str = RERUN_REMEDY) -> Any:
    """Reads a JSON file that this package wrote.

    Args:
      like: an example of its structure: a dict with required keys, a list with an element, ….
      remedy: the remedy for a damaged file, for the message.

    Raises:
      InputError: the file is missing, empty, truncated or of another structure.
    """
    try:
        text = Path(path).read_bytes()
        value = json.loads(text)
    except OSError as error:
        fault = "is missing" if isinstance(error, FileNotFoundError) else f"({error.strerror})"
    except (ValueError, RecursionError):
        fault = "is damaged or cut short" if text.strip() else "is empty"
    else:
        if not (fault := _difference(value, like)):
            return value
        fault = f"is damaged: {fault}"
    raise InputError(f"{path}: {fault}; {remedy}")


def _difference(value: Any, like: Any, name: str = "") -> str:
    """How the structure of ``value`` differs from ``like``; "" if it does not."""
    if isinstance(like, float) and type(value) is int:
        return ""
    if type(value) is not type(like):
        return f"{name or 'the content'} is not a {type(like).__name__}"
    if isinstance(like, dict):
        children = [(value.get(key), child, key) for key, child in like.items()]
    else:
        is_list = isinstance(like, list) and like
        children = [(item, like[0], name) for item in value] if is_list else []
    return next(filter(None, (_difference(*child) for child in children)), "")


def parse_jsonl(data: bytes, path: str | os.PathLike, remedy: str = "put back a copy") -> list:
    """Parses JSON lines; leaves out a last line without line end, which a kill has truncated.

    Raises InputError for any other line that is not JSON, with ``path`` and the line number.
    """
    rows = []
    for number, line in enumerate(data.split(b"\n")[:-1], 1):
        try:
            rows.append(json.loads(line))
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"{path}:{number}: this row is damaged (it is not JSON); {remedy}"
            ) from error
    return rows


def read_jsonl(path: str | os.PathLike) -> list:
    """The rows of a file, see :func:`parse_jsonl`; [] if it does not exist."""
    path = Path(path)
    return parse_jsonl(path.read_bytes(), path) if path.exists() else []


def digest(path: str | os.PathLike) -> str:
    """The SHA-256 of a file's content; "" if it does not exist."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return ""


class JsonlFile:
    """A file to which whole lines are appended; ``size`` is the end of the last line, in bytes.

    Args:
      path: created if missing; a truncated last line is removed.
      size: end of the whole lines, if known.
      durable: whether lines are on disk (fsync) when :meth:`append` returns.

    Raises:
      OSError: the file cannot be opened.
    """

    def __init__(self, path: Path, *, size: int | None = None, durable: bool = True):
        self.path, self.size, self.durable = path, size, durable
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        if size is None:
            self.size = os.pread(self._file, os.fstat(self._file).st_size, 0).rfind(b"\n") + 1
        with contextlib.suppress(OSError):  # if the disk fails, the next append raises
            os.ftruncate(self._file, self.size)

    def append(self, lines: bytes) -> None:
        """Appends whole lines; raises OSError on failure, and the file then keeps its content."""
        try:
            if os.fstat(self._file).st_size > self.size:
                os.ftruncate(self._file, self.size)
            written = 0
            while written < len(lines):
                written += os.pwrite(self._file, lines[written:], self.size + written)
            if self.durable:
                os.fsync(self._file)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, self.size)
            raise
        self.size += len(lines)

    def close(self) -> None:
        os.close(self._file)


class Lock:
    """A lock file that one process holds until :meth:`close` or until it ends, even by a kill.

    Child processes do not hold the lock. On a file system without locks, every process gets it.

    Args:
      path: the lock file, in an existing folder. It contains the PID of its owner.
      wait: wait for another process that holds it.

    Raises:
      BlockingIOError: another process holds it.
      OSError: the file cannot be created.
    """

    def __init__(self, path: Path, *, wait: bool = False):
        self.path = path
        path.parent.stat()  # filelock would create the folder
        if path.is_symlink():  # its target would be overwritten
            raise OSError(errno.ELOOP, "the lock file is a link; remove it", str(path))
        self._lock = filelock.FileLock(path, thread_local=False, fallback_to_soft=False)
        try:
            self._lock.acquire(blocking=wait)
        except filelock.Timeout as error:
            raise BlockingIOError(errno.EAGAIN, "another process has it", str(path)) from error
        except OSError as error:
            if error.errno not in UNSUPPORTED_ERRNOS:
                raise
        with contextlib.suppress(OSError):  # on a full disk, the next file raises
            path.write_text(str(os.getpid()), encoding="ascii")
        self._status = path.stat()

    @property
    def valid(self) -> bool:
        """Whether the file still is the locked one; the folder may have been deleted."""
        try:
            return os.path.samestat(self._status, self.path.stat())
        except OSError:
            return False

    def close(self) -> None:
        if self.valid:
            with contextlib.suppress(OSError):
                self.path.unlink()
        self._lock.release()
