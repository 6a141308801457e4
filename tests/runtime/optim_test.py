"""Schedules against their formulas; what decays and what is frozen. AdamW itself is optax's."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.models import heads, llama
from fgrlhf_jax.runtime import optim, sharding
from fgrlhf_jax.training import supervised

CFG = llama.LlamaConfig(23, 8, 12, 2, 2, 1, 4, attention_bias=True, mlp_bias=True)
STEPS, WARMUP, PEAK = 10, 4, 0.3

# What weight decay should pull on, by name: a rank tells nothing where layers are stacked.
MATRICES = {
    "backbone/embed/embedding",
    "head/kernel",
    "head/unembed",
    "lm_head/kernel",
    *(f"backbone/layers/attention/{name}/kernel" for name in "qkvo"),
    *(f"backbone/layers/mlp/{name}/kernel" for name in ("gate", "up", "down")),
}


@functools.cache
def every_parameter() -> dict:
    """The parameters of a language model and of a state-action reward model in one tree."""
    rng = np.random.default_rng(0)
    tree = {}
    for module in (heads.CausalLM(CFG), heads.TokenValueModel(CFG, "state_action")):
        tree |= heads.parameter_shapes(module)
    return jax.tree.map(lambda x: rng.standard_normal(x.shape).astype(np.float32), tree)


def by_name(tree) -> dict[str, np.ndarray]:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {sharding.path_name(path): np.asarray(leaf, np.float64) for path, leaf in leaves}


def gradients(count: int) -> list:
    """Of norms far below and far above 1, in turn."""
    rng = np.random.default_rng(1)
    return [
        jax.tree.map(
            lambda x, size=size: (size * rng.standard_normal(x.shape)).astype(np.float32),
            every_parameter(),
        )
        for size in (0.01, 10.0, 0.01)[:count]
    ]


def walk(optimizer, params, grads):
    """Parameters after one update for each of the gradients, and the optimizer's last state."""

    @jax.jit
    def update(params, state, grad):
        updates, state = optimizer.update(grad, state, params)
        return optax.apply_updates(params, updates), state

    state = jax.jit(optimizer.init)(params)
    for grad in grads:
        params, state = update(params, state, grad)
    return params, state


def formula(name: str, step: int) -> float:
    if step < WARMUP:
        return PEAK * (step + 1) / WARMUP
    share = (step - WARMUP) / (STEPS - WARMUP)
    decay = {"constant": 1.0, "linear": 1.0 - share}
    return PEAK * decay.get(name, (1.0 + math.cos(math.pi * share)) / 2)


@pytest.mark.parametrize("name", optim.SCHEDULES)
def test_schedule_is_its_formula(name):
    schedule = optim.schedule(name, PEAK, STEPS, WARMUP)
    rates = [float(schedule(step)) for step in range(STEPS + 1)]
    np.testing.assert_allclose(rates, [formula(name, s) for s in range(STEPS + 1)], atol=1e-7)
    assert min(rates[:STEPS]) > 0  # every update of the run moves something
    without_warmup = optim.schedule(name, PEAK, 2, 0)
    middle = PEAK if name == "constant" else PEAK / 2
    rates = [without_warmup(0), without_warmup(1)]
    np.testing.assert_allclose(rates, [PEAK, middle], rtol=1e-6)
    for steps, warmup, message in ((10, 10, "warmup_steps=10"), (10, -1, "=-1"), (0, 0, "steps=0")):
        with pytest.raises(InputError, match=message):
            optim.schedule(name, 1.0, steps, warmup)


def pulled_by_decay(params) -> set[str]:
    """What an update with a gradient of 0 moves."""
    optimizer = optim.adamw(optax.constant_schedule(0.5), weight_decay=0.1)
    zeros = jax.tree.map(np.zeros_like, params)
    before, after = by_name(params), by_name(walk(optimizer, params, [zeros])[0])
    moved = {name for name in before if (before[name] != after[name]).any()}
    for name in moved:
        np.testing.assert_allclose(after[name], 0.95 * before[name], rtol=1e-6, err_msg=name)
    return moved


