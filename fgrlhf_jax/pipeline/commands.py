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
from fgrlhf_jax.pipeline.arms import REWARD_MODELS, Arm, select_arms, select_reward_models
from fgrlhf_jax.pipeline.stages import Stage

# Flags of commands that follow from a field of the pipeline, and that field.
FIELD_OF_FLAG = {
    **{name: name for name in ("seed", "judge", "run_dir")},
    **{f"data.{name}": name for name in ("template", "max_prompt_length", "max_new_tokens")},
}
ORACLE = "fgrlhf_jax.tiny_world.judge:oracle_rewards"
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
            raise InputError(f"{field}={text}: {flag!r} is no flag; write NAME=VALUE,NAME=VALUE")
        flags[name] = value
    return flags


def read_flags(config: ConfigDict, *groups: str) -> dict[str, str]:
    """The flags of groups such as "ppo" and "arms.oracle": their defaults, then their flags.

    A later one replaces an earlier one of the same name. Before all are those of ``config.lora``,
    but for an SFT from random weights.
    """
    flags = {}
    for kind in ("defaults", "flags"):
        for group in groups:
            values = config
            for name in group.split("."):
                values = values[name]
            flags |= parse_flags(values[kind], f"{group}.{kind}")
    adapts = config.lora.rank and ("sft" not in groups or flags.get("model.path"))
    adapters = {f"lora.{name}": str(value) for name, value in config.lora.items()}
    return adapters | flags if adapts else flags


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
    arms = select_arms(config)
    homes = {seed: folder / f"seed_{seed}" for seed in range(config.seeds)}
    stages = [_task_stage(folder, "data", folder / "data" / "test.jsonl")]
    stages.append(_sft_stage(config, folder))
    if config.embedded:
        stages += [_sample_stage(config, folder, seed) for seed in homes]
    for seed, home in homes.items():
        needs = f"seed_{seed}/samples" if config.embedded else "data"
        output = home / "feedback" / "counts.json"
        stages.append(_task_stage(folder, f"feedback:{seed}", output, needs))
    for seed in homes:
        stages += _training_stages(config, folder, seed, arms)
    for seed, home in homes.items():
        needs = [f"seed_{seed}/{name}" for name in select_reward_models(arms)]
        output = home / "tables.json"
        stages.append(_task_stage(folder, f"tables:{seed}", output, f"feedback:{seed}", *needs))
    for seed, home in homes.items():
        needs = [f"seed_{seed}/{name}" for name in arms]
        output = home / "answers" / "sft.json"
        stages.append(_task_stage(folder, f"answers:{seed}", output, "sft", *needs))
    # Where the user's own environment chooses a platform, it stays.
    choose = config.platforms and "JAX_PLATFORMS" not in os.environ
    platform = {"JAX_PLATFORMS": config.platforms} if choose else {}
    return [dataclasses.replace(s, environment=platform | s.environment) for s in stages]


def _task_stage(folder: Path, name: str, output: Path, *needs: str) -> Stage:
    """A stage that ``tasks.run_task`` does, with the config of the run folder."""
    words = ("launch.pipeline", f"--config.run_dir={folder}", f"--config.task={name}")
    return Stage(name, words, output, needs)


def _prompt_settings(config: ConfigDict) -> dict:
    """How every training command makes its prompts."""
    return {f"data.{name}": config[name] for name in ("template", "max_prompt_length")}


def _sft_stage(config: ConfigDict, folder: Path) -> Stage:
    """The policy that everything starts from."""
    settings = {"train": folder / "data" / "sft.jsonl", "run_dir": folder / "sft"}
    settings |= {"seed": config.seed, **_prompt_settings(config)}
    if config.embedded:
        settings["model.tokenizer"] = folder / "data" / "tokenizer"
    words = command_line("launch.sft", config.sft.config, read_flags(config, "sft"), settings)
    devices = {"JAX_NUM_CPU_DEVICES": str(config.sft.devices)} if config.sft.devices else {}
    return Stage("sft", words, folder / "sft" / "eval.json", ("data",), devices)


def _sample_stage(config: ConfigDict, folder: Path, seed: int) -> Stage:
    """Two responses a prompt, which the people of the embedded world give feedback on."""
    output = folder / f"seed_{seed}" / "samples.json"
    settings = {
        "model": folder / "sft",
        "prompts": folder / "data" / "feedback.jsonl",
        "output": output,
        "samples": 2,
        "temperature": 1.0,
        "seed": config.seed + seed,
        **{name: config[name] for name in ("template", "max_prompt_length", "max_new_tokens")},
        "batch_size": config.answer_batch_size,
    }
    words = command_line("launch.generate", "configs/generate.py", {}, settings)
    return Stage(f"seed_{seed}/samples", words, output, ("sft",))


def _training_stages(
    config: ConfigDict, folder: Path, seed: int, arms: Mapping[str, Arm]
) -> list[Stage]:
    """Policies, each right after its reward model.

    Of two reward models, or arms, that compile to the same programs the second one then starts
    later, finds the programs in the cache, and does not compile them at the same time.
    """
    home, stages = folder / f"seed_{seed}", {}

    def learn_feedback(name: str, data: str, command: str, spec: str, flags: dict) -> Stage:
        settings = {
            "model.path": folder / "sft" / "export",
            "train": home / "feedback" / f"{data}_train.jsonl",
            "validation": home / "feedback" / f"{data}_validation.jsonl",
            "run_dir": home / name,
            "seed": config.seed + seed,
            **_prompt_settings(config),
        }
        words, needs = command_line(command, spec, flags, settings), (f"feedback:{seed}", "sft")
        return Stage(f"seed_{seed}/{name}", words, home / name / "eval.json", needs)

    for name, arm in arms.items():
        if not arm.reward:
            spec, flags = config.imitate.config, read_flags(config, "imitate")
            stages[name] = learn_feedback(name, "imitate", "launch.sft", spec, flags)
            continue
        model = REWARD_MODELS.get(arm.reward)
        if model and arm.reward not in stages:
            spec = f"{config.rm.config},{model.loss}"
            flags = read_flags(config, "rm") | parse_flags(model.flags)
            stages[arm.reward] = learn_feedback(
                arm.reward, model.data, "launch.train_rm", spec, flags
            )
        stages[name] = _ppo_stage(config, folder, seed, name, arm)
    return [*stages.values()]


def _ppo_stage(config: ConfigDict, folder: Path, seed: int, name: str, arm: Arm) -> Stage:
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
        **_prompt_settings(config),
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
