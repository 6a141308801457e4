"""Pieces that add up to the text, and pages that show each token's reward and nothing else."""

import html.parser
import re

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from fgrlhf_jax.data.tokenizers import token_texts, train_tokenizer
from fgrlhf_jax.report import heatmap

TEXTS = [
    "A plain sentence, with a number: 1234.",
    "Emoji \N{SLIGHTLY SMILING FACE}\N{FAMILY}\u200d\N{WAVING HAND SIGN}\U0001f3fd end",
    "你好,世界。 日本語と한국어 mixed with English",
    "  leading spaces\n\n\ttabs and\r\nline ends  ",
    "naïve café \u0301 \ufffd already there",
    "مرحبا",
    "x",
]


def byte_level() -> PreTrainedTokenizerFast:
    return train_tokenizer(TEXTS * 3, 330)


def byte_fallback() -> PreTrainedTokenizerFast:
    """As LLaMA-1 and 2: spaces become ▁, unknown characters bytes, decoding drops a space."""
    symbols = ["<unk>", "<s>", "</s>"]
    symbols += [f"<0x{byte:02X}>" for byte in range(256)] + ["▁", *"abcdehilnopstx"]
    model = models.BPE(
        vocab={symbol: index for index, symbol in enumerate(symbols)},
        merges=[],
        unk_token="<unk>",
        byte_fallback=True,
    )
    tokenizer = Tokenizer(model)
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")


@pytest.fixture(scope="module", params=[byte_level, byte_fallback])
def tokenizer(request):
    return request.param()


def decode(tokenizer, ids):
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_add_up(tokenizer, text):
    ids = tokenizer(text, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
    pieces = token_texts(tokenizer, ids)
    assert len(pieces) == len(ids)
    assert "".join(pieces) == decode(tokenizer, ids)
    assert pieces[-1] == "</s>"


def test_pieces_of_text_come_back_whole():
    tokenizer = byte_level()
    for text in TEXTS:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert "".join(token_texts(tokenizer, ids)) == text


def test_pieces_of_any_ids_add_up(tokenizer):
    """Sampled ids need not be text: bytes that never become a character, stray specials."""
    rng = np.random.default_rng(0)
    for _ in range(200):
        ids = rng.integers(0, len(tokenizer), rng.integers(0, 12)).tolist()
        pieces = token_texts(tokenizer, ids)
        assert len(pieces) == len(ids)
        assert "".join(pieces) == decode(tokenizer, ids)


def test_a_character_belongs_to_the_token_that_completes_it():
    tokenizer = train_tokenizer(["ab"], 259)  # bytes only
    ids = tokenizer("a😀b", add_special_tokens=False)["input_ids"]
    assert token_texts(tokenizer, ids) == ["a", "", "", "", "😀", "b"]


def make_side(label="edited", tokens=("Good", " film"), rewards=(0.5, -0.25), changed=(1, 0)):
    return {
        "label": label,
        "tokens": list(tokens),
        "rewards": list(rewards),
        "changed": [bool(c) for c in changed],
    }


def make_row(*sides, instruction="Say it.", input=""):
    return {"instruction": instruction, "input": input, "sides": list(sides)}


class Page(html.parser.HTMLParser):
    """What a browser would see: every tag, and each token with its text and attributes."""

    def __init__(self, page: str):
        super().__init__()
        self.tags, self.tokens, self.paragraphs, self.text, self.open = [], [], [], "", []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag != "meta":
            self.open.append(tag)
        if tag == "p":
            self.paragraphs.append("")
        if tag == "span" and "title" in dict(attrs):
            self.tokens.append({**dict(attrs), "text": ""})

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if "p" in self.open:
            self.paragraphs[-1] += data
        if self.open and self.open[-1] == "span":
            self.tokens[-1]["text"] += data

    def share(self, index: int) -> float:
        return float(re.fullmatch(r"--share:([0-9.]+)", self.tokens[index]["style"])[1])


def test_page_shows_every_token():
    original = make_side("original", ["Bad", " film", "</s>"], [-1.0, 0.1, 0.0], [1, 0, 0])
    page = Page(heatmap.to_html([make_row(original, make_side())], title="Rewards"))
    assert [t["text"] for t in page.tokens] == ["Bad", " film", "</s>", "Good", " film"]
    assert page.paragraphs == ["Say it.", "Bad film</s>", "Good film"]
    assert [t["title"] for t in page.tokens] == [
        "-1.0000, changed",
        "+0.1000",
        "+0.0000",
        "+0.5000, changed",
        "-0.2500",
    ]
    assert [t["class"] for t in page.tokens] == [
        "low removed",
        "high",
        "high",
        "high added",
        "low",
    ]
    assert "3 tokens, sum -0.900, mean -0.3000" in page.text
    assert ("title", {}) in page.tags


def test_colour_is_symmetric_and_one_scale_for_the_page():
    rows = [
        make_row(make_side(tokens="abcd", rewards=[2.0, -2.0, 1.0, -1.0], changed="    ")),
        make_row(make_side(tokens="abc", rewards=[1.0, 0.0, float("nan")], changed="   ")),
    ]
    page = Page(heatmap.to_html(rows, title=""))
    assert [page.share(k) for k in range(7)] == [0.8, 0.8, 0.4, 0.4, 0.4, 0.0, 0.0]
    assert "-2.00" in page.text
    assert "+2.00" in page.text


def test_one_outlier_does_not_pale_the_rest():
    rewards = [1.0] * 99 + [1000.0]
    row = make_row(make_side(tokens="x" * 100, rewards=rewards, changed=[0] * 100))
    page = Page(heatmap.to_html([row], title=""))
    assert page.share(0) == page.share(99) == 0.8


def test_page_of_zeros_or_of_nothing():
    zeros = make_row(make_side(rewards=[0.0, 0.0]))
    assert Page(heatmap.to_html([zeros], title="")).share(0) == 0.0
    empty = make_row(make_side(tokens=[], rewards=[], changed=[]))
    assert Page(heatmap.to_html([empty], title="")).tokens == []
    assert Page(heatmap.to_html([], title="")).tokens == []


def test_text_cannot_become_markup():
    evil = "<script>alert('1')</script>\"&amp;{{ 7*7 }}"
    side = make_side(label=evil, tokens=[evil, "</p>"])
    source = heatmap.to_html([make_row(side, instruction=evil, input=evil)], title=evil)
    page = Page(source)
    harmless = Page(heatmap.to_html([make_row(make_side(), input="x")], title="x"))
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in harmless.tags]
    assert page.paragraphs == [evil, evil, evil + "</p>"]
    assert "<script" not in source


