"""Sends many requests to a language model: in parallel, paced, retried, within a budget.

    collect_replies <- cache <- send_concurrently (server) | send_in_batches (own machine) <- send

Every reply is in the cache, on the disk, before the caller sees it, under a hash of everything that
determines it. A run that was killed, stopped at a cap or left without some replies continues with
the remaining requests. Replies come in the order of their requests, so that a file made of them is
always a prefix of the complete file. Whatever ends a run (a cap, a wrong key, Ctrl-C), no new
attempt starts, and no thread keeps the process alive.
"""

import contextlib
import dataclasses
import hashlib
import json
import logging
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.feedback.llm.cache import Cache
from fgrlhf_jax.feedback.llm.client import (
    Refused,
    Reply,
    Request,
    Send,
    Transient,
    estimate_tokens,
)

LOG = logging.getLogger(__name__)
GIVE_UP = 10  # consecutive requests without a reply after all their tries: the server is gone
LONGEST_PAUSE = 600.0  # seconds that a server may ask for; beyond, the run stops
GRACE = 1.0  # seconds for requests in flight when a run is interrupted
STORED = "replies that arrived are stored: run again to continue"
POLL = 0.5  # seconds of one wait: a Ctrl-C that comes just before a wait does not end it


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits of rate, retries and budget; 0 is no limit (but of concurrency).

    Attributes:
      concurrency: requests in flight at once.
      requests_per_minute: attempts, evenly spread.
      retries: further tries of a request after a transient fault.
      max_refusals: consecutive refusals, without a reply between them, at which the run stops:
        their reason is then not in the single request.
      max_requests, max_tokens: caps on the attempts, and on the tokens of the replies (read and
        written), of this run. Requests in flight at the cap are still waited for and counted.
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
        if self.concurrency < 1:
            raise InputError(f"concurrency={self.concurrency} must be at least 1")


@dataclasses.dataclass
class Usage:
    """The cost of a run so far; ``requests`` counts every attempt, ``cached`` replies are free."""

    requests: int = 0
    retries: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cached: int = 0

    def __post_init__(self):
        self._lock = threading.Lock()

    @property
    def tokens(self) -> int:
        return self.input_tokens + self.output_tokens

    def begin(self, limits: Limits, *, retry: bool = False, count: int = 1) -> int:
        """Counts up to ``count`` attempts before they are made; raises InputError at a cap."""
        with self._lock:
            for name, value in (("max_requests", self.requests), ("max_tokens", self.tokens)):
                cap = getattr(limits, name)
                if 0 < cap <= value:
                    raise InputError(
                        f"stopped at {name}={cap} after {self}; {STORED}, with the same {name} "
                        "once more to spend"
                    )
            if limits.max_requests:
                count = min(count, limits.max_requests - self.requests)
            self.requests += count
            self.retries += retry
            return count

    def add(self, reply: Reply) -> None:
        with self._lock:
            self.input_tokens += reply.input_tokens
            self.output_tokens += reply.output_tokens

    def __str__(self) -> str:
        return (
            f"{self.requests} requests ({self.retries} of them retries), {self.input_tokens} "
            f"tokens read and {self.output_tokens} written; {self.cached} replies from the cache"
        )


@dataclasses.dataclass(frozen=True)
class Rejected:
    """The outcome of a request that gets no reply however often it is sent."""

    reason: str


Outcome = Reply | Rejected | str  # a text says why there is no reply


class Estimate(NamedTuple):
    """The remaining work: requests, tokens to read (a guess), tokens written at most."""

    requests: int
    input_tokens: int
    output_tokens: int


def request_key(identity: dict, request: Request) -> str:
    """The key of a reply in the cache: sha256 of everything that determines it."""
    fields = dataclasses.asdict(request)
    if request.schema is None:
        del fields["schema"]  # the keys of caches from before there was one
    parts = [identity, fields]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def estimate(requests: Sequence[Request], *, cache: Path, identity: dict) -> Estimate:
    """The requests whose replies are not in the cache, and about how many tokens they take."""
    remaining = {request_key(identity, request): request for request in requests}
    if Path(cache).exists():
        with contextlib.closing(Cache(cache)) as stored:
            remaining = {key: req for key, req in remaining.items() if key not in stored}
    return Estimate(
        len(remaining),
        sum(estimate_tokens(request.system + request.prompt) for request in remaining.values()),
        sum(request.max_tokens for request in remaining.values()),
    )


