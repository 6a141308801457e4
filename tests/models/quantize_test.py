"""Quantized kernels: what is stored, how far it is from what was there, and where it lies."""

import dataclasses
import functools
import itertools
import re

import hf_cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import tiny_cases

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.models import decoding, heads, hf_load, llama, lora, quantize
from fgrlhf_jax.models.sizes import SIZES
from fgrlhf_jax.plan.memory import bytes_per_device
from fgrlhf_jax.runtime import sharding

CFG = llama.LlamaConfig(300, 64, 128, 2, 4, 2, 16, max_position=64)


def kernels(*shape, seed: int = 0) -> np.ndarray:
    """Numbers of many sizes, and one column, or block of a column, of zeros."""
    rng = np.random.default_rng(seed)
    w = rng.standard_normal(shape) * np.exp(rng.standard_normal((*shape[:-2], 1, shape[-1])))
    w[..., :64, 1] = 0
    return w.astype(np.float32)


# --- What is stored ---


def normal_float_levels() -> np.ndarray:
    """As the paper derives them: quantiles of the normal distribution, 8 below zero, 9 from it."""
    tail = 1 - (1 / 32 + 1 / 30) / 2
    above = scipy.stats.norm.ppf(np.linspace(tail, 0.5, 9))
    below = -scipy.stats.norm.ppf(np.linspace(tail, 0.5, 8))
    return np.sort(np.concatenate([below[:-1], above])) / above[0]


def test_the_levels_are_quantiles_of_the_normal_distribution():
    np.testing.assert_allclose(quantize.LEVELS, normal_float_levels(), atol=2e-7)


