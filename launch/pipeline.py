"""The whole method: supervised fine-tuning, feedback, reward models, PPO, win rates, a report.

python -m launch.pipeline [--config=configs/pipeline.py:tiny|study|cad|llama_7b]
                          [--config.run_dir=DIR] [--config.seeds=N] [--config.FIELD=VALUE …]

--config.ppo.flags.FIELD=VALUE (and sft, rm, imitate) is a flag of that command, one of an arm is
--config.arms.ARM.FIELD=VALUE, which wins over that of ppo.flags.
Every stage is a command of its own, joined to the others by files in run_dir; those that are done
are skipped, so the same command goes on where it stopped. What each one says is in run_dir/logs.
At the end: report.json, report.md and report.html.
"""

import dataclasses
import importlib
import json
import os
import time
from pathlib import Path
from typing import NamedTuple

import jax
from ml_collections import ConfigDict

from fgrlhf_jax.data import templates
from fgrlhf_jax.errors import InputError
from fgrlhf_jax.pipeline import stages
from fgrlhf_jax.pipeline import tasks as study
from fgrlhf_jax.pipeline.stages import Stage
from fgrlhf_jax.report import content as report
from fgrlhf_jax.report import page as report_html
from fgrlhf_jax.report import tables as report_tables
from fgrlhf_jax.runtime import run_dir as run_folder
from fgrlhf_jax.runtime import user_function
from launch.shared import cli


class Model(NamedTuple):
    """A reward model: what it is called, what it learns from, and flags of launch.train_rm."""

    label: str
    data: str  # preferences | edits
    loss: str
    flags: dict


class Arm(NamedTuple):
    """A policy: what it is called, where it starts, and what rewards it."""

    label: str
    start: str  # sft | sft_edits
    reward: str  # a reward model, "oracle", or "" for supervised fine-tuning
    flags: dict


REWARD_MODELS = {
    "rm_preferences": Model("sequence, preferences", "preferences", "sequence", {}),
    "rm_edits": Model("sequence, edits", "edits", "sequence", {}),
    "rm_token": Model("token, edits", "edits", "token_edit", {}),
    "rm_state_action": Model(
        "token, edits, state-action", "edits", "token_edit", {"model.head": "state_action"}
    ),
}
ARMS = {
    "sft_edits": Arm("SFT on the edits", "sft", "", {}),
    "ppo_rlhf": Arm("PPO-RLHF: sequence, preferences", "sft", "rm_preferences", {}),
    "fine_grained": Arm("Fine-grained: sequence, edits", "sft", "rm_edits", {}),
    "fine_grained_token": Arm("Fine-grained: token, edits", "sft", "rm_token", {}),
    "kl_outside": Arm("Token, no KL in the reward", "sft", "rm_token", {"kl.in_reward": False}),
    "state_action": Arm("Fine-grained: token, state-action head", "sft", "rm_state_action", {}),
    # No penalty of PPO's own: the judge charges a missing end.
    "oracle": Arm("Oracle: gold token rewards", "sft", "oracle", {"missing_eos": "none"}),
    "edits_then_token": Arm("SFT on the edits, then token", "sft_edits", "rm_state_action", {}),
}
ORACLE = "fgrlhf_jax.tiny_world.judge:oracle_rewards"
AT_LEAST = {
    **dict.fromkeys(("seeds", "workers", "test_prompts", "max_new_tokens"), 1),
    **dict.fromkeys(("max_prompt_length", "answer_batch_size", "table_batch_size"), 1),
    **dict.fromkeys(("seed", "heatmaps", "sft.devices"), 0),
}
# Flags of commands for which the pipeline has a field of its own, and that field.
OWN = {
    **{name: name for name in ("seed", "judge", "run_dir")},
    **{f"data.{name}": name for name in ("template", "max_prompt_length", "max_new_tokens")},
}
TASKS = ("data", "feedback", "answers", "tables")
FLAGS = (
    *(f"{command}.flags" for command in ("sft", "rm", "imitate", "ppo")),
    *(f"arms.{name}" for name, arm in ARMS.items() if arm.reward),
)