def test_page_loads_nothing():
    source = heatmap.to_html([make_row(make_side())], title="")
    assert not re.search(r"https?:|//|url\(|@import|\ssrc=|\shref=", source)
    assert "default-src 'none'" in source


@pytest.mark.parametrize("colour", [False, True])
def test_spaces_line_ends_and_split_characters_are_visible(colour):
    tokens = ["a", "\n", " b", ".\n\n", "", "\t"]
    row = make_row(make_side(tokens=tokens, rewards=[0.0] * 6, changed=[0] * 6))
    page = Page(heatmap.to_html([row], title=""))
    assert [t["text"] for t in page.tokens] == ["a", "↵\n", " b", ".↵\n↵\n", "⋯", "⇥\t"]
    coloured = heatmap.to_terminal(row, colour=colour)
    assert colour == ("↵\x1b[0m\n" in coloured)  # the ground must not fill the line
    text = without_colour(coloured)
    assert ("a↵\n b.↵\n↵\n⋯⇥\t" if colour else '"↵"\n   +0.000   " b"\n') in text


def without_colour(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def test_terminal_in_colour():
    original = make_side("original", ["Bad", " film"], [-1.0, 1.0], [1, 0])
    text = heatmap.to_terminal(make_row(original, make_side()), colour=True)
    assert "\nBad film\n" in without_colour(text)
    assert "\nGood film\n" in without_colour(text)
    # Full red struck through, full green, and half of it underlined.
    assert "\x1b[30;48;2;225;75;65;9mBad\x1b[0m" in text
    assert "\x1b[30;48;2;60;170;85m film\x1b[0m" in text
    assert "\x1b[30;48;2;152;207;164;4mGood\x1b[0m" in text
    assert text.endswith("\n")


def test_terminal_scale_can_be_shared():
    text = heatmap.to_terminal(make_row(make_side(rewards=[1.0, 0.0])), colour=True, limit=1e9)
    assert "48;2;244;244;244;4mGood" in text


def test_terminal_without_colour():
    text = heatmap.to_terminal(make_row(make_side(), input="The input."), colour=False)
    assert "\x1b" not in text
    assert text.startswith("Say it.\nThe input.\n")
    assert '   +0.500 * "Good"\n   -0.250   " film"\n' in text


@pytest.mark.parametrize("colour", [False, True])
def test_a_token_cannot_steer_the_terminal(colour):
    evil = "\x1b[2J\x07\x9b\u202e\r\x00"
    row = make_row(make_side(evil, [evil, "x"]), instruction=evil, input=evil)
    text = without_colour(heatmap.to_terminal(row, colour=colour))
    page = heatmap.to_html([row], title="")
    assert not set(text + page) & set("\x1b\x07\x9b\u202e\r\x00")
    assert "\ufffd[2J" in text


def test_a_reward_short_is_an_error():
    row = make_row(make_side(rewards=[1.0]))
    with pytest.raises(ValueError, match="shorter"):
        heatmap.to_html([row], title="")
    with pytest.raises(ValueError, match="shorter"):
        heatmap.to_terminal(row, colour=False)
