"""The report's numbers by hand."""

import json
import math
import re

import numpy as np
import pytest
from report_cases import arm, make_study, outcomes, points, reward_model

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.functional import win_rate
from fgrlhf_jax.report import content as report
from fgrlhf_jax.report import page as report_html
from fgrlhf_jax.report import tables as report_tables


@pytest.mark.parametrize("seeds", [1, 3])
def test_what_scripts_outside_rely_on(seeds):
    text = report.to_json(report.content(make_study(seeds)))
    found = json.loads(text)
    assert {"table1", "table2", "table3", "curves", "seconds"} <= set(found)
    arms = ["sft", "sft_greedy", "ppo_rlhf", "fine_grained", "fine_grained_token"]
    assert list(found["table1"]) == arms
    assert list(found["table3"]) == list(found["curves"]) == arms[2:]
    wanted = {"win_rate", "se", "n", "gold", "greedy_win_rate", "length", "kl", "unfinished"}
    for row in found["table1"].values():
        assert wanted <= set(row)
        assert all(isinstance(row[key], int | float) for key in wanted)
        assert row["n"] == 64
    assert set(found["table2"]["token_edit"]) == {"edits", "auroc"}
    assert {"accuracy", "se"} <= set(found["table2"]["token_edit"]["edits"])
    for row in found["table3"].values():
        assert {"steps_80", "steps_95", "steps_to_gold", "seconds_per_step"} <= set(row)
    assert found["seconds"] == {"sft": 84.25, "ppo": 31.5}
    over = "seeds" if seeds > 1 else "prompts"
    assert found["table1"]["ppo_rlhf"]["se_over"] == over
    assert found["table1"]["sft"]["se_over"] == "prompts"  # a single, shared run


