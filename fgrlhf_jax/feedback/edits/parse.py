"""Reads the edited response out of a model's reply.

Where a reply was asked for in a form, a JSON object or a pair of tags, only that form is read. For
a prompt that asks for none (the paper's), the original decides what belongs to the edit:

    Hier ist die überarbeitete Antwort:       all of it is inserted, and the rest is prose: goes
    ```                                       what it encloses is closer to the original: goes
    The capital of France is Paris.           <- this is the edit
    ```
    Ich habe die Stadt berichtigt.            goes with the fence; without one it may be an added
                                              sentence: nothing is guessed, the reply is doubtful

No rule knows a word of any language. Distances are Levenshtein's, in words.
"""

import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence

from rapidfuzz.distance import Indel, Levenshtein

from fgrlhf_jax.feedback.edits.minimality import split_words

Span = tuple[int, int]
_UNRELATED = 0.6  # share of changed words from which a text is no version of the original
_MOST_DELIMITERS = 4  # that may open, and that may close, an enclosed edit
_MARK = re.compile(r"</?[^<>\s/][^<>\n]{0,80}>|\[/?[A-Z][A-Z_]*\]|\[/\w+\]")
_FENCE = re.compile(r"^[ \t]*(?:`{3,}|~{3,})[^`\n]*$", re.MULTILINE)
_QUOTED_LINES = re.compile(r"(?:^[ \t]*>.*(?:\n|\Z))+", re.MULTILINE)
_LINE = re.compile(r"\S.*")
_ITEM = re.compile(r"\s*(?:[-*+•–|#>`~]|\(?\w{1,3}[.)]\s)")  # of a list, a table, a block of code
_SENTENCE_END = re.compile(r"[.!?:…](?=\s)\s*|[。！？：]\s*|\n\s*")
_CLOSING_BRACKETS = re.compile(r"\s*[(\[{（【［][^()\[\]{}（）【】［］]*[)\]}）】］]\W*\Z")


class Doubtful(Exception):
    """What a reply has around the edit may be a part of it."""


def read_json(reply: str, field: str) -> str | None:
    """The text in a JSON object of one field; None for a reply of any other form."""
    try:
        value = json.loads(reply, object_pairs_hook=list)  # pairs, so that two fields are seen
    except (ValueError, RecursionError):
        return None
    match value:
        case [(name, str(text))] if name == field:
            return text
    return None


def read_tags(reply: str, tag: str) -> str | None:
    """The text in the only pair of tags; None for a reply of any other form.

    A block of thoughts before it, whose end is a tag too, may hold others.
    """
    opening, closing = f"<{tag}>", f"</{tag}>"
    start = reply.rfind(opening)
    marks = [mark for mark in _MARK.finditer(reply, 0, max(start, 0)) if tag not in mark[0]]
    ends = [mark.end() for mark in marks if mark[0][1] == "/"]
    answer = reply[max(ends, default=0) :]
    unclosed = marks and marks[-1][0][1] != "/" and "|" not in marks[-1][0]
    if answer.count(opening) != 1 or answer.count(closing) != 1 or unclosed:
        return None
    _, _, behind = answer.partition(opening)
    text, closed, _ = behind.partition(closing)
    return text if closed else None


def unwrap(reply: str, original: str, *, bounded: bool = False) -> str:
    """The edit in a reply without what stands around it and is not in the original.

    Args:
      bounded: whether the reply was read from a form of its own, so that sentences at its ends are
        of the edit.

    Raises:
      Doubtful: where more than one part of the reply could be the edit, or a sentence around it
        could be a part of it.
    """
    text, original = reply.strip(), original.strip()
    for _ in range(20):
        inner = _inside_json(text, original) or _inside_marks(text, original)
        inner = (inner or _inside_delimiters(text, original) or text).strip()
        if inner == text:
            break
        text = inner
    return text if bounded else _without_frame(text, original)


def _distance(text: str, original: str) -> int:
    return Levenshtein.distance(split_words(original), split_words(text))


def _choose(parts: Iterable[str], text: str, original: str) -> str | None:
    """The only part that is closer to the original than the whole text; None without one."""
    words = split_words(original)
    ratios = {part: Indel.normalized_distance(words, split_words(part)) for part in parts if part}
    best = min(ratios, key=ratios.__getitem__, default="")
    if not best or ratios[best] >= _UNRELATED:
        return None
    outside = len(split_words(text)) - len(split_words(best))
    if _distance(text, original) - _distance(best, original) < max(1, outside / 2):
        return None  # what is outside is of the edit too
    limit = min(_UNRELATED, (1 + ratios[best]) / 2)
    others = [part for part in ratios if part not in best and best not in part]
    if any(ratios[part] < limit for part in others):
        raise Doubtful
    return best


def _inside_json(text: str, original: str) -> str | None:
    """A string in a JSON value that is closer to the original than its JSON."""
    try:
        value = json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return None
    return _choose(list(_strings(value)), text, original)


def _strings(value) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _strings(item)


def _inside_marks(text: str, original: str) -> str | None:
    """The text between tags or special tokens that the original does not have."""
    marks = [mark for mark in _MARK.finditer(text) if mark[0] not in original]
    if not marks:
        return None
    first, last = marks[0], marks[-1]
    if last.end() == len(text) and not _opens(last, text[: last.start()]):
        return text[: last.start()]
    if not first.start() and f"</{first[0][1:]}" not in text and "/" not in first[0]:
        return text[first.end() :]
    behind = text[last.end() :]
    if last[0][1] == "/" and behind.startswith("\n") and _related(behind, original):
        return behind  # a block of thoughts, which may hold drafts
    ends = [0, *(end for mark in marks for end in mark.span()), len(text)]
    parts = [text[a:b].strip() for a, b in zip(ends[::2], ends[1::2], strict=True)]
    if sum(map(bool, parts)) == 1:
        return "".join(parts)
    return _choose(parts, _MARK.sub("", text), original)


