"""The tasks between a study's commands: disjoint data sets, answers, tables, and the report."""

import itertools
import json
import weakref
from unittest import mock

import ppo_cases
import pytest
import tiny_cases

from fgrlhf_jax.data import sources
from fgrlhf_jax.data.records import Edit, Preference
from fgrlhf_jax.data.split import split
from fgrlhf_jax.errors import InputError
from fgrlhf_jax.pipeline import datasets, tasks
from fgrlhf_jax.pipeline.arms import BASE, select, selected
from fgrlhf_jax.pipeline.commands import build_stages
from fgrlhf_jax.pipeline.results import gather
from fgrlhf_jax.report.content import build_report, to_json
from fgrlhf_jax.report.markdown import to_markdown
from fgrlhf_jax.report.page import to_html
from fgrlhf_jax.runtime.files import write_json, write_jsonl
from fgrlhf_jax.tiny_world.datasets import make_feedback, make_instructions
from fgrlhf_jax.tiny_world.judge import gold_score
from launch.shared import config_files

SIZES = {"sft": 40, "feedback": 60, "ppo": 20, "validation": 20, "test": 30}


def make_config(variant="tiny", **fields):
    config = config_files.load(f"configs/pipeline.py:{variant}")
    with config.unlocked():
        config.update_from_flattened_dict({k.replace("__", "."): v for k, v in fields.items()})
    return config


def prompts_of(rows) -> set[str]:
    return {row.instruction.strip() for row in rows}


def write_samples(path, prompts) -> None:
    """A file of samples with two responses to each prompt."""
    pairs = itertools.product(prompts, make_instructions(2, "feedback", 10))
    write_json(path, [{"instruction": p.instruction, "output": r.output} for p, r in pairs])


def assert_disjoint(*sets) -> None:
    for first, second in itertools.combinations(map(prompts_of, sets), 2):
        assert not first & second


def test_a_policy_with_another_template_is_refused(tmp_path):
    write_jsonl(tmp_path / "data" / "test.jsonl", [{"instruction": "a", "output": "b"}])
    write_json(tmp_path / "config.json", {"fgrlhf": {"data": {"template": "plain"}}})
    with pytest.raises(InputError, match="with the template plain, not alpaca"):
        tasks.make_answers(make_config(template="alpaca"), tmp_path, 0, {"sft": str(tmp_path)})


def test_policies_are_loaded_one_at_a_time_and_answer_once(monkeypatch, tmp_path):
    loaded, paths, config = [], [], make_config()
    write_jsonl(tmp_path / "data" / "test.jsonl", make_instructions(1, "test", 0))

    class Model:
        def __init__(self, path, template, lazy=False):
            if not lazy:
                assert not any(model() for model in loaded)
                loaded.append(weakref.ref(self))
                paths.append(path)

    def respond(model, prompts, sampling_params, **options):
        return [{"output": "b", "finished": True} for _ in prompts]

    monkeypatch.setattr(tasks.LanguageModel, "load", Model)
    monkeypatch.setattr(tasks, "generate_responses", respond)
    monkeypatch.setattr(tasks.hf_load, "trained_template", lambda path: "")
    monkeypatch.setattr(tasks, "compare_with_start", lambda *args: {"kl": 1.0})
    write_jsonl(tmp_path / "seed_0" / "feedback" / "edits_test.jsonl", make_feedback(1, 0)[0])
    policies = {"oracle": "a", "ppo_rlhf": "b", "sft": "c"}
    tasks.make_answers(config, tmp_path, 0, policies)
    answers = sorted(path.stem for path in (tmp_path / "seed_0" / "answers").iterdir())
    assert answers == ["oracle", "ppo_rlhf", "reference", "sft"]
    answers = json.loads((tmp_path / "seed_0" / "answers" / "oracle.json").read_text())
    assert answers["sampled"][0]["words_to_change"] > 1
    assert answers["kl"] == 1
    tasks.make_answers(config, tmp_path, 0, {"dpo": "d"} | policies)
    with monkeypatch.context() as patch:  # as in a folder of an earlier version, without it
        patch.setattr(tasks.user_function, "file_digests", lambda fields: {"judge.file": "0123"})
        tasks.make_answers(config, tmp_path, 0, policies)
    assert paths == ["a", "b", "c", "d"]
    config.max_new_tokens = 3
    tasks.make_answers(config, tmp_path, 0, policies)
    assert paths[4:] == ["a", "b", "c"]


