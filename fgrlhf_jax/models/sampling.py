"""Sampling from a policy: prefill and decode with a KV cache, in one compiled program.

A reward model whose head scores every next token may guide it, in step and with its own cache.

Every row has its own random key and positions, so its response depends neither on other rows nor on
padding. The loop ends when all rows have ended. Shape letters as in llama.py; the columns of the
cache are S = P + T.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from fgrlhf_jax.models import attention, heads, llama, row_groups
from fgrlhf_jax.models.decoding import DecodingWeights
from fgrlhf_jax.runtime import sharding

GROUP = 8  # rows per device in a group: enough for efficient products, and of similar length


class Sampled(NamedTuple):
    """Responses; columns from ``length_B`` on hold 0.

    Attributes:
      tokens_BT: int32, including the end-of-sequence token if there is one.
      length_B: int32, tokens of each response, including the end; at least 1.
      finished_B: bool, whether the response ended with EOS.
      logprob_BT: float32, log-probability of each token under the distribution it was sampled from
        (after temperature, top-k and top-p; 0 when greedy); 0 beyond the end.
    """

    tokens_BT: jax.Array
    length_B: jax.Array
    finished_B: jax.Array
    logprob_BT: jax.Array


def filter_logits(logits_V: jax.Array, temperature: float, top_k: int, top_p: float) -> jax.Array:
    """Logits of the sampling distribution, -inf for excluded tokens.

    Args:
      logits_V: float32 logits of one position.
      temperature: above 0; logits are divided by it first.
      top_k: keeps the k most likely tokens (and ties with the last of them); 0 keeps all.
      top_p: keeps the smallest set of most likely tokens whose mass reaches p (Holtzman et al.
        2020, arXiv:1904.09751), always at least one; 1 keeps all. Applied after top_k.
    """
    chex.assert_rank(logits_V, 1)
    logits_V = logits_V / temperature
    if 0 < top_k < logits_V.shape[0]:
        threshold = jax.lax.top_k(logits_V, top_k)[0][-1]
        logits_V = jnp.where(logits_V >= threshold, logits_V, -jnp.inf)
    if top_p < 1.0:
        sorted_V = -jnp.sort(-logits_V)
        mass_V = jax.nn.softmax(sorted_V)
        preceding_V = jnp.cumsum(mass_V) - mass_V
        nucleus_V = (preceding_V < top_p).at[0].set(True)
        threshold = jnp.min(jnp.where(nucleus_V, sorted_V, jnp.inf))
        logits_V = jnp.where(logits_V >= threshold, logits_V, -jnp.inf)
    return logits_V


def sample_token(key, logits_V: jax.Array, temperature: float, top_k: int, top_p: float):
    """Samples (token, its log-probability) at one position; temperature 0 is greedy."""
    if temperature == 0:
        return jnp.argmax(logits_V).astype(jnp.int32), jnp.float32(0)
    logits_V = filter_logits(logits_V, temperature, top_k, top_p)
    token = jax.random.categorical(key, logits_V).astype(jnp.int32)
    return token, jax.nn.log_softmax(logits_V)[token]


def align_left(tokens_BP: jax.Array, mask_BP: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The same prompts with all padding moved to the right; real tokens keep their order."""
    order_BP = jnp.argsort(~mask_BP, axis=1, stable=True)
    take = functools.partial(jnp.take_along_axis, indices=order_BP, axis=1)
    return take(tokens_BP), take(mask_BP)


def row_keys(key, count: int) -> jax.Array:
    """One key per row; that of row i does not depend on ``count``."""
    return jax.vmap(functools.partial(jax.random.fold_in, key))(jnp.arange(count))


def stream_keys(seed: int, streams: Sequence[tuple[int, int]]) -> jax.Array:
    """One key per row, from the seed and the two numbers of its stream, each below 2^32."""
    streams_B2 = np.asarray(streams, np.uint32)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), streams_B2[:, 0])
    return jax.vmap(jax.random.fold_in)(keys, streams_B2[:, 1])


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["weights", "scale"], meta_fields=["module"]
)
@dataclasses.dataclass(frozen=True, eq=False)
class Guide:
    """A reward model that turns a policy pi into its closed-form improvement in every state s:

        pi+(a|s) ~ pi(a|s) exp(scale r(s, a)),

    the maximiser over p of E_p[r(s, a)] - KL(p || pi) / scale (Peters et al. 2010; Rafailov et al.
    2023, arXiv:2305.18290, Equation 4, for one token instead of a response).

    Attributes:
      module: a module whose head scores every next token, see ``heads.ScalarHead.action_rewards``.
      weights: ``decoding.decoding_weights`` of its parameters.
      scale: float32, 1 / (beta std), with beta in nats and the rewards' normalization std.
    """

    module: heads.TokenValueModel
    weights: DecodingWeights
    scale: float | jax.Array


