"""The pipeline: every command that it would type is one that exists, and its files fit together."""

import dataclasses
import importlib
import itertools
import json
from pathlib import Path

import pytest

from fgrlhf_jax import records, report, report_html, report_tables, study, tiny_world
from fgrlhf_jax.errors import InputError
from fgrlhf_jax.records import Edit, Preference
from launch import cli, pipeline

FILES = {"files.edits": "edits.jsonl", "files.preferences": "preferences.jsonl"}


def get(variant="tiny", **fields):
    config = cli.load(f"configs/pipeline.py:{variant}")
    for name, value in fields.items():
        with config.unlocked():
            config.update_from_flattened_dict({name.replace("__", "."): value})
    return config


@pytest.mark.parametrize("variant", ["tiny", "study", "cad", "llama_7b"])
def test_every_command_is_understood(variant):
    given = FILES if variant in ("cad", "llama_7b") else {}
    config = get(variant, **{name.replace(".", "__"): v for name, v in given.items()})
    made = pipeline.make_stages(config, Path("run"))
    names = [stage.name for stage in made]
    assert len(set(names)) == len(names)
    assert len({stage.output for stage in made}) == len(made)
    for number, stage in enumerate(made):
        assert set(stage.needs) <= set(names[:number]), stage.name
        module = importlib.import_module(stage.command[0])
        parsed = cli.parse(list(stage.command), "configs/pipeline.py:tiny")
        if hasattr(module, "check"):
            module.check(parsed)


def test_every_seed_and_arm_has_its_stages():
    made = pipeline.make_stages(get("study"), Path("run"))
    arms = get("study").run_arms.split(",")
    for seed, arm in itertools.product(range(3), arms):
        (stage,) = [s for s in made if s.name == f"seed_{seed}/{arm}"]
        assert f"--config.seed={seed}" in stage.command
    (start,) = [s for s in made if s.name == "seed_1/edits_then_token"]
    assert "--config.policy=run/seed_1/sft_edits/export" in start.command
    assert "--config.reward_model=run/seed_1/rm_state_action" in start.command
    (literal,) = [s for s in made if s.name == "seed_1/kl_outside"]
    assert "--config.kl.in_reward=False" in literal.command


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"run_arms": "ppo"}, "'ppo' is not one of"),
        ({"run_arms": "edits_then_token"}, "starts from sft_edits"),
        ({"run_arms": "ppo_rlhf", "embedded": False}, "needs files.preferences"),
        ({"run_arms": "oracle", "embedded": False}, "embedded world only"),
    ],
)
def test_arms_that_cannot_be(fields, says):
    with pytest.raises(InputError, match=says):
        pipeline.chosen(get(**fields))


SIZES = {"sft": 40, "feedback": 60, "ppo": 20, "validation": 20, "test": 30}


@pytest.fixture
def folder(tmp_path):
    """What a finished run has on disk, but for its models: two seeds of the world."""
    config = get("tiny", seeds=2, **{f"world__{name}": n for name, n in SIZES.items()})
    study.make_data(config, tmp_path)
    for seed in range(2):
        home = tmp_path / f"seed_{seed}"
        prompts = records.read(str(tmp_path / "data" / "feedback.jsonl"))
        rows = tiny_world.instructions(60, "feedback", seed + 10)
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
        one, two = (tiny_world.gold(row.instruction, t) for t in (row.output_1, row.output_2))
        assert row.preference == (1 if one > two else 2)
    counts = json.loads((feedback / "counts.json").read_text())
    assert counts["imitate_train"] == counts["edits_train"] > 0


def test_the_report_is_of_what_the_stages_left(folder):
    config, path = folder
    arms = {"sft": "SFT", "ppo_rlhf": "PPO"}
    for seed, arm in itertools.product(range(2), [*arms, "reference"]):
        rows = [
            {"length": 5, "finished": n != 3, "score": (n % 7) / 7 + (arm == "ppo_rlhf")}
            for n in range(30)
        ]
        home = path / f"seed_{seed}"
        (home / "answers").mkdir(exist_ok=True)
        answers = {"sampled": rows, "greedy": rows}
        (home / "answers" / f"{arm}.json").write_text(json.dumps(answers))
        if arm == "ppo_rlhf":
            (home / arm).mkdir()
            curve = [
                {
                    "step": step,
                    "seconds": 2.0,
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
        table = {"edits": {"accuracy": 0.8, "se": 0.01, "n": 9}, "auroc": 0.7}
        tables = {"reward_models": {"rm": table}, "heatmaps": []}
        (home / "tables.json").write_text(json.dumps(tables))
    found = report.content(
        study.gather(config, path, arms, {"rm": "RM"}) | {"seconds": {}, "commands": {}}
    )
    row = found["table1"]["ppo_rlhf"]
    assert row["win_rate"] == 1.0
    assert row["kl"] == pytest.approx(0.3)
    assert row["unfinished"] == pytest.approx(1 / 30)
    assert found["table2"]["rm"]["edits"]["accuracy"] == pytest.approx(0.8)
    assert found["table3"]["ppo_rlhf"]["seconds_per_step"] == pytest.approx(2.0)
    json.loads(report.to_json(found))
    assert "PPO" in report_tables.markdown(found)
    assert "PPO" in report_html.page(found)


def test_files_of_ones_own(tmp_path):
    edits = [Edit(f"write {n}", "", f"bad word {n}", f"good word {n}") for n in range(60)]
    records.write_jsonl(tmp_path / "edits.jsonl", edits)
    held = [dataclasses.replace(edit, edited=f"fine {n}") for n, edit in enumerate(edits[:8])]
    held += [Edit(f"say {n}", "", f"bad {n}", f"good {n}") for n in range(20)]
    records.write_jsonl(tmp_path / "held.jsonl", held)
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


def test_prompts_of_ones_own_need_no_output(tmp_path):
    rows = {"edits": [Edit(f"write {n}", "", f"bad {n}", f"good {n}") for n in range(200)]}
    for name in ("prompts", "test"):
        rows[name] = [{"instruction": f"{name} {n}", "dataset": "mine"} for n in range(9)]
    for name, some in rows.items():
        records.write_jsonl(tmp_path / f"{name}.jsonl", some)
    config = get("cad", **{f"files__{name}": str(tmp_path / f"{name}.jsonl") for name in rows})
    study.make_data(config, tmp_path)
    for name, file in (("prompts", "ppo"), ("test", "test")):
        read = records.read(str(tmp_path / "data" / f"{file}.jsonl"))
        assert [row.instruction for row in read] == [row["instruction"] for row in rows[name]]


def test_edits_that_are_none(tmp_path):
    records.write_jsonl(tmp_path / "asked.jsonl", [{"instruction": "a", "output": "b"}])
    config = get("cad", files__edits=str(tmp_path / "asked.jsonl"))
    with pytest.raises(InputError, match=r"asked.jsonl: row 1 is no edit"):
        study.make_data(config, tmp_path)
