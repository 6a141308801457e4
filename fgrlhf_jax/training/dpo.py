"""Learning from pairs without a reward model: DPO, dense DPO, SALT and FIGA.

The two sides of a pair share what they begin with, as in the rows of reward models. What the
policy that training starts from, the reference, says of the pairs is computed once, before the
first update, and remembered by the run: no second model is held.
"""

import functools
from itertools import chain

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from fgrlhf_jax.data.bucketing import by_length, choose_buckets, fill_batch
from fgrlhf_jax.data.demonstrations import response_widths
from fgrlhf_jax.data.pairs import Pair, encode_by_kind, pad_pairs, tell_preferences
from fgrlhf_jax.functional.preference_losses import (
    WITH_REFERENCE,
    PreferenceSettings,
    TokenWeights,
    preference_loss,
)
from fgrlhf_jax.models import heads, hf_load, llama, lora
from fgrlhf_jax.models.attention import attend_in_pairs
from fgrlhf_jax.models.flops import logits_flops, pair_flops
from fgrlhf_jax.models.heads import CausalLM
from fgrlhf_jax.models.sizes import SIZES
from fgrlhf_jax.runtime import run_dir, sharding
from fgrlhf_jax.runtime.optim import TrainState, accumulate_gradients, apply_gradients
from fgrlhf_jax.training import correction, supervised
from fgrlhf_jax.training import run as training
from fgrlhf_jax.training.logprobs import token_logprobs
from fgrlhf_jax.training.supervised import SupervisedTrainer


def run(config: ConfigDict, sets: dict[str, list], tokenizer=None) -> dict:
    """Trains, evaluates and exports as ``config`` says; goes on where an earlier start stopped.

    Args:
      config: ``configs/dpo.py``.
      sets: edits and preferences by name: ``train`` and ``validation``.
      tokenizer: not used; the policy has its own.

    Returns:
      The content of ``eval.json``: {"validation": {"loss", "accuracy", …, "n"}}, see
      ``preference_losses.preference_loss``, and of edits "corrections", as
      ``correction.before_and_after``.

    Raises:
      InputError: for anything in the config, data, model or folder that cannot be used, and when
        the loss stops being finite.
      KeyboardInterrupt: after Ctrl-C or SIGTERM, once the state is saved.
    """
    hf_load.check_language_model(config.policy)
    settings = supervised_config(config)
    settings.data.template = hf_load.resolve_template(
        config.policy, hf_load.load_tokenizer(config.policy), config.data.template
    )
    mesh, cfg, tokenizer, data = supervised.set_up(settings, [])
    kinds = {name: encode_by_kind(rows, name, tokenizer, data) for name, rows in sets.items()}
    if config.loss != "dpo":
        tell_preferences(kinds["train"])
    train, validation = ([*chain(*kinds[name].values())] for name in ("train", "validation"))
    buckets = choose_buckets([pair.length for pair in train + validation], config.data.buckets)
    trainer = make_trainer(settings, mesh, CausalLM(cfg), train, validation, buckets)
    folder = run_dir.open_run(config)
    step, params = training.run(config, trainer, folder)
    params = trainer.whole(params)
    evaluation = trainer.evaluate_model(params)
    result = {name.removeprefix("validation/"): value for name, value in evaluation.items()}
    result["n"] = len(validation)
    figures = {
        {"loss": "pair_loss", "accuracy": "preferred"}.get(n, n): x for n, x in result.items()
    }
    result = {"validation": result}
    if edits := kinds["validation"].get("edits"):
        start = trainer.whole(trainer.initial_params())
        corrections = correction.before_and_after(start, params, edits, CausalLM(cfg), mesh)
        result["corrections"] = corrections
        figures |= correction.card_figures(corrections)
    note = supervised.export_policy(trainer, folder, params, cfg, tokenizer, data, figures)
    run_dir.finish(folder, step, note, result)
    return result


