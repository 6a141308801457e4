"""Where the charts put what; what they leave out, they say."""

import re

import pytest

from fgrlhf_jax.report import charts as report_figures
from fgrlhf_jax.report.charts import Dot, Line


@pytest.mark.parametrize(
    ("low", "high", "count", "want"),
    [
        (0, 80, 4, [0, 20, 40, 60, 80]),
        (0.42, 0.88, 5, [0.5, 0.6, 0.7, 0.8]),
        (-0.9, 0.9, 4, [-0.5, 0, 0.5]),
        (0, 10, 5, [0, 2, 4, 6, 8, 10]),
        (1234, 1236, 2, [1234, 1235, 1236]),
    ],
)
def test_ticks(low, high, count, want):
    assert report_figures.ticks(low, high, count) == pytest.approx(want)


def test_ticks_are_few_and_within():
    for exponent in range(-4, 5):
        for span in (1.0, 1.7, 3.3, 7.9):
            low, high = -(10.0**exponent) * 0.3, 10.0**exponent * span
            found = report_figures.ticks(low, high, 5)
            assert 2 <= len(found) <= 9
            assert low - 1e-9 <= found[0]
            assert found[-1] <= high * (1 + 1e-9)


def test_limits():
    assert report_figures.limits([[0, 10]]) == (0, pytest.approx(10.4), None)
    assert report_figures.limits([[-1, 1]]) == (pytest.approx(-1.08), pytest.approx(1.08), None)
    low, high, _ = report_figures.limits([[3.0]])
    assert low < 3 < high
    both = [[0.4, 0.6], [0.4, 0.8], [0.4, -0.9]]
    assert report_figures.limits(both)[2] is None
    assert report_figures.limits(both, "low")[2] == 2
    assert report_figures.limits(both, "low")[0] == pytest.approx(0.4 - 0.016)
    assert report_figures.limits(both, "high")[2] is None
    assert report_figures.limits(both[1:], "low")[2] is None  # of two, neither is the odd one
    assert report_figures.limits([[0, 3], [0, 2], [0, 40]], "high")[1:] == (
        pytest.approx(3.12),
        2,
    )


def test_labels_do_not_cover_each_other():
    assert report_figures.spread_out([100.0, 10.0], 200) == [100, 10]
    assert report_figures.spread_out([50.0, 52.0], 200) == [50, 65]
    found = report_figures.spread_out([198.0, 199.0, 500.0, -40.0], 200)
    assert found == [170, 185, 200, 0]


def numbers(path):
    return [tuple(map(float, point)) for point in re.findall(r"(-?[\d.]+) (-?[\d.]+)", path)]


def test_lines_by_hand():
    line = Line("a", 3, [0, 10, 20], [0.0, None, 1.0], [0.1, 0.1, None])
    svg = report_figures.lines([line], x="step", y="score", size=(56 + 14 + 104, 56 + 108))
    # x: 0 to 20.8 over 104 wide; y: -.144 (low -.1 less 4 % of 1.1) to 1.044 over 108 high.
    path = re.search(r'class="line c3" d="([^"]+)"', svg)[1]
    assert numbers(path) == [(0, 94.9), (100, 4)]
    band = re.search(r'class="band c3" d="([^"]+)"', svg)[1]
    assert numbers(band) == [(0, 85.8), (100, 4), (100, 4), (0, 104)]
    assert svg.count("<circle") == 2
    assert "<title>a: score 1 at step 20</title>" in svg
    assert "<title>a: score 0 ± 0.1 at step 0</title>" in svg
    assert 'class="label' not in svg


def test_without_errors_there_is_no_band():
    line = Line("a", 0, [0, 1], [0.0, 1.0], [None, None])
    assert 'class="band' not in report_figures.lines([line], x="x", y="y")


def test_nothing_to_draw():
    empty = Line("a", 0, [0, 1], [None, None], [None, None])
    assert report_figures.lines([empty], x="x", y="y") == ""
    assert report_figures.lines([], x="x", y="y") == ""
    assert report_figures.dots([], x="x") == ""


def test_what_runs_out_is_said():
    def line(label, last):
        return Line(label, 0, [0, 1], [0.4, last], [None, None])

    given = [line("a", 0.6), line("b", 0.7), line("<c>", -0.875)]
    svg = report_figures.lines(given, x="step", y="score, points", cut_y="low", ends=True)
    assert "“&lt;c&gt;” runs out of the picture, to score −0.875." in svg
    both = [Line("d", 0, [0, 9], [0.9, -0.25], [None, None]), *given[:2]]
    svg_xy = report_figures.lines(both, x="KL", y="score", cut_x="high", cut_y="low")
    assert "“d” runs out of the picture, to KL 9 and score −0.25." in svg_xy
    assert svg.count('class="end') == 2
    assert svg.count('class="start') == 3
    assert "runs out" not in report_figures.lines(given, x="step", y="score")


def test_a_long_label_leaves_room_for_the_picture():
    line = Line("a" * 500, 0, [0, 1], [0.0, 1.0], [None, None])
    svg = report_figures.lines([line], x="x", y="y", labels=True)
    assert numbers(re.search(r'class="line c0" d="([^"]+)"', svg)[1])[1][0] > 100
    svg = report_figures.dots([Dot("a" * 500, 0, (0.0, 1.0), None)], x="x")
    assert 400 < float(re.search(r'cx="([\d.]+)"', svg)[1]) < 940


def test_labels_are_text():
    line = Line("<b>&", 0, [0, 1], [0.0, 1.0], [None, None])
    svg = report_figures.lines([line], x="<x>", y="<y>", labels=True)
    assert ">&lt;b&gt;&amp;</text>" in svg
    assert "<b>" not in svg
    assert "<x>" not in svg
    assert "<y>" not in svg
    dots = report_figures.dots([Dot("<b>", 0, (1, 2), None)], x="<x>", marks=[(0, "<m>")])
    assert not re.search("<[bxm]>", dots)


def test_dots_by_hand():
    rows = [Dot("arm", 2, (50.0, 10.0), (90.0, None)), Dot("other", None, (60.0, 0.0), None)]
    svg = report_figures.dots(rows, x="win rate", marks=[(50.0, "even")])
    filled = re.search(
        r'class="filled c2".*?x1="([\d.]+)" x2="([\d.]+)".*?cx="([\d.]+)"', svg, re.S
    )
    left, right, at = map(float, filled.groups())
    assert at == pytest.approx((left + right) / 2, abs=0.1)
    hollow = re.search(r'class="hollow c2".*?cx="([\d.]+)"', svg, re.DOTALL)[1]
    assert (float(hollow) - at) / (right - left) == pytest.approx(2, abs=0.01)
    mark = re.search(r'class="mark" x1="([\d.]+)"', svg)[1]
    assert float(mark) == at
    assert svg.count('class="filled ink"') == 1
    assert "<title>arm: 50 ± 10</title>" in svg
