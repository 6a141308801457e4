"""A report's content as one page that loads nothing: no script, no font, no network.

Pure rendering of what ``report.json`` holds; text is escaped, colours follow the reader's light or
dark mode.
"""

import re

from fgrlhf_jax.report.charts import Dot, Line, draw_dots, draw_lines
from fgrlhf_jax.report.heatmap import colour_limit
from fgrlhf_jax.report.html import CHART_COLOURS, page_template
from fgrlhf_jax.report.tables import number, sections, subtitle

_NUMBERED = 40  # tokens; a longer response has its rewards under the pointer only
_UNBROKEN = re.compile(r"(?<=[\d±=]) (?=[\d±%(])|(?<=T) (?==)|(?<=,) (?=[+−])")


def to_html(report: dict) -> str:
    """The text of ``report.html``, of the content of ``report.json``."""
    labels = report["labels"]["arms"]
    return _PAGE.render(
        title=report["title"],
        subtitle=subtitle(report),
        answer=report["answer"].values(),
        sections=sections(report),
        figures=_figures(report),
        legend=[(k % CHART_COLOURS, labels[name]) for k, name in enumerate(report["curves"])],
        heatmaps=report["heatmaps"],
        limits=_colour_limits(report["heatmaps"]),
        reward_models=report["labels"]["reward_models"],
        commands=report["commands"],
        config=report["config"],
        judge=report["judge"],
    )


def _figures(report: dict) -> dict[str, list]:
    """The charts of a section, by its key."""
    score, kl = f"{report['judge']} score", "KL, nats a response"
    labels = report["labels"]["arms"]

    def chart(x: str, y: str, x_name: str, y_name: str, **options):
        curves = [
            Line(labels[name], k % CHART_COLOURS, curve[x], curve[y], curve[f"{y}_se"])
            for k, (name, curve) in enumerate(report["curves"].items())
        ]
        return draw_lines(curves, x=x_name, y=y_name, **options)

    wide = {"size": (940, 400), "cut_y": "low", "labels": True}
    names = {"reward": "reward model's reward", "kl": kl, "length": "length, tokens"}
    ends = [
        chart("kl", "gold", kl, score, cut_x="high", cut_y="low", ends=True),
        chart("length", "reward", names["length"], names["reward"], ends=True),
    ]
    for field, name in {**names, "unfinished": "share unfinished"}.items():
        cut = "high" if field == "kl" else ""
        ends.append(chart("step", field, "PPO step", name, size=(460, 260), cut_y=cut))
    learning = chart("step", "gold", "PPO step", score, **wide)
    return {"table1": [_win_rates(report)], "curves": [learning], "end": ends}


def _win_rates(report: dict):
    colours = {name: k % CHART_COLOURS for k, name in enumerate(report["curves"])}
    rows = []
    for name, row in report["table1"].items():
        if row["decoding"] == "sampled":
            pairs = [
                (100 * row[f"{decoding}win_rate"], 100 * (row[f"{decoding}se"] or 0))
                for decoding in ("", "greedy_")
            ]
            rows.append(Dot(report["labels"]["arms"][name], colours.get(name), *pairs))
    marks = [(50.0, "even")]
    if untouched := report["table1"].get("sft_greedy"):
        marks.append((100 * untouched["win_rate"], "SFT, greedy"))
    return draw_dots(rows, x="win rate, %: filled T = 1, hollow greedy", marks=marks)


def _colour_limits(heatmaps: list[dict]) -> dict[str, float]:
    """The strongest colour of each reward model: one scale for the page."""
    sides: dict[str, list] = {}
    for item in heatmaps:
        for name, side in item["by"].items():
            sides.setdefault(name, []).append({"rewards": [r or 0.0 for r in side["rewards"]]})
    return {name: colour_limit([{"sides": of_model}]) for name, of_model in sides.items()}


