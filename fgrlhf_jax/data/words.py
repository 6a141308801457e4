"""The words of texts in any script, their alignment, and the difference of two texts.

A word is a run of letters and digits with the apostrophes and hyphens in it ("don't",
"well-known"), or one punctuation mark, or one character of a script without blanks between words,
each with the accents and vowel signs that Unicode combines with it.
"""

import itertools
import re
import unicodedata

from rapidfuzz.distance import Prefix

from fgrlhf_jax.data.alignment import Alignment, align

UNCHANGED, REMOVED, INSERTED = "same", "out", "in"  # parts of a difference

# Thai … Han
_UNSPACED = "\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_MARKS = "".join(
    chr(n)
    for n in (*range(0x300, 0x20000), *range(0xE0100, 0xE01F0))  # there are none elsewhere
    if unicodedata.category(chr(n)) in ("Mn", "Mc")
)
_LETTERS = rf"(?:(?![{_UNSPACED}])\w[{_MARKS}]*)+"
WORD = re.compile(rf"[{_UNSPACED}][{_MARKS}]*|{_LETTERS}(?:['’-]{_LETTERS})*|[^\w\s][{_MARKS}]*")


def split_words(text: str) -> list[str]:
    return WORD.findall(text)


def align_words(before: list[str], after: list[str]) -> Alignment:
    """Aligns two lists of words; ``before`` is the original's."""
    word_id = {word: n for n, word in enumerate(dict.fromkeys([*before, *after]))}
    return align([word_id[word] for word in after], [word_id[word] for word in before])


def mark_changes(original: str, edited: str) -> list[tuple[str, str]]:
    """The difference of two texts as (SAME | OUT | IN, text), with blanks, in reading order.

    SAME and OUT concatenate to the original, SAME and IN to the edited text.
    """
    aligned = align_words(*map(split_words, (original, edited)))
    unchanged = [
        [m.span() for m in itertools.compress(WORD.finditer(text), ~changed)]
        for text, changed in ((original, aligned.changed_j), (edited, aligned.changed_i))
    ]
    ends = [((len(original), len(original)), (len(edited), len(edited)))]
    parts, i, j = [], 0, 0
    for (start_i, end_i), (start_j, end_j) in [*zip(*unchanged, strict=True), *ends]:
        removed, added = original[i:start_i], edited[j:start_j]  # between two unchanged words
        before = _common_blanks(removed, added)
        removed, added = removed[len(before) :], added[len(before) :]
        after = _common_blanks(removed[::-1], added[::-1])[::-1]
        parts += [(UNCHANGED, before), (REMOVED, removed.removesuffix(after))]
        parts += [(INSERTED, added.removesuffix(after)), (UNCHANGED, after + edited[start_j:end_j])]
        i, j = end_i, end_j
    grouped = itertools.groupby((part for part in parts if part[1]), key=lambda part: part[0])
    return [(kind, "".join(text for _, text in group)) for kind, group in grouped]


def _common_blanks(first: str, second: str) -> str:
    """The common blanks at the beginning of two texts."""
    common = first[: Prefix.similarity(first, second)]
    return common[: len(common) - len(common.lstrip())]
