"""Requests, a fake model that counts them, and functions that save its replies as commands do."""

import asyncio
import contextlib
from pathlib import Path

import anyio
import llm_server

from fgrlhf_jax.feedback.llm import requests as llm_requests
from fgrlhf_jax.feedback.llm.cache import Cache
from fgrlhf_jax.feedback.llm.client import Client, Rejected, Reply, Request
from fgrlhf_jax.feedback.llm.requests import Usage, collect_replies, request_key
from fgrlhf_jax.runtime.continued_rows import append_rows
from launch.shared import config_files

IDENTITY = {"provider": "openai", "model": "m", "base_url": ""}


def shorten_pauses(setattr=setattr) -> None:
    """Shortens the pauses between retries, of the official clients and ours, to milliseconds."""
    sleep = anyio.sleep
    setattr(anyio, "sleep", lambda seconds: sleep(seconds / 500))
    setattr(llm_requests, "FIRST_PAUSE", 0.001)
    setattr(llm_requests, "LONGEST_PAUSE", 0.01)


def launch(module, **fields) -> None:
    """Runs a command in this process; "__" in fields means "."."""
    flags = [f"--config.{name.replace('__', '.')}={value}" for name, value in fields.items()]
    module.main(config_files.parse(["", *flags], module.CONFIG))


def questions(count: int) -> list[Request]:
    return [Request(f"question {n}") for n in range(count)]


def answer(request: Request) -> Reply:
    return Reply(llm_server.echo(request.prompt), "end", 2, 3)


def connected(server, provider: str = "openai", **options) -> Client:
    return Client(provider, "m", base_url=server.url + "/v1", **options)


def collect(requests, send, folder: Path, usage: Usage | None = None, **options):
    """An iterator over the replies, with the cache in ``folder``."""
    options = {"cache": folder / "cache.sqlite", "identity": IDENTITY, **options}
    return collect_replies(requests, send, usage=usage, **options)


def save(requests, send, folder: Path, usage: Usage | None = None, **options) -> tuple[int, int]:
    """Saves replies as commands do: one row per request, rejected replies in their own file."""

    def rows(done):
        replies = collect(requests[done:], send, folder, usage, **options)
        for request, reply in zip(requests[done:], replies, strict=True):
            if isinstance(reply, Rejected):
                yield {"prompt": request.prompt, "reason": reply.reason}, False
            else:
                yield {"prompt": request.prompt, "text": reply.text}, True

    keys = [request_key(IDENTITY, request) for request in requests]
    return append_rows(folder / "out.jsonl", keys, rows)


class FakeModel:
    """Echoes and counts its requests; ``plan`` gives an exception or an outcome, or None."""

    def __init__(self, plan=lambda prompt, before: None):
        self.plan, self.prompts = plan, []

    async def __call__(self, request: Request):
        before = self.prompts.count(request.prompt)
        self.prompts.append(request.prompt)
        await asyncio.sleep(0)
        outcome = self.plan(request.prompt, before)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome or answer(request)


def cached_prompts(folder: Path, requests, name="cache.sqlite", identity=IDENTITY) -> set[str]:
    with contextlib.closing(Cache(folder / name)) as stored:
        return {r.prompt for r in requests if stored.get(request_key(identity, r))}
