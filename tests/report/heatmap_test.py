"""Pages and terminals show each token's reward and nothing else."""

import re
import xml.etree.ElementTree

import pytest
from html_page import Page

from fgrlhf_jax.report.heatmap import colour_limit, to_html, to_svg, to_terminal


def make_side(label="edited", tokens=("Good", " film"), rewards=(0.5, -0.25), changed=(1, 0)):
    columns = {"tokens": list(tokens), "rewards": list(rewards), "changed": list(changed)}
    return {"label": label, **columns}


def make_row(*sides, instruction="Say it.", input=""):
    return {"instruction": instruction, "input": input, "sides": list(sides)}


def without_colour(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def test_page_shows_every_token():
    original = make_side("original", ["Bad", " film", "</s>"], [-1.0, 0.1, 0.0], [1, 0, 0])
    html = to_html([make_row(original, make_side())], title="Rewards")
    page = Page(html)
    assert page.paragraphs == ["Say it.", "Bad film</s>", "Good film"]
    assert [(t["text"], t["data-reward"], t["class"]) for t in page.spans] == [
        ("Bad", "−1.00", "low removed"),
        (" film", "+0.10", "high"),
        ("</s>", "+0.00", "high"),
        ("Good", "+0.50", "high added"),
        (" film", "−0.25", "low"),
    ]
    assert "3 tokens, sum -0.900, mean -0.3000" in page.text
    assert page.count("title") == 1
    assert len(re.findall('<p [^>]*dir="auto"', html)) == 3  # each text in its own direction


@pytest.mark.parametrize(
    ("rewards", "shares"),
    [
        ([[2.0, -2.0, 1.0, -1.0], [1.0, 0.0, float("nan")]], [0.8, 0.8, 0.4, 0.4, 0.4, 0, 0]),
        ([[1.0] * 99 + [1000.0]], [0.8] * 100),  # one outlier does not pale the rest
        ([[0.0, 0.0]], [0, 0]),
        ([[]], []),
        ([], []),
    ],
)
def test_colour_is_symmetric_and_one_scale_for_the_page(rewards, shares):
    sides = [make_side(tokens=["x"] * len(r), rewards=r, changed=[0] * len(r)) for r in rewards]
    rows = [make_row(side) for side in sides]
    page = Page(to_html(rows, title=""))
    assert page.shares() == shares
    assert f"+{colour_limit(rows):.2f}" in page.text


def test_text_cannot_become_markup_and_nothing_is_loaded():
    evil = "<script>alert('1')</script>\"&amp;{{ 7*7 }}"
    side = make_side(label=evil, tokens=[evil, "</p>"])
    source = to_html([make_row(side, instruction=evil, input=evil)], title=evil)
    page, harmless = Page(source), Page(to_html([make_row(make_side(), input="x")], title="x"))
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in harmless.tags]
    assert page.paragraphs == [evil, evil, evil + "</p>"]
    assert not re.search(r"<script|https?:|url\(|@import|\ssrc=|\shref=", source)
    assert "default-src 'none'" in source


@pytest.mark.parametrize("colour", [False, True])
def test_spaces_line_ends_and_split_characters_are_visible(colour):
    tokens = ["a", "\n", " b", ".\n\n", "", "\t"]
    row = make_row(make_side(tokens=tokens, rewards=[0.0] * 6, changed=[0] * 6))
    page = Page(to_html([row], title=""))
    assert [t["text"] for t in page.spans] == ["a", "↵\n", " b", ".↵\n↵\n", "⋯", "⇥\t"]
    text = to_terminal(row, colour=colour)
    assert colour == ("↵\x1b[0m\n" in text)  # the ground must not fill the line
    shown = "a↵\n b.↵\n↵\n⋯⇥\t" if colour else '"↵"\n   +0.000   " b"\n'
    assert shown in without_colour(text)


def test_terminal_in_colour():
    original = make_side("original", ["Bad", " film"], [-1.0, 1.0], [1, 0])
    text = to_terminal(make_row(original, make_side()), colour=True)
    assert "\nBad film\n" in without_colour(text)
    # Full red struck through, full green, and half of it underlined.
    assert "\x1b[30;48;2;225;75;65;9mBad\x1b[0m" in text
    assert "\x1b[30;48;2;60;170;85m film\x1b[0m" in text
    assert "\x1b[30;48;2;152;207;164;4mGood\x1b[0m" in text

    text = to_terminal(make_row(make_side(), input="The input."), colour=False)
    assert "\x1b" not in text
    assert text.startswith("Say it.\nThe input.\n")
    assert '   +0.500 * "Good"\n   -0.250   " film"\n' in text
    assert "\n* changed by the edit\n" in text


@pytest.mark.parametrize("colour", [False, True])
def test_a_token_cannot_steer_the_terminal(colour):
    evil = "\x1b[2J\x07\x9b\u202e\r\x00"
    row = make_row(make_side(evil, [evil, "x"]), instruction=evil, input=evil)
    text = without_colour(to_terminal(row, colour=colour))
    assert not set(text + to_html([row], title="")) & set("\x1b\x07\x9b\u202e\r\x00")
    assert "\ufffd[2J" in text


def test_a_missing_reward_is_an_error():
    with pytest.raises(ValueError, match="shorter"):
        to_html([make_row(make_side(rewards=[1.0]))], title="")


def test_a_picture_is_xml_and_shows_every_token():
    tokens = ["<b>&", " fi\x1blm", "x" * 92]
    original = make_side("original", tokens, [-1.0, 1.0, 0.0], [1, 0, 0])
    row = make_row(original, make_side(), instruction="a & b")
    picture = xml.etree.ElementTree.fromstring(to_svg([row]))
    texts = [t for t in picture.iter() if t.tag.endswith("text")]
    shown = [(t.text.replace("\xa0", " "), t.get("text-decoration")) for t in texts]
    assert shown == [
        ("a & b", None),
        ("original: 3 tokens, sum +0.000, mean +0.0000", None),
        ("<b>&", "line-through"),
        (" fi\N{REPLACEMENT CHARACTER}lm", None),
        ("x" * 92, None),  # on a line of its own
        ("edited: 2 tokens, sum +0.250, mean +0.1250", None),
        ("Good", "underline"),
        (" film", None),
    ]
    grounds = [(r.get("fill"), r.get("y")) for r in picture.iter() if r.tag.endswith("rect")]
    (ground, _), (red, first), (green, second), (_, third) = grounds[:4]
    assert (ground, red, green) == ("white", "rgb(225,75,65)", "rgb(60,170,85)")
    assert first == second != third
