"""The metrics of a run: a JSONL file, a progress bar and, optionally, TensorBoard."""

import contextlib
import functools
import hashlib
import math
import resource
import time
from pathlib import Path

import jax
from tqdm import tqdm

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.runtime import accelerators, files, multihost
from fgrlhf_jax.runtime.checkpoint import Checkpoints


@functools.cache
def _compilation_times() -> list[float]:
    times = []

    def record(event: str, duration: float, **_) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            times.append(duration)

    jax.monitoring.register_event_duration_secs_listener(record)
    return times


def compilations() -> int:
    """Number of programs that XLA has compiled (or loaded from its cache) since the first call."""
    return len(_compilation_times())


class RowFile:
    """A JSONL file of a run, whose size and digest are part of every checkpoint.

    ``saved`` is the ``state`` at the last checkpoint, {} for none. Later rows are removed, since
    the run writes them again. Raises InputError if the rows up to there have changed, or if the
    file cannot be written.
    """

    def __init__(self, path: Path, saved: dict):
        rows = check_rows(path, saved)
        with files.as_input_error(path):
            files.replace(path, [rows])
        self.path, self._size, self._digest = path, len(rows), hashlib.sha256(rows)

    @property
    def state(self) -> dict:
        """The size of the file and the SHA-256 of its content."""
        return {"bytes": self._size, "sha256": self._digest.hexdigest()}

    def append(self, *rows: dict) -> None:
        """Appends rows; raises InputError if the disk is full."""
        lines = b"".join(map(files.json_line, rows))
        with files.as_input_error(self.path):
            file = files.JsonlFile(self.path, size=self._size, durable=False)
            with contextlib.closing(file):
                file.append(lines)
        self._size = file.size
        self._digest.update(lines)


def device_rates(flops: float, tokens: int, seconds: float) -> dict[str, float]:
    """Rates of one device; without ``mfu`` if the device's peak is unknown, as for CPUs.

    If the FLOPs are unknown, ``flops`` is 0.
    """
    device_seconds = seconds * jax.device_count()
    rates = {"tokens_per_second/device": tokens / device_seconds}
    if flops:
        rates["tflops_per_device"] = flops / device_seconds / 1e12
        if device := accelerators.find(jax.devices()[0].device_kind):
            rates["mfu"] = flops / device_seconds / device.flops
    return rates


def check_rows(path: Path, saved: dict) -> bytes:
    """The lines of a file that its saved :attr:`RowFile.state` covers.

    Raises InputError if they have changed, with the first line that is not JSON.
    """
    content = path.read_bytes() if saved and path.exists() else b""
    rows = content[: saved.get("bytes", 0)]
    if not saved or hashlib.sha256(rows).hexdigest() == saved["sha256"]:
        return rows
    remedy = "put back a copy of the file, or start in a new run_dir"
    is_truncated = len(rows) < saved["bytes"]
    files.parse_jsonl(rows if is_truncated else rows.removesuffix(b"\n") + b"\n", path, remedy)
    if not path.exists():
        fault = ": is missing"
    elif is_truncated:
        fault = f": the rows after line {rows.count(10)} are missing"
    else:
        fault = ": is not as the run left it"
    raise InputError(f"{path}{fault}; {remedy}")


def to_floats(tree) -> dict[str, float]:
    """Fetches device scalars as Python floats, in one transfer."""
    return {name: float(value) for name, value in jax.device_get(tree).items()}


