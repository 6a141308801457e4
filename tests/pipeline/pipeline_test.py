"""The pipeline: every command that it would type is one that exists, and its files fit together."""

import dataclasses
import importlib
import itertools
import json
import re
from pathlib import Path

import pytest

from fgrlhf_jax.data import records
from fgrlhf_jax.data.records import Edit, Preference
from fgrlhf_jax.errors import InputError
from fgrlhf_jax.pipeline import tasks as study
from fgrlhf_jax.report import content as report
from fgrlhf_jax.report import page as report_html
from fgrlhf_jax.report import tables as report_tables
from fgrlhf_jax.runtime import run_dir as run_folder
from fgrlhf_jax.tiny_world import datasets as tiny_world
from launch import pipeline
from launch.shared import cli

FILES = {"files__edits": "edits.jsonl", "files__preferences": "preferences.jsonl"}
GIVEN = {"tiny": {}, "study": {}, "cad": FILES, "llama_7b": FILES}


def get(variant="tiny", **fields):
    config = cli.load(f"configs/pipeline.py:{variant}")
    for name, value in fields.items():
        with config.unlocked():
            config.update_from_flattened_dict({name.replace("__", "."): value})
    return config


@pytest.mark.parametrize("variant", ["tiny", "study", "cad", "llama_7b"])
def test_every_command_is_understood(variant):
    config = get(variant, **GIVEN[variant])
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


@pytest.mark.parametrize("variant", ["tiny", "cad", "llama_7b"])
def test_every_command_makes_its_prompts_alike(variant):
    """What was learned under one template would else be measured under another."""
    ours = {"template": "chat", "max_prompt_length": 17, "max_new_tokens": 9}
    made = pipeline.make_stages(get(variant, **ours, **GIVEN[variant]), Path("run"))
    for stage in made:
        fields = dict(
            word.removeprefix("--config.").split("=", 1) for word in stage.command[1:]
        )
        where = "" if stage.command[0] == "launch.generate" else "data."
        if stage.command[0] != "launch.pipeline":
            assert fields[f"{where}template"] == "chat", stage.name
            assert fields[f"{where}max_prompt_length"] == "17", stage.name
        if stage.command[0] in ("launch.generate", "launch.ppo"):
            assert fields[f"{where}max_new_tokens"] == "9", stage.name


def test_a_policy_of_another_template_is_not_measured(tmp_path):
    records.write_jsonl(tmp_path / "data" / "test.jsonl", [{"instruction": "a", "output": "b"}])
    learned = {"fgrlhf": {"data": {"template": "plain"}}}
    (tmp_path / "config.json").write_text(json.dumps(learned))
    with pytest.raises(InputError, match="with the template plain, not alpaca"):
        study.make_answers(get(template="alpaca"), tmp_path, 0, {"sft": str(tmp_path)})


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        (
            {"ppo__flags": {"seed": 3}},
            "seed=3: the pipeline sets this flag of launch.ppo itself",
        ),
        ({"ppo__flags": {"judge": "a:b"}}, "itself; give --config.judge=…"),
        ({"ppo__flags": {"data__max_new_tokens": 9}}, "give --config.max_new_tokens=…"),
        ({"ppo__flags": {"reward_model": "mine"}}, "launch.ppo itself; drop it"),
        ({"arms__oracle": {"prompts": "mine"}}, "prompts=mine: the pipeline sets this flag"),
        (
            {"sft__flags": {"data__template": "chat"}},
            "launch.sft itself; give --config.template",
        ),
        ({"rm__flags": {"run_dir": "x"}}, "launch.train_rm itself; give --config.run_dir=…"),
        (
            {"imitate__flags": {"train": "x"}},
            "train=x: the pipeline sets this flag of launch.sft",
        ),
    ],
)
def test_a_flag_that_would_be_in_vain(fields, says):
    config = get()
    with config.unlocked():
        for name, flags in fields.items():
            group, _, last = name.partition("__")
            config[group][last].update(flags)
    with pytest.raises(InputError, match=re.escape(says)):
        pipeline.make_stages(config, Path("run"))


def test_twins_are_not_started_together():
    """Side by side, both would compile the same programs."""
    names = [stage.name for stage in pipeline.make_stages(get(), Path("run"))]
    trained = [name.removeprefix("seed_0/") for name in names if name.startswith("seed_0/")]
    assert trained[1:] == [  # after the samples
        *("sft_edits", "rm_preferences", "ppo_rlhf", "rm_edits", "fine_grained"),
        *("rm_token", "fine_grained_token", "oracle"),
    ]


def test_an_arms_own_flags_win():
    config = get()
    with config.unlocked():
        config.ppo.flags.gamma = 0.5
        config.arms.oracle.gamma = 0.9
    made = {s.name: s.command for s in pipeline.make_stages(config, Path("run"))}
    assert "--config.gamma=0.9" in made["seed_0/oracle"]
    assert "--config.gamma=0.5" in made["seed_0/ppo_rlhf"]


