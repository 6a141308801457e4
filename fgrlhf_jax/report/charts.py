"""Charts as HTML: curves with bands, and a dot plot with whiskers.

Everything is placed in per cent of its box, so that a chart is as wide as the page allows and its
text stays as large as the page's: only lines and bands are SVG, stretched to the box. An arm's line
is of class ``c0``, ``c1`` …; every point says its numbers in a title, and the tables of the page,
or the row of a dot plot, say them to those who print or touch.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from fgrlhf_jax.report.html import ENVIRONMENT

_CUT = 2.5


class Line(NamedTuple):
    """A curve; ``error`` is half the height of its band, None where there is none."""

    label: str
    colour: int
    x: Sequence[float]
    y: Sequence[float | None]
    error: Sequence[float | None]


class Dot(NamedTuple):
    """A row of a dot plot: (mean, standard error) filled, and hollow."""

    label: str
    colour: int | None
    filled: tuple[float, float | None]
    hollow: tuple[float, float | None]


def draw_lines(
    curves: Sequence[Line],
    *,
    x: str,
    y: str,
    cut_x: str = "",
    cut_y: str = "",
    ends: bool = False,
) -> str:
    """Curves over a common pair of axes, or an empty string where no curve has a point.

    A single collapsed curve that would squeeze the others into a corner runs out of the picture,
    and a line below says how far.

    Args:
      x, y: names of the axes.
      cut_x, cut_y: on which side, "low" or "high", a collapse may run out; nowhere by default.
      ends: mark where a curve starts (hollow) and ends (filled): it is a path, not a function.
    """
    drawn = [(line, points) for line in curves if (points := _points(line))]
    if not drawn:
        return ""
    x_low, x_high, x_out = axis_limits([[p[0] for p in points] for _, points in drawn], cut_x)
    bands = [[v for _, b, e in points for v in (b - e, b + e)] for _, points in drawn]
    y_low, y_high, y_out = axis_limits(bands, cut_y)
    to_x, to_y = _percent(x_low, x_high), _percent(y_high, y_low)
    shapes = [
        _shape(line, points, to_x, to_y, f"{y} {{}} at {x} {{:.4g}}") for line, points in drawn
    ]
    if ends:
        for shape in shapes:
            shape["points"][0]["kind"], shape["points"][-1]["kind"] = "start", "end"
    beyond: dict[str, list] = {}
    for out, axis, name, cut in ((x_out, 0, x, cut_x), (y_out, 1, y, cut_y)):
        if out is not None:
            line, points = drawn[out]
            farthest = (max if cut == "high" else min)(p[axis] for p in points)
            text = f"{name.split(',')[0]} {_text(farthest, 3)}"
            beyond.setdefault(line.label, []).append(text)
    return _TEMPLATE.module.lines(
        x_ticks=[(to_x(tick), _text(tick)) for tick in ticks(x_low, x_high)],
        y_ticks=[(to_y(tick), _text(tick)) for tick in ticks(y_low, y_high)],
        x_label=x,
        y_label=y,
        curves=shapes,
        notes=[f"“{k}” runs out of the picture, to {' and '.join(v)}." for k, v in beyond.items()],
    )


def draw_dots(rows: Sequence[Dot], *, x: str, marks: Sequence[tuple[float, str]] = ()) -> str:
    """A row an arm: its two means with whiskers of one standard error, and their numbers.

    Args:
      x: name of the axis.
      marks: vertical lines, (value, label).
    """
    if not rows:
        return ""
    pairs = [pair for row in rows for pair in (row.filled, row.hollow)]
    values = [v for mean, e in pairs for v in (mean - (e or 0), mean + (e or 0))]
    low, high, _ = axis_limits([[*values, *(value for value, _ in marks)]])
    to_x = _percent(low, high)

    def dot(kind: str, mean: float, error: float | None) -> dict:
        left, right = to_x(mean - (error or 0)), to_x(mean + (error or 0))
        text = f"{mean:.1f}" if error is None else f"{mean:.1f} ± {error:.1f}"
        return {"kind": kind, "x": to_x(mean), "text": text} | {
            "left": left,
            "right": round(100 - right, 2),
        }

    return _TEMPLATE.module.dots(
        rows=[
            {
                "label": row.label,
                "colour": "ink" if row.colour is None else f"c{row.colour}",
                "dots": [dot("filled", *row.filled), dot("hollow", *row.hollow)],
            }
            for row in rows
        ],
        ticks=[(to_x(tick), _text(tick)) for tick in ticks(low, high)],
        marks=[(to_x(value), label) for value, label in marks],
        x_label=x,
    )


def ticks(low: float, high: float, count: float = 5) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten within [low, high], about ``count`` of them."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [k * step for k in range(first, last + 1)]


def axis_limits(
    columns: Sequence[Sequence[float]], cut: str = ""
) -> tuple[float, float, int | None]:
    """An axis for all columns, a little wider; and the index of one that runs out of it, if any.

    That is, of three and more, the one that reaches farthest on the side ``cut`` ("low", "high" or
    nowhere), if without it the axis is less than 1 / 2.5 as long.
    """

    def span(chosen):
        values = [v for column in chosen for v in column]
        return min(values), max(values)

    low, high = span(columns)
    out = None
    if len(columns) > 2 and cut:
        side = max if cut == "high" else min
        farthest = columns.index(side(columns, key=side))
        rest = span([column for k, column in enumerate(columns) if k != farthest])
        if 0 < rest[1] - rest[0] < (high - low) / _CUT:
            out, (low, high) = farthest, rest
    margin = 0.04 * (high - low) or 0.5
    return (low if low == 0 else low - margin), high + margin, out


def _points(line: Line) -> list[tuple[float, float, float]]:
    """(x, y, error) where there are both; without an error, 0."""
    rows = zip(line.x, line.y, line.error, strict=True)
    return [(a, b, e or 0.0) for a, b, e in rows if a is not None and b is not None]


def _shape(line: Line, points: list, to_x: Callable, to_y: Callable, title: str) -> dict:
    """What the template draws of one curve: its path, its band, and points with a title each."""
    band = [(to_x(a), to_y(b + e)) for a, b, e in points]
    band += [(to_x(a), to_y(b - e)) for a, b, e in reversed(points)]
    marks = [
        {"x": to_x(a), "y": to_y(b), "kind": "hit"}
        | {"title": f"{line.label}: {title.format(_plus_minus(b, e), a)}"}
        for a, b, e in points
    ]
    return {
        "label": line.label,
        "colour": line.colour,
        "path": _path([(mark["x"], mark["y"]) for mark in marks]),
        "band": _path(band) if any(e for _, _, e in points) else "",
        "points": marks,
    }


def _percent(start: float, end: float) -> Callable[[float], float]:
    """Maps ``start`` to 0 and ``end`` to 100."""
    return lambda value: round((value - start) / (end - start) * 100, 2)


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x} {y}" for x, y in points)


def _text(value: float, digits: int = 6) -> str:
    return f"{value:.{digits}g}".replace("-", "−") if abs(value) > 1e-9 else "0"


def _plus_minus(value: float, error: float | None) -> str:
    return f"{value:.3g} ± {error:.2g}" if error else f"{value:.3g}"


STYLE = """\
figure { margin: 1rem 0; }
.box { position: relative; }
.plot .box { height: 15rem; margin: .2rem .6rem 1.3rem 3.2rem; border-left: 1px solid var(--edge);
  border-bottom: 1px solid var(--soft); }
