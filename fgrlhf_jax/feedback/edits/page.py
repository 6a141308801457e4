"""The statistics of edits (report.py) and examples of them as one HTML page that loads nothing."""

from collections.abc import Mapping

from fgrlhf_jax.feedback.edits.report import format_figures, printable
from fgrlhf_jax.report.html import page_template


def render_page(statistics: Mapping, *, title: str, source: str) -> str:
    """HTML of what :func:`compute_statistics` returned; `source` is where the edits are from."""
    return _PAGE.render(
        title=printable(title),
        source=printable(source),
        figures=format_figures(statistics),
        examples=statistics["examples"],
    )


_STYLE = """\
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .3rem; }
h1, h3, .soft, .text { overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.8rem 0 .4rem; }
h3 { font-size: .95rem; margin: 0 0 .4rem; }
h3 small { color: var(--soft); font-weight: normal; }
pre { background: var(--tint); border-radius: 6px; padding: .4rem; white-space: pre-wrap;
  font: clamp(.5rem, 1.9vw, .8rem)/1.45 ui-monospace, "Liberation Mono", Menlo, monospace; }
.text { white-space: break-spaces; margin: 0; }
.two { display: grid; grid-template-columns: 1fr 1fr; gap: 1.2rem; margin-top: .7rem; }
.two > div { background: var(--tint); border-radius: 6px; padding: .7rem .9rem; }
del, ins { border-radius: 3px; --share: .24; }
del { text-decoration: line-through 1px; }
ins { text-decoration: underline 2px; text-underline-offset: .22em; }
@media (max-width: 44rem) { .two { grid-template-columns: 1fr; } }
@media print { article { break-inside: avoid; } }
"""
_BODY = """\
<h1>{{ title }}</h1>
<p class="soft">Edits of {{ source }}. A change ratio is the share of the words (or tokens) of
both responses that the edit took out or put in: 0 where nothing changed, 1 where nothing is
left.</p>
<pre>{{ figures }}</pre>
<h2>Examples</h2>
<p class="soft"><del class="low">Taken out</del> and <ins class="high">put in</ins> by the edit.</p>
{% for example in examples %}
<article>
<h3>{{ example.sort|capitalize }} changed: row {{ example.row }} <small>
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
