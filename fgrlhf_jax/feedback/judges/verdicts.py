"""Finds the verdict in a judge's reply by rules; nothing is guessed.

A verdict is a line that says nothing else ("B", "**Response A**", "Verdict: tie", "[[B]]", "The
first response is better.") or begins with the bare label ("A. It is right about the date."). The
last line counts, or the first if the last is no verdict; if both are and differ, or neither is, a
[[label]] anywhere counts. Any other reply is unparsed. Text before the last </think> is ignored,
and after a <think> without its end the whole reply is.
"""

import re

from fgrlhf_jax.feedback.edits.parse import remove_thoughts

FIRST, SECOND, TIE = "first", "second", "tie"

_LABELS = {
    **dict.fromkeys(("a", "1", "one", "first"), FIRST),
    **dict.fromkeys(("b", "2", "two", "second"), SECOND),
    **dict.fromkeys(("c", "tie", "tied", "draw", "equal", "equally good", "neither"), TIE),
    **dict.fromkeys(("neither is better", "both", "the same"), TIE),
}
_LABEL = "|".join(sorted(map(re.escape, _LABELS), key=len, reverse=True))
_THING = r"(?:response|output|answer|reply|option|assistant|candidate|model|one)"
_WORD = r"(?:verdict|answer|choice|decision|judge?ment|winner|preference|evaluation|conclusion)"
_LINE = re.compile(
    rf"""(?:(?:my\ |the\ )?(?:final\ |overall\ )?(?:better\ )?(?:{_WORD}|better\ {_THING}|better)
            (?:\ is:?|:|\ =)\ *)?
    (?:i\ (?:would\ )?(?:prefer|choose|pick|select)\ )?
    (?:(?:it\ is|it['’]s|this\ is|they\ are|both\ are|both\ {_THING}s\ are)\ (?:an?\ )?)?
    (?:the\ |an?\ (?=tie|draw))?(?:{_THING}[\ _]?)?
    [(\[]*(?P<label>{_LABEL})[)\]]*(?:\ {_THING})?
    (?:\ (?:is\ (?:the\ )?(?:clearly\ |slightly\ |much\ )?better(?:\ {_THING})?|wins)
       (?:\ than\ (?:the\ )?(?:{_THING}[\ _]?)?(?:other|{_LABEL})(?:\ {_THING})?)?)?""",
    re.VERBOSE,
)
_FIRST_WORD = re.compile(
    r"\W*\b(A|B|Tie|TIE|tie|Draw)\b[*_\])]*(?:[.,;]| [-–—]| because\b)[*_]*\s"
    r"(?!(?:\W|\b(?:A|B|[Tt]ie|TIE|[Dd]raw|and|or)\b)*$)"  # "A, B" is both
)
_BRACKETS = re.compile(rf"\[\[\s*(?:{_THING}\s*)?({_LABEL})\s*\]\]", re.IGNORECASE)
_AROUND = " \t*_#>\"'`“”‘’[](){}<>.!,"  # not the colon: "Response A:" is a heading


def parse(reply: str) -> str | None:
    """ "first", "second" or "tie"; None where the reply has no verdict, or more than one."""
    reply = remove_thoughts(reply)
    if reply.lstrip().startswith("<think"):
        return None
    lines = [line for line in map(_plain, reply.splitlines()) if line.strip(_AROUND)]
    if not lines:
        return None
    verdicts = {_verdict_at_start(lines[0]), _verdict_at_start(lines[-1])} - {None}
    if len(verdicts) != 1:
        verdicts = {_LABELS[label.lower()] for label in _BRACKETS.findall(reply)}
    return verdicts.pop() if len(verdicts) == 1 else None


def parse_line(reply: str) -> str | None:
    """The verdict of a reply that may have been cut: only one line that is nothing else."""
    line, *more = reply.strip().splitlines() or [""]
    return None if more else _verdict(_plain(line))


def _plain(line: str) -> str:
    return " ".join(re.sub(r"</?\w+>|[*`]", "", line).split())


def _verdict_at_start(line: str) -> str | None:
    """The verdict that a line is, or begins with."""
    label = _FIRST_WORD.match(line)
    return _verdict(line) or (_LABELS[label[1].lower()] if label else None)


def _verdict(line: str) -> str | None:
    """The verdict that the whole line is."""
    match = _LINE.fullmatch(line.strip(_AROUND).lower())
    return _LABELS[match["label"]] if match else None
