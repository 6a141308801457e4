"""The folder of a run: checks of its config, locking, and results of finished runs.

Functions import JAX where they need it, since commands without devices import this file too.
"""

import contextlib
import json
import os
from pathlib import Path

from ml_collections import ConfigDict

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.runtime import files, interrupt, user_function

# Fields that may differ between starts, since they do not change results (except for the order of
# sums, with a pipeline's workers as with the number of cores).
UNCOMPARED_FIELDS = (
    *("run_dir", "tensorboard", "profile", "max_to_keep", "save_every"),
    *("distributed", "coordinator", "num_processes", "process_id"),
    # Of a pipeline, whose stages record their own settings.
    *("workers", "platforms", "seeds", "task", "run_arms", "title", "judge_name", "report_samples"),
)

MAX_SHOWN_FIELDS = 8  # differing fields in a message; more are counted
RESULT_FILES = ("eval.json", "metrics.jsonl", "samples.jsonl")  # finished.json has their digests

# Config fields of earlier versions: old name -> new name, or "" if removed.
RENAMED_FIELDS = {
    "select": "best_metric",
    "keep": "max_to_keep",
    "calibration_pairs": "normalization_pairs",  # of a reward model; the rest of PPO
    "batch_size": "minibatch_size",
    "epochs": "ppo_epochs",
    "lam": "gae_lambda",
    "clip": "clip_ratio",
    "value_clip": "value_clip_ratio",
    "samples": "logged_samples",
    "calibration": "reward_normalization",
    "frozen_dtype": "inference_dtype",
    "calibrated": "normalized",
    "data.smallest_bucket": "data.buckets",
    "sampling.unroll": "",
}

_locks: dict[Path, files.Lock] = {}  # locks of this process, by path


def flatten(config: dict, prefix: str = "") -> dict:
    """Flattens nested dicts to one dict with dotted names, such as ``model.path``."""
    flattened = {}
    for name, value in config.items():
        nested = isinstance(value, dict)
        flattened |= flatten(value, f"{prefix}{name}.") if nested else {prefix + name: value}
    return flattened


def config_values(config: ConfigDict) -> dict:
    """The JSON values of a config by dotted name, and digests of its user functions."""
    values = flatten(json.loads(config.to_json()))
    return values | user_function.file_digests(values)


def check_run(config: ConfigDict) -> None:
    """Raises InputError, naming differing fields, if ``run_dir`` has a run of another config."""
    folder = Path(config.run_dir)
    path = folder / "config.json"
    finished = [*folder.glob("finished.json"), *folder.glob("stages/*.json")]
    if not path.exists() and not finished:
        return  # a checkpoint stores its config too
    saved = files.read_json(path, {}, "put back a copy of it, or choose another run_dir")
    if "run_dir" not in saved:
        raise InputError(f"{path}: is not the config of a run; choose another run_dir")
    patterns = ("metrics.jsonl", "checkpoints/*")
    if not finished and not any(True for pattern in patterns for _ in folder.glob(pattern)):
        return  # an earlier start ended before its first result
    check_config(folder, flatten(saved), config)


def check_config(folder: Path, saved: dict, config: ConfigDict) -> None:
    """Raises InputError if a config differs from ``saved``, the values of a run."""
    current = user_function.comparable(config_values(config), saved)
    renamed = [
        f"{old} is now {new}" if new else f"{old} was removed"
        for old, new in RENAMED_FIELDS.items()
        if old in saved and old not in current and (new in current or not new)
    ]
    if renamed:
        raise InputError(
            f"run_dir={folder} holds a run of an earlier version, whose config fields and metrics "
            f"had other names ({', '.join(renamed)}); choose another run_dir, or finish it with "
            "that version"
        )
    if differing := differing_fields(saved, current):
        raise InputError(
            f"run_dir={folder} holds a run of another config: {differing}; "
            "choose another run_dir, or restore the saved values"
        )


def differing_fields(saved: dict, current: dict) -> str:
    """``NAME (saved …, now …), …`` for values that differ, except ``UNCOMPARED_FIELDS``, or ""."""
    names = [
        name
        for name in sorted(saved.keys() | current.keys())
        if saved.get(name, "unset") != current.get(name, "unset") and name not in UNCOMPARED_FIELDS
    ]

    def describe(name: str) -> str:
        field = name.removesuffix(".file")
        if field != name and field not in names:
            return f"the file of {field}={current.get(field)} has changed since"
        return f"{name} (saved {saved.get(name, 'unset')!r}, now {current.get(name, 'unset')!r})"

    shown = [*map(describe, names[:MAX_SHOWN_FIELDS])]
    hidden = len(names) - len(shown)
    return ", ".join(shown) + (f" and {hidden} more" if hidden else "")


