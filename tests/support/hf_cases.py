"""Small models of every shape and architecture, and functions that save them."""

import dataclasses
import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from fgrlhf_jax.data.tokenizers import train_tokenizer
from fgrlhf_jax.models import heads, hf_save
from fgrlhf_jax.models.cards import Origin
from fgrlhf_jax.models.llama import LlamaConfig, RopeScaling
from fgrlhf_jax.models.lora import Lora, split
from fgrlhf_jax.runtime import sharding

CFG = LlamaConfig(300, 32, 48, 2, 4, 2, 8, norm_eps=1e-6, max_position=64)
SHAPES = {
    "plain": CFG,
    "tied": dataclasses.replace(CFG, tie_embeddings=True),
    "biases": dataclasses.replace(CFG, attention_bias=True, mlp_bias=True),
    "scaled": dataclasses.replace(CFG, rope_theta=5e5, rope_scaling=RopeScaling()),
}
MODULES = {
    hf_save.LANGUAGE_MODEL: heads.CausalLM(CFG),
    hf_save.TOKEN_REWARD: heads.TokenValueModel(CFG),
    hf_save.SEQUENCE_REWARD: heads.TokenValueModel(CFG, use_bias=False),
    hf_save.STATE_ACTION: heads.TokenValueModel(CFG, "state_action"),
}


abstract = heads.parameter_shapes


def random_params(module, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: jnp.asarray(0.2 * rng.standard_normal(x.shape) + (x.ndim == 1), jnp.float32),
        abstract(module),
    )


@functools.cache
def tokenizer():
    return train_tokenizer(["the cat sat on the mat", "a dog ate the cat"], 300)


def save(folder: Path, architecture=hf_save.LANGUAGE_MODEL, module=None, **how):
    """Saves random parameters of an architecture; returns the folder and the parameters."""
    params = random_params(module or MODULES[architecture])
    cfg = module.cfg if module else CFG
    hf_save.save(folder, params, cfg, tokenizer(), architecture=architecture, **how)
    return folder, params


def same(ours, theirs):
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def configure(file: Path, **fields) -> None:
    """Changes or creates a JSON file; the value ... removes a field."""
    content = (json.loads(file.read_text()) if file.exists() else {}) | fields
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps({name: x for name, x in content.items() if x is not ...}))


def rewrite(file: Path, change) -> None:
    """Replaces the tensors of a file by ``change(tensors)``."""
    safetensors.numpy.save_file(change(safetensors.numpy.load_file(file)), file)


ADAPTER = Lora(4, alpha=6.0)


def adapter_params(module, lora: Lora = ADAPTER, seed: int = 1) -> dict:
    """A random adapter of a module: "lora", with a nonzero B, and "head" if it has one."""
    mesh = sharding.make_mesh("1,-1,1", jax.devices()[:1])
    trained, _ = split(sharding.abstract(abstract(module), mesh), lora, mesh)
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: jnp.asarray(0.2 * rng.standard_normal(x.shape), jnp.float32), trained
    )


def save_adapter(
    folder: Path, base: Path, architecture=hf_save.LANGUAGE_MODEL, module=None, lora=ADAPTER, **how
) -> tuple[Path, dict]:
    """Saves a random adapter of ``base``; returns the folder and the parameters."""
    module = module or MODULES[architecture]
    params = adapter_params(module, lora)
    options = {"architecture": architecture, "adapter": lora, "origin": Origin(str(base))}
    hf_save.save(folder, params, module.cfg, tokenizer(), **options | how)
    return folder, params