def chosen(config: ConfigDict) -> dict[str, Arm]:
    """The arms to run; raises InputError for an unknown one or one that the data cannot give."""
    names = [name for name in config.run_arms.split(",") if name]
    for name in names:
        if name not in ARMS:
            raise InputError(f"run_arms: {name!r} is not one of {', '.join(ARMS)}")
        if ARMS[name].start != "sft" and ARMS[name].start not in names:
            raise InputError(f"run_arms: {name} starts from {ARMS[name].start}; add it")
        if name == "ppo_rlhf" and not config.embedded and not config.files.preferences:
            raise InputError(
                "run_arms: ppo_rlhf needs files.preferences; give it or drop the arm"
            )
        if name == "oracle" and not config.embedded:
            raise InputError("run_arms: the oracle exists in the embedded world only; drop it")
    return {name: ARMS[name] for name in names}


def models_of(arms: dict[str, Arm]) -> dict[str, Model]:
    used = {arm.reward for arm in arms.values()}
    return {name: model for name, model in REWARD_MODELS.items() if name in used}


def flags(command: str, spec: str, *groups: dict, **fields) -> tuple[str, ...]:
    """The words of a command line; later groups replace earlier ones.

    Raises:
      InputError: for a group that sets one of the ``fields``, which would be in vain.
    """
    merged: dict = {}
    for group in groups:
        merged |= {key.replace("__", "."): value for key, value in group.items()}
    own = {key.replace("__", "."): value for key, value in fields.items()}
    if taken := sorted(merged.keys() & own.keys()):
        key = taken[0]
        hint = f"give --config.{OWN[key]}=…" if key in OWN else "drop it"
        raise InputError(
            f"{key}={merged[key]}: the pipeline sets this flag of {command} itself; {hint}"
        )
    merged |= own
    overrides = (f"--config.{key}={value}" for key, value in merged.items())
    return (command, f"--config={spec}", *overrides)


def make_stages(config: ConfigDict, folder: Path) -> list[Stage]:
    """All stages, in the order in which to start them."""
    found = [task(folder, "data", folder / "data" / "test.jsonl"), sft_stage(config, folder)]
    for kind in (samples, feedback, trained, tables, answers):
        for number in range(config.seeds):
            found += kind(config, folder, number)
    where = platforms(config)
    return [dataclasses.replace(s, environment=where | s.environment) for s in found]


def platforms(config: ConfigDict) -> dict[str, str]:
    """What ``platforms`` adds to the environment of stages, where the user's says nothing."""
    if not config.platforms or "JAX_PLATFORMS" in os.environ:
        return {}
    return {"JAX_PLATFORMS": config.platforms}


def prompt_flags(config: ConfigDict) -> dict:
    """How every command makes its prompts."""
    return {
        "data__template": config.template,
        "data__max_prompt_length": config.max_prompt_length,
    }


def task(folder: Path, name: str, output: Path, *needs: str) -> Stage:
    """One of :func:`run_task`, which reads the rest of the config from the run folder."""
    words = ("launch.pipeline", f"--config.run_dir={folder}", f"--config.task={name}")
    return Stage(name, words, output, needs)


def sft_stage(config: ConfigDict, folder: Path) -> Stage:
    """The policy that everything starts from."""
    command = flags(
        "launch.sft",
        config.sft.config,
        config.sft.flags.to_dict(),
        train=folder / "data" / "sft.jsonl",
        run_dir=folder / "sft",
        seed=config.seed,
        **prompt_flags(config),
        **({"model__tokenizer": folder / "data" / "tokenizer"} if config.embedded else {}),
    )
    devices = {"JAX_NUM_CPU_DEVICES": str(config.sft.devices)} if config.sft.devices else {}
    return Stage("sft", command, folder / "sft" / "eval.json", ("data",), devices)


