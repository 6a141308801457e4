"""The stages of a study: one command per model to train, and the tasks between them.

    data → sft → samples → feedback → reward models, arms, rounds of edits → answers and tables

All seeds share ``data`` and ``sft``; the other stages run once per seed. ``arms.py`` has the
dependencies after ``feedback``.
"""

import dataclasses
import os
import re
from collections.abc import Iterable
from pathlib import Path

from ml_collections import ConfigDict

from fgrlhf_jax.pipeline import arms
from fgrlhf_jax.pipeline.flags import command_line, read_flags
from fgrlhf_jax.pipeline.stages import Stage
from fgrlhf_jax.ppo.algorithm import ALGORITHMS
from fgrlhf_jax.runtime import user_function
from fgrlhf_jax.runtime.run_dir import flatten
from fgrlhf_jax.runtime.versions import count_cores

ORACLE = "fgrlhf_jax.tiny_world.judge:oracle_rewards"
# Fields, or groups of fields, that determine a task's output (a command's flags determine its own).
_SAMPLING = ("template", "max_prompt_length", "max_new_tokens")
TASK_FIELDS = {
    "data": ("embedded", "seed", "files", "world"),
    "feedback": ("embedded", "seed", "files.edits", "world.rates"),
    "parts": ("embedded", "seed"),
    "round": ("embedded", "seed", "world.rates", "rounds.{name}.part"),
    "tables": ("embedded", "heatmaps", "table_batch_size"),
    "answers": (
        *("embedded", "seed", "model", "judge", "fluency_model", "test_prompts", *_SAMPLING),
        *("answer_batch_size", "table_batch_size"),
    ),
}


def policy_folder(config: ConfigDict, folder: Path, seed: int, arm: str) -> str:
    """The folder of an arm's language model, or of the policy that all arms start from."""
    if arm == arms.BASE:
        return config.model or str(folder / "sft" / "export")
    return str(folder / f"seed_{seed}" / arm / "export")


