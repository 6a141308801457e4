"""What launch.evaluate and launch.collect_preferences share: the judge that a config names."""

import contextlib
import sys
from pathlib import Path

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.feedback.judges import alpaca_eval, judge
from fgrlhf_jax.feedback.judges.alpaca_eval import Comparison
from fgrlhf_jax.feedback.llm.requests import Usage
from launch.shared import asking

EMBEDDED_JUDGE = "fgrlhf_jax.tiny_world.judge:judge"
EMBEDDED_ROWS = 64


def check(config, given: bool) -> str:
    """The judge; raises InputError for what can be known to be wrong before anything is read.

    given: whether there are files, and not the embedded world, which has a judge of its own.
    """
    if config.judge == "llm":
        if not (given or config.model or config.dry_run):
            return EMBEDDED_JUDGE
        asking.check(config)
    elif ":" not in config.judge:
        raise InputError(
            f"judge={config.judge!r} is neither llm nor a Python function MODULE:FUNCTION"
        )
    return config.judge


def judged(config, pairs: list[Comparison], name: str) -> list[Comparison] | None:
    """The pairs with preferences; None after a dry run."""
    if name != "llm":
        if config.dry_run:
            print(f"{len(pairs)} pairs for {name}; nothing would be asked")
            return None
        return judge.by_function(pairs, name)
    asked = judge.questions(
        pairs,
        judge.template(config.template_file),
        seed=config.seed,
        both_orders=config.both_orders,
        max_tokens=config.max_new_tokens,
        temperature=config.temperature,
    )
    requests = [question.request for question in asked]
    if config.dry_run:
        asking.print_dry_run(config, requests)
        return None
    send = asking.connect(config) if asking.estimate(config, requests).requests else None
    usage = Usage()
    try:
        with contextlib.closing(
            asking.collect_replies(config, requests, send, usage)
        ) as replies:
            return judge.by_model(pairs, asked, replies, f"{config.provider}/{config.model}")
    finally:
        if usage.requests:
            print(usage, file=sys.stderr)


def annotations_path(output: str, number: int = 1) -> Path:
    """Beside the output: what every preference is and why."""
    suffix = f".annotations{'' if number == 1 else f'_{number}'}.json"
    return Path(output).with_suffix(suffix)


def keep(config, rows: list[Comparison], number: int = 1) -> Path:
    """Writes the annotations of a model; where they are."""
    path = annotations_path(config.output, number)
    alpaca_eval.write(path, rows)
    return path