def _visible(text: str) -> str:
    """A token in its box: outer blanks gone, line ends to be seen, nothing that steers text."""
    text = text.replace("\n", "↵").replace("\t", "⇥").strip() or "␣"
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def _unbroken(text: str) -> str:
    """A number, its error and its unit stay on one line; words may wrap."""
    return _UNBROKEN.sub("\N{NO-BREAK SPACE}", text)


_STYLE = """\
h1 { font-size: 2rem; line-height: 1.2; letter-spacing: -.015em; margin: 0 0 .4rem;
  text-wrap: balance; }
h2 { font-size: 1.25rem; letter-spacing: -.005em; margin: 3.5rem 0 .4rem; }
h3 { font-size: 1rem; margin: 0 0 .3rem; }
p { margin: .4rem 0 1rem; max-width: 46rem; }
.answers { display: grid; gap: 1rem; margin: 1.8rem 0 0; }
.answer { background: var(--tint); border-left: 4px solid var(--c2); border-radius: 4px;
  padding: 1rem 1.2rem; }
.answer p { margin: 0; max-width: 52rem; }
.verdict { color: var(--c2); }
.open { border-color: var(--soft); }
.open .verdict { color: var(--soft); }
.wide-table { overflow-x: auto; margin: .8rem 0; }
tbody th { font-weight: 500; min-width: 11rem; }
tbody tr:hover { background: var(--tint); }
figure { margin: .8rem 0; overflow-x: auto; }
.grid-of-charts { display: grid; gap: .5rem 1.2rem;
  grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr)); }
.chart { width: 100%; height: auto; display: block; overflow: visible; font-size: 12px; }
.wide { min-width: 42rem; }
.chart text { fill: var(--soft); }
.chart .name { font-weight: 600; }
.chart .row { fill: var(--ink); font-size: 13px; }
.chart .label { fill: var(--c); font-weight: 600; }
.grid, .axis { stroke: var(--edge); }
.axis { stroke: var(--soft); }
.mark { stroke: var(--soft); stroke-dasharray: 3 3; }
.line { fill: none; stroke: var(--c); stroke-width: 2; stroke-linejoin: round; }
.band { fill: var(--c); opacity: .16; }
.hit { fill: transparent; }
.hit:hover, .end, .filled circle { fill: var(--c); }
.start, .hollow circle { fill: var(--paper); stroke: var(--c); stroke-width: 1.8; }
.filled line, .hollow line { stroke: var(--c); stroke-width: 2; }
{% for k in range(colours) %}
.c{{ k }} { --c: var(--c{{ k }}); }
{% endfor %}
.ink { --c: var(--ink); }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; font-size: .86rem; margin: .8rem 0; }
.legend i { display: inline-block; width: 1.4em; height: 3px; border-radius: 2px;
  background: var(--c); vertical-align: middle; margin-right: .45em; }
.side { display: grid; grid-template-columns: 11rem 1fr; gap: 0 1rem; align-items: start;
  margin: .5rem 0; }
.side > span { font-size: .8rem; line-height: 1.35; color: var(--soft); padding-top: .2rem; }
.side small { display: block; }
.tokens { display: flex; flex-wrap: wrap; gap: 3px; font-size: .9rem; line-height: 1.35; }
.tokens > span { padding: .1rem .35rem; border-radius: 4px; text-align: center;
  box-shadow: inset 0 0 0 1px rgb(128 128 128 / .2); min-width: 3.1em; }
.tokens.plain > span { min-width: 0; padding: 0 .2rem; }
.tokens small { display: block; font-size: .68rem; opacity: .75;
  font-variant-numeric: tabular-nums; }
pre { background: var(--tint); border-radius: 4px; padding: .9rem 1.1rem; overflow-x: auto;
  font: .8rem/1.55 ui-monospace, "Liberation Mono", Menlo, monospace; margin: .8rem 0; }
code { font: .8rem ui-monospace, "Liberation Mono", Menlo, monospace; }
@media (max-width: 40rem) { .side { grid-template-columns: 1fr; } }
@media print { body { max-width: none; padding: 0; } h2 { break-after: avoid; }
  figure, article { break-inside: avoid; } }
"""
_BODY = """\
<header>
<h1>{{ title }}</h1>
<p class="soft">{{ subtitle }}</p>
<div class="answers">
{% for part in answer %}
<div class="answer{{ '' if part.verdict.startswith('shown') else ' open' }}">
<h3>{{ part.question }} <span class="verdict">{{ part.verdict|capitalize }}.</span></h3>
<p>{{ unbroken(part.text) }}</p>
</div>
{% endfor %}
</div>
</header>
{% macro table(section) %}
<div class="wide-table"><table>
<thead><tr>
{%- for cell in section.head %}<th scope="col">{{ unbroken(cell) }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in section.rows %}
<tr><th scope="row">{{ row[0] }}</th>
{%- for cell in row[1:] %}<td>{{ unbroken(cell) }}</td>{% endfor %}</tr>
{% endfor %}
</tbody></table></div>
{% endmacro %}
{% macro token_rewards() %}
<section id="heatmaps">
<h2>Token rewards</h2>
<p class="soft">The same responses under each reward model, from red (the strongest penalty) over
none to green; each model has its own scale, its 98th percentile beside it.</p>
{% for item in heatmaps %}
<article>
<h3>{{ item.prompt }}</h3>
<p class="soft">{{ judge }} score of the response: {{ number(item.gold) }}</p>
{% for name, side in item.by.items() %}
{% set label, limit = reward_models.get(name, name), limits[name] %}
{% set numbered = side.tokens|length <= most_numbered %}
<div class="side"><span>{{ label }}<small>± {{ "%.2f"|format(limit) }}</small></span>
<div class="tokens{{ '' if numbered else ' plain' }}">
{% for text, reward in zip(side.tokens, side.rewards, strict=True) %}
{% set size = reward or 0 %}
{% set share = [1, size|abs / limit]|min * 0.8 %}
<span class="{{ 'low' if size < 0 else 'high' }}" style="--share:{{ '%.2f'|format(share) }}"
{%- if not numbered %} title="{{ number(reward, digits=2) }}"{% endif %}>{{ visible(text) }}
{%- if numbered %}<small>{{ number(reward, digits=2) }}</small>{% endif %}</span>
{% endfor %}
</div></div>
{% endfor %}
</article>
{% endfor %}
</section>
{% endmacro %}
{% for section in sections %}
{% if section.key == "stages" and heatmaps %}{{ token_rewards() }}{% endif %}
<section id="{{ section.key }}">
<h2>{{ section.title }}</h2>
<p class="soft">{{ section.text }}</p>
{% if section.key == "end" and legend %}
<div class="legend">
{% for k, label in legend %}<span class="c{{ k }}"><i></i>{{ label }}</span>
{% endfor %}
</div>
{% endif %}
{% set charts = figures.get(section.key, []) %}
{% if charts|length > 1 %}<div class="grid-of-charts">{{ charts|join }}</div>
{% else %}{{ charts|join }}{% endif %}
{% if section.key == "curves" %}<details><summary>The numbers</summary>
{{- table(section) }}</details>
{% elif section.rows %}{{ table(section) }}{% endif %}
{% if section.key == "stages" %}
<pre>{% for stage, command in commands.items() %}
# {{ stage }}
{{ command }}
{% endfor %}</pre>
<details><summary>The configuration</summary>
<pre>{% for name, value in config.items() %}
{{ name }} = {{ value }}
{% endfor %}</pre></details>
{% endif %}
</section>
{% endfor %}
"""
_FUNCTIONS = {"unbroken": _unbroken, "visible": _visible, "number": number, "zip": zip}
_NUMBERS = {"colours": CHART_COLOURS, "most_numbered": _NUMBERED}
_PAGE = page_template(_STYLE, _BODY, **_FUNCTIONS, **_NUMBERS)