def supervised_config(config: ConfigDict) -> ConfigDict:
    """A copy with what ``supervised`` reads of a config that may start from random weights."""
    config = config.copy_and_resolve_references().unlock()
    vocab_size = SIZES[config.model.size].vocab_size  # where a plan has no path
    config.model.update({"path": config.policy, "tokenizer": "", "vocab_size": vocab_size})
    return config


def preference_settings(config: ConfigDict) -> PreferenceSettings:
    """The loss and what it is computed with."""
    dense, weights = config.dense, TokenWeights(**config.weights)
    return PreferenceSettings(
        config.loss, config.beta, dense.gamma, dense.normalize, weights, config.figa_limit
    )


def make_trainer(
    config: ConfigDict,
    mesh: Mesh,
    model: CausalLM,
    train: list[Pair],
    validation: list[Pair],
    buckets: tuple[int, ...],
) -> SupervisedTrainer:
    """Training of ``model`` on pairs; ``config`` is one of :func:`supervised_config`."""
    settings = preference_settings(config)
    trained, frozen = lora.split(heads.abstract_params(model, mesh), lora.from_config(config), mesh)
    rows = [*train, *validation]
    starts = [first_column(pair) for pair in rows]
    widths = response_widths([pair.length for pair in rows], starts, buckets)
    batch_size = supervised.eval_batch_size(config, mesh)

    zeros = np.zeros((2, 2), np.float32)

    @functools.cache
    def references() -> dict[Pair, np.ndarray]:
        """What :func:`remember` found, by pair."""
        return dict(zip(rows, np.float32(trainer.memory["reference"]), strict=True))

    def pad(pairs: list[Pair], width: int, size: int | None = None) -> dict[str, np.ndarray]:
        batch = pad_pairs(pairs, width, size)
        pairs, _ = fill_batch(pairs, size)
        columns_BT = np.array([first_column(pair) for pair in pairs])[:, None]
        columns_BT = columns_BT + np.arange(widths[width])
        batch["columns_BT"] = np.minimum(columns_BT, width - 1).astype(np.int32)
        batch["response_B2S"][..., 0] = False  # a token with nothing before it
        known = references() if "reference" in trainer.memory else {}
        batch["reference_B22"] = np.stack([known.get(pair, zeros) for pair in pairs])
        return batch

    def predict(params: dict, pairs: list[Pair]) -> tuple[dict[str, float], np.ndarray]:
        """Means of the metrics, and float32[n, 2, 2] of the pairs."""
        total, logprob_n22 = {}, np.zeros((len(pairs), 2, 2), np.float32)
        for width, numbers, _ in by_length([p.length for p in pairs], batch_size, buckets):
            batch = pad([pairs[n] for n in numbers], width, batch_size)
            with jax.set_mesh(mesh):
                on_mesh = sharding.put_batch(batch, mesh)
                sums, logprob_B22 = sharding.to_host(
                    eval_step(params, on_mesh, model=model, settings=settings)
                )
            logprob_n22[numbers] = logprob_B22[: len(numbers)]
            total = {name: total.get(name, 0.0) + float(value) for name, value in sums.items()}
        return {name: value / len(pairs) for name, value in total.items()}, logprob_n22

    def evaluate(params: dict) -> dict[str, float]:
        return {f"validation/{n}": value for n, value in predict(params, validation)[0].items()}

    def remember(params: dict) -> dict:
        """What the reference says of every pair."""
        return {"reference": predict(params, rows)[1].tolist()}

    trainer = SupervisedTrainer(
        config,
        mesh,
        trained,
        frozen,
        train,
        validation,
        buckets=buckets,
        pad=pad,
        train_step=functools.partial(train_step, model=model, settings=settings),
        flops=functools.partial(batch_flops, model.cfg),
        initial_params=functools.partial(supervised.initial_params, config, model, trained),
        evaluate_model=evaluate,
        remember=remember if settings.loss in WITH_REFERENCE else None,
    )
    return trainer


