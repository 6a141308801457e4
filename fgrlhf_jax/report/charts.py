"""Charts as inline SVG: lines with bands, and dots with whiskers.

Colours, fonts and the dark mode are those of the page's style: an arm's line is of class ``c0``,
``c1`` …; what colour tells is also told by a label, or by a title under the pointer.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from fgrlhf_jax.report.html import ENVIRONMENT

_TOP, _BOTTOM, _LEFT, _RIGHT = 12, 44, 56, 14  # margins
_CHARACTER, _LINE = 7.2, 15  # width and height of a label's text
_TICK = 52  # between two of them, about
_CUT = 2.5
_ROW = 32  # of a dot chart


class Line(NamedTuple):
    """A curve; ``error`` is half the height of its band, None where there is none."""

    label: str
    colour: int
    x: Sequence[float]
    y: Sequence[float | None]
    error: Sequence[float | None]


class Dot(NamedTuple):
    """A row of a dot chart: (mean, standard error) filled, and hollow; either may be missing."""

    label: str
    colour: int | None
    filled: tuple[float, float | None] | None
    hollow: tuple[float, float | None] | None


def draw_lines(
    curves: Sequence[Line],
    *,
    x: str,
    y: str,
    size: tuple[int, int] = (460, 300),
    cut_x: str = "",
    cut_y: str = "",
    labels: bool = False,
    ends: bool = False,
) -> str:
    """Curves over a common pair of axes, or an empty string where no curve has a point.

    A single collapsed curve that would squeeze the others into a corner runs out of the picture,
    and a line below says how far.

    Args:
      x, y: names of the axes.
      size: width and height in pixels.
      cut_x, cut_y: on which side, "low" or "high", a collapse may run out; nowhere by default.
      labels: write each label at the end of its curve.
      ends: mark where a curve starts (hollow) and ends (filled): it is a path, not a function.
    """
    drawn = [(line, points) for line in curves if (points := _points(line))]
    if not drawn:
        return ""
    x_low, x_high, x_out = axis_limits([[p[0] for p in points] for _, points in drawn], cut_x)
    bands = [[v for _, b, e in points for v in (b - e, b + e)] for _, points in drawn]
    y_low, y_high, y_out = axis_limits(bands, cut_y)
    width, height = size[0] - _LEFT - _RIGHT, size[1] - _TOP - _BOTTOM
    width -= _label_width([line.label for line, _ in drawn], size[0]) if labels else 0
    to_x, to_y = _scale(x_low, x_high, 0, width), _scale(y_low, y_high, height, 0)
    shapes = [_curve_shape(line, points, to_x, to_y, (x, y)) for line, points in drawn]
    ends_y = place_labels([shape["points"][-1]["y"] for shape in shapes], height)
    for shape, label_y in zip(shapes, ends_y, strict=True):
        shape["label_y"] = label_y
        if ends:
            shape["points"][0]["kind"], shape["points"][-1]["kind"] = "start", "end"
    beyond: dict[str, list] = {}
    for out, axis, name, cut in ((x_out, 0, x, cut_x), (y_out, 1, y, cut_y)):
        if out is not None:
            line, points = drawn[out]
            farthest = (max if cut == "high" else min)(p[axis] for p in points)
            text = f"{name.split(',')[0]} {_text(farthest, 3)}"
            beyond.setdefault(line.label, []).append(text)
    return _TEMPLATE.module.lines(
        size=size,
        left=_LEFT,
        top=_TOP,
        inner=(width, height),
        x_ticks=[(to_x(tick), _text(tick)) for tick in ticks(x_low, x_high)],
        y_ticks=[(to_y(tick), _text(tick)) for tick in ticks(y_low, y_high, height / _TICK)],
        x_label=x,
        y_label=y,
        curves=shapes,
        labels=labels,
        notes=[f"“{k}” runs out of the picture, to {' and '.join(v)}." for k, v in beyond.items()],
    )


def _curve_shape(line: Line, points: list, to_x, to_y, names: tuple[str, str]) -> dict:
    """What the template draws of one curve: its path, its band, and points with a title each."""
    x, y = names
    band = [(to_x(a), to_y(b + e)) for a, b, e in points]
    band += [(to_x(a), to_y(b - e)) for a, b, e in reversed(points)]
    marks = []
    for a, b, e in points:
        title = f"{line.label}: {y} {_plus_minus(b, e)} at {x} {a:.4g}"
        marks.append({"x": to_x(a), "y": to_y(b), "kind": "hit", "title": title})
    return {
        "label": line.label,
        "colour": line.colour,
        "path": _path([(mark["x"], mark["y"]) for mark in marks]),
        "band": _path(band) if any(e for _, _, e in points) else "",
        "points": marks,
    }


def draw_dots(rows: Sequence[Dot], *, x: str, marks: Sequence[tuple[float, str]] = ()) -> str:
    """A row an arm: its two means with whiskers of one standard error.

    Args:
      x: name of the axis.
      marks: vertical lines, (value, label).
    """
    pairs = [pair for row in rows for pair in (row.filled, row.hollow) if pair]
    if not pairs:
        return ""
    values = [v for mean, e in pairs for v in (mean - (e or 0), mean + (e or 0))]
    low, high, _ = axis_limits([[*values, *(value for value, _ in marks)]])
    width, bottom = 940, len(rows) * _ROW + 30
    left = 16 + _label_width([row.label for row in rows], width)
    to_x = _scale(low, high, left, width - 24)

    def dot(kind: str, label: str, mean: float, error: float | None) -> dict:
        ends = {"from": to_x(mean - (error or 0)), "to": to_x(mean + (error or 0))}
        title = f"{label}: {_plus_minus(mean, error)}"
        return {"kind": kind, "x": to_x(mean), **ends, "title": title}

    return _TEMPLATE.module.dots(
        width=width,
        height=bottom + _BOTTOM,
        left=left,
        bottom=bottom,
        rows=[
            {
                "label": row.label,
                "colour": "ink" if row.colour is None else f"c{row.colour}",
                "y": 30 + (k + 0.5) * _ROW,
                "dots": [
                    dot(kind, row.label, *pair)
                    for kind, pair in (("filled", row.filled), ("hollow", row.hollow))
                    if pair
                ],
            }
            for k, row in enumerate(rows)
        ],
        ticks=[(to_x(tick), _text(tick)) for tick in ticks(low, high, 8)],
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


def place_labels(heights: Sequence[float], bottom: float) -> list[float]:
    """Where labels stand so that none covers another, near ``heights`` and within the picture."""
    order = sorted(range(len(heights)), key=lambda k: heights[k])
    placed = [min(max(heights[k], 0), bottom) for k in order]
    for k in range(1, len(placed)):
        placed[k] = max(placed[k], placed[k - 1] + _LINE)
    floor = bottom
    for k in reversed(range(len(placed))):
        placed[k] = min(placed[k], floor)
        floor = placed[k] - _LINE
    return [at for _, at in sorted(zip(order, placed, strict=True))]


def _points(line: Line) -> list[tuple[float, float, float]]:
    """(x, y, error) where there are both; without an error, 0."""
    rows = zip(line.x, line.y, line.error, strict=True)
    return [(a, b, e or 0.0) for a, b, e in rows if a is not None and b is not None]


def _label_width(labels: Sequence[str], width: float) -> float:
    """What the longest one needs, but no more than 45 % of the picture."""
    return min(_CHARACTER * max(map(len, labels)), 0.45 * width)


def _scale(low: float, high: float, start: float, end: float):
    return lambda value: round(start + (value - low) / (high - low) * (end - start), 1)


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x} {y}" for x, y in points)


def _text(value: float, digits: int = 6) -> str:
    return f"{value:.{digits}g}".replace("-", "−") if abs(value) > 1e-9 else "0"


def _plus_minus(value: float, error: float | None) -> str:
    return f"{value:.3g} ± {error:.2g}" if error else f"{value:.3g}"


_TEMPLATE = ENVIRONMENT.from_string("""\
{% macro lines(size, left, top, inner, x_ticks, y_ticks, x_label, y_label, curves,
               labels, notes) %}
