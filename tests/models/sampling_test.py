"""Sampling: a response depends on its prompt and key alone, and its log-probabilities hold."""

import dataclasses
import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_cases

from fgrlhf_jax.functional import policy_losses
from fgrlhf_jax.models import decoding, heads, llama, sampling
from fgrlhf_jax.plan import hlo
from fgrlhf_jax.runtime import sharding

MODEL = heads.CausalLM(tiny_cases.CFG)
PARAMS = tiny_cases.parameters(MODEL)
WEIGHTS = decoding.decoding_weights(PARAMS, MODEL)
PROMPTS = [[5, 6, 7], [9], [3, 1, 4, 1, 5], [8, 8]]
EOS = 2


def run(prompts=PROMPTS, side="left", fill=63, width=7, rows=None, **options):
    tokens, mask = tiny_cases.laid_out(prompts, side, fill, width)
    keys = sampling.row_keys(jax.random.key(1), max(16, len(prompts)))
    keys = keys[jnp.array(rows if rows is not None else range(len(prompts)))]
    options = {"weights": WEIGHTS, "model": MODEL, "ends": (EOS,), "max_new": 9, **options}
    arrays = {"prompt_BP": tokens.astype(np.int32), "mask_BP": mask, "key_B": keys}
    return jax.device_get(sampling.generate(**arrays, **options))


def filled(text) -> jax.Array:
    """One width for all, for one compilation: no token's logits depend on what is after it."""
    return jnp.array([*text, *[1] * (14 - len(text))], jnp.int32)


def full_pass(text, model=MODEL):
    """Logits of a row by one pass over all of it, no cache."""
    return _full_pass(filled(text)[None], model=model)[0]


@functools.partial(jax.jit, static_argnames="model")
def _full_pass(tokens_BS, *, model):
    return model.apply({"params": PARAMS}, tokens_BS, *heads.positions_and_mask(tokens_BS >= 0))


def full_logprobs(prompt, response, temperature=1.0, top_k=0, top_p=1.0):
    text = [*prompt, *response]
    restrict = jax.vmap(sampling.filter_logits, (0, None, None, None))
    logits_SV = restrict(full_pass(text), temperature, top_k, top_p)
    logprob_S, _ = policy_losses.logprob_and_entropy(logits_SV[:-1], filled(text)[1:])
    return np.asarray(logprob_S)[len(prompt) - 1 : len(text) - 1]


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
    for options in ({"side": "right"}, {"width": 12}):
        chex.assert_trees_all_close(base, run(temperature=temperature, **options), atol=1e-5)
    alone = run(PROMPTS[2:3], rows=[2], temperature=temperature)
    chex.assert_trees_all_close(jax.tree.map(lambda x: x[2:3], base), alone, atol=1e-5)


@pytest.mark.parametrize("count", [1, 2])
def test_a_response_ends_with_its_first_eos_and_the_loop_with_the_last_row(count):
    free = run(ends=())
    assert not free.finished_B.any()
    assert (free.length_B == 9).all()
    eos = free.tokens_BT[:count, 3].tolist()
    out = run(ends=tuple(eos))
    for b in range(len(PROMPTS)):
        ends = np.flatnonzero(np.isin(free.tokens_BT[b], eos))
        expected = ends[0] + 1 if ends.size else 9
        assert out.length_B[b] == expected
        assert out.finished_B[b] == bool(ends.size)
        np.testing.assert_array_equal(out.tokens_BT[b, :expected], free.tokens_BT[b, :expected])


