"""What commands use where no file is given: the embedded world, and models trained on it."""

from collections.abc import Callable
from pathlib import Path

from ml_collections import ConfigDict

from fgrlhf_jax.data.split import split
from fgrlhf_jax.errors import InputError
from fgrlhf_jax.runtime import multihost, run_dir, sharding
from fgrlhf_jax.runtime.files import read_json, write_jsonl
from fgrlhf_jax.tiny_world.datasets import make_feedback, make_instructions
from fgrlhf_jax.tiny_world.words import make_tokenizer
from launch.shared import cli, config_files, reading


def instructions(folder: Path, seed: int) -> dict[str, list]:
    """Demonstrations to imitate and to validate on; written to ``folder`` too."""
    train = make_instructions(16000, "sft", seed)
    return _write(folder, train=train, validation=make_instructions(500, "validation", seed))


def pairs(folder: Path, seed: int) -> dict[str, list]:
    """Edits to train and validate on, both kinds to test on; written to ``folder`` too."""
    edits, preferences = make_feedback(3000, seed)
    train, rest = split(edits, 0.25, seed)
    _, held_out = split(preferences, 0.25, seed)
    return _write(folder, train=train, validation=rest[::2], test=rest[1::2] + held_out)


def prompts(folder: Path, seed: int) -> dict[str, list]:
    """Prompts to learn from and to evaluate on; written to ``folder`` too."""
    train = make_instructions(4000, "ppo", seed)
    return _write(folder, train=train, validation=make_instructions(256, "validation", seed))


def train(
    config: ConfigDict, run: Callable[..., dict], need: str, make: Callable[[Path, int], dict]
) -> dict:
    """The content of ``eval.json`` of a run: made now, gone on with, or of a finished one.

    Args:
      run: ``training.sft.run`` or ``reward_model.train.run``.
      need: the rows that it learns from, as for ``reading.read_sets``.
      make: the embedded data where the config names no file.
    """
    cli.check_run(config)
    cli.use_devices(config)
    run_dir.check_run(config)
    folder = Path(config.run_dir)
    if run_dir.read_finished(folder):
        print(f"{folder} is finished; its figures again:")
        to_do = f"delete {folder / 'finished.json'} and run the same command"
        return read_json(folder / "eval.json", {"validation": {}}, to_do)
    if config.train:
        return run(config, reading.read_sets(config, config.train, need))
    cli.check_embedded(config)
    run_dir.lock(folder)
    return run(config, make(folder / "data", config.seed), make_tokenizer())


def _write(folder: Path, **sets: list) -> dict[str, list]:
    def write() -> None:
        for name, rows in sets.items():
            write_jsonl(folder / f"{name}.jsonl", rows)

    multihost.from_first(write)
    return sets


def ensure_trained(main: Callable[[ConfigDict], None], spec: str, mesh: str) -> str:
    """The run folder of a config; ``main`` of its command is run now where it is not finished.

    Raises InputError of that command, or where ``mesh``, of the one that needs it, is not of the
    devices: before minutes of training.
    """
    sharding.make_mesh(mesh)
    config = config_files.load(spec)
    if run_dir.read_finished(Path(config.run_dir)):
        print(f"{config.run_dir} is there already, and used as it is")
    else:
        print(f"{config.run_dir} is made first, with --config={spec}")
        try:
            main(config)
        except InputError as error:
            raise InputError(
                f"{error} (this is about {config.run_dir}, made with --config={spec}: move the "
                "folder away to have it made anew)"
            ) from error
    return config.run_dir
