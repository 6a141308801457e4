"""The HTML of the annotators' page: what is drawn and escaped; names and line ends."""

import random

import pytest
from html_page import Page

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.feedback.annotation.items import Decision, Item
from fgrlhf_jax.feedback.annotation.page import difference, render
from fgrlhf_jax.feedback.annotation.server import clean_name, known_name
from fgrlhf_jax.feedback.edits.normal_form import restore_line_ends

EVIL = '<script>alert("1")</script> ${alert(1)} {{value}} <img src=x onerror=alert(1)> & \'"'


def test_names():
    names = {"Ann": "Ann", "  Ann \t Lee ": "Ann Lee", "Zoe\u0308": "Zoë", "<b>": "<b>"}
    assert {text: clean_name(text) for text in names} == names
    for refused in ("  ", None, "x" * 61, "a\x00b", "a\u202eb", "a\ud800"):
        with pytest.raises(InputError, match="give"):
            clean_name(refused)
    known, others = ["Noa", "Ann Lee", "Zoë"], ["noa", "ANNLEE", "zoe\u0308", "Ann"]
    assert [known_name(name, known) for name in others] == [*known, ""]


@pytest.mark.parametrize(
    ("original", "typed", "kept"),
    [
        ("a\nb", "a\nc", "a\nc"),
        ("a\r\nb\r\n", "a\nnew\nb\n", "a\r\nnew\r\nb\r\n"),
        ("a\nb\r\nc\r\nd", "a\nx\nc\nd\n", "a\nx\r\nc\r\nd\r\n"),
        ("a\r\n\r\nb", "\n\nb\nc", "\r\n\r\nb\r\nc"),
        ("a\r\n", "", ""),
    ],
)
def test_line_ends_are_kept(original, typed, kept):
    assert restore_line_ends(typed, original) == kept


def test_a_response_that_was_not_touched_comes_back_to_the_letter():
    rng = random.Random(0)
    for _ in range(500):
        original = "".join(rng.choices(["a", "b", " ", "\n", "\r", "\r\n"], k=rng.randrange(12)))
        typed = original.replace("\r\n", "\n").replace("\r", "\n")
        assert restore_line_ends(typed, original) == original


TAGS = {"div", "p", "small", "b", "bdi", "del", "ins", "progress", "details", "summary"}
TAGS |= {"button", "section", "span"}
COUNTS = dict.fromkeys(("rows", "overlap", "done", "mine", "left"), 1)
DECIDED = Item("1", EVIL, "", "x"), Decision("1", EVIL, EVIL, EVIL, 0, (EVIL,), EVIL), []


@pytest.mark.parametrize(
    ("source", "directions"),
    [
        (render("prompt", Item(EVIL, EVIL, EVIL, "x")), 2),
        (render("prompt", Item(EVIL, "", "", "x", turns=((EVIL, EVIL),))), 1),
        (difference(EVIL, f"{EVIL} more", 0.5), 1),
        (difference("more", EVIL, 0.5), 1),
        (render("note", EVIL), 0),
        (render("progress", COUNTS, EVIL), 0),
        (render("versions", [(EVIL, EVIL)]), 1),
        (render("decisions", [DECIDED], 1), 3),
    ],
)
def test_everything_is_escaped_and_has_a_direction_of_its_own(source, directions):
    page = Page(source)
    tags = {tag for tag, _ in page.tags}
    assert tags <= TAGS
    assert EVIL in page.text or {"del", "ins"} <= tags
    assert sum(attributes.get("dir") == "auto" for _, attributes in page.tags) == directions


def test_the_warning_comes_where_the_edit_is_minimal_no_more():
    before = "one two three four five"
    for after, warned in (("one two three four six", False), ("six", True), (before, False)):
        assert ("no longer a" in difference(before, after, 0.5)) == warned
    assert "<b>20%</b>" in difference(before, "one two three four six", 0.5)
    assert "<b>&lt;1%</b>" in difference("word " * 300, "word " * 299 + "other", 0.5)
    assert "only blanks differ" in difference("a b", "a  b", 0.5)
