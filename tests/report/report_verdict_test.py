"""The report's claims against its numbers."""

import copy

import numpy as np
from report_cases import arm, make_study, outcomes, points

from fgrlhf_jax.report import content as report
from fgrlhf_jax.report import verdict as report_answer


def verdicts(study):
    answer = report.content(study)["answer"]
    return answer["better"]["verdict"], answer["faster"]["verdict"]


def test_clear_numbers_are_shown():
    answer = report.content(make_study(3))["answer"]
    assert answer["better"]["verdict"] == answer["faster"]["verdict"] == "shown"
    lead = np.mean(outcomes(0.8, 3)) - np.mean(outcomes(0.4, 3))
    assert f"{100 * lead:+.1f} points, 95 % interval" in answer["better"]["text"]
    assert "make +0.0 points (not shown)" in answer["better"]["text"]  # edits alone
    assert "20 ± 0 against 40 ± 0 (shown)" in answer["faster"]["text"]


def test_errors_that_overlap_show_nothing():
    assert verdicts(make_study(3, token=0.41)) == ("not shown", "shown")


def test_the_opposite_can_be_shown():
    study = make_study(3, token=0.1)
    names = ("ppo_rlhf", "fine_grained_token")
    one, other = ([run["curve"] for run in study["arms"][n]["runs"]] for n in names)
    for k, run in enumerate(study["arms"]["ppo_rlhf"]["runs"]):
        run["curve"] = other[k]
    for k, run in enumerate(study["arms"]["fine_grained_token"]["runs"]):
        run["curve"] = one[k]
    assert verdicts(study) == ("the opposite is shown", "the opposite is shown")


def test_one_seed_shows_nothing_about_speed():
    better, faster = verdicts(make_study(1))
    assert (better, faster) == ("shown", "not shown")
    text = report.content(make_study(1))["answer"]["faster"]["text"]
    assert "no standard error" in text


def test_only_some_criteria():
    study = make_study(3)
    for run in study["arms"]["fine_grained_token"]["runs"]:
        run["curve"] = points([0.0, 0.5, 0.5, 0.5, 0.5, 0.6, 0.7, 0.7])
    assert verdicts(study)[1] == "shown by 1 of 3 criteria, the opposite by 2"


def test_both_the_bars_and_the_bootstrap_must_agree():
    row = lambda rate, se: {"win_rate": rate, "se": se}  # noqa: E731
    found = {"table1": {"a": row(0.6, 0.02), "b": row(0.5, 0.02)}}

    def verdict(low, high, **changed):
        pair = {"a": "a", "b": "b", "sampled": {"low": low, "high": high}}
        table = copy.deepcopy(found["table1"])
        table["a"] |= changed
        return report_answer.win_verdict(
            {"table1": table, "comparisons": [pair]}, "a", "b", "sampled"
        )

    assert verdict(0.01, 0.2) == 1
    assert verdict(-0.01, 0.2) == 0
    assert verdict(0.01, 0.2, se=0.09) == 0
    assert verdict(0.01, 0.2, se=None) == 0
    assert verdict(-0.3, -0.1, win_rate=0.3) == -1


def test_missing_arms_are_not_asked_about():
    study = make_study(3, fine_grained_token=None)
    assert verdicts(study) == ("not asked", "not asked")
    study = make_study(3, fine_grained=None)
    assert verdicts(study) == ("shown", "shown")


def test_greedy_decoding_of_the_untouched_model_is_mentioned():
    won = [[1.0] * 60 + [0.0] * 4]
    study = make_study(3, sft=arm("SFT", [[0.5] * 64], greedy=won))
    text = report.content(study)["answer"]["better"]["text"]
    assert "decoded greedily wins 93.8 ± 3.0 %, more than" in text
    assert "sharpening" not in report.content(make_study(3))["answer"]["better"]["text"]