def test_a_policy_is_compared_with_the_start(monkeypatch, tmp_path):
    """Its KL is the mean log-ratio over its samples; the KL of the start is 0."""
    tiny_cases.one_device(monkeypatch)
    policy, start = (
        tasks.LanguageModel.load(
            ppo_cases.save_policy(tmp_path / f"{seed}", seed=seed, template="plain")
        )
        for seed in (0, 1)
    )
    config, edits = make_config(), make_feedback(6, 0)[0]
    prompts = make_instructions(8, "test", 0)
    rows = [{"output": row.output, "finished": n % 2 == 0} for n, row in enumerate(prompts)]
    result = tasks.compare_with_start(config, policy, start, edits, prompts, rows)
    texts, ended = ([row[name] for row in rows] for name in ("output", "finished"))
    totals = [
        sum(x.sum() for x in tasks.correction.response_logprobs(model, prompts, texts, ended))
        for model in (policy, start)
    ]
    assert result["kl"] == pytest.approx((totals[0] - totals[1]) / 8, rel=1e-4)
    assert result["correction_accuracy"] == result["corrections"]["sampled"]["mean"]
    config = make_config(fluency_model=str(start.path))
    fluency = tasks.measure_fluency(config, prompts, {"sampled": rows})["sampled"]
    assert fluency == pytest.approx(tasks.correction.fluency(start, prompts, texts), abs=1e-5)
    itself = tasks.compare_with_start(config, start, start, edits, prompts, rows)
    assert itself["kl"] == itself["corrections"]["gain"]["sampled"]["mean"] == 0


# --- the embedded world ------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """The files of a finished run of two seeds, without models."""
    config = make_config(seeds=2, **{f"world__{name}": size for name, size in SIZES.items()})
    datasets.make_data(config, tmp_path)
    prompts = sources.read(str(tmp_path / "data" / "feedback.jsonl"))
    for seed in range(2):
        write_samples(tmp_path / f"seed_{seed}" / "samples.json", prompts)
        datasets.make_feedback(config, tmp_path, seed)
    return config, tmp_path


def test_data_and_feedback_share_no_prompt_and_leak_no_label(folder):
    _, path = folder
    sets = {name: sources.read(str(path / "data" / f"{name}.jsonl")) for name in datasets.SETS}
    assert {name: len(rows) for name, rows in sets.items()} == SIZES
    assert_disjoint(*sets.values())
    feedback = path / "seed_0" / "feedback"
    for kind, record in {"edits": Edit, "preferences": Preference}.items():
        paths = [feedback / f"{kind}_{part}.jsonl" for part in ("train", "validation", "test")]
        parts = [sources.read(str(path)) for path in paths]
        assert all(isinstance(row, record) for part in parts for row in part)
        assert_disjoint(*parts)
    for row in sources.read(str(feedback / "gold_test.jsonl")):
        scores = [gold_score(row.instruction, text) for text in (row.output_1, row.output_2)]
        assert row.preference == (1 if scores[0] > scores[1] else 2)
    assert json.loads((feedback / "counts.json").read_text())["edits_train"] > 0


