"""Runs the judge that a config names, for launch.evaluate and launch.collect_preferences."""

import contextlib
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.feedback.judges import judge, verdicts
from fgrlhf_jax.feedback.judges.alpaca_eval import Comparison
from launch.shared import llm

EMBEDDED_JUDGE = "fgrlhf_jax.tiny_world.judge:judge"
EMBEDDED_ROWS = 64
TAIL = 120  # characters of a reply in a message


def check(config, *, has_files: bool) -> str:
    """The judge's name; raises InputError for invalid fields, before any file is read.

    Without files, the judge is that of the embedded world.
    """
    if config.judge == "llm":
        if not (has_files or config.model or config.dry_run):
            return EMBEDDED_JUDGE
        llm.check(config)
        verdicts.parse_labels(config.labels)
    elif ":" not in config.judge:
        raise InputError(
            f"judge={config.judge!r}: is neither llm nor MODULE:FUNCTION; give a Python function "
            "such as fgrlhf_jax.feedback.judges.vader:judge"
        )
    return config.judge


def judge_pairs(config, pairs: list[Comparison], name: str) -> list[Comparison] | None:
    """Adds the preferences of the judge of that name to the pairs; returns None after a dry run."""
    if name != "llm":
        if config.dry_run:
            print(f"{len(pairs)} pairs for {name}; it sends no requests")
            return None
        return judge.judge_by_function(pairs, name)
    labels = verdicts.parse_labels(config.labels)
    questions = judge.build_questions(
        pairs,
        judge.load_template(config.template_file),
        seed=config.seed,
        both_orders=config.both_orders,
        max_tokens=config.max_new_tokens,
        temperature=config.temperature,
        labels=labels,
        as_json=llm.reply_format(config) == "json_schema",
    )
    requests = [question.request for question in questions]
    if config.dry_run:
        llm.print_dry_run(config, requests)
        return None
    send, usage = llm.connect(config, requests)
    annotator = f"{config.provider}/{config.model}"
    try:
        with contextlib.closing(llm.collect_replies(config, requests, send, usage)) as replies:
            return judge.judge_by_replies(pairs, questions, replies, annotator, labels)
    finally:
        if usage.requests:
            print(usage, file=sys.stderr)


def print_unparsed(judged: Sequence[Comparison]) -> None:
    """Prints why pairs have no verdict, with an example reply of each reason.

    Raises InputError if no reply has a verdict.
    """
    examples, counts = {}, Counter(row.reason for row in judged if row.reason)
    for row in judged:
        replies = [verdict.reply for verdict in row.verdicts if verdict.choice is None]
        text = " ".join("".join(replies[-1:]).split())
        end = text if len(text) <= TAIL else f"…{text[-TAIL:]}"  # verdicts come last
        examples.setdefault(row.reason, end)
    lines = [
        f"{count} × {reason}" + (f"; a reply ends {examples[reason]!r}" if examples[reason] else "")
        for reason, count in counts.most_common(3)
    ]
    choices = {verdict.choice for row in judged for verdict in row.verdicts}
    if choices == {None}:
        raise InputError(
            f"no reply of the judge has a verdict: {lines[0]}; use another judge, or a server that "
            "enforces a schema (--config.reply_format=json_schema)"
        )
    for line in lines:
        print(f"unparsed: {line}")


def annotations_path(output: str, number: int = 1) -> Path:
    """The path of the annotations of one model, with every verdict, in the output's folder."""
    suffix = f".annotations{'' if number == 1 else f'_{number}'}.json"
    return Path(output).parent / f"{Path(output).stem}{suffix}"