class _Rows(NamedTuple):
    """State of the decoding loop; every array has B as its first axis."""

    last_B: jax.Array  # the token sampled last
    prompt_length_B: jax.Array
    key_B: jax.Array
    caches: tuple  # of policy and guide, ``attention.to_cache`` of each layer
    sampled: Sampled


@functools.partial(
    jax.jit,
    static_argnames=(
        *("model", "ends", "max_new", "temperature", "top_k", "top_p", "int8_cache"),
        "prompt_widths",
    ),
)
def generate(
    weights: DecodingWeights,
    prompt_BP: jax.Array,
    mask_BP: jax.Array,
    key_B: jax.Array,
    guide: Guide | None = None,
    *,
    model: heads.CausalLM,
    ends: tuple[int, ...],
    max_new: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    int8_cache: bool = False,
    prompt_widths: tuple[int, ...] = (),
) -> Sampled:
    """Samples one response per prompt, of at most ``max_new`` tokens.

    Args:
      weights: ``decoding.decoding_weights`` of ``model``'s parameters.
      prompt_BP: int32 prompts, padded on either side (or both).
      mask_BP: bool, True on real tokens.
      key_B: one typed random key per row, see :func:`row_keys`.
      guide: samples from the improved policy; the arguments below apply to it.
      ends: the tokens that end a response.
      temperature, top_k, top_p: as for :func:`filter_logits`; temperature 0 is greedy.
      int8_cache: stores keys and values in 8 bits, see ``attention.to_cache``.
      prompt_widths: possible widths of groups of prompts, ascending; the last is P.
    """
    chex.assert_equal_shape([prompt_BP, mask_BP])
    chex.assert_type([prompt_BP, mask_BP], [int, bool])
    B, P = prompt_BP.shape
    draw_options = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    append = functools.partial(_sample_next, ends=ends, **draw_options)
    prompt_BP, mask_BP = align_left(prompt_BP, mask_BP)
    prompt_length_B = jnp.sum(mask_BP, axis=1, dtype=jnp.int32)
    if len(prompt_widths) > 1:
        order_GN = row_groups.order_by(prompt_length_B)
        prompt_BP, mask_BP, prompt_length_B, key_B = row_groups.take(
            (prompt_BP, mask_BP, prompt_length_B, key_B), order_GN
        )

    def prefill(prompt_BP, mask_BP):
        prompts = {"prompt_BP": prompt_BP, "mask_BP": mask_BP, "columns": P + max_new}
        evaluate = functools.partial(_prefill, **prompts, int8=int8_cache)
        return _guided_logits(evaluate, model, weights, guide)

    logits_BV, caches = _by_width(prefill, prompt_BP, mask_BP, prompt_widths)
    empty_BT = jnp.zeros((B, max_new), jnp.int32)
    empty = Sampled(empty_BT, empty_BT[:, 0], jnp.zeros(B, bool), empty_BT.astype(jnp.float32))
    columns_1S = jnp.arange(P + max_new)[None]

    def decode(state: tuple[jax.Array, _Rows]) -> tuple[jax.Array, _Rows]:
        step, rows = state
        column, prompt_length_B1 = P + step - 1, rows.prompt_length_B[:, None]
        is_response_1S = (columns_1S >= P) & (columns_1S <= column)
        attend_BS = (columns_1S < prompt_length_B1) | is_response_1S
        positions_B1 = prompt_length_B1 + step - 1
        evaluate = functools.partial(
            _decode_token,
            token_B1=rows.last_B[:, None],
            positions_B1=positions_B1,
            attend_BS=attend_BS,
            column=column,
        )
        logits_BV, caches = _guided_logits(evaluate, model, weights, guide, rows.caches)
        last_B, sampled = append(rows.sampled, step, logits_BV, rows.key_B)
        return step + 1, rows._replace(last_B=last_B, caches=caches, sampled=sampled)

    def unfinished(state: tuple[jax.Array, _Rows]) -> jax.Array:
        step, rows = state
        return (step < max_new) & ~jnp.all(rows.sampled.finished_B)

    last_B, sampled = append(empty, 0, logits_BV, key_B)
    rows = _Rows(last_B, prompt_length_B, key_B, caches, sampled)
    sampled = jax.lax.while_loop(unfinished, decode, (jnp.int32(1), rows))[1].sampled
    if len(prompt_widths) < 2:
        return sampled
    return row_groups.take(sampled, jnp.argsort(order_GN, axis=1))


