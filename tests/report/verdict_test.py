"""The report's recommendation and answers follow from its numbers."""

import pytest
from report_cases import make_arm, make_outcomes, make_study

from fgrlhf_jax.report.content import build_report
from fgrlhf_jax.report.verdict import describe, lead, recommend

NOISE = (-1, 2)


def make_difference(arm, against, sampled=NOISE, greedy=NOISE):
    intervals = {"sampled": sampled, "greedy": greedy}
    parts = {d: {"points": (a + b) / 2, "low": a, "high": b} for d, (a, b) in intervals.items()}
    return {"arm": arm, "against": against, **parts}


def make_table(*seconds, seeds=5):
    """A table of arms a, b, c … with decreasing win rates."""
    return {
        name: {"win_rate": 0.8 - 0.1 * k, "greedy_win_rate": 0.9, "seconds": s, "seeds": seeds}
        for k, (name, s) in enumerate(zip("abc", seconds, strict=False))
    }


@pytest.mark.parametrize(
    ("low", "high", "sign", "text"),
    [
        (1, 9, 1, "+5.0 [+1.0, +9.0], better"),
        (-1, 9, 0, "+4.0 [−1.0, +9.0], within noise"),
        (-9, -1, -1, "−5.0 [−9.0, −1.0], worse"),
    ],
)
def test_an_arm_leads_if_the_interval_excludes_zero(low, high, sign, text):
    interval = make_difference("a", "b", (low, high))["sampled"]
    assert (lead(interval), describe(interval)) == (sign, text)


def test_the_arm_that_no_other_beats_is_recommended():
    """b beats a greedily and beats c in both decodings; a and b are within noise at T = 1."""
    differences = [
        make_difference("a", "b", NOISE, (-3, -1)),
        make_difference("c", "a"),
        make_difference("c", "b", (-9, -5), (-9, -5)),
    ]
    advice = recommend(differences, make_table(1, 50, 1))
    assert advice["arm"] == "b"
    assert advice["why"] == (
        "no arm is better at T = 1 or greedily; of the 2 others it beats 1 at T = 1 and 2 greedily"
    )
    assert "One seed" in recommend(differences, make_table(1, 50, 1, seeds=1))["why"]
    # Without b, a and c are within noise: the cheaper one, or with unknown costs the better one.
    advice = recommend(differences, {k: v for k, v in make_table(9, 0, 5).items() if k != "b"})
    assert advice["arm"] == "c"
    for words in ("it is the cheapest of the 2 such arms", "of the 1 others it beats 0"):
        assert words in advice["why"]
    table = {k: v for k, v in make_table(None, 0, None).items() if k != "b"}
    assert recommend(differences, table)["arm"] == "a"


def test_if_every_arm_is_beaten_the_least_beaten_is_recommended():
    circle = [
        make_difference("a", "b", (1, 2), (-2, -1)),
        make_difference("a", "c", (1, 2), (1, 2)),
        make_difference("b", "c", (-2, -1), (1, 2)),
    ]
    advice = recommend(circle, make_table(9, 1, 1))
    assert advice["arm"] == "a"
    assert advice["why"].startswith("every arm is beaten by another")


def test_a_recommended_arm_whose_responses_repeat_is_warned_about():
    """Compared with the start: ten points more of a sign, in either decoding."""
    table = make_table(1, 5)
    table["a"] |= {"unfinished": 0.98, "greedy_repeated": 0.45, "copied": 0.09}
    start = {"unfinished": 0.90, "greedy_repeated": 0.125, "copied": 0.0}
    pairs = [make_difference("a", "b", (1, 2))]
    known = recommend(pairs, table | {"sft": table["b"] | start})
    assert known["arm"] == "a"
    assert known["why"].endswith(
        ". But read its responses first (seed_0/answers/a.json): repeated four-word sequences: "
        "45 % greedily (before: 12 %)"
    )
    table["a"] |= {"greedy_repeated": 0.2, "unfinished": 1.0}  # 0.9 + 0.1 > 1.0 in floats
    text = recommend(pairs, table | {"sft": table["b"] | start})["why"]
    assert text.endswith(": responses without an end: 100 % at T = 1 (before: 90 %)")
    table["a"]["unfinished"] = 0.9
    for unknown in (table["b"] | start, table["b"]):
        assert "Read" not in recommend(pairs, table | {"sft": unknown})["why"]


def test_without_a_judge_correction_accuracy_decides():
    """By the same rule; among arms that are beaten equally often the most accurate wins."""
    table = {name: {"correction_accuracy": 0.1 * k, "seeds": 3} for k, name in enumerate("abc")}
    pairs = [make_difference(arm, "a", (1, 2)) for arm in "bc"]
    advice = recommend(pairs, table)
    assert advice["why"].startswith("without a judge, by correction accuracy, no arm is better")
    circle = [
        make_difference("b", "a", (1, 2)),
        make_difference("c", "b", (1, 2)),
        make_difference("a", "c", (1, 2)),
    ]
    assert recommend(circle, table)["arm"] == "c"
    assert recommend([], table)["arm"] is None


def test_the_answer_has_few_lines_with_differences():
    others = {f"mine_{k}": make_arm(f"Mine {k}", make_outcomes(0.5, 3)) for k in range(20)}
    study = make_study(3, sft_edits=make_arm("SFT on edits", make_outcomes(0.6, 3)), **others)
    report = build_report(study)
    answer = report["answer"]["better"]
    sides = ("sft_edits", "fine_grained_token")
    (pair,) = (p for p in report["differences"] if (p["arm"], p["against"]) == sides)
    assert answer["question"] == "Which arm aligns better?"
    assert [line["arm"] for line in answer["lines"]] == [
        f"PPO on tokens against {rival}"
        for rival in ("SFT on edits", "Mine 0", "PPO on preferences", "SFT", "PPO on edits")
    ]
    points = -pair["sampled"]["points"]
    assert answer["lines"][0]["text"].startswith(f"at T = 1 +{points:.1f} [+")
    assert answer["lines"][0]["text"].endswith("], better")


def test_one_seed_is_labelled_as_no_evidence():
    answer = build_report(make_study(1))["answer"]
    assert answer["better"]["question"] == "Which arm aligns better in this one seed?"
    assert answer["better"]["text"] == "One seed is no evidence: another may reverse the result."
    text = answer["faster"]["lines"][0]["text"]
    assert text.startswith("no difference shown to 80 % of its own gain (p = 1), to 95 %")
    assert text.endswith("no p can be below 0.5 with 1 seed per arm")


def test_the_oracle_is_never_recommended():
    study = make_study(3, oracle=make_arm("Oracle", make_outcomes(0.98, 3)) | {"oracle": True})
    report = build_report(study)
    assert report["recommendation"]["arm"] == "fine_grained_token"
    assert report["answer"]["better"]["lines"][0]["arm"] == "PPO on tokens against Oracle"


def test_a_high_greedy_win_rate_of_the_start_is_mentioned():
    won = [[1.0] * 60 + [0.0] * 4]
    study = make_study(3, sft=make_arm("SFT", [[0.5] * 64], greedy=won))
    text = build_report(study)["answer"]["better"]["text"]
    assert "of “SFT” win 93.8 % against its own samples" in text
