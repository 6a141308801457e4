"""Stages: commands joined by files. Each runs once, when what it needs is there.

To have a stage made again, delete its output: what it left, and what was made from it, directly or
not, is set aside as NAME.old-1 and made again too.
"""

import contextlib
import dataclasses
import itertools
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.runtime import files
from fgrlhf_jax.runtime.interrupt import PARENT, Interrupt

_NO_TRAINING = ("launch.pipeline", "launch.generate")


@dataclasses.dataclass(frozen=True)
class Stage:
    """``python -m command``; it is done when ``output`` exists and the command ended well."""

    name: str
    command: tuple[str, ...]
    output: Path
    needs: tuple[str, ...] = ()  # names of stages that must be done before
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def shown(self) -> str:
        """The command as a person would type it."""
        variables = [f"{name}={value}" for name, value in self.environment.items()]
        return " ".join([*variables, "python -m", *self.command])


def run(
    stages: Sequence[Stage], folder: Path, *, workers: int, say: Callable[[str], None] = print
) -> None:
    """Run the stages that are not done, up to ``workers`` at a time, in order where that may be.

    The output of a stage goes to ``folder/logs/NAME.log``. All share one compilation cache.

    Raises:
      InputError: when a stage fails: its name, its log and its last message. The others are asked
        to save and stop; a later start goes on from there.
      KeyboardInterrupt: after Ctrl-C or SIGTERM, once the running stages have saved and stopped.
    """
    for name in ("stages", "logs"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    done = {stage.name for stage in stages if is_done(stage, stages, folder)}
    done = set_aside(stages, done, folder, say)
    if done:
        say(f"{len(done)} of {len(stages)} stages are there already")
    waiting = [stage for stage in stages if stage.name not in done]
    running: dict[str, tuple[Stage, subprocess.Popen, float]] = {}
    with Interrupt() as interrupt:
        try:
            while waiting or running:
                for stage in list(waiting):
                    if len(running) < workers and done.issuperset(stage.needs):
                        waiting.remove(stage)
                        running[stage.name] = (stage, _start(stage, folder), time.perf_counter())
                if not running:
                    missing = sorted({n for stage in waiting for n in stage.needs} - done)
                    raise ValueError(f"stages need {missing}, which nothing makes")
                time.sleep(0.05)
                if interrupt.flag:
                    raise KeyboardInterrupt
                for name, (stage, process, started) in list(running.items()):
                    if process.poll() is None:
                        continue
                    del running[name]
                    seconds = time.perf_counter() - started
                    if process.returncode or not stage.output.exists():
                        raise InputError(_failure(stage, process.returncode, folder))
                    marker = {
                        "command": stage.command,
                        "seconds": round(seconds, 1),
                        "sha256": _digests(stage, stages, folder),
                    }
                    files.write_json(_marker(stage, folder), marker)
                    done.add(name)
                    say(f"[{len(done)}/{len(stages)}] {name}: {seconds:.0f} s")
        finally:
            processes = [process for _, process, _ in running.values()]
            for process in processes:
                with contextlib.suppress(ProcessLookupError):
                    process.send_signal(signal.SIGTERM)
            while any(process.poll() is None for process in processes):
                time.sleep(0.05)


def is_done(stage: Stage, stages: Sequence[Stage], folder: Path) -> bool:
    """Whether an earlier start finished this stage.

    Raises:
      InputError: when it did so with another command, naming the flags that differ; and when what
        it left has changed since.
    """
    if not _marker(stage, folder).exists() or not stage.output.exists():
        return False
    marker = _read_marker(stage, folder)
    again = f"delete {stage.output}: then it and what was made from it are made again"
    if differing := sorted(set(marker["command"]) ^ set(stage.command)):
        raise InputError(
            f"{folder}: stage {stage.name} was made with another config ({', '.join(differing)}); "
            f"choose another run_dir, or {again}"
        )
    now = _digests(stage, stages, folder)
    for name, digest in marker["sha256"].items():
        if now.get(name) != digest:
            raise InputError(
                f"{stage.output.with_name(name)}: is not as stage {stage.name} left it; put back "
                f"a copy, or {again}"
            )
    return True


def _read_marker(stage: Stage, folder: Path) -> dict:
    like = {"command": [""], "seconds": 0.0, "sha256": {}}
    to_do = f"delete it, and stage {stage.name} is made again"
    return files.read_json(_marker(stage, folder), like, to_do)


def _digests(stage: Stage, stages: Sequence[Stage], folder: Path) -> dict[str, str]:
    """Digests of the JSON that a stage leaves, by the names of the files beside its output."""
    paths = (
        [stage.output] if _is_shared(stage, stages, folder) else stage.output.parent.glob("*.json*")
    )
    return {path.name: files.digest(path) for path in paths if path.name != "config.json"}


def set_aside(
    stages: Sequence[Stage], done: set[str], folder: Path, say: Callable[[str], None]
) -> set[str]:
    """Rename what was made from a stage that is not done; returns ``done`` without these stages.

    In its place a command would go on with it, or answer that it is finished.
    """
    needs = {stage.name: stage.needs for stage in stages}

    def ancestors(name: str) -> set[str]:
        """All stages that a stage is made from, directly or not."""
        return {name for need in needs.get(name, ()) for name in (need, *ancestors(need))}

    remains = {stage.name: _remains(stage, stages, folder) for stage in stages}
    was_done = {n for name, paths in remains.items() if paths for n in ancestors(name)}
    for stage in stages:
        missing = sorted(ancestors(stage.name) - done)
        # An interrupted stage has no marker, and nothing was made from it: it goes on.
        finished = stage.name in was_done or _marker(stage, folder).exists()
        deleted = stage.name not in done and finished
        if remains[stage.name] and (missing or deleted):
            names = ", ".join(missing)
            reason = f"made from {names}" if missing else "its output or marker was deleted"
            moved = [_rename(path) for path in remains[stage.name]]
            say(f"{stage.name} is made again ({reason}); the old one is kept: {moved[0]}")
    return {name for name in done if ancestors(name) <= done}


def seconds(stages: Sequence[Stage], folder: Path) -> dict[str, float]:
    """Seconds that each finished stage took, by its name."""
    done = [stage for stage in stages if _marker(stage, folder).exists()]
    return {stage.name: _read_marker(stage, folder)["seconds"] for stage in done}


def training_seconds(stages: Sequence[Stage], folder: Path) -> dict[str, float]:
    """Seconds of each stage and of every training that it needs, but for the common first policy.

    Stages that are not done are left out.
    """
    took, needs = seconds(stages, folder), {stage.name: stage.needs for stage in stages}
    common = {stage.name for stage in stages if stage.command[0] in _NO_TRAINING} | {"sft"}

    def ancestors(name: str) -> set[str]:
        return {name}.union(*map(ancestors, needs[name]))

    return {name: sum(took.get(n, 0.0) for n in ancestors(name) - common) for name in took}


def _start(stage: Stage, folder: Path) -> subprocess.Popen:
    stage.output.parent.mkdir(parents=True, exist_ok=True)
    shared = {
        PARENT: str(os.getpid()),
        "JAX_COMPILATION_CACHE_DIR": str((folder / "cache").absolute()),
        "JAX_COMPILATION_CACHE_MAX_SIZE": str(2**32),  # with a limit, it takes a lock
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
    }
    with _log(stage, folder).open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", *stage.command],
            stdout=log,
            stderr=log,
            env=os.environ | shared | stage.environment,
            start_new_session=True,  # a Ctrl-C reaches it through us, once
        )


