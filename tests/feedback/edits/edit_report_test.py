"""The figures of a file of edits, in a terminal, as JSON and as a page."""

import html.parser
import json
import re

import bad_input_cases
import numpy as np
import pytest

from fgrlhf_jax.data import records
from fgrlhf_jax.data.tokenizers import train_tokenizer
from fgrlhf_jax.feedback.edits import minimality
from fgrlhf_jax.feedback.edits import page as edit_page
from fgrlhf_jax.feedback.edits import report as edit_report
from fgrlhf_jax.feedback.llm import cache
from fgrlhf_jax.runtime.files import write_jsonl
from fgrlhf_jax.tiny_world.datasets import make_feedback
from launch import edit_report as launched
from launch.shared import cli

DEFAULT = "configs/edit_report.py"
EVIL = "<script>alert('1')</script>\"&amp;{{ 7*7 }}\x1b[2J\u202e"


def edit(original: str, edited: str, **fields) -> records.Edit:
    return records.Edit("Say it.", "", original, edited, **fields)


ROWS = [
    edit("a b c d", "a b c x", id="r1"),  # 2 of 8 words
    edit("a b c d", "a b c", id="r2"),  # 1 of 7
    edit("a b c d", "a b c d e f g h i j k l", id="r3"),  # 8 of 16
    edit("a b c d", "w x y z", id="r4"),  # 8 of 8
    edit("a b c d", "a x c d e", id="r5"),  # 3 of 9
]
RATIOS = [2 / 8, 1 / 7, 8 / 16, 1.0, 3 / 9]


def test_figures_by_hand():
    who = ["human", "m/1", "human", "m/1", ""]
    found = edit_report.compute_statistics(
        ROWS, annotators=who, max_change_ratio=0.5, rejected={"cut": 4}
    )
    assert found["n"] == 5
    assert found["kinds"] == {"insert": 1, "delete": 1, "replace": 2, "mixed": 1, "none": 0}
    assert found["shares"]["replace"] == 0.4
    assert found["word_change_ratio"] == pytest.approx(
        {
            "mean": np.mean(RATIOS),
            "median": 3 / 9,
            **{f"q{p:02}": np.quantile(RATIOS, p / 100) for p in (5, 25, 75, 95)},
        }
    )
    assert found["length_change"]["median"] == 0
    assert found["length_change"]["mean"] == (0 - 1 + 8 + 0 + 1) / 5
    assert "token_change_ratio" not in found
    assert found["histograms"].keys() == {"word_change_ratio", "length_change"}
    drawn = found["histograms"]["word_change_ratio"]
    assert drawn["edges"] == pytest.approx(np.linspace(0, 1, 21))
    assert {k: n for k, n in enumerate(drawn["counts"]) if n} == {
        2: 1,
        5: 1,
        6: 1,
        10: 1,
        19: 1,
    }
    assert found["faults"] == {"empty": 0, "unchanged": 0, "refusal": 0, "rewritten": 1}
    assert found["aside"] == {"cut": 4}
    assert {name: some["n"] for name, some in found["annotators"].items()} == {
        "unknown": 1,
        "human": 2,
        "m/1": 2,
    }
    assert found["annotators"]["human"]["word_change_ratio"]["median"] == 0.375
    assert [row["word_change_ratio"] for row in found["rows"]] == pytest.approx(RATIOS)
    assert [row["kind"] for row in found["rows"]] == [
        "replace",
        "delete",
        "insert",
        "replace",
        "mixed",
    ]
    assert found["rows"][3] == {
        "row": 4,
        "id": "r4",
        "annotator": "m/1",
        **minimality.measure("a b c d", "w x y z")._asdict(),
        "fault": "rewritten",
    }
    json.dumps(found, allow_nan=False)


def test_examples_are_the_least_the_middle_and_the_most_and_none_twice():
    def shown(count):
        found = edit_report.compute_statistics(ROWS, examples=count)["examples"]
        return [(e["sort"], e["rank"], e["row"]) for e in found]

    assert shown(1) == [("least", 1, 2), ("median", 1, 5), ("most", 1, 4)]
    assert [row for _, _, row in shown(2)] == [2, 1, 5, 3, 4]
    assert shown(0) == []
    (first, *_) = edit_report.compute_statistics(ROWS, examples=1)["examples"]
    assert first["original"] == [("a b c ", False), ("d", True)]
    assert first["edited"] == [("a b c", False)]


def test_lengths_have_round_bins_with_all_rows_in_them():
    rng = np.random.default_rng(0)
    for scale in (0, 1, 7, 40, 900):
        values = np.round(rng.normal(0, scale, 500)).astype(int).tolist()
        drawn = edit_report.histogram("length_change", values)
        widths = set(np.diff(drawn["edges"]).tolist())
        assert len(widths) == 1
        assert re.fullmatch("[125]0*", str(widths.pop()))
        assert sum(drawn["counts"]) == 500
        assert len(drawn["counts"]) <= 62
        assert 0 in drawn["edges"]
        assert len(edit_report.bin_labels(drawn)) == len(drawn["counts"])


