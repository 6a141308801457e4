"""Distillation of the closed-form improvement: its loss, its gradient, and where it leads."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import ppo_cases
import pytest
import tiny_cases
from rm_cases import rows

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.functional import policy_losses
from fgrlhf_jax.models import heads, lora
from fgrlhf_jax.ppo import learning, scoring
from fgrlhf_jax.ppo.algorithm import Rollout, Rows
from fgrlhf_jax.ppo.model_flops import model_flops
from fgrlhf_jax.ppo.models import Architectures, Frozen
from fgrlhf_jax.ppo.programs import by_part
from fgrlhf_jax.ppo.scoring import Target
from fgrlhf_jax.reward_model.combined import LogRatio
from fgrlhf_jax.runtime import optim, sharding
from fgrlhf_jax.runtime.optim import TrainState

pytest_plugins = ["runs"]

POLICY = heads.CausalLM(tiny_cases.CFG)
REWARD_MODEL = heads.TokenValueModel(tiny_cases.CFG, "action")
MODELS = Architectures(POLICY, None, REWARD_MODEL, None, has_values=False)
PARAMS = {"policy": tiny_cases.parameters(POLICY, 1)}
FROZEN = Frozen({}, tiny_cases.parameters(POLICY, 3), tiny_cases.parameters(REWARD_MODEL, 4))
KL, STD, T, V = 0.4, 2.0, 6, tiny_cases.CFG.vocab_size
SETTINGS = dataclasses.replace(
    tiny_cases.PPO_SETTINGS, algorithm="distill", max_new_tokens=T, widths=(4 + T,)
)
ONCE = {"ppo_epochs": 1, "minibatch_size": 8, "micro_batch_size": 8}
OPTIMIZER = by_part({"policy": optim.adamw(1e-2, eps=1e-2, clip_norm=0.0)})
init = jax.jit(OPTIMIZER.init)
predict = jax.jit(functools.partial(scoring.predict, models=MODELS, settings=SETTINGS))
update = jax.jit(
    functools.partial(learning.update, optimizer=OPTIMIZER), static_argnames=("models", "settings")
)


RNG = np.random.default_rng(0)
ROWS = Rows(
    RNG.integers(0, V, (8, 4 + T)).astype(np.int32),
    np.array([1, 2, 3, 4, 4, 2, 1, 3], np.int32),
    np.arange(T) < np.array([T, 1, 2, 5, T - 1, 3, T, 4])[:, None],
)


def logits_and_prices(params) -> tuple[jax.Array, ...]:
    """Of policy, reference and reward model before each response token, [B, T, V]; no chunks."""
    inputs = ROWS.tokens_BS, *heads.positions_and_mask(ROWS.mask_BS)
    previous_BT1 = jnp.maximum(ROWS.columns_BT - 1, 0)[..., None]
    models = (POLICY, params), (POLICY, FROZEN.reference)
    every = [model.apply(lora.variables(p), *inputs) / 0.8 for model, p in models]
    variables = lora.variables(FROZEN.reward_model)
    states = REWARD_MODEL.apply(variables, *inputs, method=lambda model, *x: model.backbone(*x))
    every.append(REWARD_MODEL.apply(variables, states, method="next_tokens"))
    return tuple(jnp.take_along_axis(x, previous_BT1, axis=1) for x in every)


@jax.jit
def loss_by_hand(params):
    logits_BTV, reference_BTV, price_BTV = logits_and_prices(params)
    goal_BTV = jax.nn.log_softmax(reference_BTV + price_BTV / (KL * STD))
    kl_BT = jnp.sum(jnp.exp(goal_BTV) * (goal_BTV - jax.nn.log_softmax(logits_BTV)), axis=-1)
    return jnp.sum(jnp.where(ROWS.response_BT, kl_BT, 0.0)) / jnp.sum(ROWS.response_BT)


def test_the_kl_is_a_sum_over_the_vocabulary():
    rng = np.random.default_rng(0)
    logits, goal = 3 * rng.standard_normal((2, 5, 11))
    goal[0, 3] = -np.inf
    p, q = np.exp(goal), np.exp(logits)
    p, q = p / p.sum(-1, keepdims=True), q / q.sum(-1, keepdims=True)
    want = [sum(a * np.log(a / b) for a, b in zip(p[t], q[t], strict=True) if a) for t in range(5)]
    found = policy_losses.kl_to_target(jnp.float32(logits), jnp.float32(goal))
    np.testing.assert_allclose(found, want, rtol=1e-5)


def test_predictions_and_gradients_are_those_of_whole_logits():
    target = Target(FROZEN.reference, FROZEN.reward_model, jnp.float32(KL * STD))

    def loss(params):
        options = {"models": MODELS, "settings": SETTINGS}
        predictions = scoring.predict({"policy": params}, ROWS, target, **options)
        kl_BT = jnp.where(ROWS.response_BT, predictions.target_kl_BT, 0.0)
        return jnp.sum(kl_BT) / jnp.sum(ROWS.response_BT), predictions

    (value, predictions), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(PARAMS["policy"])
    want, wanted = jax.jit(jax.value_and_grad(loss_by_hand))(PARAMS["policy"])
    assert float(value) == pytest.approx(float(want), rel=1e-5)
    for name, grad in tiny_cases.by_path(wanted).items():
        scale = np.abs(grad).max()
        assert scale > 0, name
        got = tiny_cases.by_path(grads)[name]
        np.testing.assert_allclose(got, grad, atol=1e-4 * scale, err_msg=name)
    plain = predict(PARAMS, ROWS)
    np.testing.assert_allclose(predictions.logprob_BT, plain.logprob_BT, atol=1e-5)
    np.testing.assert_allclose(predictions.entropy_BT, plain.entropy_BT, atol=1e-5)


@pytest.mark.parametrize("weight", [0.0, 0.7])
def test_a_log_ratio_is_the_reward_of_every_next_token(weight):
    """Without a reference (weight 0) the target is the policy at temperature beta / (1 + beta)."""
    ratio = LogRatio(POLICY, heads.CausalLM(tiny_cases.CFG) if weight else None, weight)
    models, beta = MODELS._replace(reward_model=ratio), 0.6
    settings = dataclasses.replace(SETTINGS, temperature=1.0)
    params = {"policy": FROZEN.reference, "reference": tiny_cases.parameters(POLICY, 5)}
    used = params if weight else {"policy": params["policy"]}
    target = Target(FROZEN.reference, used, jnp.float32(beta))
    learner = {"policy": FROZEN.reference}
    found = scoring.predict(learner, ROWS, target, models=models, settings=settings)

    inputs = ROWS.tokens_BS, *heads.positions_and_mask(ROWS.mask_BS)
    logits = [POLICY.apply(lora.variables(p), *inputs) for p in params.values()]
    policy, reference = (np.float64(jax.nn.log_softmax(x)) for x in logits)
    goal = (1 + 1 / beta) * policy - weight / beta * reference
    goal -= np.log(np.exp(goal).sum(-1, keepdims=True))
    kl = (np.exp(goal) * (goal - policy)).sum(-1)
    before = np.maximum(ROWS.columns_BT - 1, 0)
    np.testing.assert_allclose(
        found.target_kl_BT, np.take_along_axis(kl, before, axis=1), rtol=1e-4, atol=1e-5
    )
    reward_BS = ratio.apply(lora.variables(used), *inputs)[:, 1:]
    every = (policy - weight * reference)[:, :-1]
    wanted = np.take_along_axis(every, ROWS.tokens_BS[:, 1:, None], axis=2)[..., 0]
    wanted = np.where(ROWS.mask_BS[:, 1:], wanted, reward_BS)
    np.testing.assert_allclose(reward_BS, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("references", [1, 0])
def test_an_update_by_a_log_ratio_runs_forward_passes_of_policies(references):
    """Those of the ratio and of the reference. Policy forward and backward is three, as in RLOO."""
    ratio = LogRatio(POLICY, heads.CausalLM(tiny_cases.CFG) if references else None, 0.5)
    models = MODELS._replace(reward_model=ratio)
    distill, rloo = (
        model_flops(
            *(models, dataclasses.replace(SETTINGS, algorithm=name), [3, 5], [2, 4]), scored=True
        )
        for name in ("distill", "rloo")
    )
    passes = 3 + 2 + references
    assert distill["update"] == pytest.approx(passes / 3 * rloo["update"], rel=1e-12)
    assert distill["score_rollout"] == rloo["score_rollout"]


@functools.cache
def rolled_out() -> Rollout:
    logprob_BT = predict(PARAMS, ROWS).logprob_BT
    logprob_BT = jnp.where(ROWS.response_BT, logprob_BT, 0.0)
    zeros_BT = jnp.zeros_like(logprob_BT)
    return Rollout(*map(jnp.asarray, ROWS), jnp.ones(8, bool), *[logprob_BT] * 2, *[zeros_BT] * 4)


def learn(state: TrainState, rollout: Rollout, key: int = 0, **changes):
    settings = dataclasses.replace(SETTINGS, **changes)
    arguments = state, FROZEN, rollout, jnp.float32(KL), jax.random.key(key), None
    return update(*arguments, jnp.float32(STD), models=MODELS, settings=settings)


@pytest.mark.slow
def test_one_pass_learns_what_micro_batches_do():
    state = TrainState(PARAMS, init(PARAMS))
    small, metrics = learn(state, rolled_out(), **ONCE | {"micro_batch_size": 4})
    whole, same = learn(state, rolled_out(), **ONCE)
    assert metrics["policy/loss"] == pytest.approx(float(loss_by_hand(PARAMS["policy"])), rel=1e-4)
    assert abs(metrics["debug/initial_kl"]) < 1e-6
    chex.assert_trees_all_close(small.params, whole.params, atol=5e-5)
    chex.assert_trees_all_close(metrics, same, atol=1e-4)
    assert not any(name.startswith("value/") for name in metrics)


@pytest.mark.slow
def test_a_mesh_learns_what_one_device_does():
    state = TrainState(PARAMS, init(PARAMS))
    alone, metrics = jax.device_get(learn(state, rolled_out(), **ONCE))
    mesh = sharding.make_mesh("2,2,2")
    with jax.set_mesh(mesh):
        placed = sharding.put_batch(jax.device_get(rolled_out()), mesh)
        start = jax.device_put(state, sharding.shardings(state, mesh))
        spread, same = jax.device_get(learn(start, placed, **ONCE))
    chex.assert_trees_all_close(spread.params, alone.params, atol=5e-5)
    chex.assert_trees_all_close(same, metrics, atol=1e-3)


# Runs


@pytest.fixture(scope="module")
def prices(world, tmp_path_factory):
    """A reward model whose head prices every next token."""
    folder = tmp_path_factory.mktemp("prices")
    return ppo_cases.save_reward_model(folder, "token_edit", head="action")


def fields(world, prices, run_dir, **changes) -> dict:
    usual = {"algorithm": "distill", "reward_model": prices, "kl__coef": 0.3, "kl__target": 0.0}
    return ppo_cases.fields(world, run_dir, **usual | changes)


@pytest.fixture(scope="module")
def distilled(in_process, world, prices, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("runs") / "distilled"
    ppo_cases.run(fields(world, prices, run_dir))
    return run_dir


@pytest.mark.slow
def test_a_run_nears_its_target_and_goes_on_after_a_signal(distilled, world, prices, tmp_path):
    losses = [row["policy/loss"] for row in rows(distilled) if "policy/loss" in row]
    assert losses[-1] < losses[0] - 0.1
    ppo_cases.run_until_asked_to_stop(fields(world, prices, tmp_path / "stopped"))
    ppo_cases.run(fields(world, prices, tmp_path / "stopped"))
    ppo_cases.same_run(tmp_path / "stopped", distilled)


def test_what_cannot_be_distilled_is_refused(in_process, world, prices, tmp_path):
    for changes, message in (
        ({"reward_model": world.token}, "algorithm=distill: .* does not score every next token"),
        ({"reward_model": f"{prices},{prices}"}, "algorithm=distill: .* does not score every next"),
        ({"reward_model": "", "reward_function": "mine:pay"}, "mine:pay does not score every"),
        ({"kl__coef": 0.0}, "kl.coef=0: algorithm=distill divides rewards by it"),
    ):
        with pytest.raises(InputError, match=message):
            ppo_cases.run(fields(world, prices, tmp_path / "run", **changes))
