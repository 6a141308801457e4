"""Shares of repeated and copied four-word sequences against counts by hand."""

import pytest

from fgrlhf_jax.pipeline import repetition


@pytest.mark.parametrize(
    ("response", "share"),
    [
        ("", 0),
        ("so so so", 0),  # no sequence of four words
        ("one two three four five", 0),
        ("a great film. A great film. A great film.", 3 / 6),
        ("la " * 8, 4 / 5),
        ("很好很好很好", 1 / 3),  # every character is a word
    ],
)
def test_repeated(response, share):
    assert repetition.repeated(response) == pytest.approx(share)


def test_copied():
    prompt = "Summarize: the cat sat on the mat all day"
    assert repetition.copied("The cat sat on\nthe mat.", prompt) == 1
    assert repetition.copied("Today the cat sat on a chair", prompt) == pytest.approx(1 / 4)
    assert repetition.copied("all day", prompt) == repetition.copied("", prompt) == 0


def test_same_phrase():
    """Wherever it stands, once a response, and not if the prompt has it."""
    responses = ["What an awful show: the acting is great.", "The acting is great! The acting is"]
    responses += ["the acting is good", "The acting is great"]
    prompts = ["", "", "", "Begin with: the acting is great"]
    assert repetition.same_phrase(responses, prompts) == 2 / 4
    assert repetition.same_phrase(["yes", "yes"], ["", ""]) == 0
