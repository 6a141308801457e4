"""FLOPs and bytes of compiled programs, against values counted by hand."""

import functools
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from fgrlhf_jax.plan import hlo, hlo_costs

M, K, N = 16, 32, 24
ONE = 2 * M * K * N  # the product that most of these tests repeat


def array(*shape, spec=None, mesh=None):
    where = NamedSharding(mesh, PartitionSpec(*spec)) if mesh else None
    return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=where)


class Count(NamedTuple):
    flops: float
    notes: tuple[str, ...]


def count_text(text: str, **options) -> Count:
    costs = hlo_costs.count(hlo.parse(text), **options)
    return Count(costs.flops, costs.notes)


def count(function, *arguments, **options) -> Count:
    return count_text(jax.jit(function, **options).lower(*arguments).compile().as_text())


def test_products_count_and_elementwise_operations_do_not():
    def chain(x, y, z):
        return jax.nn.gelu(x @ y) @ z

    assert count(jnp.matmul, array(M, K), array(K, N)) == (ONE, ())
    assert count(chain, array(M, K), array(K, N), array(N, 5)).flops == ONE + 2 * M * N * 5
    assert count(lambda x: jnp.tanh(x * 3).sum(), array(M, K)) == (0, ())


@pytest.mark.parametrize(
    "equation", ["bmk,bkn->bmn", "bkm,bnk->nbm", "mkb,nbk->bmn", "bmk,bkn->mn"]
)
def test_a_batched_product(equation):
    sizes = {"b": 7, "m": M, "k": K, "n": N}
    operands = equation.split("->")[0].split(",")
    shapes = [array(*(sizes[letter] for letter in operand)) for operand in operands]
    assert count(functools.partial(jnp.einsum, equation), *shapes).flops == 7 * ONE


def test_a_convolution():
    """Ten windows of 3 x 4 inputs for each of 6 output features, for 2 rows."""
    convolve = functools.partial(
        jax.lax.conv_general_dilated,
        window_strides=(1,),
        padding="VALID",
        dimension_numbers=("NWC", "WIO", "NWC"),
    )
    assert count(convolve, array(2, 12, 4), array(3, 4, 6)).flops == 2 * 2 * 10 * 6 * 3 * 4


def scanned(x, weights):
    """A product with each of the stacked square matrices."""
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)[0]


def test_a_scan_body_counts_once_per_iteration():
    assert count(scanned, array(M, K), array(9, K, K)) == (9 * 2 * M * K * K, ())

    def twice(x, weights):
        return jax.lax.scan(lambda x, w: (scanned(x, w), x[:2] @ w[0]), x, weights)

    flops = count(twice, array(M, K), array(5, 3, K, K)).flops
    assert flops == 5 * (3 * 2 * M * K * K + 2 * 2 * K * K)


@pytest.mark.parametrize(("remat", "products"), [(False, 3), (True, 4)])
def test_the_gradient_of_a_scan(remat, products):
    """Forward, backward for inputs and for weights, and a second forward with remat."""

    def block(x, w):
        return jnp.tanh(jnp.tanh(x @ w[0]) @ w[1]), None

    block = jax.checkpoint(block, prevent_cse=False) if remat else block

    def loss(x, weights):
        return jnp.sum(jax.lax.scan(block, x, weights)[0])

    both = jax.grad(loss, argnums=(0, 1))
    flops = count(both, array(M, K), array(6, 2, K, K)).flops
    assert flops == 6 * 2 * products * 2 * M * K * K


def test_a_loop_with_an_unknown_number_of_rounds():
    def loop(x, w):
        def condition(carry):
            return (carry[0] < 20) & ~jnp.all(carry[1] > 1e3)

        return jax.lax.while_loop(condition, lambda c: (c[0] + 1, c[1] @ w), (0, x))

    text = jax.jit(loop).lower(array(M, K), array(K, K)).compile().as_text()
    once = (2 * M * K * K, ("a loop with an unknown number of rounds is counted once",))
    assert count_text(text) == once
    note = "a loop that may end early is counted with all its 20 rounds"
    assert count_text(text, trips={"": 20}) == (20 * 2 * M * K * K, (note,))


def test_the_branch_with_the_most_flops_counts():
    def either(flag, x, w):
        branches = (lambda x: x @ w, lambda x: x @ w @ w @ w, lambda x: x)
        return jax.lax.switch(flag, branches, x)

    flag = jax.ShapeDtypeStruct((), jnp.int32)
    assert count(either, flag, array(M, K), array(K, K)).flops == 3 * 2 * M * K * K


