"""The report's table of correction accuracy, and its use in place of a judge."""

import numpy as np
import pytest
from report_cases import make_study

from fgrlhf_jax.report.content import build_report
from fgrlhf_jax.report.markdown import to_markdown
from fgrlhf_jax.report.tables import sections

SHARES = {"sft": 0.5, "ppo_rlhf": 0.7, "fine_grained": 0.6, "fine_grained_token": 0.9}


def make_corrections(share: float) -> dict:
    def cell(value):
        return {"mean": value, "se": 0.01, "low": 0.0, "high": 1.0, "n": 9, "records": 5}

    readings = {"sampled": cell(share), "greedy": cell(1 - share), "written": cell(0.25)}
    return readings | {"by_kind": {}, "unchanged": {"logprob": cell(-1.0), "moved": cell(0.125)}}


def test_without_a_judge_arms_are_paired_by_edit():
    """Edits differ in difficulty for all arms alike, so pairing narrows the interval."""
    study = make_study(2) | {"judge": ""}
    records = np.random.default_rng(0).random(40)
    for number, arm in enumerate(study["arms"].values()):
        for seed, run in enumerate(arm["runs"]):
            for decoding in ("sampled", "greedy"):
                run[decoding] |= dict.fromkeys(("scores", "outcome"), [None] * 64)
            parts = records + 0.01 * number * (1 + 0.1 * np.sin(np.arange(40) + seed))
            run["correction_accuracy"] = float(parts.mean())
            run["corrections"] = make_corrections(run["correction_accuracy"]) | {
                "by_record": {"sampled": parts.tolist(), "greedy": records.tolist()}
            }
    report = build_report(study)
    (pair,) = (p for p in report["differences"] if {p["arm"], p["against"]} == {"sft", "ppo_rlhf"})
    assert 0.5 < pair["sampled"]["low"] < pair["sampled"]["points"] < pair["sampled"]["high"] < 1.5
    assert pair["greedy"]["low"] <= 0 <= pair["greedy"]["high"]
    assert report["recommendation"]["arm"] == "fine_grained_token"
    text = to_markdown(report)
    for words in ("Correction accuracy of “Arm”", "by seed and edit", "no judge; differences"):
        assert words in text
    # If seeds have different edits, only their means are compared; few means, a wide interval.
    for arm in study["arms"].values():
        arm["runs"][0]["corrections"]["by_record"]["sampled"].append(0.5)
    (wide,) = (p for p in build_report(study)["differences"] if p["arm"] == "ppo_rlhf")
    assert wide["sampled"]["points"] == pytest.approx(pair["sampled"]["points"], rel=0.1)
    assert wide["sampled"]["low"] < pair["sampled"]["low"]


def make(seeds: int, **fields) -> dict:
    study = make_study(seeds)
    for number, (name, arm) in enumerate(study["arms"].items()):
        for seed, run in enumerate(arm["runs"]):
            run["corrections"] = make_corrections(SHARES[name] + 0.01 * seed)
            for decoding in ("sampled", "greedy"):
                run[decoding]["words_to_change"] = [seed, 2 + seed]
                run[decoding]["scores"] = [float(number)] * len(run[decoding]["scores"])
            run |= fields
    return build_report(study)


def test_means_and_errors_over_records_or_seeds():
    row = make(1)["corrections"]["arms"]["ppo_rlhf"]
    assert row["sampled"] == {"mean": 0.7, "se": 0.01}
    assert row["moved"] == {"mean": 0.125, "se": 0.01}
    assert row["words_greedy"] == {"mean": 1, "se": pytest.approx(1)}
    assert row["fluency_sampled"] == {"mean": None, "se": None}
    row = make(3)["corrections"]["arms"]["ppo_rlhf"]
    assert row["sampled"] == {"mean": pytest.approx(0.71), "se": pytest.approx(0.01 / 3**0.5)}
    assert row["words_sampled"] == {"mean": 2, "se": pytest.approx(1 / 3**0.5)}


def test_rank_correlation_with_the_score():
    """Scores 0 1 2 3 in the study's order, against accuracies p (sampled) and 1 - p (greedy)."""
    report = make(1)
    order = [SHARES[name] for name in report["table1"] if name in SHARES]
    ranks = [sorted(order).index(share) for share in order]
    squares = sum((rank - k) ** 2 for k, rank in enumerate(ranks))
    expected = 1 - 6 * squares / (4 * 15)
    correlation = report["corrections"]["rank_correlation"]
    assert correlation["sampled"] == pytest.approx(expected)
    assert correlation["greedy"] == pytest.approx(-expected)
    assert f"score is {expected:.2f} sampled and −{expected:.2f} greedy" in to_markdown(report)


def test_columns_without_data_are_left_out():
    fluency = {name: {"mean": -2.5, "se": 0.1, "n": 3} for name in ("sampled", "greedy")}
    (section,) = (s for s in sections(make(1, fluency=fluency)) if s.key == "corrections")
    assert section.head[-1] == "Fluency, greedy"
    assert section.rows[1][-1] == "−2.500 ± 0.100"
    (section,) = (s for s in sections(make(1)) if s.key == "corrections")
    assert section.head[-1] == "Words left, greedy"
    assert ("Words left:" in section.text, "Fluency:" in section.text) == (True, False)
    without = build_report(make_study(2))
    assert "corrections" not in [s.key for s in sections(without)]
    assert without["corrections"]["rank_correlation"] == {"sampled": None, "greedy": None}