def samples(config: ConfigDict, folder: Path, number: int) -> list[Stage]:
    """In the embedded world: two responses a prompt, which its people say something about."""
    if not config.embedded:
        return []
    output = folder / f"seed_{number}" / "samples.json"
    command = flags(
        "launch.generate",
        "configs/generate.py",
        model=folder / "sft",
        prompts=folder / "data" / "feedback.jsonl",
        output=output,
        samples=2,
        temperature=1.0,
        seed=config.seed + number,
        template=config.template,
        max_prompt_length=config.max_prompt_length,
        max_new_tokens=config.max_new_tokens,
        batch_size=config.answer_batch_size,
    )
    return [Stage(f"seed_{number}/samples", command, output, ("sft",))]


def feedback(config: ConfigDict, folder: Path, number: int) -> list[Stage]:
    """Preferences and edits, split by prompt."""
    output = folder / f"seed_{number}" / "feedback" / "counts.json"
    needs = f"seed_{number}/samples" if config.embedded else "data"
    return [task(folder, f"feedback:{number}", output, needs)]


def trained(config: ConfigDict, folder: Path, number: int) -> list[Stage]:
    """Learners and policies, each arm right after the reward model that it needs.

    Of two reward models, or arms, that are compiled to the same programs the second one then
    starts later, finds these in the cache, and does not compile them at the same time.
    """
    made = [*learners(config, folder, number), *policies(config, folder, number)]
    by_name = {stage.name: stage for stage in made}
    arms = [by_name[f"seed_{number}/{name}"] for name in chosen(config)]
    order = dict.fromkeys(name for arm in arms for name in (*arm.needs, arm.name))
    return [by_name[name] for name in order if name in by_name]


def learners(config: ConfigDict, folder: Path, number: int) -> list[Stage]:
    """What learns from the feedback itself: reward models, and the arms that imitate it."""
    arms, home = chosen(config), folder / f"seed_{number}"
    found = []

    def add(name: str, command: str, spec: str, data: str, *groups: dict) -> None:
        words = flags(
            command,
            spec,
            *groups,
            model__path=folder / "sft" / "export",
            train=home / "feedback" / f"{data}_train.jsonl",
            validation=home / "feedback" / f"{data}_validation.jsonl",
            run_dir=home / name,
            seed=config.seed + number,
            **prompt_flags(config),
        )
        needs = (f"feedback:{number}", "sft")
        found.append(Stage(f"seed_{number}/{name}", words, home / name / "eval.json", needs))

    for name, model in models_of(arms).items():
        spec = f"{config.rm.config},{model.loss}"
        add(name, "launch.train_rm", spec, model.data, config.rm.flags.to_dict(), model.flags)
    for name, arm in arms.items():
        if not arm.reward:
            imitate = config.imitate
            add(name, "launch.sft", imitate.config, "imitate", imitate.flags.to_dict())
    return found


def policies(config: ConfigDict, folder: Path, number: int) -> list[Stage]:
    """The arms of PPO."""
    data, home = folder / "data", folder / f"seed_{number}"
    found = []
    for name, arm in chosen(config).items():
        if not arm.reward:
            continue
        start = folder / "sft" if arm.start == "sft" else home / arm.start
        needs = ["sft" if arm.start == "sft" else f"seed_{number}/{arm.start}"]
        if arm.reward == "oracle":
            level, pays = "token", {"reward_function": ORACLE}
        else:
            loss = REWARD_MODELS[arm.reward].loss
            level = "sequence" if loss == "sequence" else "token"
            pays = {"reward_model": home / arm.reward}
            needs.append(f"seed_{number}/{arm.reward}")
        command = flags(
            "launch.ppo",
            f"{config.ppo.config},{level}",
            config.ppo.flags.to_dict(),
            arm.flags,
            config.arms[name].to_dict(),
            **pays,
            **prompt_flags(config),
            data__max_new_tokens=config.max_new_tokens,
            policy=start / "export",
            prompts=data / "ppo.jsonl",
            validation=data / "validation.jsonl",
            judge=config.judge,
            run_dir=home / name,
            seed=config.seed + number,
        )
        output = home / name / "finished.json"
        found.append(Stage(f"seed_{number}/{name}", command, output, tuple(needs)))
    return found


