"""Shares of repeated and copied four-word sequences against counts by hand."""

import pytest

from fgrlhf_jax.report import repetition


@pytest.mark.parametrize(
    ("response", "share"),
    [
        ("", 0),
        ("so so so", 0),  # no sequence of four words
        ("one two three four five", 0),
        ("a great film. A great film. A great film.", 3 / 6),
        ("la " * 8, 4 / 5),
    ],
)
def test_repeated(response, share):
    assert repetition.repeated(response) == pytest.approx(share)


def test_copied():
    prompt = "Summarize: the cat sat on the mat all day"
    assert repetition.copied("The cat sat on\nthe mat", prompt) == 1
    assert repetition.copied("Today the cat sat on a chair", prompt) == pytest.approx(1 / 4)
    assert repetition.copied("all day", prompt) == repetition.copied("", prompt) == 0


def test_same_opening():
    responses = ["A fine day it was", "a fine  day it is", "A fine night it was", ""]
    assert repetition.same_opening(responses) == 2 / 4
    assert repetition.same_opening(["yes", "Yes", "yes sir"]) == pytest.approx(2 / 3)
