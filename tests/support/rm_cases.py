"""Runs launch.train_rm in new processes with one device."""

import fnmatch
import re
import signal
import time
from collections.abc import Iterable
from pathlib import Path

from processes import Process, devices

from fgrlhf_jax.runtime import metric_log
from fgrlhf_jax.runtime.files import read_jsonl, write_jsonl
from fgrlhf_jax.tiny_world.datasets import make_feedback

STEPS, SAVE_EVERY, EVAL_EVERY = 32, 5, 8
FIELDS = {"steps": STEPS, "save_every": SAVE_EVERY, "eval_every": EVAL_EVERY}
FIELDS |= {"batch_size": 4, "micro_batch_size": 2, "model.vocab_size": 300, "data.buckets": 2}
FIELDS |= {"optimizer.learning_rate": 1e-3}


def write_files(folder: Path) -> dict[str, Path]:
    """Writes edits for training, and edits and preferences for validation."""
    edits, _ = make_feedback(60, 0)
    write_jsonl(folder / "train.jsonl", edits)
    edits, preferences = make_feedback(12, 1)
    write_jsonl(folder / "validation.jsonl", edits + preferences)
    return {name: folder / f"{name}.jsonl" for name in ("train", "validation")}


def flags(files, run_dir: Path, **fields) -> list[str]:
    fields = FIELDS | files | {"run_dir": run_dir} | fields
    return ["--config=configs/rm.py:tiny,token_edit"] + [
        f"--config.{name}={value}" for name, value in fields.items()
    ]


class Command:
    """``launch.train_rm``, or another ``module``, in a new process with one device."""

    def __init__(self, files, run_dir: Path, module: str = "launch.train_rm", arguments=None):
        self.run_dir = run_dir
        self.inode_before = self.inode()  # left by the start before this one
        self.streams = [run_dir.with_suffix(f".{name}") for name in ("stdout", "stderr")]
        arguments = arguments or flags(files, run_dir)
        arguments = ["-m", module, *arguments, f"--config.run_dir={run_dir}"]
        self.process = Process(arguments, *self.streams, XLA_FLAGS=devices(1), COLUMNS="120")

    def inode(self) -> int:
        """The inode of metrics.jsonl, which every start rewrites up to its first step."""
        path = self.run_dir / "metrics.jsonl"
        return path.stat().st_ino if path.exists() else 0

    def reached(self, step: int) -> bool:
        """Whether this start has reached ``step``."""
        return self.inode() != self.inode_before and len(rows(self.run_dir)) >= step

    def until(self, condition) -> "Command":
        """Waits until ``condition()`` holds; fails if the process ends first."""
        deadline = time.monotonic() + 240
        while not condition():
            assert self.process.poll() is None, self.end()
            assert time.monotonic() < deadline, self.end(signal.SIGKILL)
            time.sleep(0.002)
        return self

    def end(self, number: int | None = None) -> tuple[int, str, list[str]]:
        """Sends a signal, if any, and waits; returns exit status, stdout and lines of stderr."""
        if number:
            self.process.send_signal(number)
        status = self.process.wait()
        out, err = (stream.read_text() for stream in self.streams)
        return status, out, [line.strip() for line in re.split(r"[\r\n]+", err) if line.strip()]


def rows(run_dir: Path) -> list[dict]:
    return read_jsonl(run_dir / "metrics.jsonl")


def unexplained(names: Iterable[str]) -> set[str]:
    """Those of the metrics that docs/metrics.md has no row for.

    In a row `_std` or `/kl` replaces the end of the name before it; `…` stands for any end.
    """
    page = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
    explained = [""]
    for cell in re.findall("^[|] (`.+?) [|]", page.partition("## Correction")[0], re.M):
        for name in re.findall("`(.+?)`", cell):
            before = explained[-1].rpartition(name[0])[0] if name[0] in "_/" else ""
            explained.append(before + name.replace("…", "*"))
    return {x for x in names if not any(fnmatch.fnmatchcase(x, each) for each in explained)}


def without_clock(run_dir: Path) -> list[dict]:
    return [
        {k: v for k, v in row.items() if k.split("/")[0] not in metric_log.Log.CLOCK}
        for row in rows(run_dir)
    ]


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def saved(run_dir: Path) -> list[int]:
    return sorted(int(p.name) for p in (run_dir / "checkpoints").glob("*") if p.name.isdigit())
