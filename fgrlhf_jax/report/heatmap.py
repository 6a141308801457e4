"""Responses with every token's reward as its colour: a page, a picture, or text for a terminal.

Pure rendering. A row is a dict with ``instruction``, ``input`` and ``sides``; a side has
``label``, ``tokens`` (strings that concatenate to the response), ``rewards`` and ``changed``,
one of each a token. Colours go from red (low) over none (0) to green (high). A changed token is
underlined, or struck through on the side labelled ``original``, where the edit took it away.
"""

import html
import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from fgrlhf_jax.report.html import ENVIRONMENT, HARMLESS, page_template

REMOVED = "original"

_RED, _GREEN, _PAPER = (225, 75, 65), (60, 170, 85), (244, 244, 244)

_VISIBLE = HARMLESS | {9: "⇥\t", 10: "↵\n"}


def colour_limit(rows: Iterable[Mapping]) -> float:
    """The |reward| of the strongest colour: the 98th percentile, for outliers pale the rest."""
    sizes = np.abs([r for row in rows for side in row["sides"] for r in side["rewards"]])
    sizes = sizes[np.isfinite(sizes) & (sizes > 0)]
    return float(np.quantile(sizes, 0.98)) if sizes.size else 1.0


def to_html(rows: Sequence[Mapping], *, title: str) -> str:
    """A page that loads nothing: no script, no font, no network. One scale for all its rows."""
    limit = colour_limit(rows)
    rows = [{**row, "sides": [render_side(side, limit) for side in row["sides"]]} for row in rows]
    return _PAGE.render(title=title, limit=limit, rows=rows)


def to_terminal(row: Mapping, *, colour: bool, limit: float | None = None) -> str:
    """One row: running text on coloured ground, or without colour a line for each token.

    Args:
      row: as above.
      colour: use 24-bit ANSI colours.
      limit: reward with the strongest colour; by default the row's own ``colour_limit``.
    """
    limit = limit or colour_limit([row])
    lines = [row[name].translate(HARMLESS) for name in ("instruction", "input") if row[name]]
    for side in row["sides"]:
        side = _side(side, limit)
        lines += ["", f"{side['label']}: {side['summary']}"]
        if colour:
            lines += ["".join(_ansi(token, side["style"]) for token in side["tokens"])]
        else:
            for token in side["tokens"]:
                text = token["text"].replace("\n", "").replace("\t", "")
                mark = "*" if token["changed"] else " "
                lines.append(f'{token["reward"]:+9.3f} {mark} "{text}"')
    colours = f"red -{limit:.2f} ... 0 ... +{limit:.2f} green"
    changed = any(any(side["changed"]) for side in row["sides"])
    scale = colours if colour else "* changed by the edit" if changed else ""
    return "\n".join([*lines, *(["", scale] if scale else []), ""])


def to_svg(rows: Sequence[Mapping], *, columns: int = 92) -> str:
    """The same as one picture, for pages that show images only; ``columns`` characters wide."""
    limit = colour_limit(rows)
    column, line, lines, shapes = 8.0, 26, 1, []

    def write(text: str, at: int, style: str) -> None:
        text = text.replace("\n", "").replace("\t", "").replace(" ", "\N{NO-BREAK SPACE}")
        shapes.append(
            f'<text x="{20 + at * column:g}" y="{lines * line}" {style}>{html.escape(text)}</text>'
        )

    for row in rows:
        prompt = " ".join(f"{row['instruction']} {row['input']}".translate(HARMLESS).split())
        for text in textwrap.wrap(prompt, columns):
            write(text, 0, 'font-weight="bold"')
            lines += 1
        for side in (_side(side, limit) for side in row["sides"]):
            write(f"{side['label']}: {side['summary']}", 0, 'fill="#666" font-size="11"')
            lines, at = lines + 1, 0
            for token in side["tokens"]:
                width = len(token["text"])
                if at and at + width > columns:
                    lines, at = lines + 1, 0
                red, green, blue = _ground(token["strength"])
                shapes.append(
                    f'<rect x="{20 + at * column:g}" y="{lines * line - 16}" rx="3" height="22" '
                    f'width="{width * column:g}" fill="rgb({red},{green},{blue})"/>'
                )
                marks = {"removed": "line-through", "added": "underline"}
                mark = f'text-decoration="{marks[side["style"]]}"' if token["changed"] else ""
                write(token["text"], at, mark)
                at += width
            lines += 1
    width, height = 40 + columns * column, lines * line
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:g}" height="{height}" '
        f'viewBox="0 0 {width:g} {height}" font-family="monospace" font-size="13.3">'
        '<rect width="100%" height="100%" fill="white"/>\n' + "\n".join(shapes) + "\n</svg>\n"
    )


def render_side(side: Mapping, limit: float, *, numbered: bool = False) -> dict:
    """A side with its tokens as ``html``; ``numbered`` has each token's number below it."""
    side = _side(side, limit) | {"numbered": numbered}
    return side | {"html": _TOKENS(side)}


