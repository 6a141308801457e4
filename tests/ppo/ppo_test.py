"""PPO's pure functions: a rollout's numbers, and one update against an independent one."""

import dataclasses
import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_cases

from fgrlhf_jax.functional.masking import masked_mean
from fgrlhf_jax.models import llama, sampling
from fgrlhf_jax.ppo import algorithm
from fgrlhf_jax.ppo.algorithm import PPOSettings, Rollout
from fgrlhf_jax.ppo.models import Architectures
from fgrlhf_jax.reward_model.model import Normalization
from fgrlhf_jax.runtime import optim, sharding
from fgrlhf_jax.runtime.optim import TrainState

pytestmark = pytest.mark.usefixtures("quick_compilation")


class Meta(NamedTuple):
    level: str = "token"


POLICY = llama.CausalLM(tiny_cases.CFG)
CRITIC = llama.TokenValueModel(tiny_cases.CFG, "after")
MODELS = Architectures(POLICY, CRITIC, CRITIC, Meta())
PARAMS = {
    "policy": tiny_cases.parameters(POLICY, 1),
    "critic": tiny_cases.parameters(CRITIC, 2),
}
SHARED = {"policy": PARAMS["policy"], "critic": {"head": PARAMS["critic"]["head"]}}
REFERENCE = tiny_cases.parameters(POLICY, 3)
REWARD_MODEL = tiny_cases.parameters(CRITIC, 4)
B, P, T, EOS = 8, 4, 6, 2
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
PARTS = {
    "policy": optim.adamw(1e-2, eps=1e-2, clip_norm=1.0),
    "critic": optim.adamw(3e-2, eps=1e-2, clip_norm=0.0),
}
OPTIMIZER = optax.multi_transform(PARTS, {part: part for part in PARTS})

score_rollout = jax.jit(algorithm.score_rollout, static_argnames=("models", "settings"))
update = jax.jit(
    functools.partial(algorithm.update, models=MODELS, optimizer=OPTIMIZER),
    static_argnames="settings",
)


def settings(**changes) -> PPOSettings:
    return dataclasses.replace(SETTINGS, **changes)


@functools.cache
def sampled(seed: int = 0):
    rng = np.random.default_rng(seed)
    prompts = [rng.integers(3, 64, n).tolist() for n in (1, 2, 3, 4, 4, 2, 1, 3)]
    tokens, mask = tiny_cases.laid_out(prompts, "left", fill=0, width=P)
    prompt = jnp.array(tokens, jnp.int32), jnp.array(mask)
    keys = sampling.row_keys(jax.random.key(0), B)
    options = {"model": POLICY, "ends": (EOS,), "max_new": T, "temperature": 0.8}
    return *prompt, sampling.generate(PARAMS["policy"], *prompt, keys, **options)


@functools.cache
def rolled_out(shared: bool = False, seed: int = 0, **changes) -> Rollout:
    return score_rollout(
        SHARED if shared else PARAMS,
        REFERENCE,
        REWARD_MODEL,
        Normalization(0.1, 2.0),
        *sampled(seed),
        models=MODELS._replace(critic=None) if shared else MODELS,
        settings=settings(**changes),
    )


def fresh_state() -> TrainState:
    return TrainState(PARAMS, OPTIMIZER.init(PARAMS))


def learn(rollout: Rollout, state: TrainState | None = None, seed: int = 5, **changes):
    key = jax.random.key(seed)
    state = fresh_state() if state is None else state
    return update(state, rollout, jnp.float32(0.1), key, settings=settings(**changes))


def experience_of(rollout: Rollout, kl_coef: float = 0.1, **changes):
    return algorithm.make_experience(rollout, jnp.float32(kl_coef), settings(**changes))


def test_the_sampler_and_the_scorer_agree_at_a_temperature():
    rollout, drawn_BT = rolled_out(), sampled()[2].logprob_BT
    logprob_BT = np.where(rollout.response_BT, rollout.logprob_BT, 0)
    np.testing.assert_allclose(logprob_BT, drawn_BT, atol=1e-5)


def test_in_bfloat16_frozen_models_give_the_bits_of_trained_ones():
    """Whatever of their parameters is stored in bfloat16."""
    half = POLICY.clone(cfg=dataclasses.replace(tiny_cases.CFG, dtype="bfloat16"))
    scorer = CRITIC.clone(cfg=half.cfg)
    models = Architectures(half, scorer, scorer, Meta())
    rollouts = []
    for stored in (lambda model, params: params, in_compute_dtypes):
        frozen = stored(half, PARAMS["policy"]), stored(scorer, REWARD_MODEL)
        options = {"models": models, "settings": SETTINGS}
        args = PARAMS, *frozen, Normalization(0.1, 2.0), *sampled()
        rollouts.append(score_rollout(*args, **options))
    np.testing.assert_array_equal(rollouts[1].logprob_BT, rollouts[1].ref_logprob_BT)
    chex.assert_trees_all_equal(*rollouts)


