"""The report as HTML and as Markdown: content, escaping, layout."""

import re

import numpy as np
import pytest
from html_page import Page
from report_cases import SLOW, make_arm, make_outcomes, make_reward_model, make_study

from fgrlhf_jax.report.content import build_report
from fgrlhf_jax.report.markdown import to_markdown
from fgrlhf_jax.report.page import to_html
from fgrlhf_jax.report.tables import sections

EVIL = "<script>alert('1')</script>\"&amp;{{ 7*7 }}|*_```\n# x"


@pytest.fixture(scope="module")
def report():
    return build_report(make_study())


@pytest.fixture(scope="module")
def evil_report():
    study = make_study(3, **{EVIL: make_arm(EVIL, make_outcomes(0.5, 3), [SLOW] * 3)})
    study |= {"title": EVIL, "judge": EVIL, "config": {EVIL: EVIL}}
    study |= {"seconds": {EVIL: 1.0}, "commands": {EVIL: EVIL}}
    study["about"] = {EVIL: EVIL}
    sample = {"text": EVIL, "score": 1.0, "outcome": 0.0}
    study["samples"] = [{"prompt": EVIL, "by": {EVIL: sample}}]
    study["reward_models"][EVIL] = make_reward_model(EVIL, [0.5] * 3)
    (heatmap,) = study["heatmaps"]
    heatmap |= {"prompt": EVIL, "response": EVIL}
    heatmap["by"][EVIL] = {"tokens": [EVIL, "\u202e\x1b", "</p>"], "rewards": [1, 2, 3]}
    return build_report(study)


def test_text_cannot_become_markup_and_nothing_is_loaded(evil_report):
    source = to_html(evil_report)
    page = Page(source)
    assert page.count("script") == page.count("img") == page.count("link") == 0
    assert page.text.count("<script>alert('1')</script>\"&amp;{{ 7*7 }}") > 10
    assert not set(source) & set("\x1b\u202e")
    outside = r"https?:|//|url\(|@import|\ssrc=|\shref=|<script|<iframe|xmlns"
    assert not re.search(outside, source)
    assert "default-src 'none'" in source


def test_the_page_has_light_and_dark_colours(report):
    source = to_html(report)
    assert "prefers-color-scheme: dark" in source
    used = set(re.findall(r"var\((--[a-z0-9]+)\)", source)) - {"--c", "--share"}
    for block in re.findall(r":root \{(.*?)\}", source, re.DOTALL):
        assert used <= set(re.findall(r"(--[a-z0-9]+):", block))


def test_the_pages_show_the_same_tables(report):
    page, text = Page(to_html(report)), to_markdown(report)
    tables = sections(report)
    keys = ["table1", "differences", "table2", "curves", "table3", "end", "stages"]
    assert [table.key for table in tables] == keys
    assert page.cells == [cell for t in tables for row in (t.head, *t.rows) for cell in row]
    cells = [
        re.sub(r"\\(.)", r"\1", cell)
        for line in text.split("## Token rewards")[0].splitlines()
        if line.startswith("| ") and "---" not in line
        for cell in line[2:-2].split(" | ")
    ]
    assert cells == [cell for t in tables[:-1] for row in (t.head, *t.rows) for cell in row]
    row = dict(zip(tables[0].head, tables[0].rows[-1], strict=True))
    assert row["Arm"] == "PPO on tokens"
    assert row["Win rate, T = 1"].startswith(f"{100 * np.mean(make_outcomes(0.8, 3)):.1f} ± ")
    assert row["KL"] == "1.50"
    lines = [line for part in report["answer"].values() for line in part["lines"]]
    answers = [line[key] for line in lines for key in ("arm", "text")]
    for shown in (*answers, *report["commands"].values(), "Hardware", "2 CPU cores"):
        assert shown in page.text
        assert shown in re.sub(r"\\(.)", r"\1", text)
    said = "name a fruitreference0.500a pearPPO on tokens1.000, winsan apple"
    assert said in page.text.replace("\n", "")


def test_markdown_tables_are_not_torn(evil_report):
    text = to_markdown(evil_report)
    fence = re.search(r"^(`{3,})bash\n(.*?)^\1$", text, re.MULTILINE | re.DOTALL)
    assert EVIL in fence[2]
    assert fence[1] not in fence[2]
    widths = set()
    for line in text[: fence.start()].splitlines():
        assert "<script" not in re.sub(r"\\.", "", line)
        widths = widths | {len(re.findall(r"(?<!\\)\|", line))} if line[:1] == "|" else set()
        assert len(widths) <= 1, line


def test_heat_maps(report):
    page = Page(to_html(report))
    assert [span["class"] for span in page.spans] == ["high", "low", "high"] * 2
    # One scale per reward model: its 98th percentile, close to its largest reward.
    assert page.shares() == pytest.approx([0.41, 0.8, 0.2, 0.0, 0.8, 0.16], abs=0.011)
    assert page.count("span", **{"data-reward": "−1.00"}) == 1
    text = to_markdown(report)
    assert "| Token | tokens | oracle |" in text
    assert "| carrot | −1.00 | −0.50 |" in text


def test_long_responses():
    study = make_study(1)
    tokens, rewards = [f"word{k}" for k in range(100)], [0.001 * k for k in range(100)]
    study["heatmaps"][0]["by"] = {
        "token_edit": {"tokens": tokens, "rewards": rewards},
        "oracle": {"tokens": ["other", "tokens"], "rewards": [1, 2]},
    }
    report = build_report(study)
    text, page = to_markdown(report), Page(to_html(report))
    assert "… and 60 more tokens." in text
    assert "| word39 | 0.04 |" in text
    assert "word40" not in text
    assert "| Token | oracle |" in text
    assert page.count("span", **{"data-reward": "+0.098"}) == 1


def test_the_pages_use_the_name_of_the_judge():
    report = build_report(make_study(1) | {"judge": "VADER"})
    for page in (to_html(report), to_markdown(report)):
        assert "VADER" in page
        assert "gold" not in page.lower()
