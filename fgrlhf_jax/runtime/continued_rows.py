"""Writes a file of rows and one of rejected rows beside it, and resumes after an interruption.

Every row has a key: a hash of its inputs. By the keys a file of the same inputs is recognised. An
incomplete last line is removed. A row is on the disk (fsync) before the next one is computed.
"""

import contextlib
from collections.abc import Callable, Generator, Sequence
from pathlib import Path

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.runtime import files

KEY = "request_key"  # the field of a row with its key


def rejected_path(output: Path) -> Path:
    """Returns the path of the file of rejected rows, beside ``output``."""
    return output.with_name(f"{output.stem}.rejected{output.suffix}")


def append_rows(
    output: Path, keys: Sequence[str], rows: Callable[[int], Generator[tuple[dict, bool]]]
) -> tuple[int, int]:
    """Appends one row for each key, in order, to ``output`` or to the file of rejected rows.

    Args:
      output: a JSONL file, new or resumed after any interruption; a resumed file ends up the same
        byte for byte as an uninterrupted one.
      keys: a hash of everything that determines a row, for all rows of the complete file.
      rows: function from the number of existing rows to a generator of the others: (row, whether
        it goes to ``output``).

    Returns the number of rows in each file. Raises InputError if their keys differ, if they cannot
    be written, or if another process is writing them.
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
    """Returns the number of rows in each file; together they must have the first ``keys``."""
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
