"""Settings that a command makes for its whole process; importing the package makes none."""

import contextlib
import ctypes
import functools
import importlib.util
import logging
import os
import re
import signal
import sys
from pathlib import Path

from fgrlhf_jax.runtime import interrupt
from launch.shared import terminal

# Constants of glibc's mallopt and of Linux's prctl.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
PR_SET_PDEATHSIG = 1
HUGE_PAGES = "glibc.malloc.hugetlb=1"  # for GLIBC_TUNABLES


@functools.cache
def begin() -> None:
    """Sets signals and streams, and leaves a deleted working folder; call before slow imports.

    It also expands ``~/`` in ``--config.run_dir=~/run``, which shells do only where a word begins.
    """
    enable_huge_pages()
    interrupt.begin_command()
    terminal.protect()
    os.environ["JAX_ENABLE_X64"] = "0"  # arrays and checkpoints have at most 32 bits
    home = os.path.expanduser("~")
    sys.argv[1:] = [re.sub("(?<=[=,])~(?=/)", lambda _: home, word) for word in sys.argv[1:]]
    try:
        os.getcwd()
    except FileNotFoundError:  # deleted; libraries would fail
        with contextlib.suppress(OSError):
            os.chdir("/proc")  # no relative path exists or can be created there


def enable_huge_pages() -> None:
    """Restarts this process with glibc's huge pages, which it can enable only at start.

    Applies if Linux grants huge pages on request only. With pages of 4 KB, half of the time of
    decoding goes into looking up addresses of weights.
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    with contextlib.suppress(OSError):  # no such file or no restart: slower, but works
        modes = Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text()
        if "[madvise]" in modes and HUGE_PAGES.partition("=")[0] not in tunables:
            os.environ["GLIBC_TUNABLES"] = ":".join(filter(None, (tunables, HUGE_PAGES)))
            os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def prepare() -> None:
    """Sets memory allocation and the logging of libraries; call before JAX uses a device."""
    interrupt.begin_main()
    # Only the tokenizers of transformers are used; its advice would confuse.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    keep_freed_memory()
    shorten_compilation()
    silence_orbax()
    end_with_parent()


def keep_freed_memory() -> None:
    """Makes glibc keep the buffers that XLA frees on the CPU.

    Otherwise every step maps and zeroes them again, a third of the time of a small model's update.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, -1)  # never trim; 2**31 - 1 would trim above 2 GiB
        libc.mallopt(M_TOP_PAD, 2**27)


def shorten_compilation() -> None:
    """Makes XLA run few passes over its code for CPUs, if there is no other device.

    Of small models all passes take half as long again; the programs are no faster by them.
    """
    flag, flags = "--xla_backend_optimization_level", os.environ.get("XLA_FLAGS", "")
    plugins = map(importlib.util.find_spec, ("jax_plugins", "libtpu"))
    is_cpu = os.environ.get("JAX_PLATFORMS") == "cpu" or not any(plugins)
    if is_cpu and flag not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {flag}=1".strip()


@functools.cache
def silence_orbax() -> None:
    """Hides orbax's log lines about every save, and about errors that it raises anyway."""
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)

    def report_unraisable(report, hook=sys.unraisablehook) -> None:
        """Hides follow-up errors of orbax after a failed read or write; raises Ctrl-C again."""
        if isinstance(report.exc_value, KeyboardInterrupt):  # raised in a callback
            interrupt.raise_again()
            return
        code = getattr(report.object, "cr_code", None)
        from_orbax = code and "orbax" in Path(code.co_filename).parts
        if not (from_orbax or str(report.exc_value) == "Event loop is closed"):
            hook(report)

    sys.unraisablehook = report_unraisable


def end_with_parent() -> None:
    """Makes a pipeline's stage save and stop if the pipeline is killed. Linux only."""
    parent = os.environ.get(interrupt.PARENT_PID)
    if not parent:
        return
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    try:
        os.kill(int(parent), 0)
    except ProcessLookupError as error:  # the parent ended before prctl
        raise KeyboardInterrupt from error
