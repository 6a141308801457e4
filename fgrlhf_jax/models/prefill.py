"""Prefill: computes from prompts the logits of their next tokens, and a KV cache.

Shape letters as in llama.py. Prompts are padded on the right.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from fgrlhf_jax.models import attention, llama, row_groups
from fgrlhf_jax.models.decoding import DecodingWeights
from fgrlhf_jax.runtime import sharding

ROWS = 8  # rows per device in a group: enough for efficient products, and of similar length


def by_width(
    fill: Callable, prompt_BP: jax.Array, mask_BP: jax.Array, max_new: int, widths: tuple[int, ...]
):
    """Applies ``fill(prompt_BP, mask_BP, columns)`` to small groups of rows.

    Each group has the narrowest width that holds its prompts; rows should be sorted by length.
    """
    (B, P), G = prompt_BP.shape, sharding.batch_shards()
    columns, size = P + max_new, ROWS
    if len(widths) < 2 or size * G >= B or B % (size * G):
        return fill(prompt_BP, mask_BP, columns)
    bodies = [
        lambda prompt_BP, mask_BP, width=width: fill(
            prompt_BP[:, :width], mask_BP[:, :width], columns
        )
        for width in widths
    ]

    def group(prompts):
        longest = jnp.max(jnp.sum(prompts[1], axis=1))
        return jax.lax.switch(jnp.sum(longest > np.array(widths)), bodies, *prompts)

    return row_groups.unsplit(jax.lax.map(group, row_groups.split((prompt_BP, mask_BP), size)))


def prefill(model, weights: DecodingWeights, _, *, prompt_BP, mask_BP, columns: int, int8: bool):
    """The logits of the token after each prompt, and a cache that begins with the prompts.

    Args:
      prompt_BP, mask_BP: padded on the right.
      columns: number of columns of the cache.
    """
    P = prompt_BP.shape[1]
    hidden_BPD = model.apply({"params": weights.outer}, prompt_BP, method="embed")
    rope = llama.rotary_tables(model.cfg, llama.positions_and_mask(mask_BP)[0])
    cache = []
    for layer in weights.layers:
        block = functools.partial(llama.Block(model.cfg).apply, {"params": layer})
        hidden_BPD, heads_BPKH = block(hidden_BPD, rope, None, cache=())
        arrays = zip(attention.to_cache(*heads_BPKH, int8), attention.CACHE_AXES, strict=False)
        room = lambda axis: [(0, columns - P if a == axis else 0) for a in range(4)]  # noqa: E731
        cache.append(tuple(jnp.pad(x, room(axis)) for x, axis in arrays))
    cache = jax.tree.map(sharding.constrain_cache, tuple(cache))
    last_B11 = jnp.maximum(jnp.sum(mask_BP, axis=1) - 1, 0)[:, None, None]
    last_B1D = jnp.take_along_axis(hidden_BPD, last_B11, axis=1)
    logits_B1V = model.apply({"params": weights.outer}, last_B1D, method="finish")
    return logits_B1V[:, 0], cache
