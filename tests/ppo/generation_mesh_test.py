"""Decoding on another mesh of the same devices than the one that trains."""

import dataclasses
import functools
import math
import re

import jax
import numpy as np
import pytest
import tiny_cases

from configs import ppo
from fgrlhf_jax.errors import InputError
from fgrlhf_jax.models import decoding, heads, sampling
from fgrlhf_jax.ppo import programs
from fgrlhf_jax.ppo.models import Architectures, abstract_params
from fgrlhf_jax.runtime import sharding

# Wide, so that a batch's states and logits are smaller than an eighth of a matrix.
SIZES = {"num_heads": 8, "num_kv_heads": 8, "hidden_size": 256, "intermediate_size": 384}
CFG = dataclasses.replace(tiny_cases.CFG, **SIZES, head_dim=32, vocab_size=512)
MODELS = Architectures(heads.CausalLM(CFG), None, None, None)
B, P, T, ENDS = 8, 6, 8, tuple(range(100))


def config(shape: str = "", **fields):
    config = ppo.get_config("tiny")
    sizes = {"rollout_batch_size": B, "minibatch_size": B, "data.max_new_tokens": T}
    options = {"reward_function": "a:b", "mesh": "1,8,1", "generation_mesh": shape}
    config.update_from_flattened_dict(sizes | options | fields)
    return config


@functools.cache
def compiled(shape: str) -> jax.stages.Compiled:
    """The program of decoding."""
    mesh = sharding.make_mesh("1,8,1")
    optimizer, _ = programs.make_optimizer(config())
    made = programs.make(config(shape), MODELS, mesh, optimizer, ends=ENDS, prompt_widths=(P,))
    return made["generate"].lower().compile()


@functools.cache
def sampled(shape: str) -> sampling.Sampled:
    mesh = sharding.make_mesh("1,8,1")
    like = abstract_params(MODELS, mesh)["policy"]
    params = tiny_cases.parameters(MODELS.policy)
    params = jax.tree.map(lambda x, s: jax.device_put(x, s.sharding), params, like)
    prompts = [[5 + n, 7, *range(3, 3 + n % 4)] for n in range(B)]
    tokens, mask = tiny_cases.laid_out(prompts, "left", fill=0, width=P)
    spread = programs.generation_mesh(config(shape), mesh)
    weights = decoding.make_placer(like, MODELS.policy, spread)(params)
    rows = (tokens.astype(np.int32), mask, sampling.row_keys(jax.random.key(1), B))
    out = compiled(shape)(weights, *jax.device_put(rows, sharding.batch_sharding(spread)))
    for x in out:  # as the programs that score it take it
        assert x.sharding.is_equivalent_to(sharding.batch_sharding(mesh), x.ndim)
    return jax.device_get(out)


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["1,1,8", "1,2,4", "2,2,-1"])
def test_the_tokens_are_those_of_the_mesh_that_trains(shape):
    np.testing.assert_array_equal(sampled(shape).tokens_BT, sampled("").tokens_BT)
    np.testing.assert_allclose(sampled(shape).logprob_BT, sampled("").logprob_BT, atol=1e-4)
    assert len(np.unique(sampled("").length_B)) > 1


@pytest.mark.parametrize("shape", ["1,1,8", "1,2,4"])
def test_a_token_exchanges_states_and_no_weights(shape):
    exchanged = tiny_cases.exchanged_in_loops(compiled(shape))
    assert 0 < max(exchanged) <= B * CFG.vocab_size


def test_what_a_device_holds():
    mesh = sharding.make_mesh("1,8,1")
    optimizer, _ = programs.make_optimizer(config())
    bytes_ = {}
    for shape in ("", "1,2,4", "1,1,8"):
        made = programs.make(config(shape), MODELS, mesh, optimizer, ends=ENDS, prompt_widths=(P,))
        weights = jax.tree.leaves(made["generate"].arguments[0])
        shards = (x.sharding.shard_shape(x.shape) for x in weights if x.ndim == 2)
        bytes_[shape] = sum(map(math.prod, shards))
    assert bytes_[""] == 4 * bytes_["1,2,4"] == 8 * bytes_["1,1,8"]


def test_a_mesh_that_is_none():
    mesh = sharding.make_mesh("1,8,1")
    assert programs.generation_mesh(config(), mesh) is mesh
    spread = programs.generation_mesh(config("2,1,-1"), sharding.make_mesh("1,2,4"))
    assert (spread.devices.flat == np.array(jax.devices())).all()
    bad = {
        "1,1,4": "generation_mesh='1,1,4': give data,fsdp,tensor as three sizes whose product is",
        "8": "generation_mesh='8': give data,fsdp,tensor as three sizes whose product is the",
        "1,8,1": "rollout_batch_size=4 does not divide over data x fsdp = 8 devices of the mesh",
    }
    sizes = dict.fromkeys(("rollout_batch_size", "minibatch_size"), 4)
    for shape, message in bad.items():
        with pytest.raises(InputError, match=re.escape(message)):
            programs.check_sizes(config(shape, **sizes), sharding.make_mesh("1,4,2"))
