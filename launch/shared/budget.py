"""Equal training budgets for the arms of a study: updates, or seconds of updates."""

import importlib
from collections.abc import Sequence
from dataclasses import replace

from ml_collections import ConfigDict

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.pipeline.flags import parse_flags
from fgrlhf_jax.pipeline.stages import Stage
from launch.shared import config_files

MAX_STEPS = 10**5  # steps; a limit in seconds ends every run earlier


def limit_stages(config: ConfigDict, planned: Sequence[Stage]) -> list[Stage]:
    """Limits the stages that train an arm or a reward model to ``config.budget_amount``.

    An update is one optimizer step; a step of PPO has several. The flags of an arm override the
    budget. With seconds the learning rate is constant, since the last step is not known in advance.

    Raises InputError if ``budget_amount`` is not above 0.
    """
    if not config.budget:
        return [*planned]
    if config.budget_amount <= 0:
        raise InputError(
            f"budget_amount={config.budget_amount:g}: is not a number of {config.budget}; give one "
            "above 0"
        )
    return [_limit(config, stage) for stage in planned]


def _limit(config: ConfigDict, stage: Stage) -> Stage:
    name = stage.name.rpartition("/")[2]
    member = config.arms.get(name) or config.reward_models.get(name)
    if not member:
        return stage
    if config.budget == "seconds":
        flags = {"max_seconds": config.budget_amount, "steps": MAX_STEPS}
        flags["optimizer.schedule"] = "constant"
    else:
        flags = {"steps": max(1, round(config.budget_amount / updates_per_step(stage)))}
    member_flags = parse_flags(member.flags)
    flags = {flag: value for flag, value in flags.items() if flag not in member_flags}
    unchanged = [word for word in stage.command if word[9:].partition("=")[0] not in flags]
    added = [f"--config.{flag}={value}" for flag, value in flags.items()]
    return replace(stage, command=(*unchanged, *added))


def updates_per_step(stage: Stage) -> int:
    """Optimizer steps per step of a stage's command."""
    config = config_files.parse(stage.command, importlib.import_module(stage.command[0]).CONFIG)
    if "ppo_epochs" not in config:
        return 1
    return config.ppo_epochs * -(-config.rollout_batch_size // config.minibatch_size)
