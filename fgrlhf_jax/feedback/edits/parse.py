"""Extracts the edited response from a model's reply.

If the prompt asks for a form, a JSON object or a pair of tags, only that form is read. If it asks
for none (the paper's prompt), text around the edit is found by comparison with the original:

    Hier ist die überarbeitete Antwort:       removed: all words are inserted, and prose follows
    ```                                       removed: the text inside is closer to the original
    The capital of France is Paris.           the edit
    ```
    Ich habe die Stadt berichtigt.            removed with the fence; without a fence it may be an
                                              added sentence, so the reply is rejected as doubtful

The rules do not depend on the language. Distances are Levenshtein distances in words.
"""

import contextlib
import functools
import html
import itertools
import json
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence

from rapidfuzz.distance import Indel, Levenshtein

from fgrlhf_jax.data.words import INSERTED, WORD, mark_changes, split_words

Span = tuple[int, int]
_UNRELATED = 0.6  # share of changed words from which a text is not an edit of the original
_MOST_DELIMITERS = 8  # maximal number of opening, and of closing, delimiters that are tried
_LONGEST_FRAME = 40  # maximal number of sentences or lines checked before and after an edit
_TAG = (
    r"[<◁][/|｜]?[^<>◁▷\s!]{1,60}(?:\s+[\w:-]+=[^<>\n]{1,60})?[>▷]|<!\[CDATA\[|\]\]>"
    r"|\[/?[A-Z][A-Z_]*\]|\[/\w+\]"
)
_MARK = re.compile(rf"{_TAG}|^[ \t]*(?:`{{3,}}|~{{3,}})[^`<[\n]*$", re.MULTILINE)  # tags and fences
_OPENING_TAG = re.compile(r"[<◁\[](\w{2,})[>▷\]]")  # "<s>" has no end
# Marks of changes in Markdown, HTML, CriticMarkup, wdiff and LaTeX.
_CHANGE_MARKS = re.compile(r"~~|</?(?:ins|del|s|strike)>|\{--|\{\+|\[-[^\[\]]+-\]|→|\\sout\b")
_EMPHASIS = re.compile(r"(\*\*|__|<(\w+)>).+(?:\1|</\2>)", re.DOTALL)
_QUOTED_LINES = re.compile(r"(?:^[ \t]*>.*(?:\n|\Z))+", re.MULTILINE)
_SAME_TWICE = "\"'`*_"  # characters that both open and close
_OPENING = re.compile(rf"^[ \t]*(([{_SAME_TWICE}])\2*|[^\s{{[])", re.MULTILINE)
_CLOSING = re.compile(rf"((?<![{_SAME_TWICE}])([{_SAME_TWICE}])\2*|[^\s}}\]])[ \t]*$", re.MULTILINE)
_LINE = re.compile(r"\S.*")
_ITEM = re.compile(r"\s*(?:[-*+•–|#>`~]|\(?\w{1,3}[.)]\s)")  # item of a list, a table, code
_SENTENCE_END = re.compile(r"(?:[.!?:…][*_\"')]*(?=\s)|[。！？：]|\n)\s*")
_LABEL = re.compile(r"\W{0,3}(?:\w{1,30}\W{1,3}){0,3}?\w{1,30}\s?(?::(?![\w/])|[：﹕︰])")
_NO_ENDS, _QUOTES = "|*_~#<>=—–$", '"“”«»'  # at the end of a text
_ESCAPED = re.compile(r"&(?:amp|lt|gt|quot|apos|#0*39|#x0*27);")  # escapes that a form may need
_REMARK = re.compile(  # in brackets, or after "#", "/", "|" or "<"
    r"(?<!\s)\s*+[(\[{（【［][^()\[\]{}（）【】［］]*+[)\]}）】］][^\w(\[{（【［]*\Z"
    r"|(?<=[.!?…。！？])(?:\s++[#/|]|\s*+<).*+\Z"
)


class Doubtful(Exception):
    """Text around the edit in a reply may be a part of the edit."""


