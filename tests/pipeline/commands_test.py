"""The commands of a study: they parse, and run after the stages that they need."""

import json
import re
from pathlib import Path

import pytest
from processes import InThisProcess

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.pipeline.arms import LEARNERS, PREFERENCE_LEARNERS, select, selected
from fgrlhf_jax.pipeline.commands import build_stages
from fgrlhf_jax.pipeline.flags import parse_flags
from fgrlhf_jax.ppo.algorithm import ALGORITHMS
from fgrlhf_jax.runtime.files import write_json
from launch import pipeline
from launch.shared import config_files, stage_checks

RUN = Path("run")
VARIANTS = {
    "tiny": {},
    "study": {},
    "cad": {"files.edits": "edits.jsonl"},
    "smollm2": {"files.edits": "edits.jsonl", "sft.flags": "model.path=smollm2"},
    "llama_7b": {"files.edits": "edits.jsonl", "files.preferences": "preferences.jsonl"},
}


def make_config(variant="tiny", **fields):
    """The config of a variant; "__" in ``fields`` means ".", as in ``ppo__flags``."""
    overrides = VARIANTS[variant] | {name.replace("__", "."): v for name, v in fields.items()}
    words = [f"--config.{name}={value}" for name, value in overrides.items()]
    return config_files.parse(["", *words], f"configs/pipeline.py:{variant}")


def fields_of(stage) -> dict[str, str]:
    return dict(word.removeprefix("--config.").split("=", 1) for word in stage.command[2:])


def commands_of(config) -> dict[str, dict[str, str]]:
    """Per stage name the config fields that its command sets."""
    return {stage.name: fields_of(stage) for stage in build_stages(config, RUN)}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_command_parses(variant):
    stages = build_stages(make_config(variant), RUN)
    names = [stage.name for stage in stages]
    assert len(set(names)) == len({stage.output for stage in stages}) == len(names)
    for number, stage in enumerate(stages):
        assert set(stage.needs) <= set(names[:number]), stage.name
    stage_checks.check_commands(stages)


@pytest.mark.parametrize("variant", ["smollm2", "tiny"])
def test_lora_applies_to_every_command_that_starts_from_a_model(variant):
    """Not to the tiny model's SFT, from random weights; flags of a command have priority."""
    changes = {"lora__rank": 8, "rm__flags": "lora.alpha=4"}
    commands = commands_of(make_config(variant, **changes))
    trained = {name: fields for name, fields in commands.items() if "optimizer" in str(fields)}
    trained |= {name: commands[f"seed_0/{name}"] for name in ("fine_grained", "sft_edits")}
    assert {fields.get("lora.rank") for name, fields in trained.items() if name != "sft"} == {"8"}
    assert commands["sft"].get("lora.rank") == {"smollm2": "8", "tiny": None}[variant]
    assert commands["seed_0/rm_token"]["lora.alpha"] == "4"
    assert not any("lora" in str(fields) for fields in commands_of(make_config()).values())
    with pytest.raises(InputError, match=r"^lora.base_dtype=nf4: has no effect"):
        pipeline.check(make_config(variant, lora__base_dtype="nf4", lora__rank=0))


