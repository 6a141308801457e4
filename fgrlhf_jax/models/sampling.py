"""Sampling from a policy: prefill and decode with a KV cache, in one compiled program.

A row has its own random key and its own positions, so its response depends neither on its batch
mates nor on padding. The loop ends when every row has ended. Shape letters as in llama.py; the
columns of the cache are S = P + T.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from fgrlhf_jax.models import attention, llama
from fgrlhf_jax.runtime import sharding


class Sampled(NamedTuple):
    """Responses; columns from ``length_B`` on hold 0.

    Attributes:
      tokens_BT: int32, the end-of-sequence token included where there is one.
      length_B: int32, tokens of each response, the end included; at least 1.
      finished_B: bool, whether the response ended by itself.
      logprob_BT: float32, log-probability of each token under the very distribution it was drawn
        from (temperature, top-k and top-p applied; 0 when greedy); 0 beyond the end.
    """

    tokens_BT: jax.Array
    length_B: jax.Array
    finished_B: jax.Array
    logprob_BT: jax.Array


def restrict(logits_V: jax.Array, temperature: float, top_k: int, top_p: float) -> jax.Array:
    """Logits of the distribution to draw from, -inf where a token may not be drawn.

    Args:
      logits_V: float32 logits of one position.
      temperature: above 0; logits are divided by it before anything else.
      top_k: keep the k most likely tokens (and ties with the last of them); 0 keeps all.
      top_p: keep the smallest set of most likely tokens whose mass reaches p (Holtzman et al.
        2020, arXiv:1904.09751), the first of them always; 1 keeps all. Applied after top_k.
    """
    chex.assert_rank(logits_V, 1)
    logits_V = logits_V / temperature
    if 0 < top_k < logits_V.shape[0]:
        least = jax.lax.top_k(logits_V, top_k)[0][-1]
        logits_V = jnp.where(logits_V >= least, logits_V, -jnp.inf)
    if top_p < 1.0:
        ordered_V = -jnp.sort(-logits_V)
        mass_V = jax.nn.softmax(ordered_V)
        before_V = jnp.cumsum(mass_V) - mass_V
        nucleus_V = (before_V < top_p).at[0].set(True)
        least = jnp.min(jnp.where(nucleus_V, ordered_V, jnp.inf))
        logits_V = jnp.where(logits_V >= least, logits_V, -jnp.inf)
    return logits_V


def draw(key, logits_V: jax.Array, temperature: float, top_k: int, top_p: float):
    """(token, its log-probability) of one position; temperature 0 is greedy."""
    if temperature == 0:
        return jnp.argmax(logits_V).astype(jnp.int32), jnp.float32(0)
    logits_V = restrict(logits_V, temperature, top_k, top_p)
    token = jax.random.categorical(key, logits_V).astype(jnp.int32)
    return token, jax.nn.log_softmax(logits_V)[token]


def align_right(tokens_BP: jax.Array, mask_BP: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The same prompts, real tokens in order, with all padding moved to the left."""
    order_BP = jnp.argsort(mask_BP, axis=1, stable=True)
    take = functools.partial(jnp.take_along_axis, indices=order_BP, axis=1)
    return take(tokens_BP), take(mask_BP)


def row_keys(key, count: int) -> jax.Array:
    """One key a row; row i has the same key whatever ``count`` is."""
    return jax.vmap(functools.partial(jax.random.fold_in, key))(jnp.arange(count))


def stream_keys(seed: int, streams: Sequence[tuple[int, int]]) -> jax.Array:
    """One key a row, of (seed, the two numbers of its stream, each below 2^32)."""
    streams_B2 = np.asarray(streams, np.uint32)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), streams_B2[:, 0])
    return jax.vmap(jax.random.fold_in)(keys, streams_B2[:, 1])


class _DecodeState(NamedTuple):
    """What the loop over response tokens carries."""

    step: jax.Array  # tokens drawn so far
    last_B: jax.Array  # the last of them
    cache: tuple  # (k_BKSH, v_BKSH) a layer, or both with a leading L
    sampled: Sampled


