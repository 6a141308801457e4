"""The form in which a judge is asked for its verdict, and the strict reading of that form.

A server that holds replies to a JSON schema answers {"verdict": LABEL} and nothing else. Elsewhere
the last line of the reply is MARKER LABEL, where no text that is shown to the judge has the marker;
a template that asks for nothing but the label (alpaca_eval's "m" or "M") has it as the whole reply.
A reply in any other form has no verdict: nothing is guessed from headings, labels or words.
"""

import json
from collections.abc import Sequence

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.feedback.llm.answers import read_json

CHOICES = FIRST, SECOND, TIE = "first", "second", "tie"


def parse_labels(spec: str) -> tuple[str, ...]:
    """The labels of a list by commas: of the first response, of the second, of a draw if any."""
    labels = tuple(label.strip() for label in spec.split(","))
    if "" in labels or len(set(labels)) != len(labels) or len(labels) not in (2, 3):
        raise InputError(
            f"labels={spec}: give two or three different ones by commas, of the first response, "
            "the second and a draw: A,B,tie"
        )
    return labels


def describe(labels: Sequence[str], marker: str | None) -> str:
    """The sentence that asks for the form; without a marker it is JSON."""
    if marker is None:
        *most, last = (json.dumps({"verdict": label}) for label in labels)
        return f"Reply with one JSON object and nothing else: {', '.join(most)} or {last}."
    lines = "\n".join(f"{marker} {label}" for label in labels)
    return (
        "You may explain yourself first. The last line of your reply must be one of these, exactly "
        f"as it stands here, without quotes or asterisks:\n\n{lines}"
    )


def parse(reply: str, labels: Sequence[str], marker: str | None) -> str | None:
    """The verdict of a complete reply, one of `CHOICES`; None where it is not in the form.

    ``marker`` opens the last line; "" where the label is the whole reply, None for JSON.
    """
    text = reply.strip()
    if marker is None:
        answer = read_json(text, "verdict")
    else:
        answer = text.split("\n")[-1] if marker else text
    forms = [f"{marker or ''} {label}".strip() for label in labels]
    return next((c for form, c in zip(forms, CHOICES, strict=False) if form == answer), None)
