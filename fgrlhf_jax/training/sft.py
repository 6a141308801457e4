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
from fgrlhf_jax.models import hf_load, llama
from fgrlhf_jax.models.flops import logits_flops, rows_flops
from fgrlhf_jax.models.heads import CausalLM, positions_and_mask
from fgrlhf_jax.training import correction, policy
from fgrlhf_jax.training.logprobs import token_logprobs
from fgrlhf_jax.training.setup import set_up
from fgrlhf_jax.training.supervised import SupervisedTrainer


def run(config: ConfigDict, sets: dict[str, list], tokenizer=None) -> dict:
    """Trains, evaluates and exports as ``config`` says; resumes an interrupted run.

    Args:
      config: ``configs/sft.py``.
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
    trained = policy.train(config, trainer)
    metrics = trained.validation
    metrics["perplexity"] = math.exp(min(metrics["loss"], 700.0))
    return policy.finish(trainer, trained, setup, edits, metrics)


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

    def eval_step(params: dict, batch: dict) -> tuple[dict, jax.Array]:
        return token_sums(params, batch, model=model), batch["weight_B"]

    return SupervisedTrainer(
        *(config, mesh, model, train, [validation], buckets),
        pad=pad,
        **objective(model),
        eval_step=eval_step,
        flops=functools.partial(batch_flops, model.cfg),
    )


def batch_flops(cfg: llama.LlamaConfig, batch: dict) -> float:
    """Forward FLOPs for the real tokens of a host batch; logits for response tokens only."""
    layers = rows_flops(cfg, batch["mask_BS"].sum(axis=-1))
    return layers + logits_flops(cfg, _loss_mask(batch).sum())


def token_sums(params: dict, batch: dict, *, model: CausalLM) -> dict[str, jax.Array]:
    """Sums over the real response tokens of a batch: ``loss``, ``accuracy`` and ``tokens``.

    Args:
      batch: the arrays of ``pad_demonstrations``.

    Returns:
      float32 scalars: negative log-likelihood in nats, number of tokens that greedy decoding would
      take, number of tokens. Rows of weight 0 do not count.
    """
    tokens_BS, columns_BT = batch["tokens_BS"], batch["columns_BT"]
    inputs = tokens_BS, *positions_and_mask(batch["mask_BS"])
    logprob_BT, is_likeliest_BT = token_logprobs(params, model, inputs, columns_BT - 1, columns_BT)
    mask_BT = _loss_mask(batch)

    def total(x_BT):
        return jnp.sum(jnp.where(mask_BT, x_BT, 0.0))

    return {
        "loss": total(-logprob_BT),
        "accuracy": total(is_likeliest_BT),
        "tokens": total(jnp.float32(1)),
    }


def objective(model: CausalLM) -> dict[str, Callable]:
    """``losses`` and ``count`` for ``supervised.train_step``: the mean over response tokens."""

    def losses(params: dict, batch: dict) -> tuple[jax.Array, dict]:
        sums = token_sums(params, batch, model=model)
        return sums["loss"], {"accuracy": sums["accuracy"]}

    return {"losses": losses, "count": lambda batch: jnp.sum(_loss_mask(batch))}


def _loss_mask(batch: dict) -> jax.Array:
    """bool[..., B, T]: the response tokens of rows whose weight is above 0."""
    return batch["response_BT"] & (batch["weight_B"] > 0)[..., None]