def test_arms_defined_by_flags():
    """An arm, a reward model and their dependencies."""
    config = make_config(
        run_arms="mine",
        seeds=2,
        arms__mine__learner="ppo",
        arms__mine__start="imitating",
        arms__mine__reward="from_it",
        arms__mine__flags="steps=3",
        arms__imitating__learner="sft",
        arms__imitating__flags="model.tokenizer={sft_edits}",
        reward_models__from_it__loss="token_edit",
        reward_models__from_it__start="imitating",
    )
    assert select(config) == ["sft_edits", "imitating", "from_it", "mine"]
    assert selected(config, "reward_models", select(config)) == {"from_it": "from_it"}
    pipeline.check(config)
    stages = build_stages(config, RUN)
    stage_checks.check_commands(stages)
    named = {stage.name: fields_of(stage) for stage in stages}
    mine = [named["seed_1/mine"][name] for name in ("policy", "reward_model", "steps", "seed")]
    assert mine == ["run/seed_1/imitating/export", "run/seed_1/from_it", "3", "1"]
    assert named["seed_1/from_it"]["model.path"] == "run/seed_1/imitating/export"
    assert named["seed_1/imitating"]["model.tokenizer"] == "run/seed_1/sft_edits/export"
    needs = {stage.name: stage.needs for stage in stages}
    assert {"seed_1/imitating", "seed_1/from_it"} <= {*needs["seed_1/mine"]}
    assert {f"seed_1/{name}" for name in ("sft_edits", "imitating", "mine")} < {*needs["answers:1"]}


def test_every_learner_has_its_command():
    learners = {f"arms__{each}__learner": each for each in LEARNERS[1:]}
    rewards = {f"arms__{each}__reward": "rm_token" for each in ALGORITHMS}
    config = make_config(run_arms=",".join(LEARNERS[1:]), **rewards, **learners)
    named = {s.name.removeprefix("seed_0/"): s for s in build_stages(config, RUN)}
    stage_checks.check_commands([*named.values()])
    for name in ALGORITHMS:
        assert named[name].command[:2] == ("launch.ppo", "--config=configs/ppo.py:tiny,token")
        assert fields_of(named[name])["algorithm"] == name
    for name in PREFERENCE_LEARNERS:
        assert named[name].command[:2] == ("launch.dpo", f"--config=configs/dpo.py:tiny,{name}")
        assert fields_of(named[name])["policy"] == "run/sft/export"


def test_rewards_of_several_models():
    """An ensemble and the log-ratio of two arms, in the syntax of launch.ppo."""
    config = make_config(
        run_arms="state_action,rloo",
        arms__state_action__reward="rm_edits, rm_preferences",
        arms__rloo__reward="ddpo:sft:0.5",
    )
    assert select(config) == ["rm_edits", "rm_preferences", "state_action", "ddpo", "rloo"]
    stages = build_stages(config, RUN)
    stage_checks.check_commands(stages)
    named = {stage.name.removeprefix("seed_0/"): stage for stage in stages}
    ensemble, ratio = (fields_of(named[name])["reward_model"] for name in ("state_action", "rloo"))
    assert ensemble == "run/seed_0/rm_edits,run/seed_0/rm_preferences"
    assert ratio == "run/seed_0/ddpo/export:run/sft/export:0.5"
    assert named["state_action"].command[1] == "--config=configs/ppo.py:tiny,sequence"
    assert named["rloo"].command[1] == "--config=configs/ppo.py:tiny,token"


def test_rounds_of_edits():
    named = {s.name: s for s in build_stages(make_config(run_arms="three_rounds_then_token"), RUN)}
    home = "run/seed_0"
    samples = fields_of(named["seed_0/second_round_samples"])
    assert samples["model"] == f"{home}/sft_one_round/export"
    assert samples["prompts"] == f"{home}/parts_of_3/prompts_2.jsonl"
    assert (samples["samples"], samples["greedy_last"]) == ("2", "True")
    assert "greedy_last" not in fields_of(named["seed_0/samples"])
    assert named["seed_0/second_round"].needs == ("seed_0/second_round_samples",)
    assert fields_of(named["seed_0/second_round"])["task"] == "round:0:second_round"
    for name in ("sft_three_rounds", "rm_three_rounds"):
        assert "seed_0/third_round" in named[f"seed_0/{name}"].needs
        assert fields_of(named[f"seed_0/{name}"])["train"] == ",".join(
            f"{home}/{name}_train.jsonl"
            for name in ("parts_of_3/edits_1", "second_round/edits", "third_round/edits")
        )


