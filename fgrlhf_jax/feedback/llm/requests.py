"""Attempts at requests: side by side, paced, tried again after a fault, within a budget.

A worker stores a reply before it tells of it. Whatever ends a run (a cap, a wrong key, Ctrl-C), no
new attempt starts, and no thread keeps the process from ending.
"""

import contextlib
import dataclasses
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.feedback.llm.cache import Cache
from fgrlhf_jax.feedback.llm.client import Ask, Refused, Reply, Request, Transient

LOG = logging.getLogger(__name__)
GIVE_UP = 10  # requests in a row without an answer after all their tries: the server is gone
LONGEST_PAUSE = 600.0  # seconds that a server may ask for; beyond, the run stops
GRACE = 1.0  # seconds for what is under way when a run is interrupted
LOOK_UP = 0.5  # seconds of one wait: a Ctrl-C that comes just before a wait does not end it


@dataclasses.dataclass(frozen=True)
class Limits:
    """How hard a server is asked, and what may be spent; 0 is no limit.

    Attributes:
      concurrency: requests under way at once.
      requests_per_minute: attempts, evenly spread.
      retries: further tries of a request after a transient fault.
      max_refusals: requests refused one after another, none answered between them, at which the
        run stops: whatever the reason is, it is not this one request.
      max_requests, max_tokens: caps on the attempts, and on the tokens of the replies (read and
        written), of this run. What is under way at the cap is still waited for and counted.
      back_off, longest_wait: seconds; the wait after a fault is random, up to back_off · 2ⁿ and
        longest_wait, and never shorter than the server asks for.
    """

    concurrency: int = 8
    requests_per_minute: float = 0
    retries: int = 6
    max_refusals: int = 10
    max_requests: int = 0
    max_tokens: int = 0
    back_off: float = 1.0
    longest_wait: float = 60.0

    def __post_init__(self):
        for name, value in vars(self).items():
            least = 1 if name == "concurrency" else 0
            if not value >= least:
                raise InputError(f"{name}={value} must be at least {least}")


@dataclasses.dataclass
class Spent:
    """What a run has cost so far; ``requests`` counts every attempt, ``cached`` costs nothing."""

    requests: int = 0
    retries: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cached: int = 0

    @property
    def tokens(self) -> int:
        return self.input_tokens + self.output_tokens

    def __str__(self) -> str:
        return (
            f"{self.requests} requests ({self.retries} of them retries), {self.input_tokens} "
            f"tokens read and {self.output_tokens} written; {self.cached} answers from the cache"
        )


@dataclasses.dataclass(frozen=True)
class Rejected:
    """A request that gets no reply however often it is asked."""

    reason: str


class Pace:
    """When attempts may start: evenly spread, and not before a server wants to be asked again."""

    def __init__(
        self,
        per_minute: float,
        now: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ):
        self.gap = 60 / per_minute if per_minute else 0.0
        self.now, self.sleep = now, sleep
        self.lock, self.next, self.held = threading.Lock(), now(), now()

    def wait(self) -> None:
        """Until this attempt's turn, or until `sleep` says (True) that there will be none."""
        start = None
        while True:
            with self.lock:
                now = self.now()
                if start is None or start < self.held:  # a pause began meanwhile: queue again
                    start = max(now, self.next)
                    self.next = start + self.gap
            if start <= now or self.sleep(start - now):
                return

    def hold(self, seconds: float) -> None:
        """No further attempt starts within ``seconds``, not even one that has its turn."""
        with self.lock:
            self.held = max(self.held, self.now() + seconds)
            self.next = max(self.next, self.held)


class _Budget:
    """The caps, counted by several threads."""

    def __init__(self, limits: Limits, spent: Spent):
        self.limits, self.spent, self.lock = limits, spent, threading.Lock()

    def begin(self, retry: bool = False, count: int = 1) -> int:
        """Count at most ``count`` attempts before they are made; raises InputError at a cap."""
        limits, spent = self.limits, self.spent
        with self.lock:
            for name, used in (("max_requests", spent.requests), ("max_tokens", spent.tokens)):
                if 0 < getattr(limits, name) <= used:
                    raise InputError(
                        f"stopped at {name}={getattr(limits, name)} after {spent}; what arrived "
                        f"is kept: run again to go on, with the same {name} once more to spend"
                    )
            if limits.max_requests:
                count = min(count, limits.max_requests - spent.requests)
            spent.requests += count
            spent.retries += retry
            return count

    def add(self, reply: Reply) -> None:
        with self.lock:
            self.spent.input_tokens += reply.input_tokens
            self.spent.output_tokens += reply.output_tokens


Outcome = Reply | Rejected | str  # a text says why there is no answer


