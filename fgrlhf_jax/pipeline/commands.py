"""The stages of a study: a command line for every model, and the tasks between them.

    data → sft → samples → feedback → reward models → PPO → answers and tables

``data`` and ``sft`` are common to all seeds; everything else is made once a seed.
"""

import dataclasses
import os
import re
from collections.abc import Mapping
from pathlib import Path

from ml_collections import ConfigDict

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.pipeline.arms import (
    ORACLE,
    REWARD_MODELS,
    Arm,
    select_arms,
    select_reward_models,
)
from fgrlhf_jax.pipeline.stages import Stage

# Flags of commands that follow from a field of the pipeline, and that field.
FIELD_OF_FLAG = {
    **{name: name for name in ("seed", "judge", "run_dir")},
    **{f"data.{name}": name for name in ("template", "max_prompt_length", "max_new_tokens")},
}
_NAME = r"[A-Za-z_][\w.]*"


def parse_flags(text: str, field: str = "flags") -> dict[str, str]:
    """``{"steps": "20", "kl.coef": "0.1"}`` of ``"steps=20,kl.coef=0.1"``.

    A comma that no ``NAME=`` follows belongs to the value before it, as in ``mesh=1,-1,1``.

    Args:
      field: the config field that has the text, for the error message.

    Raises:
      InputError: for text of another form.
    """
    flags = {}
    for flag in re.split(rf",\s*(?={_NAME}=)", text.strip()) if text.strip() else ():
        name, _, value = flag.partition("=")
        if not re.fullmatch(f"{_NAME}=.*", flag, re.DOTALL):
            raise InputError(
                f"{field}={text}: {flag!r} is no flag; write NAME=VALUE,NAME=VALUE"
            )
        flags[name] = value
    return flags


def read_flags(config: ConfigDict, *groups: str) -> dict[str, str]:
    """The flags of groups such as "ppo" and "arms.oracle": their defaults, then their flags.

    A later one replaces an earlier one of the same name.
    """
    flags = {}
    for kind in ("defaults", "flags"):
        for group in groups:
            values = config
            for name in group.split("."):
                values = values[name]
            flags |= parse_flags(values[kind], f"{group}.{kind}")
    return flags


def command_line(
    command: str, spec: str, flags: Mapping[str, object], settings: Mapping[str, object]
) -> tuple[str, ...]:
    """The words that run a command with ``--config=spec``.

    Args:
      flags: of the user or the study.
      settings: what the pipeline itself sets, which joins this command to the others.

    Raises:
      InputError: for a flag that is also a setting, and would be in vain.
    """
    for name in sorted(flags.keys() & settings.keys()):
        field = FIELD_OF_FLAG.get(name)
        hint = f"give --config.{field}=…" if field else "drop it"
        raise InputError(
            f"{name}={flags[name]}: the pipeline sets this flag of {command} itself; {hint}"
        )
    overrides = (f"--config.{name}={value}" for name, value in {**flags, **settings}.items())
    return (command, f"--config={spec}", *overrides)


def build_stages(config: ConfigDict, folder: Path) -> list[Stage]:
    """All stages, in the order in which to start them.

    Raises:
      InputError: for arms or flags that cannot be.
    """
    stages = [task_stage(folder, "data", folder / "data" / "test.jsonl")]
    stages.append(sft_stage(config, folder))
    for build in (sample_stages, feedback_stages, training_stages, table_stages, answer_stages):
        for seed in range(config.seeds):
            stages += build(config, folder, seed)
    # Where the user's own environment chooses a platform, it stays.
    choose = config.platforms and "JAX_PLATFORMS" not in os.environ
    platform = {"JAX_PLATFORMS": config.platforms} if choose else {}
    return [dataclasses.replace(s, environment=platform | s.environment) for s in stages]


def prompt_settings(config: ConfigDict) -> dict:
    """What every training command is told about prompts."""
    return {
        "data.template": config.template,
        "data.max_prompt_length": config.max_prompt_length,
    }


def task_stage(folder: Path, name: str, output: Path, *needs: str) -> Stage:
    """A stage that ``tasks.run_task`` does, with the config of the run folder."""
    words = ("launch.pipeline", f"--config.run_dir={folder}", f"--config.task={name}")
    return Stage(name, words, output, needs)


def sft_stage(config: ConfigDict, folder: Path) -> Stage:
    """The policy that everything starts from."""
    settings = {
        "train": folder / "data" / "sft.jsonl",
        "run_dir": folder / "sft",
        "seed": config.seed,
        **prompt_settings(config),
    }
    if config.embedded:
        settings["model.tokenizer"] = folder / "data" / "tokenizer"
    words = command_line("launch.sft", config.sft.config, read_flags(config, "sft"), settings)
    devices = {"JAX_NUM_CPU_DEVICES": str(config.sft.devices)} if config.sft.devices else {}
    return Stage("sft", words, folder / "sft" / "eval.json", ("data",), devices)


def sample_stages(config: ConfigDict, folder: Path, seed: int) -> list[Stage]:
    """In the embedded world: two responses a prompt, which its people give feedback on."""
    if not config.embedded:
        return []
    output = folder / f"seed_{seed}" / "samples.json"
    settings = {
        "model": folder / "sft",
        "prompts": folder / "data" / "feedback.jsonl",
        "output": output,
        "samples": 2,
        "temperature": 1.0,
        "seed": config.seed + seed,
        "template": config.template,
        "max_prompt_length": config.max_prompt_length,
        "max_new_tokens": config.max_new_tokens,
        "batch_size": config.answer_batch_size,
    }
    words = command_line("launch.generate", "configs/generate.py", {}, settings)
    return [Stage(f"seed_{seed}/samples", words, output, ("sft",))]


