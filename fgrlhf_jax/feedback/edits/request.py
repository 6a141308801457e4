"""A response and its question -> a request for a minimal edit -> the edit, or why there is none.

The default template is the idea of the paper's Appendix A.1 in other words; any text with
{{ response }} in it will do, and may use {{ instruction }} and {{ input }}.
"""

import difflib
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2.meta
import jinja2.nodes
import jinja2.sandbox

from fgrlhf_jax.data.records import Edit, Instruction, Preference, Record
from fgrlhf_jax.errors import InputError
from fgrlhf_jax.feedback.edits import minimality
from fgrlhf_jax.feedback.edits.parse import thought_tags, unwrap
from fgrlhf_jax.feedback.llm import cache as durable
from fgrlhf_jax.feedback.llm import client as llm

FIELDS = ("instruction", "input", "response")
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

_ENVIRONMENT = jinja2.sandbox.SandboxedEnvironment(
    undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
)
_SEVERAL = re.compile(
    r"^[\W_]*(?:option|version|alternative|edit)\s*#?(?:[1-9]|[A-C])\b", re.I | re.M
)
_AS_IT_WAS = re.compile(
    r"[\W_]*(?:there (?:are|is) )?(?:no (?:changes?|edits?|improvements?)\b[^.\n]{0,40}"
    r"\b(?:needed|necessary|required|made)"
    r"|the (?:original )?response (?:is|was) (?:already|fine)\b"
    r"|i (?:would not|wouldn['’]t) change)",
    re.IGNORECASE,
)
_QUESTION = re.compile(
    r"[\W_]*(?:question|instruction|prompt|query|task|user|input)[\W_]*?:", re.IGNORECASE
)
_RUN = 8  # words


class Task(NamedTuple):
    """A response to edit, and what it answers."""

    id: str
    instruction: str
    input: str
    response: str


class Outcome(NamedTuple):
    """The edited response, or why there is none: one of refusal, cut, unparsable or a fault."""

    edited: str
    reason: str


def tasks(read: Sequence[tuple[Record, Mapping[str, Any]]], side: str = "worse") -> list[Task]:
    """One a record: an instruction's output, an edit's original, a preference's `side`.

    A row without an id is called by its number, from 1.
    """
    return [
        Task(
            str(n) if row.get("id") in (None, "") else str(row["id"]),
            record.instruction,
            record.input,
            _response(record, side),
        )
        for n, (record, row) in enumerate(read, 1)
    ]


def _response(record: Record, side: str) -> str:
    if isinstance(record, Instruction):
        return record.output
    if isinstance(record, Edit):
        return record.original
    assert isinstance(record, Preference)
    first = (record.preference == 1) == (side == "better")
    return record.output_1 if first else record.output_2


def template(path: str = "") -> jinja2.Template:
    """The template of a file, the default one for ""; tried out before anything is asked.

    Raises InputError for a file that cannot be read, is no template, has no {{ response }}, or
    has a field that there is not.
    """
    source = _source(path)
    try:
        parsed = _ENVIRONMENT.parse(source)
        used = jinja2.meta.find_undeclared_variables(parsed) - set(_ENVIRONMENT.globals)
    except jinja2.TemplateSyntaxError as error:
        raise InputError(
            f"template_file={path}:{error.lineno}: is no jinja2 template ({error.message})"
        ) from error
    for name in sorted(used - set(FIELDS)):
        close = difflib.get_close_matches(name, FIELDS, 1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(FIELDS)}"
        raise InputError(f"template_file={path}: there is no field {{{{ {name} }}}}; {hint}")
    if "response" not in used:
        raise InputError(
            f"template_file={path}: has no {{{{ response }}}}, the text that is to be edited"
        )
    made = _ENVIRONMENT.from_string(source)
    mark = "\ue000"  # no template has it of its own
    if mark not in prompt(made, Task("1", "an instruction", "an input", mark), path):
        raise InputError(f"template_file={path}: does not show {{{{ response }}}}")
    return made


def fixed_text(path: str = "") -> str:
    """What a template says whatever its fields are."""
    nodes = _ENVIRONMENT.parse(_source(path)).find_all(jinja2.nodes.TemplateData)
    return "\n".join(node.data for node in nodes)


def _source(path: str) -> str:
    if not path:
        return TEMPLATE
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "invalid UTF-8"
        raise InputError(f"template_file={path}: cannot be read ({reason})") from error


def prompt(filled: jinja2.Template, task: Task, path: str = "") -> str:
    """A template with a task's fields in it."""
    try:
        return filled.render({name: getattr(task, name) for name in FIELDS})
    except Exception as error:  # a template may compute anything
        raise InputError(f"template_file={path}: cannot be filled ({error})") from error


def outcome(
    reply: llm.Reply, task: Task, max_change_ratio: float = 1.0, asked: str = ""
) -> Outcome:
    """The edit that a reply holds.

    refusal, empty, unchanged and rewritten are as in :func:`edits.fault`; cut: the reply ends at
    its limit of tokens; unparsable: it has several versions, thoughts without an end, the question,
    or words of `asked`, what the template itself says.
    """
    original = task.response
    if reply.stop == llm.REFUSAL:
        return Outcome("", "refusal")
    if reply.stop == llm.LENGTH:
        return Outcome("", "cut")
    edited = unwrap(reply.text, original, task.instruction, task.input)
    several = len(_SEVERAL.findall(edited)) > 1 > len(_SEVERAL.findall(original))
    thinks = thought_tags(edited) - thought_tags(original)
    asks = _asks(edited, task) and not _asks(original, task)
    repeats = (_runs(edited) & _runs(asked)) - _runs(original)
    if several or thinks or asks or repeats:
        return Outcome("", "unparsable")
    reason = minimality.fault(original, edited, max_change_ratio)
    if reason == "rewritten" and _AS_IT_WAS.match(edited):
        reason = "unchanged"
    return Outcome("" if reason else edited, reason)


def _asks(text: str, task: Task) -> bool:
    """Whether a text begins with what was asked, behind a label as a prompt has it."""
    label = _QUESTION.match(text)
    said = _flat(text[label.end() :]) if label else ""
    parts = filter(None, map(_flat, (task.instruction, task.input)))
    return any(map(said.startswith, parts))


def _flat(text: str) -> str:
    return " ".join(text.lower().split()).lstrip("*_ \"“'`")


def _runs(text: str) -> set[tuple[str, ...]]:
    """All runs of so many words that nobody writes them by chance."""
    words = [word.lower() for word in minimality.words(text)]
    return set(zip(*(words[k:] for k in range(_RUN)), strict=False))


def set_aside(outputs: Iterable[Path]) -> dict[str, int]:
    """Reason -> rows in the files that were written beside these edits, the most frequent first.

    Raises InputError for a line that is no such row.
    """
    counted: Counter[str] = Counter()
    for path in map(durable.aside, outputs):
        if not path.is_file():
            continue
        for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
            try:
                counted[str(json.loads(line)["reason"]).partition(":")[0]] += 1
            except (ValueError, TypeError, KeyError) as error:
                raise InputError(
                    f"{path}:{number}: is no row that was set aside; move the file away"
                ) from error
    return dict(counted.most_common())
