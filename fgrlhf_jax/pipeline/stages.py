"""Runs stages: commands that exchange files. Each runs once, after the stages that it needs.

A marker records a finished stage's command and the config values that it read; another config may
continue in the same folder if these are equal. A stage that needs more stages than before, such as
answers of more arms, runs again and adds what is missing.

To run a stage again, delete its output. Its other files and those of all stages that depend on it
are renamed to NAME.old-1, and these stages run again too.
"""

import collections
import contextlib
import dataclasses
import functools
import itertools
import os
import re
import signal
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.pipeline.starter import Starter
from fgrlhf_jax.runtime import files, user_function
from fgrlhf_jax.runtime.interrupt import PARENT_PID, Interrupt

_NO_TRAINING = ("launch.pipeline", "launch.generate")


@dataclasses.dataclass(frozen=True)
class Stage:
    """``python -m command``; it is done when the command has succeeded and ``output`` exists."""

    name: str
    command: tuple[str, ...]
    output: Path
    needs: tuple[str, ...] = ()  # names of stages that must be done first
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    fields: Mapping[str, object] = dataclasses.field(default_factory=dict)  # config read by it

    def shell_command(self) -> str:
        """The command as typed in a shell."""
        variables = [f"{name}={value}" for name, value in self.environment.items()]
        return " ".join([*variables, "python -m", *self.command])


