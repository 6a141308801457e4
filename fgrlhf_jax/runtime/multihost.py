"""Agreement between the processes of one run: values of the first one, checks, and waiting."""

import hashlib
import pickle
from collections.abc import Callable
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from fgrlhf_jax.errors import InputError

T = TypeVar("T")


def from_first(make: Callable[[], T]) -> T:
    """Calls ``make`` on process 0 and returns its result on all of them, which must all call this.

    Raises:
      InputError: on every process, where ``make`` raises one.
    """
    if jax.process_count() == 1:
        return make()
    message = b""
    if jax.process_index() == 0:
        try:
            message = pickle.dumps((make(), None))
        except InputError as error:
            message = pickle.dumps((None, str(error)))
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(message))))
    padded = np.zeros(1 << size.bit_length(), np.uint8)  # few shapes, so few compilations
    padded[: len(message)] = np.frombuffer(message, np.uint8)
    value, error = pickle.loads(multihost_utils.broadcast_one_to_all(padded).tobytes())
    if error is not None:
        raise InputError(error)
    return value


def wait_for_all() -> None:
    """Returns when every process has called this.

    To be called after compiling, which some processes finish later than others: the first program
    that all of them run would not wait as long (30 s between CPUs).
    """
    multihost_utils.sync_global_devices("wait")


def check_same(text: str, description: str) -> None:
    """Raises InputError on every process when one has another text than process 0."""
    digest = np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8)
    digests = np.reshape(multihost_utils.process_allgather(digest), (-1, digest.size))
    differing = np.flatnonzero((digests != digests[0]).any(axis=1))
    if differing.size:
        raise InputError(
            f"process {differing[0]} has {description} other than those of process 0; start all "
            "processes with the same flags and the same files"
        )
