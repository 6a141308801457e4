"""Verdicts in replies: read in the requested form, and in no other."""

import pytest

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.feedback.judges import verdicts

LABELS = ("A", "B", "tie")
# (reply, marker, verdict)
READ = [
    ("VERDICT: A", "VERDICT:", "first"),
    ("  It is right.\n\n### Response B\nIt is wrong.\n\nVERDICT: B \n", "VERDICT:", "second"),
    ("VERDICT: A\nNo, wait.\r\nVERDICT-2: tie", "VERDICT-2:", "tie"),
    ("<think>\nVERDICT: B\n</think>\nVERDICT: A", "VERDICT:", "first"),
    ("B\n", "", "second"),
    ('{"verdict": "A"}', None, "first"),
    ('\n{\n  "verdict":\t"tie"\n}\n', None, "tie"),
]
# What states, seems to state or quotes a verdict in another form.
WORDS = """\
A / B. / tie / **B** / [[A]] / Verdict: B / VERDICT: a / VERDICT: Tie / VERDICT:A / VERDICT: A or B
VERDICT: A. / **VERDICT: A** / VERDICT: C / My VERDICT: A / VERDICT: / VERDICT A / `VERDICT: A`
Response A is better. / The winner is B / A, because B is wrong / {"verdict": "A"} / VERDICT-2: A"""
REST = [
    *WORDS.replace("\n", " / ").split(" / "),
    "### Response A\nWrong.\n\n### Response B\nRight.\n\nSo Response B is better since it is.",
    "**Assistant A**\nWrong.\n\nSo my final verdict is [[B]] since it is accurate.",
    "VERDICT: A\n\nThat is final.",
    "",
]
JSON = [
    *('{"verdict": "C"}', '{"verdict": ["A"]}', '{"verdict": "A", "reason": ""}'),
    *('{"verdict": "A", "verdict": "B"}', '[["verdict", "A"]]', '```json\n{"verdict": "A"}\n```'),
    *('{"verdict": "A"} {"verdict": "A"}', "VERDICT: A", "A", "[" * 100_000),
]


def test_verdicts_are_read_in_the_form_and_in_no_other():
    for reply, marker, verdict in READ:
        assert verdicts.parse(reply, LABELS, marker) == verdict
    for replies, marker in (REST, "VERDICT:"), (JSON, None), ([*JSON[:-2], "A\nB", "A B"], ""):
        assert {verdicts.parse(reply, LABELS, marker) for reply in replies} == {None}


def test_the_form_is_described():
    assert verdicts.describe(("m", "M"), "VERDICT:").endswith("VERDICT: m\nVERDICT: M")
    assert '{"verdict": "B"} or {"verdict": "tie"}' in verdicts.describe(LABELS, None)


def test_labels():
    assert verdicts.parse_labels("Output (a), Output (b)") == ("Output (a)", "Output (b)")
    for spec in ("", "A", "A,", "A,A", "A,B,C,D"):
        with pytest.raises(InputError, match=r"labels=.*: give two or three different ones"):
            verdicts.parse_labels(spec)
