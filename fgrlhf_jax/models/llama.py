"""The backbone of LLaMA in Flax Linen: token ids to hidden states, which models/heads.py reads.

Covers LLaMA-1/2/3, TinyLlama, SmolLM2 and relatives: RMSNorm, rotary positions, grouped-query
attention, SwiGLU (Touvron et al. 2023, arXiv:2302.13971 and 2307.09288; Ainslie et al. 2023,
arXiv:2305.13245). Parameters are float32 and always stacked over the layers. The compute dtype is a
config field; norms, rotary angles, softmax and scalar heads are always float32, and logits are
float32 sums of products in the compute dtype.

Shape suffixes, here and everywhere in this package:

    B batch             N query heads       F hidden width of the MLP
    S sequence          K key/value heads   V vocabulary
    T response          H head width        L layers
    P prompt            D model width       2 the two sides of a pair

Masks are True on real tokens. Sequences may be padded on either side: the results of real tokens
depend neither on the position of the padding nor on its content.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.models import attention
from fgrlhf_jax.models.dense import Dense
from fgrlhf_jax.runtime import sharding


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Llama-3.1's scaling of low rotary frequencies for more than ``original_max_position``."""

    factor: float = 8.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position: int = 8192


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
    """The architecture of a model, and how it is computed.

    Raises ValueError for inconsistent sizes.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    norm_eps: float = 1e-5
    max_position: int = 2048
    tie_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    initializer_range: float = 0.02

    dtype: str = "float32"
    remat: bool = False  # recompute each block in the backward pass
    scan_layers: bool = True  # False unrolls the same parameters: slower to compile
    attention: str = "auto"  # one of attention.CHOICES
    float32_gradients: bool = False  # gradients of matrices, before they are summed over devices
    lora_scale: float = 1.0  # factor of an adapter's products, see models/lora.py

    def __post_init__(self):
        sizes = (
            "vocab_size hidden_size intermediate_size num_layers num_heads num_kv_heads head_dim"
        )
        for name in (*sizes.split(), "max_position", "norm_eps", "rope_theta"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)} must be above 0")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"{self.num_heads=} is not a multiple of {self.num_kv_heads=}")
        if self.head_dim % 2:
            raise ValueError(f"{self.head_dim=} must be even, for rotary positions")
        if self.attention not in attention.CHOICES:
            raise ValueError(f"attention={self.attention!r} is none of {attention.CHOICES}")
        attention.check(self.attention, self.dtype, self.head_dim)

    @property
    def kernel(self) -> str:
        """The kernel of causal attention, see :func:`attention.kernel`."""
        return attention.kernel(self.attention, self.dtype, self.head_dim)


def dtype_name(dtype: str | jnp.dtype) -> str:
    """The name of a compute dtype, which may also be given as ``jnp.bfloat16``.

    Raises InputError for dtypes that models do not support.
    """
    name = dtype if isinstance(dtype, str) else jnp.dtype(dtype).name
    if name not in ("float32", "bfloat16"):
        raise InputError(f"dtype={name!r}: is not one of float32, bfloat16")
    return name


def inverse_frequencies(cfg: LlamaConfig) -> jax.Array:
    """Rotary frequencies [H/2], float32, theta^(-2i/H) (Su et al. 2021, arXiv:2104.09864).

    With ``rope_scaling`` (Llama 3.1) wavelengths above original/low_freq_factor grow by ``factor``,
    those below original/high_freq_factor stay, and those between are interpolated.
    """
    exponent = jnp.arange(0, cfg.head_dim, 2, dtype=jnp.float32) / cfg.head_dim
    frequency = cfg.rope_theta**-exponent
    if cfg.rope_scaling is None:
        return frequency
    low, high = cfg.rope_scaling.low_freq_factor, cfg.rope_scaling.high_freq_factor
    turns = cfg.rope_scaling.original_max_position * frequency / (2 * math.pi)
    weight = jnp.clip((turns - low) / (high - low), 0.0, 1.0)
    return weight * frequency + (1 - weight) * frequency / cfg.rope_scaling.factor


def rotary_tables(cfg: LlamaConfig, positions_BS: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Cosine and sine of every rotary angle, each float32 [B, S, 1, H/2] (1 for the heads)."""
    angle_BS1h = positions_BS[:, :, None, None] * inverse_frequencies(cfg)[None, None, None]
    return jnp.cos(angle_BS1h), jnp.sin(angle_BS1h)