def collect_replies(
    requests: Sequence[Request],
    send: Callable,
    *,
    cache: Path,
    identity: dict,
    limits: Limits | None = None,
    usage: Usage | None = None,
    progress: Callable[[Iterable], Iterable] = iter,
    batch_size: int = 0,
) -> Iterator[Reply | Rejected]:
    """Yields the replies in the order of the requests, each as soon as all before it are known.

    Args:
      send: as :func:`client.connect` returns it, called from several threads; with ``batch_size``
        above 0 it takes a list of at most so many requests, in this thread, and returns a list with
        a Reply or a Refused for each.
      cache: an SQLite file, created where it is missing.
      identity: what determines a reply besides its request: provider, model, address, …
      usage: counted up while the run goes on.
      progress: wraps the iteration over the requests that are still to be sent.

    A request that is refused yields Rejected, and is not stored. Where a request has no reply after
    all its tries, the others are still sent; nothing is yielded from its position on.

    Raises:
      InputError: for a cache that cannot be used; at a cap; for what `send` raises as one; when
        consecutive requests are refused; and at the end when some have no reply. Replies that
        arrived are stored: run again to continue.
    """
    limits, usage = limits or Limits(), usage or Usage()
    keys = [request_key(identity, request) for request in requests]
    with contextlib.closing(Cache(cache)) as stored:
        # What has arrived, by key; None stands for a reply that is in the cache.
        arrived: dict[str, Rejected | None] = dict.fromkeys(filter(stored.__contains__, keys))
        usage.cached += sum(key in arrived for key in keys)
        todo = {k: r for k, r in zip(keys, requests, strict=True) if k not in arrived}
        failed: dict[str, str] = {}
        position = 0

        def ready() -> Iterator[Reply | Rejected]:
            nonlocal position
            while position < len(keys) and keys[position] in arrived:
                position += 1
                yield arrived[keys[position - 1]] or stored[keys[position - 1]]

        yield from ready()
        if todo:
            run = (todo, send, stored, limits, usage)
            outcomes = send_in_batches(*run, batch_size) if batch_size else send_concurrently(*run)
            with contextlib.closing(confirm_refusals(outcomes, limits)) as outcomes:
                bar = progress(range(len(todo)))
                for _, (key, outcome) in zip(bar, outcomes, strict=False):
                    if isinstance(outcome, str):
                        failed[key] = outcome
                    else:
                        arrived[key] = outcome if isinstance(outcome, Rejected) else None
                        yield from ready()
    if failed:
        reasons = "; ".join(f"{n} × {why}" for why, n in Counter(failed.values()).most_common(3))
        raise InputError(
            f"{len(failed)} of {len(requests)} requests have no reply after {limits.retries + 1} "
            f"tries each ({reasons}); the other replies are stored: run again to send these only; "
            "if they fail again, raise timeout or remove their rows"
        )


def send_concurrently(
    todo: dict[str, Request], send: Send, stored: Cache, limits: Limits, usage: Usage
) -> Iterator[tuple[str, Outcome]]:
    """Yields (key, outcome) in the order of arrival, from several threads; replies are stored.

    Closing the iterator stops the threads, or abandons those that wait for a server.
    """
    workers = _Workers(todo, send, stored, limits, usage)
    unanswered, end = 0, None
    try:
        for _ in todo:
            key, outcome = workers.next()
            if isinstance(outcome, BaseException):
                end = outcome
                break
            yield key, outcome
            unanswered = unanswered + 1 if isinstance(outcome, str) else 0
            if unanswered == GIVE_UP < len(todo):
                end = InputError(
                    f"{unanswered} requests in a row have no reply after {limits.retries + 1} "
                    f"tries each ({outcome}); {STORED}"
                )
                break
        if end:
            for key, outcome in workers.finish():
                if isinstance(outcome, Reply | Rejected):
                    yield key, outcome
            raise end
    finally:
        workers.abandon()


class _Workers:
    """Threads that send requests, with retries, and store each reply before they report it."""

    def __init__(self, todo, send, stored, limits, usage):
        self.send, self.stored, self.limits, self.usage = send, stored, limits, usage
        self.stop = threading.Event()
        self.rate = RateLimiter(limits.requests_per_minute, sleep=self.stop.wait)
        self.retrying = _retrying(limits, self.stop)
        self.warned: set[str] = set()
        self.waiting: queue.SimpleQueue = queue.SimpleQueue()
        self.outcomes: queue.SimpleQueue = queue.SimpleQueue()
        for item in todo.items():
            self.waiting.put(item)
        count = min(limits.concurrency, len(todo))
        self.threads = [threading.Thread(target=self._work, daemon=True) for _ in range(count)]
        for thread in self.threads:
            thread.start()

    def next(self) -> tuple[str, Outcome | BaseException]:
        """Waits for the next outcome; Ctrl-C works while it waits."""
        while True:
            with contextlib.suppress(queue.Empty):
                return self.outcomes.get(timeout=POLL)

    def finish(self) -> Iterator[tuple[str, Outcome | BaseException]]:
        """Starts no more requests; waits for those in flight, which are paid for."""
        self.stop.set()
        for thread in self.threads:
            while thread.is_alive():
                thread.join(POLL)
        while not self.outcomes.empty():
            yield self.outcomes.get()

    def abandon(self) -> None:
        """Starts no more requests, and gives those in flight a moment."""
        self.stop.set()
        deadline = time.monotonic() + GRACE
        for thread in self.threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _work(self) -> None:
        while not self.stop.is_set():
            try:
                key, request = self.waiting.get_nowait()
            except queue.Empty:
                return
            outcome: Outcome | BaseException
            try:
                for number, turn in enumerate(self.retrying.copy()):
                    with turn:
                        outcome = self._attempt(key, request, number > 0)
            except Transient as fault:
                outcome = str(fault)
            except Refused as fault:
                outcome = Rejected(str(fault))
            except BaseException as error:  # for the main thread
                outcome = error
            self.outcomes.put((key, outcome))
            if isinstance(outcome, BaseException):
                self.stop.set()  # only now: what the stop breaks off comes behind it

    def _attempt(self, key: str, request: Request, retry: bool) -> Reply:
        self.rate.wait()
        if self.stop.is_set():
            raise Transient("the run was stopped")
        self.usage.begin(self.limits, retry=retry)
        try:
            reply = self.send(request)
        except Transient as fault:
            if (kind := str(fault)[:20]) not in self.warned:
                self.warned.add(kind)
                LOG.warning("%s; trying again", fault)
            if fault.retry_after is not None:
                if fault.retry_after > LONGEST_PAUSE:
                    raise InputError(
                        f"the server wants a pause of {fault.retry_after:.0f} s ({fault}); {STORED}"
                    ) from None
                self.rate.pause(fault.retry_after)
            raise
        self.usage.add(reply)
        self.stored.put(key, reply)
        return reply


