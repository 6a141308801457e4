r"""A language model edits responses minimally; its edits are what launch.train_rm learns from.

python -m launch.collect_edits --config.input=FILE --config.output=FILE.jsonl \
    --config.provider=anthropic|openai|local --config.model=NAME [--config.base_url=URL] [--dry-run]

FILE holds responses, outputs for alpaca_eval, preferences (the worse response is edited) or edits;
without it, some responses of the embedded world are edited. --dry-run shows three filled prompts
and about what it would take, and asks nothing. Keys come from the environment: ANTHROPIC_API_KEY,
OPENAI_API_KEY. What is no usable edit goes to FILE.rejected.jsonl with the reason and the whole
reply. However a run ends, the same command goes on: no reply that arrived is lost or asked for
again.
"""

import contextlib
import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from fgrlhf_jax.data import records
from fgrlhf_jax.errors import InputError
from fgrlhf_jax.feedback.edits import minimality
from fgrlhf_jax.feedback.edits import request as editor
from fgrlhf_jax.feedback.llm import ask
from fgrlhf_jax.feedback.llm import cache as durable
from fgrlhf_jax.feedback.llm import client as llm
from fgrlhf_jax.tiny_world import datasets as tiny_world
from launch.shared import asking, cli

CHOICES = {"side": editor.SIDES}
AT_LEAST = {"limit": 0, "max_change_ratio": 0}
EMBEDDED_ROWS = 20
NO_RESPONSE = "no response"


def main(config) -> None:
    cli.check(config, choices=CHOICES, at_least=AT_LEAST)
    asking.check(config)
    output = cli.check_output(config.output, (".jsonl",))
    template = editor.template(config.template_file)
    tasks = read(config)
    requests = [
        llm.Request(
            prompt=editor.prompt(template, task, config.template_file),
            max_tokens=config.max_new_tokens,
            temperature=config.temperature,
        )
        for task in tasks
    ]
    wanted = with_response(tasks, requests)
    if not wanted:
        raise InputError(
            f"input={config.input}: none of its rows has a response to edit; "
            "launch.generate makes responses"
        )
    if config.dry_run:  # an edit is about as long as its original
        written = sum(llm.about_tokens(task.response) for task in tasks)
        asking.show(config, wanted, written)
        return
    send = asking.connect(config) if asking.estimate(config, wanted).requests else None
    spent, who = ask.Spent(), asking.identity(config)
    fixed = editor.fixed_text(config.template_file)
    keys = [
        key(ask.digest(who, request), task, config.max_change_ratio)
        for task, request in zip(tasks, requests, strict=True)
    ]

    def rows(done: int) -> Iterator[tuple[dict, bool]]:
        left = with_response(tasks[done:], requests[done:])
        with contextlib.closing(asking.answers(config, left, send, spent)) as replies:
            for task in tasks[done:]:
                asked = bool(task.response.strip())
                reply = next(replies) if asked else ask.Rejected(NO_RESPONSE)
                yield row(config, task, reply, fixed)

    try:
        kept, rejected = durable.append_rows(output, keys, rows)
    finally:
        if spent.requests:
            print(spent, file=sys.stderr)
    tell(output, kept, rejected)


def read(config) -> list[editor.Task]:
    """The responses to edit."""
    if config.input:
        found = records.read_with_rows(config.input)
    else:
        made = tiny_world.instructions(EMBEDDED_ROWS, "feedback", 0)
        found = [(record, {}) for record in made]
    return editor.tasks(found[: config.limit or len(found)], config.side)


def with_response(tasks: list[editor.Task], requests: list[llm.Request]) -> list[llm.Request]:
    """The requests of tasks that have something to edit."""
    return [r for task, r in zip(tasks, requests, strict=True) if task.response.strip()]


def key(digest: str, task: editor.Task, max_change_ratio: float) -> str:
    """Of all that determines a row of the output."""
    parts = json.dumps([digest, task, max_change_ratio])
    return hashlib.sha256(parts.encode()).hexdigest()


def row(
    config, task: editor.Task, reply: llm.Reply | ask.Rejected, fixed: str
) -> tuple[dict, bool]:
    """(an edit, True), or what came instead and why, False."""
    made = {
        "id": task.id,
        "instruction": task.instruction,
        "input": task.input,
        "original": task.response,
    }
    who = {"annotator": f"{config.provider}/{config.model}"}
    if isinstance(reply, ask.Rejected):
        reason = reply.reason if reply.reason == NO_RESPONSE else f"rejected: {reply.reason}"
        return made | {"reason": reason, "reply": ""} | who, False
    found = editor.outcome(reply, task, config.max_change_ratio, fixed)
    if found.reason:
        return made | {"reason": found.reason, "reply": reply.text} | who, False
    return made | {"edited": found.edited} | who, True


def tell(output: Path, kept: int, rejected: int) -> None:
    """What there is now, and what to do with it."""
    if rejected:
        reasons = ", ".join(f"{n} {why}" for why, n in editor.set_aside([output]).items())
        print(f"{rejected} rows set aside in {durable.aside(output)}: {reasons}")
    if not kept:
        print(f"no edits in {output}")
        return
    ratios = [
        minimality.measure(made.original, made.edited).word_change_ratio
        for made in records.read(str(output))
    ]
    print(f"{kept} edits in {output}, median word change ratio {median(ratios):.3f}")
    print(
        f"next: python -m launch.edit_report --config.input={output}\n"
        "      python -m launch.train_rm --config=configs/rm.py:smollm2,token_edit "
        f"--config.model.path=MODEL --config.train={output}"
    )


if __name__ == "__main__":
    asking.command(main, "configs/collect_edits.py", __doc__)
