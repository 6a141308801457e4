"""Resolves model paths (local folder, GGUF file or hub id) and reads their files."""

import functools
import json
import os
import re
from pathlib import Path

import huggingface_hub
import numpy as np
import safetensors
from huggingface_hub.errors import HfHubHTTPError

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.models import checksums, hf_names
from fgrlhf_jax.models.hf_names import INDEX, SIDECAR

WEIGHTS = ("model.safetensors", INDEX)  # a model has one of them
_FLOATS = ("F64", "F32", "F16", "BF16")


def resolve(path: str | os.PathLike) -> Path:
    """The local folder or GGUF file for ``path``; a hub id is downloaded first.

    For a run folder it is the export. Raises InputError if ``path`` is none of the three, the hub
    cannot be reached, or an export of this project was changed (``hf_load.load_params`` checks its
    weights).
    """
    local = _locate(path)
    _check_is_model(local)
    config = checksums.config_file(local)
    if config.is_file():
        checksums.check(local, read_json(config), weights=False)
    return local


def _locate(path: str | os.PathLike) -> Path:
    if not str(path):
        raise InputError("model is empty; give a Hugging Face folder, a .gguf file or a hub id")
    local = Path(path)
    # os.path treats a name that is too long as missing; pathlib raises an error.
    if os.path.isdir(local / "export"):
        return local / "export"
    if os.path.isdir(local) or (os.path.isfile(local) and local.suffix == ".gguf"):
        return local
    if os.path.exists(local) or not re.fullmatch(r"[\w.-]+/[\w.-]+", str(path)):
        raise InputError(
            f"{path!s:.300}: no such model; give a Hugging Face folder, a .gguf file or a hub id"
        )
    try:
        patterns = list(checksums.PATTERNS)
        return Path(huggingface_hub.snapshot_download(str(path), allow_patterns=patterns))
    except (OSError, ValueError) as error:  # base classes of the hub's own errors
        status, advice = hub_cause(error)[1], "the name and the network"
        if status in (401, 403):
            advice = f"the name and the token (HF_TOKEN, `hf auth login`; this is status {status})"
        raise InputError(
            f"{path!s:.300}: neither a local folder nor to be had from the hub "
            f"({type(error).__name__}); check {advice}, or give a local folder"
        ) from error


def hub_cause(error: BaseException) -> tuple[BaseException, int | None]:
    """The cause of a huggingface_hub error, and the hub's HTTP status, if any."""
    while error.__cause__ and not isinstance(error, HfHubHTTPError):
        error = error.__cause__
    return error, error.response.status_code if isinstance(error, HfHubHTTPError) else None


def _check_is_model(folder: Path) -> None:
    """Raises InputError for two kinds of folders that look like models but are not."""
    weights = [name for name in WEIGHTS if (folder / name).is_file()]
    if checksums.is_adapter(folder) and weights:
        raise InputError(
            f"{folder}: has whole weights and an adapter, and one model is expected; delete "
            f"{checksums.ADAPTER} or {' and '.join(weights)}"
        )
    config = folder / checksums.CONFIG
    if config.is_file() and "run_dir" in read_json(config):
        raise InputError(
            f"{folder}: is a run folder without an export, since its run has not finished; run its "
            "command again to go on, or give another model"
        )


def read_json(file: Path) -> dict:
    """The JSON object in a file; raises InputError if there is none."""
    if not file.exists():
        advice = "give a Hugging Face folder, a .gguf file or a hub id"
        raise InputError(f"{file.parent}: has no {file.name}; {advice}")
    with hf_names.as_input_error(file, "is not readable JSON"):
        content = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise InputError(f"{file}: a JSON object is expected here; use a sound copy")
    return content


def weight_files(folder: Path) -> list[str]:
    """Names of the weight files in a folder; for an adapter, the adapter's."""
    if checksums.is_adapter(folder):
        files = [checksums.ADAPTER_WEIGHTS]
    elif (folder / INDEX).exists():
        weight_map = read_json(folder / INDEX).get("weight_map")
        files = list(weight_map.values()) if isinstance(weight_map, dict) else [None]
        if not all(isinstance(file, str) for file in files):
            raise InputError(f"{folder / INDEX}: has no weight_map of files; use a sound copy")
        files = sorted(set(files))
    else:
        files = ["model.safetensors"]
    return files + ([SIDECAR] if (folder / SIDECAR).exists() else [])


def read_tensors(folder: Path) -> dict[str, hf_names.Stored]:
    """The tensors of a folder's safetensors files, read lazily.

    Raises InputError for files that are missing, truncated, or changed since their export.
    """
    config = checksums.config_file(folder)
    if config.is_file():
        checksums.check(folder, read_json(config), weights=True)
    stored: dict[str, hf_names.Stored] = {}
    for file in (folder / name for name in weight_files(folder)):
        if not os.path.isfile(file):  # also if the name is not a possible file name
            raise InputError(f"{file}: is missing; weights are read from safetensors files only")
        with (
            hf_names.as_input_error(file, "is damaged or cut short"),
            safetensors.safe_open(file, framework="numpy") as stream,
        ):
            for name in stream.keys():  # noqa: SIM118 - not a dict
                part = stream.get_slice(name)
                if (dtype := part.get_dtype()) not in _FLOATS:
                    raise InputError(f"{file}: {name} is quantized as {dtype}; use floats")
                read = functools.partial(_read_safetensor, file, name)
                stored[name] = hf_names.Stored(tuple(part.get_shape()), read)
    return stored


def _read_safetensor(file: Path, name: str) -> np.ndarray:
    # Reopened each time: an open mapping keeps every page that was ever read.
    with safetensors.safe_open(file, framework="numpy") as stream:
        value = stream.get_tensor(name)
    return value.astype(np.float32) if value.dtype == np.float64 else value
