"""The output layers: how they start, and what devices may not round."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hf_cases import abstract
from tiny_cases import CFG as BASE

from fgrlhf_jax.models import heads


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["lm", "tied", "state_action", "action"])
def test_devices_do_not_round_the_products_of_float32_heads(name, dtype):
    """Forward and backward; logits of a bfloat16 computation are left to the device."""
    cfg = dataclasses.replace(BASE, dtype=dtype, tie_embeddings=name == "tied")
    kind = name in heads.HEADS
    module = heads.TokenValueModel(cfg, name) if kind else heads.CausalLM(cfg)
    row = jnp.zeros((1, 5), jnp.int32)
    args = row, *heads.positions_and_mask(row == 0)
    loss = lambda params: jnp.sum(module.apply({"params": params}, *args))  # noqa: E731
    text = jax.jit(jax.grad(loss)).lower(abstract(module)).as_text()
    exact = text.count("precision = [HIGHEST, HIGHEST]")
    assert exact == {"state_action": 4, "action": 5}.get(name, 2 if dtype == "float32" else 0)


def test_heads_start_as_the_method_says():
    wide = dataclasses.replace(BASE, hidden_size=4000)
    head = heads.ScalarHead(wide, "state_action", use_bias=True)
    hidden = jnp.ones((1, 3, 4000))
    tokens = jnp.zeros((1, 3), jnp.int32)
    params = head.init(jax.random.key(0), hidden, tokens, tokens)["params"]
    assert np.std(params["kernel"]) == pytest.approx(1 / math.sqrt(4001), rel=0.05)
    assert np.std(params["unembed"]) == pytest.approx(1 / math.sqrt(4000), rel=0.05)
    assert not params["bias"].any()
    assert not params["gate"].any()
    without = heads.ScalarHead(wide, "after", use_bias=False)
    assert set(without.init(jax.random.key(0), hidden, tokens, tokens)["params"]) == {"kernel"}
