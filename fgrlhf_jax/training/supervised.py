"""What SFT and reward models set up alike: mesh, model and tokenizer, random weights, checks."""

import dataclasses
import re

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from fgrlhf_jax.data.tokenizers import check_vocabulary, train_tokenizer
from fgrlhf_jax.errors import InputError
from fgrlhf_jax.models import hf_load, llama
from fgrlhf_jax.runtime import sharding

RANDOM_SIZES = ("tiny", "small")  # that can learn something from random weights


def make_mesh(config: ConfigDict) -> Mesh:
    """The mesh of the config; raises InputError where batches do not divide over it."""
    mesh = sharding.make_mesh(config.mesh)
    micro_batch_size = config.micro_batch_size or config.batch_size
    sharding.check_batch(mesh, micro_batch_size)
    if config.batch_size % micro_batch_size:
        raise InputError(
            f"batch_size={config.batch_size} is not a multiple of "
            f"micro_batch_size={micro_batch_size}"
        )
    return mesh


def eval_batch_size(config: ConfigDict, mesh: Mesh) -> int:
    """Rows of an evaluation at a time: those of a micro-batch unless the config says otherwise."""
    size = config.eval_batch_size or config.micro_batch_size or config.batch_size
    return sharding.round_batch_size(size, mesh)


def model_and_tokenizer(config: ConfigDict, rows: list, tokenizer=None):
    """The configuration of the model, and its tokenizer.

    Both are of the checkpoint in ``model.path``. For random weights the tokenizer is
    ``model.tokenizer``, or else the one given here, or else one trained on the texts of ``rows``.

    Raises:
      InputError: for a checkpoint that cannot be used, an unknown size, or a tokenizer or lengths
        that do not fit the model.
    """
    options = {name: config.model[name] for name in ("dtype", "remat", "scan_layers", "attention")}
    if config.model.path:
        cfg = dataclasses.replace(hf_load.read_config(config.model.path), **options)
        tokenizer = hf_load.load_tokenizer(config.model.path)
    elif config.model.size in RANDOM_SIZES:
        if config.model.tokenizer:
            tokenizer = hf_load.load_tokenizer(config.model.tokenizer)
        elif tokenizer is None:
            fields = (field for row in rows for field in dataclasses.asdict(row).items())
            texts = (text for name, text in fields if isinstance(text, str) and name != "id")
            tokenizer = train_tokenizer(texts, config.model.vocab_size)
        cfg = dataclasses.replace(
            llama.SIZES[config.model.size], vocab_size=len(tokenizer), **options
        )
    else:
        raise InputError(
            "model.path is empty, and random weights are for model.size="
            f"{' or '.join(RANDOM_SIZES)} only, not {config.model.size!r}; "
            "give --config.model.path=FOLDER|HUB_ID|FILE.gguf"
        )
    check_vocabulary(tokenizer, cfg.vocab_size)
    if config.data.max_length > cfg.max_position:
        raise InputError(
            f"data.max_length={config.data.max_length} is more than the model's "
            f"{cfg.max_position} positions; lower it"
        )
    return cfg, tokenizer


def check_freeze(pattern: str, params: dict) -> None:
    """Raises InputError for an ``optimizer.freeze`` that finds no parameter, or every one."""
    names = [sharding.path_name(p) for p, _ in jax.tree_util.tree_leaves_with_path(params)]
    matching = [name for name in names if re.search(pattern, name)]
    if pattern and len(matching) in (0, len(names)):
        raise InputError(
            f"optimizer.freeze={pattern!r} finds {'every' if matching else 'no'} parameter; there "
            f"are {', '.join(names)}"
        )


def random_params(model, key: jax.Array, abstract: dict) -> dict:
    """The parts of ``model``'s random parameters that ``abstract`` names, laid out as it says."""

    def init(key):
        row = jnp.zeros((1, 2), jnp.int32)
        params = model.init(key, row, *llama.positions_and_mask(row == 0))["params"]
        return {part: params[part] for part in abstract}

    return jax.jit(init, out_shardings=jax.tree.map(lambda x: x.sharding, abstract))(key)
