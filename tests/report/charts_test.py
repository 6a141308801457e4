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


def test_labels_do_not_cover_each_other():
    assert charts.place_labels([100.0, 10.0], 200) == [100, 10]
    assert charts.place_labels([198.0, 199.0, 500.0, -40.0], 200) == [170, 185, 200, 0]


def make_line(label="a", y=(0.0, None, 1.0), error=(0.1, 0.1, None)):
    return Line(label, 3, [0, 10, 20], y, error)


def test_lines_and_dots_say_their_numbers():
    svg = draw_lines([make_line()], x="step", y="score")
    titles = ["a: score 0 ± 0.1 at step 0", "a: score 1 at step 20"]
    assert re.findall("<title>(.*)</title>", svg) == titles
    assert 'class="band c3"' in svg
    assert 'class="band' not in draw_lines([make_line(error=[None] * 3)], x="x", y="y")
    dots = draw_dots([Dot("arm", 2, (50.0, 10.0), (90.0, None))], x="win rate")
    assert re.findall("<title>(.*)</title>", dots) == ["arm: 50 ± 10", "arm: 90"]


def test_nothing_to_draw():
    assert draw_lines([make_line(y=[None] * 3)], x="x", y="y") == ""
    assert draw_dots([], x="x") == ""


def test_what_runs_out_is_said():
    def ends_at(label, x, y):
        return Line(label, 0, [0, x], [0.4, y], [None, None])

    curves = [ends_at("a", 1, 0.6), ends_at("b", 1, 0.7), ends_at("<c>", 9, -0.875)]
    svg = draw_lines(curves, x="KL, nats", y="score", cut_x="high", cut_y="low")
    assert "“&lt;c&gt;” runs out of the picture, to KL 9 and score −0.875." in svg
    assert "runs out" not in draw_lines(curves, x="KL, nats", y="score")


def test_labels_are_text():
    svg = draw_lines([make_line("<b>&")], x="<x>", y="<y>", labels=True)
    assert ">&lt;b&gt;&amp;</text>" in svg
    svg += draw_dots([Dot("<b>", 0, (1, 2), None)], x="<x>", marks=[(0, "<m>")])
    assert not re.search("<[bxym]>", svg)
