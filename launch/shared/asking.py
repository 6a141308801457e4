"""What commands that ask a language model share: who is asked, what it would take, the replies."""

import functools
import hashlib
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.feedback.llm import ask
from fgrlhf_jax.feedback.llm import client as llm
from launch.shared import cli

CHOICES = {
    "provider": (*llm.PROVIDERS, "local"),
    "local.template": ("", "alpaca", "chat", "plain"),
    "local.dtype": ("float32", "bfloat16"),
}
AT_LEAST = {
    **dict.fromkeys(("temperature", "price_input", "price_output", "local.seed"), 0),
    **dict.fromkeys(("max_new_tokens", "local.batch_size", "local.max_prompt_length"), 1),
}
LOCAL_IDENTITY = ("template", "max_prompt_length", "seed", "dtype")
SHOWN = 3  # prompts of a dry run
CHUNKS = 2  # batches of a local model between two times that its replies are stored


def check(config) -> None:
    """Raises InputError for what can be known to be wrong before anything is read."""
    cli.check(config, choices=CHOICES, at_least=AT_LEAST)
    ask.Limits(**config.limits)
    llm.check_url(config.base_url)
    for field in ("model", "output"):
        if not (config[field] or config.dry_run):
            raise InputError(
                f"{field} is empty; give --config.provider=anthropic|openai|local "
                "--config.model=NAME --config.output=FILE, or --dry-run to see the prompts"
            )


def identity(config) -> dict:
    """What determines a reply besides its request."""
    found = {
        "provider": config.provider,
        "model": config.model,
        "base_url": llm.check_url(config.base_url),
    }
    if config.provider == "local":
        found |= {name: config.local[name] for name in LOCAL_IDENTITY}
        path = Path(config.model)  # weights may be trained again under the same name
        path = path / "export" if (path / "export").is_dir() else path
        files = sorted(path.glob("*")) if path.is_dir() else [path]
        found["files"] = [
            [f.name, _sha256(f, f.stat().st_mtime_ns)] for f in files if f.is_file()
        ]
    return found


@functools.cache
def _sha256(path: Path, changed: int) -> str:
    """Of what a file holds, which was changed last at that time."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cache(config) -> Path:
    return Path(config.cache or Path(config.output or "replies").with_suffix(".cache.sqlite"))


def estimate(config, requests: Sequence[llm.Request]) -> ask.Estimate:
    """What is still to be asked of them."""
    return ask.estimate(requests, cache=cache(config), identity=identity(config))


def connect(config) -> Callable:
    """What requests are sent with; raises InputError where they could not be."""
    if config.provider == "local":
        from fgrlhf_jax.feedback.llm import local as local_llm  # seconds to import

        return local_llm.ask_local(config.model, **config.local)
    return llm.connect(
        config.provider, config.model, base_url=config.base_url, timeout=config.timeout
    )


def answers(
    config, requests: Sequence[llm.Request], send: Callable | None, spent: ask.Spent
) -> Iterator[llm.Reply | ask.Rejected]:
    """The replies in the order of the requests, with a bar; None will do where all are there."""
    return ask.answers(
        requests,
        send,
        cache=cache(config),
        identity=identity(config),
        limits=ask.Limits(**config.limits),
        spent=spent,
        progress=lambda todo: tqdm(todo, unit="reply"),
        chunk=CHUNKS * config.local.batch_size if config.provider == "local" else 0,
    )


def show(config, requests: Sequence[llm.Request], written: int = 0) -> None:
    """A dry run: some prompts as they would be sent, and what all of them would take.

    written: about how many tokens of replies all requests would make, where one can say.
    """
    for number, request in enumerate(requests[:SHOWN], 1):
        print(f"== prompt {number} of {len(requests)}\n{request.prompt}\n")
    left = estimate(config, requests)
    written = round(written * left.requests / max(1, len(requests)))
    said = [("about", written)] if written else []
    said.append(("at most", left.output_tokens))
    print(
        f"{left.requests} requests to {config.provider}/{config.model or 'MODEL'}: about "
        f"{left.input_tokens:,} tokens to read, "
        f"{', '.join(f'{word} {tokens:,}' for word, tokens in said)} to write; "
        f"{len(requests) - left.requests} of {len(requests)} prompts are answered already or there "
        "twice"
    )
    if config.price_input or config.price_output:
        read = config.price_input * left.input_tokens / 1e6
        costs = [(word, read + config.price_output * n / 1e6) for word, n in said]
        shown = ", ".join(f"{word} {cost:.2f}" for word, cost in costs)
        print(f"cost by the given prices: {shown}")


def command(main: Callable, default: str, doc: str) -> None:
    """As cli.command; --dry-run is short for its field."""
    sys.argv[1:] = [
        "--config.dry_run=True" if flag in ("--dry-run", "--dry_run") else flag
        for flag in sys.argv[1:]
    ]
    cli.command(main, default, doc)
