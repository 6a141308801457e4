"""launch.compare: every learner gets the same model, edits and budget."""

import re
from pathlib import Path

import ppo_cases
import pytest

from configs import compare
from fgrlhf_jax.data.records import Edit
from fgrlhf_jax.errors import InputError
from fgrlhf_jax.pipeline.commands import build_stages
from fgrlhf_jax.runtime.files import write_jsonl
from fgrlhf_jax.tiny_world.words import make_tokenizer
from launch import compare as command
from launch import pipeline
from launch.shared import budget, config_files, stage_checks

RUN = Path("run")


def study_of(*words: str, variant: str = "tiny", edits: str = "edits.jsonl"):
    """The config of launch.pipeline from a command line of launch.compare."""
    fields = [f"--config.edits={edits}", "--config.model=folder"] if edits else []
    fields += [f"--config.{word}" for word in words]
    config = config_files.parse(["", *fields], f"configs/compare.py:{variant}")
    return compare.to_study(config, "chat" if edits else "")


def stages_of(study) -> dict[str, dict[str, str]]:
    """Per training stage the config fields that its command sets."""
    planned = budget.limit_stages(study, build_stages(study, RUN))
    stage_checks.check_commands(planned)
    names = [[word[9:].partition("=")[0] for word in stage.command] for stage in planned]
    assert all(len(each) == len({*each}) for each in names)
    return {
        stage.name.removeprefix("seed_0/"): dict(
            word.removeprefix("--config.").split("=", 1) for word in stage.command[2:]
        )
        for stage in planned
    }


@pytest.mark.parametrize("variant", compare.VARIANTS)
def test_every_arm_starts_from_the_model_with_the_same_edits(variant):
    study = study_of("lora.rank=4", variant=variant)
    pipeline.check(study)
    made = stages_of(study)
    assert "sft" not in made
    arms = {name: made[name] for name in compare.ARMS.split(",")}
    after_edits = dict.fromkeys(("sft_longer", "edits_then_token"), "run/seed_0/sft_edits/export")
    for name, fields in arms.items():
        start = after_edits.get(name, "folder")
        assert fields.get("policy", fields.get("model.path")) == start
        assert (fields["data.template"], fields["lora.rank"]) == ("chat", "4")
        if "reward_model" not in fields:
            assert fields["train"] == "run/seed_0/feedback/edits_train.jsonl"
    assert arms["state_action"]["reward_model"] == arms["edits_then_token"]["reward_model"]
    # PPO's default drops long prompts, which other learners truncate.
    assert arms["state_action"]["data.overlong"] == "truncate"


def test_without_edits_it_uses_the_embedded_world():
    study = study_of(edits="")
    pipeline.check(study)
    assert (study.embedded, study.judge_name, study.template) == (True, "gold", "plain")
    assert {"sft", "samples"} <= stages_of(study).keys()
    own = study_of("judge=mine:judge", edits="")
    assert (own.judge, own.judge_name) == ("mine:judge", "")


