"""Prefill in groups of prompts of about one length: the same responses."""

import functools
import math
import re

import chex
import jax
import numpy as np
import pytest
import tiny_cases

from fgrlhf_jax.models import decoding, heads, sampling
from fgrlhf_jax.plan import hlo
from fgrlhf_jax.runtime import sharding

MODEL = heads.CausalLM(tiny_cases.CFG)
PARAMS = tiny_cases.parameters(MODEL)
WEIGHTS = decoding.decoding_weights(PARAMS, MODEL)
ENDS, T, WIDTHS = (2, 7), 12, (4, 8, 12)


def generate(shape="", **options):
    """Responses to 32 prompts of 1 to 12 tokens, by a new program, on a mesh; and the program."""
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, 64, 1 + n % 12).tolist() for n in rng.permutation(32)]
    tokens, mask = tiny_cases.laid_out(prompts, "left", fill=63, width=12)
    keys = sampling.row_keys(jax.random.key(1), 32)
    mesh = sharding.make_mesh(shape, jax.devices() if shape != "1,1,1" else jax.devices()[:1])
    abstract = decoding.abstract_weights(PARAMS, MODEL, mesh)
    weights = jax.device_put(WEIGHTS, jax.tree.map(lambda x: x.sharding, abstract))
    options = {"model": MODEL, "ends": ENDS, "max_new": T, **options}
    with jax.set_mesh(mesh):
        arguments = weights, *sharding.put_batch((tokens.astype(np.int32), mask), mesh), keys
        function = functools.partial(sampling.generate.__wrapped__, **options)
        program = jax.jit(function).lower(*arguments).compile()
        return jax.device_get(program(*arguments)), program


@pytest.fixture(scope="module")
def plain():
    """Of one prefill of all prompts."""
    return generate("1,1,1")[0]


@pytest.mark.parametrize("shape", ["1,1,1", "1,8,1", "2,2,2"])
def test_the_same_responses_in_groups_of_prompts(shape, plain, monkeypatch):
    """Devices that split nothing but rows exchange only whether all have ended, and lengths."""
    monkeypatch.setattr(sampling, "GROUP", 2)
    out, program = generate(shape, prompt_widths=WIDTHS)
    np.testing.assert_array_equal(out.tokens_BT, plain.tokens_BT)
    chex.assert_trees_all_close(out, plain, atol=1e-5)
    if shape == "1,8,1":
        computations, _ = hlo.parse(program.as_text())
        every = [i for computation in computations.values() for i in computation.values()]
        exchanged = [i for i in every if re.fullmatch(tiny_cases.COLLECTIVE, i.opcode)]
        assert exchanged
        assert all(math.prod(hlo.dimensions(i.shape)) == 1 for i in exchanged)
