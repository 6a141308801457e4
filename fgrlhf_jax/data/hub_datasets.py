"""Loads datasets with the `datasets` library, from the hub or from a folder.

The library no longer loads datasets with a loading script, such as tatsu-lab/alpaca_farm. These are
read from the Parquet files that the hub makes of every dataset, CONFIG/SPLIT/*.parquet in a
separate branch.
"""

import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

from fgrlhf_jax.errors import InputError

PARQUET_BRANCH = "refs/convert/parquet"

_ID = re.compile(r"[\w.-]+/[\w.-]+")


def is_dataset(source: str) -> bool:
    """Whether ``source`` is ORG/NAME[:CONFIG[:SPLIT]] or FOLDER:[CONFIG[:SPLIT]]."""
    name, *choices = source.split(":")
    folder = bool(choices) and os.path.isdir(name)
    return len(choices) < 3 and (folder or bool(_ID.fullmatch(name)))


def load(source: str) -> Any:
    """Loads one split of a dataset, as ``load_dataset``; by default the only one or "train".

    Raises InputError if the dataset cannot be loaded, or if config or split must be chosen.
    """
    import datasets  # seconds to import, and most runs read files

    name, config, split = [*source.split(":"), "", ""][:3]
    is_local = os.path.isdir(name)
    try:
        try:
            # An absolute path cannot be confused with a builder's name.
            path = os.path.abspath(name) if is_local else name
            loaded = datasets.load_dataset(path, config or None, split=split or None)
        except RuntimeError as error:
            if is_local or "script" not in str(error):
                raise
            loaded = _from_parquet_branch(source, name, config, split)
    except InputError:
        raise
    except Exception as error:  # from the library, the hub or the network
        while error.__cause__:
            error = error.__cause__
        reason = " ".join(str(error).split())[:400] or type(error).__name__
        advice = (
            "give its data files (JSON, JSONL or Parquet) instead"
            if "script" in reason
            else "give ORG/NAME:CONFIG:SPLIT of a reachable dataset, or the path of a file"
        )
        raise InputError(f"{source}: datasets cannot load it ({reason}); {advice}") from error
    if isinstance(loaded, Mapping):
        loaded = loaded[_choice("", loaded, source, f"{name}:{config}:", "split")]
    return loaded


def _from_parquet_branch(source: str, name: str, config: str, split: str):
    """The rows of one split, as ``load_dataset`` would return them."""
    import datasets
    import huggingface_hub

    hub = huggingface_hub.HfFileSystem()
    root = f"datasets/{name}@{PARQUET_BRANCH.replace('/', '%2F')}"

    def folders(path: str) -> list[str]:
        items = hub.ls(path, detail=True)
        return [item["name"].split("/")[-1] for item in items if item["type"] == "directory"]

    config = _choice(config, folders(root), source, f"{name}:", "config")
    split = _choice(split, folders(f"{root}/{config}"), source, f"{name}:{config}:", "split")
    files = f"hf://{root}/{config}/{split}/*.parquet"
    return datasets.load_dataset("parquet", data_files=files, split="train")


def _choice(value: str, names: Iterable[str], source: str, prefix: str, kind: str) -> str:
    """Returns ``value``, or for "" the only one of ``names`` or "train".

    Raises InputError with the choices if it is not one of them.
    """
    names = sorted(names)
    default = names[0] if len(names) == 1 else "train"
    if (value or default) in names:
        return value or default
    raise InputError(
        f"{source}: has the {kind}s {', '.join(names)}; choose one: {prefix}{names[0]}"
    )
