"""Charts: axes, what they leave out and say, and text that stays text."""

import re

import pytest

from fgrlhf_jax.report import charts
from fgrlhf_jax.report.charts import Dot, Line, draw_dots, draw_lines


def test_axes():
    """Round ticks; limits that leave out one curve that would squeeze the others."""
    assert charts.ticks(0, 80, 4) == [0, 20, 40, 60, 80]
    assert charts.ticks(0.42, 0.88, 5) == pytest.approx([0.5, 0.6, 0.7, 0.8])
    assert charts.ticks(-0.9, 0.9, 4) == [-0.5, 0, 0.5]
    columns = [[0.4, 0.6], [0.4, 0.8], [0.4, -0.9]]
    whole = (pytest.approx(-0.968), pytest.approx(0.868), None)
    assert charts.axis_limits(columns) == charts.axis_limits(columns, "high") == whole
    assert charts.axis_limits(columns[1:], "low") == whole  # neither is the odd one
    assert charts.axis_limits(columns, "low") == (pytest.approx(0.384), pytest.approx(0.816), 2)
    assert charts.axis_limits([[0, 3], [0, 2], [0, 40]], "high") == (0, pytest.approx(3.12), 2)
    assert charts.axis_limits([[3.0]]) == (2.5, 3.5, None)


def make_line(label="a", y=(0.0, None, 1.0), error=(0.1, 0.1, None)):
    return Line(label, 3, [0, 10, 20], y, error)


def test_lines_and_dots_say_their_numbers():
    chart = draw_lines([make_line()], x="step", y="score")
    titles = ["a: score 0 ± 0.1 at step 0", "a: score 1 at step 20"]
    assert re.findall('title="(.*)"', chart) == titles
    assert 'class="band c3"' in chart
    assert 'class="band' not in draw_lines([make_line(error=[None] * 3)], x="x", y="y")
    dots = draw_dots([Dot("arm", 2, (50.0, 10.0), (90.0, None))], x="win rate")
    assert re.findall('title="(.*)"', dots) == ["50.0 ± 10.0", "90.0"]
    assert '<span class="numbers">50.0 ± 10.0 · 90.0</span>' in dots  # without a pointer, too


def test_points_are_placed_in_per_cent():
    """Of axes that are 4 % longer at either end: −0.04 to 1.04, and 0 to 20.8."""
    chart = draw_lines([make_line(error=[None] * 3)], x="step", y="score")
    places = re.findall(r'style="left:([\d.]+)%;top:([\d.]+)%"', chart)
    assert [(float(x), float(y)) for x, y in places] == [(0, 100), (96.15, 3.85)]
    dots = draw_dots([Dot("arm", 2, (40.0, 10.0), (80.0, None))], x="rate", marks=[(30.0, "m")])
    whiskers = re.findall(r'"left:([\d.]+)%;right:([\d.]+)%"', dots)
    assert [(float(a), float(b)) for a, b in whiskers] == [(3.7, 59.26), (96.3, 3.7)]


def test_nothing_to_draw():
    assert draw_lines([make_line(y=[None] * 3)], x="x", y="y") == ""
    assert draw_dots([], x="x") == ""


def test_what_runs_out_is_said():
    def ends_at(label, x, y):
        return Line(label, 0, [0, x], [0.4, y], [None, None])

    curves = [ends_at("a", 1, 0.6), ends_at("b", 1, 0.7), ends_at("<c>", 9, -0.875)]
    chart = draw_lines(curves, x="KL, nats", y="score", cut_x="high", cut_y="low")
    assert "“&lt;c&gt;” runs out of the picture, to KL 9 and score −0.875." in chart
    assert len(re.findall('title="', chart)) == 5  # of six points, one lies outside
    assert "runs out" not in draw_lines(curves, x="KL, nats", y="score")


def test_labels_are_text():
    chart = draw_lines([make_line("<b>&")], x="<x>", y="<y>")
    assert "&lt;b&gt;&amp;</span>" in chart
    chart += draw_dots([Dot("<b>", 0, (1, 2), (1, 2))], x="<x>", marks=[(0, "<m>")])
    assert not re.search("<[bxym]>", chart)