def test_every_command_has_the_same_prompt_fields():
    """Otherwise training and evaluation could use different templates."""
    config = make_config(template="chat", max_prompt_length=17, max_new_tokens=9)
    for stage in build_stages(config, RUN):
        fields, command = fields_of(stage), stage.command[0]
        prefix = "" if command == "launch.generate" else "data."
        if command != "launch.pipeline":
            assert fields[f"{prefix}template"] == "chat", stage.name
            assert fields[f"{prefix}max_prompt_length"] == "17", stage.name
        if command in ("launch.generate", "launch.ppo"):
            assert fields[f"{prefix}max_new_tokens"] == "9", stage.name


def test_an_arm_starts_right_after_its_reward_model():
    """Arms that share programs then do not compile them at the same time."""
    names = [name.removeprefix("seed_0/") for name in commands_of(make_config())]
    start = names.index("sft_edits")
    assert names[start : start + 8] == [
        *("sft_edits", "rm_preferences", "ppo_rlhf", "rm_edits", "fine_grained"),
        *("rm_token", "fine_grained_token", "parts_of_3"),
    ]


@pytest.mark.parametrize("variant", ["tiny", "llama_7b"])
def test_tiny_models_stay_off_the_accelerators(variant, monkeypatch):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    config = make_config(variant)
    platform = {"tiny": "cpu", "llama_7b": None}[variant]
    assert config.workers == 1 or platform
    stages = build_stages(config, RUN)
    assert {stage.environment.get("JAX_PLATFORMS") for stage in stages} == {platform}
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")  # the user's choice has priority
    assert not any("JAX_PLATFORMS" in s.environment for s in build_stages(config, RUN))


def test_stages_that_run_at_once_share_the_cores(monkeypatch):
    monkeypatch.setattr("fgrlhf_jax.pipeline.commands.count_cores", lambda: 8)
    for workers, threads in ((1, None), (3, "2"), (16, "1")):
        stages = build_stages(make_config(workers=workers), RUN)
        assert {s.environment.get("NPROC") for s in stages if s.name != "sft"} == {threads}
        (alone,) = (stage for stage in stages if stage.name == "sft")
        assert "NPROC" not in alone.environment


# --- flags of the commands ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "flags"),
    [
        ("", {}),
        ("steps=20,kl.coef=0.1", {"steps": "20", "kl.coef": "0.1"}),
        ("mesh=1,-1,1,steps=2", {"mesh": "1,-1,1", "steps": "2"}),  # a comma of the value
        ("judge=a:b=c", {"judge": "a:b=c"}),
        ("steps=1,steps=2", {"steps": "2"}),
    ],
)
def test_flags_are_plain_text(text, flags):
    assert parse_flags(text) == flags


def test_flags_override_defaults():
    config = make_config(
        run_arms="fine_grained,fine_grained_token,oracle",
        ppo__flags="kl.coef=0.2,gamma=0.5,missing_eos=subtract",
        arms__oracle__flags="gamma=0.9,steps=40",
        rm__flags="batch_size=16,steps=7",
    )
    commands = commands_of(config)
    token, oracle = commands["seed_0/fine_grained_token"], commands["seed_0/oracle"]
    names = ("eval_every", "kl.coef", "gamma", "steps", "missing_eos")
    assert [token.get(n) for n in names] == ["5", "0.2", "0.5", None, "subtract"]
    assert [oracle.get(n) for n in names] == ["5", "0.2", "0.9", "40", "subtract"]
    config.arms.oracle.flags = "missing_eos=replace"
    assert commands_of(config)["seed_0/oracle"]["missing_eos"] == "replace"
    untouched = commands_of(make_config(run_arms="oracle"))["seed_0/oracle"]
    assert untouched["missing_eos"] == "none"
    rm = commands["seed_0/rm_edits"]
    assert [rm[n] for n in ("batch_size", "steps", "patience")] == ["16", "7", "3"]


