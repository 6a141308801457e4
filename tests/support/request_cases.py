"""Requests, a fake model that counts them, and what commands do with its replies."""

import contextlib
import json
import threading
from pathlib import Path

import llm_server

from fgrlhf_jax.feedback.llm.cache import Cache, append_rows
from fgrlhf_jax.feedback.llm.client import Reply, Request
from fgrlhf_jax.feedback.llm.requests import Limits, Rejected, collect_replies, request_key

QUICK = Limits(back_off=0.001, longest_wait=0.01)
IDENTITY = {"provider": "openai", "model": "m", "base_url": ""}


def questions(count: int) -> list[Request]:
    return [Request(f"question {n}") for n in range(count)]


def number_of(request: Request) -> int:
    return int(request.prompt.split()[1])


def echo(request: Request) -> Reply:
    return Reply(llm_server.echo(request.prompt), "end", 2, 3)


def collect(requests, send, folder: Path, limits: Limits = QUICK, **options):
    """An iterator over the replies, with the cache in ``folder``."""
    options = {"cache": folder / "cache.sqlite", "identity": IDENTITY, **options}
    return collect_replies(requests, send, limits=limits, **options)


def save(requests, send, folder: Path, limits: Limits = QUICK, **options) -> tuple[int, int]:
    """As a command does it: a row a request; refused and empty replies are rejected."""

    def rows(done):
        replies = collect(requests[done:], send, folder, limits, **options)
        for request, reply in zip(requests[done:], replies, strict=True):
            if isinstance(reply, Rejected):
                yield {"prompt": request.prompt, "reason": reply.reason}, False
            else:
                yield {"prompt": request.prompt, "text": reply.text}, reply.text != ""

    keys = [request_key(IDENTITY, request) for request in requests]
    return append_rows(folder / "out.jsonl", keys, rows)


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]


class FakeModel:
    """Echoes and counts its requests; ``plan`` gives an exception to raise, or None."""

    def __init__(self, plan=lambda prompt, before: None):
        self.plan, self.prompts, self.lock = plan, [], threading.Lock()

    def __call__(self, request: Request) -> Reply:
        with self.lock:
            before = self.prompts.count(request.prompt)
            self.prompts.append(request.prompt)
        if fault := self.plan(request.prompt, before):
            raise fault
        return echo(request)


def cached_prompts(folder: Path, requests, name="cache.sqlite", identity=IDENTITY) -> set[str]:
    with contextlib.closing(Cache(folder / name)) as stored:
        return {r.prompt for r in requests if request_key(identity, r) in stored}
