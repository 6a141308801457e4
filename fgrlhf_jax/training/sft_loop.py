"""Supervised fine-tuning as a run: demonstrations in, a Hugging Face folder out."""

import functools
import math

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from fgrlhf_jax.data.bucketing import by_length, make_buckets
from fgrlhf_jax.data.demonstrations import (
    Demonstration,
    encode_demonstrations,
    pad_demonstrations,
)
from fgrlhf_jax.errors import InputError
from fgrlhf_jax.models import hf_load, hf_save, llama
from fgrlhf_jax.runtime import multihost, run_dir, sharding
from fgrlhf_jax.runtime.files import write_json
from fgrlhf_jax.training import sft, supervised


def run(config: ConfigDict, sets: dict[str, list], tokenizer=None) -> dict:
    """Train, evaluate and export as ``config`` says; go on where an earlier start stopped.

    Args:
      config: ``configs/sft.py``.
      sets: instruction records by name: ``train`` and ``validation``.
      tokenizer: for random weights; None trains one on the training records.

    Returns:
      The content of ``eval.json``: {"validation": {"loss", "accuracy", "perplexity", "n"}}.

    Raises:
      InputError: for anything in the config, data, model or folder that cannot be used, and when
        the loss stops being finite.
      KeyboardInterrupt: after Ctrl-C or SIGTERM, once the state is saved.
    """
    mesh, micro_size = supervised.check(config)
    cfg, tokenizer = supervised.model_and_tokenizer(config, sets["train"], tokenizer)
    model = llama.CausalLM(cfg)
    data = config.data.to_dict()
    buckets = make_buckets(data["max_length"], data.pop("smallest_bucket"))
    encoded = {}
    for name, rows in sets.items():
        try:
            encoded[name], counts = encode_demonstrations(rows, tokenizer, **data)
        except InputError as error:
            raise InputError(f"{name}: {error}") from error
        print(f"{name}: " + ", ".join(f"{n} {what}" for what, n in counts.items()))
    params = llama.abstract_params(model, mesh)
    supervised.check_freeze(config.optimizer.freeze, params)
    recipe = make_recipe(config, encoded["train"], buckets, micro_size, encoded["validation"])
    folder = run_dir.open_run(config)
    evaluate = functools.partial(
        figures,
        rows=encoded["validation"],
        buckets=buckets,
        size=config.eval_batch_size or micro_size,
        model=model,
        mesh=mesh,
    )
    params = supervised.train(
        config,
        recipe,
        supervised.abstract_state(params, recipe.optimizer, mesh),
        mesh,
        folder,
        initial=lambda: initial_params(config, model, mesh),
        step=functools.partial(sft.train_step, model=model, optimizer=recipe.optimizer),
        warm_up=lambda: None,
        figures=evaluate,
    )
    found = evaluate(params)
    result = {
        "validation": {
            "loss": found["validation/loss"],
            "accuracy": found["validation/accuracy"],
            "perplexity": math.exp(min(found["validation/loss"], 700.0)),
            "n": len(encoded["validation"]),
        }
    }
    note = hf_save.save(
        folder / "export",
        params,
        cfg,
        tokenizer,
        architecture=hf_save.LANGUAGE_MODEL,
        extra={"data": data},
    )
    if jax.process_index() == 0:
        print(note)
        write_json(folder / "eval.json", result)
    multihost.wait_for_all()
    return result


def make_recipe(config, rows: list[Demonstration], buckets, micro_size: int, held=()):
    """:func:`supervised.make_recipe` of demonstrations, and those ``held`` to validate on."""
    return supervised.make_recipe(
        config,
        [len(row.tokens) for row in rows],
        lambda numbers, bucket: pad_demonstrations([rows[n] for n in numbers], bucket),
        (np.append(row.tokens, row.prompt_length) for row in rows),
        (np.append(row.tokens, row.prompt_length) for row in held),
        buckets,
        micro_size,
    )


def initial_params(config: ConfigDict, model: llama.CausalLM, mesh: Mesh) -> dict:
    """Of the checkpoint in ``model.path``, or random."""
    abstract = llama.abstract_params(model, mesh)
    if config.model.path:
        return hf_load.load_params(config.model.path, abstract)
    return supervised.random_params(model, jax.random.key(config.seed), abstract)


def figures(params: dict, *, rows: list, buckets, size: int, model, mesh: Mesh) -> dict:
    """Loss (nats a response token) and token accuracy over all ``rows``."""
    size = sharding.round_batch_size(size, mesh)
    lengths = [len(row.tokens) for row in rows]
    total = {"loss": 0.0, "accuracy": 0.0, "tokens": 0.0}
    for bucket, numbers, _ in by_length(lengths, size, buckets):
        padded = pad_demonstrations([rows[n] for n in numbers], bucket, size)
        batch = sharding.put_batch(padded, mesh)
        with jax.set_mesh(mesh):
            sums = sharding.to_host(sft.eval_step(params, batch, model=model))
        total = {name: total[name] + float(sums[name]) for name in total}
    return {
        "validation/loss": total["loss"] / total["tokens"],
        "validation/accuracy": total["accuracy"] / total["tokens"],
    }
