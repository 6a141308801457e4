"""Checks the stages of a pipeline before any of them runs."""

import importlib
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.pipeline import datasets, tasks
from fgrlhf_jax.pipeline.stages import Stage
from fgrlhf_jax.ppo.algorithm import samples_per_prompt
from launch.shared import config_files


def check_commands(planned: Sequence[Stage]) -> None:
    """Raises InputError for the first flag that its stage's command would reject."""
    for stage in planned:
        if stage.command[0] == "launch.pipeline":  # a task, which has no flags of its own
            continue
        module = importlib.import_module(stage.command[0])
        try:
            config = config_files.parse(stage.command, module.CONFIG)
            if hasattr(module, "check"):
                module.check(config)
        except InputError as error:
            raise InputError(f"stage {stage.name}: {error}") from error


def check_data(config: ConfigDict, planned: Sequence[Stage]) -> None:
    """Raises InputError for data that a later stage would reject, before hours of training.

    Checks the model's template, and that every training has enough rows for one batch.
    """
    if config.model:
        tasks.check_template(config.model, config.template)
    folder = Path(config.run_dir)
    if (folder / "stages" / "data.json").exists():  # the user's files may have been removed
        paths = (folder / "data").glob("*.jsonl")
        counts = {path.stem: path.read_bytes().count(b"\n") for path in paths}
    elif config.embedded:
        counts = {"ppo": config.world.ppo, "sft": config.world.sft}
    else:
        sets = datasets.drop_held_out_prompts(datasets.read_file_sets(config))
        counts = {name: len(rows) for name, rows in sets.items()}
    for stage in planned:
        fields = config_files.parse(stage.command, importlib.import_module(stage.command[0]).CONFIG)
        is_ppo = "rollout_batch_size" in fields
        field = "rollout_batch_size" if is_ppo else "batch_size"
        files = [Path(f) for f in (fields.get("prompts" if is_ppo else "train") or "").split(",")]
        if any(f.parent.name not in ("data", "feedback") or f.stem not in counts for f in files):
            continue  # a file of a round of edits, which does not exist yet
        rows = sum(counts[file.stem] for file in files)
        size = fields[field] // (samples_per_prompt(fields) if is_ppo else 1)
        if rows < size:
            raise InputError(
                f"stage {stage.name}: {field}={fields[field]} needs {size} rows, and training has "
                f"{rows}; give more rows, or lower it in the flags of its command"
            )