@functools.partial(
    jax.jit,
    static_argnames=("model", "ends", "max_new", "temperature", "top_k", "top_p", "unroll"),
)
def generate(
    params: dict,
    prompt_BP: jax.Array,
    mask_BP: jax.Array,
    key_B: jax.Array,
    *,
    model: llama.CausalLM,
    ends: tuple[int, ...],
    max_new: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    unroll: bool = True,
) -> Sampled:
    """One response a prompt, of at most ``max_new`` tokens.

    Args:
      params: parameters of ``model``.
      prompt_BP: int32 prompts, padded on either side (or both).
      mask_BP: bool, True on real tokens.
      key_B: a typed random key a row, see :func:`row_keys`.
      ends: the tokens that end a response.
      temperature, top_k, top_p: as :func:`restrict`; temperature 0 is greedy.
      unroll: True decodes layer by layer with a cache a layer, which is fastest but holds a second
        copy of the weights, cut into layers; False loops over the stacked weights and cache.
    """
    chex.assert_equal_shape([prompt_BP, mask_BP])
    chex.assert_type([prompt_BP, mask_BP], [int, bool])
    B, P = prompt_BP.shape
    prompt_BP, mask_BP = align_right(prompt_BP, mask_BP)
    length_B = jnp.sum(mask_BP, axis=1, dtype=jnp.int32)
    columns_1S = jnp.arange(P + max_new)[None]
    # Padding in front, then the prompt, then the response so far.
    real_BS = jnp.concatenate([mask_BP, jnp.ones((B, max_new), bool)], axis=1)
    layers, cache = _layers_and_cache(model.cfg, params, mask_BP.shape, max_new, unroll)
    forward = functools.partial(_forward, model, params, layers)
    append = functools.partial(
        _append, key_B=key_B, ends=ends, temperature=temperature, top_k=top_k, top_p=top_p
    )

    def decode(state: _DecodeState) -> _DecodeState:
        column = P + state.step - 1
        attend_B1S = (real_BS & (columns_1S <= column))[:, None]
        positions_B1 = (length_B + state.step - 1)[:, None]
        row_args = state.last_B[:, None], positions_B1, attend_B1S
        logits_BV, cache = forward(*row_args, state.cache, column)
        last_B, sampled = append(state.sampled, state.step, logits_BV)
        return _DecodeState(state.step + 1, last_B, cache, sampled)

    positions_BP, _ = llama.positions_and_mask(mask_BP)
    attend_BPS = jnp.pad(attention.dense_mask(mask_BP), ((0, 0), (0, 0), (0, max_new)))
    logits_BV, cache = forward(prompt_BP, positions_BP, attend_BPS, cache, 0)
    empty_BT = jnp.zeros((B, max_new), jnp.int32)
    empty = Sampled(empty_BT, empty_BT[:, 0], jnp.zeros(B, bool), empty_BT.astype(jnp.float32))
    last_B, sampled = append(empty, 0, logits_BV)
    return jax.lax.while_loop(
        lambda state: (state.step < max_new) & ~jnp.all(state.sampled.finished_B),
        decode,
        _DecodeState(jnp.int32(1), last_B, cache, sampled),
    ).sampled


def _layers_and_cache(cfg, params, prompt_shape, max_new: int, unroll: bool):
    """Weights and an empty cache: a list of each, one entry a layer, or both stacked."""
    B, P = prompt_shape
    layers = params["backbone"]["layers"]
    shape = (B, cfg.num_kv_heads, P + max_new, cfg.head_dim)

    def empty(shape):
        return tuple(sharding.constrain_cache(jnp.zeros(shape, cfg.dtype)) for _ in "kv")

    if not unroll:
        return layers, empty((cfg.num_layers, *shape))
    layers = [jax.tree.map(lambda x, i=i: x[i], layers) for i in range(cfg.num_layers)]
    return layers, tuple(empty(shape) for _ in layers)


def _forward(model, params, layers, tokens_BQ, positions_BQ, attend_BQS, cache, column):
    """Logits after the last of the given tokens, and the cache with all of them.

    ``layers`` and ``cache`` are as from :func:`_layers_and_cache`; the tokens take the cache's
    columns from ``column`` on.
    """
    cfg = model.cfg
    hidden_BQD = model.apply({"params": params}, tokens_BQ, method="embed")
    rope = llama.rotary_tables(cfg, positions_BQ)

    def block(weights, hidden_BQD, kv):
        args = (hidden_BQD, rope, attend_BQS, (*kv, column))
        return llama.Block(cfg).apply({"params": weights}, *args)

    def stacked_block(layer, carry):
        hidden_BQD, cache = carry
        weights, kv = jax.tree.map(
            lambda x: jax.lax.dynamic_index_in_dim(x, layer, keepdims=False), (layers, cache)
        )
        hidden_BQD, kv = block(weights, hidden_BQD, kv)
        cache = jax.tree.map(
            lambda x, new: jax.lax.dynamic_update_index_in_dim(x, new, layer, 0), cache, kv
        )
        return hidden_BQD, cache

    if isinstance(layers, list):
        updated = []
        for weights, kv in zip(layers, cache, strict=True):
            hidden_BQD, kv = block(weights, hidden_BQD, kv)
            updated.append(kv)
        cache = tuple(updated)
    else:
        hidden_BQD, cache = jax.lax.fori_loop(0, cfg.num_layers, stacked_block, (hidden_BQD, cache))
    logits_BQV = model.apply({"params": params}, hidden_BQD[:, -1:], method="finish")
    return logits_BQV[:, 0], cache


def _append(
    sampled: Sampled, t, logits_BV, *, key_B, ends: tuple[int, ...], temperature, top_k, top_p
) -> tuple[jax.Array, Sampled]:
    """Token t of every row that has not ended (0 of the others), and the responses with it."""
    step_key_B = jax.vmap(jax.random.fold_in, (0, None))(key_B, t)
    token_B, logprob_B = jax.vmap(draw, (0, 0, None, None, None))(
        step_key_B, logits_BV, temperature, top_k, top_p
    )
    going_B = ~sampled.finished_B
    is_end_B = (token_B[:, None] == np.array(ends, np.int32)[None]).any(axis=1)
    token_B = jnp.where(going_B, token_B, 0)
    return token_B, Sampled(
        tokens_BT=sampled.tokens_BT.at[:, t].set(token_B),
        length_B=sampled.length_B + going_B,
        finished_B=sampled.finished_B | (going_B & is_end_B),
        logprob_BT=sampled.logprob_BT.at[:, t].set(jnp.where(going_B, logprob_B, 0.0)),
    )