def run(
    stages: Sequence[Stage], folder: Path, *, workers: int, say: Callable[[str], None] = print
) -> None:
    """Runs the stages that are not done, up to ``workers`` at a time.

    Of those that may start, that with the longest chain of stages after it starts first, so that
    no chain is left to the end, where it would run alone. Of equal ones, that with the most stages
    before it: arms that compile to the same programs have as many, and do not start together then.
    The output of a stage goes to ``folder/logs/NAME.log``. All share one compilation cache.

    Raises:
      InputError: if a stage fails, with its name, log and last message. The others are asked to
        save and stop; a later start continues from there.
      KeyboardInterrupt: after Ctrl-C or SIGTERM, once the running stages have saved and stopped.
    """
    for name in ("stages", "logs"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    done = archive_stale(stages, find_done(stages, folder), folder, say)
    if done:
        say(f"{len(done)} of {len(stages)} stages are already done")

    @functools.cache
    def chain(name: str) -> int:
        return 1 + max((chain(other.name) for other in stages if name in other.needs), default=0)

    waiting = [stage for stage in stages if stage.name not in done]
    needs = collections.defaultdict(tuple, {stage.name: stage.needs for stage in stages})
    waiting.sort(key=lambda s: (chain(s.name), len({*_ancestors(s.name, needs)})), reverse=True)
    running: dict[int, tuple[Stage, float]] = {}  # by pid
    markers = {s.name: _read_marker(s, folder) for s in waiting if _has_run(s, folder)}
    if not waiting:
        return
    cache = (folder / "cache").absolute()
    remove_broken_entries(cache)
    shared = {
        PARENT_PID: str(os.getpid()),
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_COMPILATION_CACHE_MAX_SIZE": str(2**32),  # with a size limit, JAX locks the cache
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
    }
    with Interrupt() as interrupt, Starter(shared) as starter:
        try:
            while waiting or running:
                for stage in list(waiting):
                    if len(running) < workers and done.issuperset(stage.needs):
                        waiting.remove(stage)
                        number = _start(stage, folder, starter)
                        running[number] = stage, time.perf_counter()
                if not running:
                    missing = sorted({n for stage in waiting for n in stage.needs} - done)
                    raise ValueError(f"stages need {missing}, which no stage makes")
                time.sleep(0.05)
                if interrupt.flag:
                    raise KeyboardInterrupt
                ended = [(*running.pop(n), status) for n, status in starter.statuses().items()]
                for stage, started, status in sorted(ended, key=lambda exit: exit[-1] != 0):
                    elapsed = time.perf_counter() - started
                    if status or not stage.output.exists():
                        raise InputError(_failure(stage, status, folder))
                    _write_marker(stage, stages, folder, elapsed, markers.get(stage.name))
                    done.add(stage.name)
                    say(f"[{len(done)}/{len(stages)}] {stage.name}: {elapsed:.0f} s")
        finally:
            for number in running:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(number, signal.SIGTERM)
            while running:
                time.sleep(0.05)
                for number in starter.statuses():
                    running.pop(number, None)


def remove_broken_entries(cache: Path) -> None:
    """Removes entries without an access time from a compilation cache with a size limit.

    A kill may leave such an entry. JAX reads the times of all entries before it writes one, so it
    would never write again.
    """
    cache.mkdir(parents=True, exist_ok=True)
    for entry in cache.glob("*-cache"):
        if not entry.with_name(f"{entry.name.removesuffix('-cache')}-atime").exists():
            entry.unlink(missing_ok=True)


def find_done(stages: Sequence[Stage], folder: Path) -> set[str]:
    """The names of finished stages that need no more stages now than they did then.

    Raises InputError, with details, if a stage ran with other values or its files have changed.
    """
    done = set()
    for stage in stages:
        if not _has_run(stage, folder):
            continue
        marker = _read_marker(stage, folder)
        if "needs" not in marker:
            raise InputError(
                f"run_dir={folder} holds a run of an earlier version; choose another run_dir, or "
                "finish it with that version"
            )
        remedy = f"delete {stage.output}: then it and all that depends on it run again"
        stored = _inputs(marker["command"], marker["fields"])
        fields = user_function.comparable(stage.fields, marker["fields"])
        now = _inputs(stage.command, fields)
        if stored != now:
            old, new = (", ".join(sorted(s)) or "no such" for s in (stored - now, now - stored))
            raise InputError(
                f"{folder}: stage {stage.name} was made with {old}, not with {new}; use the same "
                f"values or another run_dir, or {remedy}"
            )
        digests = _digests(stage, stages, folder)
        for name, digest in marker["sha256"].items():
            if digests.get(name) != digest:
                raise InputError(
                    f"{stage.output.with_name(name)}: changed since stage {stage.name} wrote it; "
                    f"restore a copy, or {remedy}"
                )
        if set(stage.needs) <= set(marker["needs"]):
            done.add(stage.name)
    return done


def _write_marker(
    stage: Stage, stages: Sequence[Stage], folder: Path, elapsed: float, old: dict | None
) -> None:
    """Writes a finished stage's marker; ``old`` is its marker from an earlier run, if any."""
    old = old or {"needs": [], "seconds": 0.0}
    marker = {
        "command": stage.command,
        "fields": dict(stage.fields),
        "needs": sorted({*stage.needs, *old["needs"]}),
        "seconds": round(elapsed + old["seconds"], 1),
        "sha256": _digests(stage, stages, folder),
    }
    files.write_json(_marker_path(stage, folder), marker)


def _inputs(command: Sequence[str], fields: Mapping[str, object]) -> set[str]:
    words = {word.removeprefix("--config.") for word in command}
    return words | {f"{name}={value}" for name, value in fields.items()}


def _has_run(stage: Stage, folder: Path) -> bool:
    return _marker_path(stage, folder).exists() and stage.output.exists()


def _read_marker(stage: Stage, folder: Path) -> dict:
    example = {"command": [""], "seconds": 0.0, "sha256": {}}
    remedy = f"delete it, and stage {stage.name} runs again"
    return files.read_json(_marker_path(stage, folder), example, remedy)


def _digests(stage: Stage, stages: Sequence[Stage], folder: Path) -> dict[str, str]:
    """Digests of a stage's JSON files, by file name."""
    root = _output_root(stage, stages, folder)
    paths = [root] if root == stage.output else root.glob("*.json*")
    return {path.name: files.digest(path) for path in paths if path.name != "config.json"}


def archive_stale(
    stages: Sequence[Stage], done: set[str], folder: Path, say: Callable[[str], None]
) -> set[str]:
    """Renames files of stages that depend on one not done; returns ``done`` without these stages.

    Otherwise their commands would resume from the old files or report that they are finished.
    """
    needs = {}  # of a stage that has run, its needs at that time: it may need more now
    for stage in stages:
        has_run = _has_run(stage, folder)
        recorded = _read_marker(stage, folder)["needs"] if has_run else stage.needs
        needs[stage.name] = {other.name for other in stages}.intersection(recorded)

    outputs = {}
    for stage in stages:
        paths = (_output_root(stage, stages, folder), _marker_path(stage, folder))
        outputs[stage.name] = [path for path in paths if path.exists()]
    needed = {n for name, paths in outputs.items() if paths for n in _ancestors(name, needs)}
    for stage in stages:
        missing = sorted(_ancestors(stage.name, needs) - done)
        # An interrupted stage has no marker, and no stage has used its files: it resumes.
        finished = stage.name in needed or _marker_path(stage, folder).exists()
        deleted = stage.name not in done and finished and not _has_run(stage, folder)
        if outputs[stage.name] and (missing or deleted):
            names = ", ".join(missing)
            reason = f"it depends on {names}" if missing else "its output or marker was deleted"
            moved = [_rename(path) for path in outputs[stage.name]]
            say(f"{stage.name} runs again ({reason}); its old output is kept: {moved[0]}")
    return {name for name in done if _ancestors(name, needs) <= done}


def _ancestors(name: str, needs: Mapping[str, Iterable[str]]) -> set[str]:
    """All stages that a stage depends on, directly or indirectly."""
    return {ancestor for need in needs[name] for ancestor in (need, *_ancestors(need, needs))}


def seconds(stages: Sequence[Stage], folder: Path) -> dict[str, float]:
    """Seconds that each finished stage took, by its name."""
    done = [stage for stage in stages if _marker_path(stage, folder).exists()]
    return {stage.name: _read_marker(stage, folder)["seconds"] for stage in done}


def training_seconds(stages: Sequence[Stage], folder: Path) -> dict[str, float]:
    """Seconds of each finished stage with all training that it needs, without the common SFT."""
    elapsed, needs = seconds(stages, folder), {stage.name: stage.needs for stage in stages}
    common = {stage.name for stage in stages if stage.command[0] in _NO_TRAINING} | {"sft"}
    required = {name: {name} | _ancestors(name, needs) for name in elapsed}
    return {name: sum(elapsed.get(n, 0.0) for n in required[name] - common) for name in elapsed}


def _start(stage: Stage, folder: Path, starter: Starter) -> int:
    """Starts a stage and returns its pid."""
    stage.output.parent.mkdir(parents=True, exist_ok=True)
    _marker_path(stage, folder).unlink(missing_ok=True)
    return starter.start(stage.command, _log_path(stage, folder), stage.environment)


def _output_root(stage: Stage, stages: Sequence[Stage], folder: Path) -> Path:
    """The folder of a stage's output, or only the output if other stages write there too."""
    parent, others = stage.output.parent, (other.output for other in stages if other is not stage)
    shared = parent == folder or any(parent in output.parents for output in others)
    return stage.output if shared else parent


def _rename(path: Path) -> Path:
    """Renames a path to the first free name among NAME.old-1, NAME.old-2, …"""
    names = (path.with_name(f"{path.name}.old-{number}") for number in itertools.count(1))
    return path.rename(next(name for name in names if not name.exists()))


def _marker_path(stage: Stage, folder: Path) -> Path:
    return folder / "stages" / f"{stage.name.replace('/', '.')}.json"


def _log_path(stage: Stage, folder: Path) -> Path:
    return folder / "logs" / f"{_marker_path(stage, folder).stem}.log"


def _failure(stage: Stage, status: int, folder: Path) -> str:
    """A message with the last error, or else the last line, that a failed stage logged."""
    path = _log_path(stage, folder)
    text = path.read_text(encoding="utf-8", errors="replace")
    lines = re.split(r"^failed with status .*\n", text, flags=re.MULTILINE)[-1].splitlines()
    lines = [line for line in lines if line.strip()] or ["it printed nothing"]
    errors = [line for line in lines if line.startswith("error: ")] or lines
    message = errors[-1].removeprefix("error: ")
    if status == -signal.SIGKILL:
        message = "it was killed, perhaps for memory; use fewer workers or smaller batches"
    try:
        with path.open("a", encoding="utf-8") as log:
            log.write(f"failed with status {status}\n")
    except OSError as error:  # which may also be why there is no message
        message = f"its log cannot be written ({error.strerror}); {files.advice(error)}"
    return f"stage {stage.name} failed with status {status}: {message} (see {path})"
