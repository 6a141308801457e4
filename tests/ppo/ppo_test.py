"""PPO's pure functions: a rollout's numbers, and one update against an independent one."""

import contextlib
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
from fgrlhf_jax.models import decoding, heads, llama, sampling
from fgrlhf_jax.ppo import algorithm, learning, micro_batches, scoring
from fgrlhf_jax.ppo.algorithm import PPOSettings, Rollout, Rows
from fgrlhf_jax.ppo.models import Architectures, Frozen
from fgrlhf_jax.ppo.programs import by_part
from fgrlhf_jax.reward_model.model import Normalization
from fgrlhf_jax.runtime import optim, sharding
from fgrlhf_jax.runtime.optim import TrainState


class Meta(NamedTuple):
    level: str = "token"


POLICY = heads.CausalLM(tiny_cases.CFG)
CRITIC = heads.TokenValueModel(tiny_cases.CFG, "after")
MODELS = Architectures(POLICY, CRITIC, CRITIC, Meta())
PARAMS = {"policy": tiny_cases.parameters(POLICY, 1), "critic": tiny_cases.parameters(CRITIC, 2)}
SHARED = {"policy": PARAMS["policy"], "critic": {"head": PARAMS["critic"]["head"]}}
REFERENCE = tiny_cases.parameters(POLICY, 3)
REWARD_MODEL = tiny_cases.parameters(CRITIC, 4)
FROZEN = Frozen({}, REFERENCE, REWARD_MODEL)
B, P, T, EOS = 8, 4, 6, 2  # as in tiny_cases.PPO_SETTINGS
SETTINGS = tiny_cases.PPO_SETTINGS
PARTS = {
    "policy": optim.adamw(1e-2, eps=1e-2, clip_norm=1.0),
    "critic": optim.adamw(3e-2, eps=1e-2, clip_norm=0.0),
}
OPTIMIZER = by_part(PARTS)