def test_rounds_edit_other_parts_of_the_prompts(tmp_path):
    """Parts are disjoint and exclude test prompts; simulated people make new mistakes."""
    sizes = {f"world__{name}": size for name, size in SIZES.items()} | {"world__feedback": 300}
    config = make_config(run_arms="sft_three_rounds", **sizes)
    home = tmp_path / "seed_0"
    datasets.make_data(config, tmp_path)

    write_samples(home / "samples.json", sources.read(str(tmp_path / "data" / "feedback.jsonl")))
    datasets.make_feedback(config, tmp_path, 0)
    datasets.make_parts(config, tmp_path, 0, 3)
    paths = [*(home / "feedback").glob("*.jsonl"), *(home / "parts_of_3").glob("*.jsonl")]
    sets = {path.stem: sources.read(str(path), need="prompts") for path in paths}
    first = sets["edits_1_train"] + sets["edits_1_validation"]
    rounds = []
    for part, name in ((2, "second_round"), (3, "third_round")):
        write_samples(home / f"{name}_samples.json", sets[f"prompts_{part}"])
        datasets.make_round(config, home, 0, name)
        parts = ("train", "validation")
        train, held_out = (sources.read(str(home / name / f"edits_{p}.jsonl")) for p in parts)
        assert_disjoint(train, held_out)
        assert prompts_of(held_out) <= prompts_of(sets["edits_validation"])
        rounds.append(train + held_out)
    assert_disjoint(first, *rounds, sets["edits_test"])
    assert prompts_of(first) <= prompts_of(sets["edits_train"] + sets["edits_validation"])
    total = len(first) + sum(map(len, rounds))
    assert total == pytest.approx(len(sets["edits_train"]) + len(sets["edits_validation"]), rel=0.1)


def write_runs(path, arms) -> None:
    """Writes answers of every arm and seed, and learning curves of arms of PPO."""
    rewarded = [name for name, arm in make_config().arms.items() if arm.reward]
    for seed, arm in itertools.product(range(2), [*arms, "reference"]):
        answers = [
            {"output": f"{arm} {n} of all", "length": 5, "finished": n != 3}
            | {"instruction": f"say {arm} {n} of all" if n < 3 else "say"}
            | {"score": (n % 7) / 7 + (arm == "ppo_rlhf")}
            for n in range(30)
        ]
        home = path / f"seed_{seed}"
        measured = {"kl": 1.5, "correction_accuracy": 0.7}
        both = {"sampled": answers, "greedy": answers}
        write_json(home / "answers" / f"{arm}.json", both | measured)
        if arm in rewarded:
            figures = {"validation/reward": 0.2, "validation/length": 5.0}
            figures |= {"validation/unfinished": 0.0, "time/step": 2.0}
            by_step = ({"validation/kl": 0.1 * n, "validation/score": 0.1 * n} for n in range(4))
            rows = [{"step": n, **row, **figures} for n, row in enumerate(by_step)]
            write_jsonl(home / arm / "metrics.jsonl", rows)
            write_json(home / arm / "finished.json", {"step": 2})


