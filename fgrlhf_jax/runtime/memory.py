"""Memory of the host process."""

import ctypes
import sys


def release_unused() -> None:
    """Gives what was freed back to the system, where the C library can (glibc).

    The commands keep freed memory for arrays that follow; what compiling leaves is in pieces that
    no large array fits into.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim:
            trim(0)