def feedback_stages(config: ConfigDict, folder: Path, seed: int) -> list[Stage]:
    """Preferences and edits, split by prompt."""
    output = folder / f"seed_{seed}" / "feedback" / "counts.json"
    needs = f"seed_{seed}/samples" if config.embedded else "data"
    return [task_stage(folder, f"feedback:{seed}", output, needs)]


def training_stages(config: ConfigDict, folder: Path, seed: int) -> list[Stage]:
    """Reward models and policies, each arm right after the reward model that it needs.

    Of two reward models, or arms, that compile to the same programs the second one then starts
    later, finds the programs in the cache, and does not compile them at the same time.
    """
    arms = select_arms(config)
    stages = [
        *(rm_stage(config, folder, seed, name) for name in select_reward_models(arms)),
        *(
            ppo_stage(config, folder, seed, name, arm)
            if arm.reward
            else imitation_stage(config, folder, seed, name)
            for name, arm in arms.items()
        ),
    ]
    by_name = {stage.name: stage for stage in stages}
    of_arms = [by_name[f"seed_{seed}/{name}"] for name in arms]
    order = dict.fromkeys(name for stage in of_arms for name in (*stage.needs, stage.name))
    return [by_name[name] for name in order if name in by_name]


def feedback_settings(
    config: ConfigDict, folder: Path, seed: int, data: str, run_dir: Path
) -> dict:
    """What the commands that learn from the feedback itself are told."""
    feedback = folder / f"seed_{seed}" / "feedback"
    return {
        "model.path": folder / "sft" / "export",
        "train": feedback / f"{data}_train.jsonl",
        "validation": feedback / f"{data}_validation.jsonl",
        "run_dir": run_dir,
        "seed": config.seed + seed,
        **prompt_settings(config),
    }


def rm_stage(config: ConfigDict, folder: Path, seed: int, name: str) -> Stage:
    """A reward model of :data:`REWARD_MODELS`."""
    model, run_dir = REWARD_MODELS[name], folder / f"seed_{seed}" / name
    words = command_line(
        "launch.train_rm",
        f"{config.rm.config},{model.loss}",
        read_flags(config, "rm") | parse_flags(model.flags),
        feedback_settings(config, folder, seed, model.data, run_dir),
    )
    needs = (f"feedback:{seed}", "sft")
    return Stage(f"seed_{seed}/{name}", words, run_dir / "eval.json", needs)


def imitation_stage(config: ConfigDict, folder: Path, seed: int, name: str) -> Stage:
    """An arm that is fine-tuned on the edited responses."""
    run_dir = folder / f"seed_{seed}" / name
    words = command_line(
        "launch.sft",
        config.imitate.config,
        read_flags(config, "imitate"),
        feedback_settings(config, folder, seed, "imitate", run_dir),
    )
    needs = (f"feedback:{seed}", "sft")
    return Stage(f"seed_{seed}/{name}", words, run_dir / "eval.json", needs)


def ppo_stage(config: ConfigDict, folder: Path, seed: int, name: str, arm: Arm) -> Stage:
    """An arm of PPO."""
    data, home = folder / "data", folder / f"seed_{seed}"
    start = folder / "sft" if arm.start == "sft" else home / arm.start
    needs = ["sft" if arm.start == "sft" else f"seed_{seed}/{arm.start}"]
    if arm.reward == "oracle":
        level, reward = "token", {"reward_function": ORACLE}
    else:
        loss = REWARD_MODELS[arm.reward].loss
        level = "sequence" if loss == "sequence" else "token"
        reward = {"reward_model": home / arm.reward}
        needs.append(f"seed_{seed}/{arm.reward}")
    flags = read_flags(config, "ppo", f"arms.{name}")
    # What makes the arm gives way to a flag of this very arm only.
    flags |= parse_flags(arm.flags) | parse_flags(config.arms[name].flags)
    settings = {
        **reward,
        **prompt_settings(config),
        "data.max_new_tokens": config.max_new_tokens,
        "policy": start / "export",
        "prompts": data / "ppo.jsonl",
        "validation": data / "validation.jsonl",
        "judge": config.judge,
        "run_dir": home / name,
        "seed": config.seed + seed,
    }
    words = command_line("launch.ppo", f"{config.ppo.config},{level}", flags, settings)
    return Stage(f"seed_{seed}/{name}", words, home / name / "finished.json", tuple(needs))


def table_stages(config: ConfigDict, folder: Path, seed: int) -> list[Stage]:
    """The reward models on the test sets."""
    models = select_reward_models(select_arms(config))
    output = folder / f"seed_{seed}" / "tables.json"
    needs = (f"feedback:{seed}", *(f"seed_{seed}/{name}" for name in models))
    return [task_stage(folder, f"tables:{seed}", output, *needs)]


def answer_stages(config: ConfigDict, folder: Path, seed: int) -> list[Stage]:
    """The policies on the test prompts."""
    output = folder / f"seed_{seed}" / "answers" / "sft.json"
    needs = ("sft", *(f"seed_{seed}/{name}" for name in select_arms(config)))
    return [task_stage(folder, f"answers:{seed}", output, *needs)]
