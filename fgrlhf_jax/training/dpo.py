"""Learning from pairs without a reward model: DPO, dense DPO, SALT and FIGA.

The two sides of a pair share their common beginning, as in the rows of reward models. The reference
is the policy that training starts from. Its log-probabilities of the pairs are computed once,
before the first update, and saved with the run, so that no second model is held.
"""

import functools
from itertools import chain

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from fgrlhf_jax.data.bucketing import choose_buckets, fill_batch
from fgrlhf_jax.data.demonstrations import response_widths
from fgrlhf_jax.data.pairs import Pair, encode_by_kind, pad_pairs, print_preference_note
from fgrlhf_jax.functional.preference_losses import (
    WITH_REFERENCE,
    PreferenceSettings,
    TokenWeights,
    preference_loss,
)
from fgrlhf_jax.models import hf_load, llama
from fgrlhf_jax.models.flops import logits_flops, pair_flops
from fgrlhf_jax.models.heads import CausalLM
from fgrlhf_jax.models.sizes import SIZES
from fgrlhf_jax.training import policy
from fgrlhf_jax.training.logprobs import token_logprobs
from fgrlhf_jax.training.setup import set_up
from fgrlhf_jax.training.supervised import SupervisedTrainer


def run(config: ConfigDict, sets: dict[str, list], tokenizer=None) -> dict:
    """Trains, evaluates and exports as ``config`` (``configs/dpo.py``) says, or resumes a run.

    Args:
      sets: edits and preferences by name: ``train`` and ``validation``.
      tokenizer: not used; the policy has its own.

    Returns:
      The content of ``eval.json``: {"validation": {"loss", "accuracy", …, "n"}}, see
      ``preference_losses.preference_loss``, and for edits "corrections", as
      ``correction.before_and_after``.

    Raises as ``training.run.run``, and InputError for an unusable config, data set or model.
    """
    hf_load.check_language_model(config.policy)
    settings = supervised_config(config)
    settings.data.template = hf_load.resolve_template(
        config.policy, hf_load.load_tokenizer(config.policy), config.data.template
    )
    setup = set_up(settings, [])
    mesh, cfg, tokenizer, data = setup
    kinds = {name: encode_by_kind(rows, name, tokenizer, data) for name, rows in sets.items()}
    if config.loss != "dpo":
        print_preference_note(kinds["train"])
    train, validation = ([*chain(*kinds[name].values())] for name in ("train", "validation"))
    buckets = choose_buckets([pair.length for pair in train + validation], config.data.buckets)
    trainer = make_trainer(settings, mesh, CausalLM(cfg), train, validation, buckets)
    return policy.run(config, trainer, setup, kinds["validation"].get("edits", []), card_figures)


def card_figures(metrics: dict) -> dict:
    """The metrics by a card's names for them, since they are not of tokens."""
    names = {"loss": "pair_loss", "accuracy": "preferred"}
    return {names.get(name, name): value for name, value in metrics.items()}


def supervised_config(config: ConfigDict) -> ConfigDict:
    """A copy with the fields that ``supervised`` reads from configs with random weights too."""
    config = config.copy_and_resolve_references().unlock()
    vocab_size = SIZES[config.model.size].vocab_size  # where a plan has no path
    config.model.update({"path": config.policy, "tokenizer": "", "vocab_size": vocab_size})
    return config


def make_trainer(
    config: ConfigDict,
    mesh: Mesh,
    model: CausalLM,
    train: list[Pair],
    validation: list[Pair],
    buckets: tuple[int, ...],
) -> SupervisedTrainer:
    """Training of ``model`` on pairs; ``config`` is one of :func:`supervised_config`."""
    dense, weights = config.dense, TokenWeights(**config.weights)
    settings = PreferenceSettings(
        config.loss, config.beta, dense.gamma, dense.normalize, weights, config.figa_limit
    )
    rows = [*train, *validation]
    starts = [first_column(pair) for pair in rows]
    widths = response_widths([pair.length for pair in rows], starts, buckets)

    @functools.cache
    def references() -> dict[Pair, np.ndarray]:
        """float32[2, 2] of each pair, from :func:`reference_logprobs`."""
        return dict(zip(rows, np.float32(trainer.memory["reference"]), strict=True))

    def pad(pairs: list[Pair], width: int, size: int | None = None) -> dict[str, np.ndarray]:
        batch = pad_pairs(pairs, width, size)
        pairs, _ = fill_batch(pairs, size)
        columns_BT = np.array([first_column(pair) for pair in pairs])[:, None]
        columns_BT = columns_BT + np.arange(widths[width])
        batch["columns_BT"] = np.minimum(columns_BT, width - 1).astype(np.int32)
        batch["response_B2S"][..., 0] = False  # a token with nothing before it
        logprobs = references() if "reference" in trainer.memory else {}
        missing = np.zeros((2, 2), np.float32)
        batch["reference_B22"] = np.stack([logprobs.get(pair, missing) for pair in pairs])
        return batch

    def reference_logprobs(params: dict) -> dict:
        """Computes the reference's log-probabilities of every pair."""
        return {"reference": np.stack(trainer.predictor.predict(params, rows)[1]).tolist()}

    trainer = SupervisedTrainer(
        *(config, mesh, model, train, [validation], buckets),
        pad=pad,
        losses=functools.partial(pair_losses, model=model, settings=settings),
        flops=functools.partial(batch_flops, model.cfg),
        reference_logprobs=reference_logprobs if settings.loss in WITH_REFERENCE else None,
    )
    return trainer


def first_column(pair: Pair) -> int:
    """The first column of a pair's row whose token contributes to the loss."""
    return max(min(pair.start_i, pair.start_j), 1)


def batch_flops(cfg: llama.LlamaConfig, batch: dict) -> float:
    """Forward FLOPs for the real tokens of a host batch; logits for response tokens only."""
    responses = batch["mask_BS"].sum(axis=-1) - batch["columns_BT"][..., 0]
    return pair_flops(cfg, batch) + logits_flops(cfg, responses.sum())


def pair_logprobs(params: dict, batch: dict, *, model: CausalLM) -> jax.Array:
    """Log-probabilities of the response tokens of both sides, float32[B, 2, S].

    ``batch`` has the arrays of ``pairs.pad_pairs``, and columns_BT int32: the columns of the row's
    response tokens, in order.
    """
    names = ("tokens_BS", "previous_BS", "columns_BT")
    tokens_BS, previous_BS, columns_BT = (batch[name] for name in names)
    previous_BT = jnp.take_along_axis(previous_BS, columns_BT, axis=1)
    inputs = tokens_BS, batch["positions_BS"], (batch["mask_BS"], batch["branch_BS"])
    logprob_BT, _ = token_logprobs(params, model, inputs, previous_BT, columns_BT)
    column_B2S = batch["columns_B2S"] - columns_BT[:, :1, None]
    column_B2S = jnp.clip(column_B2S, 0, columns_BT.shape[1] - 1)
    return jnp.take_along_axis(logprob_BT[:, None], column_B2S, axis=-1)


def pair_losses(params: dict, batch: dict, *, model: CausalLM, settings: PreferenceSettings):
    """``preference_loss`` of every pair of a batch; each result has a leading axis B."""
    logprob_B2S = pair_logprobs(params, batch, model=model)
    masks = (batch[name] for name in ("response_B2S", "changed_B2S", "reference_B22"))
    return jax.vmap(functools.partial(preference_loss, settings=settings))(logprob_B2S, *masks)
