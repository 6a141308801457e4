"""Charts as HTML: curves with error bands, and a dot plot with error bars.

Positions are percentages of the chart's box, so a chart is as wide as the page allows and its text
has the page's size. Only lines and bands are SVG, stretched to the box. The CSS class ``c0``,
``c1`` … sets an arm's colour. The title of every point (its tooltip) has its numbers; for print and
touch screens they are also in the page's tables or in the rows of the dot plot.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from fgrlhf_jax.report.html import ASSETS, ENVIRONMENT

_OUTLIER_RATIO = 2.5  # least ratio of axis lengths with and without a curve to let it run off


class Line(NamedTuple):
    """A curve; ``error`` is half the height of its band, None where the error is unknown."""

    label: str
    colour: int
    x: Sequence[float]
    y: Sequence[float | None]
    error: Sequence[float | None]


class Dot(NamedTuple):
    """A row of a dot plot: (mean, standard error) of its filled and of its hollow dot."""

    label: str
    colour: int | None
    filled: tuple[float, float | None]
    hollow: tuple[float, float | None]


def draw_lines(
    curves: Sequence[Line], *, x: str, y: str, cut_x: str = "", cut_y: str = "", ends: bool = False
) -> str:
    """HTML of curves over common axes, or an empty string if no curve has a point.

    The axes leave out one outlying curve that would squeeze the others into a corner; a note below
    the chart gives the value that it reaches.

    Args:
      x, y: names of the axes.
      cut_x, cut_y: side, "low" or "high", on which a curve may leave the chart; none by default.
      ends: mark each curve's start (hollow) and end (filled), since it is a path, not a function.
    """
    drawn = [(line, points) for line in curves if (points := _points(line))]
    if not drawn:
        return ""
    x_low, x_high, x_out = axis_limits([[p[0] for p in points] for _, points in drawn], cut_x)
    bands = [[v for _, b, e in points for v in (b - e, b + e)] for _, points in drawn]
    y_low, y_high, y_out = axis_limits(bands, cut_y)
    to_x, to_y = _percent(x_low, x_high), _percent(y_high, y_low)
    shapes = [_shape(*each, to_x, to_y, f"{y} {{}} at {x} {{:.4g}}") for each in drawn]
    if ends:
        for shape in shapes:
            shape["points"][0]["kind"], shape["points"][-1]["kind"] = "start", "end"
    beyond: dict[str, list] = {}
    for index, axis, name, cut in ((x_out, 0, x, cut_x), (y_out, 1, y, cut_y)):
        if index is not None:
            line, points = drawn[index]
            farthest = (max if cut == "high" else min)(p[axis] for p in points)
            text = f"{name.split(',')[0]} {_format(farthest, 3)}"
            beyond.setdefault(line.label, []).append(text)
    return ENVIRONMENT.get_template(f"{ASSETS}/charts.html").module.lines(
        x_ticks=[(to_x(tick), _format(tick)) for tick in ticks(x_low, x_high)],
        y_ticks=[(to_y(tick), _format(tick)) for tick in ticks(y_low, y_high)],
        x_label=x,
        y_label=y,
        curves=shapes,
        notes=[f"“{k}” leaves the chart: it reaches {' and '.join(v)}." for k, v in beyond.items()],
    )


def draw_dots(rows: Sequence[Dot], *, x: str, marks: Sequence[tuple[float, str]] = ()) -> str:
    """HTML of a dot plot: per arm two means with bars of ± one standard error, and their numbers.

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
        left, right = to_x(mean - (error or 0)), round(100 - to_x(mean + (error or 0)), 2)
        text = f"{mean:.1f}" if error is None else f"{mean:.1f} ± {error:.1f}"
        return {"kind": kind, "x": to_x(mean), "text": text, "left": left, "right": right}

    return ENVIRONMENT.get_template(f"{ASSETS}/charts.html").module.dots(
        rows=[
            {
                "label": row.label,
                "colour": "ink" if row.colour is None else f"c{row.colour}",
                "dots": [dot("filled", *row.filled), dot("hollow", *row.hollow)],
            }
            for row in rows
        ],
        ticks=[(to_x(tick), _format(tick)) for tick in ticks(low, high)],
        marks=[(to_x(value), label) for value, label in marks],
        x_label=x,
    )


def ticks(low: float, high: float) -> list[float]:
    """About five axis ticks in [low, high]: multiples of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [k * step for k in range(first, last + 1)]


def axis_limits(columns: list[list[float]], cut: str = "") -> tuple[float, float, int | None]:
    """(low, high, index): an axis over all columns with a margin, and the outlying column or None.

    With ``cut`` "low" or "high" and at least three columns, the one that reaches farthest on that
    side is left out if the axis of the others is less than 1 / 2.5 as long.
    """

    def span(chosen):
        values = [v for column in chosen for v in column]
        return min(values), max(values)

    low, high = span(columns)
    outlier = None
    if len(columns) > 2 and cut:
        side = max if cut == "high" else min
        farthest = columns.index(side(columns, key=side))
        rest = span([column for k, column in enumerate(columns) if k != farthest])
        if 0 < rest[1] - rest[0] < (high - low) / _OUTLIER_RATIO:
            outlier, (low, high) = farthest, rest
    margin = 0.04 * (high - low) or 0.5
    return (low if low == 0 else low - margin), high + margin, outlier


def _points(line: Line) -> list[tuple[float, float, float]]:
    """(x, y, error) of every point that has both coordinates; an unknown error is 0."""
    rows = zip(line.x, line.y, line.error, strict=True)
    return [(a, b, e or 0.0) for a, b, e in rows if a is not None and b is not None]


def _shape(line: Line, points: list, to_x: Callable, to_y: Callable, title: str) -> dict:
    """One curve for the template: its path, its band, and its points with their titles."""
    band = [(to_x(a), to_y(b + e)) for a, b, e in points]
    band += [(to_x(a), to_y(b - e)) for a, b, e in reversed(points)]
    marks = [
        {"x": to_x(a), "y": to_y(b), "kind": "hit"}
        | {"title": f"{line.label}: {title.format(f'{b:.3g} ± {e:.2g}' if e else f'{b:.3g}', a)}"}
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


def _format(value: float, digits: int = 6) -> str:
    return f"{value:.{digits}g}".replace("-", "−") if abs(value) > 1e-9 else "0"
