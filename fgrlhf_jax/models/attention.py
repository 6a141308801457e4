"""Attention over a sequence and over a KV cache, with its masks and kernels.

Shape letters as in llama.py. The form of ``attend`` selects the mask:

    rank 3   attend_BQS, an explicit [query, key] mask; causal for a sequence itself
    rank 2   mask_BS, True on real tokens: causal attention over real keys
    tuple    (mask_BS, branch_BS) of pair rows, see :func:`dense_mask`
    None     causal attention only, for rows padded on the right, where no real token sees padding

Causal attention has flash kernels, which hold no scores in memory: cuDNN's on NVIDIA GPUs from
Ampere (compute capability 8.0) on, and the splash kernel of Pallas on TPUs. All else is XLA's.
"""

import functools

import jax
import jax.numpy as jnp

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.runtime import sharding

CHOICES = ("auto", "xla", "cudnn", "splash")


def check(choice: str, dtype: str, head_dim: int) -> None:
    """Raises InputError for a kernel that does not support these heads."""
    if reason := _unsupported(choice, dtype, head_dim):
        raise InputError(f"attention={choice}: {reason}, or leave attention=auto")


def check_devices(choice: str, mesh: jax.sharding.Mesh) -> None:
    """Raises InputError for a kernel that the mesh's devices do not have."""
    device = mesh.devices.flat[0]
    if choice in ("cudnn", "splash") and choice != _native_kernel(device):
        required = {"cudnn": "an NVIDIA GPU of Ampere or newer", "splash": "a TPU"}[choice]
        raise InputError(
            f"model.attention={choice}: the kernel is for {required} and the mesh is of "
            f"{device.device_kind}; set model.attention=auto"
        )


def kernel(choice: str, dtype: str, head_dim: int) -> str:
    """The kernel of causal attention: "xla", "cudnn" or "splash".

    ``auto`` is the flash kernel of the mesh's devices (without a mesh, of the default backend) if
    it supports these heads, else XLA.
    """
    if choice != "auto":
        return choice
    device = jax.sharding.get_abstract_mesh().abstract_device or jax.devices()[0]
    native = _native_kernel(device)
    return "xla" if _unsupported(native, dtype, head_dim) else native


def _native_kernel(device) -> str:
    """The kernel made for a device."""
    if device.platform == "tpu":
        return "splash"
    if device.platform not in ("gpu", "cuda") or "nvidia" not in device.device_kind.lower():
        return "xla"
    # A mesh has the kinds of its devices; the devices have their compute capability.
    kinds = {known.device_kind: known for known in jax.devices()}
    capability = getattr(kinds.get(device.device_kind, device), "compute_capability", "8.0")
    return "cudnn" if float(capability) >= 8 else "xla"


def _unsupported(choice: str, dtype: str, head_dim: int) -> str:
    """Why a kernel does not support these heads, and what to set; "" if it does."""
    if choice == "cudnn" and dtype != "bfloat16":
        return f"cuDNN's kernel computes in bfloat16, not in {dtype}; set dtype=bfloat16"
    if choice == "cudnn" and (head_dim % 8 or head_dim > 128):
        return f"heads are multiples of 8 up to 128 wide, not {head_dim}; set attention=xla"
    if choice == "splash" and head_dim % 64:
        return f"heads are multiples of 64 wide, not {head_dim}; set attention=xla"
    return ""


def dense_mask(attend: jax.Array | tuple[jax.Array, jax.Array]) -> jax.Array:
    """attend_BSS, the explicit mask for any ``attend`` but None.

        mask      attend (rows are queries)
        0 1 1     1 0 0 | 0 1 0 | 0 1 1
        1 1 0     1 0 0 | 1 1 0 | 1 1 1

    Causal over real keys, plus the diagonal, so that no query, not even a padded one, has an empty
    softmax. In pair rows (``data.pairs.pad_pairs``) tokens see the common beginning, which has
    branch 0, and their own side's tail:

        branch    attend
        0 1 2     1 0 0 | 1 1 0 | 1 0 1
    """
    if isinstance(attend, tuple):
        mask_BS, branch_BS = attend
        query_BS1, key_B1S = branch_BS[:, :, None], branch_BS[:, None, :]
        return dense_mask(mask_BS) & ((key_B1S == 0) | (key_B1S == query_BS1))
    if attend.ndim == 3:
        return attend
    length = attend.shape[-1]
    causal_1SS = jnp.tri(length, dtype=bool)[None]
    diagonal_1SS = jnp.eye(length, dtype=bool)[None]
    return (causal_1SS & attend[:, None, :]) | diagonal_1SS


def self_attention(q_BSNH, k_BSKH, v_BSKH, attend, implementation: str) -> jax.Array:
    """Grouped-query attention of a sequence to itself, [B, S, N, H]; softmax in float32.

    ``attend`` has rank 2 or 3 for XLA, or is None; ``implementation`` comes from :func:`kernel`.
    """
    heads = q_BSNH, k_BSKH, v_BSKH
    if attend is None and implementation == "xla":
        attend = jnp.ones((1, q_BSNH.shape[1]), bool)
    if attend is not None:
        return plain_attention(*heads, dense_mask(attend))
    if implementation == "splash":
        return sharding.map_rows_and_heads(splash_attention, *heads)
    causal = functools.partial(
        jax.nn.dot_product_attention, is_causal=True, implementation=implementation
    )
    return sharding.map_rows_and_heads(causal, *heads)