def test_nf4_against_a_loop():
    w = kernels(2, 128, 3)
    stored = quantize.quantize(w, "nf4")
    assert (stored.qvalue.dtype, stored.qvalue.shape) == (jnp.uint8, (2, 64, 3))
    assert (stored.scale.dtype, stored.scale.shape) == (jnp.float32, (2, 2, 3))
    restored = np.asarray(quantize.dequantize(stored, "float32"))
    bytes_, levels = np.asarray(stored.qvalue), np.float64(quantize.LEVELS)
    for layer, row, column in itertools.product(*map(range, w.shape)):
        block = np.float64(w[layer, row // 64 * 64 : row // 64 * 64 + 64, column])
        largest = np.abs(block).max() or 1.0
        nearest = np.abs(levels - block[row % 64] / largest).argmin()
        byte = bytes_[layer, row // 2, column]
        assert (byte >> 4 if row % 2 else byte & 15) == nearest
        assert restored[layer, row, column] == np.float32(levels[nearest]) * np.float32(largest)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_int8_is_within_a_254th_of_the_largest_of_a_column(dtype):
    w = jnp.asarray(kernels(2, 48, 5), dtype)
    stored = quantize.quantize(w, "int8")
    assert (stored.qvalue.dtype, stored.qvalue.shape) == (jnp.int8, (2, 48, 5))
    assert (stored.scale.dtype, stored.scale.shape) == (jnp.float32, (2, 1, 5))
    w = np.asarray(w, np.float32)
    error = np.abs(quantize.dequantize(stored, "float32") - w)
    assert (error <= np.abs(w).max(1, keepdims=True) / 254 * (1 + 1e-5)).all()
    assert not error[:, :, 1].any()  # zeros


@pytest.mark.parametrize("kind", quantize.KINDS)
def test_one_layer_of_a_stack_is_what_it_would_be_alone(kind):
    w = kernels(3, 64, 4)
    stack, alone = (quantize.quantize(x, kind) for x in (w, w[1]))
    assert stack.dtype == kind
    assert stack.shape == w.shape
    for part, expected in zip(jax.tree.map(lambda x: x[1], stack), alone, strict=True):
        np.testing.assert_array_equal(part, expected)
    shapes = jax.eval_shape(functools.partial(quantize.quantize, kind=kind), w)
    assert shapes.shape == w.shape
    assert jax.eval_shape(lambda x: quantize.dequantize(x, "bfloat16"), shapes).dtype == "bfloat16"
    again = jax.jit(lambda x: quantize.quantize(quantize.dequantize(x, "float32"), kind))(stack)
    np.testing.assert_array_equal(again.qvalue, stack.qvalue)


@pytest.mark.parametrize("kind", quantize.ROUNDING)
def test_numbers_change_by_at_most_what_cards_say(kind):
    """In columns of one block whose largest number is 1."""
    w = np.random.default_rng(0).uniform(-1, 1, (64, 2000)).astype(np.float32)
    w[0] = 1
    restored = quantize.dequantize_params({"q": quantize.store(jnp.asarray(w), kind)})["q"]
    change = np.abs(np.float32(restored) - w) / (np.abs(w) if kind == "bfloat16" else 1)
    said = float(quantize.ROUNDING[kind].split(" %")[0]) / 100
    assert 0.95 * said < change.max() < said


def test_a_width_that_blocks_do_not_divide():
    with pytest.raises(InputError, match=r"lora.base_dtype=nf4: .* width of 96 .* blocks of 64;"):
        quantize.quantize(jnp.zeros((2, 96, 8)), "nf4")


# --- A model's ---


def abstract(kind: str, cfg: llama.LlamaConfig = CFG) -> dict:
    params = hf_cases.abstract(heads.CausalLM(cfg))
    return jax.eval_shape(functools.partial(quantize.quantize_params, kind=kind), params)


@pytest.mark.parametrize(("kind", "bits"), [("int8", 8), ("nf4", 4.5), ("bfloat16", 16)])
@pytest.mark.parametrize("shape", ["1,1,1", "2,2,2", "1,8,1"])
def test_bytes_of_a_7b_base(kind, bits, shape):
    """The scales of int8, one a column and whole over fsdp, are 0.6 % more at most."""
    mesh = sharding.make_mesh(shape, jax.devices()[:1] if shape == "1,1,1" else None)
    params = sharding.abstract(abstract(kind, SIZES["llama_7b"]), mesh)
    layers = params["backbone"]["layers"]
    expected = 32 * (4 * 4096**2 + 3 * 4096 * 11008) * bits / 8
    norms = 2 * 32 * 4096 * 4
    split = mesh.shape["fsdp"] * mesh.shape["tensor"]
    assert bytes_per_device(layers) - norms == pytest.approx(expected / split, rel=6e-3)
    for name in ("embed", "norm"):
        assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(params["backbone"][name]))
    assert params["lm_head"]["kernel"].dtype == jnp.float32


@pytest.mark.parametrize(("kind", "shape"), [("int8", ""), ("nf4", "2,2,2")])
def test_kernels_are_quantized_as_they_are_read(kind, shape, tmp_path):
    folder, params = hf_cases.save(tmp_path / "model", module=heads.CausalLM(CFG))
    expected = jax.jit(functools.partial(quantize.quantize_params, kind=kind))(params)
    wanted, mesh = abstract(kind), sharding.make_mesh(shape or "8,1,1")
    if shape:
        wanted = sharding.abstract(wanted, mesh)
    with jax.set_mesh(mesh):
        loaded = hf_load.load_params(folder, wanted)
    hf_cases.same(loaded, expected)
    for leaf, want in zip(jax.tree.leaves(loaded), jax.tree.leaves(wanted), strict=True):
        assert leaf.dtype == want.dtype
        assert not shape or leaf.sharding == want.sharding
    assert int(sharding.fingerprint(loaded)) == int(sharding.fingerprint(expected))


# --- In use ---

ADAPTERS = lora.Lora(rank=4)
TOKENS = np.random.default_rng(0).integers(0, 300, (8, 12)).astype(np.int32)


def base_and_adapter(kind: str, mesh) -> tuple[dict, dict]:
    """A quantized base on a mesh, and an adapter that changes what it computes."""
    whole = heads.abstract_params(heads.CausalLM(CFG), mesh)
    trained, base = lora.split(whole, dataclasses.replace(ADAPTERS, base_dtype=kind), mesh)
    rng = np.random.default_rng(1)
    adapter = jax.tree.map(lambda x: 0.1 * rng.standard_normal(x.shape, np.float32), trained)
    store = jax.jit(functools.partial(quantize.quantize_params, kind=kind))
    params = store(tiny_cases.parameters(heads.CausalLM(CFG)))
    place = functools.partial(jax.tree.map, lambda x, like: jax.device_put(x, like.sharding))
    return place(params, base), place(adapter, trained)


def loss_and_gradients(base: dict, adapter: dict, mesh, **options) -> tuple:
    model = heads.CausalLM(dataclasses.replace(CFG, lora_scale=ADAPTERS.scale, **options))

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def loss(adapter, base, tokens):
        args = heads.positions_and_mask(jnp.ones(tokens.shape, bool))
        logits = model.apply(lora.variables(base | adapter), tokens, *args)
        return jnp.sum(jnp.sin(logits)), logits

    with jax.set_mesh(mesh):
        return sharding.to_host(loss(adapter, base, sharding.put_batch(TOKENS, mesh)))


ONE = sharding.make_mesh("1,1,1", jax.devices()[:1])


@functools.cache
def with_restored_kernels(kind: str) -> tuple:
    base, adapter = base_and_adapter(kind, ONE)
    return loss_and_gradients(jax.jit(quantize.dequantize_params)(base), adapter, ONE)


@pytest.mark.parametrize(
    ("kind", "shape", "options"),
    [
        ("nf4", "1,1,1", {}),
        ("nf4", "1,4,2", {"remat": True}),
        ("int8", "2,2,2", {"float32_gradients": True}),
    ],
    ids=str,
)
def test_a_model_on_quantized_kernels_is_that_on_the_restored_ones(kind, shape, options):
    mesh = sharding.make_mesh(shape, jax.devices()[: int(np.prod([*map(int, shape.split(","))]))])
    (_, logits), gradients = loss_and_gradients(*base_and_adapter(kind, mesh), mesh, **options)
    (_, expected), others = with_restored_kernels(kind)
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    for ours, theirs in zip(jax.tree.leaves(gradients), jax.tree.leaves(others), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max())


def test_what_is_decoded_with_is_merged_into_the_restored_kernels():
    base, adapter = base_and_adapter("nf4", ONE)
    del adapter["lora"]["backbone"]["layers"]["mlp"]["up"]  # of which the base alone is there
    model = heads.CausalLM(dataclasses.replace(CFG, lora_scale=ADAPTERS.scale))
    weights = decoding.decoding_weights(base | adapter, model)
    expected = decoding.decoding_weights(jax.jit(quantize.dequantize_params)(base) | adapter, model)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), weights, expected)


