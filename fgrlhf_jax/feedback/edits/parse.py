"""What a model says around the edited response, taken off by rule.

    Sure! Here is the edited response:        a lead-in
    ```                                       a fence, tags or quotes around the whole
    The capital of France is Paris.           <- this is the edit
    ```
    Note: I corrected the city.               a note

The original is the measure of what belongs to a response: as many lead-ins, notes and quotes stay
as it has itself, and the outermost of a reply go first. So what a model puts around the original,
with or without an edit in it, comes off, and a response that begins with "Sure!" keeps it.
Before all that go thoughts, also those whose opening tag was in the prompt, and what the model was
asked, where it is repeated before the response.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator

from fgrlhf_jax.feedback.edits import minimality

_MADE = (
    "(?:revised|edited|improved|updated|modified|corrected|rewritten|reworded|adjusted|new|final|"
    "better|minimal(?:ly)? (?:edited|revised|changed|modified|improved))"
)
_THING = "(?:response|answer|version|reply|text|output|edit|revision|rewrite|draft|attempt)"
_CHANGES = "(?:change|edit|modification|revision|correction|improvement|adjustment)s?"
_I = "i(?:['’]ve| have)?(?: (?:only|just|mainly|also|simply|then))*"
_SURE = (
    "(?:sure(?: thing)?|certainly|absolutely|of course|okay|ok|got it|no problem|understood)"
)
_GLAD = r"(?:i['’]d be|i would be|i['’]m|i am) (?:happy|glad) to (?:help|assist)[^.!\n]{0,80}"
_OPENING = rf"[*_]*(?:{_SURE}[,:]?\s+)?"
_DID = "(?:changed|edited|revised|modified|corrected|reworded|rephrased|clarified|replaced|tweaked)"
_HERE = rf"(?:here(?:['’]s| is| are)|below (?:is|are)|{_I} (?:made|improved|{_DID}))\b"
_THIS = rf"(?:(?:the )?following is|this is|my|the {_MADE})\b"
_ABOUT = rf"(?=[^:\n]*\b(?:{_THING}|{_MADE}|{_CHANGES})\b)[^:\n]{{0,200}}?"
_LEAD_INS = [
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        # "Certainly, here is my attempt at minimal changes to improve the response:"
        rf"{_OPENING}(?:{_HERE}|{_THIS}){_ABOUT}:[*_]*(?=\s|\Z)\s*",
        # the same as a paragraph of its own
        rf"{_OPENING}{_HERE}{_ABOUT}[.!]?[*_]*[ \t]*\n\s*\n\s*",
        # "**Revised response:**", "Response (edited): ", "## Edited response"
        rf"[#>*_\s\[(]*(?:(?:(?:the|my) )?(?:(?:{_MADE}|original) )?{_THING}"
        r"(?: \([^()\n]{0,60}\))?|edited|revised|original|assistant)"
        r"[\])*_ ]*:[\])*_]*(?=\s|\Z)\s*",
        rf"(?:#+ |\*\*|__|\[)(?:(?:the|my) )?(?:{_MADE} )?{_THING}[\]*_]*[ \t]*\n\s*",
        # "Sure!" and "I'd be happy to help." with more behind them
        rf"(?:{_SURE}!+|(?:sure|certainly|of course)\.|{_GLAD}[!.])\s+(?=\S)",
    )
]
_ABOUT_IT = (
    rf"(?:{_THING}|{_CHANGES}|changed|word|phras|sentence|grammar|original|minimal|clar|accura|tone"
    "|typo|spelling|punctuation|rest|instruction|question|helpful|concise|tense)"
)
_NOTE = re.compile(
    r"[\W_]*(?:"
    + "|".join(
        (
            rf"(?:please )?notes?\b(?=.*?(?:\bi\b|{_ABOUT_IT}))",
            rf"{_I} {_DID}\b",
            rf"{_I} (?:made|added|removed|kept|tried|left|included|inserted|deleted|fixed|updated"
            rf"|improved|adjusted|shortened|simplified)\b(?=.*?{_ABOUT_IT})",
            rf"(?:(?:here are|the|my|these|key|main|minimal|summary of|list of) )*{_CHANGES}"
            r"(?: (?:i|made|were made)\b|[^:\n]{0,40}:)",
            rf"(?:the|my) (?:main|key|only) {_CHANGES} (?:is|are|was|were|here)\b",
            r"(?:explanation|rationale|reasoning|what(?: i)? changed)\b[^\n:]{0,60}:",
            rf"(?:in )?(?:this|the|my) (?:{_MADE}|above) {_THING}\b",
            rf"the original (?:{_THING}|one) (?:is|was|had|has|did)\b",
            r"(?:in )?this (?:version|edit|revision|rewrite)\b",
            r"let me know if (?:you|this|there|these)\b",
            r"(?:i )?hope (?:this|that|it) helps\b",
        )
    )
    + ")",
    re.IGNORECASE,
)
_ANOTHER = 0.8  # of the words changed: more is no version of the same response
_BULLET = re.compile(r"\s*(?:[-*•–]|\d+[.)])\s")
_PARAGRAPH = re.compile(r"\n[ \t]*\n\s*")
_RULE = re.compile(r"\n\s*[-*=]{3,}\s*\Z")
_FENCE = re.compile(r"^[ \t]*(?:`{3,}|~{3,})[^`\n]*$", re.MULTILINE)
_TAGS = re.compile(
    r"<(response|answer|reply|edit|edited|revised|result"
    r"|(?:edited|revised|improved|new|final)_(?:response|answer|version|text))>(.*?)</\1>",
    re.DOTALL | re.IGNORECASE,
)
_THOUGHT = re.compile(r"<(think|thinking|thought|scratchpad)>.*?</\1>", re.DOTALL)
_THOUGHT_TAG = re.compile(r"</?(?:think|thinking|thought|scratchpad)\b\s*>?", re.IGNORECASE)
_QUOTES = {'"': '"', "“": "”", "„": "“", "«": "»", "'": "'", "‘": "’", "`": "`"}


def parse_edit(reply: str, original: str, *asked: str) -> str:
    """The edited response in a reply, "" where there is nothing else in it.

    It begins and ends with the blanks that the original begins and ends with. asked: what the
    response answers, an instruction and its input.
    """
    text = _in_tags(remove_thoughts(reply, original).strip(), original)
    for repeated in (original, *reversed(asked)):
        text = _after_echo(text, repeated, original)
    excess = _layers(text)
    excess.subtract(_layers(original.strip()))
    while True:
        for name, off in _OFF.items():
            inner = off(text) if excess[name] > 0 else None
            if inner is not None and (name not in _FITS or _FITS[name](text, inner, original)):
                text = inner.strip()
                excess[name] -= 1
                break
        else:
            break
    bare = original.strip()
    before, _, after = original.partition(bare) if bare else ("", "", "")
    return before + text + after if text else ""


def remove_thoughts(reply: str, original: str = "") -> str:
    """What follows on the last tag that ends thoughts and is not in the original."""
    kept = thought_tags(original)
    ends = [
        tag.end()
        for tag in _THOUGHT_TAG.finditer(reply)
        if tag[0].startswith("</") and tag[0].lower() not in kept
    ]
    return reply[max(ends, default=0) :]


def thought_tags(text: str) -> set[str]:
    """The tags of thoughts in a text, in lower case."""
    return {tag.lower() for tag in _THOUGHT_TAG.findall(text)}


def _layers(text: str) -> Counter:
    """How many layers of each sort a text has, from outside."""
    found: Counter = Counter()
    while True:
        for name, off in _OFF.items():
            inner = off(text)
            if inner is not None:
                text = inner.strip()
                found[name] += 1
                break
        else:
            return found


def _in_tags(text: str, original: str) -> str:
    """What stands in <response> … </response> or the like, where it is there once."""
    found = [match for match in _TAGS.finditer(text) if f"<{match[1]}>" not in original]
    if len(found) == 1 and _alike(inner := found[0][2].strip(), original):
        return inner
    return text


def _after_echo(text: str, repeated: str, original: str) -> str:
    """What follows on a lead-in that stands behind a text which a model repeats first."""
    if not any(_echoes(original, repeated)):
        for rest in _echoes(text, repeated):
            if _alike(rest, original):
                return rest
    return text


def _echoes(text: str, repeated: str) -> Iterator[str]:
    """What follows on each lead-in that stands behind a text."""
    said = _bare_words(repeated)
    for start in re.finditer(r"(?<=\n)(?=\S)", text) if said else ():
        lead_in = _LEAD_INS[0].match(text, start.start()) or _LEAD_INS[2].match(
            text, start.start()
        )
        if lead_in and _bare_words(text[: start.start()])[-len(said) :] == said:
            yield text[lead_in.end() :].strip()


def _alike(text: str, original: str) -> bool:
    return minimality.measure(original, text).word_change_ratio < _ANOTHER


def _bare_words(text: str) -> list[str]:
    return [word for word in minimality.split_words(text) if word not in '"“”`*']


def _lead_in(text: str) -> str | None:
    match = next(filter(None, (pattern.match(text) for pattern in _LEAD_INS)), None)
    return text[match.end() :] if match else None


def _note(text: str) -> str | None:
    """Without its last paragraph, or last line, or last list with what announces it."""
    starts = [0, *(match.end() for match in _PARAGRAPH.finditer(text)), len(text)]
    for start, end in zip(starts[-2::-1], starts[:0:-1], strict=True):
        lines = text[start:end].rstrip().splitlines(keepends=True)
        for number in range(len(lines) - 1, -1, -1):
            at = start + sum(map(len, lines[:number]))
            alone = number in (0, len(lines) - 1) or all(
                map(_BULLET.match, lines[number + 1 :])
            )
            if at and alone and _NOTE.match(lines[number]):
                return text[:at]
        if not all(map(_BULLET.match, lines)):
            return None
    return None


def _rule(text: str) -> str | None:
    match = _RULE.search(text)
    return text[: match.start()] if match else None


def _fence(text: str) -> str | None:
    lines = list(_FENCE.finditer(text))
    if len(lines) < 2 or lines[0].start() or lines[-1].end() < len(text):
        return None
    return text[lines[0].end() : lines[-1].start()]


def _thought(text: str) -> str | None:
    match = _THOUGHT.match(text)
    return text[match.end() :] if match else None


def _quotes(text: str) -> str | None:
    closing = _QUOTES.get(text[:1])
    if not closing or len(text) < 3 or text[-1] != closing:
        return None
    return text[1:-1]


def _fence_fits(text: str, inner: str, original: str) -> bool:
    """The two fences hold all the others, and those are the original's."""
    return len(_FENCE.findall(inner)) == len(_FENCE.findall(original))


def _quotes_fit(text: str, inner: str, original: str) -> bool:
    """The first quote is closed by the last one, not by one between."""
    opening, closing = text[0], text[-1]
    if inner == original:
        return True
    if opening != closing:
        depth = 0
        for character in inner:
            depth += (character == opening) - (character == closing)
            if depth < 0:
                return False
        return depth == 0
    between = re.search(rf"(?<!\w){re.escape(opening)}|{re.escape(opening)}(?!\w)", inner)
    return not between or bool(
        re.match(r"(?:^|.*[\s(\[])\Z", inner[: between.start()], re.DOTALL)
    )


_OFF: dict[str, Callable[[str], str | None]] = {
    "thought": _thought,
    "lead-in": _lead_in,
    "fence": _fence,
    "quotes": _quotes,
    "note": _note,
    "rule": _rule,
}
_FITS = {"fence": _fence_fits, "quotes": _quotes_fit}
