"""Line ends of an edit, which browsers and tables change and nobody means."""

import re

from rapidfuzz.distance import Levenshtein


def restore_line_ends(text: str, original: str) -> str:
    """A text, in which a browser has ended all lines by ``\\n``, with the original's line ends."""
    before, after = (re.findall(r"\r\n?|\n|[^\r\n]+", side) for side in (original, text))
    ends = [unit for unit in before if unit[0] in "\r\n"]
    line_end, restored = max(ends, key=ends.count, default="\n"), []
    for step in Levenshtein.opcodes([re.sub("\r\n?", "\n", unit) for unit in before], after):
        if step.tag == "equal":
            restored += before[step.src_start : step.src_end]
        else:
            new = after[step.dest_start : step.dest_end]
            restored += (line_end if unit == "\n" else unit for unit in new)
    return "".join(restored)
