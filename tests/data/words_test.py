"""Words in any script, and the difference of two texts, which adds up to both."""

import itertools
import random

import pytest

from fgrlhf_jax.data.words import mark_changes, split_words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Don't stop-gap, it’s 1!", ["Don't", "stop-gap", ",", "it’s", "1", "!"]),
        ("'quoted' -dash- a--b", ["'", "quoted", "'", "-", "dash", "-", "a", "-", "-", "b"]),
        ("  naïve\n\n\tcafé  ", ["naïve", "café"]),
        ("猫が好き ok", ["猫", "が", "好", "き", "ok"]),
        ("abc猫def", ["abc", "猫", "def"]),
        ("हिन्दी में लिखा", ["हिन्दी", "में", "लिखा"]),
        ("e\u0301te\u0301-la\u0300, o\u0301", ["e\u0301te\u0301-la\u0300", ",", "o\u0301"]),
        ("か\u3099く ❤\ufe0f", ["か\u3099", "く", "❤\ufe0f"]),
        ("\u0301a", ["\u0301", "a"]),
        ("", []),
        (" \n\t", []),
    ],
)
def test_words(text, words):
    assert split_words(text) == words


@pytest.mark.parametrize(
    ("original", "edited", "shown"),
    [
        ("one two four", "one 2 five four!", "one [-two][+2 five] four[+!]"),
        ("Jimmy Carr as head.", "Jimmy Carr.", "Jimmy Carr[- as head]."),
        ("the Oil Corp (OC) said", "the OC said", "the [-Oil Corp (]OC[-)] said"),
        ("gone", "", "[-gone]"),
        ("same", "same", "same"),
        ("", "", ""),
    ],
)
def test_the_difference_reads_in_order(original, edited, shown):
    forms = {"same": "{}", "out": "[-{}]", "in": "[+{}]"}
    parts = mark_changes(original, edited)
    assert "".join(forms[kind].format(text) for kind, text in parts) == shown


def test_the_difference_adds_up_to_both_sides():
    rng = random.Random(0)
    words = ["a", "b", "c", ",", "\n", " ", "d-e", "日本"]
    for _ in range(1000):
        sides = ["".join(rng.choices(words, k=rng.randrange(12))) for _ in range(2)]
        parts = mark_changes(*sides)
        for text, other in zip(sides, ("in", "out"), strict=True):
            assert "".join(part for kind, part in parts if kind != other) == text
        assert all(text for _, text in parts)
        assert all(a != b for (a, _), (b, _) in itertools.pairwise(parts))
