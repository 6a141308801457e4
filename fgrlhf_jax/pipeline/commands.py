"""The stages of a study: a command line for every model, and the tasks between them.

    data → sft → samples → feedback → reward models, arms, rounds of edits → answers and tables

``data`` and ``sft`` are common to all seeds; everything else is made once a seed. What is made of
what after ``feedback`` is said by the arms, see ``arms.py``.
"""

import dataclasses
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.pipeline import arms
from fgrlhf_jax.pipeline.stages import Stage
from fgrlhf_jax.ppo.algorithm import ALGORITHMS

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
    for flag in re.split(rf",\s*(?={_NAME}=)", text.strip(" ,")) if text.strip(" ,") else ():
        name, _, value = flag.partition("=")
        if not re.fullmatch(f"{_NAME}=.*", flag, re.DOTALL):
            raise InputError(f"{field}={text}: {flag!r} is no flag; write NAME=VALUE,NAME=VALUE")
        flags[name] = value
    return flags


def read_flags(config: ConfigDict, *groups: str) -> dict[str, str]:
    """The flags of groups such as "ppo" and "arms.oracle": their defaults, then their flags.

    A later one replaces an earlier one of the same name, flags replace defaults. Before all are
    those of ``config.lora``, but for an SFT from random weights.
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


def policy_folder(config: ConfigDict, folder: Path, seed: int, arm: str) -> str:
    """The language model of an arm, or of the policy that all start from."""
    if arm == arms.BASE:
        return config.model or str(folder / "sft" / "export")
    return str(folder / f"seed_{seed}" / arm / "export")


def build_stages(config: ConfigDict, folder: Path) -> list[Stage]:
    """All stages, in the order in which to start them.

    Raises:
      InputError: for arms or flags that cannot be.
    """
    names, homes = arms.select(config), {s: folder / f"seed_{s}" for s in range(config.seeds)}
    stages = [_task_stage(folder, "data", folder / "data" / "test.jsonl")]
    base = () if config.model else ("sft",)
    if base:
        stages.append(_sft_stage(config, folder))
    if config.embedded:
        stages += [_sample_stage(config, folder, seed, "", base) for seed in homes]
    for seed, home in homes.items():
        needs = f"seed_{seed}/samples" if config.embedded else "data"
        output = home / "feedback" / "counts.json"
        stages.append(_task_stage(folder, f"feedback:{seed}", output, needs))
    # An arm comes right after what it is made from. Of two reward models, or arms, that compile to
    # the same programs the second one then starts later and finds the programs in the cache.
    for seed in homes:
        for name in names:
            needs = (f"feedback:{seed}", *base, *_stages_of(seed, arms.needs_of(config, name)))
            if name in config.rounds:
                stages += _round_stages(config, folder, seed, name, needs)
            else:
                stages.append(_training_stage(config, folder, seed, name, needs))
    for task, group, output in (
        ("tables", "reward_models", "tables.json"),
        ("answers", "arms", "answers/sft.json"),
    ):
        for seed, home in homes.items():
            made = _stages_of(seed, arms.selected(config, group, names))
            needs = (f"feedback:{seed}", *base, *made)
            stages.append(_task_stage(folder, f"{task}:{seed}", home / output, *needs))
    # Where the user's own environment chooses a platform, it stays.
    choose = config.platforms and "JAX_PLATFORMS" not in os.environ
    platform = {"JAX_PLATFORMS": config.platforms} if choose else {}
    return [dataclasses.replace(s, environment=platform | s.environment) for s in stages]


def _stages_of(seed: int, names: Iterable[str]) -> tuple[str, ...]:
    return tuple(f"seed_{seed}/{name}" for name in names)


def _task_stage(folder: Path, task: str, output: Path, *needs: str, name: str = "") -> Stage:
    """A stage that ``tasks.run_task`` does, with the config of the run folder."""
    words = ("launch.pipeline", f"--config.run_dir={folder}", f"--config.task={task}")
    return Stage(name or task, words, output, needs)


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


def _sample_stage(
    config: ConfigDict, folder: Path, seed: int, round_name: str, needs: Sequence[str]
) -> Stage:
    """Responses of a round's policy, or of the first one, which people give feedback on.

    In the embedded world two a prompt, the worse of which is edited.
    """
    home, policy, greedy = folder / f"seed_{seed}", arms.BASE, False
    prompts, name = folder / "data" / "feedback.jsonl", "samples"
    if round_name:
        edited = config.rounds[round_name]
        policy, greedy, name = edited.policy, edited.greedy, f"{round_name}_samples"
        prompts = home / "feedback" / f"prompts_{edited.part}.jsonl"
    settings = {
        "model": policy_folder(config, folder, seed, policy),
        "prompts": prompts,
        "output": home / f"{name}.json",
        "samples": 2 if config.embedded or greedy else 1,
        **({"greedy_last": True} if greedy else {}),
        "temperature": 1.0,
        "seed": config.seed + seed,
        **{name: config[name] for name in ("template", "max_prompt_length", "max_new_tokens")},
        "batch_size": config.answer_batch_size,
    }
    words = command_line("launch.generate", "configs/generate.py", {}, settings)
    return Stage(f"seed_{seed}/{name}", words, home / f"{name}.json", tuple(needs))


def _round_stages(
    config: ConfigDict, folder: Path, seed: int, name: str, needs: Sequence[str]
) -> tuple[Stage, Stage]:
    """Samples of the round's policy, and their edits."""
    samples, output = _sample_stage(config, folder, seed, name, needs), f"{name}/counts.json"
    edits = _task_stage(
        folder,
        f"round:{seed}:{name}",
        folder / f"seed_{seed}" / output,
        samples.name,
        name=f"seed_{seed}/{name}",
    )
    return samples, edits


