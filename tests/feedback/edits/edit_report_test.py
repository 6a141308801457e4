"""Statistics of the edits in a file, in a terminal, as JSON and as a page."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from html_page import Page
from request_cases import launch

from fgrlhf_jax.data import records
from fgrlhf_jax.data.tokenizers import train_tokenizer
from fgrlhf_jax.feedback.edits import report
from fgrlhf_jax.feedback.edits.minimality import measure
from fgrlhf_jax.feedback.edits.report import compute_statistics, format_examples, format_figures
from fgrlhf_jax.runtime.files import write_jsonl
from launch import edit_report

CHANGES = "del", "ins"
EVIL = "<script>alert('1')</script>\"&amp;{{ 7*7 }}\x1b[2J\u202e"
EDITED = ["a b c x", "a b c", "a b c d e f g h i j k l", "w x y z", "a x c d e"]
RATIOS = [2 / 8, 1 / 7, 8 / 16, 1.0, 3 / 9]  # of "a b c d" to these
ROWS = [
    records.Edit("Say it.", "", "a b c d", edited, id=f"r{n}", finished=n != 2)
    for n, edited in enumerate(EDITED, 1)
]


def test_statistics_by_hand():
    options = {"annotators": ["human", "m/1", "human", "m/1", ""], "max_change_ratio": 0.5}
    statistics = compute_statistics(ROWS, **options, rejected={"cut": 4})
    kinds = {"insert": 1, "delete": 1, "replace": 2, "mixed": 1, "none": 0}
    assert (statistics["n"], statistics["kinds"]) == (5, kinds)
    assert statistics["shares"]["replace"] == 0.4
    quantiles = {f"q{p:02}": np.quantile(RATIOS, p / 100) for p in (5, 25, 75, 95)}
    expected = {"mean": np.mean(RATIOS), "median": 3 / 9, **quantiles}
    assert statistics["word_change_ratio"] == pytest.approx(expected)
    lengths = statistics["length_change"]
    assert (lengths["median"], lengths["mean"]) == (0, (0 - 1 + 8 + 0 + 1) / 5)
    assert "token_change_ratio" not in statistics
    assert statistics["histograms"].keys() == {"word_change_ratio", "length_change"}
    ratios = statistics["histograms"]["word_change_ratio"]
    assert ratios["edges"] == pytest.approx(np.linspace(0, 1, 21))
    assert [k for k, n in enumerate(ratios["counts"]) for _ in range(n)] == [2, 5, 6, 10, 19]
    assert statistics["faults"] == {"empty": 0, "unchanged": 0, "elided": 0, "rewritten": 1}
    assert statistics["aside"] == {"cut": 4}
    counts = {name: summary["n"] for name, summary in statistics["annotators"].items()}
    assert counts == {"unknown": 1, "human": 2, "m/1": 2}
    assert statistics["annotators"]["human"]["word_change_ratio"]["median"] == 0.375
    assert [row["word_change_ratio"] for row in statistics["rows"]] == pytest.approx(RATIOS)
    row = {"row": 4, "id": "r4", "annotator": "m/1", "fault": "rewritten"}
    assert statistics["rows"][3] == row | measure("a b c d", "w x y z")._asdict()
    json.dumps(statistics, allow_nan=False)


def test_examples_are_the_least_the_median_and_the_most_changed_rows_once_each():
    none, one, two = (compute_statistics(ROWS, examples=n)["examples"] for n in range(3))
    places = [(example["sort"], example["rank"], example["row"]) for example in one]
    assert places == [("least", 1, 2), ("median", 1, 5), ("most", 1, 4)]
    assert [example["row"] for example in two] == [2, 1, 5, 3, 4]
    assert none == []
    assert one[0]["original"] == [("a b c", False), (" d", True)]
    assert one[0]["edited"] == [("a b c", False)]


def test_the_terminals_report():
    options = {"annotators": ["m"] * 5, "max_change_ratio": 0.5, "examples": 1}
    statistics = compute_statistics(ROWS, **options, encode=lambda text: [*map(ord, text)])
    assert sum(statistics["histograms"]["token_change_ratio"]["counts"]) == 5
    text = f"{format_figures(statistics)}\n\n{format_examples(statistics, colour=False)}\n"
    assert text.startswith("5 edits: 1 only insert (20.0 %), 1 only delete (20.0 %), 2 only ")
    for pattern in (
        r"word change ratio +0\.445 +0\.164 +0\.250 +0\.333 +0\.500 +0\.900\n",
        r"token change ratio +0\.\d",
        r"0\.10 – 0\.15  █{40} 1\n +0\.15 – 0\.25   0\n +0\.25 – 0\.30  █{40} 1\n",
        r"words\n +≤ -1  █{20} 1\n +0  █{40} 2\n +1  █{20} 1\n +2 … 6   0\n +≥ 7  █",
        r"\nm +5 +0\.333 +20\.0 % +20\.0 % +40\.0 % +20\.0 % +0\.0 %\n",
        r"with max_change_ratio=0.5 would set aside: 1 rewritten\n",
        r"-- least changed: edit 2: row r2, m, delete, 0.143, cut at the length limit\n",
        r"prompt    Say it.\n",
        r"original  a b c\[- d-\]\nedited    a b c\n",
    ):
        assert re.search(pattern, text), pattern
    coloured = format_examples(statistics, colour=True)
    assert "original  a b c\x1b[31;9m d\x1b[0m\n" in coloured
    assert "edited    \x1b[32;4mw x y z\x1b[0m" in coloured


def page(rows=ROWS, title="Edits", **options) -> str:
    return report.render_page(compute_statistics(rows, **options), title=title, source="x.jsonl")


def test_the_page():
    source = page(annotators=["m"] * 5, rejected={"refusal": 2}, examples=1)
    changed = (
        "<h3>Least changed: edit 2 <small>row r2, m, delete, 0.143, cut at the length limit</small>"
    )
    for text in ("<title>Edits</title>", "<h1>Edits</h1>", "default-src 'none'", changed):
        assert text in source
    changes = [re.findall(f"<{tag} class[^>]*>([^<]*)", source) for tag in CHANGES]
    assert changes == [["Taken out", " d", "b", "a b c d"], ["put in", "x", " e", "w x y z"]]
    view = Page(source)
    for text in ("0.25 – 0.30  ████", "2 refusal", "annotator", "length change, words\n"):
        assert text in view.text
    assert view.paragraphs.count("a b c d") == 3  # … and the others have other texts
    assert not re.search(r"https?:|//|url\(|@import|\ssrc=|\shref=|<script", source)


def test_text_becomes_neither_markup_nor_control_characters():
    row = records.Edit(EVIL, EVIL, f"{EVIL} one", f"two {EVIL}", id=EVIL)
    source = page([row], title=EVIL, annotators=[EVIL])
    pages = source, page([records.Edit("q", "i", "a b", "a c", id="x")], annotators=["x"])
    tags, expected = ([tag for tag, _ in Page(html).tags] for html in pages)
    assert [t for t in tags if t not in CHANGES] == [t for t in expected if t not in CHANGES]
    assert "<script" not in source
    statistics = compute_statistics([row], annotators=[EVIL])
    text = format_figures(statistics) + format_examples(statistics, colour=False)
    assert not set(source + text) & set("\x1b\u202e")
    assert "{{ 7*7 }}" in source


@pytest.fixture(autouse=True)
def written():
    first = {"instruction": "q", "original": "a b c d", "edited": EDITED[0]}
    rows = [first | {"edited": edited} for edited in EDITED[1:]]
    write_jsonl("edits.jsonl", [first | {"annotator": "anthropic/m"}, *rows])


def test_the_command(capsys):
    write_jsonl("more.jsonl", [{"instruction": "q", "original": "a", "edited": "b"}])
    write_jsonl("edits.rejected.jsonl", [{"reason": "cut"}, {"reason": "rejected: 400: long"}])
    write_jsonl("more.rejected.jsonl", [{"reason": "cut"}])
    train_tokenizer(["a b c d"] * 3, 270).save_pretrained("tokenizer")
    sources = "edits.jsonl, more.jsonl"
    for name in ("report.json", "report.html"):
        launch(edit_report, input=sources, output=name, tokenizer="tokenizer")
    out = capsys.readouterr().out
    assert out.count("6 edits: ") == out.count("-- least changed") == 2
    assert "when they were collected: 2 cut, 1 rejected" in out
    assert "written to report.html" in out
    statistics = json.loads(Path("report.json").read_text())
    assert statistics["input"] == sources
    assert statistics["word_change_ratio"]["median"] == pytest.approx(np.median([*RATIOS, 1]))
    assert statistics["token_change_ratio"]["median"] > 0
    assert statistics["annotators"].keys() == {"anthropic/m", "unknown"}
    assert len(statistics["rows"]) == len(statistics["examples"]) == 6
    source = Path("report.html").read_text()
    assert "<h1>Edits: edits.jsonl, more.jsonl</h1>" in source
    assert "2 cut, 1 rejected" in source
    launch(edit_report)  # without a file: of the embedded world
    assert capsys.readouterr().out.startswith("300 edits: ")


def test_a_row_that_is_too_long(capsys, refused):
    """Rows within the limit take about a second at most."""
    long = {"instruction": "q", "original": "ab " * 60_000, "edited": "ba " + "ab " * 60_000}
    write_jsonl("long.jsonl", [long, {**long, "original": "ab " * 100_000}])
    sentence = "row 2 has a response of 300,000 characters, more than 200,000"
    assert f"{sentence}; shorten it, or set inv" in refused(edit_report, input="long.jsonl")
    launch(edit_report, input="edits.jsonl,long.jsonl", invalid="drop")
    out, err = capsys.readouterr()
    assert out.startswith("6 edits: ")
    assert len(out) < 5_000  # of a long response only the text around its change
    assert sentence.replace("row 2", "row 7") + "; it is left out" in err
