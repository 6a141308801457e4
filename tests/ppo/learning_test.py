"""Updates from a rollout, against independent ones."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import rollout_cases as cases
from rollout_cases import CRITIC, PARAMS, POLICY, SETTINGS, B, P, T, rolled_out, sampled

from fgrlhf_jax.models import heads
from fgrlhf_jax.ppo import algorithm, learning, scoring
from fgrlhf_jax.ppo.algorithm import Rollout, Rows, rows_of
from fgrlhf_jax.ppo.programs import by_part
from fgrlhf_jax.runtime import optim, sharding
from fgrlhf_jax.runtime.optim import TrainState

PARTS = {
    "policy": optim.adamw(1e-2, eps=1e-2, clip_norm=1.0),
    "critic": optim.adamw(3e-2, eps=1e-2, clip_norm=0.0),
}
OPTIMIZER = by_part(PARTS)
init = jax.jit(OPTIMIZER.init)

update = jax.jit(
    functools.partial(learning.update, models=cases.MODELS, optimizer=OPTIMIZER),
    static_argnames="settings",
)


def fresh_state() -> TrainState:
    return TrainState(PARAMS, init(PARAMS))


def learn(
    rollout: Rollout,
    state: TrainState | None = None,
    seed: int = 5,
    edits: Rows | None = None,
    **changes,
):
    state = fresh_state() if state is None else state
    arguments = state, cases.FROZEN, rollout, jnp.float32(0.1), jax.random.key(seed), edits
    return update(*arguments, settings=cases.settings(**changes))


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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shared", "ptx_weight", "freeze"),
    [(False, 0.5, ""), (True, 0.0, ""), (False, 0.0, "critic/backbone")],
)
def test_the_forward_passes_of_a_single_update_give_the_old_predictions(shared, ptx_weight, freeze):
    """With demonstrations to imitate, too."""
    models = cases.MODELS._replace(critic=None) if shared else cases.MODELS
    params = cases.SHARED if shared else PARAMS
    edits = demonstrations(1, 8) if ptx_weight else None
    state, results = TrainState(params, init(params)), []
    for size in (4, 8):  # rollouts of two micro-batches are predicted before the update
        changes = cases.ONCE | {"micro_batch_size": size}
        rollout = rolled_out(shared, **changes)
        settings = cases.settings(ptx_weight=ptx_weight, freeze=freeze, **changes)
        options = {"optimizer": OPTIMIZER, "models": models, "settings": settings}
        step = jax.jit(functools.partial(learning.update, **options))
        arguments = state, cases.FROZEN, rollout, jnp.float32(0.1), jax.random.key(5), edits
        results.append(step(*arguments))
    (plain, metrics), (once, same) = results
    assert not np.any(rollout.logprob_BT)
    assert not np.any(rollout.value_BT)
    assert float(same["debug/initial_log_ratio"]) == 0.0 == float(same["policy/clip_fraction"])
    chex.assert_trees_all_close(once.params, plain.params, atol=2e-5)
    chex.assert_trees_all_close(same, metrics, atol=1e-4)


def test_frozen_parameters_have_no_gradients():
    """Not even zeros, which an update would hold and sum."""
    settings = cases.settings(freeze="backbone/|policy", micro_batch_size=2)
    static = {"models": cases.MODELS, "settings": settings}
    objective = functools.partial(learning.rl_loss, frozen=cases.FROZEN, target=None, **static)

    def gradients(rollout):
        experience, _ = algorithm.make_experience(rollout, jnp.float32(0.1), settings)
        return learning.sum_gradients(PARAMS, experience, objective, settings)[0]

    leaves = jax.tree.leaves_with_path(jax.eval_shape(gradients, rolled_out()))
    names = {sharding.path_name(path) for path, _ in leaves}
    assert names == {"critic/head/bias", "critic/head/kernel"}


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
        args = tokens, *heads.positions_and_mask(real)
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
            {"params": params}, rows.tokens_BS, *heads.positions_and_mask(jnp.array(real))
        )
        for logits_SV, tokens_S, first, response_T in zip(every, *rows, strict=True):
            columns = slice(first - 1, first - 1 + response_T.sum())
            wanted = tokens_S[first : first + response_T.sum()]
            entropy = optax.softmax_cross_entropy_with_integer_labels
            total += jnp.sum(entropy(logits_SV[columns], wanted))
        return total / rows.response_BT.sum()

    value, expected = jax.jit(jax.value_and_grad(loss))(PARAMS["policy"])
    changes = cases.settings(ptx_weight=0.3, micro_batch_size=2)
    before = jax.tree.map(jnp.ones_like, PARAMS)
    grads, metrics = jax.jit(learning.add_imitation, static_argnames=("models", "settings"))(
        before, PARAMS, cases.FROZEN, rows, models=cases.MODELS, settings=changes
    )
    assert float(metrics["ptx/loss"]) == pytest.approx(float(value), rel=1e-5)
    wanted = jax.tree.map(lambda x: 1 + 0.3 * x, expected)
    chex.assert_trees_all_close(grads["policy"], wanted, atol=2e-5)
    chex.assert_trees_all_equal(grads["critic"], before["critic"])


def test_every_epoch_and_every_step_has_its_own_order():
    sizes = cases.settings(ppo_epochs=3, minibatch_size=16)
    keys = [jax.random.key(k) for k in range(3)]
    orders = np.concatenate([learning.minibatch_rows(key, 16, sizes) for key in keys])
    assert len({tuple(order) for order in orders.tolist()}) == 9
    assert (np.sort(orders, axis=1) == np.arange(16)).all()


def test_a_value_head_on_the_policys_states_trains_both():
    rollout = rolled_out(shared=True, **cases.ONCE, micro_batch_size=4)
    experience, _ = cases.experience_of(rollout)
    tokens = jnp.float32(rollout.response_BT.sum())
    models = cases.MODELS._replace(critic=None)

    def value_loss(params):
        predictions = scoring.predict(params, rows_of(rollout), models=models, settings=SETTINGS)
        return algorithm.losses(predictions, experience, tokens, ("critic",), SETTINGS)[0]

    grads = jax.jit(jax.grad(value_loss))(cases.SHARED)
    assert optax.tree.norm(grads["critic"]) > 1e-3
    assert optax.tree.norm(grads["policy"]["backbone"]) > 1e-3
    prompt_BP, mask_BP, responses = sampled()
    positions = heads.positions_and_mask(jnp.concatenate([mask_BP, rollout.response_BT], axis=1))
    variables = {"params": cases.SHARED["policy"]}
    tokens_BS = jnp.concatenate([prompt_BP, responses.tokens_BT], axis=1)
    states = jax.jit(functools.partial(POLICY.apply, method=lambda model, *x: model.backbone(*x)))
    hidden = states(variables, tokens_BS, *positions)
    head = cases.SHARED["critic"]["head"]
    expected = hidden[:, P - 1 : -1] @ head["kernel"][:, 0] + head["bias"][0]
    real = np.asarray(rollout.response_BT)
    np.testing.assert_allclose(rollout.value_BT[real], expected[real], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "changes", "sizes"),
    [
        ("1,2,4", {"minibatch_size": 8}, {"widths": (7, P + T), "micro_batch_size": 6}),
        (
            "2,2,2",
            {"algorithm": "rloo", "samples_per_prompt": 4, "ptx_weight": 0.5, "minibatch_size": 8},
            {"micro_batch_size": 4},
        ),
    ],
)
def test_a_mesh_learns_what_one_device_does(shape, changes, sizes):
    """From rows sorted by length, too: gradients, metrics, what they do to the parameters."""
    edits = demonstrations(2, 8) if "ptx_weight" in changes else None
    alone, metrics = jax.device_get(learn(rolled_out(), edits=edits, **changes))
    mesh = sharding.make_mesh(shape)
    start = jax.device_put(fresh_state(), sharding.shardings(fresh_state(), mesh))
    with jax.set_mesh(mesh):
        placed = sharding.put_batch(jax.device_get(rolled_out()), mesh)
        edits = sharding.put_batch(edits, mesh, axis=1)
        spread, same = jax.device_get(learn(placed, start, edits=edits, **changes | sizes))
    chex.assert_trees_all_close(spread.params, alone.params, atol=5e-5)
    chex.assert_trees_all_close(same, metrics, atol=1e-3)
