"""stdout and stderr of commands: cleaned, shortened, and without exceptions on failed writes."""

import io
import os
import re
import sys

MAX_LINE = 10_000  # characters
MAX_ERROR = 1_000
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"

# Control characters, text direction marks, other line ends, surrogates.
CONTROLS = (
    "[\0-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)
COLOUR = r"\x1b\[[\d;]*m"  # used by reports and heat maps


class Stream(io.TextIOWrapper):
    """stdout or stderr of a command.

    Replaces characters that steer a terminal or that the encoding lacks, and shortens lines. After
    a failed write (full disk, closed pipe), it discards the rest.

    Attributes:
      fault: the error of the failed write, if any.
    """

    def __init__(self, stream: io.TextIOWrapper, keep: str):
        self.fault: OSError | None = None
        names = ("encoding", "line_buffering", "write_through")
        options = {name: getattr(stream, name) for name in names}
        super().__init__(stream.detach(), errors="backslashreplace", **options)
        self._pattern = re.compile(f"({keep})|{CONTROLS}")

    def write(self, text: str) -> int:
        cleaned = self._pattern.sub(lambda match: match[1] or REPLACEMENT, text)
        lines = (shorten(line, MAX_LINE) for line in cleaned.split("\n"))
        self._attempt(super().write, "\n".join(lines))
        return len(text)

    def flush(self) -> None:
        self._attempt(super().flush)

    def _attempt(self, function, *arguments) -> None:
        try:
            function(*arguments)
        except OSError as error:
            self.fault = error
            devnull = os.open(os.devnull, os.O_WRONLY)
            os.dup2(devnull, self.fileno())
            os.close(devnull)


def protect() -> None:
    """Replaces stdout and stderr by :class:`Stream`; a missing one discards its text."""
    for number, name in enumerate(("stdout", "stderr"), 1):
        stream = getattr(sys, name) or open(number, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        patterns = [r"\r" if name == "stderr" else r"\r\n", *[COLOUR] * stream.isatty()]
        setattr(sys, name, Stream(stream, "|".join(patterns)))
        setattr(sys, f"__{name}__", getattr(sys, name))


def shorten(text: str, limit: int) -> str:
    """Shortens a text to at most ``limit`` characters: its beginning and its end."""
    if len(text) <= limit:
        return text
    gap = f" … ({len(text):,} characters) … "
    begin, end = limit * 2 // 3, limit // 3 - len(gap)
    return f"{text[:begin]}{gap}{text[-end:]}"


def as_sentence(text: object) -> str:
    """Formats a message as one line, cleaned and shortened."""
    return shorten(re.sub(CONTROLS, REPLACEMENT, " ".join(str(text).split())), MAX_ERROR)
