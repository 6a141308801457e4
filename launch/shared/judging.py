"""The judge that a config names, for launch.evaluate and launch.collect_preferences."""

import contextlib
import sys
from pathlib import Path

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.feedback.judges import judge
from fgrlhf_jax.feedback.judges.alpaca_eval import Comparison
from fgrlhf_jax.feedback.llm.requests import Usage
from launch.shared import asking

EMBEDDED_JUDGE = "fgrlhf_jax.tiny_world.judge:judge"
EMBEDDED_ROWS = 64


def check(config, *, has_files: bool) -> str:
    """The judge's name; raises InputError for what is known to be wrong before anything is read.

    Args:
      has_files: without files the embedded world is compared, which has a judge of its own.
    """
    if config.judge == "llm":
        if not (has_files or config.model or config.dry_run):
            return EMBEDDED_JUDGE
        asking.check(config)
    elif ":" not in config.judge:
        raise InputError(
            f"judge={config.judge!r} is neither llm nor a Python function MODULE:FUNCTION"
        )
    return config.judge


def judge_pairs(config, pairs: list[Comparison], name: str) -> list[Comparison] | None:
    """The pairs with the preferences of the judge of that name; None after a dry run."""
    if name != "llm":
        if config.dry_run:
            print(f"{len(pairs)} pairs for {name}; no requests would be sent")
            return None
        return judge.judge_by_function(pairs, name)
    questions = judge.build_questions(
        pairs,
        judge.load_template(config.template_file),
        seed=config.seed,
        both_orders=config.both_orders,
        max_tokens=config.max_new_tokens,
        temperature=config.temperature,
    )
    requests = [question.request for question in questions]
    if config.dry_run:
        asking.print_dry_run(config, requests)
        return None
    send = asking.connect(config) if asking.estimate(config, requests).requests else None
    usage = Usage()
    annotator = f"{config.provider}/{config.model}"
    try:
        with contextlib.closing(asking.collect_replies(config, requests, send, usage)) as replies:
            return judge.judge_by_replies(pairs, questions, replies, annotator)
    finally:
        if usage.requests:
            print(usage, file=sys.stderr)


def annotations_path(output: str, number: int = 1) -> Path:
    """The annotation file beside the output, with every preference and verdict of one model."""
    suffix = f".annotations{'' if number == 1 else f'_{number}'}.json"
    return Path(output).with_suffix(suffix)
