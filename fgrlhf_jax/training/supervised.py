"""Supervised training, whatever is learned: a model, a recipe of updates, and the run itself."""

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from fgrlhf_jax.data.bucketing import plan_epoch
from fgrlhf_jax.data.tokenizers import check_vocabulary, train_tokenizer
from fgrlhf_jax.errors import InputError
from fgrlhf_jax.models import hf_load, llama
from fgrlhf_jax.runtime import metric_log, multihost, optim, sharding
from fgrlhf_jax.runtime.checkpoint import Checkpoints
from fgrlhf_jax.training import run as train_loop

RANDOM = ("tiny", "small")  # sizes that can learn something from random weights


class Recipe(NamedTuple):
    """The updates of a run: everything is a function of the step, so a resume needs no more."""

    steps: int
    batch: Callable[[int], dict]  # host arrays [A, B, ...] of the update after `step` updates
    rates: np.ndarray  # float[steps], learning rate of each update
    optimizer: optax.GradientTransformation
    first_of_shape: list[int]  # for every batch shape in use, a step that has it
    data: str  # digest of all rows, also of those to validate on


def check(config: ConfigDict) -> tuple[Mesh, int]:
    """The mesh and the size of a micro-batch; raises InputError where they do not divide."""
    if config.best_metric not in ("loss", "accuracy"):
        raise InputError(f"best_metric={config.best_metric!r} is neither loss nor accuracy")
    mesh = sharding.make_mesh(config.mesh)
    micro_size = config.micro_batch_size or config.batch_size
    sharding.check_batch(mesh, micro_size)
    if config.batch_size % micro_size:
        raise InputError(
            f"batch_size={config.batch_size} is not a multiple of micro_batch_size={micro_size}"
        )
    return mesh, micro_size


def model_and_tokenizer(config: ConfigDict, rows: list, tokenizer=None):
    """Of the checkpoint in ``model.path``; or of random weights, with ``model.tokenizer``, or else
    the tokenizer given here, or else one trained on ``rows``.

    Raises:
      InputError: for a checkpoint that cannot be used, an unknown size, or a tokenizer or lengths
        that do not fit the model.
    """
    how = {name: config.model[name] for name in ("dtype", "remat", "scan_layers", "attention")}
    if config.model.path:
        cfg = dataclasses.replace(hf_load.read_config(config.model.path), **how)
        tokenizer = hf_load.load_tokenizer(config.model.path)
    elif config.model.size in RANDOM:
        if config.model.tokenizer:
            tokenizer = hf_load.load_tokenizer(config.model.tokenizer)
        elif tokenizer is None:
            fields = (field for row in rows for field in dataclasses.asdict(row).items())
            texts = (text for name, text in fields if isinstance(text, str) and name != "id")
            tokenizer = train_tokenizer(texts, config.model.vocab_size)
        cfg = dataclasses.replace(
            llama.SIZES[config.model.size], vocab_size=len(tokenizer), **how
        )
    else:
        raise InputError(
            "model.path is empty, and random weights are for model.size="
            f"{' or '.join(RANDOM)} only, not {config.model.size!r}; "
            "give --config.model.path=FOLDER|HUB_ID|FILE.gguf"
        )
    check_vocabulary(tokenizer, cfg.vocab_size)
    if config.data.max_length > cfg.max_position:
        raise InputError(
            f"data.max_length={config.data.max_length} is more than the model's "
            f"{cfg.max_position} positions; lower it"
        )
    return cfg, tokenizer


