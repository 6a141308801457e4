"""What the processes of one run must agree on: one does it, and all of them know how it went."""

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
    """What ``make`` returns on process 0, the only one that calls it. All of them must come here.

    Raises:
      InputError: on every process, where ``make`` raises one.
    """
    if jax.process_count() == 1:
        return make()
    said = b""
    if jax.process_index() == 0:
        try:
            said = pickle.dumps((make(), None))
        except InputError as error:
            said = pickle.dumps((None, str(error)))
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(said))))
    padded = np.zeros(1 << size.bit_length(), np.uint8)  # few shapes, so few compilations
    padded[: len(said)] = np.frombuffer(said, np.uint8)
    value, error = pickle.loads(multihost_utils.broadcast_one_to_all(padded).tobytes())
    if error is not None:
        raise InputError(error)
    return value


def wait() -> None:
    """Until all processes are here.

    After compiling, which takes some longer than others: the first program that all of them run
    would not wait for them as long (30 s between CPUs).
    """
    multihost_utils.sync_global_devices("wait")


def check_same(said: str, what: str) -> None:
    """Raises InputError on every process where one says something else than process 0."""
    digest = np.frombuffer(hashlib.sha256(said.encode()).digest(), np.uint8)
    digests = np.reshape(multihost_utils.process_allgather(digest), (-1, digest.size))
    differing = [number for number, one in enumerate(digests) if (one != digests[0]).any()]
    if differing:
        raise InputError(
            f"process {differing[0]} has {what} other than those of process 0; start all "
            "processes with the same flags and the same files"
        )