def test_what_is_gathered_is_quantized():
    mesh = sharding.make_mesh("1,4,2")
    model = heads.CausalLM(dataclasses.replace(CFG, num_kv_heads=4))
    adapters = lora.Lora(4, targets="mlp", base_dtype="nf4")
    trained, base = lora.split(heads.abstract_params(model, mesh), adapters, mesh)
    rows = jax.ShapeDtypeStruct(TOKENS.shape, "int32", sharding=sharding.batch_sharding(mesh))

    def loss(adapter, base, tokens):
        args = heads.positions_and_mask(tokens == tokens)
        return model.apply(lora.variables(base | adapter), tokens, *args).sum()

    with jax.set_mesh(mesh):
        text = jax.jit(jax.grad(loss)).lower(trained, base, rows).compile().as_text()
    gathered = set(re.findall(r"= (\w+)\[([\d,]*)\]\S* all-gather\(", text))
    # q, k and v; o; gate, up and down: half of the columns, or of the bytes of two rows
    assert {("u8", shape) for shape in ("1,32,32", "1,16,64", "1,32,64")} <= gathered
    assert not gathered & {("f32", shape) for shape in ("64,32", "32,64", "64,64")}


def test_one_layer_at_a_time_stands_in_full():
    """Neither the forward nor the backward pass keeps restored kernels of all layers."""
    cfg = dataclasses.replace(CFG, hidden_size=256, intermediate_size=512, num_layers=8)
    model = heads.CausalLM(cfg)
    whole = heads.abstract_params(model, ONE)
    trained, base = lora.split(whole, lora.Lora(4, base_dtype="nf4"), ONE)
    row = jax.ShapeDtypeStruct((1, 8), jnp.int32)

    def loss(adapter, base, tokens):
        args = heads.positions_and_mask(tokens == tokens)
        return model.apply(lora.variables(base | adapter), tokens, *args).sum()

    compiled = jax.jit(jax.grad(loss)).lower(trained, base, row).compile()
    layers = bytes_per_device(whole["backbone"]["layers"])
    assert compiled.memory_analysis().temp_size_in_bytes < 0.3 * layers