def make_recipe(
    config: ConfigDict,
    lengths: Sequence[int],
    pad: Callable[[np.ndarray, int], dict],
    arrays: Iterable[np.ndarray],
    held: Iterable[np.ndarray],
    buckets: Sequence[int],
    micro_size: int,
) -> Recipe:
    """The config's batches, epochs and optimizer.

    Args:
      lengths: columns that each row needs.
      pad: (row numbers, bucket) -> host arrays [B, ...].
      arrays, held: everything that these rows hold, and those to validate on, for the digest.

    Raises:
      InputError: for values that cannot be.
    """

    @functools.lru_cache(maxsize=2)
    def plan(epoch: int):
        return plan_epoch(lengths, config.batch_size, buckets, seed=config.seed, epoch=epoch)

    per_epoch = len(plan(0))
    steps = config.steps or config.epochs * per_epoch
    if steps < 1:
        raise InputError(
            f"steps={config.steps}, epochs={config.epochs}: there is nothing to do"
        )

    def batch(step: int) -> dict:
        bucket, rows = plan(step // per_epoch)[step % per_epoch]
        padded = pad(rows, bucket)
        return {k: v.reshape(-1, micro_size, *v.shape[1:]) for k, v in padded.items()}

    options = config.optimizer.to_dict()
    warmup = min(round(options.pop("warmup_share") * steps), steps - 1)
    rate = optim.schedule(options.pop("schedule"), options.pop("learning_rate"), steps, warmup)
    rates = np.asarray(jax.vmap(rate)(jnp.arange(steps)))
    planned = [*enumerate(plan(0)[:steps])]
    first_of_shape = {bucket: step for step, (bucket, _) in reversed(planned)}
    optimizer = optim.adamw(rate, **options)
    digest = hashlib.sha256()
    for array in itertools.chain(arrays, [np.array(len(lengths))], held):
        digest.update(array.tobytes())
    return Recipe(
        steps, batch, rates, optimizer, [*first_of_shape.values()], digest.hexdigest()[:16]
    )


def check_freeze(pattern: str, params: dict) -> None:
    """Raises InputError for a pattern that finds no parameter, or every one."""
    names = [sharding.path_name(p) for p, _ in jax.tree_util.tree_leaves_with_path(params)]
    found = [name for name in names if re.search(pattern, name)]
    if pattern and len(found) in (0, len(names)):
        raise InputError(
            f"optimizer.freeze={pattern!r} finds {'every' if found else 'no'} parameter; there are "
            + ", ".join(names)
        )


def abstract_state(params: dict, optimizer, mesh: Mesh) -> optim.TrainState:
    """Shapes, dtypes and shardings of the train state; allocates nothing."""
    moments = sharding.abstract(jax.eval_shape(optimizer.init, params), mesh)
    return optim.TrainState(params, moments)


def random_params(model, key: jax.Array, abstract: dict) -> dict:
    """The parts of ``model``'s random parameters that ``abstract`` names, laid out as it says."""

    def init(key):
        row = jnp.zeros((1, 2), jnp.int32)
        params = model.init(key, row, *llama.positions_and_mask(row == 0))["params"]
        return {part: params[part] for part in abstract}

    return jax.jit(init, out_shardings=jax.tree.map(lambda x: x.sharding, abstract))(key)


def compile_step(step: Callable, abstract: optim.TrainState, batch: dict, mesh: Mesh):
    """``step(state, batch) -> (state, metrics)`` compiled ahead of time for one batch shape.

    What comes back cannot recompile; the state is donated.

    Args:
      abstract: from :func:`abstract_state`.
      batch: arrays on the mesh, or ShapeDtypeStructs with shardings: nothing is computed.
    """
    layout = jax.tree.map(lambda x: x.sharding, abstract)
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    jitted = jax.jit(step, donate_argnums=0, out_shardings=(layout, whole))
    with jax.set_mesh(mesh):
        return jitted.lower(abstract, batch).compile()


def train(
    config: ConfigDict,
    recipe: Recipe,
    abstract: optim.TrainState,
    mesh: Mesh,
    folder: Path,
    *,
    initial: Callable[[], dict],
    step: Callable,
    warm_up: Callable[[], None],
    figures: Callable[[dict], dict[str, float]],
) -> dict:
    """Updates until all steps are made or the validation stops improving.

    Args:
      initial: the parameters to start from.
      step: the pure train step, (state, batch) -> (state, metrics).
      warm_up: compiles what ``figures`` will need.
      figures: parameters -> ``validation/loss`` and ``validation/accuracy``.

    Returns:
      The parameters of the best checkpoint (of the last one where nothing was evaluated).
    """
    multihost.check_same(recipe.data, "training or validation data")
    checkpoints = Checkpoints(folder / "checkpoints", config.max_to_keep)
    with contextlib.closing(checkpoints):
        start = checkpoints.latest or 0
        progress = train_loop.Progress(data=recipe.data)
        if start:
            progress = train_loop.Progress(**checkpoints.loop(start))
            if progress.data != recipe.data:
                raise InputError(
                    f"run_dir={folder}: the training or validation data or the tokenizer has "
                    f"changed since step {start}; choose another run_dir, or put the old data back"
                )
        if not progress.done:
            if start:
                state = optim.TrainState(**checkpoints.restore(start, abstract._asdict()))
            else:
                with jax.set_mesh(mesh):
                    params = initial()
                    layout = jax.tree.map(lambda x: x.sharding, abstract.opt_state)
                    init = jax.jit(recipe.optimizer.init, out_shardings=layout)
                    state = optim.TrainState(params, init(params))
                    del params
            steps = {}
            for number in recipe.first_of_shape:
                batch = sharding.put_batch(recipe.batch(number), mesh, axis=1)
                steps[_mask(batch).shape] = compile_step(step, abstract, batch, mesh)
            warm_up()
            multihost.wait_for_all()

            def update(state, number):
                batch = recipe.batch(number)
                extra = {
                    "tokens": int(_mask(batch).sum()),
                    "learning_rate": float(recipe.rates[number]),
                }
                compiled = steps[_mask(batch).shape]
                return *compiled(state, sharding.put_batch(batch, mesh, axis=1)), extra

            log = metric_log.Log(
                folder, step=start, steps=recipe.steps, tensorboard=config.tensorboard
            )
            with contextlib.closing(log):
                progress = train_loop.run(
                    state,
                    progress,
                    start=start,
                    steps=recipe.steps,
                    update=update,
                    evaluate=lambda state: figures(state.params),
                    select=lambda figures: (
                        figures["validation/loss"]
                        if config.best_metric == "loss"
                        else -figures["validation/accuracy"]
                    ),
                    eval_every=config.eval_every,
                    save_every=config.save_every,
                    patience=config.patience,
                    checkpoints=checkpoints,
                    log=log,
                )
            del state
        best = progress.best_step
        if best not in checkpoints.steps:
            if best:  # its folder was deleted by hand
                print(
                    f"the checkpoint of step {best}, the best one, is gone; using the last one"
                )
            best = checkpoints.latest
        return checkpoints.restore(best, {"params": abstract.params})["params"]


def _mask(batch: dict):
    """The array of a batch that is True on real tokens."""
    return next(value for name, value in batch.items() if name.startswith("mask_"))
