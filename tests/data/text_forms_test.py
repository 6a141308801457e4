"""Line ends of an edit are those of the original, whatever a browser made of them."""

import random

from fgrlhf_jax.data.text_forms import restore_line_ends


def test_line_ends_are_kept():
    for original, typed, kept in (
        ("a\nb", "a\nc", "a\nc"),
        ("a\r\nb\r\n", "a\nnew\nb\n", "a\r\nnew\r\nb\r\n"),
        ("a\nb\r\nc\r\nd", "a\nx\nc\nd\n", "a\nx\r\nc\r\nd\r\n"),
        ("a\r\n\r\nb", "\n\nb\nc", "\r\n\r\nb\r\nc"),
        ("a\r\n", "", ""),
    ):
        assert restore_line_ends(typed, original) == kept
    rng = random.Random(0)
    for _ in range(500):  # what was not touched comes back to the letter
        original = "".join(rng.choices(["a", "b", " ", "\n", "\r", "\r\n"], k=rng.randrange(12)))
        typed = original.replace("\r\n", "\n").replace("\r", "\n")
        assert restore_line_ends(typed, original) == original