def first_column(pair: Pair) -> int:
    """The first column of a pair's row whose token is learned from."""
    return max(min(pair.start_i, pair.start_j), 1)


def batch_flops(cfg: llama.LlamaConfig, batch: dict) -> float:
    """Of the real tokens of a host batch; logits are of its response tokens."""
    responses = batch["mask_BS"].sum(axis=-1) - batch["columns_BT"][..., 0]
    return pair_flops(cfg, batch) + logits_flops(cfg, responses.sum())


def pair_logprobs(params: dict, batch: dict, *, model: CausalLM) -> jax.Array:
    """Log-probability of every token of both sides, float32[B, 2, S]; of response tokens only.

    Args:
      batch: the arrays of ``pairs.pad_pairs``, and columns_BT int32, those of the row's response
        tokens, one after the other.
    """
    tokens_BS, before_BS, columns_BT = (
        batch[name] for name in ("tokens_BS", "before_BS", "columns_BT")
    )
    attend_BSS = attend_in_pairs(batch["branch_BS"], batch["mask_BS"])
    before_BT = jnp.take_along_axis(before_BS, columns_BT, axis=1)
    inputs = tokens_BS, batch["positions_BS"], attend_BSS
    logprob_BT, _ = token_logprobs(params, model, inputs, before_BT, columns_BT)
    column_B2S = batch["columns_B2S"] - columns_BT[:, :1, None]
    column_B2S = jnp.clip(column_B2S, 0, columns_BT.shape[1] - 1)
    return jnp.take_along_axis(logprob_BT[:, None], column_B2S, axis=-1)


def pair_losses(params: dict, batch: dict, *, model: CausalLM, settings: PreferenceSettings):
    """``preference_loss`` of every pair of a batch: each of its results with a leading [B]."""
    logprob_B2S = pair_logprobs(params, batch, model=model)
    masks = (batch[name] for name in ("response_B2S", "changed_B2S", "reference_B22"))
    return jax.vmap(functools.partial(preference_loss, settings=settings))(logprob_B2S, *masks)


def train_step(
    state: TrainState,
    batch: dict,
    frozen: dict | None = None,
    *,
    model: CausalLM,
    settings: PreferenceSettings,
    optimizer: optax.GradientTransformation,
    freeze: str = "",
) -> tuple[TrainState, dict]:
    """One update from micro-batches [A, B, ...]; the loss is the mean over all A * B pairs.

    Args:
      frozen: parameters of ``model`` that are not in the state, see ``models/lora.py``.
      freeze: that of ``optimizer``, see ``optim.adamw``.

    Returns:
      The new state, and float32 scalars: loss, the metrics of ``preference_loss``, grad_norm.
    """

    def mean_loss(params, micro_batch):
        params = (frozen or {}) | params
        loss_B, metrics_B, _ = pair_losses(params, micro_batch, model=model, settings=settings)
        return jnp.mean(loss_B), jax.tree.map(jnp.mean, {"loss": loss_B, **metrics_B})

    total, metrics_A = accumulate_gradients(mean_loss, state.params, batch, freeze)
    grads = jax.tree.map(lambda g: g / batch["weight_B"].shape[0], total)
    metrics = jax.tree.map(jnp.mean, metrics_A) | {"grad_norm": optax.tree.norm(grads)}
    return apply_gradients(state, grads, optimizer), metrics


@functools.partial(jax.jit, static_argnames=("model", "settings"))
def eval_step(params: dict, batch: dict, *, model: CausalLM, settings: PreferenceSettings):
    """Sums of loss and metrics over the real pairs of a batch, and float32[B, 2, 2] of its pairs.

    These are the third result of ``preference_loss``.
    """
    loss_B, metrics_B, logprob_B22 = pair_losses(params, batch, model=model, settings=settings)
    weighted = jax.tree.map(lambda x_B: jnp.sum(x_B * batch["weight_B"]), metrics_B)
    return weighted | {"loss": jnp.sum(loss_B * batch["weight_B"])}, logprob_B22
