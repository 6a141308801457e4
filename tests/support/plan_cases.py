"""Small configs for plans; parameters and FLOPs of their models by independent formulas."""

from configs import ppo
from fgrlhf_jax.models import llama
from fgrlhf_jax.models.sizes import SIZES

TINY = SIZES["tiny"]
B, P, T, EPOCHS = 16, 8, 12, 2


def ppo_config(**fields):
    config = ppo.get_config("tiny")
    sizes = {"rollout_batch_size": B, "minibatch_size": 8, "ppo_epochs": EPOCHS, "mesh": "8,1,1"}
    sizes |= {"data.max_prompt_length": P, "data.max_new_tokens": T}
    config.update_from_flattened_dict(sizes | fields)
    return config


def numbers(cfg: llama.LlamaConfig, vocabularies: int) -> int:
    """Parameters: matrices and norms of every layer, the last norm, and [V, D] tables."""
    D, F, H = cfg.hidden_size, cfg.intermediate_size, cfg.head_dim
    attention = D * cfg.num_heads * H * 2 + D * cfg.num_kv_heads * H * 2
    layers = cfg.num_layers * (attention + 3 * D * F + 2 * D)
    return layers + D + vocabularies * cfg.vocab_size * D


def row_flops(cfg: llama.LlamaConfig, keys: list[int], logits: int) -> float:
    """FLOPs of a row: ``keys`` has each token's number of visible keys, ``logits`` a count."""
    D, N, K, H = cfg.hidden_size, cfg.num_heads, cfg.num_kv_heads, cfg.head_dim
    layer = 0
    for seen in keys:
        layer += 2 * D * (N * H) + 2 * 2 * D * (K * H) + 2 * (N * H) * D  # q, k and v, o
        layer += 3 * 2 * D * cfg.intermediate_size  # gate, up, down
        layer += N * (2 * H * seen + 2 * seen * H)  # scores, weighted values
    return cfg.num_layers * layer + logits * 2 * D * cfg.vocab_size