@pytest.mark.parametrize("eos", [0, 12])
def test_only_a_sampled_eos_ends_a_response(eos, monkeypatch):
    """Not one in a prompt or as its padding, and (0) not what stands beyond a response's end.

    The side of the padding needs no other program.
    """
    prompts = [[5, 6, eos], [eos], [3, eos, 4], [8, 8], *([n % 64] for n in range(150))]
    free = run(prompts, ends=())
    ends = [np.flatnonzero(row == eos) for row in free.tokens_BT]
    lengths = np.array([end[0] + 1 if end.size else 9 for end in ends])
    assert {1, 9} < set(lengths.tolist())  # at once, never, and in between
    monkeypatch.setattr(sampling, "generate", tiny_cases.traced_once(sampling.generate))
    for side in ("left", "right"):
        out = run(prompts, side, fill=eos, ends=(eos,))
        np.testing.assert_array_equal(out.length_B, lengths)
        np.testing.assert_array_equal(out.finished_B, [bool(end.size) for end in ends])
        for b, length in enumerate(lengths):
            response = out.tokens_BT[b, :length]
            np.testing.assert_array_equal(response, free.tokens_BT[b, :length])
            if b < 4:  # the last token's probability too
                expected = full_logprobs(prompts[b], response)
                np.testing.assert_allclose(out.logprob_BT[b, :length], expected, atol=1e-5)


def test_positions_do_not_count_padding(monkeypatch):
    """Neither in prefill nor in decoding.

    Rotary attention sees differences of positions only, so an equal shift of all of them shows
    nowhere. Here the angles go with the position's square, and any shift shows.
    """
    plain = llama.rotary_tables
    monkeypatch.setattr(llama, "rotary_tables", lambda cfg, p: plain(cfg, p * p))
    # A model of its own: compiled functions of others must not have the changed tables.
    model = heads.CausalLM(dataclasses.replace(tiny_cases.CFG, max_position=11))

    row = jnp.array([PROMPTS[2]])
    positions, mask = heads.positions_and_mask(row >= 0)
    shifted = jax.jit(model.apply)({"params": PARAMS}, row, positions + 3, mask)[0]
    assert np.abs(shifted - full_pass(PROMPTS[2], model)[:5]).max() > 0.1
    out = run(model=model, ends=(), temperature=0.0)
    for prompt, response in zip(PROMPTS, out.tokens_BT, strict=True):
        logits = full_pass([*prompt, *response], model)[len(prompt) - 1 :][:9]
        np.testing.assert_array_equal(response, logits.argmax(-1))


def test_keys_make_samples_differ_and_frequencies_follow_the_distribution():
    count = 4000
    tokens = jnp.tile(jnp.array([[5, 6, 7]], jnp.int32), (count, 1))
    keys = sampling.row_keys(jax.random.key(0), count)
    options = {"model": MODEL, "ends": (EOS,), "max_new": 1, "temperature": 1.3, "top_k": 8}
    out = sampling.generate(WEIGHTS, tokens, tokens >= 0, keys, **options)
    seen = np.bincount(out.tokens_BT[:, 0], minlength=64) / count
    scaled = np.asarray(full_pass([5, 6, 7])[2], np.float64) / 1.3
    kept = np.argsort(-scaled)[:8]
    expected = np.zeros(64)
    expected[kept] = np.exp(scaled[kept]) / np.exp(scaled[kept]).sum()
    assert np.abs(seen - expected).max() < 0.03
    assert seen[np.setdiff1d(np.arange(64), kept)].sum() == 0


def test_top_p_keeps_the_smallest_set_that_reaches_the_mass():
    logits = jnp.log(jnp.array([0.1, 0.5, 0.15, 0.25]))
    expected = {1e-9: [1], 0.5: [1], 0.51: [1, 3], 0.75: [1, 3], 0.8: [1, 2, 3]}
    for top_p, kept in expected.items():
        out = np.asarray(sampling.filter_logits(logits, 1.0, 0, top_p))
        assert np.flatnonzero(np.isfinite(out)).tolist() == kept, top_p


