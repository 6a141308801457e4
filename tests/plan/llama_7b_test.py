"""The train step of LLaMA-7B for eight devices, without the memory of even one."""

import dataclasses
import functools
import math
import resource
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from configs import rm
from fgrlhf_jax.data.pairs import Pair
from fgrlhf_jax.models import llama
from fgrlhf_jax.reward_model import model as reward
from fgrlhf_jax.reward_model import scorer as reward_eval
from fgrlhf_jax.reward_model import train as reward_loop
from fgrlhf_jax.runtime import sharding


def recipe_7b(loss: str, mesh):
    """What ``rm.py:llama_7b`` would compile: model, abstract state and batch, and settings."""
    config = rm.get_config(f"llama_7b,{loss}")
    how = {name: config.model[name] for name in ("dtype", "remat", "scan_layers", "attention")}
    cfg = dataclasses.replace(llama.SIZES[config.model.size], **how)
    model = reward_eval.make_model(cfg, config.loss, config.model.head)
    length = config.data.max_length
    marks = np.arange(length) > 99
    tokens = np.arange(length, dtype=np.int32)
    pair = Pair(tokens, tokens, 100, marks, marks, np.full(length, -1, np.int32), 0)
    micro = config.micro_batch_size or config.batch_size
    recipe = reward_loop.make_recipe(config, [pair] * config.batch_size, (length,), micro)
    batch = {
        name: jax.ShapeDtypeStruct(
            x.shape, x.dtype, sharding=sharding.batch_sharding(mesh, axis=1)
        )
        for name, x in recipe.batch(0).items()
    }
    settings = {
        "model": model,
        "optimizer": recipe.optimizer,
        "loss": config.loss,
        "consistency_weight": config.consistency_weight,
        "center_weight": config.center_weight,
    }
    return reward_loop.abstract_state(model, recipe.optimizer, mesh), batch, settings


@pytest.mark.parametrize("loss", rm.LOSSES)
def test_the_7b_step_keeps_shapes_and_types(loss):
    mesh = sharding.make_mesh("1,8,1")
    state, batch, settings = recipe_7b(loss, mesh)
    assert math.prod(batch["tokens_B2S"].shape) == 16 * 2 * 512
    with jax.set_mesh(mesh):
        after, metrics = jax.eval_shape(
            functools.partial(reward.train_step, **settings), state, batch
        )
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(
        lambda x: (x.shape, x.dtype), state
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}
    assert {(x.shape, x.dtype) for x in metrics.values()} == {((), jnp.dtype("float32"))}


@pytest.fixture
def uncached():
    """What is measured is a compilation, not a look-up in the cache of an earlier run."""
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    yield
    jax.config.update("jax_enable_compilation_cache", True)
    compilation_cache.reset_cache()


@pytest.mark.slow
def test_the_7b_step_compiles_ahead_of_time_for_80_gb_devices(uncached, capsys):
    mesh = sharding.make_mesh("1,8,1")
    state, batch, settings = recipe_7b("token_edit", mesh)
    arrays = sum(x.nbytes for x in jax.live_arrays())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    clock = time.perf_counter()
    compiled = reward_loop.compile_step(state, batch, mesh, **settings)
    seconds = time.perf_counter() - clock
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) * 1024
    memory = compiled.memory_analysis()
    held = (
        memory.argument_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
    )
    with capsys.disabled():
        print(
            f"\nllama_7b on 1,8,1: {held / 1e9:.1f} GB a device, of which arguments "
            f"{memory.argument_size_in_bytes / 1e9:.1f} and temporaries "
            f"{memory.temp_size_in_bytes / 1e9:.1f}; compiled in {seconds:.0f} s, "
            f"while this process grew by {grown / 1e9:.2f} GB"
        )
    # Parameters and two moments, an eighth each; given away, so that the outputs reuse them.
    state_bytes = 3 * 4 * sum(math.prod(x.shape) for x in jax.tree.leaves(state.params))
    assert state_bytes > 79e9
    assert memory.argument_size_in_bytes == pytest.approx(state_bytes / 8, rel=0.001)
    assert memory.alias_size_in_bytes == pytest.approx(state_bytes / 8, rel=0.001)
    assert memory.temp_size_in_bytes > state_bytes / 3 / 8  # the gradients: it is counted
    assert held < 80e9
    assert grown < 2e9
    assert sum(x.nbytes for x in jax.live_arrays()) <= arrays + 2**20
