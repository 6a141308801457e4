"""score_tokens and the train step: properties, finite differences, plain NumPy."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_cases

from configs import rm
from fgrlhf_jax.data.pairs import pad_pairs
from fgrlhf_jax.errors import InputError
from fgrlhf_jax.functional import reward_losses
from fgrlhf_jax.models import heads, llama
from fgrlhf_jax.reward_model.model import score_tokens
from fgrlhf_jax.reward_model.modules import make_module
from fgrlhf_jax.reward_model.train import make_trainer, pair_losses
from fgrlhf_jax.runtime import sharding
from fgrlhf_jax.runtime.optim import TrainState
from fgrlhf_jax.training.supervised import eval_step, train_step

EOS = 2
MODELS = {
    "token": heads.TokenValueModel(tiny_cases.CFG),
    "state_action": heads.TokenValueModel(tiny_cases.CFG, "state_action"),
    "action": heads.TokenValueModel(tiny_cases.CFG, "action"),
    "sequence": heads.TokenValueModel(tiny_cases.CFG, use_bias=False),
}
WEIGHTS = {"consistency_weight": 0.4, "center_weight": 0.3, "center_scale": "reward"}


@functools.cache
def params_of(name: str) -> dict:
    return tiny_cases.parameters(MODELS[name])


def scores(name, tokens, mask, *, params=None, level=None):
    level = level or ("sequence" if name == "sequence" else "token")
    model = MODELS[name]
    tokens, mask = np.asarray(tokens, np.int32), np.asarray(mask, bool)
    params = params or params_of(name)
    return np.asarray(score_tokens(params, tokens, mask, model=model, level=level))


@jax.jit
def states(params, tokens, mask):
    """What the backbone gives its head."""
    args = (tokens, *heads.positions_and_mask(mask))
    return llama.Llama(tiny_cases.CFG).apply({"params": params["backbone"]}, *args)


def rows_of(lengths, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, tiny_cases.CFG.vocab_size, n) for n in lengths]


# How scores are given


@functools.cache
def unpadded(name):
    """Three rows without padding and what their tokens are worth.

    A token's value depends on nothing after it, so these are those of every shorter row too.
    """
    tokens = np.stack(rows_of((7, 7, 7)))
    return tokens, scores(name, tokens, np.ones((3, 7)), level="token")


@pytest.mark.parametrize("name", MODELS)
def test_padding_of_any_side_length_and_content_changes_no_reward(name):
    whole, values = unpadded(name)
    lengths = (7, 4, 1)
    rows = [row[:n] for row, n in zip(whole, lengths, strict=True)]
    wanted = [row[:n].copy() for row, n in zip(values, lengths, strict=True)]
    for want in wanted:
        assert np.abs(want[-1]) > 1e-3
        if name == "sequence":
            want[:-1] = 0.0
    for side, width in itertools.product(("left", "right"), (7, 12)):
        tokens, mask = tiny_cases.laid_out(rows, side, 0, width)
        got = scores(name, tokens, mask)
        assert got.dtype == np.float32
        assert not got[~mask].any()
        for b, want in enumerate(wanted):
            np.testing.assert_allclose(got[b][mask[b]], want, atol=2e-5)
        other, _ = tiny_cases.laid_out(rows, side, EOS, width)  # the same shape: the same bits
        np.testing.assert_array_equal(scores(name, other, mask), got)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_sequence_is_scored_at_its_last_real_token_even_if_it_pads_with_eos(side):
    ended = [5, 6, 7, EOS]
    cut_off = [5, 6, 7]  # no EOS of its own: the first EOS to its right is padding
    twice = [5, EOS, 6, EOS, EOS]  # real ones before the last, and that is real too
    rows = [ended, cut_off, twice]
    tokens, mask = tiny_cases.laid_out(rows, side, EOS, 7)
    got = scores("sequence", tokens, mask)
    values = scores("sequence", tokens, mask, level="token")
    for b, row in enumerate(rows):
        last = 6 if side == "left" else len(row) - 1
        assert np.flatnonzero(got[b]).tolist() == [last]
        assert got[b, last] == values[b, last] != 0
    assert len({float(row.sum()) for row in got}) == 3


@pytest.mark.parametrize("kind", ["state_action", "action"])
def test_every_next_token_has_a_price(kind):
    """Against float64; and what is paid for the token that came is the price that it had."""
    params = params_of(kind)
    head = {name: np.asarray(value, np.float64) for name, value in params["head"].items()}
    tokens = np.stack(rows_of((6, 6, 6), seed=4)).astype(np.int32)
    mask = np.ones(tokens.shape, bool)
    hidden_BSD = states(params, tokens, mask)
    price_BSV = MODELS[kind].apply({"params": params}, hidden_BSD, method="next_tokens")
    assert price_BSV.shape == (3, 6, tiny_cases.CFG.vocab_size)
    gate = np.diag(head["gate"]) if kind == "state_action" else head["gate"]
    want = np.asarray(hidden_BSD, np.float64) @ gate @ head["unembed"].T + head["bias"]
    np.testing.assert_allclose(price_BSV, want, atol=2e-5)
    after = np.asarray(hidden_BSD) @ params["head"]["kernel"] if "kernel" in head else 0.0
    paid = scores(kind, tokens, mask) - np.broadcast_to(after, (3, 6, 1))[..., 0]
    np.testing.assert_allclose(paid[:, 0], np.broadcast_to(head["bias"], 3), atol=2e-5)
    came = np.take_along_axis(want[:, :-1], tokens[:, 1:, None], axis=2)[..., 0]
    np.testing.assert_allclose(paid[:, 1:], came, atol=3e-5)
    assert np.std(came) > 0.1


def test_a_run_starts_with_a_head_of_std_one_over_root_d_plus_one():
    cfg = llama.LlamaConfig(8, 1024, 8, 1, 2, 1, 2)
    mesh = sharding.make_mesh("1,1,1", devices=jax.devices()[:1])
    model = make_module(cfg, "token_edit", "after")
    pair = tiny_cases.pairs(0, 1)[0]
    config = rm.get_config("tiny")
    pairs = {"edits": [pair] * config.batch_size}
    head = make_trainer(config, mesh, model, pairs, pairs, (128,)).initial_params()["head"]
    assert set(head) == {"kernel", "bias"}
    assert np.std(head["kernel"]) == pytest.approx(1025**-0.5, rel=0.1)
    assert abs(np.mean(head["kernel"])) < 4 * 1025**-0.5 / 1024**0.5
    assert not np.any(head["bias"])


def test_a_sequence_score_has_no_bias_and_no_state_action_head():
    mesh = sharding.make_mesh("8,1,1")
    for loss in reward_losses.LOSSES:
        model = make_module(tiny_cases.CFG, loss, "after")
        head = heads.abstract_params(model, mesh)["head"]
        assert ("bias" in head) == (loss != "sequence")
    assert make_module(tiny_cases.CFG, "token_edit", "state_action").kind == "state_action"
    for head in ("state_action", "action"):
        with pytest.raises(InputError, match=f"model.head={head} needs a token loss"):
            make_module(tiny_cases.CFG, "sequence", head)


# The train step


def test_accumulated_micro_batches_are_one_batch():
    optimizer = optax.sgd(0.3)  # what an update changes is the gradient itself, times 0.3
    state = TrainState(params_of("token"), optimizer.init(params_of("token")))
    losses = functools.partial(pair_losses, model=MODELS["token"], loss="token_edit", **WEIGHTS)
    step = jax.jit(functools.partial(train_step, losses=losses, optimizer=optimizer))
    whole = tiny_cases.batch(4, 1, 8)
    parts = {k: v.reshape(4, 2, *v.shape[2:]) for k, v in whole.items()}
    want, want_metrics = step(state, whole)
    got, metrics = step(state, parts)
    before, square = tiny_cases.by_path(state.params), 0.0
    for name, value in tiny_cases.by_path(got.params).items():
        change = (np.asarray(value) - before[name]) / 0.3
        assert np.abs(change).max() > 1e-4, name
        # Parameters are near 1: a float32 of that size is rounded to 6e-8.
        np.testing.assert_allclose(
            value, tiny_cases.by_path(want.params)[name], atol=5e-7, err_msg=name
        )
        square += np.sum(change**2, dtype=np.float64)
    for name, value in want_metrics.items():
        assert float(metrics[name]) == pytest.approx(float(value), rel=1e-5, abs=1e-6), name
    assert float(metrics["grad_norm"]) == pytest.approx(square**0.5, rel=1e-3)


@pytest.mark.slow
def test_gradients_are_finite_differences():
    """Of every loss, along a random direction of every parameter.

    In float64 but for what the model fixes to float32: norms, softmax and head. Hence a wide
    step and the five-point stencil, whose own error is of the fourth order.
    """
    model = MODELS["state_action"].clone(cfg=dataclasses.replace(tiny_cases.CFG, dtype="float64"))
    with jax.enable_x64(True):
        batch = tiny_cases.batch(5, 4)

        def losses(params):
            each = [
                pair_losses(
                    *(params, batch),
                    model=model.clone(bounded=loss == "tlcr"),
                    loss=loss,
                    **WEIGHTS,
                )[0]
                for loss in reward_losses.LOSSES
            ]
            return jnp.mean(jnp.stack(each), axis=1), jnp.mean(jnp.stack(each), axis=1)

        both = jax.jit(jax.jacrev(losses, has_aux=True))
        params = jax.tree.map(lambda x: np.asarray(x, np.float64), params_of("state_action"))
        leaves, tree = jax.tree.flatten(params)
        gradients = jax.tree.leaves(both(params)[0])
        rng = np.random.default_rng(6)
        h = 0.05
        for i, path in enumerate(tiny_cases.by_path(params)):
            direction = rng.standard_normal(leaves[i].shape)
            direction /= np.linalg.norm(direction)

            def at(t, i=i, direction=direction):
                moved = [*leaves[:i], leaves[i] + t * direction, *leaves[i + 1 :]]
                return np.asarray(both(jax.tree.unflatten(tree, moved))[1])

            near, far = at(h) - at(-h), at(2 * h) - at(-2 * h)
            numeric = (8 * near - far) / (12 * h)
            slopes = [float(np.sum(np.asarray(gradients[i][k]) * direction)) for k in range(4)]
            np.testing.assert_allclose(slopes, numeric, rtol=2e-3, atol=1e-5, err_msg=path)
            unseen = {"sequence"} if path == "head/bias" else set()
            for loss, slope in zip(reward_losses.LOSSES, slopes, strict=True):
                assert (abs(slope) < 1e-7) == (loss in unseen), (loss, path)


def test_rows_that_only_fill_a_batch_do_not_count():
    settings = {"model": MODELS["token"], "loss": "token_edit", **WEIGHTS}
    losses = functools.partial(pair_losses, **settings)
    step = jax.jit(functools.partial(eval_step, losses=losses))

    def sums(pairs):
        batch = pad_pairs(pairs, 14, batch_size=4)
        found, values = step(params_of("token"), batch)
        assert values.shape == (4, 2, 14)
        return np.array([found["loss"], found["accuracy"]], np.float64)

    pairs = tiny_cases.pairs(10, 4)
    whole = sums(pairs)
    assert whole[0] > 0 < whole[1]
    np.testing.assert_allclose(sums(pairs[:3]) + sums(pairs[3:]), whole, rtol=1e-5)
    np.testing.assert_allclose(sum(sums([pair]) for pair in pairs), whole, rtol=1e-5)
