"""PPO on one backbone: adapters of policy, critic and reward model against whole models."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_cases
from rollout_cases import Meta, generate

from fgrlhf_jax.models import decoding, heads, lora, quantize
from fgrlhf_jax.models.lora import Lora
from fgrlhf_jax.ppo import learning, scoring
from fgrlhf_jax.ppo.models import Architectures, Frozen, abstract_params, merge_base, merge_frozen
from fgrlhf_jax.ppo.programs import by_part
from fgrlhf_jax.reward_model.model import Normalization
from fgrlhf_jax.runtime import sharding
from fgrlhf_jax.runtime.optim import TrainState

POLICY_LORA, REWARD_LORA = Lora(4, alpha=6.0), Lora(2, alpha=5.0, targets="attention")
CFG = dataclasses.replace(tiny_cases.CFG, hidden_size=64, head_dim=16)  # which nf4's blocks divide
POLICY, REWARD = (
    model(dataclasses.replace(CFG, lora_scale=adapters.scale))
    for model, adapters in ((heads.CausalLM, POLICY_LORA), (heads.TokenValueModel, REWARD_LORA))
)
MODELS = Architectures(POLICY, REWARD, REWARD, Meta(), POLICY_LORA, False, REWARD_LORA)
WHOLE = MODELS._replace(lora=None, reward_lora=None)
MESH = sharding.make_mesh("1,-1,1", jax.devices()[:1])
OPTIMIZER = by_part({"policy": optax.sgd(1.0), "critic": optax.sgd(1.0)})
SETTINGS = dataclasses.replace(
    tiny_cases.PPO_SETTINGS, minibatch_size=8, ppo_epochs=1, missing_eos="none"
)
BASE = tiny_cases.parameters(POLICY, 1)


def adapter(model, adapters: Lora, seed: int, zero: bool = False) -> dict:
    """Random, or as a fresh one: B zero."""
    shapes = lora.abstract_adapter(heads.abstract_params(model, MESH), adapters, MESH)
    fresh = lora.init_adapter(jax.random.key(seed), shapes)
    if zero:
        return fresh
    keys = iter(jax.random.split(jax.random.key(seed), len(jax.tree.leaves(fresh))))
    return jax.tree.map(lambda x: 0.2 * jax.random.normal(next(keys), x.shape), fresh)


def head(seed: int) -> dict:
    return tiny_cases.parameters(REWARD, seed)["head"]


PARAMS = {
    "policy": {"lora": adapter(POLICY, POLICY_LORA, 2)},
    "critic": {"lora": adapter(REWARD, REWARD_LORA, 3), "head": head(3)},
}
FROZEN = Frozen(BASE, {}, {"lora": adapter(REWARD, REWARD_LORA, 4), "head": head(4)})


@functools.cache
def sampled(base_dtype: str = "float32", model=POLICY) -> tuple:
    base = quantize.quantize_params(BASE, base_dtype)
    return generate(decoding.decoding_weights(base | PARAMS["policy"], model), model)


def roll_out(params, frozen, models=MODELS, rows=None, **changes):
    settings = dataclasses.replace(SETTINGS, **changes)
    score = jax.jit(scoring.score_rollout, static_argnames=("models", "settings"))
    args = params, frozen, Normalization(0.1, 2.0), True, *(rows or sampled())
    return score(*args, models=models, settings=settings)


def learn(params, frozen, rollout, models=MODELS, **changes) -> tuple[TrainState, dict]:
    settings = dataclasses.replace(SETTINGS, **changes)
    options = {"models": models, "settings": settings, "optimizer": OPTIMIZER}
    state = TrainState(params, OPTIMIZER.init(params))
    args = state, frozen, rollout, jnp.float32(0.1), jax.random.key(1)
    return jax.jit(functools.partial(learning.update, **options))(*args)


def merged() -> tuple[dict, Frozen]:
    """The same models, each whole."""
    params = merge_base(PARAMS, FROZEN)
    reference, reward_model = merge_frozen(FROZEN)
    scale = {"policy": POLICY_LORA.scale, "critic": REWARD_LORA.scale}
    params = {name: tiny_cases.merged(tree, scale[name]) for name, tree in params.items()}
    return params, Frozen({}, reference, tiny_cases.merged(reward_model, REWARD_LORA.scale))


def test_adapters_score_as_whole_models_do():
    rollout = roll_out(PARAMS, FROZEN)
    chex.assert_trees_all_close(rollout, roll_out(*merged(), WHOLE), atol=3e-5)
    assert float(jnp.abs(rollout.logprob_BT - rollout.ref_logprob_BT).max()) > 0.1


@pytest.mark.parametrize(
    ("base_dtype", "dtype", "nats", "kl"),
    [
        ("int8", "float32", 2e-5, 1e-9),
        ("nf4", "float32", 2e-5, 1e-9),
        ("nf4", "bfloat16", 0.2, 0.005),
    ],
)
def test_the_policy_that_sampled_is_the_one_that_learns(base_dtype, dtype, nats, kl):
    """The first ratio is 1 to the bit; the sampler, whose weights are merged, is within bounds."""
    policy = POLICY.clone(cfg=dataclasses.replace(POLICY.cfg, dtype=dtype))
    models = MODELS._replace(policy=policy)
    frozen = FROZEN._replace(base=quantize.quantize_params(BASE, base_dtype))
    rollout = roll_out(PARAMS, frozen, models, sampled(base_dtype, policy))
    drawn_BT = jnp.where(rollout.response_BT, rollout.sampler_logprob_BT, 0)
    np.testing.assert_allclose(rollout.logprob_BT, drawn_BT, atol=nats)
    _, metrics = learn(PARAMS, frozen, rollout, models)
    assert float(metrics["debug/initial_log_ratio"]) == 0 == float(metrics["debug/initial_kl"])
    assert float(metrics["debug/sampler_mismatch_kl"]) < kl


@pytest.mark.parametrize("base_dtype", ["float32", "bfloat16", *quantize.KINDS])
def test_a_fresh_adapter_is_the_reference_to_the_bit(base_dtype):
    params = PARAMS | {"policy": {"lora": adapter(POLICY, POLICY_LORA, 2, zero=True)}}
    rollout = roll_out(params, FROZEN._replace(base=quantize.quantize_params(BASE, base_dtype)))
    np.testing.assert_array_equal(rollout.logprob_BT, rollout.ref_logprob_BT)


def test_the_reference_of_an_adapted_policy_has_its_adapter():
    rollout = roll_out(PARAMS, FROZEN._replace(reference=PARAMS["policy"]))
    np.testing.assert_array_equal(rollout.logprob_BT, rollout.ref_logprob_BT)


def test_a_whole_reward_model_carries_the_critic():
    """Its weights are those that the critic's adapter is on."""
    own = tiny_cases.parameters(REWARD, 7)
    rollout = roll_out(PARAMS, FROZEN._replace(reward_model=own), MODELS._replace(reward_lora=None))
    params, frozen = merged()
    params["critic"] = tiny_cases.merged(
        {"backbone": own["backbone"]} | PARAMS["critic"], REWARD_LORA.scale
    )
    plain = roll_out(params, frozen._replace(reward_model=own), WHOLE)
    chex.assert_trees_all_close(rollout, plain, atol=3e-5)


