"""Checksums of an export, which detect changes to its weights or to files that they depend on."""

import contextlib
import functools
import hashlib
import json
import time
from pathlib import Path

from fgrlhf_jax.errors import InputError

CONFIG = "config.json"
# An adapter's files in Hugging Face PEFT's format, and its counterpart of config.json: beside a
# file of that name transformers would look for whole weights.
ADAPTER, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
ADAPTER_META = "fgrlhf.json"
BASE_FIELD = "base_model_name_or_path"  # may change: an adapter also records a digest of its base
PATTERNS = ("*.json", "*.jinja", "*.model", "*.safetensors")  # the files that make up a model
SETTLED_NS = 2_000_000_000  # nanoseconds without a change after which a digest is cached


def is_adapter(folder: Path) -> bool:
    """Whether a folder has the config of a PEFT adapter."""
    return (folder / ADAPTER).is_file()


def config_file(folder: Path) -> Path:
    """The file with an export's config and this project's metadata."""
    return folder / (ADAPTER_META if is_adapter(folder) else CONFIG)


def write_config(folder: Path, config: dict) -> None:
    """Writes the config, with the checksums of it and of all other files under "fgrlhf"."""
    file = config_file(folder)
    sums = {name: _digest(folder / name) for name in files(folder)}
    config["fgrlhf"]["sha256"] = sums | {file.name: _config_digest(config)}
    file.write_text(json.dumps(config, indent=2))


def check(folder: Path, config: dict, *, weights: bool) -> None:
    """Raises InputError, naming the file, if an export of this project was changed.

    Other checkpoints have no checksums; exports of earlier versions have them for weights only.
    ``config`` is the content of the folder's :func:`config_file`. Checked are the ``weights``, or
    otherwise all the small files.
    """
    meta, own = config.get("fgrlhf", {}), config_file(folder).name
    sums = meta.get("sha256", {}) if isinstance(meta, dict) else None
    if not isinstance(sums, dict) or not isinstance(meta.get("data", {}), dict):
        raise InputError(
            f'{folder / own}: "fgrlhf" and its "data" and "sha256" must be JSON objects, as '
            "they were exported; use a sound copy"
        )
    added = set(files(folder)) - set(sums) if own in sums else ()
    for name in [*sorted(sums), *sorted(added)]:
        if name.endswith(".safetensors") != weights:
            continue
        file = folder / name
        digest = _config_digest(config) if name == own else file.is_file() and _digest(file)
        remedy = f'delete "sha256" in {own} if the change is meant, as after another tool saved it'
        if name in added:
            raise InputError(f"{file}: is no part of this export; delete it, or {remedy}")
        if digest != sums[name]:
            raise InputError(
                f"{file}: is damaged, missing or not the one of this export (by the checksums in "
                f"{own}); copy the folder again, or {remedy}"
            )


def files(folder: Path) -> list[str]:
    """Relative paths of the files that make up the model in a folder."""
    paths = {file for pattern in PATTERNS for file in folder.rglob(pattern) if file.is_file()}
    names = {file.relative_to(folder).as_posix() for file in paths}
    return sorted(name for name in names if not name.startswith("."))


def _digest(file: Path) -> str:
    """The SHA-256 of a file, cached while the file is unchanged.

    A file changed very recently is not cached: it may change again within the same timestamp. For
    an adapter's config, the location of its base is left out, since it differs between machines.
    """
    if file.name == ADAPTER:
        with contextlib.suppress(ValueError, AttributeError, RecursionError):
            fields = json.loads(file.read_text(encoding="utf-8")).items()
            return _sha256(json.dumps(sorted(field for field in fields if field[0] != BASE_FIELD)))
    status = file.stat()
    times = status.st_mtime_ns, status.st_ctime_ns
    identity = status.st_dev, status.st_ino, status.st_size, *times
    is_settled = time.time_ns() - max(times) > SETTLED_NS
    return _read_digest(file, identity) if is_settled else _read_digest.__wrapped__(file)


@functools.lru_cache(maxsize=256)
def _read_digest(file: Path, *_) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _config_digest(config: dict) -> str:
    """A digest of config.json without the checksums, independent of its formatting."""
    meta = {name: value for name, value in config["fgrlhf"].items() if name != "sha256"}
    return _sha256(json.dumps(config | {"fgrlhf": meta}, sort_keys=True))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
