"""The report's claims against its numbers."""

import numpy as np
import pytest
from report_cases import make_arm, make_curve, make_outcomes, make_study

from fgrlhf_jax.report.content import build_report
from fgrlhf_jax.report.verdict import win_verdict


def verdicts(study):
    answer = build_report(study)["answer"]
    return answer["better"]["verdict"], answer["faster"]["verdict"]


def test_clear_numbers_are_shown():
    answer = build_report(make_study(3))["answer"]
    assert answer["better"]["verdict"] == answer["faster"]["verdict"] == "shown"
    lead = np.mean(make_outcomes(0.8, 3)) - np.mean(make_outcomes(0.4, 3))
    assert f"{100 * lead:+.1f} points, 95 % interval" in answer["better"]["text"]
    assert "make +0.0 points (not shown)" in answer["better"]["text"]  # edits alone
    assert "20 ± 0 against 40 ± 0 (shown)" in answer["faster"]["text"]
    assert "sharpening" not in answer["better"]["text"]


def test_one_seed_shows_nothing_about_speed():
    study = make_study(1)
    assert verdicts(study) == ("shown", "not shown")
    assert "no standard error" in build_report(study)["answer"]["faster"]["text"]


def test_the_opposite_can_be_shown():
    study = make_study(3, token=0.1)
    runs = [study["arms"][name]["runs"] for name in ("ppo_rlhf", "fine_grained_token")]
    for slow, fast in zip(*runs, strict=True):
        slow["curve"], fast["curve"] = fast["curve"], slow["curve"]
    assert verdicts(study) == ("the opposite is shown", "the opposite is shown")


def test_only_some_criteria():
    study = make_study(3)
    for run in study["arms"]["fine_grained_token"]["runs"]:
        run["curve"] = make_curve([0.0, 0.5, 0.5, 0.5, 0.5, 0.6, 0.7, 0.7])
    assert verdicts(study)[1] == "shown by 1 of 3 criteria, the opposite by 2"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"token": 0.41}, ("not shown", "shown")),  # errors that overlap
        ({"fine_grained_token": None}, ("not asked", "not asked")),
        ({"fine_grained": None}, ("shown", "shown")),
    ],
)
def test_verdicts(fields, expected):
    assert verdicts(make_study(3, **fields)) == expected


@pytest.mark.parametrize(
    ("low", "high", "rate", "se", "verdict"),
    [
        (0.01, 0.2, 0.6, 0.02, 1),
        (-0.01, 0.2, 0.6, 0.02, 0),
        (0.01, 0.2, 0.6, 0.09, 0),
        (0.01, 0.2, 0.6, None, 0),
        (-0.3, -0.1, 0.3, 0.02, -1),
    ],
)
def test_both_the_bars_and_the_bootstrap_must_agree(low, high, rate, se, verdict):
    rows = {"a": {"win_rate": rate, "se": se}, "b": {"win_rate": 0.5, "se": 0.02}}
    comparison = {"a": "a", "b": "b", "sampled": {"low": low, "high": high}}
    report = {"table1": rows, "comparisons": [comparison]}
    assert win_verdict(report, "a", "b", "sampled") == verdict


def test_greedy_decoding_of_the_untouched_model_is_mentioned():
    won = [[1.0] * 60 + [0.0] * 4]
    study = make_study(3, sft=make_arm("SFT", [[0.5] * 64], greedy=won))
    text = build_report(study)["answer"]["better"]["text"]
    assert "decoded greedily wins 93.8 ± 3.0 %, more than" in text
