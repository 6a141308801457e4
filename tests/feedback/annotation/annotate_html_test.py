"""The HTML of the annotators' page: what is drawn and escaped; names and line ends."""

import random

import pytest
from html_page import Page

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.feedback.annotation import html as page_html
from fgrlhf_jax.feedback.annotation.items import Decision, Item
from fgrlhf_jax.feedback.edits.normal_form import restore_line_ends

EVIL = '<script>alert("1")</script> ${alert(1)} {{value}} <img src=x onerror=alert(1)> & \'"'


def test_names():
    names = {"Ann": "Ann", "  Ann \t Lee ": "Ann Lee", "Zoe\u0308": "Zoë", "<b>": "<b>"}
    assert {text: page_html.clean_name(text) for text in names} == names
    for refused in ("", "  ", None, "x" * 61, "a\x00b", "a\u202eb", "a\ud800"):
        with pytest.raises(InputError, match="give"):
            page_html.clean_name(refused)
    known = ["Noa", "Ann Lee", "Zoë"]
    others = ["noa", "ANNLEE", "zoe\u0308", "Ann"]
    assert [page_html.known_name(name, known) for name in others] == [*known, ""]


@pytest.mark.parametrize(
    ("original", "typed", "kept"),
    [
        ("a\nb", "a\nc", "a\nc"),
        ("a\r\nb", "a\nb", "a\r\nb"),
        ("a\r\nb\r\n", "a\nnew\nb\n", "a\r\nnew\r\nb\r\n"),
        ("a\rb", "b", "b"),
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
        pieces = rng.choices(["a", "b", " ", "\n", "\r", "\r\n"], k=rng.randrange(12))
        original = "".join(pieces)
        typed = original.replace("\r\n", "\n").replace("\r", "\n")
        assert restore_line_ends(typed, original) == original


TAGS = {"div", "p", "small", "b", "bdi", "del", "ins", "progress", "details", "summary"}
TAGS |= {"button", "section", "span"}
COUNTS = ("rows", "overlap", "done", "mine", "left")


@pytest.mark.parametrize(
    "source",
    [
        page_html.render("prompt", Item(EVIL, EVIL, EVIL, "x")),
        page_html.render("prompt", Item(EVIL, "", "", "x", turns=((EVIL, EVIL),))),
        page_html.difference(EVIL, f"{EVIL} more", 0.5),
        page_html.difference("more", EVIL, 0.5),
        page_html.render("note", EVIL),
        page_html.render("progress", dict.fromkeys(COUNTS, 1), EVIL),
        page_html.render("versions", [(EVIL, EVIL)]),
        page_html.render(
            "decisions",
            [(Item("1", EVIL, "", "x"), Decision("1", EVIL, EVIL, EVIL, 0, (EVIL,), EVIL), [])],
            1,
        ),
    ],
)
def test_everything_is_escaped(source):
    page = Page(source)
    assert {tag for tag, _ in page.tags} <= TAGS
    assert EVIL in page.text or {"del", "ins"} <= {tag for tag, _ in page.tags}


def test_every_text_has_a_direction_of_its_own():
    hebrew = "בירת צרפת היא ליון (Lyon), עיר גדולה!"
    item = Item("1", hebrew, hebrew, hebrew, turns=(("user", hebrew),))
    for source, count in (
        (page_html.render("prompt", item), 1),
        (page_html.render("prompt", Item("1", hebrew, hebrew, hebrew)), 2),
        (page_html.difference(hebrew, hebrew + "!", 1.0), 1),
        (page_html.render("versions", [("draft", hebrew)]), 1),
    ):
        assert sum(attributes.get("dir") == "auto" for _, attributes in Page(source).tags) == count


def test_the_warning_comes_where_the_edit_is_minimal_no_more():
    before = "one two three four five"
    for after, warned in (("one two three four six", False), ("six", True), (before, False)):
        source = page_html.difference(before, after, 0.5)
        assert ("no longer a" in source) == warned
    assert "<b>20%</b>" in page_html.difference(before, "one two three four six", 0.5)
    assert "<b>&lt;1%</b>" in page_html.difference("word " * 300, "word " * 299 + "other", 0.5)
    assert "only blanks differ" in page_html.difference("a b", "a  b", 0.5)