def by_threads(
    todo: dict[str, Request], send: Ask, stored: Cache, limits: Limits, spent: Spent
) -> Iterator[tuple[str, Outcome]]:
    """(key, outcome) as they arrive, all replies stored. Closing it leaves no thread in the way."""
    stop = threading.Event()
    pace = Pace(limits.requests_per_minute, sleep=stop.wait)
    budget = _Budget(limits, spent)
    retrying = _retrying(limits, stop)
    waiting: queue.SimpleQueue = queue.SimpleQueue()
    arrived: queue.SimpleQueue = queue.SimpleQueue()
    for item in todo.items():
        waiting.put(item)
    warned: set[str] = set()

    def attempt(key: str, request: Request, retry: bool) -> Reply:
        pace.wait()
        if stop.is_set():
            raise Transient("the run was stopped")
        budget.begin(retry)
        try:
            reply = send(request)
        except Transient as fault:
            if (kind := str(fault)[:20]) not in warned:
                warned.add(kind)
                LOG.warning("%s; trying again", fault)
            if fault.retry_after is not None:
                if fault.retry_after > LONGEST_PAUSE:
                    raise InputError(
                        f"the server wants a pause of {fault.retry_after:.0f} s ({fault}); what "
                        "arrived is kept: run again later to go on"
                    ) from None
                pace.hold(fault.retry_after)
            raise
        budget.add(reply)
        stored.put(key, reply)
        return reply

    def work() -> None:
        while not stop.is_set():
            try:
                key, request = waiting.get_nowait()
            except queue.Empty:
                return
            outcome: Outcome | BaseException
            try:
                for number, turn in enumerate(retrying.copy()):
                    with turn:
                        outcome = attempt(key, request, number > 0)
            except Transient as fault:
                outcome = str(fault)
            except Refused as fault:
                outcome = Rejected(str(fault))
            except BaseException as error:  # for the main thread
                outcome = error
            arrived.put((key, outcome))
            if isinstance(outcome, BaseException):
                stop.set()  # after it is in the queue: what the stop breaks off comes behind it

    count = min(limits.concurrency, len(todo))
    threads = [threading.Thread(target=work, daemon=True) for _ in range(count)]
    for thread in threads:
        thread.start()
    in_a_row, end = 0, None
    try:
        for _ in todo:
            key, outcome = _next(arrived)
            if isinstance(outcome, BaseException):
                end = outcome
                break
            yield key, outcome
            in_a_row = in_a_row + 1 if isinstance(outcome, str) else 0
            if in_a_row == GIVE_UP < len(todo):
                end = InputError(
                    f"{in_a_row} requests in a row have no answer after {limits.retries + 1} "
                    f"tries each ({outcome}); what arrived is kept: run again to go on"
                )
                break
        if end:
            stop.set()
            for thread in threads:  # what is under way is paid for: wait for it
                while thread.is_alive():
                    thread.join(LOOK_UP)
            while not arrived.empty():
                key, outcome = arrived.get()
                if isinstance(outcome, Reply | Rejected):
                    yield key, outcome
            raise end
    finally:
        stop.set()
        last = time.monotonic() + GRACE
        for thread in threads:
            thread.join(max(0.0, last - time.monotonic()))


def _next(arrived: queue.SimpleQueue):
    """What arrives next; a Ctrl-C is heeded while it waits."""
    while True:
        with contextlib.suppress(queue.Empty):
            return arrived.get(timeout=LOOK_UP)


def believed(
    outcomes: Iterator[tuple[str, Outcome]], limits: Limits
) -> Iterator[tuple[str, Outcome]]:
    """The same, each refusal only once it is known not to be what every request meets.

    Raises:
      InputError: at ``max_refusals`` in a row. They are not yielded, so they are asked again.
    """
    held: list[tuple[str, Outcome]] = []
    with contextlib.closing(outcomes):
        try:
            for key, outcome in outcomes:
                if isinstance(outcome, Rejected):
                    held.append((key, outcome))
                    if len(held) == limits.max_refusals:
                        held.clear()
                        raise InputError(
                            f"{limits.max_refusals} requests in a row are refused "
                            f"({outcome.reason}); mend what is asked, or, if only these are "
                            "wrong, set limits.max_refusals=0; what arrived is kept: run again "
                            "to go on"
                        )
                    continue
                if isinstance(outcome, Reply):
                    yield from held
                    held.clear()
                yield key, outcome
        except InputError:
            yield from held
            raise
        yield from held


def _retrying(limits: Limits, stop: threading.Event):
    try:
        import tenacity
    except ImportError as error:
        raise InputError("tenacity is missing; pip install 'fgrlhf_jax[collect]'") from error
    back_off = tenacity.wait_random_exponential(limits.back_off, limits.longest_wait)

    def wait(state) -> float:
        asked = state.outcome.exception().retry_after
        return max(asked or 0.0, back_off(state))

    return tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(Transient),
        wait=wait,
        stop=tenacity.stop_after_attempt(limits.retries + 1)
        | tenacity.stop_when_event_set(stop),
        sleep=tenacity.sleep_using_event(stop),
        reraise=True,
    )


def by_chunks(
    todo: dict[str, Request],
    send: Callable[[Sequence[Request]], Sequence[Reply | Refused]],
    stored: Cache,
    limits: Limits,
    spent: Spent,
    chunk: int,
) -> Iterator[tuple[str, Outcome]]:
    """As :func:`by_threads`, for a model on this machine."""
    budget, items = _Budget(limits, spent), list(todo.items())
    while items:
        count = budget.begin(count=min(chunk, len(items)))
        some, items = items[:count], items[count:]
        replies = send([request for _, request in some])
        for (key, _), reply in zip(some, replies, strict=True):
            if isinstance(reply, Reply):
                budget.add(reply)
                stored.put(key, reply)
        for (key, _), reply in zip(some, replies, strict=True):
            yield key, reply if isinstance(reply, Reply) else Rejected(str(reply))
