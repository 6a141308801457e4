"""A report's content as one page that loads nothing: no script, no font, no network.

Pure rendering of what ``report.json`` holds; text is escaped, colours follow the reader's light or
dark mode, charts and tables fit a phone, and what is folded or under the pointer is printed.
"""

import re

from fgrlhf_jax.report import charts, heatmap
from fgrlhf_jax.report.charts import Dot, Line, draw_dots, draw_lines
from fgrlhf_jax.report.html import CHART_COLOURS, HARMLESS, page_template
from fgrlhf_jax.report.tables import number, recommendation, sections, subtitle

_NUMBERED = 40  # tokens; a longer response has its rewards under the pointer, and in print
_OPEN_SAMPLES = 2
_UNBROKEN = re.compile(r"(?<=[\d±=]) (?=[\d±%(])|(?<=T) (?==)|(?<=,) (?=[+−])")


def to_html(report: dict) -> str:
    """The text of ``report.html``, of the content of ``report.json``."""
    labels = report["labels"]["arms"]
    return _PAGE.render(
        title=report["title"],
        subtitle=subtitle(report),
        about=report["about"],
        recommendation=recommendation(report),
        answer=report["answer"].values(),
        sections=sections(report),
        figures=_figures(report),
        heatmaps=_heatmaps(report),
        samples=report["samples"],
        labels=labels,
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

    names = {"reward": "reward model's reward", "kl": kl, "length": "length, tokens"}
    ends = [
        chart("kl", "gold", kl, score, cut_x="high", cut_y="low", ends=True),
        chart("length", "reward", names["length"], names["reward"], ends=True),
    ]
    for field, name in {**names, "unfinished": "share unfinished"}.items():
        ends.append(chart("step", field, "PPO step", name, cut_y="high" if field == "kl" else ""))
    learning = chart("step", "gold", "PPO step", score, cut_y="low")
    judged = all(row["win_rate"] is not None for row in report["table1"].values())
    win_rates = [_win_rates(report)] if judged else []
    return {"table1": win_rates, "curves": [learning], "end": ends}


def _win_rates(report: dict):
    colours = {name: k % CHART_COLOURS for k, name in enumerate(report["curves"])}
    rows = []
    for name, row in report["table1"].items():
        pairs = [
            (100 * row[f"{decoding}win_rate"], 100 * (row[f"{decoding}se"] or 0))
            for decoding in ("", "greedy_")
        ]
        rows.append(Dot(report["labels"]["arms"][name], colours.get(name), *pairs))
    return draw_dots(rows, x="win rate, %: filled T = 1, hollow greedy", marks=[(50.0, "even")])


def _heatmaps(report: dict) -> list[dict]:
    """Responses with their tokens coloured; each reward model has one scale for the page."""
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
            numbered = len(side["tokens"]) <= _NUMBERED
            rendered_side = heatmap.render_side(shown, limits[name], numbered=numbered)
            sides.append(rendered_side | {"limit": limits[name]})
        rendered.append({"prompt": item["prompt"], "gold": item["gold"], "sides": sides})
    return rendered


def _unbroken(text: str) -> str:
    """A number, its error and its unit stay on one line; words may wrap."""
    return _UNBROKEN.sub("\N{NO-BREAK SPACE}", text)


_STYLE = """\
h1 { font-size: 2rem; line-height: 1.2; letter-spacing: -.015em; margin: 0 0 .4rem;
  text-wrap: balance; }
h2 { font-size: 1.25rem; letter-spacing: -.005em; margin: 3.5rem 0 .4rem; }
h3 { font-size: 1rem; margin: 0 0 .3rem; }
p { margin: .4rem 0 1rem; max-width: 46rem; }
.about { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; margin: 1rem 0 0;
  font-size: .8rem; color: var(--soft); }
.about dd { margin: 0; overflow-wrap: anywhere; }
.answers { display: grid; gap: 1rem; margin: 1.8rem 0 0; }
.answer { background: var(--tint); border-radius: 4px; padding: 1rem 1.2rem; }
.answer p, .answer ul { margin: 0; padding: 0; list-style: none; max-width: 52rem; }
.answer li { border-left: 4px solid var(--soft); padding-left: .8rem; margin: .5rem 0; }
.answer small { display: block; color: var(--soft); font-size: .84rem; }
.wide-table { overflow-x: auto; margin: .8rem 0; }
tbody th { font-weight: 500; min-width: 11rem; }
tbody tr:hover { background: var(--tint); }
.grid-of-charts { display: grid; gap: .5rem 1.2rem;
  grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr)); }
{% for k in range(colours) %}
.c{{ k }} { --c: var(--c{{ k }}); }
{% endfor %}
.ink { --c: var(--ink); }
.side { display: grid; grid-template-columns: 11rem 1fr; gap: 0 1rem; align-items: start;
  margin: .5rem 0; }
.side > span { font-size: .8rem; line-height: 1.35; color: var(--soft); padding-top: .2rem; }
.side small { display: block; }
.side p { margin: 0; max-width: none; }
.sample p { white-space: break-spaces; overflow-wrap: anywhere; }
details { margin: .6rem 0; }
pre { background: var(--tint); border-radius: 4px; padding: .9rem 1.1rem; overflow-x: auto;
  font: .8rem/1.55 ui-monospace, "Liberation Mono", Menlo, monospace; margin: .8rem 0; }
@media (max-width: 40rem) { .side { grid-template-columns: 1fr; } }
@media print { body { max-width: none; padding: 0; } h2 { break-after: avoid; }
  figure, article { break-inside: avoid; } pre { white-space: pre-wrap; }
  details::details-content { content-visibility: visible; block-size: auto; } }
"""
_BODY = """\
<header>
<h1>{{ title }}</h1>
<p class="soft">{{ subtitle }}</p>
<p><b>{{ unbroken(recommendation) }}</b></p>
<div class="answers">
{% for part in answer %}
<div class="answer">
<h3>{{ part.question }}</h3>
<ul>
{% for line in part.lines %}
<li>{{ line.arm }}: <small>{{ unbroken(line.text) }}</small></li>
{% endfor %}
</ul>
{% if part.text %}<p>{{ unbroken(part.text) }}</p>{% endif %}
</div>
{% endfor %}
</div>
<dl class="about">
{% for name, value in about.items() %}<dt>{{ name }}</dt><dd>{{ value }}</dd>
{% endfor %}
</dl>
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
{% for side in item.sides %}
<div class="side"><span>{{ side.label }}<small>± {{ "%.2f"|format(side.limit) }}</small></span>
{{ side.html }}</div>
{% endfor %}
</article>
{% endfor %}
</section>
{% endmacro %}
{% macro responses() %}
<section id="samples">
<h2>Responses side by side</h2>
<p class="soft">The first {{ samples|length }} test prompts, unselected: every arm's response at
T = 1 with its {{ judge }} score, and whether it wins against the reference's.</p>
{% for item in samples %}
<details class="sample"{{ " open" if loop.index <= opened }}>
<summary>{{ item.prompt.translate(harmless) }}</summary>
{% for name, response in item.by.items() %}
<div class="side"><span>{{ labels.get(name, name) }}<small>{{ number(response.score) }}
{%- if response.outcome is not none %}, {{ outcomes[response.outcome] }}{% endif %}</small></span>
<p dir="auto">{{ response.text.translate(harmless) or "(empty)" }}</p></div>
{% endfor %}
</details>
{% endfor %}
</section>
{% endmacro %}
{% for section in sections %}
{% if section.key == "stages" %}
{% if heatmaps %}{{ token_rewards() }}{% endif %}
{% if samples %}{{ responses() }}{% endif %}
{% endif %}
<section id="{{ section.key }}">
<h2>{{ section.title }}</h2>
<p class="soft">{{ section.text }}</p>
{% set charts = figures.get(section.key, []) %}
{% if charts|length > 1 %}<div class="grid-of-charts">{{ charts|join }}</div>
{% else %}<div class="tall">{{ charts|join }}</div>{% endif %}
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
_PAGE = page_template(
    charts.STYLE + heatmap.STYLE + _STYLE,
    _BODY,
    unbroken=_unbroken,
    number=number,
    harmless=HARMLESS,
    outcomes={1.0: "wins", 0.5: "draws", 0.0: "loses"},
    colours=CHART_COLOURS,
    opened=_OPEN_SAMPLES,
)
