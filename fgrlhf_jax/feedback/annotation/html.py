"""The HTML of the annotators' page, in which every text is escaped: pure functions.

The difference is drawn in one text: what stays, what was taken out (red, struck through), what was
put in (green, underlined). Its numbers are those of ``edits.minimality``.
"""

import itertools
import re
import unicodedata
from collections.abc import Mapping, Sequence

import jinja2
from rapidfuzz.distance import Levenshtein, Prefix

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.feedback.annotation.history import Item
from fgrlhf_jax.feedback.edits import minimality

LONGEST_NAME = 60
SAME, OUT, IN = "same", "out", "in"
_LINE = re.compile(r"([^\r\n]*)(\r\n|\r|\n|\Z)")  # the text of a line, and its end


def clean_name(text: str) -> str:
    """An annotator's name as it is recorded; raises InputError for an empty or unprintable one."""
    name = " ".join(unicodedata.normalize("NFC", text or "").split())
    if not name:
        raise InputError("give your name: it is written beside every edit that you make")
    if len(name) > LONGEST_NAME or any(unicodedata.category(c).startswith("C") for c in name):
        raise InputError(f"give a name of at most {LONGEST_NAME} visible characters")
    return name


def with_line_ends_of(original: str, text: str) -> str:
    """`text`, in which a browser has ended all lines by \\n, with those of the original."""
    if "\r" not in original:
        return text
    before, after = (list(filter(any, _LINE.findall(side))) for side in (original, text))
    ends = [end for _, end in before if end]
    most_common = max(ends, key=ends.count)
    lines = []
    for step in Levenshtein.opcodes(*([line for line, _ in side] for side in (before, after))):
        for n in range(step.dest_start, step.dest_end):
            line, end = after[n]
            if end:
                same = step.tag == "equal" and before[step.src_start + n - step.dest_start][1]
                end = same or most_common
            lines.append(line + end)
    return "".join(lines)


def inline(original: str, edited: str) -> list[tuple[str, str]]:
    """The difference as (SAME | OUT | IN, text) in reading order.

    SAME and OUT add up to the original, SAME and IN to the edited text.
    """
    unchanged = [_unchanged_words(side) for side in minimality.mark_changes(original, edited)]
    ends = [((len(original), len(original)), (len(edited), len(edited)))]
    parts, i, j = [], 0, 0
    for (start_i, end_i), (start_j, end_j) in [*zip(*unchanged, strict=True), *ends]:
        removed, added = original[i:start_i], edited[j:start_j]  # between two unchanged words
        before = _common_blanks(removed, added)
        removed, added = removed[len(before) :], added[len(before) :]
        after = _common_blanks(removed[::-1], added[::-1])[::-1]
        parts += [(SAME, before), (OUT, removed.removesuffix(after))]
        parts += [(IN, added.removesuffix(after)), (SAME, after + edited[start_j:end_j])]
        i, j = end_i, end_j
    grouped = itertools.groupby((part for part in parts if part[1]), key=lambda part: part[0])
    return [(kind, "".join(text for _, text in run)) for kind, run in grouped]


def _common_blanks(first: str, second: str) -> str:
    """The blanks that both begin with."""
    common = first[: Prefix.similarity(first, second)]
    return common[: len(common) - len(common.lstrip())]


def _unchanged_words(spans: Sequence[minimality.Span]) -> list[tuple[int, int]]:
    """(start, end) in the whole text of every word that stays."""
    words, offset = [], 0
    for text, changed in spans:
        start = 0
        for word in () if changed else minimality.split_words(text):
            start = text.index(word, start)
            words.append((offset + start, offset + start + len(word)))
            start += len(word)
        offset += len(text)
    return words


_ENVIRONMENT = jinja2.Environment(
    autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
)


