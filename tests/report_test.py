"""The report's numbers by hand, its claims against its numbers, and pages that show what is so."""

import copy
import html.parser
import json
import math
import re

import numpy as np
import pytest

from fgrlhf_jax import evaluation, report, report_answer, report_html, report_tables
from fgrlhf_jax.errors import InputError

EVIL = "<script>alert('1')</script>\"&amp;{{ 7*7 }}|*_`\n# x"


def decoded(outcome, gold=0.5, length=10):
    return {
        "scores": [gold] * len(outcome),
        "outcome": list(outcome),
        "lengths": [length] * len(outcome),
        "unfinished": 0.25,
        "kl": 1.5,
    }


def points(gold, every=10):
    """A curve whose other figures follow from its step."""
    return [
        {
            "step": every * k,
            "gold": value,
            "reward": 0.1 * k,
            "kl": 0.5 * k,
            "length": 10 + k,
            "unfinished": 0.0,
            "seconds": 2.0 * k,
        }
        for k, value in enumerate(gold)
    ]


def arm(label, outcomes, curves=None, greedy=None, **given):
    """One run an outcome list."""
    curves = curves or [[]] * len(outcomes)
    greedy = greedy or outcomes
    return {
        "label": label,
        "runs": [
            {
                "sampled": decoded(outcome, **given),
                "greedy": decoded(other, **given),
                "curve": points(curve),
                "seconds_per_step": 0.5 if curve else None,
            }
            for outcome, other, curve in zip(outcomes, greedy, curves, strict=True)
        ],
    }


def reward_model(label, accuracies, auroc=0.7):
    return {
        "label": label,
        "runs": [
            {"edits": {"accuracy": a, "se": 0.02, "n": 50}, "auroc": auroc} for a in accuracies
        ],
    }


SLOW, FAST = [0.0, 0.1, 0.2, 0.3, 0.4, 0.4], [0.0, 0.6, 0.8, 0.8, 0.8, 0.8]
ROUNDS = np.random.default_rng(0).random(64)


def outcomes(rate, seeds):
    """A share ``rate`` of 64 prompts won, each seed others, one more with every seed."""
    return [
        [float(v) for v in np.roll(ROUNDS, k) < np.quantile(ROUNDS, rate + 0.01 * k)]
        for k in range(seeds)
    ]


def make_study(seeds=3, token=0.8, preferences=0.4, **arms):
    curves = lambda gold: [[g + 0.01 * k for g in gold] for k in range(seeds)]  # noqa: E731
    given = {
        "sft": arm("SFT", [[0.5] * 64]),
        "ppo_rlhf": arm("PPO on preferences", outcomes(preferences, seeds), curves(SLOW)),
        "fine_grained": arm("PPO on edits", outcomes(preferences, seeds), curves(SLOW)),
        "fine_grained_token": arm("PPO on tokens", outcomes(token, seeds), curves(FAST)),
        **arms,
    }
    return {
        "config": {"ppo.kl": 0.3},
        "seeds": seeds,
        "title": "A study",
        "judge": "gold",
        "test_prompts": 64,
        "arms": {name: value for name, value in given.items() if value},
        "reward_models": {
            "token_edit": reward_model("tokens", [0.8 + 0.01 * k for k in range(seeds)]),
            "sequence": reward_model("sequence", [0.7] * seeds, auroc=None),
        },
        "heatmaps": [
            {
                "prompt": "name a fruit",
                "response": "a carrot",
                "gold": 0.25,
                "by": {
                    "token_edit": {
                        "tokens": ["a", " carrot", "</s>"],
                        "rewards": [0.5, -1, 0.25],
                    },
                    "oracle": {"tokens": ["a", " carrot", "</s>"], "rewards": [0.0, -0.5, 0.1]},
                },
            }
        ],
        "seconds": {"sft": 84.25, "ppo": 31.5},
        "commands": {"sft": "python -m launch.sft", "ppo": "python -m launch.ppo"},
        "bootstrap_seed": 0,
    }


@pytest.fixture(scope="module")
def found():
    return report.content(make_study())


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


def test_table_3_by_hand(found):
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
    want = evaluation.paired_bootstrap(a, b, seed=0)
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


# What the answer claims.


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


# What the pages show.


class Page(html.parser.HTMLParser):
    """Every tag with its attributes, the cells of tables, and all text; tags must be balanced."""

    def __init__(self, page: str):
        super().__init__()
        self.tags, self.cells, self.text, self.open = [], [], "", []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag != "meta":
            self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" in self.open:
            return
        self.text += data
        if self.open and self.open[-1] in ("td", "th"):
            self.cells[-1] += data.replace("\N{NO-BREAK SPACE}", " ")

    def count(self, tag, **wanted):
        return sum(
            name == tag and all(attrs.get(k) == v for k, v in wanted.items())
            for name, attrs in self.tags
        )


def evil_study():
    study = make_study(3, **{EVIL: arm(EVIL, outcomes(0.5, 3), [SLOW] * 3)})
    study |= {"title": EVIL, "judge": EVIL, "config": {EVIL: EVIL}}
    study |= {"seconds": {EVIL: 1.0}, "commands": {EVIL: EVIL}}
    study["reward_models"][EVIL] = reward_model(EVIL, [0.5] * 3)
    study["heatmaps"][0] |= {"prompt": EVIL, "response": EVIL}
    study["heatmaps"][0]["by"][EVIL] = {
        "tokens": [EVIL, "\u202e\x1b", "</p>"],
        "rewards": [1, 2, 3],
    }
    return study


