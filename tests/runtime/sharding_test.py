"""Meshes of 8 virtual devices: the same numbers as on one, and every device with its share only."""

import dataclasses
import functools
import itertools
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_cases
from jax.sharding import PartitionSpec as P

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.models import heads
from fgrlhf_jax.models.sizes import SIZES
from fgrlhf_jax.reward_model.modules import make_module
from fgrlhf_jax.reward_model.train import pair_losses
from fgrlhf_jax.runtime import optim, sharding
from fgrlhf_jax.runtime.optim import abstract_state, lower_step
from fgrlhf_jax.training import sft
from fgrlhf_jax.training.supervised import train_step

MESHES = ("8,1,1", "2,4,1", "2,2,2")
WEIGHTS = {"consistency_weight": 0.4, "center_weight": 0.3}

# Where each parameter should lie: the inputs of a product over one axis, its outputs over the
# other, and back again in the product that follows, so that a block needs two reductions.
LAID_OUT = {
    "backbone/embed/embedding": P("tensor", "fsdp"),
    "backbone/norm/scale": P(),
    "backbone/layers/attention_norm/scale": P(),
    "backbone/layers/mlp_norm/scale": P(),
    **{
        f"backbone/layers/{name}/{part}": spec
        for names, parts in {
            ("attention/q", "attention/k", "attention/v", "mlp/gate", "mlp/up"): {
                "kernel": P(None, "fsdp", "tensor"),
                "bias": P(None, "tensor"),
            },
            ("attention/o", "mlp/down"): {"kernel": P(None, "tensor", "fsdp"), "bias": P()},
        }.items()
        for name, (part, spec) in itertools.product(names, parts.items())
    },
    "lm_head/kernel": P("fsdp", "tensor"),
    "head/unembed": P("tensor", "fsdp"),
    "head/kernel": P(),
    "head/bias": P(),
    "head/gate": P(),
}
FAMILIES = SIZES | {
    "biases": dataclasses.replace(tiny_cases.CFG, attention_bias=True, mlp_bias=True),
    "tied": dataclasses.replace(tiny_cases.CFG, tie_embeddings=True),
}
MODULES = {
    "lm": heads.CausalLM,
    "after": heads.TokenValueModel,
    "state_action": functools.partial(heads.TokenValueModel, kind="state_action"),
}


class Run(NamedTuple):
    abstract: optim.TrainState
    state: optim.TrainState
    metrics: list[dict]


def model_of(loss: str) -> heads.TokenValueModel:
    head = "after" if loss == "sequence" else "state_action"
    return make_module(tiny_cases.CFG, loss, head)


@functools.cache
def two_steps(shape: str, loss: str) -> Run:
    """Two updates of two micro-batches of eight pairs each.

    Adam divides by the gradient's own size, so where a gradient is nothing but rounding its
    update is a coin's toss. An eps far above rounding keeps such tosses out of the comparison.
    """
    devices = jax.devices()[:1] if shape == "1,1,1" else None
    mesh = sharding.make_mesh(shape, devices)
    model = model_of(loss)
    optimizer = optim.adamw(optim.schedule("linear", 0.02, 4, 1), eps=1e-3, weight_decay=0.1)
    abstract = abstract_state(heads.abstract_params(model, mesh), optimizer, mesh)
    params = jax.tree.map(
        lambda x, like: jax.device_put(x, like.sharding),
        tiny_cases.parameters(model),
        abstract.params,
    )
    zeros = jax.tree.map(  # how Adam's moments and counts start
        lambda like: jax.device_put(np.zeros(like.shape, like.dtype), like.sharding),
        abstract.opt_state,
    )
    state, step, history = optim.TrainState(params, zeros), None, []
    for seed in (0, 1):
        batch = sharding.put_batch(tiny_cases.batch(seed, 2, 8, columns=20), mesh, axis=1)
        if step is None:
            losses = functools.partial(pair_losses, model=model, loss=loss, **WEIGHTS)
            update = functools.partial(train_step, losses=losses, optimizer=optimizer)
            step = lower_step(update, abstract, batch, mesh).compile()
        state, metrics = step(state, batch)
        history.append({name: float(value) for name, value in metrics.items()})
    return Run(abstract, state, history)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "loss"), [("8,1,1", "token_edit"), ("2,2,2", "token_edit"), ("2,4,1", "sequence")]
)
def test_two_steps_are_those_of_a_single_device(shape, loss):
    """Within float32 rounding, relative to the largest number of each array.

    Sums in another order change a gradient by some 1e-7 of its parts, and by more of its own size
    where they cancel: 1e-4 for the moments. An update is at most 0.02 and Adam stretches such
    a difference by at most 0.02 / eps = 20: 1e-5 for the parameters, which are of size 1. (Here
    they differ by 1e-5 and 2e-6; one pair in the place of another changes the latter by 1e-2.)
    """
    single, sharded = two_steps("1,1,1", loss), two_steps(shape, loss)
    start = tiny_cases.by_path(tiny_cases.parameters(model_of(loss)))
    expected = tiny_cases.by_path(single.state)
    for path, leaf in tiny_cases.by_path(sharded.state).items():
        difference = np.abs(np.asarray(leaf) - np.asarray(expected[path])).max()
        tolerance = 1e-5 if path.startswith("params") else 1e-4
        assert difference < tolerance * np.abs(expected[path]).max(), path
    for path, before in start.items():
        assert np.abs(tiny_cases.by_path(sharded.state.params)[path] - before).max() > 1e-3, path
    for metrics, others in zip(sharded.metrics, single.metrics, strict=True):
        assert set(metrics) > {"loss", "accuracy", "grad_norm", "reward/margin"}
        assert metrics == pytest.approx(others, rel=1e-5, abs=1e-6)
    assert single.metrics[0]["loss"] != pytest.approx(single.metrics[1]["loss"], rel=1e-3)


