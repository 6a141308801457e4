"""Describes the form of a judge's verdict, and parses it strictly.

With a server that enforces a JSON schema the reply is {"verdict": LABEL}. Else its last line is
MARKER LABEL, with a marker that no text shown to the judge contains. If the template asks for the
label only (alpaca_eval's "m" or "M"), the label is the whole reply.
A reply in any other form has no verdict; none is guessed from headings, labels or words.
"""

import json
from collections.abc import Sequence

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.feedback.llm.answers import read_json

CHOICES = FIRST, SECOND, TIE = "first", "second", "tie"


def parse_labels(spec: str) -> tuple[str, ...]:
    """Parses a comma-separated list of labels: of the first response, the second, and a draw."""
    labels = tuple(label.strip() for label in spec.split(","))
    if "" in labels or len(set(labels)) != len(labels) or len(labels) not in (2, 3):
        raise InputError(
            f"labels={spec}: give two or three different ones by commas, of the first response, "
            "the second and a draw: A,B,tie"
        )
    return labels


def describe(labels: Sequence[str], marker: str | None) -> str:
    """Returns the sentences that ask for the form, which is JSON if ``marker`` is None."""
    if marker is None:
        *most, last = (json.dumps({"verdict": label}) for label in labels)
        return f"Reply with one JSON object and nothing else: {', '.join(most)} or {last}."
    lines = "\n".join(f"{marker} {label}" for label in labels)
    return (
        "You may explain yourself first. The last line of your reply must be one of these, exactly "
        f"as it stands here, without quotes or asterisks:\n\n{lines}"
    )


def parse(reply: str, labels: Sequence[str], marker: str | None) -> str | None:
    """Returns the verdict in a complete reply, one of `CHOICES`, or None in any other form.

    ``marker`` starts the last line; it is "" if the label is the whole reply, None for JSON.
    """
    text = reply.strip()
    if marker is None:
        answer = read_json(text, "verdict")
    else:
        answer = text.split("\n")[-1] if marker else text
    forms = [f"{marker or ''} {label}".strip() for label in labels]
    return next((c for form, c in zip(forms, CHOICES, strict=False) if form == answer), None)