REFUSED = [
    # No flags.
    ({"ppo__flags": "steps"}, "ppo.flags=steps: 'steps' is no flag; write NAME=VALUE"),
    ({"ppo__flags": "--config.steps=1"}, "is no flag"),
    # Flags that the pipeline sets itself.
    ({"ppo__flags": "data.max_new_tokens=9"}, "this flag of launch.ppo itself; give --config.max_"),
    ({"arms__ppo_rlhf__flags": "prompts=mine"}, "prompts=mine: the pipeline sets this flag"),
    ({"sft__defaults": "data.template=chat"}, "launch.sft itself; give --config.template"),
    # Flags that their command refuses.
    ({"arms__ppo_rlhf__flags": "stepps=1"}, "stage seed_0/ppo_rlhf: --config.stepps: there is"),
    ({"rm__flags": "center_weight=-1"}, "stage seed_0/rm_preferences: center_weight=-1"),
    # Invalid folders, files, judges and arms.
    ({"run_dir": ""}, "run_dir is empty; give --config.run_dir=FOLDER"),
    ({"files__edits": "x.jsonl"}, "files.edits is given to a config of the embedded"),
    ({"judge": "fgrlhf_jax.tiny_world.judge:oracle_rewards"}, "takes tokens, which"),
    ({"run_arms": "ppo"}, "run_arms: 'ppo' is not one of"),
    (
        {"run_arms": "ppo_rlhf", "embedded": False, "files__edits": "x"},
        "reward_models.rm_preferences.data=preferences: give files.preferences",
    ),
    ({"run_arms": "oracle", "embedded": False}, "the embedded world's only"),
    # Invalid definitions of arms.
    ({"arms__oracel__flags": "steps=1"}, "did you mean arms.oracle?"),
    ({"arms__mine__learner": "dppo"}, "arms.mine.learner='dppo': is not one of"),
    ({"arms__mine__learner": "sft"}, "arms.mine: is not trained; add it to run_arms=sft_edits"),
    ({"arms__answers__learner": "sft"}, "arms.answers: the name is taken or not of letters"),
    ({"arms__a__learner": "sft", "rounds__a__policy": "a"}, "there is arms.a too; rename one"),
    *(
        ({"run_arms": "sft_edits", f"arms__sft_edits__{name}": value}, message)
        for name, value, message in (
            ("start", "mine", "arms.sft_edits.start: 'mine' is not one of sft, "),
            ("start", "sft_edits", "sft_edits → sft_edits: each depends on the next, in a"),
            ("data", "fifth_round", "arms.sft_edits.data: 'fifth_round' is not one of edits, "),
            ("data", "edits,edits_1_of_2", "edits has edits_1_of_2 already"),
            ("data", "edits_3_of_2", "arms.sft_edits.data=3_of_2: is no part of the prompts"),
            ("reward", "rm_token", "arms.sft_edits.reward=rm_token: sft learns from data"),
            ("learner", "ppo", "arms.sft_edits.reward is empty; ppo needs"),
            ("flags", "model.tokenizer={mine}", "arms.sft_edits.flags: 'mine' is not one of sft"),
        )
    ),
    ({"arms__sft_one_round__data": "second_round", "run_arms": "sft_two_rounds"}, "in a circle"),
    *(
        ({"run_arms": "grpo", "arms__grpo__reward": reward}, f"arms.grpo.reward{message}")
        for reward, message in (
            (",", " is empty; grpo needs a reward model's name"),
            ("rm_edits,rm_token", "=rm_edits,rm_token: mixes token and sequence rewards"),
            ("rm_token,oracle", ": 'oracle' is not one of rm_action"),
            ("ddpo:sft:x", "=ddpo:sft:x: is not POLICY:REFERENCE"),
            ("rm_token:sft", ": 'rm_token' is not one of sft, "),
        )
    ),
    ({"reward_models__rm_token__loss": ""}, "reward_models.rm_token.loss is empty; give"),
]


