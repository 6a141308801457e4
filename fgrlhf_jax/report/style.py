"""The template of ``report.html``: its style, its dark mode, what stands where."""

import re

from fgrlhf_jax.report import html as html_page

COLOURS = 8  # arms of PPO, before colours come again
_TOGETHER = re.compile(r"(?<=[\d±=]) (?=[\d±%(])|(?<=T) (?==)|(?<=,) (?=[+−])")


def _together(text: str) -> str:
    """A number, its error and its unit stay on one line; words may wrap."""
    return _TOGETHER.sub("\N{NO-BREAK SPACE}", text)


_STYLE = """\
:root { --ink: #1c1e21; --soft: #63686f; --paper: #fff; --tint: #f5f6f8; --edge: #d9dce1;
  --low: 222 62 52; --high: 34 150 76;
  --c0: #0067a8; --c1: #c85200; --c2: #00825f; --c3: #a8327a; --c4: #967000; --c5: #5b54c9;
  --c6: #2a93b8; --c7: #7a6a58; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e8eb; --soft: #9da3ab; --paper: #15171a; --tint: #1e2125; --edge: #383d44;
    --low: 235 80 72; --high: 46 168 92;
    --c0: #5cb2ee; --c1: #ff9450; --c2: #35c99b; --c3: #ec86c2; --c4: #dfb43c; --c5: #a9a3ff;
    --c6: #6fd3f2; --c7: #c4b29e; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 3rem 1.25rem 5rem; max-width: 62rem; color: var(--ink);
  background: var(--paper); font: 16px/1.6 system-ui, "Segoe UI", Roboto, "Liberation Sans",
  sans-serif; -webkit-text-size-adjust: 100%; }
h1 { font-size: 2rem; line-height: 1.2; letter-spacing: -.015em; margin: 0 0 .4rem;
  text-wrap: balance; }
h2 { font-size: 1.25rem; letter-spacing: -.005em; margin: 3.5rem 0 .4rem; }
h3 { font-size: 1rem; margin: 0 0 .3rem; }
p { margin: .4rem 0 1rem; max-width: 46rem; }
.soft, figcaption { color: var(--soft); font-size: .875rem; }
.answers { display: grid; gap: 1rem; margin: 1.8rem 0 0; }
.answer { background: var(--tint); border-left: 4px solid var(--c2); border-radius: 4px;
  padding: 1rem 1.2rem; }
.answer p { margin: 0; max-width: 52rem; }
.verdict { color: var(--c2); }
.open { border-color: var(--soft); }
.open .verdict { color: var(--soft); }
.wide-table { overflow-x: auto; margin: .8rem 0; }
table { border-collapse: collapse; font-size: .86rem; line-height: 1.4; min-width: 100%;
  font-variant-numeric: tabular-nums; }
th, td { padding: .42rem .7rem; text-align: right; border-bottom: 1px solid var(--edge); }
thead th { vertical-align: bottom; color: var(--soft); font-weight: 600;
  border-bottom: 1.5px solid var(--ink); }
th:first-child { text-align: left; padding-left: 0; }
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
article { border-top: 1px solid var(--edge); padding: 1rem 0; }
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
summary { cursor: pointer; color: var(--soft); font-size: .9rem; }
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
<p>{{ together(part.text) }}</p>
</div>
{% endfor %}
</div>
</header>
{% macro table(section) %}
<div class="wide-table"><table>
<thead><tr>
{%- for cell in section.head %}<th scope="col">{{ together(cell) }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in section.rows %}
<tr><th scope="row">{{ row[0] }}</th>
{%- for cell in row[1:] %}<td>{{ together(cell) }}</td>{% endfor %}</tr>
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
<p class="soft">{{ judge }} score of the response: {{ item.gold }}</p>
{% for side in item.sides %}
<div class="side"><span>{{ side.label }}<small>± {{ "%.2f"|format(side.limit) }}</small></span>
<div class="tokens{{ '' if side.numbered else ' plain' }}">
{% for t in side.tokens %}
<span class="{{ 'low' if t.low else 'high' }}" style="--share:{{ '%.2f'|format(t.share) }}"
{%- if not side.numbered %} title="{{ t.reward }}"{% endif %}>{{ t.text }}
{%- if side.numbered %}<small>{{ t.reward }}</small>{% endif %}</span>
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
PAGE = html_page.page(_STYLE, _BODY, together=_together, colours=COLOURS)
