"""What a command sets for its whole process; importing the package sets nothing."""

import contextlib
import ctypes
import functools
import logging
import os
import re
import signal
import sys
from pathlib import Path

from fgrlhf_jax.runtime import interrupt
from launch.shared import terminal

# Of glibc's mallopt, and of Linux's madvise and prctl.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX, M_ARENA_MAX = -1, -2, -4, -8
MADV_HUGEPAGE, HUGE_PAGE = 14, 2**21
PR_SET_PDEATHSIG = 1


@functools.cache
def begin() -> None:
    """Sets signals and the streams, and leaves a folder that is gone; before the slow imports.

    Shells expand ``~/`` where a word begins, so not in ``--config.run_dir=~/run``.
    """
    interrupt.begin_command()
    terminal.protect()
    os.environ["JAX_ENABLE_X64"] = "0"  # everything is of at most 32 bits, checkpoints too
    home = os.path.expanduser("~")
    sys.argv[1:] = [re.sub("(?<=[=,])~(?=/)", lambda _: home, word) for word in sys.argv[1:]]
    try:
        os.getcwd()
    except FileNotFoundError:  # it was removed, at which libraries fail
        with contextlib.suppress(OSError):
            os.chdir("/proc")  # where there is no file of a relative name, and none can be made


def prepare() -> None:
    """Sets memory allocation and what libraries say; to be called before JAX uses a device."""
    interrupt.begin_main()
    # transformers is used for tokenizers only; its advice would confuse.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    keep_freed_memory()
    quieten_orbax()
    end_with_parent()


def keep_freed_memory() -> None:
    """Lets the process keep the buffers that XLA frees on the CPU, in huge pages. glibc only.

    Otherwise they are mapped and zeroed again at every step: a third of the time of a small
    model's update. And where the system gives huge pages to those only that ask for them, the
    processor looks up the address of every 4 KB of weights: half of the time of decoding.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, -1)  # never; 2**31 - 1 would return what exceeds 2 GiB
        libc.mallopt(M_TOP_PAD, 2**27)
        libc.mallopt(M_ARENA_MAX, 1)  # all threads allocate from the one that follows
        libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
        size = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4 * 3  # all is refused
        if address := libc.malloc(ctypes.c_size_t(size)):  # addresses, no memory yet
            start = -(-address // HUGE_PAGE) * HUGE_PAGE
            length = (address + size - start) // HUGE_PAGE * HUGE_PAGE
            libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), MADV_HUGEPAGE)
            libc.free(address)


@functools.cache
def quieten_orbax() -> None:
    """Hides what orbax logs about every save, and once more about errors that it raises."""
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)

    def report_unraisable(report, hook=sys.unraisablehook) -> None:
        """Leaves out other reads and writes of orbax after one that failed, and a Ctrl-C."""
        if isinstance(report.exc_value, KeyboardInterrupt):  # it was raised in a callback
            interrupt.raise_again()
            return
        code = getattr(report.object, "cr_code", None)
        from_orbax = code and "orbax" in Path(code.co_filename).parts
        if not (from_orbax or str(report.exc_value) == "Event loop is closed"):
            hook(report)

    sys.unraisablehook = report_unraisable


def end_with_parent() -> None:
    """Lets a stage of a pipeline that is killed save and stop too. Linux only."""
    parent = os.environ.get(interrupt.PARENT)
    if not parent:
        return
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    try:
        os.kill(int(parent), 0)
    except ProcessLookupError as error:  # it ended before the line above
        raise KeyboardInterrupt from error