def _training_stage(
    config: ConfigDict, folder: Path, seed: int, name: str, needs: tuple[str, ...]
) -> Stage:
    """The command that trains an arm or a reward model."""
    home, group = folder / f"seed_{seed}", arms.group_of(config, name)
    member = config[group][name]
    start = policy_folder(config, folder, seed, member.start)
    files = {part: data_files(config, home, member.data, part) for part in ("train", "validation")}
    settings = {"run_dir": home / name, "seed": config.seed + seed, **_prompt_settings(config)}
    learner = "rm" if group == "reward_models" else member.learner
    if learner in ALGORITHMS:
        kind, command = "ppo", "launch.ppo"
        reward = {"reward_model": home / member.reward}
        if member.reward == arms.ORACLE:
            reward = {"reward_function": ORACLE}
        spec = f"{config.ppo.config},{arms.reward_level(config, name)}"
        settings |= {
            **reward,
            "algorithm": learner,
            "data.max_new_tokens": config.max_new_tokens,
            "policy": start,
            "prompts": folder / "data" / "ppo.jsonl",
            "validation": folder / "data" / "validation.jsonl",
            "judge": config.judge,
        }
    elif learner == "rm":
        kind, command, spec = "rm", "launch.train_rm", f"{config.rm.config},{member.loss}"
        settings |= {"model.path": start, **files}
    elif learner == "sft":
        kind, command, spec = "imitate", "launch.sft", config.imitate.config
        settings |= {"model.path": start, **files}
    else:
        kind, command, spec = "dpo", "launch.dpo", f"{config.dpo.config},{learner}"
        settings |= {"policy": start, **files}
    flags = read_flags(config, kind, f"{group}.{name}")
    flags = {
        flag: re.sub(r"\{(\w+)\}", lambda arm: policy_folder(config, folder, seed, arm[1]), value)
        for flag, value in flags.items()
    }
    words = command_line(command, spec, flags, settings)
    output = "finished.json" if kind == "ppo" else "eval.json"
    return Stage(f"seed_{seed}/{name}", words, home / name / output, needs)


def data_files(config: ConfigDict, home: Path, data: str, part: str) -> str:
    """The files of ``train`` or ``validation`` that a ``data`` field names, joined by commas."""
    paths = [
        home / name / f"edits_{part}.jsonl"
        if name in config.rounds
        else home / "feedback" / f"{name}_{part}.jsonl"
        for name in arms.split_names(data)
    ]
    return ",".join(map(str, paths))