def test_shares_at_an_edge_belong_to_the_bin_above_but_for_the_last():
    drawn = edit_report.histogram("word_change_ratio", [0.0, 0.05, 0.15, 0.3, 0.35, 0.6, 1.0])
    assert [k for k, n in enumerate(drawn["counts"]) if n] == [0, 1, 3, 6, 7, 12, 19]


def test_tokens_are_measured_with_a_tokenizer():
    found = edit_report.compute_statistics(ROWS, encode=lambda text: [ord(c) for c in text])
    assert found["token_change_ratio"]["median"] > 0
    assert "token change ratio" in edit_report.format_report(found, colour=False)
    assert sum(found["histograms"]["token_change_ratio"]["counts"]) == 5


def test_the_terminals_table():
    found = edit_report.compute_statistics(
        ROWS, annotators=["m"] * 5, max_change_ratio=0.5, examples=1
    )
    text = edit_report.format_report(found, colour=False)
    assert text.startswith("5 edits: 1 only insert (20.0 %), 1 only delete (20.0 %), 2 only ")
    assert re.search(
        r"word change ratio +0\.445 +0\.164 +0\.250 +0\.333 +0\.500 +0\.900\n", text
    )
    assert re.search(r"0\.10 – 0\.15  █{40} 1\n +0\.15 – 0\.20   0\n", text)
    assert re.search(r"\nm +5 +0\.333 +20\.0 % +20\.0 % +40\.0 % +20\.0 %\n", text)
    assert "with max_change_ratio=0.5 would set aside: 1 rewritten\n" in text
    assert "-- least changed: row 2 (r2 m), delete, 0.143\nprompt    Say it.\n" in text
    assert "original  a b c [-d-]\nedited    a b c\n" in text
    coloured = edit_report.format_report(found, colour=True)
    assert "original  a b c \x1b[31;9md\x1b[0m\n" in coloured
    assert "edited    \x1b[32;4mw x y z\x1b[0m" in coloured


class Page(html.parser.HTMLParser):
    """The tags of a page, each closed, and the texts in some of them."""

    def __init__(self, source: str):
        super().__init__()
        self.tags, self.open, self.texts = [], [], {}
        self.feed(source)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag != "meta":
            self.open.append(tag)
            self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        for tag in set(self.open):
            self.texts[tag][-1] += data


def page(rows=ROWS, title="Edits", **options) -> str:
    return edit_page.render_page(
        edit_report.compute_statistics(rows, **options), title=title, source="x.jsonl"
    )


def test_the_page_shows_all_of_it():
    source = page(annotators=["m"] * 5, rejected={"refusal": 2}, examples=1)
    seen = Page(source)
    assert seen.texts["title"][0] == seen.texts["h1"][0] == "Edits"
    assert seen.texts["del"] == ["Taken out", "d", "b", "a b c d"]
    assert seen.texts["ins"] == ["put in", "x", "e", "w x y z"]
    assert len(seen.texts["svg"]) == 2
    bars = [attrs for tag, attrs in seen.tags if tag == "rect"]
    assert sum(float(bar["height"]) > 0 for bar in bars[:20]) == 5
    assert "0.25 – 0.30: 1" in source
    assert "2 refusal" in source
    assert "By annotator" in source
    assert re.search(r"<h3>Least changed: row 2 <small>r2, m, delete, 0.143</small>", source)
    assert seen.texts["p"].count("a b c d") == 3  # … and the others have other texts


def test_the_page_is_one_file_for_light_and_dark():
    source = page()
    assert not re.search(r"https?:|//|url\(|@import|\ssrc=|\shref=|<script", source)
    assert "default-src 'none'" in source
    assert "prefers-color-scheme: dark" in source


def test_text_cannot_become_markup_nor_steer_anything():
    row = records.Edit(EVIL, EVIL, f"{EVIL} one", f"two {EVIL}", id=EVIL)
    source = page([row], title=EVIL, annotators=[EVIL])
    plain = page([records.Edit("q", "i", "a b", "a c", id="x")], annotators=["x"])
    assert [tag for tag, _ in Page(source).tags if tag not in ("del", "ins")] == [
        tag for tag, _ in Page(plain).tags if tag not in ("del", "ins")
    ]
    assert "<script" not in source
    found = edit_report.compute_statistics([row], annotators=[EVIL])
    text = edit_report.format_report(found, colour=False)
    assert not set(source + text) & set("\x1b\u202e")
    assert "{{ 7*7 }}" in source