@pytest.mark.parametrize("variant", ["tiny", "llama_7b"])
def test_tiny_models_stay_off_the_accelerators(variant, monkeypatch):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    config = get(variant, **GIVEN[variant])
    wanted = {"tiny": "cpu", "llama_7b": None}[variant]
    assert config.workers == 1 or wanted
    for stage in pipeline.make_stages(config, Path("run")):
        assert stage.environment.get("JAX_PLATFORMS") == wanted
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")  # whoever says so knows better
    for stage in pipeline.make_stages(config, Path("run")):
        assert "JAX_PLATFORMS" not in stage.environment


def test_a_run_from_before_goes_on_on_other_platforms(tmp_path):
    config = get(run_dir=str(tmp_path))
    before = json.loads(config.to_json())
    del before["platforms"]
    (tmp_path / "metrics.jsonl").touch()
    (tmp_path / "config.json").write_text(json.dumps(before))
    run_folder.check_run(config)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        *(
            (
                {f"files__{name}": "x.jsonl"},
                f"files.{name} is given to a config of the embedded",
            )
            for name in ("sft", "edits", "edits_validation", "preferences", "prompts", "test")
        ),
        ({"template": "fancy"}, "template='fancy' is not one of alpaca, chat, plain"),
        (
            {"judge": "fgrlhf_jax.tiny_world.judge:oracle_rewards"},
            "asks for tokens, which responses",
        ),
    ],
)
def test_what_a_pipeline_cannot_use(fields, says, tmp_path):
    with pytest.raises(InputError, match=re.escape(says)):
        pipeline.main(get(run_dir=str(tmp_path / "run"), **fields))
    assert list(tmp_path.iterdir()) == []


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
        if pipeline.ARMS.get(arm, pipeline.ARMS["sft_edits"]).reward:
            (home / arm).mkdir()
            (home / arm / "finished.json").write_text(json.dumps({"step": 2}))
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


def test_the_report_is_of_what_the_stages_left(folder):
    config, path = folder
    arms = {"sft": "SFT", "ppo_rlhf": "PPO"}
    leave(path, arms)
    for seed in range(2):
        table = {"edits": {"accuracy": 0.8, "se": 0.01, "n": 9}, "auroc": 0.7}
        tables = {"reward_models": {"rm": table}, "heatmaps": []}
        (path / f"seed_{seed}" / "tables.json").write_text(json.dumps(tables))
    found = report.content(
        study.gather(config, path, arms, {"rm": "RM"}) | {"seconds": {}, "commands": {}}
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
    chosen = pipeline.chosen(config)
    assert pipeline.models_of(chosen) == {}
    made = {stage.name: stage for stage in pipeline.make_stages(config, path)}
    assert made["tables:1"].needs == ("feedback:1",)
    arms = {"sft": "SFT"} | {name: one.label for name, one in chosen.items()}
    leave(path, arms)
    for seed in range(2):
        study.make_tables(config, path, seed, {})
    gathered = study.gather(config, path, arms, {}) | {"seconds": {}, "commands": {}}
    found = report.content(gathered)
    assert found["table1"].keys() == {*arms, "sft_greedy"}
    assert (found["table2"], found["heatmaps"]) == ({}, [])
    for page in (report_tables.markdown(found), report_html.page(found)):
        assert all(label in page for label in arms.values())


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


def test_a_prompt_is_the_same_whatever_is_around_it(tmp_path):
    """What is held out stays so where a file has it with a blank at its end."""
    edits = [Edit(f"write {n}", "on", f"bad {n}", f"good {n}") for n in range(200)]
    records.write_jsonl(tmp_path / "edits.jsonl", edits)
    asked = [{"instruction": f" write {n}\n", "input": "on "} for n in (*range(200), *range(9))]
    records.write_jsonl(tmp_path / "prompts.jsonl", asked)
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


def test_preferences_that_are_none(tmp_path):
    edits = [Edit(f"write {n}", "", f"bad {n}", f"good {n}") for n in range(200)]
    records.write_jsonl(tmp_path / "edits.jsonl", edits)
    preferences = [Preference(f"say {n}", "", "one", "two", 1) for n in range(60)]
    records.write_jsonl(tmp_path / "mixed.jsonl", [*preferences, edits[0]])
    files = {"edits": "edits.jsonl", "preferences": "mixed.jsonl"}
    config = get("cad", **{f"files__{name}": str(tmp_path / f) for name, f in files.items()})
    says = r"mixed.jsonl: row 61 is no preference \(output_1, output_2, preference\); give pref"
    with pytest.raises(InputError, match=says):
        study.make_data(config, tmp_path)
