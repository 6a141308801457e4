"""Embedded data, and models trained on it, for commands that get no input files."""

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

REWARD_MODEL = "runs/rm_tiny_token_edit"  # run_dir of launch.train_rm without flags


def instructions(
    folder: Path, seed: int, name: str = "sft", count: int = 16000, held_out: int = 500
) -> dict[str, list]:
    """Instructions of the set ``name`` and for validation; also writes them to ``folder``."""
    train = make_instructions(count, name, seed)
    return _write(folder, train=train, validation=make_instructions(held_out, "validation", seed))


def pairs(folder: Path, seed: int) -> dict[str, list]:
    """Edits for training and validation, edits and preferences as test; also writes them."""
    edits, preferences = make_feedback(3000, seed)
    train, rest = split(edits, 0.25, seed)
    _, held_out = split(preferences, 0.25, seed)
    return _write(folder, train=train, validation=rest[::2], test=rest[1::2] + held_out)


def train(
    config: ConfigDict, run: Callable[..., dict], need: str, make_data: Callable[[Path, int], dict]
) -> dict:
    """Starts or resumes a run, or reads a finished one; returns the content of ``eval.json``.

    Args:
      run: ``training.sft.run``, ``training.dpo.run`` or ``reward_model.train.run``.
      need: the kind of rows that it learns from, as for ``reading.read_sets``.
      make_data: makes embedded data if the config names no file.
    """
    cli.check_run(config)
    cli.use_devices(config)
    run_dir.check_run(config)
    folder = Path(config.run_dir)
    if run_dir.read_finished(folder):
        print(f"{folder} is finished; its results:")
        remedy = f"delete {folder / 'finished.json'} and run the same command"
        return read_json(folder / "eval.json", {"validation": {}}, remedy)
    if config.train:
        return run(config, reading.read_sets(config, config.train, need))
    cli.check_embedded(config)
    run_dir.lock(folder)
    return run(config, make_data(folder / "data", config.seed), make_tokenizer())


def _write(folder: Path, **sets: list) -> dict[str, list]:
    def write() -> None:
        for name, rows in sets.items():
            write_jsonl(folder / f"{name}.jsonl", rows)

    multihost.from_process_0(write)
    return sets


def check_embedded_exists(config: ConfigDict, *names: str) -> None:
    """Raises InputError if a field names a missing file or folder of the embedded world's run."""
    for name in names:
        path = Path(config[name])
        if path.parts[:2] == Path(REWARD_MODEL).parts and not path.exists():
            remedy = f"run `python -m launch.train_rm` first, or give another --config.{name}"
            raise InputError(f"{name}={path}: does not exist; {remedy}")


def ensure_trained(main: Callable[[ConfigDict], None], spec: str, mesh: str) -> str:
    """The run folder of a config; runs ``main`` of its command first unless the run is finished.

    Raises InputError from that command, or, before training, if ``mesh`` of the calling command
    does not fit the devices.
    """
    sharding.make_mesh(mesh)
    config = config_files.load(spec)
    if run_dir.read_finished(Path(config.run_dir)):
        print(f"{config.run_dir} exists and is used")
    else:
        print(f"{config.run_dir} is trained first, with --config={spec}")
        try:
            main(config)
        except InputError as error:
            raise InputError(
                f"{error} (this error is about {config.run_dir}, trained with --config={spec}; "
                "move the folder away to train again)"
            ) from error
    return config.run_dir
