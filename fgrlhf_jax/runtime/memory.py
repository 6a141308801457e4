"""Memory management of the host process."""

import ctypes
import sys


def release_unused() -> None:
    """Returns freed memory to the system (glibc only).

    Commands keep freed memory for later arrays, but compilation leaves fragments that are too small
    for large arrays.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim:
            trim(0)