def _guided_logits(evaluate, model, weights: DecodingWeights, guide: Guide | None, caches=((), ())):
    """Logits of the (guided) policy, and the caches of both models, from ``evaluate``."""
    logits_BV, cache = evaluate(model, weights, caches[0])
    if guide is None:
        return logits_BV, (cache, ())
    reward_BV, guide_cache = evaluate(guide.module, guide.weights, caches[1])
    return logits_BV + guide.scale * reward_BV, (cache, guide_cache)


def _by_width(prefill: Callable, prompt_BP: jax.Array, mask_BP: jax.Array, widths: tuple[int, ...]):
    """Applies ``prefill(prompt_BP, mask_BP)`` to small groups of rows.

    Each group has the narrowest width that holds its prompts; rows should be sorted by length.
    """
    rows = GROUP * sharding.batch_shards()
    if len(widths) < 2 or rows >= len(prompt_BP) or len(prompt_BP) % rows:
        return prefill(prompt_BP, mask_BP)
    bodies = [
        lambda prompt_BP, mask_BP, width=width: prefill(prompt_BP[:, :width], mask_BP[:, :width])
        for width in widths
    ]

    def group(prompts):
        longest = jnp.max(jnp.sum(prompts[1], axis=1))
        return jax.lax.switch(jnp.sum(longest > np.array(widths)), bodies, *prompts)

    return row_groups.unsplit(jax.lax.map(group, row_groups.split((prompt_BP, mask_BP), GROUP)))


def _prefill(model, weights: DecodingWeights, _, *, prompt_BP, mask_BP, columns: int, int8: bool):
    """The logits of the token after each prompt, and a cache that begins with the prompts.

    Prompts are padded on the right; ``columns`` is the number of columns of the cache.
    """
    P = prompt_BP.shape[1]
    hidden_BPD = model.apply({"params": weights.outer}, prompt_BP, method=heads.embed)
    rope = llama.rotary_tables(model.cfg, heads.positions_and_mask(mask_BP)[0])
    cache = []
    for layer in weights.layers:
        block = functools.partial(llama.Block(model.cfg).apply, {"params": layer})
        hidden_BPD, heads_BPKH = block(hidden_BPD, rope, None, cache=())
        arrays = zip(attention.to_cache(*heads_BPKH, int8), attention.CACHE_AXES, strict=False)
        padding = lambda axis: [(0, columns - P if a == axis else 0) for a in range(4)]  # noqa: E731
        cache.append(tuple(jnp.pad(x, padding(axis)) for x, axis in arrays))
    cache = jax.tree.map(sharding.constrain_cache, tuple(cache))
    last_B11 = jnp.maximum(jnp.sum(mask_BP, axis=1) - 1, 0)[:, None, None]
    last_B1D = jnp.take_along_axis(hidden_BPD, last_B11, axis=1)
    logits_B1V = model.apply({"params": weights.outer}, last_B1D, method=heads.finish)
    return logits_B1V[:, 0], cache


def _decode_token(
    model, weights: DecodingWeights, cache, *, token_B1, positions_B1, attend_BS, column
):
    """Logits after one more token per row, and the cache with the token in ``column``."""
    hidden_B1D = model.apply({"params": weights.outer}, token_B1, method=heads.embed)
    rope = llama.rotary_tables(model.cfg, positions_B1)
    updated = []
    for layer, kv in zip(weights.layers, cache, strict=True):
        block = functools.partial(llama.Block(model.cfg).apply, {"params": layer})
        hidden_B1D, kv = block(hidden_B1D, rope, attend_BS, cache=(*kv, column))
        updated.append(kv)
    logits_B1V = model.apply({"params": weights.outer}, hidden_B1D, method=heads.finish)
    return logits_B1V[:, 0], tuple(updated)


def _sample_next(
    sampled: Sampled, t, logits_BV, key_B, *, ends: tuple[int, ...], temperature, top_k, top_p
) -> tuple[jax.Array, Sampled]:
    """Samples token t of every row that has not ended (0 for others), and appends it."""
    step_key_B = jax.vmap(jax.random.fold_in, (0, None))(key_B, t)
    token_B, logprob_B = jax.vmap(sample_token, (0, 0, None, None, None))(
        step_key_B, logits_BV, temperature, top_k, top_p
    )
    active_B = ~sampled.finished_B
    is_end_B = (token_B[:, None] == np.array(ends, np.int32)[None]).any(axis=1)
    token_B = jnp.where(active_B, token_B, 0)
    return token_B, Sampled(
        tokens_BT=sampled.tokens_BT.at[:, t].set(token_B),
        length_B=sampled.length_B + active_B,
        finished_B=sampled.finished_B | (active_B & is_end_B),
        logprob_BT=sampled.logprob_BT.at[:, t].set(jnp.where(active_B, logprob_B, 0.0)),
    )
