"""Coordination of the processes of a run: values from process 0, checks, and a common end.

A process that fails writes its error to the key-value store of ``jax.distributed`` in process 0
(:func:`leave`). Other processes, which may be waiting for it in a collective operation, have a
thread that reads the error and ends them (:func:`end_on_error_of_others`).
"""

import contextlib
import hashlib
import os
import pickle
import sys
import threading
import time
from collections.abc import Callable
from typing import NoReturn, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from fgrlhf_jax.errors import InputError

T = TypeVar("T")
ERROR_KEYS, EXIT_KEYS = "fgrlhf/errors/", "fgrlhf/left/"  # keys, followed by a process index
POLL_SECONDS = 1.0  # seconds
GRACE_SECONDS = 2.0  # seconds for a process to end by itself, with an error that others have too
EXIT_TIMEOUT = 5.0  # seconds that process 0 waits for the others
_exit_lock = threading.Lock()


def _distributed_state():
    """jax's distributed state (``client``, ``process_id``, …); None for a single process."""
    state = multihost_utils.distributed.global_state  # undocumented
    return state if state.client and state.num_processes > 1 else None


def end_on_error_of_others(end: Callable[[str], None]) -> None:
    """Starts a thread that calls ``end`` with the first :func:`error_of_others`."""

    def wait() -> None:
        with contextlib.suppress(Exception):  # the store has ended, as at the end of a run
            while not (error := error_of_others()):
                time.sleep(POLL_SECONDS)
            time.sleep(GRACE_SECONDS)
            end(error)

    if _distributed_state():
        threading.Thread(target=wait, name="end_on_error_of_others", daemon=True).start()


def error_of_others() -> str:
    """The error with which another process has left, ``process 1: …``; "" if none has."""
    state = _distributed_state()
    errors = state.client.key_value_dir_get(ERROR_KEYS) if state else []
    by_process = ((key.removeprefix(ERROR_KEYS), error) for key, error in errors)
    return next((f"process {n}: {e}" for n, e in by_process if n != str(state.process_id)), "")


def leave(status: int, message: str, error: str) -> NoReturn:
    """Prints a message, ends this process, and makes the others end with ``error``.

    Process 0 ends last, since the others are aborted when its store ends.
    """
    _exit_lock.acquire()  # never released: another thread may be ending the process too
    print(message, file=sys.stderr)
    if state := _distributed_state():
        with contextlib.suppress(Exception):  # the store has ended, and so have the others
            if not error_of_others():
                state.client.key_value_set(f"{ERROR_KEYS}{state.process_id}", error)
            state.client.key_value_set(f"{EXIT_KEYS}{state.process_id}", "")
            deadline = time.monotonic() + EXIT_TIMEOUT
            while state.process_id == 0 and time.monotonic() < deadline:
                if len(state.client.key_value_dir_get(EXIT_KEYS)) == state.num_processes:
                    break
                time.sleep(0.1)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(status)  # at once: Python's shutdown would wait for the others


def from_process_0(function: Callable[[], T]) -> T:
    """Calls a function on process 0 and returns its result on every process, which must call this.

    Its InputError is raised on every process; other exceptions are raised on process 0, and on the
    others as an InputError.
    """
    if jax.process_count() == 1:
        return function()
    message, exception = b"", None
    if jax.process_index() == 0:
        try:
            message = pickle.dumps((function(), None))
        except Exception as error:
            exception = error
            kind = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
            message = pickle.dumps((None, f"{kind}{error}"))
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(message))))
    padded = np.zeros(1 << size.bit_length(), np.uint8)  # few shapes, so few compilations
    padded[: len(message)] = np.frombuffer(message, np.uint8)
    value, error = pickle.loads(multihost_utils.broadcast_one_to_all(padded).tobytes())
    if exception:
        raise exception
    if error is not None:
        raise InputError(error)
    return value


def wait_for_all() -> None:
    """Returns when every process has called this.

    Call it after compilation, which processes finish at different times: a collective program waits
    for only 30 s between CPUs.
    """
    multihost_utils.sync_global_devices("wait")


def check_same(text: str, description: str) -> None:
    """Raises InputError on every process if one has another text than process 0."""
    digest = np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8)
    digests = np.reshape(multihost_utils.process_allgather(digest), (-1, digest.size))
    differing = np.flatnonzero((digests != digests[0]).any(axis=1))
    if differing.size:
        raise InputError(
            f"process {differing[0]} has other {description} than process 0; start all processes "
            "with the same flags and the same files"
        )