.tall .box { height: 22rem; }
.box svg { position: absolute; inset: 0; width: 100%; height: 100%; overflow: hidden; }
.box svg * { vector-effect: non-scaling-stroke; }
.box > *, .track > * { position: absolute; }
.tick, .axis-name { color: var(--soft); font-size: .75rem; line-height: 1; white-space: nowrap; }
.axis-name { font-weight: 600; }
.dots .axis-name { white-space: normal; }
.y.tick { right: calc(100% + .4rem); transform: translateY(-50%); }
.x.tick { top: calc(100% + .35rem); transform: translateX(-50%); }
.plot > .x { text-align: center; }
.grid { stroke: var(--edge); }
.line { fill: none; stroke: var(--c); stroke-width: 2; stroke-linejoin: round; }
.band { fill: var(--c); opacity: .16; }
.point { width: .6rem; height: .6rem; border-radius: 50%; translate: -50% -50%; }
.hit:hover, .end, .filled.point { background: var(--c); }
.start, .hollow.point { background: var(--paper); border: 2px solid var(--c); }
.dots { display: grid; grid: auto-flow dense / max-content 1fr max-content; gap: 0 1rem;
  align-items: center; font-size: .86rem; padding-top: 1rem; }
.track { position: relative; height: 1.9rem; border-bottom: 1px solid var(--edge); }
.track .point { top: 50%; }
.whisker { top: 50%; height: 2px; background: var(--c); translate: 0 -50%; }
.mark { top: 0; bottom: 0; border-left: 1px dashed var(--soft); }
.scale { border: 0; height: 1.2rem; }
.scale .tick { top: .3rem; translate: -50%; }
.above .tick { top: auto; bottom: 0; }
.numbers { font-variant-numeric: tabular-nums; color: var(--soft); }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; font-size: .86rem; margin: .4rem 0; }
.legend i { display: inline-block; width: 1.4em; height: 3px; border-radius: 2px;
  background: var(--c); vertical-align: middle; margin-right: .45em; }