def test_a_quantized_policy_may_have_a_whole_reward_model_of_any_width():
    """Whose weights the critic's adapter is on, as they are: these blocks do not divide."""
    policy_lora = dataclasses.replace(POLICY_LORA, base_dtype="nf4")
    narrow = heads.TokenValueModel(dataclasses.replace(REWARD.cfg, hidden_size=32))
    models = MODELS._replace(critic=narrow, reward_model=narrow, lora=policy_lora, reward_lora=None)
    assert set(abstract_params(models, MESH)["critic"]) == {"lora", "head"}


@pytest.mark.parametrize(("shared", "micro_batch_size"), [(False, 4), (False, 8), (True, 8)])
def test_updates_follow_the_gradients_of_whole_models(shared, micro_batch_size):
    """d A = s dW Bᵀ of the gradient dW of the whole model; the base has none."""
    changes = {"micro_batch_size": micro_batch_size}
    models, params = MODELS, dict(PARAMS)
    whole, (whole_params, whole_frozen) = WHOLE, merged()
    if shared:
        models, whole = models._replace(critic=None), whole._replace(critic=None)
        for tree in (params, whole_params):
            tree["critic"] = {"head": params["critic"]["head"]}
    results = []
    for models_, params_, frozen in ((models, params, FROZEN), (whole, whole_params, whole_frozen)):
        rollout = roll_out(params_, frozen, models_, **changes)
        after, metrics = learn(params_, frozen, rollout, models_, **changes)
        results.append((optax.tree.sub(after.params, params_), metrics))
    (changed, metrics), (whole_change, whole_metrics) = results
    assert float(metrics["debug/initial_log_ratio"]) == 0 == float(metrics["debug/initial_kl"])
    assert float(metrics["debug/sampler_mismatch_kl"]) < 1e-9
    assert set(changed["policy"]) == {"lora"}
    for name in ("policy/loss", "value/loss", "policy/kl", "policy/entropy"):
        assert float(metrics[name]) == pytest.approx(float(whole_metrics[name]), abs=1e-4), name
    for name, scale in (("policy", POLICY_LORA.scale), ("critic", REWARD_LORA.scale)):
        if "lora" not in changed[name]:
            continue
        layers = changed[name]["lora"]["backbone"]["layers"]
        for part, group in layers.items():
            for layer, change in group.items():
                dw = whole_change[name]["backbone"]["layers"][part][layer]["kernel"]
                b = params[name]["lora"]["backbone"]["layers"][part][layer]["lora_b"]
                expected = scale * np.einsum("LIO,LRO->LIR", dw, b)
                atol = 2e-3 * np.abs(expected).max()
                np.testing.assert_allclose(change["lora_a"], expected, atol=atol)
    heads = (tree["critic"]["head"] for tree in (changed, whole_change))
    chex.assert_trees_all_close(*heads, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_an_update_of_eight_devices_is_that_of_one():
    """On a quantized base, split over all axes."""
    settings = dataclasses.replace(SETTINGS, micro_batch_size=8)
    options = {"models": MODELS, "settings": settings}

    @jax.jit
    def step(params, frozen, rows):
        rollout = scoring.score_rollout(
            *(params, frozen, Normalization(0.1, 2.0), jnp.bool_(True), *rows), **options
        )
        state = TrainState(params, OPTIMIZER.init(params))
        args = state, frozen, rollout, jnp.float32(0.1), jax.random.key(1)
        return rollout, learning.update(*args, optimizer=OPTIMIZER, **options)

    trees = PARAMS, FROZEN._replace(base=quantize.quantize_params(BASE, "int8"))
    rows, results = jax.device_get(sampled()), []
    for mesh in (MESH, sharding.make_mesh("2,2,2")):
        with jax.set_mesh(mesh):
            on_mesh = jax.device_put(trees, sharding.shardings(trees, mesh))
            by_rows = jax.device_put(rows, sharding.batch_sharding(mesh))
            results.append(jax.device_get(step(*on_mesh, by_rows)))
    chex.assert_trees_all_close(*results, atol=2e-5)