@pytest.mark.parametrize(
    ("left", "right", "share"),
    [(("x", None), (None, None), 8), ((None, "x"), ("x", None), 8), ((None,), (None,), 1)],
)
def test_sharded_products_count_per_device(left, right, share):
    """Sharded by rows or by the contracted axis; a replicated product counts fully per device."""
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    shapes = array(M, K, spec=left, mesh=mesh), array(K, N, spec=right, mesh=mesh)
    assert count(jnp.matmul, *shapes).flops == ONE / share


def test_other_hlo_syntax_is_parsed():
    """Operands with their shapes, tiled layouts, the older form of a trip count, a named gemm."""
    text = """HloModule old, entry_computation_layout={(f32[8,4]{1,0:T(8,128)})->f32[8,4]{1,0}}

%body (p: (s32[], f32[8,4], f32[4,4])) -> (s32[], f32[8,4], f32[4,4]) {
  %p = (s32[], f32[8,4]{1,0:T(8,128)}, /*index=2*/f32[4,4]{1,0}) parameter(0)
  %x = f32[8,4]{1,0:T(8,128)} get-tuple-element((s32[], f32[8,4], f32[4,4]) %p), index=1
  %w = f32[4,4]{1,0} get-tuple-element((s32[], f32[8,4], f32[4,4]) %p), index=2
  %i = s32[] get-tuple-element((s32[], f32[8,4], f32[4,4]) %p), index=0
  %dot.1 = f32[8,4]{1,0:T(8,128)} dot(f32[8,4]{1,0:T(8,128)} %x, f32[4,4]{1,0} %w), \
lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %t = (s32[], f32[8,4], f32[4,4]) tuple(s32[] %i, f32[8,4]{1,0} %dot.1, f32[4,4] %w)
}

%condition (p.1: (s32[], f32[8,4], f32[4,4])) -> pred[] {
  %p.1 = (s32[], f32[8,4], f32[4,4]) parameter(0)
  ROOT %c = pred[] constant(true)
}

ENTRY %main (a: (s32[], f32[8,4], f32[4,4])) -> (s32[], f32[8,4], f32[4,4]) {
  %a = (s32[], f32[8,4], f32[4,4]) parameter(0)
  %g = f32[8,4] custom-call(%a), custom_call_target="__cublas$gemm"
  ROOT %while.1 = (s32[], f32[8,4], f32[4,4]) while((s32[], f32[8,4], f32[4,4]) %a), \
condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"6"}}
}
"""
    expected = (6 * 2 * 8 * 4 * 4, ("custom call __cublas$gemm is not counted",))
    assert count_text(text) == expected
    older = re.sub(r"backend_config=.*", "known_trip_count={n=6}", text)
    assert count_text(older) == expected


def on_mesh():
    return jax.make_mesh((2, 4), ("x", "y"), axis_types=(jax.sharding.AxisType.Auto,) * 2)


@pytest.mark.parametrize(
    ("spec", "out", "sent"),
    [
        (("y", None), (None, None), 3 / 4),  # gathered from four: all but its own
        (("x", None), (None, None), 1 / 2),
        ((None, "y"), ("y", None), 3 / 16),  # exchanged: of a quarter three quarters
    ],
)
def test_bytes_on_the_links(spec, out, sent):
    """Bytes that one device sends, times the iterations of the loop."""
    mesh = on_mesh()
    layout = NamedSharding(mesh, PartitionSpec(*out))

    def exchange(x):
        return jax.lax.with_sharding_constraint(jnp.tanh(x), layout)

    x = array(M, K, spec=spec, mesh=mesh)
    text = jax.jit(exchange).lower(x).compile().as_text()
    assert hlo_costs.count(hlo.parse(text)).link_bytes == sent * 4 * M * K


def test_sums_over_the_links():
    """A product over a sharded axis needs an all-reduce, which sends every part twice."""
    mesh = on_mesh()
    x, w = array(M, K, spec=(None, "y"), mesh=mesh), array(K, N, spec=("y", None), mesh=mesh)
    text = jax.jit(jnp.matmul).lower(x, w).compile().as_text()
    costs = hlo_costs.count(hlo.parse(text))
    assert costs.link_bytes == 2 * 3 / 4 * 4 * M * N
    assert costs.product_bytes == 4 * (M * K / 4 + K * N / 4 + M * N)


@pytest.mark.parametrize(
    ("groups", "size"),
    [("{{0,1,2,3},{4,5,6,7}}", 4), ("[2,4]<=[8]", 4), ("mesh['a'=2,'b'=4] {'a','b'}", 8)],
)
def test_devices_of_a_group(groups, size):
    assert (
        hlo_costs.group_size(f", channel_id=1, replica_groups={groups}, dimensions={{0}}") == size
    )
