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
PARENT = "FGRLHF_ENDS_WITH_PARENT"  # environment variable of a stage: the PID of its pipeline
SAME = 0.3  # seconds in which signals count as one: `timeout` signals a process, then its group
STUCK = 2.0  # seconds until the thread ends a command that does not handle a signal
AGAIN = 5.0  # seconds after which a KeyboardInterrupt that did not end the command is raised again
MESSAGE = "interrupted; the same command goes on from what it has saved, or begins again"


class _Process:
    """Signal state of this process."""

    is_command = False  # a command, not a program that uses the package
    is_importing = False  # still importing: a signal ends the process at once
    watchers: tuple["Interrupt", ...] = ()  # active ones, the innermost last
    received = 0.0  # time of the first signal


_ending = threading.RLock()


def begin_command() -> None:
    """Installs signal handlers; until :func:`begin_main`, signals end the process at once."""
    _Process.is_command = _Process.is_importing = True
    for number in (*SIGNALS, signal.SIGALRM):
        signal.signal(number, _receive)
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # closed: the next opened file would get its number
            os.open(os.devnull, os.O_RDWR)
    told, tell = os.pipe()
    os.set_blocking(tell, False)
    signal.set_wakeup_fd(tell, warn_on_full_buffer=False)
    os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))
    threading.Thread(target=_end_where_stuck, args=[told], name="signals", daemon=True).start()


def begin_main() -> None:
    """From now on signals raise KeyboardInterrupt, except within :class:`Interrupt`."""
    _Process.is_importing = False


def raise_again() -> None:
    """Raises a swallowed KeyboardInterrupt again, outside of the code that swallowed it."""
    if _Process.is_command:
        signal.setitimer(signal.ITIMER_REAL, 0.01, AGAIN)


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


def _end_where_stuck(told: int) -> None:
    """Runs in a thread: ends the command at signals that its main thread does not handle."""
    first, patience = 0.0, None
    while True:
        if not select.select([told], [], [], patience)[0]:
            if not (_Process.received or _Process.watchers):
                _end_at_once()
            patience = None
            continue
        ours = [n for n in os.read(told, 64) if n in SIGNALS and signal.getsignal(n) is _receive]
        if not ours or is_distributed():
            continue
        if first and time.monotonic() - first >= SAME:
            _end_at_once()
        if not first:
            first, patience = time.monotonic(), STUCK


def _end_at_once() -> None:
    # Never released: both threads may get here, and the main thread twice, by a signal while it
    # waits for a stopped terminal.
    _ending.acquire()
    with contextlib.suppress(OSError):  # a full disk or a closed terminal
        os.write(2, f"{MESSAGE}\n".encode())
    os._exit(130)


def _receive(number: int, frame) -> None:
    now, watcher = time.monotonic(), _Process.watchers[-1:]
    if number == signal.SIGALRM:
        if not watcher:
            raise KeyboardInterrupt
        return
    if _Process.received and now - _Process.received < SAME:
        return
    second, _Process.received = bool(_Process.received), now
    if _Process.is_command and (second or _Process.is_importing):
        _end_at_once()
    if second or not watcher:
        if _Process.is_command:
            signal.setitimer(signal.ITIMER_REAL, AGAIN, AGAIN)
        raise KeyboardInterrupt
    watcher[0].flag = True
    if watcher[0].several:
        os.kill(os.getpid(), signal.SIGTERM)


class Interrupt:
    """A context in which the first signal only sets a flag; a second one ends the process.

    With ``several`` processes, a signal to one stops all of them after the same step: jax catches
    SIGTERM, notifies the others, and agrees on a step that none of them has passed.
    """

    def __init__(self, *, several: bool = False):
        self.several, self.flag = several, False

    def __enter__(self):
        if _Process.is_command:
            self.flag, self.before = bool(_Process.received), {}
        else:
            signals = SIGNALS[:1] if self.several else SIGNALS
            self.before = {number: signal.signal(number, _receive) for number in signals}
        _Process.watchers += (self,)
        return self

    def requested(self, step: int) -> bool:
        """Whether to save and stop; all processes must call it after every step."""
        if self.several:
            from jax.experimental import multihost_utils

            # Agrees by step number, as orbax does at every save.
            return multihost_utils.reached_preemption_sync_point(step)
        return self.flag

    def __exit__(self, *_):
        _Process.watchers = _Process.watchers[:-1]
        for number, handler in self.before.items():
            signal.signal(number, handler)
        if self.before:
            _Process.received = 0.0