def read_tags(reply: str, tag: str) -> str | None:
    """Returns the text in the only pair of tags, or None; a block of thoughts is ignored."""
    opening, closing = f"<{tag}>", f"</{tag}>"
    start = reply.rfind(opening)
    marks = [mark for mark in re.finditer(_TAG, reply[: max(start, 0)]) if tag not in mark[0]]
    ends = [mark.end() for mark in marks if mark[0][1] == "/"]
    answer = reply[max(ends, default=0) :]
    unclosed = marks and marks[-1][0][1] != "/" and "|" not in marks[-1][0]
    if answer.count(opening) != 1 or answer.count(closing) != 1 or unclosed:
        return None
    text, closed, _ = answer.partition(opening)[2].partition(closing)
    return text if closed else None


def unwrap(reply: str, original: str) -> str:
    """Returns the edit in a reply, or in the text of its form, without text added around it.

    Raises Doubtful if several parts of the reply could be the edit, if a sentence around it could
    be a part of it, or if "&amp;", "\\n" or "\\_" could be an escape of the form.
    """
    text, original = reply.strip(), original.strip()
    while inner := _inside_json(text, original) or _enclosed(text, original):
        text = inner
    unescaped = [_ESCAPED.sub(lambda sign: html.unescape(sign[0]), text)]
    unescaped.append(re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", text))  # Markdown's
    with contextlib.suppress(ValueError):
        unescaped.append(json.loads(f'"{text}"'))
    if any(_distance(other, original) < _distance(text, original) for other in unescaped):
        raise Doubtful
    return _without_frame(text, original)


@functools.lru_cache(maxsize=128)  # each text is compared many times
def _words(text: str) -> list[str]:
    return split_words(text)


def _distance(text: str, original: str) -> int:
    return Levenshtein.distance(_words(original), _words(text))


def _choose(parts: Mapping[str, Span], text: str, original: str) -> str:
    """Returns the part closest to the original, "" if the text outside is a part of the edit too.

    ``parts`` are texts and their places. Raises Doubtful if a part after it is about as close.
    """
    ratios = {
        part: Indel.normalized_distance(_words(original), _words(part)) for part in parts if part
    }
    best = min(ratios, key=ratios.__getitem__, default="")
    if not best or ratios[best] >= _UNRELATED:
        return ""
    outside = len(_words(text)) - len(_words(best))
    if _distance(text, original) - _distance(best, original) < outside / 2:
        return ""
    limit = min(_UNRELATED, (1 + ratios[best]) / 2)
    if any(ratios[part] < limit for part in ratios if parts[part][0] >= parts[best][1]):
        raise Doubtful
    return best


def _inside_json(text: str, original: str) -> str:
    """Returns the string in a JSON value that is closest to the original, or ""."""
    try:
        strings = list(_strings(json.loads(text, strict=False)))
    except (ValueError, RecursionError):
        return ""
    return _choose({part: (n, n + 1) for n, part in enumerate(strings)}, text, original)


def _strings(value) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _strings(item)


def _enclosed(text: str, original: str) -> str:
    """Returns the text between tags, special tokens, fences, or signs around whole lines, or "".

    Delimiters with which the text is closer to the original are kept.
    """
    marks = [match.span() for match in _MARK.finditer(text)]
    marks = marks[:_MOST_DELIMITERS] + marks[_MOST_DELIMITERS:][-_MOST_DELIMITERS:]
    outer = [(0, 0), *marks], [*marks, (len(text), len(text))]
    spans = [(a, b, c, d) for a, b in outer[0] for c, d in outer[1] if b <= c]
    signs = _signs(_OPENING, text)[:_MOST_DELIMITERS], _signs(_CLOSING, text)[-_MOST_DELIMITERS:]
    pairs = [(*span, *other) for span in signs[0] for other in signs[1] if span[1] <= other[0]]
    spans += [span for span in pairs if _encloses(text, *span, original)]
    texts = {text[b:c].strip(): (a, b, c, d) for a, b, c, d in spans if b - a + d - c}
    inside = {
        part: (b, c)
        for part, (a, b, c, d) in texts.items()
        if _distance(part, original) < _distance(text[a:d], original)
    }
    for block in _QUOTED_LINES.finditer(text if "\n>" not in f"\n{original}" else ""):
        inside[re.sub(r"(?m)^[ \t]*> ?", "", block[0]).strip()] = block.span()
    words = _MARK.sub(lambda mark: mark[0] if mark[0] in original else " ", text)
    chosen = _choose(inside, words, original)
    a, b, c, d = texts.get(chosen, (0, 0, 0, 0))
    if (tag := _OPENING_TAG.fullmatch(text, a, b)) and tag[1] not in text[c:d]:
        raise Doubtful  # an unclosed block of thoughts
    return chosen


def _signs(pattern: re.Pattern, text: str) -> list[Span]:
    """Returns the spans of quotes, brackets and similar signs, at the starts or ends of lines."""
    matches = pattern.finditer(text)
    return [m.span(1) for m in matches if m[2] or re.match("P[ifse]", unicodedata.category(m[1]))]


def _encloses(text: str, a: int, b: int, c: int, d: int, original: str) -> bool:
    """Whether the signs at a:b and c:d are one pair, rather than parts of two pairs."""
    if text[a] in _SAME_TWICE and text[a:b] != text[c:d]:
        return False
    names = (unicodedata.name(sign, "") for sign in (text[a], text[c]))
    if len({re.sub("LEFT|RIGHT|.*QUOTATION.*", "", name) for name in names}) > 1:
        return False
    either = "|".join(map(re.escape, {text[a:b], text[c:d]}))
    between = re.search(rf"(?<!\w)(?:{either})|(?:{either})(?!\w)", text[b:c])  # no apostrophes
    return not between or len(re.findall(either, text[b:c])) == len(re.findall(either, original))


def _without_frame(text: str, original: str) -> str:
    """Removes a line that announces the edit and a question after it; Doubtful for other sentences.

    A new first line that ends in a colon announces the edit if prose follows: within a response, a
    colon introduces a list, a table or code.
    """
    edit, more_lines = text, len(_LINE.findall(text)) > len(_LINE.findall(original))
    starts = [match.end() for match in _SENTENCE_END.finditer(edit)]
    places = [m.start() for m in WORD.finditer(edit) if m[0] in _words(original)[:1]]
    starts += [start for start in places if not (edit[:start].rstrip() or "-")[-1].isalnum()]
    starts = sorted(start for start in starts if edit[start:])
    cut, inserted = _frame(edit, original, starts, before=True, mostly=more_lines)
    if cut and not (_ITEM.match(edit) and _ITEM.match(original)):
        line, rest = edit[:cut].rstrip("*_ \t\n"), edit[cut:]
        announces = _ends_in(line, "COLON") and "\n" in text[len(line) : cut]
        if inserted and announces and not _ITEM.match(rest):
            edit = rest
        else:
            raise Doubtful
    starts = [match.start() for match in _LINE.finditer(edit) if more_lines and match.start()]
    starts += [m.end() for m in _SENTENCE_END.finditer(edit) if _LABEL.match(edit, m.end())]
    remarks = [match for match in _REMARK.finditer(edit) if match[0].strip() not in original]
    starts += [match.start() for match in remarks]
    last = re.escape((_words(original) or ["."])[-1])
    ends = rf"(?<![A-Z\d])(?:{last}|[.!?…。！？])[*_\"'”’)]*+\s*+(?!\W*[a-z])(?=\D{{1,200}}\Z)"
    places = [match.end() for match in re.finditer(ends, edit)]
    starts += [n for n in places if _is_new(edit[n:], original + edit[:n], 10)]
    starts += [n for n in places if edit[n - 1] in ".!?" and edit[n].isalpha()]  # no space between
    if _ends_in(edit, "QUESTION MARK"):
        starts += [0, *(match.end() for match in _SENTENCE_END.finditer(edit))][-1:]
    starts.sort(reverse=True)
    cut, inserted = _frame(edit, original, starts, before=False, mostly=True)
    if cut and not (_ITEM.match(edit[cut:]) and _ITEM.match(original.rpartition("\n")[2])):
        behind, edit, whole = edit[cut:].strip(), edit[:cut].rstrip(), edit[:cut]
        is_line = "\n" in whole[len(edit) :] and "\n" not in behind
        if not (inserted and is_line and _ends_in(behind, "QUESTION MARK")):
            raise Doubtful
    if edit == original != text or _looks_framed(edit, original):
        raise Doubtful  # only the removed text was new, or more has to be removed
    if any(edit.count(mark) > original.count(mark) for mark in _CHANGE_MARKS.findall(edit)):
        raise Doubtful  # "~~Lyon~~ Paris" has both texts
    new = [part.strip() for kind, part in mark_changes(original, edit) if kind == INSERTED]
    if new and all(map(_EMPHASIS.fullmatch, new)):
        raise Doubtful  # "**Paris**" marks the change
    ends = (edit, original, 0), (edit[::-1], original[::-1], 2)
    if any(_count_signs(a) > _count_signs(b) + usual for a, b, usual in ends):
        raise Doubtful  # "- ", "\\boxed{…}", "###"
    return edit


def _is_new(part: str, text: str, most: int = 1000) -> bool:
    """Whether a part has at most ``most`` words, of which a text has less than half."""
    known = {word.lower() for word in _words(text)}
    words = [word.lower() for word in _words(part) if word[0].isalnum()]
    return len(words) <= most and len(words) < 2 * sum(w not in known for w in words)


def _looks_framed(edit: str, original: str) -> bool:
    """Whether an edit has a label, added text or half a pair at an end, or is a text twice."""
    lines = [line for line in _LINE.findall(edit) if line[0] == "#" or not _ITEM.match(line)]
    counts = [[len(p.findall(t)) for p in (_LINE, _SENTENCE_END)] for t in (edit, original)]
    more_lines, more_sentences = (a > b for a, b in zip(*counts, strict=True))
    first = _SENTENCE_END.split(edit, 1)[0]
    end = edit[len(first) : len(first) + 1]
    most = 8 if end in ":：" else 0 if end == "." and len(first) <= 3 else 4  # "Mr."
    tags = [tag for tag in {*re.findall(_TAG, edit)} if edit.count(tag) > original.count(tag)]
    opened = (re.search(rf"[<\[]{re.escape(tag[2:-1])}\b", edit) for tag in tags if tag[1] == "/")
    fences = [len(re.findall(r"(?m)^[ \t]*(?:```|~~~)", text)) % 2 for text in (edit, original)]
    label, last = _LABEL.match(edit), edit[-1:] if edit[-1:] != original[-1:] else ""
    is_labelled = label and not (_LABEL.match(original) or _ITEM.match(edit, label.end()))
    is_half_quoted = sum(map(edit.count, _QUOTES)) % 2 and last in _QUOTES
    parts = lines[:1] + lines[1:][-1:] if more_lines else []
    parts += [m[0] for m in _REMARK.finditer(edit) if not _REMARK.search(original)]
    return (
        bool(is_labelled or (last and (last in _NO_ENDS or is_half_quoted)))
        or any(_is_new(part, original) for part in parts)
        or edit[: len(edit) // 2].strip() == edit[(len(edit) + 1) // 2 :].strip() != ""
        or (more_sentences and _is_new(first, original, most))
        or any(tag[1] in "|｜" for tag in tags)
        or not all(opened)
        or fences[0] > fences[1]
    )


def _frame(
    text: str, original: str, cuts: Sequence[int], *, before: bool, mostly: bool
) -> tuple[int, bool]:
    """Returns the last cut outside which all words (``mostly``: half) are new, or 0; if all are."""
    distance, words, last, inserted = _distance(text, original), len(_words(text)), 0, True
    for cut in cuts[:_LONGEST_FRAME]:
        rest = text[cut:] if before else text[:cut]
        removed, gain = words - len(_words(rest)), distance - _distance(rest, original)
        if gain < (removed / 2 if mostly else removed):
            break
        last, inserted = cut, inserted and gain == removed
        distance, words = distance - gain, words - removed
    else:
        if len(cuts) > _LONGEST_FRAME:
            raise Doubtful
    return last, inserted


def _count_signs(text: str) -> int:
    """Counts the characters before the first letter or digit; an emoji (but not °) counts as 3."""
    signs = itertools.takewhile(lambda character: not character.isalnum(), text)
    return sum(3 if sign >= "⌀" and unicodedata.category(sign) == "So" else 1 for sign in signs)


def _ends_in(line: str, name: str) -> bool:
    """Whether the last character has this Unicode name, COLON for instance, in any script."""
    sign = line.rstrip("*_ \t)\"'")[-1:] or " "
    return f" {unicodedata.name(sign, '')}".endswith(f" {name}")
