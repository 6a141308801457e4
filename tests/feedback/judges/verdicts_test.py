"""Verdicts in replies; what is not clearly one is none."""

import re

import pytest

from fgrlhf_jax.feedback.judges.verdicts import parse, parse_line

FIRST = """\
A / a. / **A** / (A) / "A" / [[A]] / 1 / Output (1) / output_1 / first / Response A / Model A wins
Response A is better. / Response A is clearly better / A is better than B / Verdict: A
The first response is better than the second one. / **Verdict:** Response A / Final answer: **A**
The winner is Response A / Better: A / I prefer response A. / A. It is right about the date.
A, because it answers the question / A - it is clear / A because it is clear / Winner: Response 1
<verdict>A<\\verdict> / It is long, and [[A]] all the same"""
TIE = """\
tie / Tie. / A tie / It's a tie. / draw / C / [[C]] / neither / Neither is better. / Verdict: tie
Both are equally good. / Tie. Both say the same. / The same"""
NONE = """\
I cannot compare these. / Both are good in their way. / [[A]] or [[B]] / Response A: / AB / A>B
A response that is good / A good answer / Answer: A, since it is right / As an AI / 3 / D / ...
The first response is right about the date, the second is not."""


def listed(table: str) -> list[str]:
    return [reply.replace("\\", "/") for reply in re.split(r" / |\n", table)]


@pytest.mark.parametrize("reply", listed(FIRST))
def test_second_is_the_mirror_of_first(reply):
    assert parse(reply) == parse(f"  {reply}\n\n") == "first"
    names = {"A": "B", "B": "A", "a": "b", "1": "2", "first": "second", "second": "first"}
    label = rf"(?<![A-Za-z])({'|'.join(names)})(?![A-Za-z])"
    mirrored = re.sub(label, lambda match: names[match[1]], reply)
    assert mirrored != reply
    assert parse(mirrored) == "second"


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        *((reply, "tie") for reply in listed(TIE)),
        *((reply, None) for reply in ["", " \n ", *listed(NONE)]),
        ("A\n\nIt is right, and B is not.", "first"),
        ("B says it, A does not.\n\nB", "second"),
        ("Response A:\nIt is good.\nResponse B:\nIt is better.\n\nVerdict: B", "second"),
        ("Response A:\nIt is good.\nResponse B:\nIt is bad.", None),
        ("A\nB", None),
        ("A, B", None),
        ("B. A.", None),
        ("A, B or tie", None),
        ("A, B is worse", "first"),
        ("A. It is good.\nB. It is better.", None),
        ("A\n\nSo, all in all: [[A]] it is.", "first"),
        ("One may say [[B]]\nor even [[B]], who knows", "second"),
        ("<think>\nB\n</think>\n\nA", "first"),
        ("<think>\nB or A?\n", None),
        ("<think>\nA\n", None),
        ("<thinking>B</thinking>A", "first"),
        ("B is shorter.\nB\n</think>\n\nA", "first"),
        ("B\n</think>\n", None),
        ("<think>B</think>A\n</think>\ntie", "tie"),
    ],
)
def test_ties_none_and_several_lines(reply, verdict):
    assert parse(reply) == verdict


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("**Verdict: B**\n", "second"),
        ("A", "first"),
        ("A. It is right about", None),
        ("A\n\nIt is", None),
        ("A\nB", None),
        ("<think>\nA", None),
        ("", None),
    ],
)
def test_a_reply_that_was_cut(reply, verdict):
    assert parse_line(reply) == verdict
