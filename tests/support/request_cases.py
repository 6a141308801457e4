"""Questions, a model that counts them, and what commands do with its answers."""

import contextlib
import json
import threading
from pathlib import Path

import llm_server

from fgrlhf_jax.feedback.llm import cache
from fgrlhf_jax.feedback.llm.client import Reply, Request
from fgrlhf_jax.feedback.llm.requests import Limits, Rejected, collect_replies, request_key

QUICK = Limits(back_off=0.001, longest_wait=0.01)
IDENTITY = {"provider": "openai", "model": "m", "base_url": ""}


def questions(count: int) -> list[Request]:
    return [Request(f"question {n}") for n in range(count)]


def says(request: Request) -> Reply:
    return Reply(llm_server.echo(request.prompt), "end", 2, 3)


def run(requests, send, folder: Path, limits: Limits = QUICK, identity=IDENTITY, **options):
    return list(
        collect_replies(
            requests,
            send,
            cache=folder / "cache.sqlite",
            identity=identity,
            limits=limits,
            **options,
        )
    )


def save(requests, send, folder: Path, limits: Limits = QUICK, **options) -> tuple[int, int]:
    """As a command does it: a row a request, what was refused or is empty set aside."""

    def rows(done):
        replies = collect_replies(
            requests[done:],
            send,
            cache=folder / "cache.sqlite",
            identity=IDENTITY,
            limits=limits,
            **options,
        )
        for request, reply in zip(requests[done:], replies, strict=True):
            if isinstance(reply, Rejected):
                yield {"prompt": request.prompt, "reason": reply.reason}, False
            else:
                yield {"prompt": request.prompt, "text": reply.text}, reply.text != ""

    digests = [request_key(IDENTITY, request) for request in requests]
    return cache.append_rows(folder / "out.jsonl", digests, rows)


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]


class Counting:
    """A model that counts; ``plan`` gives what to raise, if anything."""

    def __init__(self, plan=lambda prompt, before: None):
        self.plan, self.asked, self.lock = plan, [], threading.Lock()

    def __call__(self, request: Request) -> Reply:
        with self.lock:
            before = self.asked.count(request.prompt)
            self.asked.append(request.prompt)
        if fault := self.plan(request.prompt, before):
            raise fault
        return says(request)


def in_cache(folder: Path, requests) -> set[str]:
    """Prompts whose answers are there."""
    with contextlib.closing(cache.Cache(folder / "cache.sqlite")) as stored:
        return {r.prompt for r in requests if request_key(IDENTITY, r) in stored}
