"""Runs a language model's trainer and exports the result; shared by SFT and losses on pairs."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from fgrlhf_jax.data.pairs import Pair
from fgrlhf_jax.models import hf_save, lora
from fgrlhf_jax.models.cards import Origin, format_figures
from fgrlhf_jax.runtime import run_dir
from fgrlhf_jax.training import correction
from fgrlhf_jax.training import run as training
from fgrlhf_jax.training.setup import Setup
from fgrlhf_jax.training.supervised import SupervisedTrainer


class Trained(NamedTuple):
    """The best policy of a run: its step, all of its parameters, metrics of the validation set."""

    folder: Path
    step: int
    params: dict
    validation: dict[str, float]


def train(config: ConfigDict, trainer: SupervisedTrainer) -> Trained:
    """Runs the training loop in the config's folder, and evaluates the result."""
    folder = run_dir.open_run(config)
    step, params = training.run(config, trainer, folder)
    params = trainer.all_params(params)
    evaluation = trainer.evaluate_model(params)
    metrics = {name.removeprefix("validation/"): value for name, value in evaluation.items()}
    return Trained(folder, step, params, metrics | {"n": sum(map(len, trainer.validation))})


def finish(
    trainer: SupervisedTrainer,
    trained: Trained,
    setup: Setup,
    edits: Sequence[Pair],
    figures: dict[str, float],
) -> dict:
    """Writes ``export`` and ``eval.json``, and returns the content of the latter.

    Args:
      edits: held-out edits; if there are any, the result has "corrections", as
        ``correction.before_and_after``.
      figures: figures for the card, besides those of the corrections.
    """
    config, model, mesh = trainer.config, trainer.model, trainer.mesh
    result = {"validation": trained.validation}
    if edits:
        start = trainer.all_params(trainer.initial_params()) if config.model.path else None
        corrections = correction.before_and_after(start, trained.params, edits, model, mesh)
        result["corrections"] = corrections
        figures = figures | correction.card_figures(corrections)
    base, digest = config.model.path, trainer.base_digest
    note = hf_save.save(
        trained.folder / "export",
        trained.params,
        model.cfg,
        setup.tokenizer,
        architecture=hf_save.LANGUAGE_MODEL,
        dtype=config.export.dtype,
        origin=Origin(base, config.train, format_figures(figures), base_digest=digest),
        extra={"data": setup.data},
        adapter=lora.from_config(config),
        merged=config.export.merged,
    )
    run_dir.finish(trained.folder, trained.step, note, result)
    return result
