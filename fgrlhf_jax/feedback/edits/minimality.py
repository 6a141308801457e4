"""How much an edit changes: the metrics of one edit, and edits that are unusable.

With the minimal edit script of the words (``data/words.py``),

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
from collections.abc import Callable, Sequence
from typing import NamedTuple

from fgrlhf_jax.data.alignment import Alignment, align
from fgrlhf_jax.data.words import align_words, split_words

KINDS = ("insert", "delete", "replace", "mixed", "none")
FAULTS = ("empty", "unchanged", "elided", "rewritten")

# What may stand in the place of a part that is left out: "…", "[unchanged]", "# rest as before".
_START = r"(?:(?<=[.!?:。！？：]\s)|(?<=[.!?:。！？：])|^[ \t]*)"  # of a sentence
_OMISSION = re.compile(
    r"(?:[.․]\s?){3,}|[…⋯‥]|。{2,}|&(?:hellip|#8230|#x2026);|\\l?dots\b|<!--.*?-->|/\*.*?\*/"
    r"|^[ \t]*(?:--|[^\w\s\-\"'“”‘’«(（\[{<【［〔《])[^\n]*$"
    rf"|{_START}[(（][^()（）\n]{{1,200}}[)）]"
    rf"|{_START}(?:([*_~—–\"'-]{{1,3}})[^\n]{{1,200}}?\1|«[^\n]{{1,200}}?»)[ \t]*$"
    r"|[\[{<【［〔《][^\[\]{}<>【】［］〔〕《》]{1,200}[\]}>】］〕》]",
    re.MULTILINE | re.DOTALL,
)
_SENTENCE = re.compile(
    r"(?:(?<=[.!?]\s)|(?<=[。！？])|(?<=\n\n))[^.!?。！？\n\d]{1,100}(?:[.!?。！？]+|(?=\n\n|\Z))"
)
# The same within a sentence or behind a line of code.
_ASIDE = re.compile(
    r"(?:(?<!\w)\(|（)[^()（）\n\d]{1,100}[)）]"
    r"|(?<!\w)([*_]{1,3})(?=\S)[^*_\n\d]{1,100}\1(?!\w)|[ \t](?:[—–#]|--|//)[^\n\d]{1,100}$",
    re.MULTILINE,
)
_OMITTED = 8  # words that are missing there, and as many as stand there
_LEFT_OUT = 20  # words for which a sentence stands, and three times as many as it has
_MOST_REMARKS = 100  # that are looked at
LONGEST = 200_000  # characters that are compared: the time grows with their square


class EditMetrics(NamedTuple):
    """Metrics of one edit; lengths and their change, edited less original, are in words."""

    kind: str
    word_change_ratio: float
    token_change_ratio: float | None
    length_change: int
    words_original: int
    words_edited: int
    changes: int


def measure(
    original: str, edited: str, encode: Callable[[str], Sequence[int]] | None = None
) -> EditMetrics:
    """The metrics of an edit; `encode` gives token ids, without it there is no token ratio."""
    before, after = split_words(original), split_words(edited)
    aligned = align_words(before, after)
    unchanged = [(i, j) for i, j in enumerate(aligned.partner_i.tolist()) if j >= 0]
    ends = [(-1, -1), *unchanged, (len(after), len(before))]
    gaps = [(j - b - 1, i - a - 1) for (a, b), (i, j) in itertools.pairwise(ends)]
    changes = [gap for gap in gaps if any(gap)]  # words deleted, words inserted
    kinds = {"delete" if not new else "replace" if old else "insert" for old, new in changes}
    tokens = align(encode(edited), encode(original)) if encode else None
    kind = "mixed" if len(kinds) > 1 else "".join(kinds) or "none"
    ratios = _change_ratio(aligned), tokens and _change_ratio(tokens)
    lengths = len(after) - len(before), len(before), len(after)
    return EditMetrics(kind, *ratios, *lengths, len(changes))


def _change_ratio(aligned: Alignment) -> float:
    """Changed positions of both sides as a share of all; 0 where both sides are empty."""
    sides = (aligned.changed_i, aligned.changed_j)
    return float(sum(side.sum() for side in sides) / max(1, sum(side.size for side in sides)))


def is_elided(original: str, edited: str) -> bool:
    """Whether an ellipsis, a text in brackets, a comment or a sentence stands for what is left out.

    The original does not have it, and at least eight words are missing there, as many as it has and
    twice as many as were put in around it. A plain sentence, in any language, or a remark in one,
    has no number, and most of its words that do not come again and again are its own, and it stands
    among words of the original; missing are at least twenty, and three times as many.
    """
    before = _terms(original.lower())
    remarks = [(match, _OMITTED, 1) for match in _OMISSION.finditer(edited)]
    if len(before) - len(_terms(edited)) >= _LEFT_OUT // 2:
        plain = itertools.chain(_ASIDE.finditer(edited), _SENTENCE.finditer(edited))
        remarks += [(match, _LEFT_OUT, 3) for match in plain]
    for match, least, times in remarks[:_MOST_REMARKS]:
        if edited.count(match[0].strip()) <= original.count(match[0].strip()):
            continue
        first, words, last = (
            _terms(part.lower())
            for part in (edited[: match.start()], match[0], edited[match.end() :])
        )
        partner = align_words(before, first + last).partner_i.tolist()
        sides = partner[: len(first)][::-1], partner[len(first) :]
        inserted = sum(1 for side in sides for _ in itertools.takewhile(lambda j: j < 0, side))
        left, right = ([j for j in side if j >= 0] for side in sides)
        # A few words of either side, since a word that comes again may be matched far away.
        around = [*[*left, -1][2::-1], *[*right, len(before)][:3]]
        missing = max(j - i - 1 for i, j in itertools.pairwise(around))
        rare = [word for word in words if before.count(word) < 3]
        is_alone = (
            inserted <= len(words) and 2 * sum(w not in before for w in rare) >= len(rare) > 0
        )
        if (times == 1 or is_alone) and missing >= max(least, times * len(words) + 2 * inserted):
            return True
    return False


def _terms(text: str) -> list[str]:
    return [word for word in split_words(text) if word[0].isalnum()]


def find_fault(
    original: str, edited: str, max_change_ratio: float = 1.0, ratio: float | None = None
) -> str:
    """Why an edit cannot be learnt from, one of `FAULTS`, or "" for a usable edit.

    Unchanged: no word differs; rewritten: the word change ratio, ``ratio`` where it is known, is
    above ``max_change_ratio``; see :func:`is_elided`.
    """
    if not edited.strip():
        return "empty"
    ratio = measure(original, edited).word_change_ratio if ratio is None else ratio
    if not ratio:
        return "unchanged"
    if is_elided(original, edited):
        return "elided"
    return "rewritten" if ratio > max_change_ratio else ""