def splash_attention(q_BSNH, k_BSKH, v_BSKH) -> jax.Array:
    """Causal attention by the Pallas kernel for TPUs, columns padded to its blocks."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    _, S, N, H = q_BSNH.shape
    width = S + -S % 128
    block = next(size for size in (512, 256, 128) if width % size == 0)
    blocks = ("q", "kv", "kv_compute", "q_dkv", "kv_dkv", "kv_dkv_compute", "q_dq", "kv_dq")
    attend = splash.make_splash_mha(
        masks.MultiHeadMask([masks.CausalMask((width, width))] * N),
        block_sizes=splash.BlockSizes(**{f"block_{name}": block for name in blocks}),
        head_shards=1,
        q_seq_shards=1,
    )
    pad = ((0, 0), (0, 0), (0, width - S), (0, 0))
    scaled_BSNH = q_BSNH * jnp.asarray(H**-0.5, q_BSNH.dtype)
    heads = (jnp.pad(x.swapaxes(1, 2), pad) for x in (scaled_BSNH, k_BSKH, v_BSKH))
    return jax.vmap(attend)(*heads)[:, :, :S].swapaxes(1, 2)


def plain_attention(q_BSNH, k_BSKH, v_BSKH, attend_BSS) -> jax.Array:
    """:func:`self_attention` in at most four blocks of queries, without keys after each block.

    This computes five eighths of all scores at best; causal attention needs half of them.
    """
    length = q_BSNH.shape[1]
    size = max(64, -(-length // 32) * 8)
    blocks = []
    for start in range(0, length, size):
        end = min(start + size, length)
        keys = k_BSKH[:, :end], v_BSKH[:, :end]
        blocks.append(block_attention(q_BSNH[:, start:end], *keys, attend_BSS[:, start:end, :end]))
    return jnp.concatenate(blocks, axis=1)


def block_attention(q_BQNH, k_BSKH, v_BSKH, attend_BQS) -> jax.Array:
    """Attention of a block of queries, as two products per row and key head, [B, Q, N, H].

    The G query heads that share a key head, with their Q columns, are the rows of one matrix.
    Softmax reads the product directly, so no array of size [Q, S] is transposed.
    """
    B, Q, N, H = q_BQNH.shape
    S, K = k_BSKH.shape[1:3]
    G = N // K
    q_BKGQH = q_BQNH.reshape(B, Q, K, G, H).transpose(0, 2, 3, 1, 4)
    q_BKXH = q_BKGQH.reshape(B, K, G * Q, H)
    k_BKSH, v_BKSH = (x.transpose(0, 2, 1, 3) for x in (k_BSKH, v_BSKH))
    score_BKXS = jnp.einsum("BKXH,BKSH->BKXS", q_BKXH, k_BKSH, preferred_element_type=jnp.float32)
    score_BKGQS = score_BKXS.reshape(B, K, G, Q, S) * H**-0.5
    score_BKGQS = jnp.where(attend_BQS[:, None, None], score_BKGQS, jnp.finfo(jnp.float32).min)
    weight_BKGQS = jax.nn.softmax(score_BKGQS, axis=-1).astype(v_BSKH.dtype)
    weight_BKXS = weight_BKGQS.reshape(B, K, G * Q, S)
    output_BKXH = jnp.einsum("BKXS,BKSH->BKXH", weight_BKXS, v_BKSH)
    return output_BKXH.reshape(B, K, G, Q, H).transpose(0, 3, 1, 2, 4).reshape(B, Q, N, H)


CACHE_AXES = (3, 2, 3, 2)  # axis of the columns in each array of a cache


def to_cache(k_BSKH, v_BSKH, int8: bool) -> tuple[jax.Array, ...]:
    """Columns of a cache: (k_BKHS, v_BKSH); with ``int8`` also (k_scale_BK1S, v_scale_BKS1).

    The last axis is the one that each product runs along: columns for keys, head width for values.
    In 8 bits, a head's vector of a token is integers up to 127 times one float32 scale.
    """
    heads = k_BSKH.transpose(0, 2, 3, 1), v_BSKH.swapaxes(1, 2)
    if not int8:
        return heads
    scales = tuple(
        jnp.max(jnp.abs(x), axis=axis, keepdims=True).astype(jnp.float32) / 127
        for x, axis in zip(heads, (2, 3), strict=True)
    )
    rounded = (jnp.round(x / jnp.maximum(s, 1e-30)) for x, s in zip(heads, scales, strict=True))
    return *(x.astype(jnp.int8) for x in rounded), *scales


def cached_attention(q_B1NH, cache: tuple[jax.Array, ...], attend_BS) -> jax.Array:
    """Attention of one query per row to a whole cache, [B, 1, N, H]; softmax in float32."""
    k_BKHS, v_BKSH = (x.astype(q_B1NH.dtype) for x in cache[:2])
    B, _, N, H = q_B1NH.shape
    K = k_BKHS.shape[1]
    q_BKGH = q_B1NH.reshape(B, K, N // K, H)
    score_BKGS = jnp.einsum("BKGH,BKHS->BKGS", q_BKGH, k_BKHS, preferred_element_type=jnp.float32)
    if scales := cache[2:]:
        score_BKGS *= scales[0]
    attend_B11S = attend_BS[:, None, None]
    score_BKGS = jnp.where(attend_B11S, score_BKGS * H**-0.5, jnp.finfo(jnp.float32).min)
    weight_BKGS = jax.nn.softmax(score_BKGS, axis=-1)
    if scales:
        weight_BKGS *= scales[1].swapaxes(2, 3)
    output_BKGH = jnp.einsum("BKGS,BKSH->BKGH", weight_BKGS.astype(v_BKSH.dtype), v_BKSH)
    return output_BKGH.reshape(B, 1, N, H)
