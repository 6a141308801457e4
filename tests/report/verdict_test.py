"""The report's claims against its numbers."""

import numpy as np
import pytest
from report_cases import make_arm, make_curve, make_outcomes, make_study

from fgrlhf_jax.report.content import build_report
from fgrlhf_jax.report.verdict import win_verdict

RLHF, EDITS = "than PPO on preferences", "than one reward a response, from the same edits"
IMITATION = "than SFT on the same edits"


def verdicts(study) -> list[dict]:
    """The verdict of every line, by what is compared, of both questions."""
    answer = build_report(study)["answer"]
    return [
        {line["than"]: line["verdict"] for line in answer[part]["lines"]}
        for part in ("better", "faster")
    ]


def test_clear_numbers_are_shown():
    answer = build_report(make_study(3))["answer"]
    expected = f"{RLHF}: yes; {EDITS}: yes"
    assert answer["better"]["verdict"] == answer["faster"]["verdict"] == expected
    lead = np.mean(make_outcomes(0.8, 3)) - np.mean(make_outcomes(0.4, 3))
    line = answer["better"]["lines"][0]
    assert line["text"].startswith(f"{100 * lead:+.1f} points of win rate at T = 1 (95 % interval")
    assert (
        "80 % of its own gain: 20 ± 0 against 40 ± 0 (yes)" in answer["faster"]["lines"][0]["text"]
    )
    assert answer["better"]["text"] == ""  # nothing about sharpening


def test_every_comparison_has_a_verdict_of_its_own():
    """Better than PPO on preferences, and worse than imitating the same edits."""
    study = make_study(3, sft_edits=make_arm("SFT on edits", make_outcomes(0.95, 3)))
    assert verdicts(study)[0] == {RLHF: "yes", EDITS: "yes", IMITATION: "no"}


def test_one_seed_shows_nothing_about_speed():
    assert verdicts(make_study(1)) == [
        {RLHF: "yes", EDITS: "yes"},
        {RLHF: "not shown", EDITS: "not shown"},
    ]
    lines = build_report(make_study(1))["answer"]["faster"]["lines"]
    assert "no standard error" in lines[0]["text"]


def test_the_opposite_can_be_shown():
    study = make_study(3, token=0.1)
    runs = [study["arms"][name]["runs"] for name in ("ppo_rlhf", "fine_grained_token")]
    for slow, fast in zip(*runs, strict=True):
        slow["curve"], fast["curve"] = fast["curve"], slow["curve"]
    assert [of_question[RLHF] for of_question in verdicts(study)] == ["no", "no"]


def test_only_some_criteria():
    study = make_study(3)
    for run in study["arms"]["fine_grained_token"]["runs"]:
        run["curve"] = make_curve([0.0, 0.5, 0.5, 0.5, 0.5, 0.6, 0.7, 0.7])
    assert verdicts(study)[1][RLHF] == "yes by 1, no by 2 of 3 criteria"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"token": 0.41}, [{RLHF: "not shown", EDITS: "not shown"}, {RLHF: "yes", EDITS: "yes"}]),
        ({"fine_grained_token": None}, [{}, {}]),
        ({"fine_grained": None}, [{RLHF: "yes"}, {RLHF: "yes"}]),
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
    assert "decoded greedily wins 93.8 %, more than" in text