def test_a_look_up_gathers_neither_the_batch_nor_the_vocabulary():
    """Of weights only their columns or rows over fsdp are gathered, of activations nothing."""
    mesh = sharding.make_mesh("2,2,2")
    model, optimizer = heads.CausalLM(tiny_cases.CFG), optax.sgd(1e-3)
    abstract = abstract_state(heads.abstract_params(model, mesh), optimizer, mesh)
    batch = {"tokens_BS": np.zeros((2, 8, 16), np.int32), "weight_B": np.zeros((2, 8), np.float32)}
    batch |= {name: np.zeros((2, 8, 16), bool) for name in ("mask_BS", "response_BT")}
    batch["columns_BT"] = batch["tokens_BS"]
    step = functools.partial(train_step, optimizer=optimizer, **sft.objective(model))
    lowered = lower_step(step, abstract, sharding.put_batch(batch, mesh, axis=1), mesh)
    text = lowered.compile().as_text()
    gathered = re.findall(r"= \w+\[([\d,]*)\]\S* all-gather\(", text)
    assert "32,32" in gathered  # half of the vocabulary of 64
    assert not [shape for shape in gathered if shape.startswith("64,") or shape.count(",") == 2]


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_lies_where_it_should(family, module):
    shapes = heads.parameter_shapes(MODULES[module](FAMILIES[family]))
    shardings = tiny_cases.by_path(sharding.shardings(shapes, sharding.make_mesh("2,2,2")))
    for path, leaf in tiny_cases.by_path(shapes).items():
        spec = shardings[path].spec
        assert spec == LAID_OUT[path], path
        assert len(spec) in (0, leaf.ndim), path


def test_an_axis_that_does_not_divide_stays_whole():
    mesh = sharding.make_mesh("1,2,4")
    shapes = {
        "embed": {"embedding": jax.ShapeDtypeStruct((30, 16), np.float32)},  # 30 is not 4 n
        "q": {"kernel": jax.ShapeDtypeStruct((3, 7, 8), np.float32)},
        "o": {"kernel": jax.ShapeDtypeStruct((3, 7, 9), np.float32)},
        "count": jax.ShapeDtypeStruct((), np.int32),
    }
    abstract = sharding.abstract(shapes, mesh)
    assert abstract["embed"]["embedding"].sharding.spec == P(None, "fsdp")
    assert abstract["q"]["kernel"].sharding.spec == P(None, None, "tensor")
    assert abstract["o"]["kernel"].sharding.spec == P(None, None, None)
    assert abstract["count"].sharding.spec == P()


@pytest.mark.parametrize(
    ("shape", "sizes"), [("-1,1,1", (8, 1, 1)), ("2,-1,2", (2, 2, 2)), (" 1, 8,-1", (1, 8, 1))]
)
def test_mesh_from_its_sizes(shape, sizes):
    mesh = sharding.make_mesh(shape)
    assert mesh.axis_names == ("data", "fsdp", "tensor")
    assert mesh.devices.shape == sizes
    assert set(mesh.devices.flat) == set(jax.devices())


