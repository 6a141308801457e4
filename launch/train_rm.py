"""Train a reward model.

python -m launch.train_rm --config=configs/rm.py:MODEL[,LOSS] [--config.FIELD=VALUE …]

With no flag at all it makes its own small data and trains tiny,token_edit. The same command on the
same run_dir goes on where it stopped. It writes config.json, metrics.jsonl, checkpoints/, export/
(a Hugging Face folder) and eval.json to run_dir.
"""

import json
from pathlib import Path

from fgrlhf_jax import records, reward_loop, reward_stats, run_folder, tiny_world
from fgrlhf_jax.errors import InputError
from launch import cli


def read_sets(config) -> dict[str, list]:
    """Records of train, validation and test; the embedded data where ``train`` is empty."""
    if not config.train:
        if config.model.path:
            raise InputError("train is empty; give --config.train=FILE for a model of your own")
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


def main(config) -> None:
    if config.distributed:
        import jax

        jax.distributed.initialize()
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
