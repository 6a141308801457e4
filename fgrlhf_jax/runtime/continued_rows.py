"""A file of rows that is continued after an interruption, and beside it a file of rejected rows.

Every row holds the key of what determines it, so that an interrupted file is recognised, cut where
its last line is torn, and continued. A row is on the disk (fsync) before the next one is made.
"""

import contextlib
from collections.abc import Callable, Generator, Sequence
from pathlib import Path

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.runtime import files

KEY = "request_key"  # the field of a row with its key


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

    Returns how many rows each file holds. Raises InputError if they have other keys, or cannot be
    written, or if another process writes them.
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