def test_decay_pulls_on_matrices_and_on_nothing_else():
    params = every_parameter()
    assert by_name(params)["backbone/layers/attention_norm/scale"].ndim == 2  # yet no matrix
    assert set(by_name(params)) > MATRICES == pulled_by_decay(params)


def test_the_root_mean_square_of_an_update_over_its_rate():
    """1 at Adam's first update, but where eps is not small beside the gradients."""
    params, grads = every_parameter(), gradients(1)[0]
    trained = [value for name, value in by_name(grads).items() if "embed/" not in name]
    gradient = np.concatenate([value.ravel() for value in trained])
    for eps in (1e-30, 1e-3, 1.0):
        options = {"clip_norm": 0.0, "freeze": "embed/", "eps": eps}
        optimizer = optim.adamw(optax.constant_schedule(0.1), **options)
        _, state = jax.jit(optimizer.update)(grads, jax.jit(optimizer.init)(params), params)
        expected = np.sqrt(np.mean((gradient / (np.abs(gradient) + eps)) ** 2))
        assert float(optim.update_rms(state)) == pytest.approx(expected, rel=1e-5)
    assert expected < 0.2


@pytest.mark.parametrize("parts", [1, 3])
def test_gradients_of_frozen_parameters_are_not_computed(parts):
    """Two products instead of four; the other gradients are the same."""
    rng = np.random.default_rng(0)
    params = {name: jnp.asarray(rng.normal(size=(32, 32)), jnp.float32) for name in ("a", "b")}
    batch = {"x": jnp.asarray(rng.normal(size=(parts, 64, 32)), jnp.float32)}
    batch["weight_B"] = jnp.ones((parts, 64))
    optimizer = optax.sgd(1.0)
    state = optim.TrainState(params, optimizer.init(params))

    def losses(params, batch):
        return jnp.sum(jnp.tanh(batch["x"] @ params["a"] @ params["b"]), axis=1), {}

    def compiled(freeze):
        options = {"losses": losses, "optimizer": optimizer, "freeze": freeze}
        step = functools.partial(supervised.train_step, **options)
        return jax.jit(step).lower(state, batch).compile()

    (every, _), (some, _) = (compiled(freeze)(state, batch) for freeze in ("", "^a$"))
    np.testing.assert_array_equal(some.params["a"], params["a"])
    assert not np.array_equal(every.params["a"], params["a"])
    np.testing.assert_allclose(some.params["b"], every.params["b"], 1e-5)
    flops = [compiled(freeze).cost_analysis()["flops"] for freeze in ("", "^a$")]
    assert flops[1] < 0.8 * flops[0]


def test_frozen_parameters_stay_have_no_moments_and_do_not_count_in_the_norm():
    params, grads = every_parameter(), gradients(3)
    pattern = r"backbone/embed|attention/|norm"
    frozen = {name for name in by_name(params) if re.search("embed/|attention/|norm", name)}
    assert "backbone/layers/mlp_norm/scale" in frozen
    assert "backbone/layers/mlp/up/kernel" not in frozen
    optimizer = optim.adamw(optax.constant_schedule(0.1), freeze=pattern, eps=1e-3)
    after, state = walk(optimizer, params, grads)
    trained = {name: value for name, value in by_name(params).items() if name not in frozen}
    alone, _ = walk(
        optim.adamw(optax.constant_schedule(0.1), eps=1e-3),
        jax.tree.map(np.float32, trained),
        [{name: np.float32(by_name(grad)[name]) for name in trained} for grad in grads],
    )
    for name, value in by_name(after).items():
        expected = by_name(params)[name] if name in frozen else alone[name]
        np.testing.assert_allclose(value, expected, 1e-5, 1e-6, err_msg=name)
    moments = [leaf for leaf in jax.tree.leaves(state) if leaf.ndim]
    assert sum(leaf.size for leaf in moments) == 2 * sum(x.size for x in trained.values())