def _retrying(limits: Limits, stop: threading.Event):
    """Tenacity's loop over the tries of one request, which ends when ``stop`` is set."""
    try:
        import tenacity
    except ImportError as error:
        raise InputError("tenacity is missing; pip install 'fgrlhf_jax[collect]'") from error
    back_off = tenacity.wait_random_exponential(limits.back_off, limits.longest_wait)
    last = tenacity.stop_after_attempt(limits.retries + 1)
    return tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(Transient),
        wait=lambda state: max(state.outcome.exception().retry_after or 0.0, back_off(state)),
        stop=last | tenacity.stop_when_event_set(stop),
        sleep=tenacity.sleep_using_event(stop),
        reraise=True,
    )


class RateLimiter:
    """Says when attempts may start: evenly spread, and not within a server's pause."""

    def __init__(self, per_minute: float, now=time.monotonic, sleep=time.sleep):
        self.gap = 60 / per_minute if per_minute else 0.0
        self.now, self.sleep = now, sleep
        self.lock, self.next, self.paused_until = threading.Lock(), now(), now()

    def wait(self) -> None:
        """Returns when it is this attempt's turn, or `sleep` returns True: the run is over."""
        start = None
        while True:
            with self.lock:
                now = self.now()
                if start is None or start < self.paused_until:  # a pause began: queue again
                    start = max(now, self.next)
                    self.next = start + self.gap
            if start <= now or self.sleep(start - now):
                return

    def pause(self, seconds: float) -> None:
        """No attempt starts within ``seconds``, not even one whose turn it is."""
        with self.lock:
            self.paused_until = max(self.paused_until, self.now() + seconds)
            self.next = max(self.next, self.paused_until)


def send_in_batches(
    todo: dict[str, Request],
    send: Callable[[Sequence[Request]], Sequence[Reply | Refused]],
    stored: Cache,
    limits: Limits,
    usage: Usage,
    batch_size: int,
) -> Iterator[tuple[str, Outcome]]:
    """Yields (key, outcome) as :func:`send_concurrently`, for a model on this machine."""
    items = list(todo.items())
    while items:
        count = usage.begin(limits, count=min(batch_size, len(items)))
        batch, items = items[:count], items[count:]
        outcomes: dict[str, Outcome] = {}
        for (key, _), reply in zip(batch, send([r for _, r in batch]), strict=True):
            if isinstance(reply, Reply):
                usage.add(reply)
                stored.put(key, reply)
            outcomes[key] = reply if isinstance(reply, Reply) else Rejected(str(reply))
        yield from outcomes.items()  # only when all of them are stored


def confirm_refusals(
    outcomes: Iterator[tuple[str, Outcome]], limits: Limits
) -> Iterator[tuple[str, Outcome]]:
    """Yields the outcomes, a refusal only when a later reply shows that not all are refused.

    Raises:
      InputError: at ``max_refusals`` in a row. They are not yielded, so they are sent again.
    """
    refusals: list[tuple[str, Outcome]] = []
    with contextlib.closing(outcomes):
        try:
            for key, outcome in outcomes:
                if isinstance(outcome, Rejected):
                    refusals.append((key, outcome))
                    if len(refusals) == limits.max_refusals:
                        refusals.clear()
                        raise InputError(
                            f"{limits.max_refusals} requests in a row are refused "
                            f"({outcome.reason}); correct the requests, or, if only these are "
                            f"wrong, set limits.max_refusals=0; {STORED}"
                        )
                    continue
                if isinstance(outcome, Reply):
                    yield from refusals
                    refusals.clear()
                yield key, outcome
        except InputError:
            yield from refusals
            raise
        yield from refusals