def _printable(text: str) -> str:
    """The text with a replacement character for half of a surrogate pair, which browsers refuse."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


_NOTE = _ENVIRONMENT.from_string('<div class="prompt"><p>{{ text }}</p></div>')
_PROMPT = _ENVIRONMENT.from_string("""\
<div class="prompt"><small>Prompt, row {{ id }}</small><p>{{ instruction }}</p>
{% if input %}<p class="input">{{ input }}</p>{% endif %}</div>
""")


def prompt(item: Item) -> str:
    texts = {"id": item.id, "instruction": item.instruction, "input": item.input}
    return _PROMPT.render({name: _printable(text) for name, text in texts.items()})


def note(text: str) -> str:
    """A text in the place of the prompt."""
    return _NOTE.render(text=text)


_DIFFERENCE = _ENVIRONMENT.from_string("""\
<div class="difference{{ ' warn' if warn }}">
<small><b>{{ "%.0f"|format(100 * ratio) }} %</b> of the words changed
{%- if changes %}, in {{ changes }} place{{ "s" if changes > 1 }}{% endif %}
{%- if blanks %}, only blanks differ{% endif %}</small>
{% if warn %}<p role="alert">Above {{ "%.0f"|format(100 * limit) }} %: no longer a minimal edit.
Keep more, or skip the row.</p>{% endif %}
<div class="text">
{%- for kind, text in parts -%}
{%- if kind == "out" %}<del>{{ text }}</del>{% elif kind == "in" %}<ins>{{ text }}</ins>
{%- else %}{{ text }}{% endif -%}
{%- endfor -%}
</div></div>
""")


def difference(original: str, text: str, limit: float) -> str:
    """The edit so far, with a warning where more than a share `limit` of the words changed."""
    original, text = _printable(original), _printable(text)
    metrics = minimality.measure(original, text)
    return _DIFFERENCE.render(
        ratio=metrics.word_change_ratio,
        changes=metrics.changes,
        blanks=text != original and not metrics.changes,
        warn=metrics.word_change_ratio > limit,
        limit=limit,
        parts=inline(original, text),
    )


_PROGRESS = _ENVIRONMENT.from_string("""\
<div class="progress"><progress max="{{ rows }}" value="{{ done }}"></progress>
<b>{{ done }} of {{ rows }}</b> rows done: {{ edited }} edited, {{ fine }} fine as they were,
{{ skipped }} skipped{% if open_elsewhere %}; others have {{ open_elsewhere }} open{% endif %}.
<b>{{ name }}</b>: {{ mine }}.</div>
""")


def progress(counts: Mapping[str, int], name: str) -> str:
    """The counts of ``Annotations.progress``."""
    return _PROGRESS.render(counts, name=name)


_MESSAGE = _ENVIRONMENT.from_string("""\
<div class="message{{ ' wrong' if wrong }}" role="{{ 'alert' if wrong else 'status' }}">
{{- text }}</div>
""")


def message(text: str, wrong: bool = False) -> str:
    return _MESSAGE.render(text=_printable(text), wrong=wrong) if text else ""


STYLE = """
.prompt, .difference, .message { font-size: 1rem; line-height: 1.55; }
.prompt p, .difference .text { white-space: pre-wrap; overflow-wrap: anywhere; margin: .2rem 0; }
.prompt { border-left: 4px solid var(--color-accent); padding: .2rem .9rem; max-height: 30vh;
  overflow-y: auto; }
.prompt .input { opacity: .8; }
.difference .text { border: 1px solid var(--border-color-primary); border-radius: 6px;
  padding: .6rem .8rem; min-height: 16.6rem; max-height: 60vh; overflow-y: auto; }
.difference del { background: rgb(222 62 52 / .22); text-decoration: line-through; color: inherit; }
.difference ins { background: rgb(34 150 76 / .25); text-decoration: underline;
  text-underline-offset: .2em; color: inherit; }
.difference.warn small b, .difference [role=alert] { color: rgb(200 70 20); font-weight: 600; }
.difference [role=alert] { margin: .2rem 0; }
.difference.warn .text { min-height: 14.7rem; }
.difference del + ins { margin-left: .15em; }
.progress progress { appearance: none; width: 12rem; height: .6rem; margin-right: .6rem;
  border-radius: .3rem; overflow: hidden; background: var(--border-color-primary); }
.progress progress::-webkit-progress-bar { background: var(--border-color-primary); }
.progress progress::-webkit-progress-value { background: var(--color-accent); }
.progress progress::-moz-progress-bar { background: var(--color-accent); }
#message { min-height: 2.4rem; }
.message { padding: .4rem .8rem; border-radius: 6px; }
.message.wrong { background: rgb(222 62 52 / .16); border: 1px solid rgb(222 62 52 / .6);
  font-weight: 600; }
#edit textarea { font-size: 1rem; line-height: 1.55; }
"""