def _remains(stage: Stage, stages: Sequence[Stage], folder: Path) -> list[Path]:
    """What there is of a stage: the folder of its output, or in a folder of several stages the
    output alone; and the marker."""
    output = stage.output if _is_shared(stage, stages, folder) else stage.output.parent
    paths = (output, _marker(stage, folder))
    return [path for path in paths if path.exists()]


def _is_shared(stage: Stage, stages: Sequence[Stage], folder: Path) -> bool:
    """Whether the folder of a stage's output is that of other stages, too."""
    home, others = stage.output.parent, (other.output for other in stages if other is not stage)
    return home == folder or any(home in output.parents for output in others)


def _rename(path: Path) -> Path:
    """To the first of NAME.old-1, NAME.old-2, … that is free."""
    names = (path.with_name(f"{path.name}.old-{number}") for number in itertools.count(1))
    return path.rename(next(name for name in names if not name.exists()))


def _marker(stage: Stage, folder: Path) -> Path:
    return folder / "stages" / f"{stage.name.replace('/', '.')}.json"


def _log(stage: Stage, folder: Path) -> Path:
    return folder / "logs" / f"{_marker(stage, folder).stem}.log"


def _failure(stage: Stage, status: int, folder: Path) -> str:
    """The last error in a stage's log since its last failure, or else its last line."""
    path = _log(stage, folder)
    text = path.read_text(encoding="utf-8", errors="replace")
    lines = re.split(r"^failed with status .*\n", text, flags=re.MULTILINE)[-1].splitlines()
    lines = [line for line in lines if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")] or lines[-1:]
    message = errors[-1].removeprefix("error: ") if errors else "it said nothing"
    if status == -signal.SIGKILL:
        message = "it was killed, as where memory runs out; take fewer workers or smaller batches"
    try:
        with path.open("a", encoding="utf-8") as log:
            log.write(f"failed with status {status}\n")
    except OSError as error:  # why there may be no message
        message = f"its log cannot be written ({error.strerror}); {files.advice(error)}"
    return f"stage {stage.name} failed with status {status}: {message} (see {path})"
