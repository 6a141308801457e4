"""The statistics of edits (report.py) as one HTML page that loads nothing."""

from collections.abc import Mapping

from fgrlhf_jax.feedback.edits import report
from fgrlhf_jax.report.html import page_template

_HEADS = ["", "mean", "5 %", "25 %", "median", "75 %", "95 %"]
_SORTS = {"least": "Least changed", "median": "In the middle", "most": "Most changed"}


def render_page(statistics: Mapping, *, title: str, source: str) -> str:
    """HTML of what :func:`compute_statistics` returned; `source` is where the edits are from."""
    return _PAGE.render(
        title=report.printable(title),
        source=report.printable(source),
        n=statistics["n"],
        kinds=report.kind_rows(statistics),
        measures=(_HEADS, report.measure_rows(statistics)),
        annotators=report.annotator_rows(statistics),
        annotator_head=["Annotator", "n", "Median ratio", *report.KINDS.values()],
        charts={
            report.MEASURES[measure]: report.bar_rows(histogram)
            for measure, histogram in statistics["histograms"].items()
        },
        notes=report.notes(statistics),
        examples=statistics["examples"],
        sorts=_SORTS,
    )


_STYLE = """\
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .3rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.8rem 0 .4rem; }
h3 { font-size: .95rem; margin: 0 0 .4rem; overflow-wrap: anywhere; }
h3 small { color: var(--soft); font-weight: normal; }
.kinds b { display: block; font-size: 1.3rem; }
.kinds, .charts { display: flex; flex-wrap: wrap; gap: .8rem 2rem; margin: 1.2rem 0; padding: 0; }
.wide { overflow-x: auto; margin: .8rem 0 1.6rem; }
figure { margin: 0; flex: 1 1 20rem; }
figcaption { font-weight: 600; margin-bottom: .4rem; }
.bar { display: grid; grid-template-columns: 7.5rem 1fr; gap: .6rem; font-size: .75rem;
  line-height: 1.25; font-variant-numeric: tabular-nums; }
.bar span { text-align: right; color: var(--soft); }
.bar i { display: inline-block; height: .7em; margin-right: .4em; background: var(--c0);
  width: calc(85% * var(--share)); }
.text { white-space: break-spaces; overflow-wrap: anywhere; margin: 0; }
.two { display: grid; grid-template-columns: 1fr 1fr; gap: 1.2rem; margin-top: .7rem; }
.two > div { background: var(--tint); border-radius: 6px; padding: .7rem .9rem; }
del, ins { border-radius: 3px; --share: .24; }
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
<h1>{{ title }}</h1>
<p class="soft">{{ n }} edits of {{ source }}. A change ratio is the share of the
words (or tokens) of both responses that the edit took out or put in: 0 where nothing changed, 1
where nothing is left.</p>
<div class="kinds">
{% for text, count, share in kinds %}
<div><b>{{ share }}</b>{{ text }} <span class="soft">({{ count }})</span></div>
{% endfor %}
</div>
<h2>How much they change</h2>
{{ table(*measures) }}
<div class="charts">
{% for name, bars in charts.items() %}
<figure>
<figcaption>{{ name }}</figcaption>
{% for label, count, share in bars %}
<div class="bar"><span>{{ label }}</span><div style="--share:{{ '%.3f'|format(share) }}"><i></i>
{{- count }}</div></div>
{% endfor %}
</figure>
{% endfor %}
</div>
{% for note in notes %}
<p class="soft">{{ note }}</p>
{% endfor %}
{% if annotators %}
<h2>By annotator</h2>
{{ table(annotator_head, annotators) }}
{% endif %}
<h2>Examples</h2>
<p class="soft"><del class="low">Taken out</del> and <ins class="high">put in</ins> by the edit.</p>
{% for example in examples %}
<article>
<h3>{{ sorts[example.sort] }}: row {{ example.row }} <small>
{{- [example.id, example.annotator, example.kind, "%.3f"|format(example.word_change_ratio)]
  |select|join(", ") }}</small></h3>
<p class="text" dir="auto">{{ example.instruction }}</p>
{% if example.input %}
<details><summary>Input</summary><p class="text" dir="auto">{{ example.input }}</p></details>
{% endif %}
<div class="two">
{% for name, tag, colour in [("original", "del", "low"), ("edited", "ins", "high")] %}
<div><span class="soft">{{ name }}</span>
<p class="text" dir="auto">
{%- for text, changed in example[name] -%}
{% if changed %}<{{ tag }} class="{{ colour }}">{{ text }}</{{ tag }}>
{%- else %}{{ text }}{% endif %}
{%- endfor -%}
</p></div>
{% endfor %}
</div>
</article>
{% endfor %}
"""
_PAGE = page_template(_STYLE, _BODY)
