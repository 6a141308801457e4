"""The metrics of a run: a JSONL file, a progress bar and, if wanted, TensorBoard."""

import contextlib
import functools
import hashlib
import math
from pathlib import Path

import jax
from tqdm import tqdm

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.runtime import files


@functools.cache
def _compilation_times() -> list[float]:
    times = []

    def record(event: str, duration: float, **_) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            times.append(duration)

    jax.monitoring.register_event_duration_secs_listener(record)
    return times


def compilations() -> int:
    """How many programs XLA has compiled (or taken from its cache) since the first call."""
    return len(_compilation_times())


class RowFile:
    """A JSONL file of a run, whose rows the checkpoints vouch for.

    Args:
      saved: ``state`` at the last checkpoint, {} for none: rows behind it are cut away, since the
        run makes them again.

    Raises:
      InputError: when the rows up to there are not those that were saved; when it cannot be
        written.
    """

    def __init__(self, path: Path, saved: dict):
        rows = check_rows(path, saved)
        with files.as_input_error(path):
            files.replace(path, [rows])
        self.path, self._size, self._digest = path, len(rows), hashlib.sha256(rows)

    @property
    def state(self) -> dict:
        """The size of the file and the digest of its content."""
        return {"bytes": self._size, "sha256": self._digest.hexdigest()}

    def append(self, *rows: dict) -> None:
        """Writes rows, or raises InputError where the disk is full."""
        lines = b"".join(map(files.json_line, rows))
        with files.as_input_error(self.path):
            file = files.JsonlFile(self.path, size=self._size, durable=False)
            with contextlib.closing(file):
                file.append(lines)
        self._size = file.size
        self._digest.update(lines)


def check_rows(path: Path, saved: dict) -> bytes:
    """The lines of a file that its :attr:`RowFile.state` vouches for.

    Raises InputError where they are not as they were, naming the first line that is no JSON.
    """
    content = path.read_bytes() if saved and path.exists() else b""
    rows = content[: saved.get("bytes", 0)]
    if not saved or hashlib.sha256(rows).hexdigest() == saved["sha256"]:
        return rows
    to_do = "put back a copy of the file, or start in a new run_dir"
    is_cut = len(rows) < saved["bytes"]
    files.parse_jsonl(rows if is_cut else rows.removesuffix(b"\n") + b"\n", path, to_do)
    if not path.exists():
        fault = ": is missing"
    elif is_cut:
        fault = f": the rows after line {rows.count(10)} are missing"
    else:
        fault = ": is not as the run left it"
    raise InputError(f"{path}{fault}; {to_do}")


def to_floats(tree) -> dict[str, float]:
    """Device scalars as Python floats, in one transfer."""
    return {name: float(value) for name, value in jax.device_get(tree).items()}


class Log:
    """Appends rows to ``metrics.jsonl`` and mirrors them to the progress bar and TensorBoard.

    Only process 0 writes. The fields in ``CLOCK`` are wall-clock measurements: the only ones that
    differ between two runs of one configuration on one device.

    Args:
      steps, step: updates of the whole run, and those that are made already.
      saved: see :class:`RowFile`.
    """

    CLOCK = ("time", "tokens_per_second")  # and what is named CLOCK/…

    def __init__(
        self, folder: Path, steps: int, step: int, saved: dict, *, tensorboard: bool = False
    ):
        self.board = self.file = None
        writes = jax.process_index() == 0
        options = {"disable": not writes, "dynamic_ncols": True, "smoothing": 0.1}
        self.bar = tqdm(total=steps, initial=step, unit="step", **options)
        if not writes:
            return
        self.file = RowFile(folder / "metrics.jsonl", saved)
        if tensorboard:
            from tensorboardX import SummaryWriter  # optional: the `tensorboard` extra

            self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    @property
    def state(self) -> dict:
        return self.file.state if self.file else {}

    def write(self, row: dict) -> None:
        """Writes one row, which must have ``step``; raises InputError where the disk is full."""
        if not self.file:
            return
        none = {name for name, x in row.items() if isinstance(x, float) and not math.isfinite(x)}
        self.file.append(row | dict.fromkeys(none))  # JSON has no NaN and no infinity
        if self.board:
            for name, value in row.items():
                if name != "step" and isinstance(value, int | float):
                    self.board.add_scalar(name, value, row["step"])

    def progress(self, step: int, **fields: str) -> None:
        """Moves the bar to ``step`` and shows the fields behind it."""
        self.bar.set_postfix(fields, refresh=False)
        self.bar.update(step - self.bar.n)

    def print(self, text: str) -> None:
        """Prints a line above the bar."""
        if self.file:
            self.bar.write(text)

    def close(self) -> None:
        self.bar.close()
        if self.board:
            self.board.close()
