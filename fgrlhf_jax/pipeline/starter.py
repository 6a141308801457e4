"""Starts commands quickly, as forks of one process that has already imported their modules.

Imports take up to three seconds per command, longer than the work of a small stage. On Linux a
server process imports the modules once and forks for each command; elsewhere it starts new
processes. The server ends with the process that uses it; then its commands end
(``launch.shared.process``).
"""

import contextlib
import functools
import gc
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.runtime.interrupt import SIGNALS

# Imported before forking. None may start a thread on import: a fork does not copy threads.
MODULES = (
    "fgrlhf_jax.pipeline.tasks",
    "fgrlhf_jax.ppo.train",
    "fgrlhf_jax.training.sft",
    "fgrlhf_jax.training.dpo",
    "orbax.checkpoint",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.llama.configuration_llama",
)

_CAN_FORK = sys.platform == "linux"  # elsewhere system libraries do not survive a fork
_started: list[subprocess.Popen] = []  # else subprocess would reap their exit statuses


class Starter:
    """Context manager whose ``start`` runs ``python -m COMMAND`` in a new process.

    ``environment`` is added to this process's environment variables for all commands.
    """

    def __init__(self, environment: Mapping[str, str]):
        self._environment = environment

    def __enter__(self) -> "Starter":
        self._server = subprocess.Popen(
            [sys.executable, "-m", __name__, *(MODULES if _CAN_FORK else ())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | self._environment,
            start_new_session=True,  # only this process gets Ctrl-C; it stops the commands
        )
        return self

    def __exit__(self, *_) -> None:
        self._server.communicate()

    def start(self, command: Sequence[str], log: Path, environment: Mapping[str, str]) -> int:
        """Starts a process, appends its output to ``log``, and returns its pid."""
        log.open("ab").close()  # raises here if the log cannot be written
        return self._request([*command], str(log.absolute()), {**environment})

    def statuses(self) -> dict[int, int]:
        """Exit statuses of the processes that ended since the last call; -N for signal N."""
        return {int(number): status for number, status in self._request().items()}

    def _request(self, *request):
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps(request), file=self._server.stdin, flush=True)
        if reply := self._server.stdout.readline():
            return json.loads(reply)
        killed = self._server.wait() == -signal.SIGKILL
        reason = "was killed, perhaps for memory" if killed else "has ended, see above"
        raise InputError(
            f"the process that starts the stages {reason}; repeat the command to continue"
        )


def serve() -> None:
    """Answers requests on stdin until it is closed. Also returns in a fork, after its command."""
    # The server ignores signals to the whole group: it ends when its stdin is closed.
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    warnings.filterwarnings("ignore", "This process", DeprecationWarning)  # OpenBLAS has threads
    for module in sys.argv[1:]:
        importlib.import_module(module)
    gc.freeze()  # garbage collection in a fork would copy the parent's pages
    while line := sys.stdin.readline():
        reply = {}
        if command := json.loads(line):
            reply = _start(*command)
            if not reply:
                return
        else:
            with contextlib.suppress(ChildProcessError):  # no child is left
                while (exited := os.waitpid(-1, os.WNOHANG))[0]:
                    reply[exited[0]] = os.waitstatus_to_exitcode(exited[1])
        print(json.dumps(reply), flush=True)


def _start(words: list[str], log: str, environment: dict[str, str]) -> int:
    """Starts a command and returns its pid; in a fork returns 0 after the command has ended."""
    with open(log, "ab") as out, open(os.devnull, "rb") as devnull:
        if not _CAN_FORK:
            streams = {"stdin": devnull, "stdout": out, "stderr": out}
            env = os.environ | environment
            command = [sys.executable, "-m", *words]
            unblock = functools.partial(signal.pthread_sigmask, signal.SIG_UNBLOCK, SIGNALS)
            options = streams | {"env": env, "start_new_session": True, "preexec_fn": unblock}
            _started.append(subprocess.Popen(command, **options))
            return _started[-1].pid
        if pid := os.fork():
            return pid
        os.setsid()
        for pid, file in enumerate((devnull, out, out)):
            os.dup2(file.fileno(), pid)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    os.environ.update(environment)
    if jax := sys.modules.get("jax"):  # JAX has already read its variables
        for name in (name for name in environment if name.startswith("JAX_")):
            field, value = name.lower(), environment[name]
            is_number = isinstance(getattr(jax.config, field), int)
            jax.config.update(field, int(value) if is_number else value)
    sys.argv = ["-m", *words[1:]]  # what `python -m` sets during the import
    runpy.run_module(words[0], run_name="__main__", alter_sys=True)
    return 0


if __name__ == "__main__":
    serve()
