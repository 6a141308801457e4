"""Many requests, each asked until it is answered and then never again.

    output <- durable.append_rows <- rows of the caller's <- answers <- cache <- attempts <- send

A reply is in the cache, durably, before anybody sees it, under a hash of all that determines it; a
run that was killed, stopped by a cap or left without some answers goes on with the rest. Answers
come in the order of their requests, so that a file made of them is always a prefix of the file
that it will be.
"""

import contextlib
import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.feedback.llm import client as llm
from fgrlhf_jax.feedback.llm import requests as attempts
from fgrlhf_jax.feedback.llm.cache import Cache
from fgrlhf_jax.feedback.llm.client import Reply, Request
from fgrlhf_jax.feedback.llm.requests import Limits, Rejected, Spent


class Estimate(NamedTuple):
    """What is still to be asked: requests, tokens to read (a guess), tokens written at most."""

    requests: int
    input_tokens: int
    output_tokens: int


def digest(identity: dict, request: Request) -> str:
    """The key of an answer: sha256 of all that determines it."""
    parts = [identity, dataclasses.asdict(request)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def estimate(requests: Sequence[Request], *, cache: Path, identity: dict) -> Estimate:
    """Requests whose answers are not in the cache, and about how many tokens they will take."""
    wanted = {digest(identity, request): request for request in requests}
    if Path(cache).exists():
        with contextlib.closing(Cache(cache)) as stored:
            wanted = {key: request for key, request in wanted.items() if key not in stored}
    return Estimate(
        len(wanted),
        sum(llm.about_tokens(request.system + request.prompt) for request in wanted.values()),
        sum(request.max_tokens for request in wanted.values()),
    )


def answers(
    requests: Sequence[Request],
    send: Callable,
    *,
    cache: Path,
    identity: dict,
    limits: Limits | None = None,
    spent: Spent | None = None,
    progress: Callable[[Iterable], Iterable] = iter,
    chunk: int = 0,
) -> Iterator[Reply | Rejected]:
    """The replies in the order of the requests, each as soon as all before it are there.

    Args:
      send: as :func:`llm.connect` returns it, called from several threads; with ``chunk`` above
        0 it takes a list of at most so many requests, in this thread, and returns a list with a
        Reply or a Refused for each.
      cache: an SQLite file, made where it is missing.
      identity: what determines an answer besides its request: provider, model, address, …
      spent: counted up while the run goes on.
      progress: wraps the iteration over the requests that are still to be asked.

    A request that is refused yields Rejected, and is not remembered. Where a request has no answer
    after all its tries, the others are still asked; nothing is yielded from its place on.

    Raises:
      InputError: for a cache that cannot be used; at a cap; for what `send` raises as one; when
        requests in a row are refused; and at the end when some have no answer. What arrived is
        kept: run again to go on.
    """
    limits, spent = limits or Limits(), Spent() if spent is None else spent
    keys = [digest(identity, request) for request in requests]
    with contextlib.closing(Cache(cache)) as stored:
        there: dict[str, Rejected | None] = {key: None for key in keys if key in stored}
        spent.cached += sum(key in there for key in keys)
        todo = {k: r for k, r in zip(keys, requests, strict=True) if k not in there}
        failed: dict[str, str] = {}
        place = 0

        def ready() -> Iterator[Reply | Rejected]:
            nonlocal place
            while place < len(keys) and keys[place] in there:
                place += 1
                yield there[keys[place - 1]] or stored[keys[place - 1]]

        yield from ready()
        if todo:
            outcomes = (
                attempts.by_chunks(todo, send, stored, limits, spent, chunk)
                if chunk
                else attempts.by_threads(todo, send, stored, limits, spent)
            )
            with contextlib.closing(attempts.believed(outcomes, limits)) as outcomes:
                for _, (key, outcome) in zip(
                    progress(range(len(todo))), outcomes, strict=False
                ):
                    if isinstance(outcome, str):
                        failed[key] = outcome
                    else:
                        there[key] = outcome if isinstance(outcome, Rejected) else None
                        yield from ready()
    if failed:
        raise InputError(
            f"{len(failed)} of {len(requests)} requests have no answer after "
            f"{limits.retries + 1} tries each ({_counted(failed.values())}); the other answers "
            "are kept: run again to ask for these only; if it stays so, raise timeout or take "
            "their rows out"
        )


def _counted(reasons: Iterable[str]) -> str:
    """The most frequent reasons, with their counts where they differ."""
    common = Counter(reasons).most_common(3)
    return common[0][0] if len(common) == 1 else "; ".join(f"{n} × {why}" for why, n in common)
