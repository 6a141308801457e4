"""Builds the prompt that asks for a minimal edit of a response, and parses the reply.

The prompt asks for an unambiguous form: a JSON object if the server enforces a schema, else a pair
of tags that are in neither the prompt nor the response. The prompt of the paper (Appendix A.1),
like any template without {{ reply_form }}, asks for no form; then the edit is found by comparison
with the original (parse.py).
"""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from fgrlhf_jax.data import records
from fgrlhf_jax.data.row_fields import is_unicode
from fgrlhf_jax.data.text_forms import normalize, restore_form
from fgrlhf_jax.data.words import split_words
from fgrlhf_jax.errors import InputError
from fgrlhf_jax.feedback.edits import minimality, parse
from fgrlhf_jax.feedback.llm.answers import one_field, read_json
from fgrlhf_jax.feedback.llm.client import LENGTH, REFUSAL, Reply
from fgrlhf_jax.feedback.llm.template import PromptTemplate, choose_unused
from fgrlhf_jax.runtime.continued_rows import rejected_path
from fgrlhf_jax.runtime.files import read_jsonl

SIDES = ("worse", "better")
PAPER = Path(__file__).with_name("assets").joinpath("paper.jinja").read_text(encoding="utf-8")
TEMPLATES = {"form": PAPER + "\n{{ reply_form }}\n", "paper": PAPER}
FIELDS = ("instruction", "input", "response", "reply_form")
NAME = "edited_response"  # of the tags, and of the JSON field
SCHEMA = one_field(NAME)
_NGRAM = 8  # length, in words, of a sequence that is not repeated by chance


class EditTask(NamedTuple):
    """A response to edit, and its prompt as a text or as turns."""

    id: str
    instruction: str
    input: str
    response: str
    messages: tuple[Mapping[str, str], ...] = ()  # of a chat, transcribed in ``instruction``
    finished: bool = True  # whether the response ended by itself


class ParsedEdit(NamedTuple):
    """The edited response or why there is none; ``unwrapped``: text around it was removed."""

    edited: str
    reason: str
    unwrapped: bool = False


def make_tasks(rows: Sequence[records.RecordAndRow], side: str = "worse") -> list[EditTask]:
    """Returns a task per row, of an instruction's output, an edit's original, a pair's `side`."""
    tasks = []
    for n, (record, fields) in enumerate(rows, 1):
        name = "output"
        if not isinstance(record, records.Instruction):
            better, worse = records.sides(record)
            name = better if side == "better" and isinstance(record, records.Preference) else worse
        id = n if fields.get("id") in (None, "") else fields["id"]
        texts = *records.shown_prompt(record), getattr(record, name)
        messages = tuple(map(dataclasses.asdict, record.messages))
        tasks.append(EditTask(str(id), *texts, messages, records.is_finished(record, name)))
    return tasks


def load_template(path: str = "", name: str = "form") -> PromptTemplate:
    """Loads a file that shows {{ response }}, or the template ``name`` of `TEMPLATES` for ""."""
    return PromptTemplate(path, TEMPLATES[name], FIELDS, ("response",))


def build_prompt(
    task: EditTask, template: PromptTemplate, as_json: bool = False
) -> tuple[str, str | None]:
    """Returns a prompt and the tag of its reply: None for JSON, "" if it asks for no form."""
    texts = {name: getattr(task, name) for name in FIELDS[:3]}
    shown = [*texts.values(), template.literal_text]
    tag = None if as_json else choose_unused(f"{NAME}{{}}", "_", shown)
    prompt = template.fill({**texts, "reply_form": describe_form(tag)})
    return prompt, tag if as_json or template.shows("reply_form") else ""


def describe_form(tag: str | None) -> str:
    """Returns the sentence that asks for the form: a pair of tags, or JSON if ``tag`` is None."""
    whole = "Write out the improved response as a whole"
    if tag is None:
        return f"{whole}, as the field {NAME} of one JSON object and nothing else."
    return f"{whole} between <{tag}> and </{tag}>, with nothing left out, and nothing else."


def parse_reply(
    reply: Reply,
    task: EditTask,
    max_change_ratio: float = 1.0,
    *,
    tag: str | None = "",
    template_text: str = "",
) -> ParsedEdit:
    """Returns the edit in a reply, or the reason why there is none.

    Args:
      tag: the form, as :func:`build_prompt` returned it.
      template_text: the template's constant text; a reply that repeats it is rejected.

    Reasons are the faults of :func:`minimality.find_fault`; refusal, cut: reported by the server
    (an edit in a complete pair of tags is not cut); unparsed: the reply is not in its form, or
    repeats the template; doubtful: text around the edit may be a part of it.
    """
    original, text = normalize(task.response).strip(), normalize(reply.text).strip()
    cut = reply.stop == LENGTH
    if reply.stop == REFUSAL or (cut and not tag):
        return ParsedEdit("", "cut" if cut else "refusal")
    if tag != "":
        text = read_json(text, NAME) if tag is None else parse.read_tags(text, tag)
        if text is None:
            return ParsedEdit("", "cut" if cut else "unparsed")
    try:
        edited = parse.unwrap(text, original)
    except parse.Doubtful:
        return ParsedEdit("", "doubtful")
    is_repeated = (_ngrams(edited) & _ngrams(template_text)) - _ngrams(original)
    if is_repeated or not is_unicode(edited):
        return ParsedEdit("", "unparsed")
    before, bare, after = task.response.partition(task.response.strip())
    restored = before + restore_form(edited, bare) + after if edited else ""
    reason = minimality.find_fault(task.response, restored, max_change_ratio)
    return ParsedEdit("" if reason else restored, reason, edited != text.strip())


def _ngrams(text: str) -> set[tuple[str, ...]]:
    words = [word.lower() for word in split_words(text)]
    return set(zip(*(words[k:] for k in range(_NGRAM)), strict=False))


def count_rejected(outputs: Iterable[Path]) -> dict[str, int]:
    """Counts the rejected rows in the files beside these edits by reason, most frequent first."""
    counts: Counter[str] = Counter()
    for path in filter(Path.is_file, map(rejected_path, outputs)):
        for number, row in enumerate(read_jsonl(path), 1):
            if not isinstance(row, dict) or "reason" not in row:
                raise InputError(f"{path}:{number}: is not a rejected row; move the file away")
            counts[str(row["reason"]).partition(":")[0]] += 1
    return dict(counts.most_common())
