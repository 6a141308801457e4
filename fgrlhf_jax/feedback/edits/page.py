"""The statistics of edits (report.py) as one HTML page that loads nothing."""

from collections.abc import Mapping

from fgrlhf_jax.feedback.edits.report import (
    KINDS,
    MEASURES,
    annotator_rows,
    bin_labels,
    has_integers,
    kind_rows,
    measure_rows,
    notes,
    printable,
)
from fgrlhf_jax.report.html import page_template

_WIDTH, _HEIGHT, _FOOT, _LEFT = 460, 170, 40, 40
_HEADS = ["", "mean", "5 %", "25 %", "median", "75 %", "95 %"]
_SORTS = {"least": "Least changed", "median": "In the middle", "most": "Most changed"}


def render_page(statistics: Mapping, *, title: str, source: str) -> str:
    """HTML of what :func:`compute_statistics` returned; `source` is where the edits are from."""
    return _PAGE.render(
        title=printable(title),
        source=printable(source),
        kinds=kind_rows(statistics),
        n=statistics["n"],
        measures=(_HEADS, measure_rows(statistics)),
        annotators=(
            ["Annotator", "n", "Median ratio", *KINDS.values()],
            annotator_rows(statistics),
        ),
        charts=[
            (MEASURES[measure], _bars(histogram))
            for measure, histogram in statistics["histograms"].items()
        ],
        notes=notes(statistics),
        examples=[
            example | {"sort": _SORTS[example["sort"]]} for example in statistics["examples"]
        ],
        size=(_WIDTH, _HEIGHT, _FOOT, _LEFT),
    )


