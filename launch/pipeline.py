"""The whole method: supervised fine-tuning, feedback, reward models, PPO, win rates, a report.

python -m launch.pipeline [--config=configs/pipeline.py:tiny|study|cad|llama_7b]
                          [--config.run_dir=DIR] [--config.seeds=N] [--config.FIELD=VALUE …]

Every stage is a command of its own, joined to the others by files in run_dir; those that are done
are skipped, so the same command goes on where it stopped. What each one says is in run_dir/logs.
At the end: report.json, report.md and report.html.
"""

import json
import time
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from fgrlhf_jax import report, report_html, report_tables, run_folder, stages, study
from fgrlhf_jax.errors import InputError
from fgrlhf_jax.stages import Stage
from launch import cli


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
    "oracle": Arm("Oracle: gold token rewards", "sft", "oracle", {}),
    "edits_then_token": Arm("SFT on the edits, then token", "sft_edits", "rm_state_action", {}),
}
AT_LEAST = {
    **dict.fromkeys(("seeds", "workers", "test_prompts", "max_new_tokens"), 1),
    **dict.fromkeys(("max_prompt_length", "answer_batch_size", "table_batch_size"), 1),
    **dict.fromkeys(("seed", "heatmaps", "sft.devices"), 0),
}
TASKS = ("data", "feedback", "answers", "tables")


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
    """The words of a command line; later values replace earlier ones."""
    merged: dict = {}
    for group in groups:
        merged |= {key.replace("__", "."): value for key, value in group.items()}
    merged |= {key.replace("__", "."): value for key, value in fields.items()}
    overrides = (f"--config.{key}={value}" for key, value in merged.items())
    return (command, f"--config={spec}", *overrides)


def make_stages(config: ConfigDict, folder: Path) -> list[Stage]:
    """All stages, each after what it needs; stages of one kind side by side."""
    arms = chosen(config)
    models = models_of(arms)
    given = config.to_dict()
    world = config.embedded
    data, sft = folder / "data", folder / "sft"

    def task(name: str, output: Path, *needs: str) -> Stage:
        # Everything else of the config is read from the run folder.
        words = ("launch.pipeline", f"--config.run_dir={folder}", f"--config.task={name}")
        return Stage(name, words, output, needs)

    devices = {"JAX_NUM_CPU_DEVICES": str(config.sft.devices)} if config.sft.devices else {}
    made = [
        task("data", data / "test.jsonl"),
        Stage(
            "sft",
            flags(
                "launch.sft",
                config.sft.config,
                given["sft"]["flags"],
                train=data / "sft.jsonl",
                run_dir=sft,
                seed=config.seed,
                **({"model__tokenizer": data / "tokenizer"} if world else {}),
            ),
            sft / "eval.json",
            ("data",),
            devices,
        ),
    ]
    waves: list[list[Stage]] = [[] for _ in range(6)]
    for number in range(config.seeds):
        name, home = f"seed_{number}/", folder / f"seed_{number}"
        feedback, seed = home / "feedback", config.seed + number
        needs = "data"
        if world:
            needs = name + "samples"
            command = flags(
                "launch.generate",
                "configs/generate.py",
                model=sft,
                prompts=data / "feedback.jsonl",
                output=home / "samples.json",
                samples=2,
                temperature=1.0,
                seed=seed,
                template=config.template,
                max_prompt_length=config.max_prompt_length,
                max_new_tokens=config.max_new_tokens,
                batch_size=config.answer_batch_size,
            )
            waves[0].append(Stage(needs, command, home / "samples.json", ("sft",)))
        waves[1].append(task(f"feedback:{number}", feedback / "counts.json", needs))
        fed = (f"feedback:{number}", "sft")
        for rm, model in models.items():
            command = flags(
                "launch.train_rm",
                f"{config.rm.config},{model.loss}",
                given["rm"]["flags"],
                model.flags,
                model__path=sft / "export",
                train=feedback / f"{model.data}_train.jsonl",
                validation=feedback / f"{model.data}_validation.jsonl",
                run_dir=home / rm,
                seed=seed,
            )
            waves[2].append(Stage(name + rm, command, home / rm / "eval.json", fed))
        for arm, what in arms.items():
            if not what.reward:
                command = flags(
                    "launch.sft",
                    config.imitate.config,
                    given["imitate"]["flags"],
                    model__path=sft / "export",
                    train=feedback / "imitate_train.jsonl",
                    validation=feedback / "imitate_validation.jsonl",
                    run_dir=home / arm,
                    seed=seed,
                )
                waves[2].append(Stage(name + arm, command, home / arm / "eval.json", fed))
                continue
            start = sft if what.start == "sft" else home / what.start
            after = ["sft"] if what.start == "sft" else [name + what.start]
            if what.reward == "oracle":
                level, pays = (
                    "token",
                    {
                        "reward_function": "fgrlhf_jax.tiny_judge:oracle_rewards",
                        "data.template": config.template,
                        "missing_eos": "none",  # the judge charges it
                    },
                )
            else:
                level = "sequence" if models[what.reward].loss == "sequence" else "token"
                pays = {"reward_model": home / what.reward}
                after.append(name + what.reward)
            command = flags(
                "launch.ppo",
                f"{config.ppo.config},{level}",
                given["ppo"]["flags"],
                what.flags,
                pays,
                given["arms"][arm],
                policy=start / "export",
                prompts=data / "ppo.jsonl",
                validation=data / "validation.jsonl",
                judge=config.judge,
                run_dir=home / arm,
                seed=seed,
            )
            output = home / arm / "finished.json"
            waves[3].append(Stage(name + arm, command, output, tuple(after)))
        finished = [name + arm for arm in arms]
        waves[4].append(
            task(f"tables:{number}", home / "tables.json", *(name + rm for rm in models))
        )
        waves[5].append(
            task(f"answers:{number}", home / "answers" / "sft.json", "sft", *finished)
        )
    return made + [stage for wave in waves for stage in wave]


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


def main(config) -> None:
    cli.check(config, at_least=AT_LEAST)
    if config.task:
        run_task(config)
        return
    chosen(config)
    if config.embedded and config.files.edits:
        raise InputError(
            "files are given to a config of the embedded world; use pipeline.py:cad"
        )
    for name, value in (("judge", config.judge), ("files.edits", config.files.edits)):
        if not value and not config.embedded:
            raise InputError(f"{name} is empty; give --config.{name}=…")
    started = time.perf_counter()
    folder = run_folder.open_run(config)
    made = make_stages(config, folder)
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
    cli.command(main, "configs/pipeline.py:tiny", __doc__)