score_rollout = jax.jit(scoring.score_rollout, static_argnames=("models", "settings"))
update = jax.jit(
    functools.partial(learning.update, models=MODELS, optimizer=OPTIMIZER),
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
    weights = decoding.decoding_weights(PARAMS["policy"], POLICY)
    responses = sampling.generate(weights, *prompt, keys, **options)
    lengths = np.minimum(responses.length_B, rng.integers(1, T + 1, B)).astype(np.int32)
    real = np.arange(T)[None] < lengths[:, None]
    return *prompt, sampling.Sampled(
        jnp.where(real, responses.tokens_BT, 0),
        jnp.array(lengths),
        jnp.array(lengths < T),
        jnp.where(real, responses.logprob_BT, 0.0),
    )


@functools.cache
def rolled_out(shared: bool = False, seed: int = 0, learning: bool = True, **changes) -> Rollout:
    return score_rollout(
        SHARED if shared else PARAMS,
        FROZEN,
        Normalization(0.1, 2.0),
        learning,
        *sampled(seed),
        models=MODELS._replace(critic=None) if shared else MODELS,
        settings=settings(**changes),
    )


def fresh_state() -> TrainState:
    return TrainState(PARAMS, OPTIMIZER.init(PARAMS))


def learn(
    rollout: Rollout,
    state: TrainState | None = None,
    seed: int = 5,
    edits: Rows | None = None,
    **changes,
):
    state = fresh_state() if state is None else state
    arguments = state, FROZEN, rollout, jnp.float32(0.1), jax.random.key(seed), edits
    return update(*arguments, settings=settings(**changes))


def demonstrations(updates: int, size: int) -> Rows:
    """Rows of a few lengths, other ones for every update."""
    rng = np.random.default_rng(7)
    shape = updates, size
    length = rng.integers(1, T + 1, shape)
    return Rows(
        rng.integers(3, 64, (*shape, P + T)).astype(np.int32),
        rng.integers(1, P + 1, shape).astype(np.int32),
        np.arange(T) < length[..., None],
    )


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
        frozen = Frozen({}, stored(half, PARAMS["policy"]), stored(scorer, REWARD_MODEL))
        options = {"models": models, "settings": SETTINGS}
        args = PARAMS, frozen, Normalization(0.1, 2.0), True, *sampled()
        rollouts.append(score_rollout(*args, **options))
    np.testing.assert_array_equal(rollouts[1].logprob_BT, rollouts[1].ref_logprob_BT)
    chex.assert_trees_all_equal(*rollouts)


def in_compute_dtypes(model, params: dict) -> dict:
    return jax.tree.map(jnp.asarray, params, heads.compute_dtypes(model, params))


def test_values_come_from_before_and_rewards_from_at_the_token():
    """In each row alone, without padding before it."""
    rollout = rolled_out()

    @jax.jit
    def values_of(params, tokens, mask):
        return CRITIC.apply({"params": params}, tokens, *llama.positions_and_mask(mask))[0]

    close = functools.partial(np.testing.assert_allclose, atol=1e-5)
    for b in range(B):
        length = int(rollout.response_BT[b].sum())
        row = np.asarray(rollout.tokens_BS[b])[: int(rollout.start_B[b]) + length]
        arrays = tiny_cases.laid_out([row], "right", fill=0, width=P + T)
        value, score = (
            values_of(params, *arrays)[: len(row)] for params in (PARAMS["critic"], REWARD_MODEL)
        )
        close(rollout.value_BT[b, :length], value[-length - 1 : -1])
        close(rollout.raw_reward_BT[b, :length], score[-length:])
        close(rollout.reward_BT[b, :length], (score[-length:] - 0.1) / 2.0)
        assert not np.asarray(rollout.reward_BT[b, length:]).any()


@pytest.mark.slow
def test_micro_batches_change_nothing():
    chex.assert_trees_all_close(rolled_out(micro_batch_size=2), rolled_out(), atol=1e-5)
    states = [learn(rolled_out(), micro_batch_size=size)[0] for size in (2, 4)]
    chex.assert_trees_all_close(states[0].params, states[1].params, atol=2e-5)


# Micro-batches of several widths, as the rows of each need them
SORTED = {"widths": (4, 7, P + T), "micro_batch_size": 3}


@pytest.mark.slow
def test_rows_sorted_by_length_change_no_scores():
    lengths = np.asarray(rolled_out().rows.length_B)
    assert len(set(np.searchsorted(SORTED["widths"], lengths))) == 3
    # Of the eight rows in threes, the last micro-batch is not full.
    chex.assert_trees_all_close(rolled_out(**SORTED), rolled_out(), atol=1e-5)


@pytest.mark.parametrize("shape", ["", "2,2,2"])
def test_every_row_is_once_in_a_micro_batch_that_holds_it(shape):
    """And a micro-batch has no more tokens than one of the longest rows."""
    lengths = np.random.default_rng(1).integers(1, 33, 24)
    sizes = settings(widths=(8, 16, 24, 32), micro_batch_size=4, max_new_tokens=32)

    def count(carry, numbers, real, width):
        times_B, fits, tokens, batches = carry
        fits &= jnp.all(jnp.array(lengths)[numbers] <= width)
        tokens = jnp.maximum(tokens, width * len(numbers))
        return times_B.at[numbers].add(real), fits, tokens, batches + 1

    def fold(length_B):
        carry = jnp.zeros(24, jnp.int32), True, 0, 0
        return micro_batches.fold(count, carry, length_B, sizes)

    with jax.set_mesh(sharding.make_mesh(shape)) if shape else contextlib.nullcontext():
        times_B, fits, tokens, batches = jax.device_get(jax.jit(fold)(jnp.array(lengths)))
    assert (times_B == 1).all()
    assert fits
    assert tokens <= 4 * 32
    assert batches < 6


def test_few_widths_of_long_rows_and_one_of_short_ones():
    assert micro_batches.row_widths([32, 64], 64) == (128,)
    assert micro_batches.row_widths([64], 256) == (128, 192, 256, 320)
    assert micro_batches.row_widths([30, 40, 71], 100)[-1] == 171


# A rollout that is learned from once, in one micro-batch

ONCE = {"ppo_epochs": 1, "minibatch_size": 8}


@pytest.mark.slow
@pytest.mark.parametrize("shared", [False, True])
def test_one_forward_pass_gives_the_old_log_probabilities_too(shared):
    models = MODELS._replace(critic=None) if shared else MODELS
    params = SHARED if shared else PARAMS
    state, results = TrainState(params, OPTIMIZER.init(params)), []
    for size in (4, 8):  # rollouts of two micro-batches are predicted before the update
        changes = ONCE | {"micro_batch_size": size}
        rollout = rolled_out(shared, **changes)
        options = {"optimizer": OPTIMIZER, "models": models, "settings": settings(**changes)}
        step = jax.jit(functools.partial(learning.update, **options))
        results.append(step(state, FROZEN, rollout, jnp.float32(0.1), jax.random.key(5)))
    (plain, metrics), (once, same) = results
    assert not np.any(rollout.logprob_BT)
    assert np.any(rollout.value_BT) != shared
    assert float(same["debug/initial_log_ratio"]) == 0.0 == float(same["policy/clip_fraction"])
    chex.assert_trees_all_close(once.params, plain.params, atol=2e-5)
    chex.assert_trees_all_close(same, metrics, atol=1e-4)


def test_a_rollout_that_is_not_learned_from_has_no_values():
    once = {**ONCE, "micro_batch_size": 8}
    for rollout in (rolled_out(learning=False), rolled_out(learning=False, **once)):
        assert not np.any(rollout.value_BT)
        expected = rolled_out()._replace(value_BT=rollout.value_BT)
        chex.assert_trees_all_close(rollout, expected, atol=1e-5)


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


def penalised(rollout: Rollout) -> list[np.ndarray]:
    """float64, of each response: rewards less the KL."""
    kl_BT = np.asarray(rollout.logprob_BT - rollout.ref_logprob_BT, np.float64)
    reward_BT = np.asarray(rollout.reward_BT, np.float64) - 0.1 * kl_BT
    return [row[m] for row, m in zip(reward_BT, np.asarray(rollout.response_BT), strict=True)]


def sum_to_go(rewards) -> np.ndarray:
    return np.array([sum(rewards[t:]) for t in range(len(rewards))])


def group_advantages(name: str, level: str, rewards: list[np.ndarray]) -> list[np.ndarray]:
    """Of the samples of one prompt, by the letter of either paper."""
    scores, others = np.array([row.sum() for row in rewards]), len(rewards) - 1
    if level == "sequence":
        centred = [s - (scores.sum() - s) / others for s in scores]
        if name == "grpo":
            centred = (scores - scores.mean()) / scores.std()
        return [np.full(len(row), a) for row, a in zip(rewards, centred, strict=True)]
    if name == "grpo":
        every = np.concatenate(rewards)
        return [sum_to_go((row - every.mean()) / every.std()) for row in rewards]
    returns = [np.pad(sum_to_go(row), (0, T - len(row))) for row in rewards]
    total = np.sum(returns, axis=0)
    return [(g - (total - g) / others)[: len(r)] for g, r in zip(returns, rewards, strict=True)]


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("name", ["rloo", "grpo"])
def test_advantages_within_the_samples_of_a_prompt(name, level):
    """Rows 0 to 3 are of one prompt, 4 to 7 of another; the KL is part of the rewards."""
    group = {"algorithm": name, "samples_per_prompt": 4, "whiten_advantages": False, "level": level}
    experience, metrics = experience_of(rolled_out(), **group, missing_eos="none")
    rewards = penalised(rolled_out())
    expected = [
        a for rows in (rewards[:4], rewards[4:]) for a in group_advantages(name, level, rows)
    ]
    for b, advantage in enumerate(expected):
        found_T = experience.advantage_BT[b]
        np.testing.assert_allclose(found_T[: len(advantage)], advantage, atol=3e-5)
        assert not np.any(found_T[len(advantage) :])
    assert not any(metric.startswith("value/") for metric in metrics)


def test_one_rollout_of_updates_equals_a_plain_loop():
    """No scans, no micro-batches, prompts padded on the left, each optimizer on its own."""
    rollout, (prompt_BP, mask_BP, responses) = rolled_out(), sampled()
    tokens_BS = jnp.concatenate([prompt_BP, responses.tokens_BT], axis=1)
    real_BS = jnp.concatenate([mask_BP, rollout.response_BT], axis=1)
    state, metrics = learn(rollout, micro_batch_size=2)
    advantage, returns = map(jnp.array, advantages_by_hand(rollout))
    params = PARAMS
    moments, norms = {name: PARTS[name].init(params[name]) for name in PARTS}, []

    @jax.jit
    @jax.grad
    def gradient(params, rows):
        tokens, real = tokens_BS[rows], real_BS[rows]
        args = tokens, *llama.positions_and_mask(real)
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

    for rows in np.asarray(learning.minibatch_rows(jax.random.key(5), B, SETTINGS)):
        grads = gradient(params, rows)
        norms.append(optax.tree.norm(grads["critic"]) / 0.1)  # without the weight of its loss
        for name in PARTS:
            change, moments[name] = PARTS[name].update(grads[name], moments[name], params[name])
            params = params | {name: optax.apply_updates(params[name], change)}
    chex.assert_trees_all_close(state.params, params, atol=5e-5)
    assert float(metrics["value/grad_norm"]) == pytest.approx(np.mean(norms), rel=1e-3)
    assert float(metrics["debug/initial_log_ratio"]) < 1e-5
    assert abs(float(metrics["debug/initial_kl"])) < 1e-6
    assert 0 < float(metrics["policy/clip_fraction"]) < 1


def test_ptx_adds_the_cross_entropy_of_edits_to_the_gradient():
    """optax's, at temperature 1, row by row; the gradient of the critic stays."""
    rows = jax.tree.map(lambda x: x[0], demonstrations(1, 4))

    def loss(params):
        total, real = 0.0, np.arange(P + T) < (rows.start_B + rows.response_BT.sum(1))[:, None]
        every = POLICY.apply(
            {"params": params}, rows.tokens_BS, *llama.positions_and_mask(jnp.array(real))
        )
        for logits_SV, tokens_S, first, response_T in zip(every, *rows, strict=True):
            columns = slice(first - 1, first - 1 + response_T.sum())
            wanted = tokens_S[first : first + response_T.sum()]
            entropy = optax.softmax_cross_entropy_with_integer_labels
            total += jnp.sum(entropy(logits_SV[columns], wanted))
        return total / rows.response_BT.sum()

    value, expected = jax.jit(jax.value_and_grad(loss))(PARAMS["policy"])
    changes = settings(ptx_weight=0.3, micro_batch_size=2)
    before = jax.tree.map(jnp.ones_like, PARAMS)
    grads, metrics = jax.jit(learning.add_imitation, static_argnames=("models", "settings"))(
        before, PARAMS, FROZEN, rows, models=MODELS, settings=changes
    )
    assert float(metrics["ptx/loss"]) == pytest.approx(float(value), rel=1e-5)
    wanted = jax.tree.map(lambda x: 1 + 0.3 * x, expected)
    chex.assert_trees_all_close(grads["policy"], wanted, atol=2e-5)
    chex.assert_trees_all_equal(grads["critic"], before["critic"])


@pytest.mark.slow
def test_ptx_in_one_pass_learns_what_micro_batches_do():
    edits, changes = demonstrations(1, 8), {**ONCE, "ptx_weight": 0.5}
    (plain, metrics), (once, same) = (
        learn(
            rolled_out(**ONCE, micro_batch_size=size), edits=edits, micro_batch_size=size, **changes
        )
        for size in (4, 8)
    )
    chex.assert_trees_all_close(once.params, plain.params, atol=2e-5)
    chex.assert_trees_all_close(same, metrics, atol=1e-4)


def test_every_epoch_and_every_step_has_its_own_order():
    sizes = settings(ppo_epochs=3, minibatch_size=16)
    keys = [jax.random.key(k) for k in range(3)]
    orders = np.concatenate([learning.minibatch_rows(key, 16, sizes) for key in keys])
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
        predictions = scoring.predict(params, rollout.rows, models=models, settings=SETTINGS)
        return algorithm.losses(predictions, experience, tokens, ("critic",), SETTINGS)[0]

    grads = jax.jit(jax.grad(value_loss))(SHARED)
    assert optax.tree.norm(grads["critic"]) > 1e-3
    assert optax.tree.norm(grads["policy"]["backbone"]) > 1e-3
    prompt_BP, mask_BP, responses = sampled()
    positions = llama.positions_and_mask(jnp.concatenate([mask_BP, rollout.response_BT], axis=1))
    variables = {"params": SHARED["policy"]}
    tokens_BS = jnp.concatenate([prompt_BP, responses.tokens_BT], axis=1)
    hidden = POLICY.apply(variables, tokens_BS, *positions, method="states")
    head = SHARED["critic"]["head"]
    expected = hidden[:, P - 1 : -1] @ head["kernel"][:, 0] + head["bias"][0]
    real = np.asarray(rollout.response_BT)
    np.testing.assert_allclose(rollout.value_BT[real], expected[real], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "sizes", "group"),
    [
        ("1,2,4", SORTED | {"micro_batch_size": 6}, {}),
        (
            "2,2,2",
            {"micro_batch_size": 4},
            {"algorithm": "rloo", "samples_per_prompt": 4, "ptx_weight": 0.5},
        ),
    ],
)
def test_a_mesh_learns_what_one_device_does(shape, sizes, group):
    """From rows sorted by length, too: gradients, metrics, what they do to the parameters."""
    sizes = sizes | {"minibatch_size": 8} | group
    edits = demonstrations(2, 8) if group else None
    alone, metrics = jax.device_get(learn(rolled_out(), edits=edits, minibatch_size=8, **group))
    mesh = sharding.make_mesh(shape)
    start = jax.device_put(fresh_state(), sharding.shardings(fresh_state(), mesh))
    with jax.set_mesh(mesh):
        placed = sharding.put_batch(jax.device_get(rolled_out()), mesh)
        edits = sharding.put_batch(edits, mesh, axis=1)
        spread, same = jax.device_get(learn(placed, start, edits=edits, **sizes))
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
