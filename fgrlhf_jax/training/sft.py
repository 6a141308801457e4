"""Supervised fine-tuning on demonstrations, with the loss on the response only."""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from fgrlhf_jax.data.bucketing import choose_buckets
from fgrlhf_jax.data.demonstrations import (
    Demonstration,
    encode_demonstrations,
    pad_demonstrations,
    response_widths,
)
from fgrlhf_jax.errors import InputError
from fgrlhf_jax.functional.masking import masked_sum
from fgrlhf_jax.models import hf_load, llama
from fgrlhf_jax.models.flops import logits_flops, rows_flops
from fgrlhf_jax.models.heads import CausalLM, positions_and_mask
from fgrlhf_jax.training import correction, policy
from fgrlhf_jax.training.logprobs import token_logprobs
from fgrlhf_jax.training.setup import set_up
from fgrlhf_jax.training.supervised import SupervisedTrainer


def run(config: ConfigDict, sets: dict[str, list], tokenizer=None) -> dict:
    """Trains, evaluates and exports as ``config`` (``configs/sft.py``) says, or resumes a run.

    Args:
      sets: records by name: instructions ``train`` and ``validation``; optionally ``edits``, whose
        edited sides are the responses of ``validation``.
      tokenizer: for random weights; None trains one on the training records.

    Returns:
      The content of ``eval.json``: {"validation": {"loss", "accuracy", "perplexity", "n"}}, and
      with edits "corrections", as ``correction.before_and_after``.

    Raises as ``training.run.run``, and InputError for an unusable config, data set or model.
    """
    if config.model.path:
        hf_load.check_language_model(config.model.path)
    setup, encoded = set_up(config, sets["train"], tokenizer), {}
    mesh, cfg, tokenizer, data = setup
    for name in ("train", "validation"):
        try:
            encoded[name], counts = encode_demonstrations(sets[name], tokenizer, **data)
        except InputError as error:
            raise InputError(f"{name}: {error}") from error
        print(f"{name}: " + ", ".join(f"{n} {label}" for label, n in counts.items()))
    edits = correction.encode_held_out(sets.get("edits", []), tokenizer, data)
    lengths = [row.length for rows in encoded.values() for row in rows]
    buckets = choose_buckets(lengths, config.data.buckets)
    trainer = make_trainer(config, mesh, CausalLM(cfg), *encoded.values(), buckets)
    return policy.run(config, trainer, setup, edits, with_perplexity)


def with_perplexity(metrics: dict) -> dict:
    """Adds perplexity, exp(loss), to the metrics."""
    metrics["perplexity"] = math.exp(min(metrics["loss"], 700.0))
    return metrics


def make_trainer(
    config: ConfigDict,
    mesh: Mesh,
    model: CausalLM,
    train: list[Demonstration],
    validation: list[Demonstration],
    buckets: tuple[int, ...],
) -> SupervisedTrainer:
    """Fine-tuning of ``model`` on demonstrations."""
    rows = [*train, *validation]
    starts = [row.prompt_length for row in rows]
    widths = response_widths([row.length for row in rows], starts, buckets)

    def pad(rows: list[Demonstration], width: int, size: int | None = None) -> dict:
        return pad_demonstrations(rows, width, size, widths[width])

    return SupervisedTrainer(
        *(config, mesh, model, train, [validation], buckets),
        pad=pad,
        **objective(model),
        flops=functools.partial(batch_flops, model.cfg),
    )


def batch_flops(cfg: llama.LlamaConfig, batch: dict) -> float:
    """Forward FLOPs for the real tokens of a host batch; logits for response tokens only."""
    layers = rows_flops(cfg, batch["mask_BS"].sum(axis=-1))
    return layers + logits_flops(cfg, _loss_mask(batch).sum())


def objective(model: CausalLM) -> dict[str, Callable]:
    """``losses`` and ``count`` for ``supervised.train_step``: the mean over response tokens."""
    losses = functools.partial(token_sums, model=model)
    return {"losses": losses, "count": lambda batch: jnp.sum(_loss_mask(batch))}


def token_sums(params: dict, batch: dict, *, model: CausalLM) -> tuple[jax.Array, dict]:
    """Sums over the response tokens of ``pad_demonstrations``' rows of weight 1, float32.

    They are the negative log-likelihood in nats, and ``accuracy``: the number of tokens that greedy
    decoding would take.
    """
    tokens_BS, columns_BT = batch["tokens_BS"], batch["columns_BT"]
    inputs = tokens_BS, *positions_and_mask(batch["mask_BS"])
    logprob_BT, is_likeliest_BT = token_logprobs(params, model, inputs, columns_BT - 1, columns_BT)
    mask_BT = _loss_mask(batch)
    return masked_sum(-logprob_BT, mask_BT), {"accuracy": masked_sum(is_likeliest_BT, mask_BT)}


def _loss_mask(batch: dict) -> jax.Array:
    """bool[..., B, T]: the response tokens of rows whose weight is above 0."""
    return batch["response_BT"] & (batch["weight_B"] > 0)[..., None]
