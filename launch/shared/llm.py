"""Shared code of commands that send requests to a language model: connection, dry run, replies."""

import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.feedback.llm import client, requests
from fgrlhf_jax.feedback.llm.client import Rejected, Reply, Request, estimate_tokens
from fgrlhf_jax.feedback.llm.requests import Usage
from fgrlhf_jax.runtime.files import digest
from launch.shared import cli

LOCAL_IDENTITY = ("template", "max_prompt_length", "seed", "dtype")
PROMPTS_SHOWN = 3  # in a dry run
BATCHES_STORED = 2  # a local model's replies are stored every two batches


def check(config) -> None:
    """Raises InputError for invalid fields, before any file is read."""
    client.check_url(config.base_url)
    if config.provider == "local" and config.reply_format == "json_schema":
        raise InputError("reply_format=json_schema: local models support no schema; use text")
    for field in ("model", "output"):
        if not (config[field] or config.dry_run):
            raise InputError(
                f"{field} is empty; give --config.provider=anthropic|openai|local "
                "--config.model=NAME --config.output=FILE, or --dry-run to see the prompts"
            )


def model_identity(config) -> dict:
    """Everything that determines a reply besides its request, for the cache."""
    identity = {"provider": config.provider, "model": config.model}
    identity["base_url"] = client.check_url(config.base_url)
    if config.provider == "local":
        identity |= {name: config.local[name] for name in LOCAL_IDENTITY}
        path = Path(config.model)  # hash the files: the same path may hold new weights
        path = path / "export" if (path / "export").is_dir() else path
        files = sorted(path.glob("*")) if path.is_dir() else [path]
        files = filter(Path.is_file, files)
        identity["files"] = [[f.name, _sha256(f, f.stat().st_mtime_ns)] for f in files]
    return identity


@functools.cache
def _sha256(path: Path, modified: int) -> str:
    """The hash of a file's content; ``modified``, its mtime, is part of the memo's key."""
    return digest(path)


def reply_format(config) -> str:
    """The reply format: "json_schema" (``Request.schema``) or "text" (described in the prompt)."""
    if config.reply_format != "auto":
        return config.reply_format
    return "text" if config.provider == "local" or config.base_url.strip() else "json_schema"


def cache_path(config) -> Path:
    return Path(config.cache or Path(config.output or "replies").with_suffix(".cache.sqlite"))


def find_remaining(config, prompts: Sequence[Request]) -> list[Request]:
    """The requests that have no reply in the cache."""
    identity = model_identity(config)
    return requests.find_remaining(prompts, cache=cache_path(config), identity=identity)


def connect(config, prompts: Sequence[Request]) -> tuple[Callable | None, Usage]:
    """Connects to the model; returns a function that sends requests, and the usage counter.

    The function is None if the cache has all replies. Raises InputError for an unknown model.
    """
    usage = Usage(**config.limits)
    if not find_remaining(config, prompts):
        return None, usage
    if config.provider == "local":
        from fgrlhf_jax.feedback.llm import local  # seconds to import

        cli.use_devices()
        return local.connect(config.model, **config.local), usage
    options = {"base_url": config.base_url, "timeout": config.timeout, "retries": usage.retries}
    return client.Client(config.provider, config.model, **options), usage


def collect_replies(
    config, prompts: Sequence[Request], send: Callable | None, usage: Usage
) -> Iterator[Reply | Rejected]:
    """Yields replies in order, with a progress bar; :func:`connect` returns the last arguments."""
    local = config.provider == "local"
    return requests.collect_replies(
        prompts,
        send,
        cache=cache_path(config),
        identity=model_identity(config),
        usage=usage,
        progress=lambda todo: tqdm(todo, unit="reply"),
        batch_size=BATCHES_STORED * config.local.batch_size if local else 0,
    )


def print_dry_run(config, prompts: Sequence[Request], tokens_out: int = 0) -> None:
    """Prints the first prompts as they would be sent, and estimates of tokens and cost.

    ``tokens_out`` is the estimated number of output tokens for all prompts, 0 if unknown.
    """
    for number, request in enumerate(prompts[:PROMPTS_SHOWN], 1):
        print(f"== prompt {number} of {len(prompts)}\n{request.prompt}\n")
    remaining = find_remaining(config, prompts)
    tokens_in = sum(estimate_tokens(request.prompt) for request in remaining)
    tokens_out = round(tokens_out * len(remaining) / max(1, len(prompts)))
    bounds = [("about", tokens_out)] if tokens_out else []
    bounds.append(("at most", sum(request.max_tokens for request in remaining)))
    print(
        f"{len(remaining)} requests to {config.provider}/{config.model or 'MODEL'}: about "
        f"{tokens_in:,} tokens to read, "
        f"{', '.join(f'{bound} {tokens:,}' for bound, tokens in bounds)} to write; "
        f"{len(prompts) - len(remaining)} of {len(prompts)} prompts are answered already "
        "or duplicates"
    )
    if config.price_input or config.price_output:
        read = config.price_input * tokens_in / 1e6
        costs = [(bound, read + config.price_output * n / 1e6) for bound, n in bounds]
        text = ", ".join(f"{bound} {cost:.2f}" for bound, cost in costs)
        print(f"cost at price_input and price_output: {text}")


def command(main: Callable, default: str, doc: str) -> None:
    """Runs a command as :func:`cli.command` does; --dry-run is short for --config.dry_run=True."""
    sys.argv[1:] = [
        "--config.dry_run=True" if flag in ("--dry-run", "--dry_run") else flag
        for flag in sys.argv[1:]
    ]
    cli.command(main, default, doc)
