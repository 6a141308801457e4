"""Memory of a bfloat16 device, in cases that can be counted by hand."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from fgrlhf_jax.plan import emulation, hlo, hlo_costs

B, D, F, L = 128, 64, 512, 5


def compile_for(dtype, function, *shapes, specs=None):
    """Bytes of temporaries on the CPU, the same corrected for emulation, and the costs."""
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    specs = specs or [()] * len(shapes)
    arguments = [
        jax.ShapeDtypeStruct(shape, kind, sharding=NamedSharding(mesh, PartitionSpec(*spec)))
        for (*shape, kind), spec in zip(shapes, specs, strict=True)
    ]
    compiled = jax.jit(function).lower(*arguments).compile()
    module = hlo.parse(compiled.as_text())
    halved = emulation.emulated(*module)
    added = emulation.peak_bytes(*module, {}) - emulation.peak_bytes(*module, halved)
    temporaries = compiled.memory_analysis().temp_size_in_bytes
    return temporaries, temporaries - added, hlo_costs.count(module, halved=halved)


def chain(x, *weights):
    for w in weights:
        x = x @ w
    return x


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_chain_of_products(dtype):
    """Two intermediate results are live at a time; products access bytes of the dtype."""
    size = jnp.dtype(dtype).itemsize
    shapes = (B, D, dtype), (D, F, dtype), (F, F, dtype), (F, D, dtype)
    as_compiled, corrected, costs = compile_for(dtype, chain, *shapes)
    assert corrected == pytest.approx(2 * B * F * size, abs=256)
    assert (as_compiled == corrected) == (dtype == "float32")
    moved = B * D + D * F + B * F + B * F + F * F + B * F + B * F + F * D + B * D
    assert costs.product_bytes == moved * size


def layers(dtype, x, weights):
    def layer(x, w):
        return jnp.tanh(x @ w.astype(dtype)), None

    return jax.lax.scan(layer, x, weights)[0]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gathered_weights(dtype):
    """Float32 weights are gathered in the dtype of the computation, one layer at a time."""
    size = jnp.dtype(dtype).itemsize
    shapes = (B, F, dtype), (L, F, F, "float32")
    specs = (("x",), (None, "x"))
    as_compiled, corrected, costs = compile_for(
        dtype, lambda x, w: layers(jnp.dtype(dtype), x, w), *shapes, specs=specs
    )
    # The gathered matrix, the share that is cast (sliced, at least), activations before and after.
    assert corrected == pytest.approx(size * (F * F * 9 / 8 + 2 * B / 8 * F), rel=0.06)
    assert (as_compiled == corrected) == (dtype == "float32")
    assert costs.link_bytes == L * F * F * 7 / 8 * size


def test_widened_weights_in_a_branch_are_subtracted():
    """Only the CPU widens weights stored in bfloat16, also inside a conditional."""

    def function(x, weights, flag):
        return jax.lax.cond(flag, lambda x: layers(jnp.bfloat16, x, weights), lambda x: -x, x)

    shapes = (B, F, "bfloat16"), (L, F, F, "bfloat16"), ("bool",)
    as_compiled, corrected, _ = compile_for("bfloat16", function, *shapes)
    assert as_compiled > L * F * F * 4
    assert corrected < 2 * F * F * 2  # a slice of these, and activations


def test_float32_sums_are_not_halved():
    """Float32 sums of bfloat16 numbers are not representable in bfloat16."""

    def function(x, w):
        logits = (x @ w).astype(jnp.float32)
        return logits - jax.nn.logsumexp(logits, axis=-1, keepdims=True) @ jnp.ones((1, F))

    shapes = (jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in ((B, D), (D, F)))
    module = hlo.parse(jax.jit(function).lower(*shapes).compile().as_text())
    halved = emulation.emulated(*module)
    result = hlo.root_of(module[0][module[1]])
    assert result.dtype == "f32"
    assert result.name not in halved[module[1]]
    names = {name for names in halved.values() for name in names}
    assert names
    assert not any("subtract" in name or "exp" in name or "reduce" in name for name in names)
