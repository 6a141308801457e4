"""Sends many requests to a language model concurrently, with limits on rate and cost.

Every reply is in the cache on disk before the caller gets it. Its key is a hash of everything that
determines it. A run that was killed, reached a limit or lacks some replies continues with the
remaining requests. Replies are yielded in the order of their requests, so that a file of them is
always a prefix of the complete file. Processes that share a cache send each request once.
"""

import asyncio
import contextlib
import dataclasses
import hashlib
import itertools
import json
import logging
import math
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.feedback.llm import client
from fgrlhf_jax.feedback.llm.cache import Cache
from fgrlhf_jax.feedback.llm.client import Client, Outcome, Rejected, Reply, Request

LOG = logging.getLogger(__name__)
STORED = "replies that arrived are stored: run again to continue"
GRACE = 1.0  # seconds for requests in flight when a run is interrupted
POLL = 0.5  # seconds of one wait; short, since a Ctrl-C just before a wait does not end it
CLAIM_POLL = 0.05  # seconds between checks of a request that another process is sending
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 8.0  # seconds before a retry after an unusable reply


class Stopped(BaseException):
    """No further try may start. Not an Exception, after which the official clients retry."""


@dataclasses.dataclass
class Usage:
    """The limits of a run (0: none) and its cost so far, including retries.

    The run stops after ``max_refusals`` consecutive requests without a reply. At a limit, requests
    in flight are completed and counted. ``end`` is the reason why no further try may start.
    """

    concurrency: int = 8
    requests_per_minute: float = 0
    retries: int = 6
    max_refusals: int = 10
    max_requests: int = 0
    max_tokens: int = 0
    requests: int = 0
    retried: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cached: int = 0
    end: BaseException | None = dataclasses.field(default=None, compare=False)
    next_start: float = dataclasses.field(default=0.0, compare=False)

    def begin(self, count: int = 1) -> int:
        """Counts, and returns, up to ``count`` tries in advance; raises InputError at a limit."""
        tokens = self.input_tokens + self.output_tokens
        for name, spent in (("max_requests", self.requests), ("max_tokens", tokens)):
            if 0 < (cap := getattr(self, name)) <= spent:
                advice = f"{STORED}, with the same {name} once more to spend"
                raise InputError(f"stopped at {name}={cap} after {self}; {advice}")
        count = min(count, self.max_requests - self.requests) if self.max_requests else count
        self.requests += count
        return count

    async def before_try(self, retry: bool = True) -> None:
        """Waits until a try may start, and counts it; raises Stopped if no further one may."""
        start = max(time.monotonic(), self.next_start)
        self.next_start = start + 60 / (self.requests_per_minute or math.inf)
        try:
            while self.end is None and (pause := start - time.monotonic()) > 0:
                self.begin(0)
                await asyncio.sleep(min(pause, POLL))
            if self.end is None:
                self.begin()
        except InputError as error:
            self.end = error
        if self.end:
            raise Stopped
        if retry and not self.retried:
            LOG.warning("the server or the network fails now and then; trying again")
        self.retried += retry

    def add(self, reply: Reply) -> None:
        self.input_tokens += reply.input_tokens
        self.output_tokens += reply.output_tokens

    def __str__(self) -> str:
        return (
            f"{self.requests} requests ({self.retried} of them retries), {self.input_tokens} "
            f"tokens read and {self.output_tokens} written; {self.cached} replies from the cache"
        )


def request_key(identity: dict, request: Request) -> str:
    """Returns the key of a reply in the cache: the sha256 of everything that determines it."""
    fields = dataclasses.asdict(request) | {"system": ""}  # as in caches of earlier versions
    if request.schema is None:
        del fields["schema"]
    return hashlib.sha256(json.dumps([identity, fields], sort_keys=True).encode()).hexdigest()


def find_remaining(requests: Sequence[Request], *, cache: Path, identity: dict) -> list[Request]:
    """Returns the distinct requests whose replies are not in the cache."""
    remaining = {request_key(identity, request): request for request in requests}
    if Path(cache).exists():
        with contextlib.closing(Cache(cache)) as stored:
            return [request for key, request in remaining.items() if not stored.get(key)]
    return list(remaining.values())


