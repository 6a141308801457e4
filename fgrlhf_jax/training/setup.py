"""Setup of a supervised run: mesh, model, tokenizer, parameters, digest of the rows."""

import dataclasses
import hashlib
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from fgrlhf_jax.data.chat import check_opening, check_vocabulary
from fgrlhf_jax.data.tokenizers import train_tokenizer
from fgrlhf_jax.errors import InputError
from fgrlhf_jax.models import attention, heads, hf_load, llama, lora, peft
from fgrlhf_jax.models.heads import CausalLM
from fgrlhf_jax.models.sizes import SIZES
from fgrlhf_jax.runtime import sharding

RANDOM_SIZES = ("tiny", "small")  # small enough to learn something from random weights
# A reward model of SmolLM2 learns something in 24 updates of 8 edits, much in 60 (results.md).
MIN_UPDATES = 24


class Setup(NamedTuple):
    """A run's mesh, model and tokenizer, before its rows are encoded.

    Attributes:
      cfg: the model's configuration.
      data: the fields of ``config.data`` that control how rows are encoded.
    """

    mesh: Mesh
    cfg: llama.LlamaConfig
    tokenizer: Any
    data: dict


def make_mesh(config: ConfigDict) -> Mesh:
    """The mesh of the config; raises InputError if batches do not divide over it."""
    mesh = sharding.make_mesh(config.mesh)
    micro_batch_size = config.micro_batch_size or config.batch_size
    sharding.check_batch(mesh, micro_batch_size)
    if config.batch_size % micro_batch_size:
        raise InputError(
            f"batch_size={config.batch_size} is not a multiple of "
            f"micro_batch_size={micro_batch_size}"
        )
    return mesh


def set_up(config: ConfigDict, rows: list, tokenizer=None) -> Setup:
    """The mesh, model and tokenizer of a config.

    Model and tokenizer come from the checkpoint in ``model.path``. For random weights the tokenizer
    is ``model.tokenizer``, else ``tokenizer``, else one trained on the texts of ``rows``.

    Raises InputError for an unusable checkpoint, an unknown size, or a tokenizer or lengths that do
    not fit the model.
    """
    mesh = make_mesh(config)
    attention.check_devices(config.model.attention, mesh)
    adapters = lora.from_config(config)
    options = {
        name: config.model[name]
        for name in ("dtype", "remat", "scan_layers", "attention", "float32_gradients")
    }
    options["lora_scale"] = adapters.scale if adapters else 1.0
    if adapters and not config.model.path:
        raise InputError(
            f"lora.rank={adapters.rank} needs a model to adapt; give "
            "--config.model.path=FOLDER|HUB_ID"
        )
    if config.model.path:
        if adapters:
            peft.check_same(config.model.path, adapters)
        cfg = dataclasses.replace(hf_load.read_config(config.model.path), **options)
        tokenizer = hf_load.load_tokenizer(config.model.path)
    elif config.model.size in RANDOM_SIZES:
        if config.model.tokenizer:
            tokenizer = hf_load.load_tokenizer(config.model.tokenizer)
        elif tokenizer is None:
            fields = (field for row in rows for field in dataclasses.asdict(row).items())
            texts = (text for name, text in fields if isinstance(text, str) and name != "id")
            tokenizer = train_tokenizer(texts, config.model.vocab_size)
        cfg = dataclasses.replace(SIZES[config.model.size], vocab_size=len(tokenizer), **options)
    else:
        raise InputError(
            "model.path is empty, and random weights are for model.size="
            f"{' or '.join(RANDOM_SIZES)} only, not {config.model.size!r}; "
            "give --config.model.path=FOLDER|HUB_ID|FILE.gguf"
        )
    check_vocabulary(tokenizer, cfg.vocab_size, config.data.template)
    if config.data.template == "chat" and (note := check_opening(tokenizer)):
        print(note)
    if config.data.max_length > cfg.max_position:
        raise InputError(
            f"data.max_length={config.data.max_length} is more than the model's "
            f"{cfg.max_position} positions; lower it"
        )
    data = config.data.to_dict()
    del data["buckets"]
    return Setup(mesh, cfg, tokenizer, data)


def warn_few_updates(config: ConfigDict, steps: int) -> None:
    """Prints a warning if the configured epochs give too few updates to learn much."""
    if not config.steps and steps < MIN_UPDATES:
        print(
            f"epochs={config.epochs}: {steps} updates of {config.batch_size} rows are too few to "
            f"teach much; give --config.epochs={-(-MIN_UPDATES * config.epochs // steps)} or "
            "more, or a smaller batch_size"
        )


def check_freeze(pattern: str, params: dict) -> None:
    """Raises InputError for an ``optimizer.freeze`` that matches no parameter, or all."""
    names = [sharding.path_name(p) for p, _ in jax.tree_util.tree_leaves_with_path(params)]
    matching = [name for name in names if re.search(pattern, name)]
    if pattern and len(matching) in (0, len(names)):
        raise InputError(
            f"optimizer.freeze={pattern!r} finds {'every' if matching else 'no'} parameter; there "
            f"are {', '.join(names)}"
        )


def random_params(model, key: jax.Array, abstract: dict) -> dict:
    """Random parameters of ``model``: those in ``abstract``, with its shardings."""

    def init(key):
        row = jnp.zeros((1, 2), jnp.int32)
        params = model.init(key, row, *heads.positions_and_mask(row == 0))["params"]
        return {part: {n: params[part][n] for n in tree} for part, tree in abstract.items()}

    return jax.jit(init, out_shardings=jax.tree.map(lambda x: x.sharding, abstract))(key)


def initial_params(config: ConfigDict, model: CausalLM, abstract: dict) -> dict:
    """The initial parameters of a language model: from ``model.path``, or random.

    If ``abstract`` has an adapter, only the adapter.
    """
    path, key = config.model.path, jax.random.key(config.seed)
    if "lora" in abstract:
        return {"lora": hf_load.initial_adapter(path, key, abstract["lora"])}
    return hf_load.load_params(path, abstract) if path else random_params(model, key, abstract)


def digest(sets: list[list]) -> str:
    """A digest of all arrays of all rows."""
    digest = hashlib.sha256()
    for rows in sets:
        digest.update(np.array(len(rows)).tobytes())
        for row in rows:
            for field in dataclasses.fields(row):
                digest.update(np.asarray(getattr(row, field.name)).tobytes())
    return digest.hexdigest()[:16]
