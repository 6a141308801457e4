"""A report as one self-contained page: no script, font or network access.

Renders the content of ``report.json``. Text is escaped, colours follow the reader's light or dark
mode, charts and tables fit a phone, and print shows folded parts and tooltips.
"""

import functools
import re

from fgrlhf_jax.report import heatmap
from fgrlhf_jax.report.charts import Dot, Line, draw_dots, draw_lines
from fgrlhf_jax.report.html import ASSETS, CHART_COLOURS, HARMLESS, render_page
from fgrlhf_jax.report.tables import number, recommendation, sections, subtitle

_COPIED = ("title", "about", "samples", "commands", "config", "judge")
_MAX_NUMBERED = 40  # tokens; a longer response shows its rewards in tooltips and in print only
_OPEN_SAMPLES = 2
# A number, its error and its unit stay on one line; words may wrap.
_UNBROKEN = re.compile(r"(?<=[\d±=]) (?=[\d±%(])|(?<=T) (?==)|(?<=,) (?=[+−])")


def to_html(report: dict) -> str:
    """The text of ``report.html``, from the content of ``report.json``."""
    return render_page(
        ASSETS,
        "report.html",
        ["charts.css", "heatmap.css", "report.css"],
        **{name: report[name] for name in _COPIED},
        subtitle=subtitle(report),
        recommendation=recommendation(report),
        answer=report["answer"].values(),
        sections=sections(report),
        figures=_figures(report),
        heatmaps=_heatmaps(report),
        labels=report["labels"]["arms"],
        unbroken=functools.partial(_UNBROKEN.sub, "\N{NO-BREAK SPACE}"),
        number=number,
        harmless=HARMLESS,
        outcomes={1.0: "wins", 0.5: "draws", 0.0: "loses"},
        colours=CHART_COLOURS,
        opened=_OPEN_SAMPLES,
    )


def _figures(report: dict) -> dict[str, list]:
    """The charts of each section, by the section's key."""
    score, kl = f"{report['judge']} score", "KL, nats per response"
    labels = report["labels"]["arms"]

    def chart(x: str, y: str, x_name: str, y_name: str, **options):
        curves = [
            Line(labels[name], k % CHART_COLOURS, curve[x], curve[y], curve[f"{y}_se"])
            for k, (name, curve) in enumerate(report["curves"].items())
        ]
        return draw_lines(curves, x=x_name, y=y_name, **options)

    names = {"reward": "reward model's reward", "kl": kl, "length": "length, tokens"}
    ends = [
        chart("kl", "gold", kl, score, cut_x="high", cut_y="low", ends=True),
        chart("length", "reward", names["length"], names["reward"], ends=True),
    ]
    for field, name in {**names, "unfinished": "share of unfinished responses"}.items():
        ends.append(chart("step", field, "PPO step", name, cut_y="high" if field == "kl" else ""))
    learning = chart("step", "gold", "PPO step", score, cut_y="low")
    judged = all(row["win_rate"] is not None for row in report["table1"].values())
    return {"table1": [_win_rates(report)] if judged else [], "curves": [learning], "end": ends}


def _win_rates(report: dict):
    colours = {name: k % CHART_COLOURS for k, name in enumerate(report["curves"])}
    rows = []
    for name, row in report["table1"].items():
        pairs = [
            (100 * row[f"{decoding}win_rate"], 100 * (row[f"{decoding}se"] or 0))
            for decoding in ("", "greedy_")
        ]
        rows.append(Dot(report["labels"]["arms"][name], colours.get(name), *pairs))
    return draw_dots(rows, x="win rate, %: filled T = 1, hollow greedy", marks=[(50.0, "50 %")])


def _heatmaps(report: dict) -> list[dict]:
    """Responses with coloured tokens; each reward model has one scale for the whole page."""
    limits, rendered = {}, []
    models = {name for item in report["heatmaps"] for name in item["by"]}
    for name in models:
        sides = [item["by"][name] for item in report["heatmaps"] if name in item["by"]]
        rewards = [{"rewards": [r or 0.0 for r in side["rewards"]]} for side in sides]
        limits[name] = heatmap.colour_limit([{"sides": rewards}])
    for item in report["heatmaps"]:
        sides = []
        for name, side in item["by"].items():
            shown = {
                "label": report["labels"]["reward_models"].get(name, name),
                "tokens": side["tokens"],
                "rewards": [float("nan") if r is None else r for r in side["rewards"]],
                "changed": [False] * len(side["tokens"]),
            }
            numbered = len(side["tokens"]) <= _MAX_NUMBERED
            rendered_side = heatmap.render_side(shown, limits[name], numbered=numbered)
            sides.append(rendered_side | {"limit": limits[name]})
        rendered.append({"prompt": item["prompt"], "gold": item["gold"], "sides": sides})
    return rendered
