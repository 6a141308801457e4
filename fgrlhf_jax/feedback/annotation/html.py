"""What the annotators' page shows, as HTML in which every text is escaped: pure functions.

The difference is drawn in one text: what stays, what was taken out (red, struck through), what was
put in (green, underlined). Its figures are those of edits.py.
"""

import itertools
import re
import unicodedata
from collections.abc import Mapping, Sequence

import jinja2
from rapidfuzz.distance import Levenshtein

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.feedback.annotation.history import Item
from fgrlhf_jax.feedback.edits import minimality

LONGEST_NAME = 60
SAME, OUT, IN = "same", "out", "in"
_LINE = re.compile(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+")


def clean_name(text: str) -> str:
    """An annotator's name as it is recorded. Raises InputError for what is none."""
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
    before, after = ([_line_and_end(x) for x in _LINE.findall(t)] for t in (original, text))
    ends = [end for _, end in before if end]
    common = max(ends, key=ends.count)
    number = {line: n for n, (line, _) in enumerate(itertools.chain(before, after))}
    script = Levenshtein.opcodes(
        *([number[line] for line, _ in side] for side in (before, after))
    )
    result = []
    for step in script:
        for n in range(step.dest_start, step.dest_end):
            line, end = after[n]
            kept = (
                before[step.src_start + n - step.dest_start][1] if step.tag == "equal" else ""
            )
            result.append(line + (end and (kept or common)))
    return "".join(result)


def _line_and_end(line: str) -> tuple[str, str]:
    bare = line.rstrip("\r\n")
    return bare, line[len(bare) :]


def inline(original: str, edited: str) -> list[tuple[str, str]]:
    """(SAME | OUT | IN, text) in reading order.

    SAME and OUT add up to the original, SAME and IN to the edited text.
    """
    kept = [_kept(side) for side in minimality.mark_changes(original, edited)]
    end = [((len(original), len(original)), (len(edited), len(edited)))]
    parts, i, j = [], 0, 0
    for (word_i, end_i), (word_j, end_j) in [*zip(*kept, strict=True), *end]:
        out, put = original[i:word_i], edited[j:word_j]  # between two words that stay
        blank = _shared_blanks(out, put)
        out, put = out[len(blank) :], put[len(blank) :]
        after = _shared_blanks(out[::-1], put[::-1])[::-1]
        parts += [(SAME, blank), (OUT, out.removesuffix(after)), (IN, put.removesuffix(after))]
        parts += [(SAME, after + edited[word_j:end_j])]
        i, j = end_i, end_j
    grouped = itertools.groupby((part for part in parts if part[1]), key=lambda part: part[0])
    return [(kind, "".join(text for _, text in run)) for kind, run in grouped]


def _shared_blanks(one: str, two: str) -> str:
    """Those that both begin with."""
    same = itertools.takewhile(
        lambda pair: pair[0] == pair[1] and pair[0].isspace(), zip(one, two, strict=False)
    )
    return "".join(blank for blank, _ in same)


def _kept(pieces: Sequence[minimality.Span]) -> list[tuple[int, int]]:
    """(start, end) in the whole text of every word that stays."""
    spans, offset = [], 0
    for text, changed in pieces:
        start = 0
        for word in () if changed else minimality.split_words(text):
            start = text.index(word, start)
            spans.append((offset + start, offset + start + len(word)))
            start += len(word)
        offset += len(text)
    return spans


_ENVIRONMENT = jinja2.Environment(
    autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
)


def _shown(text: str) -> str:
    """Halves of characters, which no browser takes, as the sign for what is wrong."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


_PROMPT = _ENVIRONMENT.from_string("""\
<div class="prompt"><small>Prompt, row {{ id }}</small><p>{{ instruction }}</p>
{% if input %}<p class="input">{{ input }}</p>{% endif %}</div>
""")


def prompt(item: Item) -> str:
    texts = {"id": item.id, "instruction": item.instruction, "input": item.input}
    return _PROMPT.render({name: _shown(text) for name, text in texts.items()})


def note(text: str) -> str:
    """Where the prompt would be."""
    return _ENVIRONMENT.from_string('<div class="prompt"><p>{{ text }}</p></div>').render(
        text=text
    )


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
    """The edit so far, with a warning where more than `limit` of the words changed."""
    original, text = _shown(original), _shown(text)
    figures = minimality.measure(original, text)
    return _DIFFERENCE.render(
        ratio=figures.word_change_ratio,
        changes=figures.changes,
        blanks=text != original and not figures.changes,
        warn=figures.word_change_ratio > limit,
        limit=limit,
        parts=inline(original, text),
    )


_PROGRESS = _ENVIRONMENT.from_string("""\
<div class="progress"><progress max="{{ rows }}" value="{{ done }}"></progress>
<b>{{ done }} of {{ rows }}</b> rows done: {{ edited }} edited, {{ fine }} fine as they were,
{{ skipped }} skipped{% if open_elsewhere %}; others have {{ open_elsewhere }} open{% endif %}.
<b>{{ name }}</b>: {{ mine }}.</div>
""")


def progress(figures: Mapping[str, int], name: str) -> str:
    return _PROGRESS.render(figures, name=name)


_MESSAGE = _ENVIRONMENT.from_string("""\
<div class="message{{ ' wrong' if wrong }}" role="{{ 'alert' if wrong else 'status' }}">
{{- text }}</div>
""")


def message(text: str, wrong: bool = False) -> str:
    return _MESSAGE.render(text=_shown(text), wrong=wrong) if text else ""


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
