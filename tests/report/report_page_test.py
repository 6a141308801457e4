"""Pages that show what is so: the report as HTML and as Markdown."""

import html.parser
import re

import numpy as np
import pytest
from report_cases import SLOW, arm, make_study, outcomes, reward_model

from fgrlhf_jax.report import content as report
from fgrlhf_jax.report import page as report_html
from fgrlhf_jax.report import tables as report_tables

EVIL = "<script>alert('1')</script>\"&amp;{{ 7*7 }}|*_`\n# x"


@pytest.fixture(scope="module")
def found():
    return report.content(make_study())


class Page(html.parser.HTMLParser):
    """Every tag with its attributes, the cells of tables, and all text; tags must be balanced."""

    def __init__(self, page: str):
        super().__init__()
        self.tags, self.cells, self.text, self.open = [], [], "", []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag != "meta":
            self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" in self.open:
            return
        self.text += data
        if self.open and self.open[-1] in ("td", "th"):
            self.cells[-1] += data.replace("\N{NO-BREAK SPACE}", " ")

    def count(self, tag, **wanted):
        return sum(
            name == tag and all(attrs.get(k) == v for k, v in wanted.items())
            for name, attrs in self.tags
        )


def evil_study():
    study = make_study(3, **{EVIL: arm(EVIL, outcomes(0.5, 3), [SLOW] * 3)})
    study |= {"title": EVIL, "judge": EVIL, "config": {EVIL: EVIL}}
    study |= {"seconds": {EVIL: 1.0}, "commands": {EVIL: EVIL}}
    study["reward_models"][EVIL] = reward_model(EVIL, [0.5] * 3)
    study["heatmaps"][0] |= {"prompt": EVIL, "response": EVIL}
    study["heatmaps"][0]["by"][EVIL] = {
        "tokens": [EVIL, "\u202e\x1b", "</p>"],
        "rewards": [1, 2, 3],
    }
    return study


def test_text_cannot_become_markup():
    source = report_html.page(report.content(evil_study()))
    page = Page(source)
    assert page.count("script") == page.count("img") == page.count("link") == 0
    assert "<script" not in source
    assert page.text.count("<script>alert('1')</script>\"&amp;{{ 7*7 }}") > 10
    assert not set(source) & set("\x1b\u202e")


def test_the_page_loads_nothing():
    for source in (report_html.page(report.content(s)) for s in (make_study(), evil_study())):
        assert not re.search(
            r"https?:|//|url\(|@import|\ssrc=|\shref=|<script|<iframe|xmlns", source
        )
        assert "default-src 'none'" in source


def test_the_page_is_for_light_and_dark(found):
    source = report_html.page(found)
    assert "prefers-color-scheme: dark" in source
    colours = set(re.findall(r"var\((--[a-z0-9]+)\)", source)) - {"--c", "--share"}
    for block in re.findall(r":root \{(.*?)\}", source, re.DOTALL):
        assert set(re.findall(r"(--[a-z0-9]+):", block)) == colours


def test_the_pages_show_the_same_tables(found):
    page, text = Page(report_html.page(found)), report_tables.markdown(found)
    sections = report_tables.sections(found)
    assert [s.key for s in sections] == [
        *("table1", "comparisons", "curves", "table3", "end", "table2", "stages")
    ]
    wanted = [cell for s in sections for row in (s.head, *s.rows) for cell in row]
    assert page.cells == wanted
    cells = [
        cell
        for line in text.split("## Token rewards")[0].splitlines()
        if line.startswith("| ") and "---" not in line
        for cell in line[2:-2].split(" | ")
    ]
    shown = [cell for s in sections[:-1] for row in (s.head, *s.rows) for cell in row]
    assert [re.sub(r"\\(.)", r"\1", cell) for cell in cells] == shown
    row = dict(zip(sections[0].head, sections[0].rows[-1], strict=True))
    assert row["Arm"] == "PPO on tokens"
    assert row["Win rate, T = 1"].startswith(f"{100 * np.mean(outcomes(0.8, 3)):.1f} ± ")
    assert row["KL"] == "1.50"
    for part in found["answer"].values():
        assert part["text"] in page.text.replace("\N{NO-BREAK SPACE}", " ")
        assert part["text"] in text
    for command in found["commands"].values():
        assert command in page.text
        assert command in text


def test_markdown_tables_are_not_torn():
    text = report_tables.markdown(report.content(evil_study()))
    fence = re.search(r"^(`{3,})bash\n(.*?)^\1$", text, re.MULTILINE | re.DOTALL)
    assert EVIL in fence[2]
    widths = set()
    for line in text[: fence.start()].splitlines():
        assert "<script" not in re.sub(r"\\.", "", line)
        if not line.startswith("|"):
            widths = set()
        else:
            widths.add(len(re.findall(r"(?<!\\)\|", line)))
            assert len(widths) == 1, line


def test_heat_maps(found):
    page = Page(report_html.page(found))
    tokens = [attrs for tag, attrs in page.tags if tag == "span" and "style" in attrs]
    assert [t["class"] for t in tokens] == ["high", "low", "high"] * 2
    strength = [float(t["style"].split(":")[1]) for t in tokens]
    # One scale a reward model: its 98th percentile, about its largest.
    assert strength == pytest.approx([0.41, 0.8, 0.2, 0.0, 0.8, 0.16], abs=0.011)
    assert "−1.00" in page.text
    text = report_tables.markdown(found)
    assert "| Token | tokens | oracle |" in text
    assert "| carrot | −1.00 | −0.50 |" in text


def test_long_responses():
    study = make_study(1)
    tokens, rewards = [f"word{k}" for k in range(100)], [0.001 * k for k in range(100)]
    study["heatmaps"][0]["by"] = {
        "token_edit": {"tokens": tokens, "rewards": rewards},
        "oracle": {"tokens": ["other", "tokens"], "rewards": [1, 2]},
    }
    found = report.content(study)
    text = report_tables.markdown(found)
    assert "… and 60 more tokens." in text
    assert "| word39 | 0.04 |" in text
    assert "word40" not in text.split("… and 60")[0]
    assert "| Token | oracle |" in text
    page = Page(report_html.page(found))
    assert page.count("div", **{"class": "tokens plain"}) == 1
    assert page.count("span", title="0.10") == 5  # 0.095 to 0.099


def test_without_reward_models_heat_maps_and_arms_of_ppo():
    study = make_study(1) | {"reward_models": {}, "heatmaps": []}
    study["arms"] = {"sft": study["arms"]["sft"]}
    found = report.content(study)
    page = Page(report_html.page(found))
    assert "Table 2" not in page.text
    assert "Token rewards" not in page.text + report_tables.markdown(found)
    assert found["comparisons"] == []
    assert page.count("svg", **{"class": "chart wide"}) == 1  # win rates, no curves


def test_the_judge_gives_the_word():
    found = report.content(make_study(1) | {"judge": "VADER"})
    for shown in (report_html.page(found), report_tables.markdown(found)):
        assert "VADER" in shown
        assert "gold" not in shown.lower().replace("steps_to_gold", "")
