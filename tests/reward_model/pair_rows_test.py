"""A pair in one row gives what its sides give in two: values, losses, metrics and gradients."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_cases

from fgrlhf_jax.data.pairs import Pair, pad_pairs
from fgrlhf_jax.functional.reward_losses import LOSSES, reward_model_loss
from fgrlhf_jax.models import heads
from fgrlhf_jax.models.flops import pair_flops, rows_flops
from fgrlhf_jax.reward_model.combined import LogRatio
from fgrlhf_jax.reward_model.model import score_tokens
from fgrlhf_jax.reward_model.modules import make_module
from fgrlhf_jax.reward_model.train import pair_losses, unpad
from fgrlhf_jax.runtime import sharding
from fgrlhf_jax.training.supervised import Predictor, eval_step

WEIGHTS = {"consistency_weight": 0.4, "center_weight": 0.3}
HEADS = [("after", loss) for loss in LOSSES]
HEADS += [("state_action", "token_edit"), ("action", "token_edit")]
HEADS += [("ratio", "token_edit")]  # of two language models
WIDTH = 24


def cut(pair: Pair, length: int) -> Pair:
    """As ``encode_pairs`` truncates."""
    partner = np.where(pair.partner < length, pair.partner, -1)[:length]
    names = ("tokens_i", "tokens_j", "changed_i", "changed_j", "marked_j")
    arrays = {name: getattr(pair, name)[:length] for name in names}
    return dataclasses.replace(pair, **arrays, partner=partner)


@functools.cache
def cases() -> dict[str, Pair]:
    made = tiny_cases.pair
    text = np.arange(20, 30)
    nothing = made([], [7, 8], [9, 8, 3])
    return {
        "a replaced token": made([1, 2], [4, 5, 6, 9], [4, 7, 6, 9]),
        "inserted": made([1, 2], [4, 5, 6, 9], [4, 6, 9]),
        "only the prompt": made([1, 2, 3], [5, 6], [7, 8, 9, 10]),
        "the prompt's last token is shared with a response": dataclasses.replace(
            made([1, 2], [5, 6, 8], [7, 6]), start_i=1, start_j=2
        ),
        "not even the first token": nothing,
        "equal sides": made([1, 2], [4, 5, 6], [4, 5, 6]),
        "deleted at the end": made([1, 2], [4, 5], [4, 5, 6, 7]),
        "inserted at the end": made([1, 2], [4, 5, 6, 7], [4, 5]),
        "cut": cut(made([1, 2, 3], [*text[:4], 6, *text[4:]], text), 10),
        "cut where they are still equal": cut(made([1, 2, 3], text, [*text[:9], 3]), 11),
        **{f"random {k}": pair for k, pair in enumerate(tiny_cases.pairs(3, 5))},
    }


@functools.cache
def model_and_params(head: str, loss: str):
    policy = heads.CausalLM(tiny_cases.CFG)
    ratio = LogRatio(policy, policy, 0.5)
    model = ratio if head == "ratio" else make_module(tiny_cases.CFG, loss, head)
    return model, tiny_cases.parameters(model)


def side_by_side(pairs: list[Pair], name: str, fill: int = 0) -> np.ndarray:
    """[B, 2, WIDTH] of ``name`` of both sides."""
    rows = [getattr(pair, f"{name}_{side}") for pair in pairs for side in "ij"]
    return tiny_cases.laid_out(rows, "right", fill, WIDTH)[0].reshape(len(pairs), 2, WIDTH)


def losses_of_two_rows(params, pairs: list[Pair], model, loss: str):
    """The plain formulation: each side in a row of its own. Losses, metrics, values."""
    shape = (len(pairs), 2, WIDTH)
    tokens = side_by_side(pairs, "tokens").astype(np.int32)
    lengths = np.array([[len(pair.tokens_i), len(pair.tokens_j)] for pair in pairs])
    starts = np.array([[pair.start_i, pair.start_j] for pair in pairs])
    mask = np.arange(WIDTH) < lengths[..., None]
    response = mask & (np.arange(WIDTH) >= starts[..., None])
    changed = side_by_side(pairs, "changed").astype(bool)
    partner, _ = tiny_cases.laid_out([pair.partner for pair in pairs], "right", -1, WIDTH)
    rows = tokens.reshape(-1, WIDTH), mask.reshape(-1, WIDTH)
    value = score_tokens(params, *rows, model=model, level="token").reshape(shape)
    pair_loss = functools.partial(reward_model_loss, loss=loss, **WEIGHTS)
    loss_B, metrics = jax.vmap(pair_loss)(value, response, changed, partner)
    return loss_B, metrics, jnp.where(response, value, 0.0)


def losses_of_one_row(params, batch: dict, model, loss: str):
    loss_B, metrics, value = pair_losses(params, batch, model=model, loss=loss, **WEIGHTS)
    return loss_B, metrics, jnp.where(batch["response_B2S"], value, 0.0)


def with_gradients(losses):
    """``losses``, and the gradients of their mean."""

    def function(params):
        loss_B, *others = losses(params)
        return jnp.mean(loss_B), (loss_B, *others)

    return jax.jit(jax.value_and_grad(function, has_aux=True))


def assert_same(one, two) -> None:
    """((mean, (losses, metrics, values)), gradients) of both."""
    for name, want in tiny_cases.by_path(two[0]).items():
        got = tiny_cases.by_path(one[0])[name]
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5, err_msg=name)
    for name, want in tiny_cases.by_path(two[1]).items():
        got = tiny_cases.by_path(one[1])[name]
        scale = np.abs(want).max()
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5 * scale, err_msg=name)


@functools.cache
def plain(head: str, loss: str):
    model, params = model_and_params(head, loss)
    pairs = [*cases().values(), cases()["inserted"]]
    return pairs, with_gradients(lambda p: losses_of_two_rows(p, pairs, model, loss))(params)


@pytest.mark.parametrize(("head", "loss"), HEADS)
def test_one_row_is_two_rows(head, loss):
    model, params = model_and_params(head, loss)
    pairs, two = plain(head, loss)
    batch = pad_pairs(pairs, WIDTH)
    one = with_gradients(lambda p: losses_of_one_row(p, batch, model, loss))(params)
    assert_same(one, two)
    assert np.abs(np.asarray(one[0][1][2])).max() > 0.1


@pytest.mark.parametrize("mesh", ["8,1,1", "1,4,2"])
def test_over_eight_devices(mesh):
    head, loss = "state_action", "token_edit"
    model, params = model_and_params(head, loss)
    pairs, two = plain(head, loss)
    devices = sharding.make_mesh(mesh)
    abstract = heads.abstract_params(model, devices)
    with jax.set_mesh(devices):
        params = jax.tree.map(lambda x, leaf: jax.device_put(x, leaf.sharding), params, abstract)
        batch = sharding.put_batch(pad_pairs(pairs, WIDTH), devices)
        losses = with_gradients(lambda p: losses_of_one_row(p, batch, model, loss))
        assert_same(sharding.to_host(losses(params)), two)


def test_predictions_are_those_of_each_response_alone():
    model, params = model_and_params("state_action", "token_full")
    pairs = [*cases().values()]
    mesh = sharding.make_mesh("1,1,1", jax.devices()[:1])
    losses = functools.partial(pair_losses, model=model, loss="token_full", **WEIGHTS)
    chex.clear_trace_counter()
    step = functools.partial(chex.assert_max_traces(eval_step, n=2), losses=losses)  # of 8 and 16
    predictor = Predictor(step, pad_pairs, mesh, (8, 16, WIDTH), 4)
    predictor.predict(params, pairs[::2], unpad)
    _, scored = predictor.predict(params, pairs, unpad)
    assert [*predictor.compiled] == [8, 16]
    for k, letter in enumerate("ij"):
        rows = [getattr(pair, f"tokens_{letter}") for pair in pairs]
        tokens, mask = tiny_cases.laid_out(rows, "right", 0, WIDTH)
        alone = score_tokens(params, tokens, mask, model=model, level="token")
        for pair, value_S, values in zip(pairs, np.asarray(alone), scored, strict=True):
            start, end = getattr(pair, f"start_{letter}"), len(getattr(pair, f"tokens_{letter}"))
            np.testing.assert_allclose(values[2 * k], value_S[start:end], atol=2e-5)
            changed = getattr(pair, f"changed_{letter}")
            np.testing.assert_array_equal(values[2 * k + 1], changed[start:])


def test_flops_are_of_what_both_sides_have_once():
    names = "not even the first token", "equal sides"
    alone, equal = (pad_pairs([cases()[name]], WIDTH) for name in names)
    assert pair_flops(tiny_cases.CFG, alone) == rows_flops(tiny_cases.CFG, [2, 3])
    assert pair_flops(tiny_cases.CFG, equal) == rows_flops(tiny_cases.CFG, [5])