class Log:
    """Writes the rows of ``metrics.jsonl``, and shows them in the progress bar and TensorBoard.

    The time of an update excludes evaluations and saves. Only process 0 writes. The fields in
    ``CLOCK`` are wall-clock measurements; only these differ between two runs of the same config on
    the same device.

    Args:
      checkpoints: for the last good step in messages.
      bar: metrics in the progress bar, {metric: format}.
      saved: see :class:`RowFile`.
      steps: updates done already, and of the whole run; None if a time limit decides.
    """

    CLOCK = ("time", "tokens_per_second", "tflops_per_device", "mfu")  # and CLOCK/…

    def __init__(
        self,
        folder: Path,
        checkpoints: Checkpoints,
        bar_formats: dict[str, str],
        saved: dict,
        steps: tuple[int, int | None],
        tensorboard: bool = False,
    ):
        self.checkpoints, self.bar_formats = checkpoints, bar_formats
        self.writer = self.file = self.pending = self.compiled = None
        self.seconds, self.tokens = 0.0, 0
        is_main = jax.process_index() == 0
        options = {"disable": not is_main, "dynamic_ncols": True, "smoothing": 0.1}
        self.bar = tqdm(initial=steps[0], total=steps[1], unit="step", **options)
        self.past_seconds = 0.0  # seconds of updates of earlier starts
        if is_main:
            self.file = RowFile(folder / "metrics.jsonl", saved)
            rows = files.read_jsonl(self.file.path)
            self.past_seconds = sum(row.get("time/step", 0.0) for row in rows)
        if is_main and tensorboard:
            from tensorboardX import SummaryWriter  # optional: the `tensorboard` extra

            self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=steps[0] + 1)
        self.restart_clock()

    @property
    def state(self) -> dict:
        return self.file.state if self.file else {}

    def has_spent(self, seconds: float) -> bool:
        """Whether all updates took that long, including earlier starts; waits for the last one."""
        self._fetch()
        running = time.perf_counter() - self.clock
        return multihost.from_process_0(
            lambda: self.past_seconds + self.seconds + running >= seconds
        )

    def restart_clock(self) -> None:
        self.clock = time.perf_counter()

    @contextlib.contextmanager
    def paused(self):
        """A context whose time does not count as update time; first waits for the last update."""
        self._fetch()
        pause = time.perf_counter()
        yield
        self.clock += time.perf_counter() - pause

    def add(self, step: int, metrics: dict) -> None:
        """Adds the metrics of an update, which may still be on the device."""
        self.pending = {"step": step} | metrics
        if self.compiled is None:
            self.compiled = compilations()

    def write_baseline(self, metrics: dict[str, float]) -> None:
        """Writes the row of step 0, before any update."""
        self.pending = {"step": 0} | metrics
        self.write()

    def write(self, evaluation: dict[str, float] | None = None) -> None:
        """Writes the last added row, unless it is already written; fetches its metrics.

        Raises InputError if a metric is not finite, or if the disk is full.
        """
        if self.pending is None:
            return
        self._fetch()
        row, self.pending = self.pending, None
        self._check_finite({"step": row["step"]} | (evaluation or {}))
        if "tokens" in row:
            now = time.perf_counter()
            seconds, self.clock = now - self.clock, now
            self.seconds, self.tokens = self.seconds + seconds, self.tokens + row["tokens"]
            row |= {"time/step": seconds, "tokens_per_second": row["tokens"] / seconds}
            row |= device_rates(row.pop("model_flops", 0.0), row["tokens"], seconds)
            shown = {name: format(row[name], spec) for name, spec in self.bar_formats.items()}
            self.bar.set_postfix(shown, refresh=False)
            self.bar.update(row["step"] - self.bar.n)
        row |= evaluation or {}
        if self.file:
            self.file.append(row)
        if self.writer:
            for name in row.keys() - {"step"}:
                self.writer.add_scalar(name, row[name], row["step"])

    def _fetch(self) -> None:
        """Waits for the last added update; raises InputError if its metrics are not finite."""
        arrays = {name: x for name, x in self.pending.items() if isinstance(x, jax.Array)}
        self.pending |= to_floats(arrays) if arrays else {}
        self._check_finite(self.pending)

    def _check_finite(self, row: dict) -> None:
        invalid = [f"{name} is {value}" for name, value in row.items() if not math.isfinite(value)]
        if invalid:
            self.checkpoints.wait()
            step = self.checkpoints.latest
            saved = f"the last good checkpoint is step {step}" if step else "nothing was saved"
            raise InputError(
                f"step {row['step']}: {', '.join(invalid[:3])}; stopped, {saved}; lower "
                "optimizer.learning_rate in a new run_dir, or check the data of that batch"
            )

    def print(self, text: str) -> None:
        """Prints a line above the progress bar."""
        if self.file:
            self.bar.write(text)

    def summary(self) -> str:
        """Speed, memory and compilations of the whole run."""
        stats = jax.local_devices()[0].memory_stats()
        if stats and "peak_bytes_in_use" in stats:
            memory = f"{stats['peak_bytes_in_use'] / 2**30:.2f} GiB on a device"
        else:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB
            memory = f"{peak / 2**20:.2f} GiB (process)"
        return (
            f"{self.tokens / self.seconds:.0f} tokens/s over {self.seconds:.0f} s of updates; "
            f"peak memory {memory}; {compilations() - self.compiled} compilations after the first "
            "update"
        )

    def close(self) -> None:
        self.bar.close()
        if self.writer:
            self.writer.close()
