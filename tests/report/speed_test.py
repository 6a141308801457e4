"""The test of which arm is faster: its false-positive rate, its power, and values by hand."""

import math

import numpy as np
import pytest
from report_cases import FAST, SLOW, make_curve, make_study

from fgrlhf_jax.report.content import build_report
from fgrlhf_jax.report.speed import CRITERIA, SIGNIFICANCE, compare_arms, gold_target


def draw_curves(rng, seeds, pace=15.0):
    """Random learning curves of gold scores, evaluated every 5 of 80 steps."""
    steps = np.arange(0, 81, 5)
    rise = rng.normal(0.2, 0.03, (seeds, 1)) * (1 - np.exp(-steps / pace))
    gold = 0.36 + rise + rng.normal(0, 0.012, (seeds, steps.size))
    return [
        [{"step": int(step), "gold": float(score)} for step, score in zip(steps, row, strict=True)]
        for row in gold
    ]


@pytest.mark.parametrize("against_baseline", [True, False])
def test_false_positives_are_at_most_5_percent(against_baseline):
    """In 250 studies of two equal arms with four seeds each, over all three criteria."""
    rng, significant, below_half = np.random.default_rng(0), 0, 0
    for _ in range(250):
        first, second = (draw_curves(rng, 4) for _ in range(2))
        target = gold_target(second) if against_baseline else 0.5
        tested = compare_arms(first, second, target, against_baseline)
        p = [tested[name]["p"] for name in CRITERIA if name in tested]
        significant += min(p) <= SIGNIFICANCE
        below_half += min(p) <= 0.5
    assert significant / 250 <= SIGNIFICANCE + 1.64 * math.sqrt(0.05 * 0.95 / 250)
    assert below_half > 50  # p-values are not all near 1


def test_a_faster_arm_is_detected():
    rng = np.random.default_rng(0)
    first, second = draw_curves(rng, 5, pace=6.0), draw_curves(rng, 5, pace=25.0)
    tested = compare_arms(first, second, gold_target(second), True)
    assert tested["seeds"] == 5
    assert tested["least_p"] == pytest.approx(1 / 252)
    assert tested["steps_80"]["p"] <= SIGNIFICANCE
    assert tested["steps_80"]["difference"] < -15


def test_the_report_tests_the_token_arm_against_its_rivals():
    report = build_report(make_study(4))
    assert [test["against"] for test in report["speed"]] == ["ppo_rlhf", "fine_grained"]
    assert report["speed"][0]["steps_80"] == {"difference": -20, "p": pytest.approx(2 / 70)}
    text = report["answer"]["faster"]["lines"][0]["text"]
    assert "faster to 80 % of its own gain (p = 0.029), to 95 %" in text
    assert "no p can be" not in text
    three = build_report(make_study(3))["answer"]["faster"]["lines"][1]
    assert three["arm"] == "PPO on tokens against PPO on edits"
    assert "no difference shown to 80 % of its own gain (p = 0.1)" in three["text"]
    assert three["text"].endswith("; no p can be below 0.1 with 3 seeds per arm")


def test_a_goal_never_reached_counts_as_after_the_last_evaluation():
    first, second = ([make_curve(gold)] * 4 for gold in (FAST, SLOW))
    assert compare_arms(first, second, 0.7, False)["steps_to_gold"]["difference"] == 20 - 60
    assert "steps_to_gold" not in compare_arms(first, second, None, False)
