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
import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from fgrlhf_jax.data import records
from fgrlhf_jax.errors import InputError
from fgrlhf_jax.feedback.edits.minimality import measure
from fgrlhf_jax.feedback.edits.request import (
    EditTask,
    count_rejected,
    load_template,
    make_tasks,
    parse_reply,
)
from fgrlhf_jax.feedback.llm.cache import append_rows, rejected_path
from fgrlhf_jax.feedback.llm.client import Reply, Request, estimate_tokens
from fgrlhf_jax.feedback.llm.requests import Rejected, Usage, request_key
from fgrlhf_jax.tiny_world.datasets import make_instructions
from launch.shared import asking, cli, reading

CONFIG = "configs/collect_edits.py"
EMBEDDED_ROWS = 20
NO_RESPONSE = "no response"


def main(config) -> None:
    asking.check(config)
    output = cli.check_output(config.output, (".jsonl",))
    template = load_template(config.template_file)
    tasks = read_tasks(config)
    requests = [
        Request(
            prompt=template.fill(task._asdict()),
            max_tokens=config.max_new_tokens,
            temperature=config.temperature,
        )
        for task in tasks
    ]
    with_response = [bool(task.response.strip()) for task in tasks]
    to_send = list(itertools.compress(requests, with_response))
    if not to_send:
        raise InputError(
            f"input={config.input}: none of its rows has a response to edit; "
            "launch.generate makes responses"
        )
    if config.dry_run:  # an edit is about as long as its original
        written = sum(estimate_tokens(task.response) for task in tasks)
        asking.print_dry_run(config, to_send, written)
        return
    send = asking.connect(config) if asking.estimate(config, to_send).requests else None
    usage, identity = Usage(), asking.model_identity(config)
    keys = [
        row_key(request_key(identity, request), task, config.max_change_ratio)
        for task, request in zip(tasks, requests, strict=True)
    ]

    def rows(done: int) -> Iterator[tuple[dict, bool]]:
        left = list(itertools.compress(requests[done:], with_response[done:]))
        with contextlib.closing(asking.collect_replies(config, left, send, usage)) as replies:
            for task, has_response in zip(tasks[done:], with_response[done:], strict=True):
                reply = next(replies) if has_response else Rejected(NO_RESPONSE)
                yield make_row(config, task, reply, template.literal_text)

    try:
        edits, rejected = append_rows(output, keys, rows)
    finally:
        if usage.requests:
            print(usage, file=sys.stderr)
    print_summary(output, edits, rejected)


def read_tasks(config) -> list[EditTask]:
    """The responses to edit."""
    if config.input:
        rows = reading.read_with_rows(config, config.input)
    else:
        instructions = make_instructions(EMBEDDED_ROWS, "feedback", 0)
        rows = [(record, {}) for record in instructions]
    return make_tasks(rows[: config.limit or len(rows)], config.side)


def row_key(request_key: str, task: EditTask, max_change_ratio: float) -> str:
    """The hash of everything that determines a row of the output."""
    parts = json.dumps([request_key, task, max_change_ratio])
    return hashlib.sha256(parts.encode()).hexdigest()


def make_row(
    config, task: EditTask, reply: Reply | Rejected, template_text: str
) -> tuple[dict, bool]:
    """(an edit, True), or (the reply and why it is none, False)."""
    row = {
        "id": task.id,
        "instruction": task.instruction,
        "input": task.input,
        "original": task.response,
    }
    annotator = {"annotator": f"{config.provider}/{config.model}"}
    if isinstance(reply, Rejected):
        reason = reply.reason if reply.reason == NO_RESPONSE else f"rejected: {reply.reason}"
        return row | {"reason": reason, "reply": ""} | annotator, False
    edit = parse_reply(reply, task, config.max_change_ratio, template_text)
    if edit.reason:
        return row | {"reason": edit.reason, "reply": reply.text} | annotator, False
    return row | {"edited": edit.edited} | annotator, True


def print_summary(output: Path, edits: int, rejected: int) -> None:
    """What is in the files now, and the commands that use it."""
    if rejected:
        reasons = ", ".join(f"{n} {reason}" for reason, n in count_rejected([output]).items())
        print(f"{rejected} rows set aside in {rejected_path(output)}: {reasons}")
    if not edits:
        print(f"no edits in {output}")
        return
    ratios = [
        measure(edit.original, edit.edited).word_change_ratio for edit in records.read(str(output))
    ]
    print(f"{edits} edits in {output}, median word change ratio {median(ratios):.3f}")
    print(
        f"next: python -m launch.edit_report --config.input={output}\n"
        "      python -m launch.train_rm --config=configs/rm.py:smollm2,token_edit "
        f"--config.model.path=MODEL --config.train={output}"
    )


if __name__ == "__main__":
    asking.command(main, CONFIG, __doc__)
