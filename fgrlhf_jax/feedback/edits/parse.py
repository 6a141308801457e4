"""Parses the edited response out of a model's reply: rules that remove what stands around it.

    Sure! Here is the edited response:        a lead-in
    ```                                       a fence, tags or quotes around all of it
    The capital of France is Paris.           <- this is the edit
    ```
    Note: I corrected the city.               a note

The original response decides what belongs to it: the edit keeps as many lead-ins, notes and quotes
as the original has, and the outermost of a reply are removed first. So what a model puts around the
original, edited or not, is removed, and a response that begins with "Sure!" keeps that.
Before all this, thoughts are removed, also those whose opening tag was in the prompt, and the
prompt where the reply repeats it before the response.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial

from fgrlhf_jax.feedback.edits import minimality

_REVISED = (
    "(?:revised|edited|improved|updated|modified|corrected|rewritten|reworded|adjusted|new|final|"
    "better|minimal(?:ly)? (?:edited|revised|changed|modified|improved))"
)
_RESPONSE = "(?:response|answer|version|reply|text|output|edit|revision|rewrite|draft|attempt)"
_CHANGES = "(?:change|edit|modification|revision|correction|improvement|adjustment)s?"
_I = "i(?:['’]ve| have)?(?: (?:only|just|mainly|also|simply|then))*"
_SURE = "(?:sure(?: thing)?|certainly|absolutely|of course|okay|ok|got it|no problem|understood)"
_GLAD = r"(?:i['’]d be|i would be|i['’]m|i am) (?:happy|glad) to (?:help|assist)[^.!\n]{0,80}"
_OPENING = rf"[*_]*(?:{_SURE}[,:]?\s+)?"
_DID = "(?:changed|edited|revised|modified|corrected|reworded|rephrased|clarified|replaced|tweaked)"
_HERE = rf"(?:here(?:['’]s| is| are)|below (?:is|are)|{_I} (?:made|improved|{_DID}))\b"
_THIS = rf"(?:(?:the )?following is|this is|my|the {_REVISED})\b"
_ABOUT = rf"(?=[^:\n]*\b(?:{_RESPONSE}|{_REVISED}|{_CHANGES})\b)[^:\n]{{0,200}}?"
_LEAD_INS = [
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        # "Certainly, here is my attempt at minimal changes to improve the response:"
        rf"{_OPENING}(?:{_HERE}|{_THIS}){_ABOUT}:[*_]*(?=\s|\Z)\s*",
        # the same as a paragraph of its own
        rf"{_OPENING}{_HERE}{_ABOUT}[.!]?[*_]*[ \t]*\n\s*\n\s*",
        # "**Revised response:**", "Response (edited): ", "## Edited response"
        rf"[#>*_\s\[(]*(?:(?:(?:the|my) )?(?:(?:{_REVISED}|original) )?{_RESPONSE}"
        r"(?: \([^()\n]{0,60}\))?|edited|revised|original|assistant)"
        r"[\])*_ ]*:[\])*_]*(?=\s|\Z)\s*",
        rf"(?:#+ |\*\*|__|\[)(?:(?:the|my) )?(?:{_REVISED} )?{_RESPONSE}[\]*_]*[ \t]*\n\s*",
        # "Sure!" and "I'd be happy to help." with more behind them
        rf"(?:{_SURE}!+|(?:sure|certainly|of course)\.|{_GLAD}[!.])\s+(?=\S)",
    )
]
_ABOUT_IT = (
    rf"(?:{_RESPONSE}|{_CHANGES}|changed|word|phras|sentence|grammar|original|minimal|clar|accura|tone"
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
            rf"(?:in )?(?:this|the|my) (?:{_REVISED}|above) {_RESPONSE}\b",
            rf"the original (?:{_RESPONSE}|one) (?:is|was|had|has|did)\b",
            r"(?:in )?this (?:version|edit|revision|rewrite)\b",
            r"let me know if (?:you|this|there|these)\b",
            r"(?:i )?hope (?:this|that|it) helps\b",
        )
    )
    + ")",
    re.IGNORECASE,
)
_UNRELATED = 0.8  # word change ratio from which a text is no version of the response
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


def parse_edit(reply: str, original: str, *prompts: str) -> str:
    """The edited response in a reply, "" where the reply has none.

    Args:
      reply: the text of a model.
      original: the response that it edited, whose leading and trailing blanks the edit gets.
      prompts: what the response answers, an instruction and its input.
    """
    text = _in_tags(remove_thoughts(reply, original).strip(), original)
    for repeated in (original, *reversed(prompts)):
        text = _after_repetition(text, repeated, original)
    excess = _count_layers(text)
    excess.subtract(_count_layers(original.strip()))
    while layer := next(_outer_layers(text, excess, original), None):
        name, text = layer
        excess[name] -= 1
    bare = original.strip()
    before, _, after = original.partition(bare) if bare else ("", "", "")
    return before + text + after if text else ""


def remove_thoughts(reply: str, original: str = "") -> str:
    """The text behind the last tag that ends thoughts and is not in the original."""
    original_tags = thought_tags(original)
    for tag in reversed([*_THOUGHT_TAG.finditer(reply)]):
        if tag[0].startswith("</") and tag[0].lower() not in original_tags:
            return reply[tag.end() :]
    return reply


def thought_tags(text: str) -> set[str]:
    """The tags of thoughts in a text, in lower case."""
    return {tag.lower() for tag in _THOUGHT_TAG.findall(text)}


def _outer_layers(
    text: str, excess: Mapping[str, int] | None = None, original: str = ""
) -> Iterator[tuple[str, str]]:
    """Each kind of layer that is around a text, with what is in it.

    Args:
      excess: how many layers of each kind may come off, where ``original`` has others.
    """
    for name, strip in _STRIP.items():
        if excess is None or excess[name] > 0:
            inner = strip(text)
            fits = _FITS.get(name) if excess is not None else None
            if inner is not None and (not fits or fits(text, inner, original)):
                yield name, inner.strip()


def _count_layers(text: str) -> Counter:
    """The number of layers of each kind around a text."""
    layers: Counter = Counter()
    while layer := next(_outer_layers(text), None):
        name, text = layer
        layers[name] += 1
    return layers


def _in_tags(text: str, original: str) -> str:
    """The text in <response> … </response> or the like, if there is exactly one."""
    matches = [match for match in _TAGS.finditer(text) if f"<{match[1]}>" not in original]
    if len(matches) == 1 and _alike(inner := matches[0][2].strip(), original):
        return inner
    return text


def _after_repetition(text: str, repeated: str, original: str) -> str:
    """Without a text that the model repeats first, and the lead-in behind it."""
    if not any(_repetitions(original, repeated)):
        for rest in _repetitions(text, repeated):
            if _alike(rest, original):
                return rest
    return text


def _repetitions(text: str, repeated: str) -> Iterator[str]:
    """What follows each lead-in that stands directly behind the repeated text."""
    words = _bare_words(repeated)
    for line in re.finditer(r"(?<=\n)(?=\S)", text) if words else ():
        start = line.start()
        lead_in = _LEAD_INS[0].match(text, start) or _LEAD_INS[2].match(text, start)
        if lead_in and _bare_words(text[:start])[-len(words) :] == words:
            yield text[lead_in.end() :].strip()


def _alike(text: str, original: str) -> bool:
    return minimality.measure(original, text).word_change_ratio < _UNRELATED


def _bare_words(text: str) -> list[str]:
    return [word for word in minimality.split_words(text) if word not in '"“”`*']


def _behind(patterns: Iterable[re.Pattern], text: str) -> str | None:
    """What follows the first of the patterns that the text begins with."""
    match = next(filter(None, (pattern.match(text) for pattern in patterns)), None)
    return text[match.end() :] if match else None


def _note(text: str) -> str | None:
    """Without its last paragraph, or last line, or last list with what announces it."""
    starts = [0, *(match.end() for match in _PARAGRAPH.finditer(text)), len(text)]
    for start, end in zip(starts[-2::-1], starts[:0:-1], strict=True):
        lines = text[start:end].rstrip().splitlines(keepends=True)
        for number in range(len(lines) - 1, -1, -1):
            at = start + sum(map(len, lines[:number]))
            behind = lines[number + 1 :] if number else []
            if at and all(map(_BULLET.match, behind)) and _NOTE.match(lines[number]):
                return text[:at]
        if not all(map(_BULLET.match, lines)):
            return None
    return None


def _fence(text: str) -> str | None:
    lines = list(_FENCE.finditer(text))
    if len(lines) < 2 or lines[0].start() or lines[-1].end() < len(text):
        return None
    return text[lines[0].end() : lines[-1].start()]


def _quotes(text: str) -> str | None:
    closing = _QUOTES.get(text[:1])
    if not closing or len(text) < 3 or text[-1] != closing:
        return None
    return text[1:-1]


def _fence_fits(text: str, inner: str, original: str) -> bool:
    """Whether the outer fences enclose exactly the fences of the original."""
    return len(_FENCE.findall(inner)) == len(_FENCE.findall(original))


def _quotes_fit(text: str, inner: str, original: str) -> bool:
    """Whether the last quote closes the first one, not one between."""
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
    return not between or bool(re.match(r"(?s)(?:^|.*[\s(\[])\Z", inner[: between.start()]))


_STRIP: dict[str, Callable[[str], str | None]] = {
    "thought": partial(_behind, [_THOUGHT]),
    "lead-in": partial(_behind, _LEAD_INS),
    "fence": _fence,
    "quotes": _quotes,
    "note": _note,
    "rule": lambda text: text[: rule.start()] if (rule := _RULE.search(text)) else None,
}
_FITS = {"fence": _fence_fits, "quotes": _quotes_fit}
