"""FLOPs that the mathematics of a model needs.

Forward: 2 per weight and token, plus 4 per head channel, query and key of the attention (both
halves of the square, as is usual). The backward pass adds twice as much. Norms, rotations and
scalar heads are not counted.
"""

import numpy as np

from fgrlhf_jax.models.llama import LlamaConfig


def forward_flops(cfg: LlamaConfig, tokens: float, pairs: float) -> float:
    """Forward FLOPs of all layers; ``pairs`` is the number of (query, attended key) pairs."""
    attention = 2 * cfg.hidden_size * cfg.head_dim * (cfg.num_heads + cfg.num_kv_heads)
    weights = cfg.num_layers * (attention + 3 * cfg.hidden_size * cfg.intermediate_size)
    return 2.0 * weights * tokens + 4.0 * cfg.num_layers * cfg.num_heads * cfg.head_dim * pairs


def rows_flops(cfg: LlamaConfig, lengths) -> float:
    """:func:`forward_flops` for rows in which every token attends to every other."""
    lengths = np.asarray(lengths, float)
    return forward_flops(cfg, lengths.sum(), (lengths**2).sum())


def pair_flops(cfg: LlamaConfig, batch: dict) -> float:
    """:func:`forward_flops` for ``pairs.pad_pairs``: tokens attend to those of their own side."""
    branches = (batch["mask_BS"] & (batch["branch_BS"] == branch) for branch in range(3))
    common, rest_i, rest_j = (branch_BS.sum(axis=-1, dtype=float) for branch_BS in branches)
    attended = (common + rest_i) ** 2 + (common + rest_j) ** 2 - common**2
    return forward_flops(cfg, batch["mask_BS"].sum(), attended.sum())


def logits_flops(cfg: LlamaConfig, tokens: float) -> float:
    """FLOPs of the language model's head, forward."""
    return 2.0 * cfg.hidden_size * cfg.vocab_size * tokens


def decoding_flops(cfg: LlamaConfig, prompts, responses) -> float:
    """FLOPs of sampling; the last token of a response is never an input."""
    prompts, responses = np.asarray(prompts, float), np.asarray(responses, float)
    ends = prompts + responses
    pairs = (ends * (ends - 1) - prompts * (prompts + 1)) / 2  # P + 1, …, P + T - 1
    layers = forward_flops(cfg, (ends - 1).sum(), (prompts**2 + pairs).sum())
    return layers + logits_flops(cfg, responses.sum())
