"""Training a reward model: records in; a calibrated, exported model, its table and its log out."""

import contextlib
import dataclasses
import functools
import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict

from fgrlhf_jax import (
    batches,
    hf,
    llama,
    metrics,
    optim,
    prompts,
    reward,
    reward_eval,
    run_folder,
    sharding,
    train_loop,
)
from fgrlhf_jax.checkpoint import Checkpoints
from fgrlhf_jax.errors import InputError

RANDOM = ("tiny", "small")  # sizes that can learn something from random weights


class Recipe(NamedTuple):
    """The updates of a run: everything is a function of the step, so a resume needs no more."""

    steps: int
    batch: Callable[[int], dict]  # host arrays [A, B, ...] of the update after `step` updates
    rates: np.ndarray  # float[steps], learning rate of each update
    optimizer: optax.GradientTransformation
    first_of_shape: list[int]  # for every batch shape in use, a step that has it
    data: str  # digest of all pairs


def run(config: ConfigDict, sets: dict[str, list]) -> dict:
    """Train, evaluate and export as ``config`` says; go on where an earlier start stopped.

    Args:
      config: ``configs/rm.py``.
      sets: records by name: ``train``, ``validation`` and, if there is one, ``test``.

    Returns:
      The content of ``eval.json``.

    Raises:
      InputError: for anything in the config, data, model or folder that cannot be used, and when
        the loss stops being finite.
      KeyboardInterrupt: after Ctrl-C or SIGTERM, once the state is saved.
    """
    if config.select not in ("loss", "accuracy"):
        raise InputError(f"select={config.select!r} is neither loss nor accuracy")
    mesh = sharding.make_mesh(config.mesh)
    micro_size = config.micro_batch_size or config.batch_size
    sharding.check_batch(mesh, micro_size)
    if config.batch_size % micro_size:
        raise InputError(
            f"batch_size={config.batch_size} is not a multiple of micro_batch_size={micro_size}"
        )
    cfg, tokenizer = model_and_tokenizer(config, sets["train"])
    model = reward_eval.make_model(cfg, config.loss, config.model.head)
    data = config.data.to_dict()
    buckets = batches.make_buckets(data["max_length"], data.pop("smallest_bucket"))
    pairs = {
        name: reward_eval.encode(rows, name, tokenizer, data) for name, rows in sets.items()
    }
    settings = {
        "loss": config.loss,
        "consistency_weight": config.consistency_weight,
        "center_weight": config.center_weight,
    }
    check_freeze(config.optimizer.freeze, reward_eval.abstract_params(model, mesh))
    recipe = make_recipe(
        config,
        [pair for group in pairs["train"].values() for pair in group],
        buckets,
        micro_size,
    )
    predict = reward_eval.Predictor(
        model, settings, mesh, buckets, config.eval_batch_size or micro_size
    )
    folder = run_folder.open_run(config)
    params = train(config, model, settings, recipe, predict, pairs["validation"], mesh, folder)
    # On the validation set: the rejected responses of training pairs have been learned by heart.
    calibration = reward_eval.fit_calibration(
        predict,
        params,
        pairs["validation"],
        reward.level_of(config.loss),
        config.calibration_pairs,
    )
    meta = reward_eval.Meta(config.model.head, settings, calibration, data)
    scorer = reward_eval.Scorer(model, params, tokenizer, meta, mesh)
    result = {
        name: reward_eval.tables(predict, scorer, pairs[name], rows)
        for name, rows in sets.items()
        if name != "train"
    }
    note = reward_eval.save(folder / "export", scorer)
    if jax.process_index() == 0:
        print(note)
        run_folder.write_json(folder / "eval.json", result)
    multihost_utils.sync_global_devices("finished")
    return result


def model_and_tokenizer(config: ConfigDict, rows: list):
    """Of the checkpoint in ``model.path``; or random weights and a tokenizer of ``rows``.

    Raises:
      InputError: for a checkpoint that cannot be used, an unknown size, or a tokenizer or lengths
        that do not fit the model.
    """
    how = {name: config.model[name] for name in ("dtype", "remat", "scan_layers", "attention")}
    if config.model.path:
        cfg = dataclasses.replace(hf.read_config(config.model.path), **how)
        tokenizer = hf.load_tokenizer(config.model.path)
    elif config.model.size in RANDOM:
        fields = (field for row in rows for field in dataclasses.asdict(row).items())
        texts = (text for name, text in fields if isinstance(text, str) and name != "id")
        tokenizer = prompts.train_tokenizer(texts, config.model.vocab_size)
        cfg = dataclasses.replace(
            llama.SIZES[config.model.size], vocab_size=len(tokenizer), **how
        )
    else:
        raise InputError(
            "model.path is empty, and random weights are for model.size="
            f"{' or '.join(RANDOM)} only, not {config.model.size!r}; "
            "give --config.model.path=FOLDER|HUB_ID|FILE.gguf"
        )
    batches.check_vocabulary(tokenizer, cfg.vocab_size)
    if config.data.max_length > cfg.max_position:
        raise InputError(
            f"data.max_length={config.data.max_length} is more than the model's "
            f"{cfg.max_position} positions; lower it"
        )
    return cfg, tokenizer


