"""Memory management of the host process."""

import contextlib
import ctypes


def release_unused() -> None:
    """Returns freed memory to the system (glibc only).

    Commands keep freed memory for later arrays, but compilation leaves fragments that are too small
    for large arrays.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
