"""Runs a language model's trainer and exports the result; shared by SFT and losses on pairs."""

from collections.abc import Callable, Sequence

from ml_collections import ConfigDict

from fgrlhf_jax.data.pairs import Pair
from fgrlhf_jax.models import hf_save, lora
from fgrlhf_jax.models.cards import Origin, format_figures
from fgrlhf_jax.runtime import run_dir
from fgrlhf_jax.training import correction
from fgrlhf_jax.training import run as training
from fgrlhf_jax.training.setup import Setup
from fgrlhf_jax.training.supervised import SupervisedTrainer


def run(
    config: ConfigDict,
    trainer: SupervisedTrainer,
    setup: Setup,
    edits: Sequence[Pair],
    card_figures: Callable[[dict], dict],
) -> dict:
    """Runs the training loop; writes ``export`` and ``eval.json``, whose content it returns.

    Args:
      config: the command's, which the run folder keeps; the trainer's may have more fields.
      edits: held-out edits; if there are any, the result has "corrections", as
        ``correction.before_and_after``.
      card_figures: maps metrics of the validation set, to which it may add some, to the card's.
    """
    folder = run_dir.open_run(config)
    step, params = training.run(config, trainer, folder)
    model, mesh, start_path = trainer.model, trainer.mesh, trainer.config.model.path
    params = trainer.all_params(params)
    evaluation = trainer.evaluate_model(params)
    metrics = {name.removeprefix("validation/"): value for name, value in evaluation.items()}
    result = {"validation": metrics | {"n": sum(map(len, trainer.validation))}}
    figures = card_figures(result["validation"])
    if edits:
        start = trainer.all_params(trainer.initial_params()) if start_path else None
        corrections = correction.before_and_after(start, params, edits, model, mesh)
        result["corrections"] = corrections
        figures = figures | correction.card_figures(corrections)
    note = hf_save.save(
        folder / "export",
        params,
        model.cfg,
        setup.tokenizer,
        architecture=hf_save.LANGUAGE_MODEL,
        dtype=config.export.dtype,
        origin=Origin(
            *(start_path, config.train, format_figures(figures)), base_digest=trainer.base_digest
        ),
        extra={"data": setup.data},
        adapter=lora.from_config(config),
        merged=config.export.merged,
    )
    run_dir.finish(folder, step, note, result)
    return result