def test_the_report_reads_the_files_of_all_stages(folder):
    config, path = folder
    arms = {"sft": "SFT", "ppo_rlhf": "PPO"}
    write_runs(path, arms)
    table = {"edits": {"accuracy": 0.8, "se": 0.01, "n": 9}, "auroc": 0.7}
    side = {"tokens": ["a"], "rewards": [1.0]}
    heatmap = {"by": {"rm": side, "of_another_arm": side, "oracle": side}, "gold": None}
    heatmap |= {"prompt": "say", "response": "a"}
    for seed in range(2):
        tables = {"reward_models": {"rm": table, "of_another_arm": table}, "heatmaps": [heatmap]}
        write_json(path / f"seed_{seed}" / "tables.json", tables)
    study = gather(config, path, arms, {"rm": "RM"}) | {"seconds": {}, "commands": {}}
    content = build_report(study)
    assert content["heatmaps"][0]["by"].keys() == {"rm", "oracle"}
    row = content["table1"]["ppo_rlhf"]
    assert row["win_rate"] == row["win_rate_greedy_start"] == 1.0
    assert content["table1"]["sft"]["greedy_win_rate_greedy_start"] == 0.5
    assert content["judge"] == "gold"
    config.judge_name = ""
    assert gather(config, path, arms, {})["judge"] == "judge:judge"
    assert (row["kl"], row["correction_accuracy"]) == (1.5, 0.7)
    assert row["unfinished"] == pytest.approx(1 / 30)
    assert (row["repeated"], row["copied"]) == (0, pytest.approx(3 / 30))
    assert row["same_phrase"] == pytest.approx(1 / 30)
    assert content["table2"]["rm"]["edits"]["accuracy"] == pytest.approx(0.8)
    assert content["table3"]["ppo_rlhf"]["seconds_per_step"] == pytest.approx(2.0)
    assert content["curves"]["ppo_rlhf"]["seconds"] == pytest.approx([2.0, 4.0, 6.0, 8.0])
    assert len(content["samples"]) == 30
    prompt = sources.read(str(path / "data" / "test.jsonl"))[1].instruction
    won = {"text": "ppo_rlhf 1 of all", "score": pytest.approx(8 / 7), "outcome": 1.0}
    assert content["samples"][1]["prompt"] == prompt
    assert content["samples"][1]["by"]["ppo_rlhf"] == won
    json.loads(to_json(content))


@pytest.mark.parametrize("run_arms", ["oracle,sft_edits", ""])
def test_without_reward_models(folder, run_arms):
    config, path = folder
    config.run_arms = run_arms
    names = select(config)
    assert selected(config, "reward_models", names) == {}
    stages = {stage.name: stage for stage in build_stages(config, path)}
    assert stages["tables:1"].needs == ("feedback:1", "sft")
    labels = {BASE: "SFT"} | selected(config, "arms", names)
    write_runs(path, labels)
    for seed in range(2):
        tasks.make_tables(config, path, seed, {})
    content = build_report(gather(config, path, labels, {}) | {"seconds": {}, "commands": {}})
    assert content["table1"].keys() == labels.keys()
    assert (content["table2"], content["heatmaps"]) == ({}, [])
    for page in (to_markdown(content), to_html(content)):
        assert all(label in page for label in labels.values())


def test_tables_keep_the_reward_models_of_other_arms(folder, monkeypatch):
    """tables.json keeps models of earlier starts until they are deleted."""
    config, path = folder
    monkeypatch.setattr(tasks, "RewardModel", mock.MagicMock())
    monkeypatch.setattr(tasks, "evaluate", lambda *args, **options: {})

    def models_after(run_arms: str) -> list[str]:
        fields = {"run_arms": run_arms, "heatmaps": 0, "task": "tables:0", "run_dir": str(path)}
        config.update(fields)
        write_json(path / "config.json", json.loads(config.to_json()))
        tasks.run_task(config)
        return [*json.loads((path / "seed_0" / "tables.json").read_text())["reward_models"]]

    for name in ("rm_edits", "rm_token"):
        write_json(path / "seed_0" / name / "eval.json", {})
    assert models_after("fine_grained") == ["rm_edits"]
    assert models_after("fine_grained_token") == ["rm_token", "rm_edits"]
    (path / "seed_0" / "rm_edits" / "eval.json").unlink()
    assert models_after("fine_grained_token") == ["rm_token"]


# --- files of the user -------------------------------------------------------------------------

EDITS = [Edit(f"write {n}", "", f"bad {n}", f"good {n}") for n in range(200)]


@pytest.fixture
def make_sets(tmp_path):
    def make_sets(**files) -> dict[str, list]:
        """The sets of ``data/`` and ``feedback/`` from files with these rows."""
        fields = {}
        for name, rows in files.items():
            write_jsonl(tmp_path / f"{name}.jsonl", rows)
            fields[f"files__{name}"] = str(tmp_path / f"{name}.jsonl")
        config = make_config("cad", **fields)
        datasets.make_data(config, tmp_path)
        datasets.make_feedback(config, tmp_path, 0)
        paths = [*(tmp_path / "data").iterdir(), *tmp_path.glob("seed_0/feedback/*.jsonl")]
        return {path.stem: sources.read(str(path), need="prompts") for path in paths}

    return make_sets