def test_text_cannot_become_markup():
    source = report_html.page(report.content(evil_study()))
    page = Page(source)
    assert page.count("script") == page.count("img") == page.count("link") == 0
    assert "<script" not in source
    assert page.text.count("<script>alert('1')</script>\"&amp;{{ 7*7 }}") > 10
    assert not set(source) & set("\x1b\u202e")


def test_the_page_loads_nothing():
    for source in (report_html.page(report.content(s)) for s in (make_study(), evil_study())):
        assert not re.search(
            r"https?:|//|url\(|@import|\ssrc=|\shref=|<script|<iframe|xmlns", source
        )
        assert "default-src 'none'" in source


def test_the_page_is_for_light_and_dark(found):
    source = report_html.page(found)
    assert "prefers-color-scheme: dark" in source
    colours = set(re.findall(r"var\((--[a-z0-9]+)\)", source)) - {"--c", "--share"}
    for block in re.findall(r":root \{(.*?)\}", source, re.DOTALL):
        assert set(re.findall(r"(--[a-z0-9]+):", block)) == colours


def test_the_pages_show_the_same_tables(found):
    page, text = Page(report_html.page(found)), report_tables.markdown(found)
    sections = report_tables.sections(found)
    assert [s.key for s in sections] == [
        *("table1", "comparisons", "curves", "table3", "end", "table2", "stages")
    ]
    wanted = [cell for s in sections for row in (s.head, *s.rows) for cell in row]
    assert page.cells == wanted
    cells = [
        cell
        for line in text.split("## Token rewards")[0].splitlines()
        if line.startswith("| ") and "---" not in line
        for cell in line[2:-2].split(" | ")
    ]
    shown = [cell for s in sections[:-1] for row in (s.head, *s.rows) for cell in row]
    assert [re.sub(r"\\(.)", r"\1", cell) for cell in cells] == shown
    row = dict(zip(sections[0].head, sections[0].rows[-1], strict=True))
    assert row["Arm"] == "PPO on tokens"
    assert row["Win rate, T = 1"].startswith(f"{100 * np.mean(outcomes(0.8, 3)):.1f} ± ")
    assert row["KL"] == "1.50"
    for part in found["answer"].values():
        assert part["text"] in page.text.replace("\N{NO-BREAK SPACE}", " ")
        assert part["text"] in text
    for command in found["commands"].values():
        assert command in page.text
        assert command in text


def test_markdown_tables_are_not_torn():
    text = report_tables.markdown(report.content(evil_study()))
    fence = re.search(r"^(`{3,})bash\n(.*?)^\1$", text, re.MULTILINE | re.DOTALL)
    assert EVIL in fence[2]
    widths = set()
    for line in text[: fence.start()].splitlines():
        assert "<script" not in re.sub(r"\\.", "", line)
        if not line.startswith("|"):
            widths = set()
        else:
            widths.add(len(re.findall(r"(?<!\\)\|", line)))
            assert len(widths) == 1, line


def test_heat_maps(found):
    page = Page(report_html.page(found))
    tokens = [attrs for tag, attrs in page.tags if tag == "span" and "style" in attrs]
    assert [t["class"] for t in tokens] == ["high", "low", "high"] * 2
    strength = [float(t["style"].split(":")[1]) for t in tokens]
    # One scale a reward model: its 98th percentile, about its largest.
    assert strength == pytest.approx([0.41, 0.8, 0.2, 0.0, 0.8, 0.16], abs=0.011)
    assert "−1.00" in page.text
    text = report_tables.markdown(found)
    assert "| Token | tokens | oracle |" in text
    assert "| carrot | −1.00 | −0.50 |" in text


def test_long_responses():
    study = make_study(1)
    tokens, rewards = [f"word{k}" for k in range(100)], [0.001 * k for k in range(100)]
    study["heatmaps"][0]["by"] = {
        "token_edit": {"tokens": tokens, "rewards": rewards},
        "oracle": {"tokens": ["other", "tokens"], "rewards": [1, 2]},
    }
    found = report.content(study)
    text = report_tables.markdown(found)
    assert "… and 60 more tokens." in text
    assert "| word39 | 0.04 |" in text
    assert "word40" not in text.split("… and 60")[0]
    assert "| Token | oracle |" in text
    page = Page(report_html.page(found))
    assert page.count("div", **{"class": "tokens plain"}) == 1
    assert page.count("span", title="0.10") == 5  # 0.095 to 0.099


def test_without_reward_models_heat_maps_and_arms_of_ppo():
    study = make_study(1) | {"reward_models": {}, "heatmaps": []}
    study["arms"] = {"sft": study["arms"]["sft"]}
    found = report.content(study)
    page = Page(report_html.page(found))
    assert "Table 2" not in page.text
    assert "Token rewards" not in page.text + report_tables.markdown(found)
    assert found["comparisons"] == []
    assert page.count("svg", **{"class": "chart wide"}) == 1  # win rates, no curves


def test_the_judge_gives_the_word():
    found = report.content(make_study(1) | {"judge": "VADER"})
    for shown in (report_html.page(found), report_tables.markdown(found)):
        assert "VADER" in shown
        assert "gold" not in shown.lower().replace("steps_to_gold", "")
