"""Adapters: nothing at first, the same merged and apart, gradients, and what is refused."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_cases

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.models import heads, lora
from fgrlhf_jax.models.lora import Lora
from fgrlhf_jax.runtime import sharding

ADAPTERS = Lora(rank=4, alpha=6.0)
CFG = dataclasses.replace(tiny_cases.CFG, lora_scale=ADAPTERS.scale)
MODEL = heads.CausalLM(CFG)
BASE = tiny_cases.parameters(MODEL)
MESH = sharding.make_mesh("1,-1,1", jax.devices()[:1])
TOKENS = np.random.default_rng(0).integers(0, CFG.vocab_size, (3, 10)).astype(np.int32)


def abstract(adapters: Lora = ADAPTERS) -> dict:
    return lora.abstract_adapter(heads.abstract_params(MODEL, MESH), adapters, MESH)


def random_adapter(seed: int = 0) -> dict:
    """One whose B is not zero."""
    fresh = lora.init_adapter(jax.random.key(seed), abstract())
    return jax.tree.map(
        lambda x: 0.1 * jax.random.normal(jax.random.key(x.size + seed), x.shape), fresh
    )


@jax.jit
def logits(params: dict) -> jax.Array:
    mask = jnp.ones(TOKENS.shape, bool)
    return MODEL.apply(lora.variables(params), TOKENS, *heads.positions_and_mask(mask))


def test_a_fresh_adapter_changes_no_bit():
    fresh = lora.init_adapter(jax.random.key(0), abstract())
    np.testing.assert_array_equal(logits(BASE | {"lora": fresh}), logits(BASE))


def test_its_a_has_the_variance_of_pefts():
    adapter = lora.init_adapter(jax.random.key(0), abstract(Lora(rank=32)))
    for path, leaf in jax.tree.leaves_with_path(adapter):
        if sharding.path_name(path).endswith("lora_a"):
            assert float(jnp.var(leaf)) * 3 * leaf.shape[1] == pytest.approx(1, abs=0.1)
            assert not np.allclose(leaf[0], leaf[1])  # every layer its own


def test_merged_is_unmerged_within_rounding():
    params = BASE | {"lora": random_adapter()}
    merged = tiny_cases.merged(params, ADAPTERS.scale)
    chex.assert_trees_all_equal_shapes_and_dtypes(merged, BASE)
    apart = logits(params)
    assert float(jnp.abs(apart - logits(BASE)).max()) > 0.1
    np.testing.assert_allclose(logits(merged), apart, atol=2e-5)


def test_gradients_are_those_of_the_kernel_through_a_and_b():
    """d A = s dW Bᵀ and d B = s Aᵀ dW, in float64, of the merged kernel's gradient dW."""
    adapter = random_adapter()

    def loss(params):
        return jnp.sum(jnp.sin(logits(params)))

    ours = jax.grad(lambda a: loss(BASE | {"lora": a}))(adapter)
    kernels = jax.grad(loss)(tiny_cases.merged(BASE | {"lora": adapter}, ADAPTERS.scale))
    for part, group in ours["backbone"]["layers"].items():
        for layer, gradient in group.items():
            dw = np.asarray(kernels["backbone"]["layers"][part][layer]["kernel"], np.float64)
            pair = adapter["backbone"]["layers"][part][layer]
            a, b = (np.asarray(pair[name], np.float64) for name in ("lora_a", "lora_b"))
            expected = {
                "lora_a": ADAPTERS.scale * np.einsum("LIO,LRO->LIR", dw, b),
                "lora_b": ADAPTERS.scale * np.einsum("LIR,LIO->LRO", a, dw),
            }
            for name, value in expected.items():
                atol = 1e-4 * np.abs(value).max()
                np.testing.assert_allclose(gradient[name], value, atol=atol, err_msg=layer)


@pytest.mark.parametrize(
    ("adapters", "scale"),
    [(Lora(16), 2.0), (Lora(8, alpha=4.0), 0.5), (Lora(16, alpha=8.0, rslora=True), 2.0)],
)
def test_scale(adapters, scale):
    assert adapters.scale == scale


def test_targets_choose_layers():
    some = abstract(Lora(4, targets=r"attention/(q|v)$"))["backbone"]["layers"]
    assert {name: set(group) for name, group in some.items()} == {"attention": {"q", "v"}}
    with pytest.raises(InputError, match=r"lora.targets='w1' finds no linear layer; there are att"):
        abstract(Lora(4, targets="w1"))
    with pytest.raises(InputError, match=r"lora.rank=33: the rank of these layers is at most 32;"):
        abstract(Lora(33))


@pytest.mark.parametrize("kind", heads.HEADS)
def test_what_is_trained_is_the_adapter_and_the_head_but_for_its_table(kind):
    whole = heads.abstract_params(heads.TokenValueModel(CFG, kind), MESH)
    assert lora.split(whole, None, MESH) == (whole, {})
    trained, base = lora.split(whole, ADAPTERS, MESH)
    assert set(trained) == {"lora", "head"}
    assert set(trained["head"]) == whole["head"].keys() - {"unembed"}
    assert set(base) == {"backbone"} | ({"head"} if "unembed" in whole["head"] else set())
    assert lora.join(base, trained) == whole | {"lora": trained["lora"]}
    assert lora.without_base(lora.join(base, trained)) == trained
