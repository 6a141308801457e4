"""The folder of a run: one config, one command, as often as it takes to finish."""

import contextlib
import json
import os
import signal
from pathlib import Path

import jax
from ml_collections import ConfigDict

from fgrlhf_jax.errors import InputError

# Fields that say how a run is watched, not what it computes: they may differ between starts.
FREE = (
    *("run_dir", "tensorboard", "keep", "save_every", "coordinator", "process_id"),
    *("workers", "seeds", "task"),  # of a pipeline: more seeds go on where fewer stopped
)


def write_json(path: Path, value) -> None:
    """:func:`write_text` of ``value`` as JSON."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Atomically, making the folder: the file is whole or as before.

    Raises:
      InputError: when it cannot be written, the disk being full, say.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text)
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise InputError(
            f"{path}: cannot be written ({error.strerror}); choose another folder or free some "
            "space"
        ) from error


def flatten(config: dict, prefix: str = "") -> dict:
    """{"model.path": …} of nested dicts."""
    flat = {}
    for name, value in config.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def check_run(config: ConfigDict) -> None:
    """Raises InputError when ``run_dir`` holds the work of another config, naming the fields."""
    folder = Path(config.run_dir)
    path = folder / "config.json"
    if not path.exists():
        return
    try:
        then = flatten(json.loads(path.read_text()))
    except ValueError as error:
        raise InputError(f"{path}: is not JSON ({error}); choose another run_dir") from error
    if "run_dir" not in then:
        raise InputError(f"{path}: is not of a run of ours; choose another run_dir")
    work = ("metrics.jsonl", "checkpoints/*", "stages/*.json")
    if not any(True for pattern in work for _ in folder.glob(pattern)):
        return  # a start that came to nothing
    now = flatten(json.loads(config.to_json()))
    differing = [
        f"{name} (there {then.get(name, 'unset')!r}, now {now.get(name, 'unset')!r})"
        for name in sorted(then.keys() | now.keys())
        if then.get(name, "unset") != now.get(name, "unset") and name not in FREE
    ]
    if differing:
        raise InputError(
            f"run_dir={folder} holds a run of another config: {', '.join(differing)}; "
            "choose another run_dir or use the same values"
        )


def open_run(config: ConfigDict) -> Path:
    """Create the run folder, or recognise it as this config's own, and write ``config.json``.

    Raises:
      InputError: when the folder cannot be written, or holds the work of another config.
    """
    check_run(config)
    folder = Path(config.run_dir)
    if jax.process_index() == 0:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"run_dir={folder} cannot be written ({error.strerror}); choose another folder"
            ) from error
        write_json(folder / "config.json", json.loads(config.to_json()))
    return folder


class Interrupt:
    """Ctrl-C and SIGTERM as a flag, so that a run stops between two steps and saves first.

    With several processes a signal to one of them ends it at once: the others cannot know.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __enter__(self):
        self.asked = False
        signals = self.SIGNALS if jax.process_count() == 1 else ()
        self.before = {s: signal.signal(s, self._ask) for s in signals}
        return self

    def _ask(self, number, frame):
        if self.asked:  # a second time means now
            raise KeyboardInterrupt
        self.asked = True

    def __exit__(self, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler)