def finish(folder: Path, step: int, summary: str, result: dict | None = None) -> None:
    """Writes ``result`` to ``eval.json``, and ``finished.json``; all processes must call this.

    ``finished.json`` has ``step``, the step of the exported model, and digests of the results.
    """
    import jax

    from fgrlhf_jax.runtime import multihost

    if jax.process_index() == 0:
        print(summary)
        if result is not None:
            files.write_json(folder / "eval.json", result)
        paths = [folder / name for name in RESULT_FILES]
        digests = {path.name: files.digest(path) for path in paths if path.exists()}
        files.write_json(folder / "finished.json", {"step": step, "sha256": digests})
    multihost.wait_for_all()


def read_finished(folder: Path) -> dict | None:
    """The content of ``finished.json``; None if the run is unfinished or ``eval.json`` is missing.

    Raises InputError if it or a result is damaged or was changed.
    """
    path = folder / "finished.json"
    if not path.exists() or not (folder / "export").exists():
        return None
    finished = files.read_json(path, {"step": 0, "sha256": {}})
    for name, digest in finished["sha256"].items():
        result = folder / name
        if files.digest(result) == digest:
            continue
        if result.suffix == ".jsonl":
            files.read_jsonl(result)  # raises with the number of a damaged row
        if name == "eval.json" and not result.exists():
            return None
        fault = "is not as the run left it" if result.exists() else "is missing"
        restore = "put back a copy of the file, or start in a new run_dir"
        remedy = files.RERUN_REMEDY if name == "eval.json" else restore
        raise InputError(f"{result}: {fault}; {remedy}")
    return finished


def lock(run_dir: str | Path) -> Path:
    """Creates and locks a run folder for this process until :func:`unlock`.

    The same process may lock it again. Of several processes of a run, process 0 holds the lock.

    Raises InputError if another process holds it (a stage of a pipeline waits instead), or if the
    folder cannot be written.
    """
    import jax

    folder = Path(run_dir)
    if jax.process_index() != 0:
        return folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder.resolve() / ".lock"
        if path in _locks:
            if _locks[path].valid:
                return folder
            _locks.pop(path).close()  # the folder was deleted since
        try:
            _locks[path] = files.Lock(path)
        except BlockingIOError as error:
            owner = ""
            with contextlib.suppress(FileNotFoundError):  # the owner has just ended
                owner = path.read_text()
            owner = owner or "unknown"
            # The old stage of a pipeline that was killed and restarted saves and ends by itself.
            if not os.environ.get(interrupt.PARENT_PID):
                raise InputError(
                    f"run_dir={folder}: another process (PID {owner}) is running there; wait for "
                    "it or choose another run_dir"
                ) from error
            print(f"waiting for process {owner}, which uses {folder}", flush=True)
            _locks[path] = files.Lock(path, wait=True)
    except OSError as error:
        raise InputError(
            f"run_dir={folder} cannot be written ({error.strerror}); choose another folder"
        ) from error
    return folder


def unlock() -> None:
    """Releases every run folder of this process."""
    while _locks:
        _locks.popitem()[1].close()


def open_run(config: ConfigDict) -> Path:
    """Creates or reopens the run folder of a config, locks it and writes ``config.json``.

    Raises InputError if the folder cannot be written, holds a run of another config, or is in use
    by another process; and if the processes of the run have different configs.
    """
    from fgrlhf_jax.runtime import multihost

    check_run(config)
    per_host = ("run_dir", "coordinator", "process_id")  # may differ between processes
    shared = {name: value for name, value in config_values(config).items() if name not in per_host}
    multihost.check_same(json.dumps(shared, sort_keys=True), "config values")

    def create() -> Path:
        folder = lock(config.run_dir)
        # Checkpoints without a config.json are checked against this config first.
        if (folder / "config.json").exists() or not any(folder.glob("checkpoints/*")):
            write_config(folder, config)
        return folder

    return multihost.from_process_0(create)


def write_config(folder: Path, config: ConfigDict) -> None:
    files.write_json(folder / "config.json", json.loads(config.to_json()))
