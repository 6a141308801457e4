"""PPO's pure functions: a rollout's numbers, and one update against an independent one."""

import dataclasses
import functools
import types

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_cases

from fgrlhf_jax.functional.masking import masked_mean
from fgrlhf_jax.models import llama, sampling
from fgrlhf_jax.ppo import algorithm as ppo
from fgrlhf_jax.ppo.algorithm import PPOSettings
from fgrlhf_jax.ppo.models import Architectures
from fgrlhf_jax.reward_model.model import Normalization
from fgrlhf_jax.runtime import optim, sharding

pytestmark = pytest.mark.usefixtures("quick_compilation")

POLICY = llama.CausalLM(tiny_cases.CFG)
CRITIC = llama.TokenValueModel(tiny_cases.CFG, "after")
PARAMS = {
    "policy": tiny_cases.parameters(POLICY, 1),
    "critic": tiny_cases.parameters(CRITIC, 2),
}
REF = tiny_cases.parameters(POLICY, 3)
RM = tiny_cases.parameters(CRITIC, 4)
B, P, T, EOS = 8, 4, 6, 2
META = types.SimpleNamespace(level="token")
MODELS = Architectures(POLICY, CRITIC, CRITIC, META)
SETTINGS = PPOSettings(
    max_new_tokens=T,
    temperature=0.8,
    micro_batch_size=4,
    minibatch_size=4,
    ppo_epochs=2,
    kl_estimator="k1",
    kl_in_reward=True,
    missing_eos="subtract",
    missing_eos_penalty=-1.0,
    gamma=1.0,
    gae_lambda=0.95,
    clip_ratio=0.2,
    value_clip_ratio=0.2,
    value_coef=0.1,
    whiten_rewards=False,
    whiten_advantages=True,
)


def settings(**changes) -> PPOSettings:
    return dataclasses.replace(SETTINGS, **changes)


def sampled():
    rng = np.random.default_rng(0)
    prompts = [rng.integers(3, 64, n).tolist() for n in (1, 2, 3, 4, 4, 2, 1, 3)]
    tokens, mask = tiny_cases.laid_out(prompts, "left", fill=0, width=P)
    prompt = jnp.array(tokens, jnp.int32), jnp.array(mask)
    keys = sampling.row_keys(jax.random.key(0), B)
    options = {"model": POLICY, "eos": EOS, "max_new": T, "temperature": 0.8}
    return prompt, sampling.generate(PARAMS["policy"], *prompt, keys, **options)


@functools.cache
def rollout(critic: bool = True, micro_batch_size: int = 4):
    prompt, out = sampled()
    params, models = PARAMS, MODELS
    if not critic:
        params = {"policy": PARAMS["policy"], "critic": {"head": PARAMS["critic"]["head"]}}
        models = MODELS._replace(critic=None)
    found = ppo.score_rollout(
        params,
        REF,
        RM,
        Normalization(0.1, 2.0),
        *prompt,
        out,
        models=models,
        settings=settings(micro_batch_size=micro_batch_size),
    )
    return found, out


def test_the_sampler_and_the_scorer_agree_at_a_temperature():
    found, out = rollout()
    mask = np.asarray(found.response_BT)
    np.testing.assert_allclose(
        np.where(mask, found.logprob_BT, 0), np.asarray(out.logprob_BT), atol=1e-5
    )


def test_values_come_from_before_and_rewards_from_at_the_token():
    found, _ = rollout()
    for b in range(B):
        row = np.asarray(found.tokens_BS[b])[np.asarray(found.mask_BS[b])]
        tokens = jnp.array([row], jnp.int32)
        where = llama.positions_and_mask(tokens >= 0)
        value = CRITIC.apply({"params": PARAMS["critic"]}, tokens, *where)[0]
        scores = CRITIC.apply({"params": RM}, tokens, *where)[0]
        length = int(found.response_BT[b].sum())
        np.testing.assert_allclose(
            found.value_BT[b, :length], value[-length - 1 : -1], atol=1e-5
        )
        np.testing.assert_allclose(found.raw_reward_BT[b, :length], scores[-length:], atol=1e-5)
        np.testing.assert_allclose(
            found.reward_BT[b, :length], (scores[-length:] - 0.1) / 2.0, atol=1e-5
        )
        assert not np.asarray(found.reward_BT[b, length:]).any()