def test_a_folder_accepts_new_arms_but_no_change_of_finished_stages(monkeypatch, tmp_path):
    started, outputs = [], {}

    def leave_output(command) -> None:
        stage, output = outputs[command]
        started.append(stage)
        write_json(output, [])

    monkeypatch.setattr(pipeline.stages, "Starter", lambda _: InThisProcess(leave_output))
    monkeypatch.setattr(pipeline, "write_report", lambda *_: "")

    def start(**fields) -> list[str]:
        """Runs the pipeline and returns the names of the stages that ran."""
        started.clear()
        config = make_config(**{"run_dir": str(tmp_path)} | fields)
        planned = build_stages(config, Path(config.run_dir))
        outputs.update({stage.command: (stage.name, stage.output) for stage in planned})
        pipeline.main(config)
        return [*started]

    assert "answers:0" in start(run_arms="sft_edits,fine_grained")
    assert start(run_arms="sft_edits", title="another", heatmaps=3) == []
    mine = {"arms__mine__learner": "dpo", "arms__mine__flags": "steps=2"}
    more = start(run_arms="sft_edits,fine_grained,fine_grained_token,mine", **mine)
    trained = {f"seed_0/{name}" for name in ("rm_token", "fine_grained_token", "mine")}
    assert {*more} == {*trained, "tables:0", "answers:0"}
    assert "seed_0/sft_two_rounds" in start(run_arms="sft_two_rounds")
    assert start(run_arms="sft_edits,fine_grained,fine_grained_token,sft_two_rounds") == []
    for fields, message in (
        ({"rm__flags": "steps=7"}, "rm.flags (saved '', now 'steps=7'): "),
        ({"rm__flags": "steps=7"}, "stage seed_0/rm_edits was made with steps=600, not with st"),
        ({"world__rates__repair": 0.5}, "stage data was made with world.rates.repair=0.8, not"),
        ({"judge": "fgrlhf_jax.feedback.judges.vader:judge"}, "judge (saved 'fgrlhf_jax.tiny"),
        ({"test_prompts": 9, "seeds": 2}, "stage answers:0 was made with test_prompts=512, not"),
    ):
        before = (tmp_path / "config.json").read_text()
        with pytest.raises(InputError, match=re.escape(message)):
            start(run_arms="sft_edits,fine_grained", **fields)
        assert (tmp_path / "config.json").read_text() == before
        assert started == []
    # A user's judge is identified by its file, except in folders of an earlier version.
    judge, own = tmp_path / "my_judge.py", {"judge": "my_judge:judge"}
    own |= {"run_arms": "sft_edits,oracle", "run_dir": str(tmp_path / "own")}
    monkeypatch.chdir(tmp_path)
    judge.write_text("def judge(prompts, responses): return [0.0] * len(prompts)\n")
    assert {"seed_0/oracle", "answers:0"} <= {*start(**own)}
    judge.write_text("def judge(prompts, responses): return [1.0] * len(prompts)\n")
    with pytest.raises(InputError, match=r"seed_0/oracle was made with judge\.file=\w{16}, not "):
        start(**own)
    # The config stays unchanged, so that the earlier version can finish the run.
    marker = json.loads((tmp_path / "stages" / "data.json").read_text())
    del marker["needs"]
    write_json(tmp_path / "stages" / "data.json", marker)
    with pytest.raises(InputError, match=r"^run_dir=.* holds a run of an earlier version"):
        start(run_arms="sft_edits", title="a third")
    assert (tmp_path / "config.json").read_text() == before


@pytest.mark.parametrize(("fields", "message"), REFUSED)
def test_bad_input_is_refused_before_anything_runs(monkeypatch, tmp_path, fields, message):
    monkeypatch.delattr(pipeline.stages, "run")
    with pytest.raises(InputError, match=re.escape(message)):
        pipeline.main(make_config(**{"run_dir": str(tmp_path / "run")} | fields))
    assert list(tmp_path.iterdir()) == []
