"""Ctrl-C, SIGTERM, SIGHUP: a flag that who has something to save looks at between its steps.

Elsewhere a signal raises KeyboardInterrupt, and again until the command has ended: where it happens
to be raised in a callback or in ``__del__``, Python reports it and goes on. Python comes to neither
while it waits for C++, a compilation for one: a thread that is told of signals ends the command.
"""

import contextlib
import os
import select
import signal
import sys
import threading
import time

SIGNALS = (signal.SIGINT, signal.SIGTERM)
if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as `nohup` has it
    SIGNALS += (signal.SIGHUP,)  # of a terminal that is closed
PARENT = "FGRLHF_ENDS_WITH_PARENT"  # for a stage: the process number of its pipeline
SAME = 0.3  # seconds: `timeout` sends a signal to a process, and then to its group
STUCK = 2.0  # seconds that Python has to come to a signal where nobody looks at a flag
AGAIN = 5.0  # seconds after which a KeyboardInterrupt that did not end the command is raised again
MESSAGE = "interrupted; the same command goes on from what it has saved, or begins again"


class _Process:
    """What this process does at a signal."""

    is_command = False  # it belongs to a command, not to a program that uses the package
    is_importing = False  # nothing has begun that an exception could end in order
    watchers: tuple["Interrupt", ...] = ()  # those that look at their flag, the innermost last
    received = 0.0  # the time of the first signal


_ending = threading.RLock()


def begin_command() -> None:
    """Handles signals for the rest of this process; until :func:`begin_main` they end it."""
    _Process.is_command = _Process.is_importing = True
    for number in (*SIGNALS, signal.SIGALRM):
        signal.signal(number, _receive)
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # closed; left alone, it would be the number of the next file
            os.open(os.devnull, os.O_RDWR)
    told, tell = os.pipe()
    os.set_blocking(tell, False)
    signal.set_wakeup_fd(tell, warn_on_full_buffer=False)
    os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))
    threading.Thread(target=_end_where_stuck, args=[told], name="signals", daemon=True).start()


def begin_main() -> None:
    """From now on a signal that nobody looks at raises KeyboardInterrupt."""
    _Process.is_importing = False


def raise_again() -> None:
    """Raises the KeyboardInterrupt that was swallowed once more, outside of what swallowed it."""
    if _Process.is_command:
        signal.setitimer(signal.ITIMER_REAL, 0.01, AGAIN)


def end_command(message: str) -> None:
    """Ends the process with status 130, as a KeyboardInterrupt has arrived in its main function."""
    if is_distributed():
        from fgrlhf_jax.runtime import multihost

        multihost.leave(130, message, message)
    print(message, file=sys.stderr)
    if not _Process.is_command:
        sys.exit(130)
    sys.stdout.flush()
    os._exit(130)  # at once: XLA, stopped in a compilation, may crash while Python shuts down


def is_distributed() -> bool:
    """Whether ``jax.distributed`` is in use; does not import JAX, which may be half imported."""
    distributed = getattr(sys.modules.get("jax"), "distributed", None)
    return bool(distributed and distributed.is_initialized())


def _end_where_stuck(told: int) -> None:
    """Ends the command at signals that its main thread does not come to."""
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
    # For good: the main thread and the one above may both be here, and the main thread twice, at a
    # signal while it waits for a terminal that is stopped.
    _ending.acquire()
    with contextlib.suppress(OSError):  # a full disk, a terminal that is closed
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
    """Within it, the first of the signals only sets a flag; a second one ends the process.

    With several processes a signal to any of them stops all, after the same step: jax catches
    SIGTERM, tells the others, and finds a step that none of them has passed (``several``).
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
        """Whether to save and stop; to be called after every step, by all processes."""
        if self.several:
            from jax.experimental import multihost_utils

            # By the step's number, as orbax does at every save.
            return multihost_utils.reached_preemption_sync_point(step)
        return self.flag

    def __exit__(self, *_):
        _Process.watchers = _Process.watchers[:-1]
        for number, handler in self.before.items():
            signal.signal(number, handler)
        if self.before:
            _Process.received = 0.0