def test_micro_batches_change_nothing():
    chex.assert_trees_all_close(rollout(micro_batch_size=2)[0], rollout()[0], atol=1e-5)
    found, _ = rollout()
    states = [learn(found, micro_batch_size=size)[0] for size in (2, 4)]
    chex.assert_trees_all_close(states[0].params, states[1].params, atol=2e-5)


OPTIMIZER = ppo.make_optimizer(
    optim.adamw(1e-2, eps=1e-2, clip_norm=1.0), optim.adamw(3e-2, eps=1e-2, clip_norm=0.0)
)


def fresh_state(params=PARAMS):
    return optim.TrainState(params, OPTIMIZER.init(params))


def learn(found, key=None, state=None, **changes):
    return ppo.update(
        fresh_state() if state is None else state,
        found,
        jnp.float32(0.1),
        jax.random.key(5) if key is None else key,
        models=MODELS,
        settings=settings(**changes),
        optimizer=OPTIMIZER,
    )


def test_one_rollout_of_updates_equals_a_plain_loop():
    found, _ = rollout()
    key = jax.random.key(5)
    state, metrics = learn(found, key, micro_batch_size=2)

    # The same by hand: no scans, no micro-batches, each optimizer on its own.
    mask = np.asarray(found.response_BT)
    kl = np.asarray(found.logprob_BT - found.ref_logprob_BT, np.float64)
    pay = np.asarray(found.reward_BT, np.float64).copy()
    advantage, returns = np.zeros((2, B, T))
    for b in range(B):
        length = mask[b].sum()
        pay[b, length - 1] += 0.0 if found.finished_B[b] else -1.0
        pay[b] = np.where(mask[b], pay[b] - 0.1 * kl[b], 0.0)
        later, next_value = 0.0, 0.0
        for t in reversed(range(length)):
            value = float(found.value_BT[b, t])
            later = pay[b, t] + next_value - value + 0.95 * later
            advantage[b, t], returns[b, t], next_value = later, later + value, value
    real = advantage[mask]
    advantage = np.where(mask, (advantage - real.mean()) / np.sqrt(real.var() + 1e-8), 0.0)

    params = PARAMS
    each = {
        "policy": optim.adamw(1e-2, eps=1e-2, clip_norm=1.0),
        "critic": optim.adamw(3e-2, eps=1e-2, clip_norm=0.0),
    }
    moments = {name: each[name].init(params[name]) for name in each}

    def loss(params, rows):
        where = llama.positions_and_mask(found.mask_BS[rows])
        tokens = found.tokens_BS[rows]
        logits = POLICY.apply({"params": params["policy"]}, tokens, *where)[:, P - 1 : -1] / 0.8
        logprob = jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[:, P:, None], axis=-1)[
            ..., 0
        ]
        value = CRITIC.apply({"params": params["critic"]}, tokens, *where)[:, P - 1 : -1]
        keep, old = mask[rows], found.logprob_BT[rows]
        ratio = jnp.exp(jnp.where(keep, logprob - old, 0.0))
        gain = advantage[rows]
        policy = jnp.maximum(-gain * ratio, -gain * jnp.clip(ratio, 0.8, 1.2))
        target = returns[rows]
        near = found.value_BT[rows] + jnp.clip(value - found.value_BT[rows], -0.2, 0.2)
        critic = 0.5 * jnp.maximum((value - target) ** 2, (near - target) ** 2)
        return jnp.sum(jnp.where(keep, policy + 0.1 * critic, 0.0)) / keep.sum()

    mask, advantage, returns = map(jnp.array, (mask, advantage, returns))
    gradient = jax.jit(jax.grad(loss))
    for rows in np.asarray(ppo.minibatch_rows(key, B, SETTINGS)):
        grads = gradient(params, rows)
        for name in each:
            change, moments[name] = each[name].update(grads[name], moments[name], params[name])
            params = params | {name: optax.apply_updates(params[name], change)}
    chex.assert_trees_all_close(state.params, params, atol=5e-5)
    assert float(metrics["debug/initial_log_ratio"]) < 1e-5
    assert abs(float(metrics["debug/initial_kl"])) < 1e-6
    assert 0 < float(metrics["policy/clip_fraction"]) < 1