@pytest.mark.parametrize("words", [["budget_amount=100"], ["budget_amount=8", "budget=seconds"]])
def test_budgets_are_equal(words):
    """A step of PPO counts as its number of updates; flags of an arm have priority."""
    made = stages_of(
        study_of(*words, "arms.sft_longer.flags=steps=7", "ppo.flags=minibatch_size=16")
    )
    names = ("sft_edits", "rm_state_action", "state_action", "sft_longer")
    steps = [made[name]["steps"] for name in names]
    limits = [made[name].get("max_seconds") for name in names]
    if len(words) == 1:
        assert steps == ["100", "100", "12", "7"]  # 2 epochs of 64 / 16 minibatches
        assert limits == [None] * 4
    else:
        assert steps == [str(budget.MAX_STEPS)] * 3 + ["7"]
        assert limits == ["8.0"] * 4
        assert {made[name]["optimizer.schedule"] for name in names} == {"constant"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["edits=x.jsonl"], "model is empty; give --config.edits=FILE and --config.model=FOLDER"),
        (["model=x"], "edits is empty; give --config.edits=FILE and --config.model=FOLDER"),
        (["budget_amount=0"], "budget_amount=0: is not a number of updates; give one above 0"),
    ],
)
def test_bad_input_is_refused_before_anything_runs(monkeypatch, tmp_path, words, message):
    monkeypatch.delattr(pipeline.stages, "run")
    fields = [f"--config.{word}" for word in (*words, f"run_dir={tmp_path / 'run'}")]
    with pytest.raises(InputError, match=re.escape(message)):
        command.main(config_files.parse(["", *fields], command.CONFIG))
    fields = ["--config=configs/compare.py:cad", *fields[-1:]]
    with pytest.raises(InputError, match=r"edits is empty; .* \(only tiny has its own\)"):
        command.main(config_files.parse(["", *fields], command.CONFIG))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["template=alpaca"], r"was fine-tuned with the template plain, not alpaca; give --config"),
        ([], r"stage seed_0/sft_edits: batch_size=64 needs 64 rows, and training has 63"),
        (
            ["run_arms=state_action", "rm.flags=batch_size=16"],
            "seed_0/state_action: rollout_batch_size=64 needs 64 rows, and training has 63",
        ),
        (["run_arms=dpo", "dpo.flags=batch_size=99"], r"stage seed_0/dpo: batch_size=99 .* has 63"),
    ],
)
def test_too_few_rows_are_refused_before_any_training(monkeypatch, tmp_path, words, message):
    """With one row fewer than the largest batch."""
    monkeypatch.delattr(pipeline.stages, "run")
    policy = ppo_cases.save_policy(tmp_path / "policy", template="plain")
    edits = [Edit(f"name fruit {n}", "", "a b c", "a b d") for n in range(70)]
    write_jsonl(tmp_path / "edits.jsonl", edits)
    fields = [f"edits={tmp_path / 'edits.jsonl'}", f"model={policy}", "max_prompt_length=40"]
    fields += [f"run_dir={tmp_path / 'run'}", *words]
    config = config_files.parse(["", *(f"--config.{word}" for word in fields)], command.CONFIG)
    with pytest.raises(InputError, match=message):
        command.main(config)
    assert not (tmp_path / "run").exists()


def test_a_folder_with_data_does_not_need_the_input_files(tmp_path):
    config = config_files.load("configs/pipeline.py:cad")
    config.files.edits, config.run_dir, config.run_arms = "gone.jsonl", str(tmp_path), "sft_edits"
    config.imitate.flags = "batch_size=64"
    write_jsonl(tmp_path / "data" / "edits_train.jsonl", [{}] * 63)
    write_jsonl(tmp_path / "stages" / "data.json", [{}])
    planned = build_stages(config, tmp_path)
    with pytest.raises(InputError, match=r"sft_edits: batch_size=64 needs 64 .* training has 63"):
        stage_checks.check_data(config, planned)
    write_jsonl(tmp_path / "data" / "edits_train.jsonl", [{}] * 64)
    stage_checks.check_data(config, planned)


def test_truncation_and_few_test_prompts_are_reported_first():
    edits = [Edit("name a fruit " * (1 + 9 * (n % 2)), f"{n}", "a", "b " * 30) for n in range(100)]
    tokenizer = make_tokenizer()

    def lines(*words: str) -> str:
        config = config_files.parse(["", *words], command.CONFIG)
        return "\n".join(command.describe(config, edits, tokenizer, "plain"))

    text = lines()
    for line in ("100 edits; ", "max_prompt_length=12: 50 % of", "max_new_tokens=22: 100 % of"):
        assert line in text
    assert "of 100 prompts about 5 are held out for the report" in text
    wide = ("--config.max_prompt_length=99", "--config.max_new_tokens=99")
    assert len(lines(*wide, "--config.files.test=prompts.jsonl").splitlines()) == 1
    with pytest.raises(InputError, match=r"template 'alpaca' alone .*compare\.py:tiny\|cad"):
        command.describe(config_files.load(command.CONFIG), edits, tokenizer, "alpaca")
