"""The pipeline: every command that it would type is one that exists, and its files fit together."""

import dataclasses
import itertools
import json

import pytest

from fgrlhf_jax.data import records
from fgrlhf_jax.data.records import Edit, Preference
from fgrlhf_jax.errors import InputError
from fgrlhf_jax.pipeline import tasks as study
from fgrlhf_jax.pipeline.arms import ARMS, select_arms, select_reward_models
from fgrlhf_jax.pipeline.commands import build_stages
from fgrlhf_jax.pipeline.results import gather
from fgrlhf_jax.report import content as report
from fgrlhf_jax.report import page as report_html
from fgrlhf_jax.report import tables as report_tables
from fgrlhf_jax.runtime.files import write_jsonl
from fgrlhf_jax.tiny_world.datasets import make_instructions
from fgrlhf_jax.tiny_world.judge import gold_score
from launch.shared import cli


def get(variant="tiny", **fields):
    config = cli.load(f"configs/pipeline.py:{variant}")
    for name, value in fields.items():
        with config.unlocked():
            config.update_from_flattened_dict({name.replace("__", "."): value})
    return config


def test_a_policy_of_another_template_is_not_measured(tmp_path):
    write_jsonl(tmp_path / "data" / "test.jsonl", [{"instruction": "a", "output": "b"}])
    learned = {"fgrlhf": {"data": {"template": "plain"}}}
    (tmp_path / "config.json").write_text(json.dumps(learned))
    with pytest.raises(InputError, match="with the template plain, not alpaca"):
        study.make_answers(get(template="alpaca"), tmp_path, 0, {"sft": str(tmp_path)})


SIZES = {"sft": 40, "feedback": 60, "ppo": 20, "validation": 20, "test": 30}


@pytest.fixture
def folder(tmp_path):
    """What a finished run has on disk, but for its models: two seeds of the world."""
    config = get("tiny", seeds=2, **{f"world__{name}": n for name, n in SIZES.items()})
    study.make_data(config, tmp_path)
    for seed in range(2):
        home = tmp_path / f"seed_{seed}"
        prompts = records.read(str(tmp_path / "data" / "feedback.jsonl"))
        rows = make_instructions(60, "feedback", seed + 10)
        twice = [
            {"instruction": p.instruction, "output": r.output}
            for p in prompts
            for r in rows[:2]
        ]
        home.mkdir()
        (home / "samples.json").write_text(json.dumps(twice))
        study.make_feedback(config, tmp_path, seed)
    return config, tmp_path


def test_data_and_feedback_share_no_prompt_and_leak_no_label(folder):
    _, path = folder
    sets = {name: records.read(str(path / "data" / f"{name}.jsonl")) for name in study.SETS}
    assert {name: len(rows) for name, rows in sets.items()} == SIZES
    for one, two in itertools.combinations(sets.values(), 2):
        assert not {r.instruction for r in one} & {r.instruction for r in two}
    feedback = path / "seed_0" / "feedback"
    kinds = {"edits": Edit, "preferences": Preference}
    for kind, record in kinds.items():
        parts = [
            records.read(str(feedback / f"{kind}_{part}.jsonl"))
            for part in ("train", "validation", "test")
        ]
        assert all(isinstance(row, record) for part in parts for row in part)
        for one, two in itertools.combinations(parts, 2):
            assert not {r.instruction for r in one} & {r.instruction for r in two}
    for row in records.read(str(feedback / "gold_test.jsonl")):
        one, two = (gold_score(row.instruction, t) for t in (row.output_1, row.output_2))
        assert row.preference == (1 if one > two else 2)
    counts = json.loads((feedback / "counts.json").read_text())
    assert counts["imitate_train"] == counts["edits_train"] > 0