<figure>
<svg class="chart{{ ' wide' if size[0] > 600 }}" viewBox="0 0 {{ size[0] }} {{ size[1] }}"
 role="img" aria-label="{{ y_label }} against {{ x_label }}">
<g transform="translate({{ left }} {{ top }})">
{% for at, text in y_ticks %}
<line class="grid" x1="0" x2="{{ inner[0] }}" y1="{{ at }}" y2="{{ at }}"/>
<text class="tick" x="-8" y="{{ at }}" dy=".35em" text-anchor="end">{{ text }}</text>
{% endfor %}
{% for at, text in x_ticks %}
<line class="axis" x1="{{ at }}" x2="{{ at }}" y1="{{ inner[1] }}" y2="{{ inner[1] + 4 }}"/>
<text class="tick" x="{{ at }}" y="{{ inner[1] + 17 }}" text-anchor="middle">{{ text }}</text>
{% endfor %}
<line class="axis" x1="0" x2="{{ inner[0] }}" y1="{{ inner[1] }}" y2="{{ inner[1] }}"/>
<text class="name" x="{{ inner[0] / 2 }}" y="{{ inner[1] + 36 }}"
 text-anchor="middle">{{ x_label }}</text>
<text class="name" transform="translate(-42 {{ inner[1] / 2 }}) rotate(-90)"
 text-anchor="middle">{{ y_label }}</text>
