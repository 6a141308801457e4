"""Attention: who may attend to whom, over a sequence itself and over a cache.

Shape letters as in llama.py. ``attend`` goes by its rank: rank 2 is mask_BS, True on real tokens,
and means causal attention over real keys; rank 3 is attend_BQS, an explicit [query, key] mask.
"""

import jax
import jax.numpy as jnp


def dense_mask(attend: jax.Array) -> jax.Array:
    """attend_BSS of an ``attend`` of either rank.

        mask      attend (rows are queries)
        0 1 1     1 0 0 | 0 1 0 | 0 1 1
        1 1 0     1 0 0 | 1 1 0 | 1 1 1

    Causal over real keys, plus the diagonal, so that no query, not even a padded one, is left
    with an empty softmax.
    """
    if attend.ndim == 3:
        return attend
    length = attend.shape[-1]
    causal_1SS = jnp.tri(length, dtype=bool)[None]
    self_1SS = jnp.eye(length, dtype=bool)[None]
    return (causal_1SS & attend[:, None, :]) | self_1SS


def self_attention(q_BSNH, k_BSKH, v_BSKH, attend, implementation: str) -> jax.Array:
    """Grouped-query attention of a sequence to itself, [B, S, N, H]; softmax in float32."""
    kernel = None if implementation == "auto" else implementation
    mask_B1SS = dense_mask(attend)[:, None]
    return jax.nn.dot_product_attention(
        q_BSNH, k_BSKH, v_BSKH, mask=mask_B1SS, implementation=kernel
    )


def cached_attention(q_BQNH, k_BKSH, v_BKSH, attend_BQS) -> jax.Array:
    """Attention of a few queries to a whole cache, [B, Q, N, H]; softmax in float32.

    The cache has its columns next to the head width: the order that decoding reads fastest.
    """
    B, Q, N, H = q_BQNH.shape
    K = k_BKSH.shape[1]
    q_BQKGH = q_BQNH.reshape(B, Q, K, N // K, H)
    score_BKGQS = jnp.einsum(
        "BQKGH,BKSH->BKGQS", q_BQKGH, k_BKSH, preferred_element_type=jnp.float32
    )
    attend_B11QS = attend_BQS[:, None, None]
    score_BKGQS = jnp.where(attend_B11QS, score_BKGQS * H**-0.5, jnp.finfo(jnp.float32).min)
    weight_BKGQS = jax.nn.softmax(score_BKGQS, axis=-1).astype(v_BKSH.dtype)
    return jnp.einsum("BKGQS,BKSH->BQKGH", weight_BKGQS, v_BKSH).reshape(B, Q, N, H)