@functools.cache
def compiled(shape: str, cfg: llama.LlamaConfig = MODEL.cfg, **options):
    """The program of 8 rows on a mesh, and its weights."""
    mesh = sharding.make_mesh(shape, jax.devices() if shape != "1,1,1" else jax.devices()[:1])
    model = heads.CausalLM(cfg)
    params = tiny_cases.parameters(model)
    layout = decoding.abstract_weights(params, model, mesh)
    weights = decoding.decoding_weights(params, model)
    weights = jax.device_put(weights, jax.tree.map(lambda x: x.sharding, layout))
    tokens, mask = tiny_cases.laid_out(PROMPTS * 2, "left", fill=63, width=7)
    keys = sampling.row_keys(jax.random.key(1), 8)
    with jax.set_mesh(mesh):
        placed = sharding.put_batch((tokens.astype(np.int32), mask), mesh)
        options = {"model": model, "ends": (EOS,), "max_new": 9, **options}
        arguments = weights, *placed, keys
        return sampling.generate.lower(*arguments, **options).compile(), arguments


@pytest.mark.parametrize("shape", ["1,8,1", "2,2,2"])
def test_a_mesh_samples_what_one_device_does(shape):
    program, arguments = compiled(shape)
    chex.assert_trees_all_close(run(PROMPTS * 2), jax.device_get(program(*arguments)), atol=1e-5)


@pytest.mark.parametrize("shape", ["1,8,1", "2,2,2"])
def test_no_weights_are_gathered_for_a_token(shape):
    """The loop exchanges what goes with rows, less than a weight matrix; rows alone nothing."""
    program, arguments = compiled(shape)
    exchanged = tiny_cases.exchanged_in_loops(program)
    shards = (x.sharding.shard_shape(x.shape) for x in jax.tree.leaves(arguments[0]) if x.ndim == 2)
    assert max(exchanged, default=0) < min(map(math.prod, shards))
    if shape == "1,8,1":
        assert max(exchanged, default=0) <= 1  # whether all rows have ended


HALF = dataclasses.replace(MODEL.cfg, dtype="bfloat16", num_kv_heads=MODEL.cfg.num_heads)


@pytest.mark.parametrize(
    ("shape", "cfg", "int8_cache"),
    [
        ("1,1,1", MODEL.cfg, False),
        *((shape, HALF, False) for shape in ("1,1,1", "1,8,1", "2,2,2")),
        ("2,2,2", MODEL.cfg, True),
    ],
)
def test_a_token_writes_one_column_of_the_cache(shape, cfg, int8_cache):
    """In place: the loop copies none of the cache's arrays."""
    program, _ = compiled(shape, cfg, ends=(), int8_cache=int8_cache)
    written = []
    for i, computation in tiny_cases.in_loops(program):
        if 16 not in (sizes := hlo.dimensions(i.elements[0]))[2:]:  # 7 columns of prompts and 9
            continue
        assert i.opcode != "copy", i
        if i.opcode == "dynamic-update-slice":
            column = hlo.dimensions(computation[i.operands[1]].shape)
            assert column == [1 if size == 16 else size for size in sizes]
            written.append(i)
    assert len(written) == MODEL.cfg.num_layers * (4 if int8_cache else 2)


def test_a_cache_of_8_bits_is_close():
    """On one device and on a mesh, of prompts and of responses."""
    plain = run(PROMPTS * 2, ends=())
    out = run(PROMPTS * 2, ends=(), int8_cache=True)
    same = (np.cumsum(out.tokens_BT != plain.tokens_BT, axis=1) == 0).sum(axis=1)
    assert same.sum() > 60  # of 72; a row differs from where another token was drawn
    for b, columns in enumerate(same):
        close = out.logprob_BT[b, :columns] - plain.logprob_BT[b, :columns]
        assert close[0] == 0  # of a whole pass over the prompt
        assert 0 < np.abs(close[1:]).max(initial=1e-9) < 0.1
    program, arguments = compiled("2,2,2", ends=(), int8_cache=True)
    chex.assert_trees_all_close(out, jax.device_get(program(*arguments)), atol=1e-5)


def test_tied_embeddings_and_bfloat16():
    cfg = dataclasses.replace(tiny_cases.CFG, tie_embeddings=True, dtype="bfloat16")
    model = heads.CausalLM(cfg)
    out = run(model=model, weights=decoding.decoding_weights(tiny_cases.parameters(model), model))
    assert out.logprob_BT.dtype == np.float32
    assert (out.length_B > 0).all()
