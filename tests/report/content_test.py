"""The report's numbers against values computed by hand."""

import itertools
import json
import math

import numpy as np
import pytest
from report_cases import make_arm, make_curve, make_outcomes, make_reward_model, make_study

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.functional.win_rate import paired_interval
from fgrlhf_jax.report.content import build_report, to_json
from fgrlhf_jax.report.markdown import to_markdown
from fgrlhf_jax.report.page import to_html
from fgrlhf_jax.report.tables import percent, sections


@pytest.mark.parametrize("seeds", [1, 3])
def test_fields_that_external_scripts_read(seeds):
    report = json.loads(to_json(build_report(make_study(seeds))))
    assert "recommendation" in report
    arms = ["sft", "ppo_rlhf", "fine_grained", "fine_grained_token"]
    assert list(report["table1"]) == arms
    assert list(report["table3"]) == list(report["curves"]) == arms[1:]
    names = {"win_rate", "se", "n", "gold", "greedy_win_rate", "greedy_gold", "length", "kl"}
    names |= {"unfinished", "seconds"}
    for row in report["table1"].values():
        assert all(isinstance(row[name], int | float) for name in names)
        assert (row["n"], row["correction_accuracy"]) == (64, None)
    pairs = [(pair["arm"], pair["against"]) for pair in report["differences"]]
    assert pairs == [(a, b) for b, a in itertools.combinations(arms, 2)]
    for pair in report["differences"]:
        assert set(pair) == {"arm", "against", "sampled", "greedy"}
        assert pair["sampled"].keys() == pair["greedy"].keys() == {"points", "low", "high"}
    assert {"accuracy", "se"} <= set(report["table2"]["token_edit"]["edits"])
    for row in report["table3"].values():
        assert {"steps_80", "steps_95", "steps_to_gold", "seconds_per_step"} <= set(row)
    assert report["seconds"] == {"sft": 84.25, "ppo": 31.5}
    over = "seeds" if seeds > 1 else "prompts"
    assert report["table1"]["ppo_rlhf"]["se_over"] == over
    assert report["table1"]["sft"]["se_over"] == "prompts"  # a single, shared run