def rotate(x_BSNH: jax.Array, rope: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotates the pairs (i, i + H/2), Hugging Face's half-split layout; keeps the dtype."""
    cos_BS1h, sin_BS1h = rope
    a, b = jnp.split(x_BSNH.astype(jnp.float32), 2, axis=-1)
    rotated = (a * cos_BS1h - b * sin_BS1h, b * cos_BS1h + a * sin_BS1h)
    return jnp.concatenate(rotated, axis=-1).astype(x_BSNH.dtype)


def _dense(cfg: LlamaConfig, width: int, use_bias: bool) -> Dense:
    init = nn.initializers.normal(cfg.initializer_range)
    return Dense(width, use_bias, cfg.dtype, init, cfg.float32_gradients, cfg.lora_scale)


def rms_norm(cfg: LlamaConfig) -> nn.RMSNorm:
    return nn.RMSNorm(epsilon=cfg.norm_eps, dtype=jnp.float32)


class Attention(nn.Module):
    """Grouped-query self-attention with rotary positions, hidden_BSD -> [B, S, D].

    With an empty ``cache``, (), it also returns (k_BSKH, v_BSKH) of hidden_BSD, to build one from.
    With arrays of ``attention.to_cache`` and a ``column`` it writes hidden_B1D there, ``attend`` is
    attend_BS over the cache's columns, and it also returns the new arrays.
    """

    cfg: LlamaConfig

    def setup(self):
        cfg = self.cfg
        self.q = _dense(cfg, cfg.num_heads * cfg.head_dim, cfg.attention_bias)
        self.k = _dense(cfg, cfg.num_kv_heads * cfg.head_dim, cfg.attention_bias)
        self.v = _dense(cfg, cfg.num_kv_heads * cfg.head_dim, cfg.attention_bias)
        self.o = _dense(cfg, cfg.hidden_size, cfg.attention_bias)

    def __call__(self, hidden_BSD, rope, attend, cache=None):
        batch, length, _ = hidden_BSD.shape
        heads = (batch, length, -1, self.cfg.head_dim)
        q_BSNH = rotate(self.q(hidden_BSD).reshape(heads), rope)
        k_BSKH = rotate(self.k(hidden_BSD).reshape(heads), rope)
        v_BSKH = self.v(hidden_BSD).reshape(heads)
        if not cache:
            cached = None if cache is None else (k_BSKH, v_BSKH)
            output_BSNH = attention.self_attention(q_BSNH, k_BSKH, v_BSKH, attend, self.cfg.kernel)
        else:
            *arrays, column = cache
            columns = attention.to_cache(k_BSKH, v_BSKH, int8=len(arrays) == 4)
            cached = tuple(
                jax.lax.dynamic_update_slice_in_dim(x, new, column, axis)
                for x, new, axis in zip(arrays, columns, attention.CACHE_AXES, strict=False)
            )
            # Attention reads the written arrays: else the compiler may write the column twice, and
            # for a CPU it copies a whole bfloat16 cache per token.
            cached = jax.lax.optimization_barrier(cached)
            output_BSNH = attention.cached_attention(q_BSNH, cached, attend)
        output_BSD = checkpoint_name(output_BSNH.reshape(batch, length, -1), "attention")
        return self.o(output_BSD), cached


class MLP(nn.Module):
    """SwiGLU: down(silu(gate x) * up x), hidden_BSD -> [B, S, D]."""

    cfg: LlamaConfig

    def setup(self):
        self.gate = _dense(self.cfg, self.cfg.intermediate_size, self.cfg.mlp_bias)
        self.up = _dense(self.cfg, self.cfg.intermediate_size, self.cfg.mlp_bias)
        self.down = _dense(self.cfg, self.cfg.hidden_size, self.cfg.mlp_bias)

    def __call__(self, hidden_BSD):
        return self.down(nn.silu(self.gate(hidden_BSD)) * self.up(hidden_BSD))


class Block(nn.Module):
    """One pre-norm layer: the state after it, and with a ``cache`` the (k, v) of it."""

    cfg: LlamaConfig

    def setup(self):
        self.attention_norm = rms_norm(self.cfg)
        self.attention = Attention(self.cfg)
        self.mlp_norm = rms_norm(self.cfg)
        self.mlp = MLP(self.cfg)

    def __call__(self, hidden_BSD, rope, attend, cache=None):
        dtype = hidden_BSD.dtype
        hidden_BSD = sharding.constrain(hidden_BSD)
        normed_BSD = self.attention_norm(hidden_BSD).astype(dtype)
        output_BSD, cached = self.attention(normed_BSD, rope, attend, cache)
        hidden_BSD += output_BSD
        hidden_BSD += self.mlp(self.mlp_norm(hidden_BSD).astype(dtype))
        return hidden_BSD, cached


def _is_saveable(primitive, *args, **params) -> bool:
    """Whether a value of scanned layers is stored for the backward pass, or recomputed there.

    Stored are products with weights and the outputs of attention. Its [S, S] scores and elementwise
    results are recomputed, which is faster than writing them to memory and reading them.
    """
    names = ("name", "dot_product_attention_fwd_wrapper", "pallas_call")
    dense = jax.checkpoint_policies.dots_with_no_batch_dims_saveable(primitive, *args, **params)
    return primitive.name in names or dense


class Llama(nn.Module):
    """The backbone: token ids to the states after the final norm."""

    cfg: LlamaConfig

    def setup(self):
        cfg = self.cfg
        init = nn.initializers.normal(cfg.initializer_range)
        self.embed = nn.Embed(cfg.vocab_size, cfg.hidden_size, dtype=cfg.dtype, embedding_init=init)
        block = Block
        if cfg.remat or cfg.scan_layers:
            # Inside a scan common-subexpression elimination cannot undo remat: no guard needed.
            policy = None if cfg.remat else _is_saveable
            block = nn.remat(Block, prevent_cse=not cfg.scan_layers, policy=policy)
        self.layers = nn.scan(
            block,
            variable_axes={"params": 0, "lora": 0},
            split_rngs={"params": True},
            in_axes=(nn.broadcast, nn.broadcast),
            length=cfg.num_layers,
            unroll=1 if cfg.scan_layers else cfg.num_layers,
        )(cfg)
        self.norm = rms_norm(cfg)

    def __call__(self, tokens_BS, positions_BS, attend) -> jax.Array:
        """hidden_BSD in the compute dtype; the arguments as from ``heads.positions_and_mask``.

        ``attend`` may also be any other of :mod:`fgrlhf_jax.models.attention`, but None.
        """
        is_mask = not isinstance(attend, tuple) and attend.ndim == 2
        flash = is_mask and self.cfg.kernel != "xla"
        if flash:
            # Flash kernels are causal only: padding moves to where no real token sees it.
            order_BS = jnp.argsort(~attend, axis=1, stable=True)
            tokens_BS, positions_BS = (
                jnp.take_along_axis(x, order_BS, axis=1) for x in (tokens_BS, positions_BS)
            )
        hidden_BSD = self.look_up(tokens_BS)
        rope = rotary_tables(self.cfg, positions_BS)
        attend = None if flash else attention.dense_mask(attend)  # once, not in every layer
        hidden_BSD, _ = self.layers(hidden_BSD, rope, attend)
        if flash:
            hidden_BSD = jax.vmap(lambda x_SD, inverse_S: x_SD[inverse_S])(
                hidden_BSD, jnp.argsort(order_BS, axis=1)
            )
        return self.norm(hidden_BSD).astype(self.cfg.dtype)

    def look_up(self, tokens_BS: jax.Array) -> jax.Array:
        """hidden_BSD before the first block."""
        table = self.embed.embedding
        if not self.cfg.float32_gradients:
            table = table.astype(self.cfg.dtype)
        return sharding.look_up(table, tokens_BS).astype(self.cfg.dtype)