@media (max-width: 40rem) { .dots { grid-template-columns: minmax(0, 1fr) max-content; }
  .dots .track { grid-column: 1 / 3; } .dots .empty { display: none; } }
"""
_TEMPLATE = ENVIRONMENT.from_string("""\
{% macro lines(x_ticks, y_ticks, x_label, y_label, curves, notes) %}
<figure class="plot">
<div class="axis-name">{{ y_label }}</div>
<div class="box" role="img" aria-label="{{ y_label }} against {{ x_label }}">
<svg viewBox="0 0 100 100" preserveAspectRatio="none" aria-hidden="true">
{% for at, _ in y_ticks %}
<path class="grid" d="M0 {{ at }}H100"/>
{% endfor %}
{% for curve in curves if curve.band %}
<path class="band c{{ curve.colour }}" d="{{ curve.band }}Z"/>
{% endfor %}
{% for curve in curves %}
<path class="line c{{ curve.colour }}" d="{{ curve.path }}"/>
{% endfor %}
</svg>
{% for at, text in y_ticks %}<span class="y tick" style="top:{{ at }}%">{{ text }}</span>
{% endfor %}
{% for at, text in x_ticks %}<span class="x tick" style="left:{{ at }}%">{{ text }}</span>
{% endfor %}
{% for curve in curves %}
{% for point in curve.points if 0 <= point.y <= 100 and 0 <= point.x <= 100 %}
<i class="point {{ point.kind }} c{{ curve.colour }}" title="{{ point.title }}"
 style="left:{{ point.x }}%;top:{{ point.y }}%"></i>
{% endfor %}
{% endfor %}
</div>
<div class="x axis-name">{{ x_label }}</div>
<div class="legend">
{% for curve in curves %}<span class="c{{ curve.colour }}"><i></i>{{ curve.label }}</span>
{% endfor %}
</div>
{% for note in notes %}
<figcaption>{{ note }}</figcaption>
{% endfor %}
</figure>
{% endmacro %}
{% macro dots(rows, ticks, marks, x_label) %}
<figure class="dots" aria-label="{{ x_label }} of every arm">
<span class="empty"></span><div class="track scale above">
{% for at, label in marks %}<span class="tick" style="left:{{ at }}%">{{ label }}</span>
{% endfor %}
</div><span class="empty"></span>
{% for row in rows %}
<span>{{ row.label }}</span>
<div class="track {{ row.colour }}">
{% for at, _ in marks %}<i class="mark" style="left:{{ at }}%"></i>
{% endfor %}
{% for dot in row.dots %}
<i class="whisker" style="left:{{ dot.left }}%;right:{{ dot.right }}%"></i>
<i class="{{ dot.kind }} point" style="left:{{ dot.x }}%" title="{{ dot.text }}"></i>
{% endfor %}
</div>
<span class="numbers">{{ row.dots|map(attribute="text")|join(" · ") }}</span>
{% endfor %}
<span class="empty"></span><div class="track scale">
{% for at, text in ticks %}<span class="tick" style="left:{{ at }}%">{{ text }}</span>
{% endfor %}
</div><span class="empty"></span>
<span class="empty"></span><span class="axis-name">{{ x_label }}</span><span class="empty"></span>
</figure>
{% endmacro %}
""")