def in_compute_dtypes(model, params: dict) -> dict:
    return jax.tree.map(jnp.asarray, params, llama.compute_dtypes(model, params))


def test_values_come_from_before_and_rewards_from_at_the_token():
    """In each row alone, without padding before it."""
    rollout = rolled_out()

    @jax.jit
    def values_of(params, tokens, mask):
        return CRITIC.apply({"params": params}, tokens, *llama.positions_and_mask(mask))[0]

    close = functools.partial(np.testing.assert_allclose, atol=1e-5)
    for b in range(B):
        row = np.asarray(rollout.tokens_BS[b])[np.asarray(rollout.mask_BS[b])]
        arrays = tiny_cases.laid_out([row], "right", fill=0, width=P + T)
        value, score = (
            values_of(params, *arrays)[: len(row)] for params in (PARAMS["critic"], REWARD_MODEL)
        )
        length = int(rollout.response_BT[b].sum())
        close(rollout.value_BT[b, :length], value[-length - 1 : -1])
        close(rollout.raw_reward_BT[b, :length], score[-length:])
        close(rollout.reward_BT[b, :length], (score[-length:] - 0.1) / 2.0)
        assert not np.asarray(rollout.reward_BT[b, length:]).any()


def test_micro_batches_change_nothing():
    chex.assert_trees_all_close(rolled_out(micro_batch_size=2), rolled_out(), atol=1e-5)
    states = [learn(rolled_out(), micro_batch_size=size)[0] for size in (2, 4)]
    chex.assert_trees_all_close(states[0].params, states[1].params, atol=2e-5)


def test_other_rollouts_compile_nothing_new():
    traced = chex.assert_max_traces(algorithm.update, n=1)
    step = jax.jit(functools.partial(traced, models=MODELS, settings=SETTINGS, optimizer=OPTIMIZER))
    state = fresh_state()
    for seed, kl_coef in ((0, 0.1), (1, 0.3)):
        rollout = rolled_out(seed=seed)
        state, _ = step(state, rollout, jnp.float32(kl_coef), jax.random.key(seed))


def advantages_by_hand(rollout: Rollout) -> tuple[np.ndarray, np.ndarray]:
    """Whitened advantages and returns, one response at a time."""
    mask = np.asarray(rollout.response_BT)
    kl = np.asarray(rollout.logprob_BT - rollout.ref_logprob_BT, np.float64)
    reward = np.asarray(rollout.reward_BT, np.float64).copy()
    advantage, returns = np.zeros((2, B, T))
    for b in range(B):
        length = mask[b].sum()
        reward[b, length - 1] += 0.0 if rollout.finished_B[b] else -1.0
        reward[b] = np.where(mask[b], reward[b] - 0.1 * kl[b], 0.0)
        later, next_value = 0.0, 0.0
        for t in reversed(range(length)):
            value = float(rollout.value_BT[b, t])
            later = reward[b, t] + next_value - value + 0.95 * later
            advantage[b, t], returns[b, t], next_value = later, later + value, value
    real = advantage[mask]
    white = (advantage - real.mean()) / np.sqrt(real.var() + 1e-8)
    return np.where(mask, white, 0.0), returns