def leave(path, arms: dict[str, str]) -> None:
    """Answers of every arm and seed, and the curves of those that are PPO, exported at step 2."""
    for seed, arm in itertools.product(range(2), [*arms, "reference"]):
        rows = [
            {"length": 5, "finished": n != 3, "score": (n % 7) / 7 + (arm == "ppo_rlhf")}
            for n in range(30)
        ]
        home = path / f"seed_{seed}"
        (home / "answers").mkdir(exist_ok=True)
        answers = {"sampled": rows, "greedy": rows}
        (home / "answers" / f"{arm}.json").write_text(json.dumps(answers))
        if ARMS.get(arm, ARMS["sft_edits"]).reward:
            (home / arm).mkdir()
            (home / arm / "finished.json").write_text(json.dumps({"step": 2}))
            curve = [
                {
                    "step": step,
                    "time/step": 2.0,
                    "validation/kl": 0.1 * step,
                    "validation/score": 0.1 * step,
                    "validation/reward": 0.2,
                    "validation/length": 5.0,
                    "validation/unfinished": 0.0,
                }
                for step in range(4)
            ]
            text = "".join(json.dumps(row) + "\n" for row in curve)
            (home / arm / "metrics.jsonl").write_text(text)


def test_the_report_is_of_what_the_stages_left(folder):
    config, path = folder
    arms = {"sft": "SFT", "ppo_rlhf": "PPO"}
    leave(path, arms)
    for seed in range(2):
        table = {"edits": {"accuracy": 0.8, "se": 0.01, "n": 9}, "auroc": 0.7}
        tables = {"reward_models": {"rm": table}, "heatmaps": []}
        (path / f"seed_{seed}" / "tables.json").write_text(json.dumps(tables))
    found = report.content(
        gather(config, path, arms, {"rm": "RM"}) | {"seconds": {}, "commands": {}}
    )
    row = found["table1"]["ppo_rlhf"]
    assert row["win_rate"] == 1.0
    assert row["kl"] == pytest.approx(0.2)  # of the policy that was exported, not the last one
    assert row["unfinished"] == pytest.approx(1 / 30)
    assert found["table2"]["rm"]["edits"]["accuracy"] == pytest.approx(0.8)
    assert found["table3"]["ppo_rlhf"]["seconds_per_step"] == pytest.approx(2.0)
    json.loads(report.to_json(found))
    assert "PPO" in report_tables.markdown(found)
    assert "PPO" in report_html.page(found)


@pytest.mark.parametrize("arm", ["oracle", "sft_edits", ""])
def test_without_reward_models(folder, arm):
    config, path = folder
    with config.unlocked():
        config.run_arms = arm
    chosen = select_arms(config)
    assert select_reward_models(chosen) == {}
    made = {stage.name: stage for stage in build_stages(config, path)}
    assert made["tables:1"].needs == ("feedback:1",)
    arms = {"sft": "SFT"} | {name: one.label for name, one in chosen.items()}
    leave(path, arms)
    for seed in range(2):
        study.make_tables(config, path, seed, {})
    gathered = gather(config, path, arms, {}) | {"seconds": {}, "commands": {}}
    found = report.content(gathered)
    assert found["table1"].keys() == {*arms, "sft_greedy"}
    assert (found["table2"], found["heatmaps"]) == ({}, [])
    for page in (report_tables.markdown(found), report_html.page(found)):
        assert all(label in page for label in arms.values())


def test_files_of_ones_own(tmp_path):
    edits = [Edit(f"write {n}", "", f"bad word {n}", f"good word {n}") for n in range(60)]
    write_jsonl(tmp_path / "edits.jsonl", edits)
    held = [dataclasses.replace(edit, edited=f"fine {n}") for n, edit in enumerate(edits[:8])]
    held += [Edit(f"say {n}", "", f"bad {n}", f"good {n}") for n in range(20)]
    write_jsonl(tmp_path / "held.jsonl", held)
    names = {"files__edits": "edits.jsonl", "files__edits_validation": "held.jsonl"}
    config = get("cad", **{field: str(tmp_path / name) for field, name in names.items()})
    study.make_data(config, tmp_path)
    study.make_feedback(config, tmp_path, 0)
    sets = {
        name: records.read(str(tmp_path / "data" / f"{name}.jsonl"))
        for name in ("sft", "ppo", "validation", "test", "edits_train", "edits_test")
    }
    assert {r.output for r in sets["sft"]} == {
        text for e in sets["edits_train"] for text in (e.original, e.edited)
    }
    asked = {name: {r.instruction for r in rows} for name, rows in sets.items()}
    learned = asked["sft"] | asked["ppo"] | asked["edits_train"]
    assert not learned & (asked["validation"] | asked["test"])
    assert not asked["validation"] & asked["test"]
    imitate = records.read(str(tmp_path / "seed_0" / "feedback" / "imitate_train.jsonl"))
    assert {r.output for r in imitate} == {e.edited for e in sets["edits_train"]}


