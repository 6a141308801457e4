"""Train a reward model.

python -m launch.train_rm --config=configs/rm.py:MODEL[,LOSS] [--config.FIELD=VALUE …]

With no flag at all it makes its own small data and trains tiny,token_edit. The same command on the
same run_dir goes on where it stopped. It writes config.json, metrics.jsonl, checkpoints/, export/
(a Hugging Face folder) and eval.json to run_dir.
"""

import importlib.util
import json
import re
from pathlib import Path

import jax

from fgrlhf_jax import objectives, records, reward_loop, reward_stats, run_folder, tiny_world
from fgrlhf_jax.errors import InputError
from launch import cli

CHOICES = {
    "loss": objectives.LOSSES,
    "select": ("loss", "accuracy"),
    "model.head": ("after", "state_action"),
    "model.head_init": ("normal", "zero"),
    "model.dtype": ("float32", "bfloat16"),
    "model.attention": ("auto", "xla", "cudnn"),
}
AT_LEAST = {
    **dict.fromkeys(("batch_size", "calibration_pairs", "data.smallest_bucket", "keep"), 1),
    **dict.fromkeys(("seed", "micro_batch_size", "eval_batch_size", "epochs", "steps"), 0),
    **dict.fromkeys(("eval_every", "save_every", "patience"), 0),
    **dict.fromkeys(("center_weight", "consistency_weight"), 0),
    **dict.fromkeys((f"optimizer.{n}" for n in ("learning_rate", "warmup_share", "eps")), 0),
    **dict.fromkeys(("optimizer.weight_decay", "optimizer.clip_norm"), 0),
}


def check(config) -> None:
    """Raises InputError for a value that no data or model could make right."""
    cli.check(config, choices=CHOICES, at_least=AT_LEAST)
    if not config.run_dir:
        raise InputError("run_dir is empty; give --config.run_dir=FOLDER")
    try:
        re.compile(config.optimizer.freeze)
    except re.error as error:
        raise InputError(
            f"optimizer.freeze={config.optimizer.freeze!r}: is no regular expression ({error})"
        ) from error
    if config.tensorboard and not importlib.util.find_spec("tensorboardX"):
        raise InputError("tensorboard=True needs: pip install 'fgrlhf_jax[tensorboard]'")


def read_sets(config) -> dict[str, list]:
    """Records of train, validation and test; the embedded data where ``train`` is empty."""
    if not config.train:
        others = config.model.path or config.validation or config.test
        if others or config.model.size != "tiny":
            raise InputError(
                "train is empty; give --config.train=FILE (only tiny makes its data)"
            )
        return tiny_sets(Path(config.run_dir) / "data", config.seed)
    train = records.read(config.train)
    if config.validation:
        sets = {"train": train, "validation": records.read(config.validation)}
    else:
        train, validation = records.split(train, config.validation_share, config.seed)
        sets = {"train": train, "validation": validation}
    if config.test:
        sets["test"] = records.read(config.test)
    return sets


def tiny_sets(folder: Path, seed: int) -> dict[str, list]:
    """Edits to train and validate on, both kinds to test on; written to ``folder`` too."""
    edits, preferences = tiny_world.generate(3000, seed)
    train, rest = records.split(edits, 0.25, seed)
    _, held = records.split(preferences, 0.25, seed)
    sets = {"train": train, "validation": rest[::2], "test": rest[1::2] + held}
    for name, rows in sets.items():
        records.write_jsonl(folder / f"{name}.jsonl", rows)
    return sets


def connect(config) -> None:
    """Join the other processes; must come before anything else that uses devices."""
    try:
        jax.distributed.initialize(
            config.coordinator or None,
            config.num_processes or None,
            config.process_id if config.process_id >= 0 else None,
        )
    except (ValueError, RuntimeError) as error:
        raise InputError(
            f"distributed=True: {error}; give coordinator, num_processes and process_id"
        ) from error


def main(config) -> None:
    check(config)
    if config.distributed:
        connect(config)
    run_folder.check_run(config)
    finished = Path(config.run_dir) / "eval.json"
    if finished.exists():
        print(f"{config.run_dir} is finished; its table again:")
        result = json.loads(finished.read_text())
    else:
        result = reward_loop.run(config, read_sets(config))
    print(reward_stats.format_table(result))


if __name__ == "__main__":
    cli.command(main, "configs/rm.py:tiny,token_edit", __doc__)
