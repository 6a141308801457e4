r"""Ask a language model to edit responses minimally; launch.train_rm learns from the edits.

python -m launch.collect_edits --config.input=FILE --config.output=FILE.jsonl \
    --config.provider=anthropic|openai|local --config.model=NAME [--config.base_url=URL] [--dry-run]

FILE holds responses, outputs for alpaca_eval, preferences (the worse response is edited), edits or
conversations (the last turn is edited); without it, responses of the embedded world are edited.
--dry-run shows three prompts and an estimate of the tokens, and sends nothing. Keys come from the
environment: ANTHROPIC_API_KEY, OPENAI_API_KEY. Unusable replies go to FILE.rejected.jsonl with the
reason. However a run ends, the same command resumes it: no reply that arrived is lost or requested
again. A run without a usable edit fails.
"""

import contextlib
import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import NamedTuple

from fgrlhf_jax.data import sources
from fgrlhf_jax.errors import InputError
from fgrlhf_jax.feedback.edits import request as edit_requests
from fgrlhf_jax.feedback.edits.minimality import measure
from fgrlhf_jax.feedback.llm.client import Reply, Request, estimate_tokens
from fgrlhf_jax.feedback.llm.requests import Rejected, request_key
from fgrlhf_jax.feedback.llm.template import PromptTemplate
from fgrlhf_jax.runtime.continued_rows import append_rows, rejected_path
from fgrlhf_jax.runtime.files import read_jsonl
from fgrlhf_jax.tiny_world.datasets import make_instructions
from launch.shared import cli, llm, reading

CONFIG = "configs/collect_edits.py"
EMBEDDED_ROWS = 20
NO_RESPONSE, TOO_LONG = "no response", "too long"
MAX_SHOWN = 5  # numbers of too long rows in the message
EXAMPLE_LENGTH = 120  # characters of an example reply


class Question(NamedTuple):
    """A task, its request and the tag of its reply, or in ``skip_reason`` why none is sent."""

    task: edit_requests.EditTask
    request: Request
    tag: str | None
    skip_reason: str


def main(config) -> None:
    llm.check(config)
    output = cli.check_output(config, (".jsonl",))
    name = config.template or ("paper" if config.provider == "local" else "form")
    template = edit_requests.load_template(config.template_file, name)
    questions = build_questions(config, template)
    to_send = [question.request for question in questions if not question.skip_reason]
    if config.dry_run:  # an edit is about as long as its original
        written = sum(estimate_tokens(q.task.response) for q in questions if not q.skip_reason)
        llm.print_dry_run(config, to_send, written)
        return
    send, usage = llm.connect(config, to_send)
    identity = llm.model_identity(config)
    keys = [
        row_key(request_key(identity, question.request), question.task, config.max_change_ratio)
        for question in questions
    ]

    def rows(done: int) -> Iterator[tuple[dict, bool]]:
        left = [question.request for question in questions[done:] if not question.skip_reason]
        with contextlib.closing(llm.collect_replies(config, left, send, usage)) as replies:
            for question in questions[done:]:
                unasked = Rejected(question.skip_reason) if question.skip_reason else None
                yield make_row(config, question, unasked or next(replies), template.literal_text)

    try:
        edits, rejected = append_rows(output, keys, rows)
    finally:
        if usage.requests:
            print(usage, file=sys.stderr)
    print_summary(output, edits, rejected)


def build_questions(config, template: PromptTemplate) -> list[Question]:
    """Builds the request of every row; prints the rows that are too long for a reply.

    Raises InputError if no request can be sent.
    """
    as_json, questions = llm.reply_format(config) == "json_schema", []
    for task in read_tasks(config):
        prompt, tag = edit_requests.build_prompt(task, template, as_json)
        request = Request(
            prompt,
            max_tokens=config.max_new_tokens,
            temperature=config.temperature,
            schema=edit_requests.SCHEMA if as_json else None,
        )
        skipped = "" if task.response.strip() else NO_RESPONSE
        if estimate_tokens(task.response) > config.max_new_tokens:
            skipped = TOO_LONG
        questions.append(Question(task, request, tag, skipped))
    too_long = [n for n, question in enumerate(questions, 1) if question.skip_reason == TOO_LONG]
    shown = ", ".join(map(str, too_long[:MAX_SHOWN])) + ", …" * (len(too_long) > MAX_SHOWN)
    tokens = max(estimate_tokens(question.task.response) for question in questions)
    sentence = (
        f"max_new_tokens={config.max_new_tokens}: a reply cannot hold the edit of {len(too_long)} "
        f"of {len(questions)} responses (row {shown}), the longest of about {tokens:,} tokens; "
        f"set --config.max_new_tokens={-(-tokens * 5 // 400) * 100}"
    )
    if len(too_long) == sum(question.skip_reason != NO_RESPONSE for question in questions) > 0:
        raise InputError(sentence)
    if all(question.skip_reason for question in questions):
        raise InputError(
            f"input={config.input}: none of its rows has a response to edit; "
            "launch.generate makes responses"
        )
    if too_long:
        print(f"{sentence}, or they are set aside", file=sys.stderr)
    return questions


