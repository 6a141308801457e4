"""Tables of tensor and config-field names: this project's, Hugging Face's and GGUF's."""

import contextlib
import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fgrlhf_jax.errors import InputError

INDEX = "model.safetensors.index.json"
SIDECAR = "head.safetensors"  # tensors without a place in transformers' classes
# Unknown to transformers on purpose: otherwise it would load the rest and give wrong rewards.
STATE_ACTION_TYPE = "fgrlhf_state_action_reward"
_SCALE, _DENSE = [("scale", "weight")], [("kernel", "weight"), ("bias", "bias")]
# Ours, Hugging Face's, GGUF's. A kernel is [in, out] here and [out, in] in the others; a row
# with {} is one tensor per layer in the others and one stacked array here.
TENSOR_NAMES = (
    ("backbone/embed/embedding", "model.embed_tokens.weight", "token_embd.weight"),
    ("backbone/norm/scale", "model.norm.weight", "output_norm.weight"),
    ("lm_head/kernel", "lm_head.weight", "output.weight"),
    ("head/kernel", "score.weight", ""),
    ("head/bias", "score.bias", ""),
    ("head/gate", "head.gate", ""),
    ("head/unembed", "head.unembed", ""),
    *(
        (
            f"backbone/layers/{path}/{leaf}",
            f"model.layers.{{}}.{stored}.{part}",
            f"blk.{{}}.{gguf}.{part}",
        )
        for path, stored, gguf, parts in (
            ("attention_norm", "input_layernorm", "attn_norm", _SCALE),
            ("mlp_norm", "post_attention_layernorm", "ffn_norm", _SCALE),
            ("attention/q", "self_attn.q_proj", "attn_q", _DENSE),
            ("attention/k", "self_attn.k_proj", "attn_k", _DENSE),
            ("attention/v", "self_attn.v_proj", "attn_v", _DENSE),
            ("attention/o", "self_attn.o_proj", "attn_output", _DENSE),
            ("mlp/gate", "mlp.gate_proj", "ffn_gate", _DENSE),
            ("mlp/up", "mlp.up_proj", "ffn_up", _DENSE),
            ("mlp/down", "mlp.down_proj", "ffn_down", _DENSE),
        )
        for leaf, part in parts
    ),
)
HF_NAME = {path: stored for path, stored, _ in TENSOR_NAMES}
# The linear layers of a block, which may have adapters: ours, Hugging Face's.
LINEAR = {
    path.split("/", 2)[2].removesuffix("/kernel"): stored.split(".{}.")[1].removesuffix(".weight")
    for path, stored in HF_NAME.items()
    if path.startswith("backbone/layers/") and path.endswith("/kernel")
}
HF_NAME |= {
    f"lora/backbone/layers/{path}/lora_{x.lower()}": f"model.layers.{{}}.{stored}.lora_{x}.weight"
    for path, stored in LINEAR.items()
    for x in "AB"
}

# LlamaConfig's field: (config.json's, its type, its default; None: required).
CONFIG_FIELDS = {
    "vocab_size": ("vocab_size", int, None),
    "hidden_size": ("hidden_size", int, None),
    "intermediate_size": ("intermediate_size", int, None),
    "num_layers": ("num_hidden_layers", int, None),
    "num_heads": ("num_attention_heads", int, None),
    "norm_eps": ("rms_norm_eps", float, 1e-6),
    "max_position": ("max_position_embeddings", int, 2048),
    "tie_embeddings": ("tie_word_embeddings", bool, False),
    "attention_bias": ("attention_bias", bool, False),
    "mlp_bias": ("mlp_bias", bool, False),
    "initializer_range": ("initializer_range", float, 0.02),
}
# RopeScaling's, likewise.
ROPE_FIELDS = {
    **{name: (name, float, None) for name in ("factor", "low_freq_factor", "high_freq_factor")},
    "original_max_position": ("original_max_position_embeddings", int, None),
}


def read_fields(config: dict, fields: dict) -> dict:
    """LlamaConfig's fields from config.json's; errors as for :func:`read_number`."""
    return {field: read_number(config, *spec) for field, spec in fields.items()}


def read_number(config: dict, name: str, kind: type, default: float | None = None) -> Any:
    """A number or bool from config.json; null counts as missing.

    Raises KeyError if it is missing and has no default, and ValueError for a value of another type,
    such as the text "false" or 2.5 heads.
    """
    value = default if config.get(name) is None else config[name]
    if value is None:
        raise KeyError(name)
    if isinstance(value, bool) != (kind is bool) or not isinstance(value, int | float):
        raise ValueError(f"{name}={value!r:.60} is no {kind.__name__}")
    if not math.isfinite(value) or kind(value) != value:
        raise ValueError(f"{name}={value!r:.60} is no finite {kind.__name__}")
    return kind(value)


def write_fields(source: object, fields: dict) -> dict:
    """config.json's fields from LlamaConfig's."""
    return {name: getattr(source, field) for field, (name, _, _) in fields.items()}


@dataclasses.dataclass(frozen=True)
class Stored:
    """A tensor on disk: its shape, and a function that reads it into new memory."""

    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]


def is_stacked(param: str) -> bool:
    """Whether the array stacks all layers, which are stored as one tensor each."""
    return "{}" in HF_NAME[param]


def is_transposed(param: str) -> bool:
    """Whether the tensor is stored as [out, in]."""
    return param.endswith(("kernel", "lora_a", "lora_b"))


def stored_names(param: str, shape: tuple[int, ...]) -> list[str]:
    """The Hugging Face tensors that make up one of our arrays."""
    name = HF_NAME[param]
    return [name.format(i) for i in range(shape[0])] if is_stacked(param) else [name]


def stored_shape(param: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The stored shape of each of these tensors."""
    shape = shape[1:] if is_stacked(param) else shape
    return shape[::-1] if is_transposed(param) else shape


@contextlib.contextmanager
def as_input_error(file: Path, problem: str):
    """Turns the many exceptions that libraries raise about a file into one InputError."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        detail = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise InputError(f"{file}: {problem} ({detail}); use a sound copy") from error