@pytest.fixture
def written(tmp_path):
    rows = [
        {"id": row.id, "instruction": "q", "original": row.original, "edited": row.edited}
        for row in ROWS
    ]
    rows[0]["annotator"] = "anthropic/m"
    write_jsonl(tmp_path / "edits.jsonl", rows)
    return tmp_path / "edits.jsonl"


def launch(**fields) -> None:
    launched.main(cli.parse(["", *(f"--config.{k}={v}" for k, v in fields.items())], DEFAULT))


def test_the_command(written, tmp_path, capsys):
    aside = [{"reason": "cut"}, {"reason": "rejected: 400: long"}]
    write_jsonl(cache.rejected_path(written), aside)
    train_tokenizer(["a b c d"] * 3, 270).save_pretrained(tmp_path / "tokenizer")
    for name in ("report.json", "report.html"):
        launch(input=written, output=tmp_path / name, tokenizer=tmp_path / "tokenizer")
    out = capsys.readouterr().out
    assert out.count("5 edits: ") == 2
    assert "when they were collected: 1 cut, 1 rejected" in out
    assert "-- least changed" in out
    assert f"written to {tmp_path / 'report.html'}" in out
    found = json.loads((tmp_path / "report.json").read_text())
    assert found["input"] == str(written)
    assert found["word_change_ratio"]["median"] == pytest.approx(3 / 9)
    assert found["token_change_ratio"]["median"] > 0
    assert found["annotators"].keys() == {"anthropic/m", "unknown"}
    assert len(found["rows"]) == 5
    assert len(found["examples"]) == 5
    source = (tmp_path / "report.html").read_text()
    assert "<h1>Edits: edits.jsonl</h1>" in source
    assert "1 cut, 1 rejected" in source


def test_files_with_a_blank_behind_the_comma(written, tmp_path, capsys):
    write_jsonl(tmp_path / "more.jsonl", [{"instruction": "q", "original": "a", "edited": "b"}])
    write_jsonl(cache.rejected_path(tmp_path / "more.jsonl"), [{"reason": "cut"}])
    launch(input=f"{written}, {tmp_path / 'more.jsonl'}", output=tmp_path / "report.html")
    assert "when they were collected: 1 cut" in capsys.readouterr().out
    assert "<h1>Edits: edits.jsonl, more.jsonl</h1>" in (tmp_path / "report.html").read_text()


def test_without_a_flag_it_shows_the_embedded_world(capsys, tmp_path):
    launch(output=tmp_path / "report.json")
    assert capsys.readouterr().out.startswith("300 edits: ")
    rows, _ = make_feedback(300, 0)
    ratios = [minimality.measure(row.original, row.edited).word_change_ratio for row in rows]
    found = json.loads((tmp_path / "report.json").read_text())
    assert found["word_change_ratio"]["median"] == pytest.approx(np.median(ratios))
    assert found["annotators"] == {}


BAD = {
    "missing": ({"input": "nowhere.jsonl"}, "nowhere.jsonl: there is no such file"),
    "preferences": (
        {"input": "DATA/pairs.jsonl"},
        "pairs.jsonl: row 2 is no edit (instruction",
    ),
    "unchanged": ({"input": "DATA/same.jsonl"}, "same.jsonl:1: original and edited are equal"),
    "aside": (
        {"input": "DATA/odd.jsonl"},
        "odd.rejected.jsonl:1: is no row that was set aside",
    ),
    "suffix": ({"output": "DATA/x.pdf"}, "x.pdf: give a FILE.html or a FILE.json"),
    "over the input": (
        {"input": "DATA/edits.jsonl, DATA/more.json", "output": "DATA/more.json"},
        "more.json, which is read; choose another",
    ),
    "folder": ({"output": "DATA/no/x.html"}, "no does not exist; make it"),
    "tokenizer": ({"tokenizer": "nowhere/at/all"}, "nowhere/at/all: no such model"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case, written, tmp_path, monkeypatch, capsys):
    fields, says = BAD[case]
    good = {"instruction": "q", "original": "a", "edited": "b"}
    pair = {"instruction": "q", "output_1": "a", "output_2": "b", "preference": 1}
    write_jsonl(tmp_path / "pairs.jsonl", [good, pair])
    write_jsonl(tmp_path / "same.jsonl", [good | {"edited": "a"}])
    for name in ("odd.jsonl", "more.json"):
        write_jsonl(tmp_path / name, [good])
    write_jsonl(tmp_path / "odd.rejected.jsonl", [good])
    given = {name: bad_input_cases.filled(v, {"DATA": tmp_path}) for name, v in fields.items()}
    given = {"input": written} | given
    code, said = bad_input_cases.launch(monkeypatch, capsys, launched, DEFAULT, **given)
    assert code == 2
    assert len(said) == 1
    assert says in said[0]