def _bars(histogram: Mapping) -> dict:
    """The rectangles of a histogram and the ticks below and beside them."""
    counts, edges = histogram["counts"], histogram["edges"]
    step, most = (_WIDTH - _LEFT) / len(counts), max([*counts, 1])
    every = max(1, len(counts) // 5)
    bars = [
        {
            "x": round(_LEFT + k * step + 0.5, 1),
            "width": round(max(1.0, step - 1), 1),
            "y": round(_HEIGHT * (1 - count / most), 1),
            "height": round(_HEIGHT * count / most, 1),
            "title": f"{label}: {count}",
        }
        for k, (label, count) in enumerate(zip(bin_labels(histogram), counts, strict=True))
    ]
    integers = has_integers(histogram)  # their ticks are below the middle of a bar
    zero = edges.index(0) if 0 in edges else 0
    ticks = [
        (round(_LEFT + (k + 0.5 * integers) * step, 1), f"{edges[k]:g}".replace("-", "−"))
        for k in range(zero % every, len(counts) + (not integers), every)
    ]
    return {"bars": bars, "ticks": ticks, "most": most}


_STYLE = """\
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .3rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.8rem 0 .4rem; }
h3 { font-size: .95rem; margin: 0 0 .4rem; overflow-wrap: anywhere; }
h3 small { color: var(--soft); font-weight: normal; font-size: .85rem; }
h3 small, .soft { overflow-wrap: anywhere; }
.kinds { display: flex; flex-wrap: wrap; gap: .8rem; margin: 1.2rem 0; padding: 0; }
.kinds li { list-style: none; background: var(--tint); border-radius: 6px; padding: .6rem 1rem; }
.kinds b { display: block; font-size: 1.3rem; line-height: 1.3; }
.wide { overflow-x: auto; margin: .8rem 0 1.6rem; }
th:first-child { font-weight: 500; }
.charts { display: grid; gap: 1rem 1.6rem;
  grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr)); }
figure { margin: 0; }
figcaption { color: var(--ink); font-size: .9rem; font-weight: 600; margin-bottom: .4rem; }
svg { width: 100%; height: auto; display: block; font-size: 12px; overflow: visible; }
svg rect { fill: var(--c0); }
svg text { fill: var(--soft); }
svg line { stroke: var(--soft); }
.text { white-space: break-spaces; overflow-wrap: anywhere; margin: 0; }
.two { display: grid; grid-template-columns: 1fr 1fr; gap: 1.2rem; margin-top: .7rem; }
.two > div { background: var(--tint); border-radius: 6px; padding: .7rem .9rem; }
.two > div > span { display: block; font-size: .8rem; color: var(--soft); margin-bottom: .2rem; }
del, ins { border-radius: 3px; padding: .05em 0; --share: .24; }
del { text-decoration: line-through 1px; }
ins { text-decoration: underline 2px; text-underline-offset: .22em; }
@media (max-width: 44rem) { .two { grid-template-columns: 1fr; } }
@media print { article, figure { break-inside: avoid; } }
"""
_BODY = """\
{% macro table(head, rows) %}
<div class="wide"><table>
<thead><tr>{% for cell in head %}<th scope="col">{{ cell }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in rows %}
<tr><th scope="row">{{ row[0] }}</th>
{%- for cell in row[1:] %}<td>{{ cell.replace("-", "−") }}</td>{% endfor %}</tr>
{% endfor %}
</tbody></table></div>
{% endmacro %}
{% macro side(name, spans, tag, colour) %}
<div><span>{{ name }}</span>
<p class="text">
{%- for text, changed in spans -%}
{% if changed %}<{{ tag }} class="{{ colour }}">{{ text }}</{{ tag }}>
{%- else %}{{ text }}{% endif %}
{%- endfor -%}
</p></div>
{% endmacro %}
<h1>{{ title }}</h1>
<p class="soft">{{ n }} edits of {{ source }}. A change ratio is the share of the
words (or tokens) of both responses that the edit took out or put in: 0 where nothing changed, 1
where nothing is left.</p>
<ul class="kinds">
{% for text, count, share in kinds %}
<li><b>{{ share }}</b>{{ text }} <span class="soft">({{ count }})</span></li>
{% endfor %}
</ul>
<h2>How much they change</h2>
{{ table(*measures) }}
<div class="charts">
{% set width, height, foot, left = size %}
{% for name, chart in charts %}
<figure>
<figcaption>{{ name }}</figcaption>
<svg viewBox="0 -6 {{ width }} {{ height + foot }}" role="img" aria-label="Histogram: {{ name }}">
{% for bar in chart.bars %}
<rect x="{{ bar.x }}" y="{{ bar.y }}" width="{{ bar.width }}" height="{{ bar.height }}">
<title>{{ bar.title }}</title></rect>
{% endfor %}
<line x1="{{ left }}" x2="{{ width }}" y1="{{ height }}" y2="{{ height }}"/>
<text x="{{ left - 8 }}" y="0" dy=".7em" text-anchor="end">{{ chart.most }}</text>
<text x="{{ left - 8 }}" y="{{ height }}" text-anchor="end">0</text>
{% for x, text in chart.ticks %}
<text x="{{ x }}" y="{{ height + 18 }}" text-anchor="middle">{{ text }}</text>
{% endfor %}
</svg>
</figure>
{% endfor %}
</div>
{% for note in notes %}
<p class="soft">{{ note }}</p>
{% endfor %}
{% if annotators[1] %}
<h2>By annotator</h2>
{{ table(*annotators) }}
{% endif %}
<h2>Examples</h2>
<p class="soft"><del class="low">Taken out</del> and <ins class="high">put in</ins> by the edit.</p>
{% for example in examples %}
<article>
<h3>{{ example.sort }}: row {{ example.row }} <small>
{{- [example.id, example.annotator, example.kind, "%.3f"|format(example.word_change_ratio)]
  |select|join(", ") }}</small></h3>
<p class="text">{{ example.instruction }}</p>
{% if example.input %}
<details><summary>Input</summary><p class="text">{{ example.input }}</p></details>
{% endif %}
<div class="two">
{{ side("original", example.original, "del", "low") }}
{{ side("edited", example.edited, "ins", "high") }}
</div>
</article>
{% endfor %}
"""
_PAGE = page_template(_STYLE, _BODY)
