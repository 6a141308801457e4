"""Handling of Ctrl-C, SIGTERM and SIGHUP: within :class:`Interrupt` they set a flag.

Code with work to save checks this flag between its steps. Elsewhere a signal raises
KeyboardInterrupt, repeatedly until the command ends, since Python swallows one that is raised in a
callback or in ``__del__``. While Python waits for C++, such as a compilation, neither works; then a
thread that receives signals through a pipe ends the command.
"""

import contextlib
import os
import select
import signal
import sys
import threading
import time

SIGNALS = (signal.SIGINT, signal.SIGTERM)
if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # `nohup` ignores it
    SIGNALS += (signal.SIGHUP,)  # sent when a terminal closes
PARENT_PID = "FGRLHF_ENDS_WITH_PARENT"  # environment variable of a stage: the PID of its pipeline
DUPLICATE_TIME = 0.3  # seconds that make signals one: `timeout` signals a process, then its group
HANDLE_TIMEOUT = 2.0  # seconds until the thread ends a command that does not handle a signal
RERAISE_TIME = 5.0  # seconds until a KeyboardInterrupt that ended nothing is raised again
EXIT_MESSAGE = "interrupted; the same command goes on from what it has saved, or begins again"


class _Process:
    """Signal state of this process."""

    is_command = False  # a command, not a program that uses the package
    is_importing = False  # still importing: a signal ends the process at once
    watchers: tuple["Interrupt", ...] = ()  # active ones, the innermost last
    signal_time = 0.0  # time of the first signal


_exit_lock = threading.RLock()


def begin_command() -> None:
    """Installs signal handlers; until :func:`begin_main`, signals end the process at once."""
    _Process.is_command = _Process.is_importing = True
    for number in (*SIGNALS, signal.SIGALRM):
        signal.signal(number, _on_signal)
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # closed: the next opened file would get its number
            os.open(os.devnull, os.O_RDWR)
    pipe, wakeup = os.pipe()
    os.set_blocking(wakeup, False)
    signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
    os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))
    threading.Thread(target=_end_if_unhandled, args=[pipe], name="signals", daemon=True).start()


def begin_main() -> None:
    """From now on signals raise KeyboardInterrupt, except within :class:`Interrupt`."""
    _Process.is_importing = False


def raise_again() -> None:
    """Raises a swallowed KeyboardInterrupt again, outside of the code that swallowed it."""
    if _Process.is_command:
        signal.setitimer(signal.ITIMER_REAL, 0.01, RERAISE_TIME)


def end_command(message: str) -> None:
    """Ends the process with status 130, after a KeyboardInterrupt in its main function."""
    if is_distributed():
        from fgrlhf_jax.runtime import multihost

        multihost.leave(130, message, message)
    print(message, file=sys.stderr)
    if not _Process.is_command:
        sys.exit(130)
    sys.stdout.flush()
    os._exit(130)  # at once: XLA may crash at Python's shutdown if stopped while compiling


def is_distributed() -> bool:
    """Whether ``jax.distributed`` is in use; does not import JAX, which may be partly imported."""
    distributed = getattr(sys.modules.get("jax"), "distributed", None)
    return bool(distributed and distributed.is_initialized())


def _end_if_unhandled(pipe: int) -> None:
    """Runs in a thread: ends the command at signals that its main thread does not handle."""
    first_time, timeout = 0.0, None
    while True:
        if not select.select([pipe], [], [], timeout)[0]:
            if not (_Process.signal_time or _Process.watchers):
                _exit_at_once()
            timeout = None
            continue
        own = [n for n in os.read(pipe, 64) if n in SIGNALS and signal.getsignal(n) is _on_signal]
        if not own or is_distributed():
            continue
        if first_time and time.monotonic() - first_time >= DUPLICATE_TIME:
            _exit_at_once()
        if not first_time:
            first_time, timeout = time.monotonic(), HANDLE_TIMEOUT


def _exit_at_once() -> None:
    # Never released: both threads may get here, and the main thread twice, by a signal while it
    # waits for a stopped terminal.
    _exit_lock.acquire()
    with contextlib.suppress(OSError):  # a full disk or a closed terminal
        os.write(2, f"{EXIT_MESSAGE}\n".encode())
    os._exit(130)


def _on_signal(number: int, frame) -> None:
    now, innermost = time.monotonic(), _Process.watchers[-1:]
    if number == signal.SIGALRM:
        if not innermost:
            raise KeyboardInterrupt
        return
    if _Process.signal_time and now - _Process.signal_time < DUPLICATE_TIME:
        return
    is_repeated, _Process.signal_time = bool(_Process.signal_time), now
    if _Process.is_command and (is_repeated or _Process.is_importing):
        _exit_at_once()
    if is_repeated or not innermost:
        if _Process.is_command:
            signal.setitimer(signal.ITIMER_REAL, RERAISE_TIME, RERAISE_TIME)
        raise KeyboardInterrupt
    innermost[0].flag = True
    if innermost[0].distributed:
        os.kill(os.getpid(), signal.SIGTERM)


class Interrupt:
    """A context in which the first signal only sets a flag; a second one ends the process.

    With ``several`` processes, a signal to one stops all of them after the same step: jax catches
    SIGTERM, notifies the others, and agrees on a step that none of them has passed.
    """

    def __init__(self, *, distributed: bool = False):
        self.distributed, self.flag = distributed, False

    def __enter__(self):
        if _Process.is_command:
            self.flag, self.handlers = bool(_Process.signal_time), {}
        else:
            signals = SIGNALS[:1] if self.distributed else SIGNALS
            self.handlers = {number: signal.signal(number, _on_signal) for number in signals}
        _Process.watchers += (self,)
        return self

    def requested(self, step: int) -> bool:
        """Whether to save and stop; all processes must call it after every step."""
        if self.distributed:
            from jax.experimental import multihost_utils

            # Agrees by step number, as orbax does at every save.
            return multihost_utils.reached_preemption_sync_point(step)
        return self.flag

    def __exit__(self, *_):
        _Process.watchers = _Process.watchers[:-1]
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        if self.handlers:
            _Process.signal_time = 0.0
