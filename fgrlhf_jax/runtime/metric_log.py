"""The metrics of a run: a JSONL file, a progress bar and, if wanted, TensorBoard."""

import functools
import math
from pathlib import Path

import jax
from tqdm import tqdm

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


def cut_rows(path: Path, step: int) -> None:
    """Leaves only the rows of steps up to ``step``: a run that goes on writes the others again."""
    files.write_jsonl(path, [row for row in files.read_jsonl(path) if row["step"] <= step])


def to_floats(tree) -> dict[str, float]:
    """Device scalars as Python floats, in one transfer."""
    return {name: float(value) for name, value in jax.device_get(tree).items()}


class Log:
    """Appends rows to ``metrics.jsonl`` and mirrors them to the progress bar and TensorBoard.

    On resume the rows after ``step`` (all of them at 0) are cut away, so that the file reads as if
    nothing had happened. Only process 0 writes. The fields in ``CLOCK`` are wall-clock
    measurements: the only ones that differ between two runs of one configuration on one device.
    """

    CLOCK = ("time", "tokens_per_second")  # and what is named CLOCK/…

    def __init__(self, folder: Path, *, step: int, steps: int, tensorboard: bool = False):
        self.path, self.board = folder / "metrics.jsonl", None
        self.writes = jax.process_index() == 0
        options = {"disable": not self.writes, "dynamic_ncols": True, "smoothing": 0.1}
        self.bar = tqdm(total=steps, initial=step, unit="step", **options)
        if not self.writes:
            return
        cut_rows(self.path, step or -1)
        with files.as_input_error(self.path):
            self.file = files.JsonlFile(self.path, durable=False)
        if tensorboard:
            from tensorboardX import SummaryWriter  # optional: the `tensorboard` extra

            self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def write(self, row: dict) -> None:
        """Writes one row, which must have ``step``; raises InputError where the disk is full."""
        if not self.writes:
            return
        none = {name for name, x in row.items() if isinstance(x, float) and not math.isfinite(x)}
        line = files.json_line(row | dict.fromkeys(none))  # JSON has no NaN and no infinity
        with files.as_input_error(self.path):
            self.file.append(line)
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
        if self.writes:
            self.bar.write(text)

    def close(self) -> None:
        self.bar.close()
        if self.writes:
            self.file.close()
        if self.board:
            self.board.close()
