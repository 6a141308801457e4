"""How much an edit changes: metrics of one edit, its changed spans, and edits that are unusable.

A word is a run of letters and digits with the apostrophes and hyphens in it ("don't",
"well-known"), or one punctuation mark, or one character of a script without blanks between words,
each with the accents and vowel signs that Unicode combines with it. With the minimal edit script of
alignment.py on the words,

    word change ratio = (words deleted from the original + words inserted by the edit)
                        / (words of the original + words of the edited response)

where a replaced word counts on both sides: 0 where nothing changed, 1 where nothing is left. The
token change ratio is the same on token ids. (Human edits have medians of about .10 on film
reviews turned positive, .18 on corrected summaries, .52 on corrected long answers.)

What lies between two unchanged words is one change: an insertion, a deletion, or both, which is a
replacement. An edit whose changes are all of one kind is of that kind, else it is mixed.
"""

import itertools
import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import NamedTuple

from fgrlhf_jax.data.alignment import Alignment, align

KINDS = ("insert", "delete", "replace", "mixed", "none")
FAULTS = ("empty", "unchanged", "refusal", "rewritten")

# Thai … Han
_ALONE = "\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_MARKS = "".join(
    chr(n)
    for n in (*range(0x300, 0x20000), *range(0xE0100, 0xE01F0))  # there are none elsewhere
    if unicodedata.category(chr(n)) in ("Mn", "Mc")
)
_LETTERS = rf"(?:(?![{_ALONE}])\w[{_MARKS}]*)+"
_WORD = re.compile(rf"[{_ALONE}][{_MARKS}]*|{_LETTERS}(?:['’-]{_LETTERS})*|[^\w\s][{_MARKS}]*")

# "I'm sorry, but as an AI I can't help with that": an optional excuse, a negation, a deed.
_EXCUSE = r"""(?:i(?:['’]m|\ am)\ (?:(?:very|really|so|truly)\ )?(?:sorry|afraid)|sorry
  |i\ (?:(?:do|must|sincerely)\ )?apologi[sz]e|my\ apologies|unfortunately|regrettably
  |as\ an?\ (?:ai|artificial|large|language)) \b[^.!?\n]{0,80}?"""
_NO = r"""
  i(?:['’]m|\ am)\ (?:(?:simply|just)\ )?(?:unable|not\ (?:able|comfortable|willing|allowed))
  |i\ (?:do\ not|don['’]t)\ feel\ (?:able|comfortable)
  |i\ (?:(?:simply|just|really)\ )?(?:can(?:\ ?not|['’]t)|won['’]t|will\ not)
  |i\ (?:(?:must|have\ to)\ )?decline"""
_DEED = r"""assist|help(?:ing)?|comply|fulfil+|provide|continue|edit|revise|rewrite|improve|modify
  |alter|chang(?:e|ing)|generat(?:e|ing)|creat(?:e|ing)|produc(?:e|ing)|writ(?:e|ing)|answer|respond
  |engag(?:e|ing)|discuss|support|complete|process|do\ (?:that|this)
  |make\ (?:\w+\ )?(?:edits|changes)|(?:that|this|the|your)\ request"""
_REFUSAL = re.compile(
    rf"\W*(?:{_EXCUSE}[,.:;!]?\s+(?:(?:but|that)\s+)?)?(?:{_NO})\b[^.!?\n]{{0,60}}?\b(?:{_DEED})\b",
    re.IGNORECASE | re.VERBOSE,
)
_REFUSAL_RATIO = 0.5  # an edit that changes fewer words is no refusal, whatever it says first


class EditMetrics(NamedTuple):
    """Metrics of one edit; lengths and their change, edited less original, are in words."""

    kind: str
    word_change_ratio: float
    token_change_ratio: float | None
    length_change: int
    words_original: int
    words_edited: int
    changes: int


class Span(NamedTuple):
    """A part of a response with its blanks; the spans of a response add up to its text."""

    text: str
    changed: bool


def split_words(text: str) -> list[str]:
    return _WORD.findall(text)


def measure(
    original: str, edited: str, encode: Callable[[str], Sequence[int]] | None = None
) -> EditMetrics:
    """The metrics of an edit; `encode` gives token ids, without it there is no token ratio."""
    before, after = split_words(original), split_words(edited)
    aligned = _aligned(before, after)
    changes = _changes(aligned)
    kinds = {
        "delete" if not inserted else "replace" if deleted else "insert"
        for deleted, inserted in changes
    }
    return EditMetrics(
        kind="mixed" if len(kinds) > 1 else "".join(kinds) or "none",
        word_change_ratio=_change_ratio(aligned),
        token_change_ratio=(
            _change_ratio(align(encode(edited), encode(original))) if encode else None
        ),
        length_change=len(after) - len(before),
        words_original=len(before),
        words_edited=len(after),
        changes=len(changes),
    )


def _change_ratio(aligned: Alignment) -> float:
    """Changed positions of both sides as a share of all; 0 where both sides are empty."""
    sides = (aligned.changed_i, aligned.changed_j)
    return float(sum(side.sum() for side in sides) / max(1, sum(side.size for side in sides)))


def mark_changes(original: str, edited: str) -> tuple[list[Span], list[Span]]:
    """The original and the edited response, each as alternating changed and unchanged spans."""
    aligned = _aligned(split_words(original), split_words(edited))
    return _spans(original, aligned.changed_j), _spans(edited, aligned.changed_i)


def is_refusal(text: str) -> bool:
    """Whether a text starts like the reply of a model that refuses a request."""
    return bool(_REFUSAL.match(text.strip()))


def find_fault(original: str, edited: str, max_change_ratio: float = 1.0) -> str:
    """Why an edit cannot be learnt from, one of `FAULTS`, or "" for a usable edit.

    empty: there is no response. unchanged: no word differs. refusal: the edit is one, the original
    is not, and less than half of it is left. rewritten: the word change ratio is above
    `max_change_ratio`.
    """
    if not edited.strip():
        return "empty"
    ratio = measure(original, edited).word_change_ratio
    if not ratio:
        return "unchanged"
    if ratio > _REFUSAL_RATIO and is_refusal(edited) and not is_refusal(original):
        return "refusal"
    return "rewritten" if ratio > max_change_ratio else ""


def _aligned(before: list[str], after: list[str]) -> Alignment:
    number = {word: n for n, word in enumerate(dict.fromkeys([*before, *after]))}
    return align([number[word] for word in after], [number[word] for word in before])


def _changes(aligned: Alignment) -> list[tuple[int, int]]:
    """(words deleted, words inserted) between unchanged words, where either is above 0."""
    unchanged = [(i, j) for i, j in enumerate(aligned.partner_i.tolist()) if j >= 0]
    ends = [(-1, -1), *unchanged, (aligned.changed_i.size, aligned.changed_j.size)]
    gaps = ((j - b - 1, i - a - 1) for (a, b), (i, j) in itertools.pairwise(ends))
    return [gap for gap in gaps if any(gap)]


def _spans(text: str, changed: Sequence[bool]) -> list[Span]:
    """Blanks between two changed words count as changed, all others do not."""
    spans, end, before = [], 0, False
    for match, now in zip(_WORD.finditer(text), map(bool, changed), strict=True):
        spans += [(before and now, text[end : match.start()]), (now, match[0])]
        end, before = match.end(), now
    spans.append((False, text[end:]))
    groups = itertools.groupby(filter(lambda span: span[1], spans), key=lambda span: span[0])
    return [Span("".join(part for _, part in group), changed) for changed, group in groups]
