"""Names of annotators, and the parts of the page that show them escaped.

The difference is drawn in one text: what stays, what was taken out (red, struck through), what was
put in (green, underlined). Its numbers are those of ``edits.minimality``.
"""

import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.feedback.edits import minimality

LONGEST_NAME = 60
ASSETS = Path(__file__).with_name("assets")
TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(ASSETS),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def render(name: str, *values: Any) -> str:
    """A part of the page: a macro of ``fragments.html``."""
    return str(getattr(TEMPLATES.get_template("fragments.html").module, name)(*values))


def difference(original: str, text: str, limit: float) -> str:
    """The edit so far, with a warning where more than a share `limit` of the words changed."""
    metrics = minimality.measure(original, text)
    only_blanks = text != original and not metrics.changes
    return render(
        "difference", metrics, minimality.mark_changes(original, text), limit, only_blanks
    )


def clean_name(text: str) -> str:
    """An annotator's name as it is recorded; raises InputError for an empty or unprintable one."""
    name = " ".join(unicodedata.normalize("NFC", text or "").split())
    if not name:
        raise InputError("give your name: it is written beside every edit that you make")
    if len(name) > LONGEST_NAME or any(unicodedata.category(c).startswith("C") for c in name):
        raise InputError(f"give a name of at most {LONGEST_NAME} visible characters")
    return name


def known_name(name: str, known: Sequence[str]) -> str:
    """The spelling that is known of a name, whatever its case and blanks; "" for a new name."""
    folded = ["".join(unicodedata.normalize("NFKC", n).casefold().split()) for n in (name, *known)]
    return known[folded.index(folded[0], 1) - 1] if folded[0] in folded[1:] else ""