@pytest.mark.parametrize("shape", ["2,4", "a,b,c", "0,8,1", "-1,-1,8", "-2,2,2", "2,2,1", "3,-1,1"])
def test_meshes_that_cannot_be(shape):
    message = f"mesh='{shape}': give .* three sizes whose product is .* 8; one of them may be -1"
    with pytest.raises(InputError, match=message):
        sharding.make_mesh(shape)


@pytest.mark.parametrize("shape", ["2,4,1", "2,2,2", "1,1,8"])
@pytest.mark.parametrize("axis", [0, 1])
def test_rows_of_a_batch_are_placed_in_order(shape, axis):
    mesh = sharding.make_mesh(shape)
    rows = np.arange(8 * 3, dtype=np.int32).reshape(8, 3)
    host = np.stack([rows, -rows]) if axis else rows
    placed = sharding.put_batch({"x": host}, mesh, axis=axis)["x"]
    np.testing.assert_array_equal(placed, host)
    shards = {shard.device: np.asarray(shard.data) for shard in placed.addressable_shards}
    groups = mesh.devices.reshape(-1, mesh.shape["tensor"])  # devices with the same rows
    for devices, part in zip(groups, np.split(host, len(groups), axis=axis), strict=True):
        for device in devices:
            np.testing.assert_array_equal(shards[device], part)


@pytest.mark.parametrize("shape", MESHES[1:])
def test_constrain_splits_the_batch_and_nothing_else(shape):
    mesh = sharding.make_mesh(shape)
    x = jnp.arange(8 * 6, dtype=jnp.float32).reshape(8, 2, 3)
    assert sharding.constrain(x) is x  # without a mesh
    with jax.set_mesh(mesh):
        constrained = jax.jit(sharding.constrain)(x)
    np.testing.assert_array_equal(constrained, x)
    rows = 8 // (mesh.shape["data"] * mesh.shape["fsdp"])
    assert {shard.data.shape for shard in constrained.addressable_shards} == {(rows, 2, 3)}


@pytest.fixture(scope="module")
def tree():
    rng = np.random.default_rng(0)
    return {
        "backbone": {"embed": {"embedding": rng.standard_normal((8, 16)).astype(np.float32)}},
        "q": {"kernel": rng.standard_normal((2, 16, 8)).astype(np.float32)},
        "k": {"kernel": rng.standard_normal((2, 16, 8)).astype(jnp.bfloat16)},
        "v": {"kernel": {"qvalue": rng.integers(-128, 128, (2, 16, 8), np.int8)}},
        "norm": {"scale": rng.standard_normal(5).astype(np.float32)},
        "count": np.int32(7),
    }


def test_fingerprint_does_not_depend_on_the_sharding(tree):
    expected = int(sharding.fingerprint(jax.device_put(tree, jax.devices()[0])))
    for shape in (*MESHES, "1,2,4"):
        mesh = sharding.make_mesh(shape)
        placed = jax.device_put(tree, sharding.shardings(tree, mesh))
        assert int(sharding.fingerprint(placed)) == expected


def test_fingerprint_sees_every_flipped_bit_and_what_is_exchanged(tree):
    before = int(sharding.fingerprint(tree))
    leaves, structure = jax.tree.flatten(tree)
    rng = np.random.default_rng(1)
    for number, bit in ((i, bit) for i, x in enumerate(leaves) for bit in range(8 * x.itemsize)):
        kind = np.dtype(f"uint{8 * leaves[number].itemsize}")
        bits = np.array(leaves[number]).view(kind).copy()
        bits[tuple(rng.integers(0, n) for n in bits.shape)] ^= kind.type(1 << bit)
        flipped = bits.view(leaves[number].dtype)
        changed = [*leaves[:number], flipped, *leaves[number + 1 :]]
        assert int(sharding.fingerprint(structure.unflatten(changed))) != before, (number, bit)
    rolled = tree | {"norm": {"scale": np.roll(tree["norm"]["scale"], 1)}}
    assert int(sharding.fingerprint(rolled)) != before
    a, b = np.float32([1, 2]), np.float32([3, 4])
    assert int(sharding.fingerprint([a, b])) != int(sharding.fingerprint([b, a]))