def test_the_users_files_are_split_by_prompt(make_sets):
    held_out = [Edit(f"write {n}", "", f"bad {n}", f"fine {n}") for n in range(8)]
    held_out += [Edit(f"say {n}", "", f"bad {n}", f"good {n}") for n in range(20)]
    sets = make_sets(edits=EDITS[:60], edits_validation=held_out)
    train = sets["edits_train"]
    responses = {text for edit in train for text in (edit.original, edit.edited)}
    assert {row.output for row in sets["sft"]} == responses
    assert_disjoint([*sets["sft"], *sets["ppo"], *train], sets["validation"], sets["test"])
    with pytest.raises(InputError, match="rows have a prompt that is held out, perhaps the"):
        make_sets(edits=[Edit("Improve.", "", edit.original, edit.edited) for edit in EDITS])


def test_whitespace_around_a_prompt_is_ignored(make_sets):
    """A held-out prompt stays held out if another file has it with whitespace around it."""
    prompts = [{"instruction": f" write {n}\n"} for n in (*range(200), *range(9))]
    sets = make_sets(edits=EDITS, prompts=prompts, test=prompts[:100])
    assert sets["validation"]
    assert len(sets["test"]) == 100
    assert_disjoint(sets["ppo"], sets["validation"], sets["test"])
    instructions = [row.instruction for row in sets["ppo"]]
    assert len(instructions) == len(set(instructions))
    assert {*instructions} == {f" {edit.instruction}\n" for edit in sets["edits_train"]}


def test_a_round_waits_for_people(make_sets, tmp_path):
    """The error names the commands; the round continues once the file exists."""
    make_sets(edits=EDITS)
    config, home = make_config("cad", run_arms="sft_two_rounds"), tmp_path / "seed_0"
    config.files.edits = str(tmp_path / "edits.jsonl")
    datasets.make_feedback(config, tmp_path, 0)
    datasets.make_parts(config, tmp_path, 0, 3)
    file = home / "second_round" / "edits.jsonl"
    message = f"{file}: does not exist; have the responses edited, python -m launch.collect_edits"
    with pytest.raises(InputError, match=message):
        datasets.make_round(config, home, 0, "second_round")
    prompts = sources.read(str(home / "parts_of_3" / "prompts_2.jsonl"), need="prompts")
    write_jsonl(file, [Edit(row.instruction, "", "bad", "good") for row in prompts])
    datasets.make_round(config, home, 0, "second_round")
    parts = ("train", "validation")
    rounds = [sources.read(str(file.with_name(f"edits_{part}.jsonl"))) for part in parts]
    assert sum(map(len, rounds)) == len(prompts)
    write_jsonl(file, [Edit(rounds[0][0].instruction, "", "bad", "good")])
    with pytest.raises(InputError, match="no edit is on a prompt of validation"):
        datasets.make_round(config, home, 0, "second_round")


def test_an_already_split_file_is_split_again(make_sets):
    """A split by the same hash would hold out no prompt of the remaining ones."""
    left, _ = split(EDITS, 0.15, 0)
    sets = make_sets(edits=left)
    assert len(sets["edits_validation"] + sets["edits_test"]) == round(0.1 * len(left))


def test_rows_of_another_kind_are_refused(make_sets):
    message = r"edits.jsonl: row 1 is no edit \(original, edited\); give edits"
    with pytest.raises(InputError, match=message):
        make_sets(edits=[{"instruction": "a", "output": "b"}])
    message = r"row 2 is no preference \(output_1, output_2, preference\); give preferences"
    with pytest.raises(InputError, match=message):
        make_sets(edits=EDITS, preferences=[Preference("say", "", "1", "2", 1), EDITS[0]])
