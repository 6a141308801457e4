"""Sampling: a response depends on its prompt and key alone, and its log-probabilities hold."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_cases

from fgrlhf_jax.functional import reward_losses
from fgrlhf_jax.models import llama, sampling
from fgrlhf_jax.runtime import sharding

MODEL = llama.CausalLM(tiny_cases.CFG)
PARAMS = tiny_cases.parameters(MODEL)
PROMPTS = [[5, 6, 7], [9], [3, 1, 4, 1, 5], [8, 8]]
EOS = 2


def run(
    prompts=PROMPTS, side="left", width=7, rows=None, model=MODEL, params=PARAMS, **options
):
    tokens, mask = tiny_cases.laid_out(prompts, side, fill=63, width=width)
    keys = sampling.row_keys(jax.random.key(1), 16)
    keys = keys[jnp.array(rows if rows is not None else range(len(prompts)))]
    options = {"eos": EOS, "max_new": 9, **options}
    return jax.device_get(
        sampling.generate(params, tokens.astype(np.int32), mask, keys, model=model, **options)
    )


def full_logprobs(prompt, response, temperature=1.0, top_k=0, top_p=1.0):
    """By one pass over the whole text, no cache."""
    tokens = jnp.array([prompt + list(response)], jnp.int32)
    args = llama.positions_and_mask(tokens >= 0)
    logits_SV = MODEL.apply({"params": PARAMS}, tokens, *args)[0]
    restrict = jax.vmap(sampling.restrict, (0, None, None, None))
    logits_SV = restrict(logits_SV, temperature, top_k, top_p)
    return np.asarray(reward_losses.token_logprobs(logits_SV, tokens[0]))[len(prompt) :]


@pytest.mark.parametrize("side", ["left", "right"])
def test_greedy_takes_the_most_likely_token_of_a_full_pass(side):
    out = run(side=side, temperature=0.0)
    for prompt, tokens, length in zip(PROMPTS, out.tokens_BT, out.length_B, strict=True):
        said = []
        for _ in range(length):
            text = jnp.array([prompt + said], jnp.int32)
            logits = MODEL.apply({"params": PARAMS}, text, *llama.positions_and_mask(text >= 0))
            said.append(int(jnp.argmax(logits[0, -1])))
        assert said == tokens[:length].tolist()


@pytest.mark.parametrize(
    "options",
    [{}, {"temperature": 0.7}, {"top_k": 5}, {"top_p": 0.6}, {"top_k": 9, "top_p": 0.8}],
    ids=str,
)
def test_logprobs_are_those_of_a_full_pass(options):
    out = run(**options)
    for b, prompt in enumerate(PROMPTS):
        length = out.length_B[b]
        expected = full_logprobs(prompt, out.tokens_BT[b, :length], **options)
        np.testing.assert_allclose(out.logprob_BT[b, :length], expected, atol=1e-5)
        assert not out.logprob_BT[b, length:].any()
        assert not out.tokens_BT[b, length:].any()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_padding_company_and_layout_do_not_change_a_row(temperature):
    base = run(temperature=temperature)
    chex.assert_trees_all_close(base, run(side="right", temperature=temperature), atol=1e-5)
    chex.assert_trees_all_close(base, run(width=12, temperature=temperature), atol=1e-5)
    alone = run(PROMPTS[2:3], rows=[2], temperature=temperature)
    chex.assert_trees_all_close(jax.tree.map(lambda x: x[2:3], base), alone, atol=1e-5)
    looped = run(unroll=False, temperature=temperature)
    chex.assert_trees_all_close(base, looped, atol=1e-5)


def test_a_response_ends_with_its_first_eos_and_the_loop_with_the_last_row():
    free = run(eos=-1)
    assert not free.finished_B.any()
    assert (free.length_B == 9).all()
    eos = int(free.tokens_BT[0, 3])
    out = run(eos=eos)
    for b in range(len(PROMPTS)):
        ends = np.flatnonzero(free.tokens_BT[b] == eos)
        expected = ends[0] + 1 if ends.size else 9
        assert out.length_B[b] == expected
        assert out.finished_B[b] == bool(ends.size)
        np.testing.assert_array_equal(out.tokens_BT[b, :expected], free.tokens_BT[b, :expected])


def test_keys_make_samples_differ_and_frequencies_follow_the_distribution():
    count = 4000
    tokens = jnp.tile(jnp.array([[5, 6, 7]], jnp.int32), (count, 1))
    keys = sampling.row_keys(jax.random.key(0), count)
    options = {"model": MODEL, "eos": EOS, "max_new": 1, "temperature": 1.3, "top_k": 8}
    out = sampling.generate(PARAMS, tokens, tokens >= 0, keys, **options)
    seen = np.bincount(out.tokens_BT[:, 0], minlength=64) / count
    logits = MODEL.apply(
        {"params": PARAMS}, tokens[:1], *llama.positions_and_mask(tokens[:1] >= 0)
    )
    scaled = np.asarray(logits[0, -1], np.float64) / 1.3
    kept = np.argsort(-scaled)[:8]
    expected = np.zeros(64)
    expected[kept] = np.exp(scaled[kept]) / np.exp(scaled[kept]).sum()
    assert np.abs(seen - expected).max() < 0.03
    assert seen[np.setdiff1d(np.arange(64), kept)].sum() == 0


def test_top_p_keeps_the_smallest_set_that_reaches_the_mass():
    logits = jnp.log(jnp.array([0.1, 0.5, 0.15, 0.25]))
    for top_p, kept in [
        (0.4, [1]),
        (0.5, [1]),
        (0.51, [1, 3]),
        (0.75, [1, 3]),
        (0.8, [1, 2, 3]),
    ]:
        out = np.asarray(sampling.restrict(logits, 1.0, 0, top_p))
        assert np.flatnonzero(np.isfinite(out)).tolist() == kept, top_p
    assert np.isfinite(sampling.restrict(logits, 1.0, 0, 1e-9)).sum() == 1


@pytest.mark.parametrize("shape", ["8,1,1", "2,2,2"])
@pytest.mark.parametrize("unroll", [True, False])
def test_a_mesh_samples_what_one_device_does(shape, unroll):
    prompts, mesh = PROMPTS * 2, sharding.make_mesh(shape)
    base = run(prompts, rows=range(8), unroll=unroll)
    params = jax.device_put(PARAMS, sharding.shardings(PARAMS, mesh))
    tokens, mask = tiny_cases.laid_out(prompts, "left", fill=63, width=7)
    keys = sampling.row_keys(jax.random.key(1), 8)
    with jax.set_mesh(mesh):
        placed = sharding.put_batch((tokens.astype(np.int32), mask), mesh)
        options = {"model": MODEL, "eos": EOS, "max_new": 9, "unroll": unroll}
        out = jax.device_get(sampling.generate(params, *placed, keys, **options))
    chex.assert_trees_all_close(base, out, atol=1e-5)


def test_tied_embeddings_and_bfloat16():
    cfg = dataclasses.replace(tiny_cases.CFG, tie_embeddings=True, dtype="bfloat16")
    model = llama.CausalLM(cfg)
    out = run(model=model, params=tiny_cases.parameters(model))
    assert out.logprob_BT.dtype == np.float32
    assert (out.length_B > 0).all()
