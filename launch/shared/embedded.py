"""What commands use where no file is given: the embedded world, and models trained on it."""

from pathlib import Path

from fgrlhf_jax.data import records
from fgrlhf_jax.runtime import multihost
from fgrlhf_jax.tiny_world import datasets as tiny_world
from launch.shared import cli


def instructions(folder: Path, seed: int) -> dict[str, list]:
    """Demonstrations to imitate and to validate on; written to ``folder`` too."""
    sets = {
        "train": tiny_world.instructions(16000, "sft", seed),
        "validation": tiny_world.instructions(500, "validation", seed),
    }
    return written(folder, sets)


def pairs(folder: Path, seed: int) -> dict[str, list]:
    """Edits to train and validate on, both kinds to test on; written to ``folder`` too."""
    edits, preferences = tiny_world.generate(3000, seed)
    train, rest = records.split(edits, 0.25, seed)
    _, held = records.split(preferences, 0.25, seed)
    return written(folder, {"train": train, "validation": rest[::2], "test": rest[1::2] + held})


def prompts(folder: Path, seed: int) -> dict[str, list]:
    """Prompts to learn from and to watch; written to ``folder`` too."""
    sets = {
        "train": tiny_world.instructions(4000, "ppo", seed),
        "validation": tiny_world.instructions(256, "validation", seed),
    }
    return written(folder, sets)


def written(folder: Path, sets: dict[str, list]) -> dict[str, list]:
    def write() -> None:
        for name, rows in sets.items():
            records.write_jsonl(folder / f"{name}.jsonl", rows)

    multihost.from_first(write)
    return sets


def policy() -> str:
    """The policy that ``launch.sft`` trains with no flag; trained now if it is missing."""
    from launch import sft

    return _made(sft.main, "configs/sft.py:tiny")


def reward_model(level: str) -> str:
    """The reward model of ``launch.train_rm --config=configs/rm.py:tiny,…``; made if missing."""
    from launch import train_rm

    loss = "sequence" if level == "sequence" else "token_edit"
    return _made(train_rm.main, f"configs/rm.py:tiny,{loss}")


def _made(main, spec: str) -> str:
    config = cli.load(spec)
    if not (Path(config.run_dir) / "eval.json").exists():
        print(f"{config.run_dir} is made first, with --config={spec}")
        main(config)
    return config.run_dir
