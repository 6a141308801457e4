"""What a command sets for its whole process; importing the package sets nothing."""

import contextlib
import ctypes
import functools
import logging
import os
import signal
import sys
from pathlib import Path

from fgrlhf_jax.runtime.run_dir import PARENT

# Of glibc's mallopt and of Linux's prctl.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
PR_SET_PDEATHSIG = 1


def prepare() -> None:
    """Sets signals, memory allocation and logging; to be called before JAX uses a device."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # transformers is used for tokenizers only; its advice to install torch would confuse.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    keep_freed_memory()
    quieten_orbax()
    end_with_parent()


def keep_freed_memory() -> None:
    """Lets the process keep the buffers that XLA frees on the CPU. glibc only.

    Otherwise they are mapped and zeroed again at every step: a third of the time of a small
    model's update.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        libc.mallopt(M_TOP_PAD, 2**27)


@functools.cache
def quieten_orbax() -> None:
    """Hides what orbax logs about every save, and once more about errors that it raises."""
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)

    def report_unraisable(report, hook=sys.unraisablehook) -> None:
        """Leaves out other reads and writes of orbax after one that failed."""
        code = getattr(report.object, "cr_code", None)
        from_orbax = code and "orbax" in Path(code.co_filename).parts
        if not (from_orbax or str(report.exc_value) == "Event loop is closed"):
            hook(report)

    sys.unraisablehook = report_unraisable


def end_with_parent() -> None:
    """Lets a stage of a pipeline that is killed save and stop too. Linux only."""
    parent = os.environ.get(PARENT)
    if not parent:
        return
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    try:
        os.kill(int(parent), 0)
    except ProcessLookupError as error:  # it ended before the line above
        raise KeyboardInterrupt from error