def tables(config: ConfigDict, folder: Path, number: int) -> list[Stage]:
    """The reward models on the test sets."""
    needs = (f"seed_{number}/{name}" for name in models_of(chosen(config)))
    output = folder / f"seed_{number}" / "tables.json"
    return [task(folder, f"tables:{number}", output, f"feedback:{number}", *needs)]


def answers(config: ConfigDict, folder: Path, number: int) -> list[Stage]:
    """The policies on the test prompts."""
    needs = (f"seed_{number}/{name}" for name in chosen(config))
    output = folder / f"seed_{number}" / "answers" / "sft.json"
    return [task(folder, f"answers:{number}", output, "sft", *needs)]


def run_task(config: ConfigDict) -> None:
    """One of the stages between the commands, with the config of the run folder."""
    folder = Path(config.run_dir)
    name, _, number = config.task.partition(":")
    config = ConfigDict(json.loads((folder / "config.json").read_text()))
    arms, home = chosen(config), folder / f"seed_{number}"
    if name == "data":
        study.make_data(config, folder)
    elif name == "feedback":
        study.make_feedback(config, folder, int(number))
    elif name == "tables":
        models = {rm: str(home / rm) for rm in models_of(arms)}
        study.make_tables(config, folder, int(number), models)
    elif name == "answers":
        policies = {arm: str(home / arm / "export") for arm in arms}
        policies["sft"] = str(
            folder / "sft" / "export"
        )  # last: its file says that all are there
        study.make_answers(config, folder, int(number), policies)
    else:
        raise InputError(f"task={config.task!r}: is not one of {', '.join(TASKS)}")


def check_flags(made: list[Stage]) -> None:
    """Raises InputError for the first flag that the command of its stage would refuse."""
    for stage in made:
        if stage.command[0] == "launch.pipeline":  # a task, which has no flags of its own
            continue
        module = importlib.import_module(stage.command[0])
        try:
            config = cli.parse([*stage.command], "")
            if hasattr(module, "check"):
                module.check(config)
        except InputError as error:
            raise InputError(f"stage {stage.name}: {error}") from error


def main(config) -> None:
    cli.check(config, choices={"template": templates.TEMPLATES}, at_least=AT_LEAST)
    if config.task:
        run_task(config)
        return
    chosen(config)
    given = [name for name, value in config.files.items() if value]
    if config.embedded and given:
        raise InputError(
            f"files.{given[0]} is given to a config of the embedded world; use pipeline.py:cad"
        )
    for name, value in (("judge", config.judge), ("files.edits", config.files.edits)):
        if not value and not config.embedded:
            raise InputError(f"{name} is empty; give --config.{name}=…")
    if config.judge and user_function.wants(user_function.load(config.judge), "tokens"):
        raise InputError(
            f"judge={config.judge}: asks for tokens, which responses to the test prompts are kept "
            "without; let it take prompts, responses and finished"
        )
    jax.config.update("jax_platforms", "cpu")  # the accelerators are the stages'
    started = time.perf_counter()
    made = make_stages(config, Path(config.run_dir))
    check_flags(made)
    folder = run_folder.open_run(config)
    stages.run(made, folder, workers=config.workers)
    arms = chosen(config)
    labels = {"sft": "SFT"} | {arm: what.label for arm, what in arms.items()}
    models = {name: model.label for name, model in models_of(arms).items()}
    gathered = study.gather(config, folder, labels, models)
    gathered |= {
        "seconds": stages.seconds(made, folder),
        "commands": {stage.name: stage.shown() for stage in made},
    }
    found = report.content(gathered)
    for name, text in (
        ("report.json", report.to_json(found)),
        ("report.md", report_tables.markdown(found)),
        ("report.html", report_html.page(found)),
    ):
        run_folder.write_text(folder / name, text)
    print(report_tables.markdown(found).split("\n## Learning")[0])
    print(f"{time.perf_counter() - started:.0f} s; the report is in {folder / 'report.html'}")


if __name__ == "__main__":
    cli.command(main, "configs/pipeline.py:tiny", __doc__, FLAGS)