def test_standard_errors_over_seeds_and_over_prompts():
    runs = [[1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]
    study = make_study(3) | {"test_prompts": 4}
    study["arms"] = {"a": arm("A", runs), "b": arm("B", runs[1:2])}
    table = report.content(study)["table1"]
    assert table["a"]["win_rate"] == pytest.approx(0.75)
    assert table["a"]["se"] == pytest.approx(0.25 / math.sqrt(3))
    assert table["b"]["win_rate"] == pytest.approx(0.75)
    assert table["b"]["se"] == pytest.approx(0.5 / 2)  # of 1, 1, 1, 0
    assert (table["a"]["kl"], table["a"]["unfinished"]) == (1.5, 0.25)
    assert (table["a"]["length"], table["a"]["gold"]) == (10, 0.5)


def test_greedy_and_sampled_are_kept_apart():
    study = make_study(1) | {"test_prompts": 2}
    study["arms"] = {"sft": arm("SFT", [[0.5, 0.5]], greedy=[[1, 0.5]])}
    study["arms"]["sft"]["runs"][0]["greedy"]["scores"] = [0.9, 0.7]
    found = report.content(study)
    table, shown = found["table1"], report_tables.sections(found)[0].rows
    assert shown[0][1:5] == ["50.0 ± 0.0 %", "75.0 ± 25.0 %", "0.500 ± 0.000", "0.800 ± 0.100"]
    assert shown[1][:5] == ["SFT, greedy", "–", "75.0 ± 25.0 %", "–", "0.800 ± 0.100"]
    row, greedy = table["sft"], table["sft_greedy"]
    assert (row["win_rate"], row["greedy_win_rate"]) == (0.5, 0.75)
    assert (row["gold"], row["greedy_gold"]) == (0.5, pytest.approx(0.8))
    assert (greedy["win_rate"], greedy["greedy_win_rate"]) == (0.75, 0.75)
    assert greedy["gold"] == pytest.approx(0.8)


def test_table_2_is_a_cross_table():
    study = make_study(3)
    models = study["reward_models"]
    for k, run in enumerate(models["token_edit"]["runs"]):
        run["preferences"] = {"accuracy": 0.6, "se": 0.03, "n": 9}
        run["auroc"] = [0.7, 0.8, 0.9][k]
    models["lone"] = reward_model("lone", [0.9])
    del models["token_edit"]["runs"][2]["preferences"]
    table = report.content(study)["table2"]
    assert table["token_edit"]["edits"]["accuracy"] == pytest.approx(0.81)
    assert table["token_edit"]["edits"]["se"] == pytest.approx(0.01 / math.sqrt(3))
    assert table["token_edit"]["auroc"] == pytest.approx(0.8)
    assert "preferences" not in table["token_edit"]  # not of all three seeds
    assert table["lone"]["edits"] == {"accuracy": 0.9, "se": 0.02, "n": 50}
    assert table["sequence"]["auroc"] is None


def test_table_3_by_hand():
    found = report.content(make_study())
    # Smoothed: 0, .1, .2, .3, .3667, .4 and 0, .4667, .7333, .8, .8, .8; the same gain each seed.
    slow, fast = found["table3"]["ppo_rlhf"], found["table3"]["fine_grained_token"]
    assert [slow["steps_80"], slow["steps_95"]] == [40, 50]
    assert [fast["steps_80"], fast["steps_95"]] == [20, 30]
    assert slow["steps_80_se"] == 0
    # Starts 0, .01, .02; lowest best .4: .01 + .8 · .39 = .322.
    assert found["gold_target"] == pytest.approx(0.322)
    assert found["gold_target_arm"] == "ppo_rlhf"
    assert [slow["steps_to_gold"], fast["steps_to_gold"]] == [40, 10]
    assert fast["seconds_per_step"] == 0.5
    assert [fast["seconds_80"], fast["seconds_to_gold"]] == [10, 5]


def test_a_seed_that_never_gets_there_leaves_no_mean():
    study = make_study(3) | {"gold_target": 0.405}
    table = report.content(study)["table3"]
    assert table["ppo_rlhf"]["steps_to_gold"] is None
    assert table["ppo_rlhf"]["steps_to_gold_reached"] == 2
    assert table["ppo_rlhf"]["seconds_to_gold"] is None
    assert table["fine_grained_token"]["steps_to_gold"] == 10
    assert "2 of 3 seeds" in report_tables.markdown(report.content(study))


def test_the_fixed_score_where_the_baseline_gains_nothing():
    study = make_study(1)
    study["arms"]["ppo_rlhf"]["runs"][0]["curve"] = points([0.5, 0.4, 0.3])
    found = report.content(study)
    assert found["gold_target"] is None
    assert all(row["steps_to_gold"] is None for row in found["table3"].values())
    assert found["table3"]["fine_grained_token"]["steps_80"] == 20


def test_curves_are_means_at_common_steps():
    study = make_study(2)
    runs = study["arms"]["ppo_rlhf"]["runs"]
    runs[0]["curve"] = points([0.1, 0.2, 0.3])
    runs[1]["curve"] = points([0.3, math.nan, 0.4, 0.9])
    curve = report.content(study)["curves"]["ppo_rlhf"]
    assert curve["step"] == [0, 20]
    assert curve["gold"] == pytest.approx([0.2, 0.35])
    assert curve["gold_se"] == pytest.approx([0.1, 0.05])
    assert curve["length"] == [10, 12]
    assert curve["reward_length_correlation"] == pytest.approx(1)


def test_a_missing_curve_is_missed_and_no_more():
    study = make_study(3)
    study["arms"]["ppo_rlhf"]["runs"][1]["curve"] = []
    found = report.content(study)
    assert found["table3"]["ppo_rlhf"]["seeds"] == found["curves"]["ppo_rlhf"]["seeds"] == 2
    assert found["table1"]["ppo_rlhf"]["seeds"] == 3
    for given in study["arms"].values():
        for run in given["runs"]:
            run["curve"] = []
    found = report.content(study)
    assert found["table3"] == found["curves"] == {}
    assert found["gold_target"] is None
    assert found["answer"]["faster"]["verdict"] == "not asked"
    page, text = report_html.page(found), report_tables.markdown(found)
    for shown in (page, text):
        assert "Table 1" in shown
        assert "Table 3" not in shown
        assert "Learning curves" not in shown


def test_one_seed_may_bring_errors_of_its_curve():
    study = make_study(1)
    for row in study["arms"]["ppo_rlhf"]["runs"][0]["curve"]:
        row["gold_se"] = 0.02
    curves = report.content(study)["curves"]
    assert curves["ppo_rlhf"]["gold_se"] == [0.02] * 6
    assert curves["fine_grained"]["gold_se"] == [None] * 6


def test_comparisons_pair_prompts_averaged_over_seeds():
    study = make_study(3, sft_edits=arm("SFT on edits", outcomes(0.6, 1)))
    found = report.content(study)
    pairs = [(c["a"], c["b"]) for c in found["comparisons"]]
    neighbours = [
        ("fine_grained", "ppo_rlhf"),
        ("fine_grained_token", "fine_grained"),
        ("sft_edits", "fine_grained_token"),
    ]
    assert pairs == [
        *neighbours,
        ("fine_grained_token", "ppo_rlhf"),
        ("fine_grained_token", "sft_edits"),
    ]
    a, b = (
        np.mean([run["sampled"]["outcome"] for run in study["arms"][name]["runs"]], axis=0)
        for name in ("fine_grained_token", "sft_edits")
    )
    want = win_rate.paired_bootstrap(a, b, seed=0)
    assert found["comparisons"][-1]["sampled"] == want
    rows = found["table1"]
    difference = rows["fine_grained_token"]["win_rate"] - rows["sft_edits"]["win_rate"]
    assert want["difference"] == pytest.approx(difference)


def test_what_is_not_a_number_is_null():
    study = make_study(1)
    study["arms"]["ppo_rlhf"]["runs"][0]["sampled"]["kl"] = math.nan
    study["arms"]["sft"]["runs"][0]["sampled"]["kl"] = None
    study["arms"]["ppo_rlhf"]["runs"][0]["curve"][2]["reward"] = math.inf
    study["heatmaps"][0]["by"]["oracle"]["rewards"][0] = math.nan
    study["config"]["lr"] = np.float32(0.5)
    found = report.content(study)
    assert found["table1"]["ppo_rlhf"]["kl"] is found["table1"]["sft"]["kl"] is None
    assert found["curves"]["ppo_rlhf"]["reward"][2] is None
    assert json.loads(report.to_json(found)) == found
    assert found["config"]["lr"] == 0.5
    assert "nan" not in re.sub("domi|fina", "", report_html.page(found)).lower()
    assert "nan" not in report_tables.markdown(found).lower()


def test_runs_on_other_prompts_are_refused():
    study = make_study(1)
    study["arms"]["fine_grained"]["runs"][0]["greedy"]["outcome"].pop()
    with pytest.raises(InputError, match=r"'fine_grained', run 0, greedy.*64 test prompts"):
        report.content(study)
    study["arms"]["fine_grained"]["runs"] = []
    with pytest.raises(InputError, match="has no run"):
        report.content(study)