def collect_replies(
    requests: Sequence[Request],
    send: Callable | None,
    *,
    cache: Path,
    identity: dict,
    usage: Usage | None = None,
    progress: Callable[[Iterable], Iterable] = iter,
    batch_size: int = 0,
) -> Iterator[Reply | Rejected]:
    """Yields the replies in the order of the requests, each as soon as those before it are known.

    Args:
      send: a :class:`client.Client`, closed at the end; with ``batch_size`` above 0 a function from
        at most that many requests to their outcomes. None if all replies are in the cache.
      identity: what determines a reply besides its request: provider, model, address, …
      progress: wraps the iteration over the requests that are not in the cache.

    If a request has no reply after all retries, the others are still sent, but no reply from its
    position on is yielded, and an InputError is raised at the end.
    """
    usage = usage or Usage()
    keys = [request_key(identity, request) for request in requests]
    with contextlib.closing(Cache(cache)) as stored:
        # By key; None for a reply, which is in the cache.
        arrived: dict[str, Rejected | None] = dict.fromkeys(filter(stored.get, keys))
        usage.cached += sum(key in arrived for key in keys)
        todo = {k: r for k, r in zip(keys, requests, strict=True) if k not in arrived}
        rejected: dict[str, Rejected] = {}  # since the last reply: maybe all are
        failed: dict[str, str] = {}
        waiting, in_a_row = deque(keys), 0

        def ready() -> Iterator[Reply | Rejected]:
            while waiting and waiting[0] in arrived:
                key = waiting.popleft()
                yield arrived[key] or stored.get(key)

        yield from ready()
        sender = _send_in_batches if batch_size else _send_concurrently
        with contextlib.closing(sender(todo, send, stored, usage, batch_size)) as outcomes:
            steps = range(len(todo))
            for _, (key, outcome) in zip(progress(steps) if todo else (), outcomes, strict=False):
                in_a_row = 0 if isinstance(outcome, Reply) else in_a_row + 1
                if isinstance(outcome, str):
                    failed[key] = outcome
                elif isinstance(outcome, Rejected):
                    rejected[key] = outcome
                else:
                    arrived |= rejected | {key: None}
                    rejected = {}
                if in_a_row and in_a_row == usage.max_refusals:
                    reason = getattr(outcome, "reason", outcome)
                    raise InputError(
                        f"{in_a_row} requests in a row have no reply ({reason}); correct what they "
                        f"share, or, if only these are wrong, set limits.max_refusals=0; {STORED}"
                    )
                yield from ready()
        arrived |= rejected
        yield from ready()
    if failed:
        reasons = "; ".join(f"{n} × {why}" for why, n in Counter(failed.values()).most_common(3))
        raise InputError(
            f"{len(failed)} of {len(requests)} requests have no reply after up to "
            f"{usage.retries + 1} tries each ({reasons}); the other replies are stored: run again "
            "to send these only; if they fail again, raise timeout or remove their rows"
        )


def _send_concurrently(
    todo: dict[str, Request], send, stored: Cache, usage: Usage, _
) -> Iterator[tuple[str, Outcome]]:
    """Yields (key, outcome) in the order of arrival, after storing a reply.

    Requests in flight are paid for, so they are awaited: at a limit all, on closing for `GRACE`.
    """
    waiting, tasks, usage.end = iter(todo.items()), {}, None
    if isinstance(send, Client):
        send.before_retry = usage.before_try
    runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
    # The caller's thread may run a loop, as in a notebook.
    with ThreadPoolExecutor(1) as thread, contextlib.ExitStack() as stack:
        stack.callback(lambda: thread.submit(runner.close).result())

        def run(coroutine):
            return thread.submit(runner.run, coroutine).result()

        try:
            while True:
                room = 0 if usage.end else usage.concurrency - len(tasks)
                for key, request in itertools.islice(waiting, room):
                    ask = _ask(key, request, send, stored, usage)
                    tasks[runner.get_loop().create_task(ask)] = key
                if not tasks:
                    break
                first = asyncio.wait(tasks, timeout=POLL, return_when=asyncio.FIRST_COMPLETED)
                for task in run(first)[0]:
                    key = tasks.pop(task)
                    if task.exception() is None:
                        yield key, task.result()
                    else:
                        usage.end = usage.end or task.exception()
            if usage.end:
                raise usage.end
        finally:
            usage.end = usage.end or Stopped()
            if tasks:
                run(asyncio.wait(tasks, timeout=GRACE))
            if isinstance(send, Client):
                run(send.aclose())


async def _ask(key: str, request: Request, send, stored: Cache, usage: Usage) -> Outcome:
    """Returns the outcome of one request, which no other process sends at the same time."""
    while not stored.claim(key):
        if usage.end:
            raise Stopped
        await asyncio.sleep(CLAIM_POLL)
    try:
        if reply := stored.get(key):  # another process has sent it
            usage.cached += 1
            return reply
        for number in range(usage.retries + 1):
            if number:
                await asyncio.sleep(min(FIRST_PAUSE * 2 ** (number - 1), LONGEST_PAUSE))
            await usage.before_try(retry=number > 0)
            outcome = await send(request)
            if not isinstance(outcome, Reply):
                return outcome
            usage.add(outcome)
            fault = client.find_fault(outcome)
            if not fault:
                stored.put(key, outcome)
                return outcome
            if outcome.stop == client.LENGTH:  # it would end at the same limit again
                break
        return fault
    finally:
        stored.claim(key, release=True)


def _send_in_batches(
    todo: dict[str, Request], send, stored: Cache, usage: Usage, batch_size: int
) -> Iterator[tuple[str, Outcome]]:
    """Yields (key, outcome) as :func:`_send_concurrently`, for a local model."""
    items = list(todo.items())
    while items:
        count = usage.begin(min(batch_size, len(items)))
        batch, items = items[:count], items[count:]
        outcomes = dict(zip(dict(batch), send([request for _, request in batch]), strict=True))
        for key, outcome in outcomes.items():
            if isinstance(outcome, Reply):
                usage.add(outcome)
                stored.put(key, outcome)
        yield from outcomes.items()  # after all of them are stored