def read_tasks(config) -> list[edit_requests.EditTask]:
    """Reads the responses to edit."""
    if config.input:
        rows = reading.read_with_rows(config, config.input)
    else:
        rows = [(record, {}) for record in make_instructions(EMBEDDED_ROWS, "feedback", 0)]
    return edit_requests.make_tasks(rows[: config.limit or len(rows)], config.side)


def row_key(request_key: str, task: edit_requests.EditTask, max_change_ratio: float) -> str:
    """The hash of everything that determines a row of the output.

    ``finished`` enters the hash only if False, so that keys of earlier versions stay valid.
    """
    parts = json.dumps([request_key, task[:-1] if task.finished else task, max_change_ratio])
    return hashlib.sha256(parts.encode()).hexdigest()


def make_row(
    config, question: Question, reply: Reply | Rejected, template_text: str
) -> tuple[dict, bool]:
    """Returns (the edit, True), or (the unusable reply and the reason, False)."""
    task = question.task
    row: dict = {"id": task.id}
    if task.messages:
        row["messages"] = task.messages
    else:
        row |= {"instruction": task.instruction, "input": task.input}
    row["original"] = task.response
    if not task.finished:
        row["finished"] = False
    annotator = {"annotator": f"{config.provider}/{config.model}"}
    if isinstance(reply, Rejected):
        reason = reply.reason if question.skip_reason else f"rejected: {reply.reason}"
        return row | {"reason": reason, "reply": ""} | annotator, False
    edit = edit_requests.parse_reply(
        reply, task, config.max_change_ratio, tag=question.tag, template_text=template_text
    )
    if edit.reason:
        return row | {"reason": edit.reason, "reply": reply.text} | annotator, False
    raw = {"reply": reply.text} if edit.unwrapped else {}
    return row | {"edited": edit.edited} | raw | annotator, True


def print_summary(output: Path, edits: int, rejected: int) -> None:
    """Prints counts of the output's rows, and the commands that use them.

    Raises InputError if every row was rejected.
    """
    aside = ""
    if rejected:
        reasons = ", ".join(
            f"{n} {reason}" for reason, n in edit_requests.count_rejected([output]).items()
        )
        aside = f"{rejected} rows set aside in {rejected_path(output)}: {reasons}"
        rows = read_jsonl(rejected_path(output))
        unread = (row["reply"] for row in rows if row["reason"] in ("unparsed", "doubtful"))
        if example := " ".join(next(unread, "").split()):
            aside += f"; a reply begins {example[:EXAMPLE_LENGTH]!r}"
    if not edits:
        raise InputError(
            f"{output}: no usable edit; {aside}; see the replies there, and try another model, "
            "template=paper or a higher max_change_ratio"
        )
    rows = sources.read_with_rows(str(output))
    ratios = [measure(edit.original, edit.edited).word_change_ratio for edit, _ in rows]
    if aside:
        print(aside)
    print(f"{edits} edits in {output}, median word change ratio {median(ratios):.3f}")
    if unwrapped := sum("reply" in row for _, row in rows):
        print(f"{unwrapped} of them had something around them, which was taken off (field reply)")
    print(
        f"next: python -m launch.edit_report --config.input={output}\n"
        "      python -m launch.train_rm --config=configs/rm.py:smollm2,token_edit "
        f"--config.model.path=MODEL --config.train={output}"
    )


if __name__ == "__main__":
    llm.command(main, CONFIG, __doc__)