def make_recipe(config: ConfigDict, pairs: list, buckets, micro_size: int) -> Recipe:
    """The config's batches, epochs and optimizer; raises InputError for values that cannot be."""
    lengths = [pair.length for pair in pairs]

    @functools.lru_cache(maxsize=2)
    def plan(epoch: int):
        return batches.plan(lengths, config.batch_size, buckets, seed=config.seed, epoch=epoch)

    per_epoch = len(plan(0))
    steps = config.steps or config.epochs * per_epoch
    if steps < 1:
        raise InputError(
            f"steps={config.steps}, epochs={config.epochs}: there is nothing to do"
        )

    def batch(step: int) -> dict:
        bucket, rows = plan(step // per_epoch)[step % per_epoch]
        padded = batches.pad_pairs([pairs[r] for r in rows], bucket)
        return {k: v.reshape(-1, micro_size, *v.shape[1:]) for k, v in padded.items()}

    options = config.optimizer.to_dict()
    warmup = min(round(options.pop("warmup_share") * steps), steps - 1)
    rate = optim.schedule(options.pop("schedule"), options.pop("learning_rate"), steps, warmup)
    rates = np.asarray(jax.vmap(rate)(jnp.arange(steps)))
    planned = [*enumerate(plan(0)[:steps])]
    first_of_shape = {bucket: step for step, (bucket, _) in reversed(planned)}
    optimizer = optim.adamw(rate, **options)
    digest = hashlib.sha256()
    for pair in pairs:
        for array in (
            pair.tokens_i,
            pair.tokens_j,
            pair.changed_i,
            pair.changed_j,
            pair.partner,
        ):
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


def abstract_state(model: llama.RewardModel, optimizer, mesh: Mesh) -> reward.TrainState:
    """Shapes, dtypes and shardings of the train state; allocates nothing."""
    params = reward_eval.abstract_params(model, mesh)
    moments = sharding.abstract(jax.eval_shape(optimizer.init, params), mesh)
    return reward.TrainState(params, moments)


def compile_step(abstract: reward.TrainState, batch: dict, mesh: Mesh, **settings):
    """``reward.train_step`` compiled ahead of time for one batch shape; it cannot recompile.

    Args:
      abstract: from :func:`abstract_state`.
      batch: arrays on the mesh, or ShapeDtypeStructs with shardings: nothing is computed.
      **settings: the keyword arguments of ``reward.train_step``.
    """
    layout = jax.tree.map(lambda x: x.sharding, abstract)
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    step = jax.jit(
        functools.partial(reward.train_step, **settings),
        donate_argnums=0,
        out_shardings=(layout, whole),
    )
    with jax.set_mesh(mesh):
        return step.lower(abstract, batch).compile()


def initial_state(config, model, optimizer, mesh: Mesh) -> reward.TrainState:
    """Random parameters, but the backbone (and state-action table) of a checkpoint where given."""
    abstract = abstract_state(model, optimizer, mesh)
    loaded = {"backbone"} if config.model.path else set()

    def init(key):
        row = jnp.zeros((1, 2), jnp.int32)
        params = model.init(key, row, *llama.positions_and_mask(row == 0))["params"]
        if config.model.head_init == "zero":
            params["head"]["kernel"] = jnp.zeros_like(params["head"]["kernel"])
        return {part: tree for part, tree in params.items() if part not in loaded}

    kept = {part: tree for part, tree in abstract.params.items() if part not in loaded}
    with jax.set_mesh(mesh):
        layout = jax.tree.map(lambda x: x.sharding, kept)
        params = jax.jit(init, out_shardings=layout)(jax.random.key(config.seed))
        if loaded:
            path = config.model.path
            params |= hf.load_params(path, {"backbone": abstract.params["backbone"]})
            if "unembed" in params["head"]:
                unembed = {"unembed": abstract.params["head"]["unembed"]}
                params["head"] |= hf.load_params(path, {"head": unembed})["head"]
        layout = jax.tree.map(lambda x: x.sharding, abstract.opt_state)
        return reward.TrainState(params, jax.jit(optimizer.init, out_shardings=layout)(params))


def train(
    config: ConfigDict,
    model: llama.RewardModel,
    settings: dict,
    recipe: Recipe,
    predict: reward_eval.Predictor,
    validation: dict[str, list],
    mesh: Mesh,
    folder: Path,
) -> dict:
    """Updates until all steps are made or the validation stops improving.

    Returns:
      The parameters of the best checkpoint (of the last one where nothing was evaluated).
    """
    abstract = abstract_state(model, recipe.optimizer, mesh)
    checkpoints = Checkpoints(folder / "checkpoints", config.keep)
    with contextlib.closing(checkpoints):
        start = checkpoints.latest or 0
        progress = train_loop.Progress(data=recipe.data)
        if start:
            progress = train_loop.Progress(**checkpoints.loop(start))
            if progress.data != recipe.data:
                raise InputError(
                    f"run_dir={folder}: the training data or its tokenizer has changed since step "
                    f"{start}; choose another run_dir, or put the old data back"
                )
        if not progress.done:
            if start:
                state = reward.TrainState(**checkpoints.restore(start, abstract._asdict()))
            else:
                state = initial_state(config, model, recipe.optimizer, mesh)
            steps = {}
            for step in recipe.first_of_shape:
                batch = sharding.put_batch(recipe.batch(step), mesh, axis=1)
                steps[batch["tokens_B2S"].shape] = compile_step(
                    abstract, batch, mesh, model=model, optimizer=recipe.optimizer, **settings
                )
            predict.warm_up(validation)

            def update(state, step):
                batch = recipe.batch(step)
                extra = {
                    "tokens": int(batch["mask_B2S"].sum()),
                    "learning_rate": float(recipe.rates[step]),
                }
                compiled = steps[batch["tokens_B2S"].shape]
                return *compiled(state, sharding.put_batch(batch, mesh, axis=1)), extra

            log = metrics.Log(
                folder, step=start, steps=recipe.steps, tensorboard=config.tensorboard
            )
            with contextlib.closing(log):
                progress = train_loop.run(
                    state,
                    progress,
                    start=start,
                    steps=recipe.steps,
                    update=update,
                    evaluate=lambda state: predict.figures(state.params, validation),
                    select=lambda figures: (
                        figures["validation/loss"]
                        if config.select == "loss"
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