def build_stages(config: ConfigDict, folder: Path) -> list[Stage]:
    """All stages, in the order in which to start them; raises InputError for bad arms or flags."""
    names, seeds = arms.select(config), range(config.seeds)
    seed_dirs = {seed: folder / f"seed_{seed}" for seed in seeds}
    base = () if config.model else ("sft",)
    stages = [_task_stage(config, folder, "data", folder / "data" / "test.jsonl", ())]
    if base:
        stages.append(_sft_stage(config, folder))
    if config.embedded:
        prompts = folder / "data" / "feedback.jsonl"
        stages += [
            _sample_stage(config, folder, seed, "samples", arms.BASE, prompts, base)
            for seed in seeds
        ]
    for seed, seed_dir in seed_dirs.items():
        needs = (f"seed_{seed}/samples" if config.embedded else "data",)
        output = seed_dir / "feedback" / "counts.json"
        stages.append(_task_stage(config, folder, f"feedback:{seed}", output, needs))
    # An arm comes right after its dependencies. Reward models or arms that compile to the same
    # programs then rarely start together, so that the later ones read the compilation cache.
    for seed in seeds:
        common = (f"feedback:{seed}", *base)
        for name in names:
            needs = common + _stage_names(seed, arms.dependencies(config, name))
            stages += _member_stages(config, folder, seed, name, needs)
    for task, group, output in (
        ("tables", "reward_models", "tables.json"),
        ("answers", "arms", "answers/sft.json"),
    ):
        for seed, seed_dir in seed_dirs.items():
            needs = (f"feedback:{seed}", *base)
            needs += _stage_names(seed, arms.selected(config, group, names))
            stages.append(_task_stage(config, folder, f"{task}:{seed}", seed_dir / output, needs))
    # A platform chosen in the user's environment has priority.
    sets_platform = config.platforms and "JAX_PLATFORMS" not in os.environ
    platform = {"JAX_PLATFORMS": config.platforms} if sets_platform else {}
    # XLA starts one thread per core: divide the cores among the stages that run at once.
    threads = {"NPROC": str(max(1, count_cores() // config.workers))} if config.workers > 1 else {}
    return [
        dataclasses.replace(
            stage,
            environment=({} if stage.name == "sft" else threads) | platform | stage.environment,
        )
        for stage in stages
    ]


def _stage_names(seed: int, names: Iterable[str]) -> tuple[str, ...]:
    return tuple(f"seed_{seed}/{name}" for name in names)


def _task_stage(
    config: ConfigDict, folder: Path, task: str, output: Path, needs: tuple, name: str = ""
) -> Stage:
    """A stage that runs ``tasks.run_task`` with the config of the run folder."""
    words = ("launch.pipeline", f"--config.run_dir={folder}", f"--config.task={task}")
    return Stage(name or task, words, output, needs, fields=task_fields(config, task))


def task_fields(config: ConfigDict, task: str) -> dict[str, object]:
    """The config values that determine a task's output, by dotted name."""
    kind, _, name = (*task.split(":"), "", "")[:3]
    groups = [group.format(name=name) for group in TASK_FIELDS[kind]]
    fields = {
        field: value
        for field, value in flatten(config.to_dict()).items()
        if any(field == group or field.startswith(f"{group}.") for group in groups)
    }
    return fields | user_function.file_digests(fields)


def _sft_stage(config: ConfigDict, folder: Path) -> Stage:
    """The command that trains the policy that all arms start from."""
    settings = _training_settings(config, folder / "sft", 0)
    settings["train"] = folder / "data" / "sft.jsonl"
    if config.embedded:
        settings["model.tokenizer"] = folder / "data" / "tokenizer"
    words = command_line("launch.sft", config.sft.config, read_flags(config, "sft"), settings)
    devices = {"JAX_NUM_CPU_DEVICES": str(config.sft.devices)} if config.sft.devices else {}
    return Stage("sft", words, folder / "sft" / "eval.json", ("data",), devices)


def _training_settings(config: ConfigDict, run_dir: Path, seed: int) -> dict[str, object]:
    prompts = {f"data.{name}": config[name] for name in ("template", "max_prompt_length")}
    return {"run_dir": run_dir, "seed": config.seed + seed, **prompts}


def _sample_stage(
    config: ConfigDict,
    folder: Path,
    seed: int,
    name: str,
    policy: str,
    prompts: Path,
    needs: tuple[str, ...],
    greedy: bool = False,
) -> Stage:
    """Samples responses for editing: two per prompt in the embedded world or with ``greedy``."""
    output = folder / f"seed_{seed}" / f"{name}.json"
    settings = {
        "model": policy_folder(config, folder, seed, policy),
        "prompts": prompts,
        "output": output,
        "samples": 2 if config.embedded or greedy else 1,
        **({"greedy_last": True} if greedy else {}),
        "temperature": 1.0,
        "seed": config.seed + seed,
        **{name: config[name] for name in _SAMPLING},
        "batch_size": config.answer_batch_size,
    }
    words = command_line("launch.generate", "configs/generate.py", {}, settings)
    return Stage(f"seed_{seed}/{name}", words, output, needs)


def _member_stages(
    config: ConfigDict, folder: Path, seed: int, name: str, needs: tuple[str, ...]
) -> list[Stage]:
    """The stages that make an arm, a reward model, a round of edits or parts of the prompts."""
    seed_dir, stage = folder / f"seed_{seed}", f"seed_{seed}/{name}"
    if arms.group_of(config, name) in ("arms", "reward_models"):
        return [_training_stage(config, folder, seed, name, needs)]
    if name.startswith(arms.PARTS_PREFIX):
        stages, task = [], f"parts:{seed}:{name.removeprefix(arms.PARTS_PREFIX)}"
        needs = needs[:1]  # the feedback
    else:
        task, edit_round = f"round:{seed}:{name}", config.rounds[name]
        number, total = arms.split_part("part", edit_round.part)
        prompts = seed_dir / f"{arms.PARTS_PREFIX}{total}" / f"prompts_{number}.jsonl"
        options = (f"{name}_samples", edit_round.policy, prompts, needs, edit_round.greedy)
        stages = [_sample_stage(config, folder, seed, *options)]
        needs = (stages[0].name,)
    output = seed_dir / name / "counts.json"
    return [*stages, _task_stage(config, folder, task, output, needs, stage)]


def _training_stage(
    config: ConfigDict, folder: Path, seed: int, name: str, needs: tuple[str, ...]
) -> Stage:
    """The command that trains an arm or a reward model."""
    seed_dir, group = folder / f"seed_{seed}", arms.group_of(config, name)
    member = config[group][name]
    learner = "rm" if group == "reward_models" else member.learner
    start = policy_folder(config, folder, seed, member.start)
    settings = _training_settings(config, seed_dir / name, seed)
    if learner in ALGORITHMS:
        kind, command, argument = "ppo", "launch.ppo", f",{arms.reward_level(config, name)}"
        settings |= {
            **_reward(config, folder, seed, member.reward),
            "algorithm": learner,
            "data.max_new_tokens": config.max_new_tokens,
            "policy": start,
            "prompts": folder / "data" / "ppo.jsonl",
            "validation": folder / "data" / "validation.jsonl",
            "judge": config.judge,
        }
    else:
        kind, command, argument = {
            "rm": ("rm", "launch.train_rm", f",{member.get('loss')}"),
            "sft": ("imitate", "launch.sft", ""),
        }.get(learner, ("dpo", "launch.dpo", f",{learner}"))
        settings["policy" if kind == "dpo" else "model.path"] = start
        for side in ("train", "validation"):
            settings[side] = data_files(config, seed_dir, member.data, side)
    flags = {
        flag: re.sub(r"\{(\w+)\}", lambda arm: policy_folder(config, folder, seed, arm[1]), value)
        for flag, value in read_flags(config, kind, f"{group}.{name}").items()
    }
    if kind == "ppo" and not config.embedded:  # truncate long prompts, as SFT and reward models do
        flags = {"data.overlong": "truncate"} | flags
    words = command_line(command, config[kind].config + argument, flags, settings)
    output = "finished.json" if kind == "ppo" else "eval.json"
    fields = user_function.file_digests(settings | flags)
    return Stage(f"seed_{seed}/{name}", words, seed_dir / name / output, needs, fields=fields)


def _reward(config: ConfigDict, folder: Path, seed: int, reward: str) -> dict[str, object]:
    """The config field of launch.ppo that sets an arm's ``reward``."""
    if reward == arms.ORACLE:
        return {"reward_function": ORACLE}
    if ":" in reward:
        policy, reference, *weight = reward.split(":")
        folders = [policy_folder(config, folder, seed, arm) for arm in (policy, reference)]
        return {"reward_model": ":".join([*folders, *weight])}
    models = [str(folder / f"seed_{seed}" / name) for name in arms.split_names(reward)]
    return {"reward_model": ",".join(models)}


def data_files(config: ConfigDict, seed_dir: Path, data: str, side: str) -> str:
    """The files of ``train`` or ``validation`` that a ``data`` field names, joined by commas."""
    paths = []
    for name in arms.split_names(data):
        if name in config.rounds:
            path = seed_dir / name / f"edits_{side}.jsonl"
        elif part := arms.part_of(name):
            number, total = arms.split_part("data", part)
            path = seed_dir / f"{arms.PARTS_PREFIX}{total}" / f"edits_{number}_{side}.jsonl"
        else:
            path = seed_dir / "feedback" / f"{name}_{side}.jsonl"
        paths.append(str(path))
    return ",".join(paths)