def test_standard_errors_over_seeds_and_over_prompts():
    outcomes = [[1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]
    study = make_study(3) | {"test_prompts": 4}
    study["arms"] = {"a": make_arm("A", outcomes), "b": make_arm("B", outcomes[1:2])}
    table = build_report(study)["table1"]
    assert table["a"]["win_rate"] == pytest.approx(0.75)
    assert table["a"]["se"] == pytest.approx(0.25 / math.sqrt(3))
    assert table["b"]["win_rate"] == pytest.approx(0.75)
    assert table["b"]["se"] == pytest.approx(0.5 / 2)  # of 1, 1, 1, 0
    figures = {"kl": 1.5, "unfinished": 0.25, "length": 10, "gold": 0.5}
    assert figures.items() <= table["a"].items()


def test_greedy_and_sampled_results_are_separate():
    study = make_study(1) | {"test_prompts": 2}
    study["arms"] = {"sft": make_arm("SFT", [[0.5, 0.5]], greedy=[[1, 0.5]])}
    study["arms"]["sft"]["runs"][0]["greedy"]["scores"] = [0.9, 0.7]
    report = build_report(study)
    row, cells = report["table1"]["sft"], sections(report)[0].rows[0]
    assert cells[1:5] == ["50.0 ± 0.0 %", "75.0 ± 25.0 %", "0.500 ± 0.000", "0.800 ± 0.100"]
    names = ("win_rate", "greedy_win_rate", "gold", "greedy_gold")
    assert [row[n] for n in names] == pytest.approx([0.5, 0.75, 0.5, 0.8])


def test_twenty_wins_of_twenty_have_an_interval():
    assert percent(1.0, 0.0, 20) == "100.0 % [83.9, 100.0]"
    assert percent(0.95, 0.05, 20) == "95.0 ± 5.0 %"


def test_table_2_is_a_cross_table():
    study = make_study(3)
    models = study["reward_models"]
    for k, run in enumerate(models["token_edit"]["runs"]):
        run["preferences"] = {"accuracy": 0.6, "se": 0.03, "n": 9}
        run["auroc"] = [0.7, 0.8, 0.9][k]
    models["lone"] = make_reward_model("lone", [0.9])
    del models["token_edit"]["runs"][2]["preferences"]
    table = build_report(study)["table2"]
    assert table["token_edit"]["edits"]["accuracy"] == pytest.approx(0.81)
    assert table["token_edit"]["edits"]["se"] == pytest.approx(0.01 / math.sqrt(3))
    assert table["token_edit"]["auroc"] == pytest.approx(0.8)
    assert "preferences" not in table["token_edit"]  # not evaluated by all three seeds
    assert table["lone"]["edits"] == {"accuracy": 0.9, "se": 0.02, "n": 50}
    assert table["sequence"]["auroc"] is None


def test_table_3_by_hand():
    report = build_report(make_study())
    # Smoothed: 0, .1, .2, .3, .3667, .4 and 0, .4667, .7333, .8, .8, .8; the same gain each seed.
    slow, fast = report["table3"]["ppo_rlhf"], report["table3"]["fine_grained_token"]
    # Starts 0, .01, .02; lowest best .4: .01 + .8 · .39 = .322.
    assert report["gold_target"] == pytest.approx(0.322)
    assert report["gold_target_arm"] == "ppo_rlhf"
    names = ("steps_80", "steps_95", "steps_to_gold", "steps_80_se", "seconds_80")
    assert [slow[name] for name in names] == [40, 50, 40, 0, 20]
    assert [fast[name] for name in names] == [20, 30, 10, 0, 10]
    assert fast["seconds_per_step"] == 0.5


def test_a_fixed_score_that_is_missing_or_not_reached_by_a_seed():
    study = make_study(3)
    study["arms"]["fine_grained"]["runs"][0]["curve"] = make_curve([0.0, 0.1, 0.2, 0.3])
    report = build_report(study)
    slow = report["table3"]["fine_grained"]
    names = ("steps_to_gold", "seconds_to_gold", "steps_to_gold_reached")
    assert [slow[name] for name in names] == [None, None, 2]
    assert "2 of 3 seeds" in to_markdown(report)
    study = make_study(1)  # the baseline gains nothing
    study["arms"]["ppo_rlhf"]["runs"][0]["curve"] = make_curve([0.5, 0.4, 0.3])
    report = build_report(study)
    assert report["gold_target"] is None
    assert all(row["steps_to_gold"] is None for row in report["table3"].values())


def test_curves_are_means_at_common_steps():
    study = make_study(2)
    runs = study["arms"]["ppo_rlhf"]["runs"]
    runs[0]["curve"] = make_curve([0.1, 0.2, 0.3])
    runs[1]["curve"] = make_curve([0.3, math.nan, 0.4, 0.9])
    curve = build_report(study)["curves"]["ppo_rlhf"]
    assert curve["step"] == [0, 20]
    assert curve["gold"] == pytest.approx([0.2, 0.35])
    assert curve["gold_se"] == pytest.approx([0.1, 0.05])
    assert (curve["length"], curve["reward_length_correlation"]) == ([10, 12], 0.25)
    assert build_report(make_study(1))["curves"]["fine_grained"]["gold_se"] == [None] * 6


def test_a_missing_curve_only_removes_its_own_results():
    study = make_study(3)
    study["arms"]["ppo_rlhf"]["runs"][1]["curve"] = []
    report = build_report(study)
    seeds = [report[table]["ppo_rlhf"]["seeds"] for table in ("table1", "table3", "curves")]
    assert seeds == [3, 2, 2]
    for arm in study["arms"].values():
        for run in arm["runs"]:
            run["curve"] = []
    report = build_report(study)
    assert report["table3"] == report["curves"] == {}
    assert report["speed"] == report["answer"]["faster"]["lines"] == []
    for page in (to_html(report), to_markdown(report)):
        assert "Table 1" in page
        assert "Table 3" not in page
        assert "Learning curves" not in page


def test_differences_pair_seeds_and_prompts():
    study = make_study(3, sft_edits=make_arm("SFT on edits", make_outcomes(0.6, 3)))
    report = build_report(study)
    arms = ("sft_edits", "fine_grained_token")
    a, b = ([run["sampled"]["outcome"] for run in study["arms"][arm]["runs"]] for arm in arms)
    pair = report["differences"][-1]
    assert (pair["arm"], pair["against"]) == arms
    interval = paired_interval(a, b)
    assert pair["sampled"] == pytest.approx(
        {"points": 100 * interval["difference"]}
        | {end: 100 * interval[end] for end in ("low", "high")}
    )


def test_optional_columns():
    study = make_study(2) | {"at_once": 2}
    tables = {section.key: section for section in sections(build_report(study))}
    assert tables["table1"].head[6:] == ["Unfinished", "KL", "Seconds"]
    assert tables["table1"].rows[1][6:] == ["25.0 %", "1.50", "90"]
    assert "up to 2 stages ran at once" in tables["table1"].text
    assert len(tables["table3"].head) == 4  # no seconds: stages ran at once
    for arm in study["arms"].values():
        for run in arm["runs"]:
            run |= {"correction_accuracy": 0.75, "kl": None, "seconds": None}
            run["sampled"]["outcome_greedy_start"] = [0.25] * 64
            run["greedy"]["outcome_greedy_start"] = [0.5] * 64
    (table, *_) = sections(build_report(study | {"at_once": 1}))
    assert table.head[6:] == ["Unfinished", "Correction"]
    assert table.rows[0][7] == "75.0 %"
    study["config"]["world.kind"] = "fair"  # which has a second reference
    (table, *_) = sections(build_report(study | {"at_once": 1}))
    assert table.head[7:9] == ["Against greedy, T = 1", "Against greedy, greedy"]
    assert table.rows[0][7:9] == ["25.0 %", "50.0 %"]


def test_non_finite_numbers_become_null():
    study = make_study(1)
    study["arms"]["ppo_rlhf"]["runs"][0]["kl"] = math.nan
    study["arms"]["sft"]["runs"][0]["kl"] = None
    study["arms"]["ppo_rlhf"]["runs"][0]["curve"][2]["reward"] = math.inf
    study["heatmaps"][0]["by"]["oracle"]["rewards"][0] = math.nan
    study["config"]["lr"] = np.float32(0.5)
    report = build_report(study)
    assert report["table1"]["ppo_rlhf"]["kl"] is report["table1"]["sft"]["kl"] is None
    assert report["curves"]["ppo_rlhf"]["reward"][2] is None
    assert json.loads(to_json(report)) == report
    assert report["config"]["lr"] == 0.5
    for page in (to_html(report), to_markdown(report)):
        assert "nan" not in page.replace("dominant", "").replace("final", "")


def test_signs_of_responses_that_are_no_answers():
    study = make_study(1)
    for decoding, share in (("sampled", 0.25), ("greedy", 0.75)):
        signs = {"repeated": share, "copied": share / 2, "same_phrase": 1 - share}
        for arm in study["arms"].values():
            arm["runs"][0][decoding] |= signs
    report = build_report(study)
    section = next(s for s in sections(report) if s.key == "responses")
    assert section.head[0] == "Arm"
    cells = dict(zip(section.head[1:], section.rows[0][1:], strict=True))
    assert cells == {
        "Unfinished, T = 1": "25.0 %",
        "Unfinished, greedy": "25.0 %",
        "Repeated, T = 1": "25.0 %",
        "Repeated, greedy": "75.0 %",
        "Copied, T = 1": "12.5 %",
        "Copied, greedy": "37.5 %",
        "Same phrase, T = 1": "75.0 %",
        "Same phrase, greedy": "25.0 %",
    }
    assert "signs" not in build_report(make_study(1))["answer"]
    assert report["answer"]["signs"]["text"].startswith("No arm")
    study["arms"]["fine_grained"]["runs"][0]["sampled"]["copied"] = 0.5
    (line,) = build_report(study)["answer"]["signs"]["lines"]
    text = "four-word sequences copied from the prompt: 50 % at T = 1 (before: 12 %)"
    assert line == {"arm": "PPO on edits", "text": text}


def test_runs_on_other_prompts_are_refused():
    study = make_study(1)
    study["arms"]["fine_grained"]["runs"][0]["greedy"]["outcome"].pop()
    with pytest.raises(InputError, match=r"'fine_grained', run 0, greedy.*64 test prompts"):
        build_report(study)
    study["arms"]["fine_grained"]["runs"] = []
    with pytest.raises(InputError, match="has no run"):
        build_report(study)


def test_a_study_without_a_judge():
    """Has lengths, reward models, responses and token rewards, but no win rates or comparisons."""
    study = make_study(2) | {"judge": ""}
    for arm in study["arms"].values():
        for run in arm["runs"]:
            for decoding in ("sampled", "greedy"):
                run[decoding] |= dict.fromkeys(("scores", "outcome"), [None] * 64)
            run["curve"] = [point | {"gold": None} for point in run["curve"]]
    report = build_report(study)
    row = report["table1"]["fine_grained_token"]
    assert (row["win_rate"], row["gold"], row["length"], row["kl"]) == (None, None, 10, 1.5)
    assert report["differences"] == report["answer"]["better"]["lines"] == []
    assert report["recommendation"]["arm"] is None
    assert report["answer"]["better"]["text"] == "This study has no judge."
    tables = {section.key: section for section in sections(report)}
    assert tables.keys() == {"table1", "table2", "stages"}
    assert tables["table1"].rows[0][1:5] == ["–"] * 4
    assert "Token rewards" in to_markdown(report)
    assert "Token rewards" in to_html(report)
