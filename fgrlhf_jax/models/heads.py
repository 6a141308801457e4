"""The models: heads on LLaMA's states give a language model's logits, or one number per token."""

import functools
import re

import jax
import jax.numpy as jnp
from flax import linen as nn

from fgrlhf_jax.models import lora
from fgrlhf_jax.models.dense import flat_product, logits_product
from fgrlhf_jax.models.llama import Llama, LlamaConfig
from fgrlhf_jax.runtime import sharding


def positions_and_mask(mask_BS: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Position ids that count real tokens only, and the mask: the arguments of every model.

        mask      positions
        0 1 1     0 0 1
        1 1 0     0 1 1

    positions_BS are int32. The mask, bool, is True on real tokens; as ``attend`` it means causal
    attention to them, see :mod:`fgrlhf_jax.models.attention`.
    """
    positions_BS = jnp.maximum(jnp.cumsum(mask_BS, axis=-1, dtype=jnp.int32) - 1, 0)
    return positions_BS, mask_BS.astype(bool)


class LogitsHead(nn.Module):
    """The head of a language model that does not share its embedding."""

    cfg: LlamaConfig

    @nn.compact
    def __call__(self, hidden_BSD):
        init, shape = nn.initializers.normal(self.cfg.initializer_range), hidden_BSD.shape[-1:]
        kernel_DV = self.param("kernel", init, (*shape, self.cfg.vocab_size))
        return logits_product(hidden_BSD, kernel_DV, 0)


class CausalLM(nn.Module):
    """Next-token logits_BSV, float32; the head is the embedding if the config ties them."""

    cfg: LlamaConfig

    def setup(self):
        cfg = self.cfg
        self.backbone = Llama(cfg)
        if not cfg.tie_embeddings:
            self.lm_head = LogitsHead(cfg)

    def __call__(self, tokens_BS, positions_BS, attend) -> jax.Array:
        return self.next_tokens(self.backbone(tokens_BS, positions_BS, attend))

    def next_tokens(self, hidden_BSD: jax.Array) -> jax.Array:
        """Logits for the backbone's states."""
        if not self.cfg.tie_embeddings:
            return self.lm_head(hidden_BSD)
        return logits_product(hidden_BSD, self.backbone.embed.embedding, 1)


HEADS = ("after", "state_action", "action")


def state_before(x_BSD: jax.Array, previous_BS: jax.Array | None) -> jax.Array:
    """The state at the previous token: in column ``previous_BS`` if given, else one to the left."""
    if previous_BS is None:
        return jnp.pad(x_BSD, ((0, 0), (1, 0), (0, 0)))[:, :-1]
    return jnp.take_along_axis(x_BSD, previous_BS[:, :, None], axis=1)


class ScalarHead(nn.Module):
    """One number per token, by one of three values of ``kind``:

    "after"         v . h_t + b                                 from the state after a_t
    "state_action"  v . h_t + w . (h_{t-1} * U[a_t]) + b        from the states after and before it
    "action"        (h_{t-1} W) . U[a_t] + b                    from the state before it only

    w and W (gate) start at zero; U (unembed) should be the language model's head, if there is one.
    The previous token is in column ``previous_BS`` if given, else one column to the left.
    """

    cfg: LlamaConfig
    kind: str
    use_bias: bool

    def setup(self):
        vocab, width = self.cfg.vocab_size, self.cfg.hidden_size
        zeros, normal = nn.initializers.zeros_init(), nn.initializers.normal
        if self.kind != "action":
            # 1/sqrt(D + 1) is a standard deviation (Stiennon et al. 2020, arXiv:2009.01325).
            self.kernel_D1 = self.param("kernel", normal((width + 1) ** -0.5), (width, 1))
        if self.use_bias:
            self.bias_1 = self.param("bias", zeros, (1,))
        if self.kind != "after":
            shape = (width, width) if self.kind == "action" else (width,)
            self.gate = self.param("gate", zeros, shape)
            self.unembed_VD = self.param("unembed", normal(width**-0.5), (vocab, width))

    def __call__(self, hidden_BSD, tokens_BS, positions_BS, previous_BS=None):
        hidden_BSD = hidden_BSD.astype(jnp.float32)
        einsum = functools.partial(jnp.einsum, precision="highest")
        value_BS = self.bias_1[None] if self.use_bias else jnp.zeros((1, 1))
        if self.kind != "action":
            value_BS += einsum("BSD,DO->BS", hidden_BSD, self.kernel_D1)
        if self.kind != "after":
            previous_BSD = state_before(self.gated(hidden_BSD), previous_BS)
            action_BSD = sharding.look_up(self.unembed_VD, tokens_BS)
            chosen_BS = einsum("BSD,BSD->BS", previous_BSD, action_BSD)
            # Before the first real token there is nothing, or padding.
            value_BS += jnp.where(positions_BS > 0, chosen_BS, 0.0)
        return value_BS

    def gated(self, hidden_BSD: jax.Array) -> jax.Array:
        """The vectors whose product with U[a] scores the next token a."""
        if self.kind == "state_action":
            return hidden_BSD * self.gate[None, None]
        return flat_product(hidden_BSD, self.gate, 0, precision="highest")

    def action_rewards(self, hidden_BSD: jax.Array) -> jax.Array:
        """r_BSV, the reward that every next token would get in each state, float32.

        For "state_action" without v . h_t, which depends on the state after the token.
        """
        gated_BSD = self.gated(hidden_BSD.astype(jnp.float32))
        reward_BSV = flat_product(gated_BSD, self.unembed_VD, 1, precision="highest")
        return reward_BSV + self.bias_1[None, None] if self.use_bias else reward_BSV


class TokenValueModel(nn.Module):
    """One number per token, value_BS float32: the reward of every action, or a critic's value.

    The module of reward models and critics (``reward_model.scorer.RewardModel`` adds weights).
    ``kind`` selects the :class:`ScalarHead`. If ``bounded``, the head's v is the logit of a
    probability D, and the value is 2 D - 1 = tanh(v / 2).
    """

    cfg: LlamaConfig
    kind: str = "after"
    use_bias: bool = True
    bounded: bool = False

    def setup(self):
        if self.kind not in HEADS:
            raise ValueError(f"head {self.kind!r} is none of {HEADS}")
        self.backbone = Llama(self.cfg)
        self.head = ScalarHead(self.cfg, self.kind, self.use_bias)

    def __call__(self, tokens_BS, positions_BS, attend, previous_BS=None) -> jax.Array:
        hidden_BSD = self.backbone(tokens_BS, positions_BS, attend)
        return self._bound(self.head(hidden_BSD, tokens_BS, positions_BS, previous_BS))

    def next_tokens(self, hidden_BSD: jax.Array) -> jax.Array:
        """r_BSV, the reward that every next token would get in the backbone's states."""
        return self._bound(self.head.action_rewards(hidden_BSD))

    def _bound(self, value: jax.Array) -> jax.Array:
        return jnp.tanh(value / 2) if self.bounded else value


def embed(model: CausalLM | TokenValueModel, tokens_BS: jax.Array) -> jax.Array:
    """hidden_BSD before the first block; a ``method`` for ``model.apply``, as is the next."""
    return model.backbone.look_up(tokens_BS)


def finish(model: CausalLM | TokenValueModel, hidden_BSD: jax.Array) -> jax.Array:
    """The model's ``next_tokens`` for outputs of the last block."""
    return model.next_tokens(model.backbone.norm(hidden_BSD).astype(model.cfg.dtype))


def next_tokens_at(
    model: CausalLM | TokenValueModel, params: dict, inputs: tuple, columns_BT: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The states in some columns, hidden_BTD, and the model's ``next_tokens`` in these, [B, T, V].

    ``params`` may have an adapter. ``inputs`` are the model's arguments tokens_BS, positions_BS and
    attend; ``columns_BT`` int32.
    """

    def read(model):
        hidden_BSD = model.backbone(*inputs)
        hidden_BTD = jnp.take_along_axis(hidden_BSD, columns_BT[..., None], axis=1)
        return hidden_BTD, model.next_tokens(hidden_BTD)

    return nn.apply(read, model)(lora.variables(params))


# The parameters that a model casts to its compute dtype wherever it uses them; all others, norms
# and scalar heads, are used in float32.
_CAST = re.compile(r"(^|/)(embed/embedding|lm_head/kernel|(q|k|v|o|gate|up|down)/(kernel|bias))$")


def compute_dtypes(model: CausalLM | TokenValueModel, params: dict) -> dict:
    """The compute dtype of each of ``params`` in ``model``.

    Parameters stored in these dtypes give bit-identical results to float32 storage.
    """
    return jax.tree.map_with_path(
        lambda path, _: jnp.dtype(
            model.cfg.dtype if _CAST.search(sharding.path_name(path)) else jnp.float32
        ),
        params,
    )


@functools.cache
def parameter_shapes(model) -> dict:
    """Shapes and dtypes of ``model``'s parameters, traced once and cached; do not modify."""
    row = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    positions, attend = jax.eval_shape(positions_and_mask, row)
    return jax.eval_shape(model.init, jax.random.key(0), row, positions, attend)["params"]


def abstract_params(model, mesh: jax.sharding.Mesh) -> dict:
    """Shapes, dtypes and shardings of ``model``'s parameters; allocates nothing."""
    return sharding.abstract(parameter_shapes(model), mesh)