def _opens(mark: re.Match, before: str) -> bool:
    """Whether the element that a closing tag ends begins in the text before it."""
    return mark[0][1] == "/" and re.sub("[/]", "", mark[0], count=1) in before


def _related(text: str, original: str) -> bool:
    words = split_words(original), split_words(text)
    return Indel.normalized_distance(*words) < _UNRELATED


def _inside_delimiters(text: str, original: str) -> str | None:
    """The text in a fence, in quotes or other pairs from line to line, or in quoted lines.

    None where the text with its delimiters is closer to the original, which has them too.
    """
    fences = [match.span() for match in _FENCE.finditer(text)][: 2 * _MOST_DELIMITERS]
    spans = [(a, b, c, d) for k, (a, b) in enumerate(fences) for c, d in fences[k + 1 :]]
    lines = [match.span() for match in _LINE.finditer(text)]
    starts = [a for a, _ in lines if _is_quote(text[a], "Ps")][:_MOST_DELIMITERS]
    ends = [a + len(text[a:b].rstrip()) - 1 for a, b in lines]
    ends = [b for b in ends if _is_quote(text[b], "Pe")][-_MOST_DELIMITERS:]
    pairs = [(a, b) for a in starts for b in ends if a < b]
    encloses = [(a, b) for a, b in pairs if _encloses(text[a], text[a + 1 : b], text[b], original)]
    spans += [(a, a + 1, b, b + 1) for a, b in encloses]
    inside = [text[b:c].strip() for _, b, c, _ in spans]
    if not re.search("^>", original, re.MULTILINE):
        blocks = _QUOTED_LINES.findall(text)
        inside += [re.sub(r"(?m)^[ \t]*> ?", "", block).strip() for block in blocks]
    best = _choose([*inside, *(text[a:d] for a, _, _, d in spans)], text, original)
    return best if best in inside else None


def _is_quote(character: str, brackets: str) -> bool:
    if character in "{}[]":  # of JSON, or of a remark
        return False
    return character in "\"'`*_" or unicodedata.category(character) in ("Pi", "Pf", brackets)


def _encloses(opening: str, inner: str, closing: str, original: str) -> bool:
    """Whether the closing sign ends what the opening one began, not a second pair."""
    if opening in "\"'`*_" and opening != closing:
        return False
    either = "|".join(map(re.escape, {opening, closing}))
    between = re.findall(rf"(.?)({either})(.?)", inner, re.DOTALL)
    between = [signs for signs in between if not (signs[0].isalnum() and signs[2].isalnum())]
    if not between or len(re.findall(either, inner)) == len(re.findall(either, original)):
        return True
    before, first, _ = between[0]
    return first == opening if opening != closing else not before.strip(" \n([")


def _without_frame(text: str, original: str) -> str:
    """Without a line that announces the edit and a question behind it; other sentences are doubt.

    What a colon introduces within a response is a list, a table or code: a first line that ends in
    a colon, is not in the original and stands before prose is about the response.
    """
    edit, more_lines = text, len(_LINE.findall(text)) > len(_LINE.findall(original))
    starts = [match.end() for match in _SENTENCE_END.finditer(edit)]
    starts = [start for start in starts if edit[start:]]
    cut, inserted = _frame(edit, original, starts, before=True, mostly=more_lines)
    if cut and not (_ITEM.match(edit) and _ITEM.match(original)):
        line, edit = edit[:cut].rstrip("*_ \t\n"), edit[cut:]
        announces = _ends_in(line, "COLON") and "\n" in text[len(line) : cut]
        if not (inserted and announces and _related(edit, original)) or _ITEM.match(edit):
            raise Doubtful
    starts = [match.start() for match in _LINE.finditer(edit) if more_lines and match.start()]
    if (match := _CLOSING_BRACKETS.search(edit)) and match[0].strip() not in original:
        starts.append(match.start())
    starts.sort(reverse=True)
    cut, inserted = _frame(edit, original, starts, before=False, mostly=True)
    if cut and not (_ITEM.match(edit[cut:]) and _ITEM.match(original.rpartition("\n")[2])):
        behind, edit = edit[cut:].strip(), edit[:cut].rstrip()
        if not inserted or "\n" in behind or not _ends_in(behind, "QUESTION MARK"):
            raise Doubtful
    if edit != text and edit == original:
        raise Doubtful  # what was taken off is all that was changed
    return edit


def _frame(
    text: str, original: str, cuts: Sequence[int], *, before: bool, mostly: bool
) -> tuple[int, bool]:
    """The last of the cuts beyond which words are inserted, 0 for none; whether all of them are.

    Args:
      mostly: whether half of the words beyond it are enough.
    """
    distance, words, last, inserted = _distance(text, original), len(split_words(text)), 0, True
    for cut in cuts:
        rest = text[cut:] if before else text[:cut]
        removed, gain = words - len(split_words(rest)), distance - _distance(rest, original)
        if gain < (removed / 2 if mostly else removed):
            break
        last, inserted = cut, inserted and gain == removed
        distance, words = distance - gain, words - removed
    return last, inserted


def _ends_in(line: str, name: str) -> bool:
    """Whether the last character is a colon, a question mark … of any script."""
    words = unicodedata.name(line.rstrip("*_ \t)\"'")[-1:] or " ", "").split()
    return words[-len(name.split()) :] == name.split()
