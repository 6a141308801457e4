"""Restores line ends, Unicode normal form and blanks: readers hardly see them, token ids do change.

Models, browsers and files write the same words with other line ends, composed or decomposed
accents, other blanks, other quotes, and characters without width. An edit keeps those of its
original wherever the words are equal.
"""

import itertools
import re
import unicodedata
from collections.abc import Callable, Sequence

from rapidfuzz.distance import Levenshtein

from fgrlhf_jax.data.words import WORD

_LINE_END = re.compile(r"\r\n?|[\n\x85\u2028\u2029]")
# Soft hyphen, zero-width space, word joiner, byte order mark; direction marks; control characters
# other than blanks.
_DIRECTION_MARKS = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
_CONTROLS = "".join(map(chr, (*range(9), *range(14, 27), 127)))
_NO_WIDTH = dict.fromkeys(map(ord, "\u00ad\u200b\u2060\ufeff" + _DIRECTION_MARKS + _CONTROLS))
# Quotes and hyphens; removes variation selectors.
_QUOTES = str.maketrans("‘’‛“”„‟\u2010\u2011", '\'\'\'""""--', "\ufe0e\ufe0f")


def normalize(text: str) -> str:
    """Normalizes a text: composed (NFC), line ends ``\\n``, no characters without width."""
    return _LINE_END.sub("\n", unicodedata.normalize("NFC", text.translate(_NO_WIDTH)))


def restore_line_ends(text: str, original: str) -> str:
    """Restores the original's line ends in a text that a browser has normalized to ``\\n``."""
    before, after = (re.findall(r"\r\n?|\n|[^\r\n]+", side) for side in (original, text))
    ends = [unit for unit in before if unit[0] in "\r\n"]
    line_end = max(ends, key=ends.count, default="\n")
    keys = [re.sub("\r\n?", "\n", unit) for unit in before], after
    return _restore(before, after, keys, lambda new: re.sub(r"(?<!\r)\n", line_end, new))


def restore_normal_form(text: str, original: str) -> str:
    """A text in the normal form, NFC or NFD, that the original is in, unless it is in both."""
    forms = [form for form in ("NFC", "NFD") if unicodedata.is_normalized(form, original)]
    return unicodedata.normalize(forms[0], text) if len(forms) == 1 else text


def restore_form(text: str, original: str) -> str:
    """Restores the original's form in every word and blank that both texts share.

    Other text gets the most frequent line end of the original, and is decomposed if the whole
    original is. If only quotes and hyphens differ, they are the edit and stay.
    """
    before, after, ends = _units(original), _units(text), _LINE_END.findall(original)
    before_keys, after_keys = ([_key(unit, _QUOTES) for unit in side] for side in (before, after))
    if before_keys == after_keys:
        before_keys, after_keys = ([_key(unit, {}) for unit in side] for side in (before, after))
    line_end = max(ends, key=ends.count, default="\n")

    def convert(new: str) -> str:
        return restore_normal_form(_LINE_END.sub(line_end, new), original)

    return _restore(before, after, (before_keys, after_keys), convert)


def _restore(
    before: Sequence[str],
    after: Sequence[str],
    keys: tuple[Sequence[str], Sequence[str]],
    convert: Callable[[str], str],
) -> str:
    """Joins the units of ``after``, replacing each that has a partner of equal key by it."""
    restored = []
    for step in Levenshtein.opcodes(*keys):
        if step.tag == "equal":
            restored += before[step.src_start : step.src_end]
        else:
            restored.append(convert("".join(after[step.dest_start : step.dest_end])))
    return "".join(restored)


def _units(text: str) -> list[str]:
    """Splits a text into words and the blanks between them; they concatenate to the text."""
    positions = [position for position, char in enumerate(text) if ord(char) not in _NO_WIDTH]
    spans = [match.span() for match in WORD.finditer(text.translate(_NO_WIDTH))]
    ends = [0, *(positions[position] for span in spans for position in (span[0], span[1] - 1))]
    ends = [end + (n > 0 and n % 2 == 0) for n, end in enumerate(ends)]
    return [text[a:b] for a, b in itertools.pairwise([*ends, len(text)])]


def _key(unit: str, quotes: dict[int, str]) -> str:
    """A key equal for all forms of a word or of blanks: NFC, quotes, line ends, indentation."""
    unit = unit.translate(_NO_WIDTH)
    if not unit.isspace():
        return unicodedata.normalize("NFC", unit.translate(quotes))
    *lines, indentation = _LINE_END.split(unit)
    return "\n" * len(lines) + indentation if lines else " "