def test_every_epoch_and_every_step_has_its_own_order():
    orders = np.concatenate(
        [
            ppo.minibatch_rows(jax.random.key(k), 16, settings(ppo_epochs=3, minibatch_size=16))
            for k in range(3)
        ]
    )
    assert len({tuple(order) for order in orders.tolist()}) == 9
    assert (np.sort(orders, axis=1) == np.arange(16)).all()


def test_kl_is_reported_but_not_paid_for_to_the_letter():
    found, _ = rollout()
    literal, seen = ppo.make_experience(found, jnp.float32(9.0), settings(kl_in_reward=False))
    free, _ = ppo.make_experience(found, jnp.float32(0.0), SETTINGS)
    chex.assert_trees_all_close(literal.advantage_BT, free.advantage_BT, atol=1e-6)
    assert abs(float(seen["policy/kl"])) > 0.1


def test_a_value_head_on_the_policys_trunk_trains_both():
    found, _ = rollout(critic=False)
    params = {"policy": PARAMS["policy"], "critic": {"head": PARAMS["critic"]["head"]}}
    experience, _ = ppo.make_experience(found, jnp.float32(0.1), SETTINGS)
    models = MODELS._replace(critic=None)
    tokens = jnp.float32(found.response_BT.sum())

    def value_part(params):
        _, metrics = ppo.losses(params, experience, tokens, models=models, settings=SETTINGS)
        return metrics["value/loss"]

    grads = jax.grad(value_part)(params)
    assert optax.tree.norm(grads["critic"]) > 1e-3
    assert optax.tree.norm(grads["policy"]["backbone"]) > 1e-3
    where = llama.positions_and_mask(found.mask_BS)
    variables = {"params": params["policy"]}
    hidden = POLICY.apply(variables, found.tokens_BS, *where, method="states")
    head = params["critic"]["head"]
    expected = hidden[:, P - 1 : -1] @ head["kernel"][:, 0] + head["bias"][0]
    np.testing.assert_allclose(found.value_BT, expected, atol=1e-5)


@pytest.mark.parametrize("shape", ["8,1,1", "2,2,2"])
def test_a_mesh_learns_what_one_device_does(shape):
    found, _ = rollout()
    sizes = {"micro_batch_size": 8, "minibatch_size": 8} if shape == "8,1,1" else {}
    step = jax.jit(lambda state, found: learn(found, state=state, **sizes))
    alone, seen = step(fresh_state(), found)
    mesh = sharding.make_mesh(shape)
    start = jax.device_put(fresh_state(), sharding.shardings(fresh_state(), mesh))
    with jax.set_mesh(mesh):
        placed = sharding.put_batch(jax.device_get(found), mesh)
        spread, metrics = jax.jit(lambda state, found: learn(found, state=state, **sizes))(
            start, placed
        )
    chex.assert_trees_all_close(
        jax.device_get(spread.params), jax.device_get(alone.params), atol=5e-5
    )
    chex.assert_trees_all_close(jax.device_get(metrics), jax.device_get(seen), atol=1e-3)


def test_whitening_is_over_the_whole_batch():
    found, _ = rollout()
    experience, _ = ppo.make_experience(found, jnp.float32(0.1), SETTINGS)
    real = np.asarray(experience.advantage_BT)[np.asarray(found.response_BT)]
    assert real.mean() == pytest.approx(0, abs=1e-5)
    assert real.std() == pytest.approx(1, abs=1e-4)
    spread, _ = ppo.make_experience(found, jnp.float32(0.1), settings(whiten_rewards=True))
    assert not np.allclose(spread.return_BT, experience.return_BT)
    assert masked_mean(spread.return_BT, found.response_BT) != 0
