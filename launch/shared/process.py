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

# Of glibc's mallopt and of Linux's prctl.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
PR_SET_PDEATHSIG = 1
HUGE_PAGES = "glibc.malloc.hugetlb=1"  # for GLIBC_TUNABLES


@functools.cache
def begin() -> None:
    """Sets signals and the streams, and leaves a folder that is gone; before the slow imports.

    Shells expand ``~/`` where a word begins, so not in ``--config.run_dir=~/run``.
    """
    ask_for_huge_pages()
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


def ask_for_huge_pages() -> None:
    """Starts this process anew, with what glibc reads at a start only, where that is missing.

    Where Linux gives huge pages on request only, the processor otherwise looks up the address of
    every 4 KB of weights, which is half of the time of decoding.
    """
    given = os.environ.get("GLIBC_TUNABLES", "")
    with contextlib.suppress(OSError):  # no such file, or no new start: slower, and no failure
        modes = Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text()
        if "[madvise]" in modes and HUGE_PAGES.partition("=")[0] not in given:
            os.environ["GLIBC_TUNABLES"] = ":".join(filter(None, (given, HUGE_PAGES)))
            os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def prepare() -> None:
    """Sets memory allocation and what libraries say; to be called before JAX uses a device."""
    interrupt.begin_main()
    # transformers is used for tokenizers only; its advice would confuse.
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
        libc.mallopt(M_TRIM_THRESHOLD, -1)  # never; 2**31 - 1 would return what exceeds 2 GiB
        libc.mallopt(M_TOP_PAD, 2**27)


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
