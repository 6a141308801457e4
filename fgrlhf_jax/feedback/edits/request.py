"""From a response to the request for a minimal edit, and from the reply to the edit.

The default template asks as the paper's Appendix A.1 does, in other words; any text with
{{ response }} in it may replace it, and may use {{ instruction }} and {{ input }}.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fgrlhf_jax.data.records import Instruction, Preference, Record, better_and_worse
from fgrlhf_jax.errors import InputError
from fgrlhf_jax.feedback.edits import minimality
from fgrlhf_jax.feedback.edits.parse import parse_edit, thought_tags
from fgrlhf_jax.feedback.llm.cache import rejected_path
from fgrlhf_jax.feedback.llm.client import LENGTH, REFUSAL, Reply
from fgrlhf_jax.feedback.llm.template import PromptTemplate

SIDES = ("worse", "better")
TEMPLATE = """\
Question: {{ instruction }}

{% if input %}
Input: {{ input }}

{% endif %}
Response: {{ response }}

Improve the response above so that it serves the person who asked the question better, and change \
as little as possible: keep most of it word for word, and touch only what makes it less helpful, \
wrong or incomplete. Minimal changes are what matters here. Write out the improved response as a \
whole and nothing else: no introduction, no quotation marks, no remarks about what you changed.
"""

_SEVERAL = re.compile(
    r"^[\W_]*(?:option|version|alternative|edit)\s*#?(?:[1-9]|[A-C])\b", re.I | re.M
)
_NO_CHANGES = re.compile(
    r"(?i)[\W_]*(?:there (?:are|is) )?(?:no (?:changes?|edits?|improvements?)\b[^.\n]{0,40}"
    r"\b(?:needed|necessary|required|made)"
    r"|the (?:original )?response (?:is|was) (?:already|fine)\b"
    r"|i (?:would not|wouldn['’]t) change)"
)
_QUESTION = re.compile(r"(?i)[\W_]*(?:question|instruction|prompt|query|task|user|input)[\W_]*?:")
_NGRAM = 8  # words that are not repeated by chance


class EditTask(NamedTuple):
    """A response to edit, and the prompt that it answers."""

    id: str
    instruction: str
    input: str
    response: str


class ParsedEdit(NamedTuple):
    """The edited response, or why there is none: refusal, cut, unparsable or a fault."""

    edited: str
    reason: str


def make_tasks(
    rows: Sequence[tuple[Record, Mapping[str, Any]]], side: str = "worse"
) -> list[EditTask]:
    """One task a record: an instruction's output, an edit's original, a preference's `side`.

    Args:
      rows: records and the fields of their rows; a row without an id gets its number, from 1.
    """
    tasks = []
    for n, (record, fields) in enumerate(rows, 1):
        if isinstance(record, Instruction):
            response = record.output
        else:
            better, worse = better_and_worse(record)
            response = better if side == "better" and isinstance(record, Preference) else worse
        identifier = n if fields.get("id") in (None, "") else fields["id"]
        tasks.append(EditTask(str(identifier), record.instruction, record.input, response))
    return tasks


def load_template(path: str = "") -> PromptTemplate:
    """The template of a file, the default one for "", to be filled with a task's fields.

    Raises:
      InputError: for a file that cannot be read, or is no template that shows {{ response }}.
    """
    return PromptTemplate(path, TEMPLATE, ("instruction", "input", "response"), ("response",))


def parse_reply(
    reply: Reply, task: EditTask, max_change_ratio: float = 1.0, template_text: str = ""
) -> ParsedEdit:
    """The edit in a reply, or the reason why there is none.

    The reasons refusal, empty, unchanged and rewritten are those of
    :func:`minimality.find_fault`; cut: the reply ends at its limit of tokens; unparsable: it has
    several versions, thoughts without an end, the question, or words of the template.

    Args:
      template_text: what every prompt says, so that a reply which repeats it is recognised.
    """
    original = task.response
    if reply.stop in (REFUSAL, LENGTH):
        return ParsedEdit("", "refusal" if reply.stop == REFUSAL else "cut")
    edited = parse_edit(reply.text, original, task.instruction, task.input)
    several = len(_SEVERAL.findall(edited)) > 1 > len(_SEVERAL.findall(original))
    thinks = thought_tags(edited) - thought_tags(original)
    asks = _begins_with_prompt(edited, task) and not _begins_with_prompt(original, task)
    repeats = (_ngrams(edited) & _ngrams(template_text)) - _ngrams(original)
    if several or thinks or asks or repeats:
        return ParsedEdit("", "unparsable")
    reason = minimality.find_fault(original, edited, max_change_ratio)
    if reason == "rewritten" and _NO_CHANGES.match(edited):
        reason = "unchanged"
    return ParsedEdit("" if reason else edited, reason)


def _begins_with_prompt(text: str, task: EditTask) -> bool:
    """Whether a text begins with the instruction or the input behind a label."""
    label = _QUESTION.match(text)
    labelled = _normalized(text[label.end() :]) if label else ""
    prompts = map(_normalized, (task.instruction, task.input))
    return any(prompt and labelled.startswith(prompt) for prompt in prompts)


def _normalized(text: str) -> str:
    return " ".join(text.lower().split()).lstrip("*_ \"“'`")


def _ngrams(text: str) -> set[tuple[str, ...]]:
    words = [word.lower() for word in minimality.split_words(text)]
    return set(zip(*(words[k:] for k in range(_NGRAM)), strict=False))


def count_rejected(outputs: Iterable[Path]) -> dict[str, int]:
    """Reason -> rejected rows in the files beside these edits, the most frequent first.

    Raises InputError for a line that is no such row.
    """
    counts: Counter[str] = Counter()
    for path in map(rejected_path, outputs):
        if not path.is_file():
            continue
        for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
            try:
                counts[str(json.loads(line)["reason"]).partition(":")[0]] += 1
            except (ValueError, TypeError, KeyError) as error:
                raise InputError(
                    f"{path}:{number}: is no row that was set aside; move the file away"
                ) from error
    return dict(counts.most_common())