def test_one_rollout_of_updates_equals_a_plain_loop():
    """No scans, no micro-batches, each optimizer on its own."""
    rollout = rolled_out()
    state, metrics = learn(rollout, micro_batch_size=2)
    advantage, returns = map(jnp.array, advantages_by_hand(rollout))
    params = PARAMS
    moments = {name: PARTS[name].init(params[name]) for name in PARTS}

    @jax.jit
    @jax.grad
    def gradient(params, rows):
        tokens = rollout.tokens_BS[rows]
        args = tokens, *llama.positions_and_mask(rollout.mask_BS[rows])
        logits = POLICY.apply({"params": params["policy"]}, *args)[:, P - 1 : -1] / 0.8
        logprob = jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[:, P:, None], axis=-1)[
            ..., 0
        ]
        value = CRITIC.apply({"params": params["critic"]}, *args)[:, P - 1 : -1]
        mask, old = rollout.response_BT[rows], rollout.logprob_BT[rows]
        ratio = jnp.exp(jnp.where(mask, logprob - old, 0.0))
        gain, target, before = advantage[rows], returns[rows], rollout.value_BT[rows]
        policy = jnp.maximum(-gain * ratio, -gain * jnp.clip(ratio, 0.8, 1.2))
        near = before + jnp.clip(value - before, -0.2, 0.2)
        critic = 0.5 * jnp.maximum((value - target) ** 2, (near - target) ** 2)
        return jnp.sum(jnp.where(mask, policy + 0.1 * critic, 0.0)) / mask.sum()

    for rows in np.asarray(algorithm.minibatch_rows(jax.random.key(5), B, SETTINGS)):
        grads = gradient(params, rows)
        for name in PARTS:
            change, moments[name] = PARTS[name].update(grads[name], moments[name], params[name])
            params = params | {name: optax.apply_updates(params[name], change)}
    chex.assert_trees_all_close(state.params, params, atol=5e-5)
    assert float(metrics["debug/initial_log_ratio"]) < 1e-5
    assert abs(float(metrics["debug/initial_kl"])) < 1e-6
    assert 0 < float(metrics["policy/clip_fraction"]) < 1


def test_every_epoch_and_every_step_has_its_own_order():
    sizes = settings(ppo_epochs=3, minibatch_size=16)
    keys = [jax.random.key(k) for k in range(3)]
    orders = np.concatenate([algorithm.minibatch_rows(key, 16, sizes) for key in keys])
    assert len({tuple(order) for order in orders.tolist()}) == 9
    assert (np.sort(orders, axis=1) == np.arange(16)).all()


def test_kl_is_reported_but_not_paid_for_to_the_letter():
    literal, metrics = experience_of(rolled_out(), 9.0, kl_in_reward=False)
    free, _ = experience_of(rolled_out(), 0.0)
    chex.assert_trees_all_close(literal.advantage_BT, free.advantage_BT, atol=1e-6)
    assert abs(float(metrics["policy/kl"])) > 0.1


def test_a_value_head_on_the_policys_states_trains_both():
    rollout = rolled_out(shared=True)
    experience, _ = experience_of(rollout)
    tokens = jnp.float32(rollout.response_BT.sum())
    models = MODELS._replace(critic=None)

    def value_loss(params):
        losses = functools.partial(algorithm.losses, models=models, settings=SETTINGS)
        return losses(params, experience, tokens)[1]["value/loss"]

    grads = jax.jit(jax.grad(value_loss))(SHARED)
    assert optax.tree.norm(grads["critic"]) > 1e-3
    assert optax.tree.norm(grads["policy"]["backbone"]) > 1e-3
    positions = llama.positions_and_mask(rollout.mask_BS)
    variables = {"params": SHARED["policy"]}
    hidden = POLICY.apply(variables, rollout.tokens_BS, *positions, method="states")
    head = SHARED["critic"]["head"]
    expected = hidden[:, P - 1 : -1] @ head["kernel"][:, 0] + head["bias"][0]
    np.testing.assert_allclose(rollout.value_BT, expected, atol=1e-5)


@pytest.mark.parametrize("shape", ["8,1,1", "2,2,2"])
def test_a_mesh_learns_what_one_device_does(shape):
    sizes = {"micro_batch_size": 8, "minibatch_size": 8} if shape == "8,1,1" else {}
    alone, metrics = jax.device_get(learn(rolled_out(), **sizes))
    mesh = sharding.make_mesh(shape)
    start = jax.device_put(fresh_state(), sharding.shardings(fresh_state(), mesh))
    with jax.set_mesh(mesh):
        placed = sharding.put_batch(jax.device_get(rolled_out()), mesh)
        spread, same = jax.device_get(learn(placed, start, **sizes))
    chex.assert_trees_all_close(spread.params, alone.params, atol=5e-5)
    chex.assert_trees_all_close(same, metrics, atol=1e-3)


def test_whitening_is_over_the_whole_batch():
    mask_BT = np.asarray(rolled_out().response_BT)
    experience, _ = experience_of(rolled_out())
    real = np.asarray(experience.advantage_BT)[mask_BT]
    assert real.mean() == pytest.approx(0, abs=1e-5)
    assert real.std() == pytest.approx(1, abs=1e-4)
    white, _ = experience_of(rolled_out(), whiten_rewards=True)
    assert not np.allclose(white.return_BT, experience.return_BT)
    assert masked_mean(white.return_BT, mask_BT) != 0
