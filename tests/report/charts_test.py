"""Charts: axes, notes on curves outside the axes, printed numbers, escaped text."""

import re

from fgrlhf_jax.report.charts import Dot, Line, draw_dots, draw_lines


def make_line(label="a", y=(0.0, None, 1.0), error=(0.1, 0.1, None)):
    return Line(label, 3, [0, 10, 20], y, error)


def test_lines_and_dots_show_their_numbers():
    chart = draw_lines([make_line()], x="step", y="score")
    titles = ["a: score 0 ± 0.1 at step 0", "a: score 1 at step 20"]
    assert re.findall('title="(.*)"', chart) == titles
    dots = draw_dots([Dot("arm", 2, (50.0, 10.0), (90.0, None))], x="win rate")
    assert re.findall('title="(.*)"', dots) == ["50.0 ± 10.0", "90.0"]
    assert '<span class="numbers">50.0 ± 10.0 · 90.0</span>' in dots  # also without tooltips


def test_charts_without_data_are_empty():
    assert draw_lines([make_line(y=[None] * 3)], x="x", y="y") == ""
    assert draw_dots([], x="x") == ""


def test_a_note_names_a_curve_outside_the_axes():
    def ends_at(label, x, y):
        return Line(label, 0, [0, x], [0.4, y], [None, None])

    curves = [ends_at("a", 1, 0.6), ends_at("b", 1, 0.7), ends_at("<c>", 9, -0.875)]
    chart = draw_lines(curves, x="KL, nats", y="score", cut_x="high", cut_y="low")
    assert "“&lt;c&gt;” leaves the chart: it reaches KL 9 and score −0.875." in chart
    assert len(re.findall('title="', chart)) == 5  # of six points, one lies outside
    assert "runs out" not in draw_lines(curves, x="KL, nats", y="score")
