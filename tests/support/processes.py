"""Runs commands in new processes, forked from a process that has already imported all modules.

The imports of a command take longer than its work in most tests.
"""

import atexit
import contextlib
import functools
import itertools
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
PRELOADED = ["orbax.checkpoint", "transformers", "launch.sft", "launch.train_rm", "launch.ppo"]


def python(*words: str, **environment: str) -> subprocess.CompletedProcess:
    """Runs ``python WORDS`` in the project's folder, with its output as text."""
    command, environment = [sys.executable, *words], os.environ | environment
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)


@functools.cache
def server():
    """The context of the process that others are forked from; it uses no device."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def devices(count: int) -> str:
    """``XLA_FLAGS`` of the tests, with ``count`` devices."""
    return f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={count}"


def run(arguments: list[str], output: Path, error: Path, environment: dict[str, str]) -> None:
    """Runs arguments of ``python``, ``-m MODULE …`` or ``FILE …``, in this (forked) process."""
    for path, descriptor in ((output, 1), (error, 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    os.environ.update(environment)
    sys.path[:0] = environment.get("PYTHONPATH", "").split(os.pathsep)
    os.chdir(ROOT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        if arguments[0] == "-m":
            from launch.shared import process

            process.begin()
            sys.modules.pop(arguments[1], None)
            sys.argv = arguments[1:]
            runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = [*arguments]
            runpy.run_path(arguments[0], run_name="__main__")
    finally:
        sys.stdout.flush()
        atexit._run_exitfuncs()


class Process:
    """Like ``subprocess.Popen``, in the project's folder, with its output in files."""

    def __init__(self, arguments: list[str], output: Path, error: Path, **environment: str):
        for path in {output, error}:
            path.write_text("")
        words = [str(argument) for argument in arguments]
        self.process = server().Process(
            target=run, args=(words, output, error, environment), daemon=True
        )
        self.process.start()
        self.pid = self.process.pid

    def poll(self) -> int | None:
        return self.process.exitcode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def wait(self, seconds: float = 240) -> int:
        self.process.join(seconds)
        if self.poll() is None:
            self.kill()
            raise TimeoutError(f"process {self.pid} has not ended after {seconds} s")
        return self.poll()


class InThisProcess(contextlib.nullcontext):
    """Replaces ``pipeline.starter.Starter``: ``start`` runs the command and returns at its end.

    Args:
      run: function that does the work of the command.
    """

    def __init__(self, run: Callable[[Sequence[str]], None]):
        super().__init__(self)
        self.run, self.numbers, self.ended = run, itertools.count(), {}

    def start(self, command, log, environment) -> int:
        self.run(command)
        self.ended[number := next(self.numbers)] = 0
        return number

    def statuses(self) -> dict[int, int]:
        ended, self.ended = self.ended, {}
        return ended
