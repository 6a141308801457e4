"""Starts commands at once: as copies of one process that has imported what they all need.

Importing takes up to three seconds a command, more than all else that a small stage does. On Linux
the server, a process that has imported it and does nothing more, forks for each command. It ends
with the process that asks it, and then the commands do (``launch.shared.process``).
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

# A fork has none of the threads of its parent: no module here may start one when it is imported.
MODULES = (
    "fgrlhf_jax.pipeline.tasks",
    "fgrlhf_jax.ppo.train",
    "fgrlhf_jax.training.sft",
    "fgrlhf_jax.training.dpo",
    "orbax.checkpoint",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.llama.configuration_llama",
)

_FORKS = sys.platform == "linux"  # elsewhere libraries of the system do not survive a fork
_started: list[subprocess.Popen] = []  # else subprocess itself would ask how they ended


class Starter:
    """Within it, ``start`` runs ``python -m COMMAND`` in a process of its own.

    The ``environment`` are variables of all commands, beside those of this process.
    """

    def __init__(self, environment: Mapping[str, str]):
        self._environment = environment

    def __enter__(self) -> "Starter":
        self._server = subprocess.Popen(
            [sys.executable, "-m", __name__, *(MODULES if _FORKS else ())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | self._environment,
            start_new_session=True,  # a Ctrl-C reaches the commands through us, once
        )
        return self

    def __exit__(self, *_) -> None:
        self._server.communicate()

    def start(self, command: Sequence[str], log: Path, environment: Mapping[str, str]) -> int:
        """The number of a new process; what it prints is appended to ``log``."""
        log.open("ab").close()  # where it cannot be written, the error is ours
        return self._ask([*command], str(log.absolute()), {**environment})

    def statuses(self) -> dict[int, int]:
        """Exit statuses of the processes that ended since the last call; -N for signal N."""
        return {int(number): status for number, status in self._ask().items()}

    def _ask(self, *question):
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps(question), file=self._server.stdin, flush=True)
        if answer := self._server.stdout.readline():
            return json.loads(answer)
        killed = self._server.wait() == -signal.SIGKILL
        reason = "was killed, as where memory runs out" if killed else "has ended, see above"
        raise InputError(
            f"the process that starts the stages {reason}; run the same command to go on"
        )


def serve() -> None:
    """Answers questions on stdin until it is closed; returns in a fork too, after its command."""
    # Signals to all processes at once are for the commands; the server ends with who asks it.
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    warnings.filterwarnings("ignore", "This process", DeprecationWarning)  # OpenBLAS has threads
    for module in sys.argv[1:]:
        importlib.import_module(module)
    gc.freeze()  # a fork that looked for garbage in it all would copy it all
    while line := sys.stdin.readline():
        answer = {}
        if command := json.loads(line):
            answer = _start(*command)
            if not answer:
                return
        else:
            with contextlib.suppress(ChildProcessError):  # there is none any more
                while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                    answer[ended[0]] = os.waitstatus_to_exitcode(ended[1])
        print(json.dumps(answer), flush=True)


def _start(words: list[str], log: str, environment: dict[str, str]) -> int:
    """The number of the new process; 0 in that process, once its command has ended."""
    with open(log, "ab") as out, open(os.devnull, "rb") as nothing:
        if not _FORKS:
            streams = {"stdin": nothing, "stdout": out, "stderr": out}
            env = os.environ | environment
            command = [sys.executable, "-m", *words]
            unblock = functools.partial(signal.pthread_sigmask, signal.SIG_UNBLOCK, SIGNALS)
            options = streams | {"env": env, "start_new_session": True, "preexec_fn": unblock}
            _started.append(subprocess.Popen(command, **options))
            return _started[-1].pid
        if number := os.fork():
            return number
        os.setsid()
        for number, file in enumerate((nothing, out, out)):
            os.dup2(file.fileno(), number)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    os.environ.update(environment)
    if jax := sys.modules.get("jax"):  # it has read its variables already
        for name in (name for name in environment if name.startswith("JAX_")):
            field, value = name.lower(), environment[name]
            is_number = isinstance(getattr(jax.config, field), int)
            jax.config.update(field, int(value) if is_number else value)
    sys.argv = ["-m", *words[1:]]  # as `python -m` has it while it imports
    runpy.run_module(words[0], run_name="__main__", alter_sys=True)
    return 0


if __name__ == "__main__":
    serve()