<svg x="0" y="0" width="{{ inner[0] }}" height="{{ inner[1] }}" overflow="hidden">
{% for curve in curves if curve.band %}
<path class="band c{{ curve.colour }}" d="{{ curve.band }}Z"/>
{% endfor %}
{% for curve in curves %}
<path class="line c{{ curve.colour }}" d="{{ curve.path }}"/>
{% endfor %}
</svg>
{% for curve in curves %}
{% for point in curve.points if 0 <= point.y <= inner[1] and 0 <= point.x <= inner[0] %}
<circle class="{{ point.kind }} c{{ curve.colour }}" cx="{{ point.x }}" cy="{{ point.y }}" r="4"
><title>{{ point.title }}</title></circle>
{% endfor %}
{% if labels %}
<text class="label c{{ curve.colour }}" x="{{ inner[0] + 8 }}" y="{{ curve.label_y }}"
 dy=".35em">{{ curve.label }}</text>
{% endif %}
{% endfor %}
</g>
</svg>
{% for note in notes %}
<figcaption>{{ note }}</figcaption>
{% endfor %}
</figure>
{% endmacro %}
{% macro dots(width, height, left, bottom, rows, ticks, marks, x_label) %}
<figure>
<svg class="chart wide" viewBox="0 0 {{ width }} {{ height }}" role="img"
 aria-label="{{ x_label }} of every arm">
{% for at, text in ticks %}
<line class="grid" x1="{{ at }}" x2="{{ at }}" y1="30" y2="{{ bottom }}"/>
<text class="tick" x="{{ at }}" y="{{ bottom + 17 }}" text-anchor="middle">{{ text }}</text>
{% endfor %}
{% for at, label in marks %}
<line class="mark" x1="{{ at }}" x2="{{ at }}" y1="24" y2="{{ bottom }}"/>
<text class="tick" x="{{ at }}" y="16" text-anchor="middle">{{ label }}</text>
{% endfor %}
{% for row in rows %}
<text class="row" x="{{ left - 16 }}" y="{{ row.y }}" dy=".35em"
 text-anchor="end">{{ row.label }}</text>
{% for dot in row.dots %}
<g class="{{ dot.kind }} {{ row.colour }}"><title>{{ dot.title }}</title>
<line x1="{{ dot.from }}" x2="{{ dot.to }}" y1="{{ row.y }}" y2="{{ row.y }}"/>
<circle cx="{{ dot.x }}" cy="{{ row.y }}" r="5"/></g>
{% endfor %}
{% endfor %}
<text class="name" x="{{ (left + width - 24) / 2 }}" y="{{ bottom + 36 }}"
 text-anchor="middle">{{ x_label }}</text>
</svg>
</figure>
{% endmacro %}
""")