def test_a_prompt_is_the_same_whatever_is_around_it(tmp_path):
    """What is held out stays so where a file has it with a blank at its end."""
    edits = [Edit(f"write {n}", "on", f"bad {n}", f"good {n}") for n in range(200)]
    write_jsonl(tmp_path / "edits.jsonl", edits)
    asked = [{"instruction": f" write {n}\n", "input": "on "} for n in (*range(200), *range(9))]
    write_jsonl(tmp_path / "prompts.jsonl", asked)
    names = ("edits", "prompts")
    config = get("cad", **{f"files__{name}": str(tmp_path / f"{name}.jsonl") for name in names})
    study.make_data(config, tmp_path)
    sets = {
        name: records.read(str(tmp_path / "data" / f"{name}.jsonl"))
        for name in ("ppo", "edits_train", "validation", "test")
    }
    for name in ("validation", "test"):
        held = {row.instruction for row in sets[name]}
        assert held
        assert not held & {row.instruction.strip() for row in sets["ppo"]}
    asked_once = {row.instruction for row in sets["ppo"]}
    assert asked_once == {f" {row.instruction}\n" for row in sets["edits_train"]}  # as given
    assert len(asked_once) == len(sets["ppo"])


def test_prompts_of_ones_own_need_no_output(tmp_path):
    rows = {"edits": [Edit(f"write {n}", "", f"bad {n}", f"good {n}") for n in range(200)]}
    for name in ("prompts", "test"):
        rows[name] = [{"instruction": f"{name} {n}", "dataset": "mine"} for n in range(9)]
    for name, some in rows.items():
        write_jsonl(tmp_path / f"{name}.jsonl", some)
    config = get("cad", **{f"files__{name}": str(tmp_path / f"{name}.jsonl") for name in rows})
    study.make_data(config, tmp_path)
    for name, file in (("prompts", "ppo"), ("test", "test")):
        read = records.read(str(tmp_path / "data" / f"{file}.jsonl"))
        assert [row.instruction for row in read] == [row["instruction"] for row in rows[name]]


def test_edits_that_are_none(tmp_path):
    write_jsonl(tmp_path / "asked.jsonl", [{"instruction": "a", "output": "b"}])
    config = get("cad", files__edits=str(tmp_path / "asked.jsonl"))
    with pytest.raises(InputError, match=r"asked.jsonl: row 1 is no edit"):
        study.make_data(config, tmp_path)


def test_preferences_that_are_none(tmp_path):
    edits = [Edit(f"write {n}", "", f"bad {n}", f"good {n}") for n in range(200)]
    write_jsonl(tmp_path / "edits.jsonl", edits)
    preferences = [Preference(f"say {n}", "", "one", "two", 1) for n in range(60)]
    write_jsonl(tmp_path / "mixed.jsonl", [*preferences, edits[0]])
    files = {"edits": "edits.jsonl", "preferences": "mixed.jsonl"}
    config = get("cad", **{f"files__{name}": str(tmp_path / f) for name, f in files.items()})
    says = r"mixed.jsonl: row 61 is no preference \(output_1, output_2, preference\); give pref"
    with pytest.raises(InputError, match=says):
        study.make_data(config, tmp_path)