def _side(side: Mapping, limit: float) -> dict:
    """What all renderings of a side need; the same number of tokens, rewards and changed."""
    tokens, rewards = [], side["rewards"]
    digits = max(2, 1 - math.floor(math.log10(limit)))
    for text, reward, changed in zip(side["tokens"], rewards, side["changed"], strict=True):
        # -1 ... 1; 0 (no colour) for what is not a number.
        strength = 0.0 if math.isnan(reward) else max(-1.0, min(1.0, reward / limit))
        shown = {"text": text.translate(_VISIBLE) or "⋯", "changed": changed}
        number = "–" if math.isnan(reward) else f"{reward:+z.{digits}f}".replace("-", "−")
        tokens.append({**shown, "reward": reward, "strength": strength, "number": number})
    mean = sum(rewards) / len(rewards) if rewards else 0.0
    return {
        "label": side["label"].translate(HARMLESS),
        "summary": f"{len(tokens)} tokens, sum {sum(rewards):+.3f}, mean {mean:+.4f}",
        "style": "removed" if side["label"] == REMOVED else "added",
        "tokens": tokens,
    }


def _ground(strength: float) -> list[int]:
    """Red, green and blue (0 to 255) behind a token."""
    end = _GREEN if strength > 0 else _RED
    return [round(p + abs(strength) * (e - p)) for p, e in zip(_PAPER, end, strict=True)]


def _ansi(token: Mapping, style: str) -> str:
    ground = _ground(token["strength"])
    line = {"removed": ";9", "added": ";4"}[style] if token["changed"] else ""
    codes = f"\x1b[30;48;2;{ground[0]};{ground[1]};{ground[2]}{line}m"
    # The ground must not run on to the end of the line.
    return codes + token["text"].replace("\n", f"\x1b[0m\n{codes}") + "\x1b[0m"


STYLE = """\
.tokens { white-space: break-spaces; overflow-wrap: anywhere; line-height: 1.9; margin: .3rem 0; }
.tokens span { position: relative; padding: .12em 0; border-radius: 3px;
  box-shadow: inset 0 0 0 1px rgb(128 128 128 / .22); }
.tokens span::after { content: attr(data-reward); display: none; font-size: .68rem;
  font-variant-numeric: tabular-nums; line-height: 1.3; text-decoration: none; }
.tokens span:is(:hover, :focus)::after { display: block; position: absolute; z-index: 1; left: 0;
  bottom: 100%; padding: .1rem .35rem; border-radius: 3px; background: var(--ink);
  color: var(--paper); }
.numbered { line-height: 1.35; }
.numbered span { display: inline-block; min-width: 3.1em; padding: .1rem .35rem;
  margin: 0 3px 3px 0; text-align: center; }
.numbered span::after, .numbered span:is(:hover, :focus)::after { display: block;
  position: static; padding: 0; background: none; color: inherit; opacity: .75; }
.added { text-decoration: underline 2px; text-underline-offset: .25em; }
.removed { text-decoration: line-through 1px; }
@media print { .tokens span::after { display: inline-block; vertical-align: sub; margin: 0 .2em; } }
"""
_PAGE_STYLE = """\
body { padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.2rem; }
h2 { font-size: .85rem; margin: .9rem 0 .2rem; }
h2 small { color: var(--soft); font-weight: normal; margin-left: .6em; }
.prompt { color: var(--soft); white-space: break-spaces; overflow-wrap: anywhere; margin: .3rem 0; }
.legend { position: sticky; top: 0; z-index: 2; padding: .5rem 0; font-size: .85rem;
  color: var(--soft); background: var(--paper); }
.legend b { font-weight: normal; color: var(--ink); margin-left: 1em; }
.bar { display: inline-block; width: 10rem; height: .8em; vertical-align: middle;
  margin: 0 .5em; border: 1px solid var(--edge); background: linear-gradient(to right,
    rgb(var(--low) / .8), transparent, rgb(var(--high) / .8)); }
"""
_TOKENS = ENVIRONMENT.from_string("""\
{% macro tokens(side) %}
<p class="tokens{{ ' numbered' if side.numbered }}">
{%- for t in side.tokens -%}
<span class="{{ 'low' if t.strength < 0 else 'high' }}{{ ' ' ~ side.style if t.changed }}"
 style="--share:{{ '%.2f'|format(0.8 * t.strength|abs) }}" tabindex="-1"
 data-reward="{{ t.number }}">{{ t.text }}</span>
{%- endfor -%}
</p>
{% endmacro %}
""").module.tokens
_BODY = """\
<h1>{{ title }}</h1>
<div class="legend">reward of a token: {{ "%+.2f"|format(-limit) }}
<span class="bar"></span>{{ "%+.2f"|format(limit) }}
<b class="added">put in by the edit</b> <b class="removed">taken out</b>
<b>point at, tap or print a token for its number</b></div>
{% for row in rows %}
<article>
<p class="prompt">{{ row.instruction.translate(harmless) }}</p>
{% if row.input %}<p class="prompt">{{ row.input.translate(harmless) }}</p>{% endif %}
{% for side in row.sides %}
<h2>{{ side.label }}<small>{{ side.summary }}</small></h2>
{{ side.html }}
{%- endfor %}
</article>
{% endfor %}
"""
_PAGE = page_template(STYLE + _PAGE_STYLE, _BODY, harmless=HARMLESS)
