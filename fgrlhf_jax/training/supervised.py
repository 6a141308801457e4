"""Training on the rows of a data set: what SFT and reward models share."""

import dataclasses
import functools
import hashlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from fgrlhf_jax.data.bucketing import plan_epoch
from fgrlhf_jax.data.templates import check_vocabulary
from fgrlhf_jax.data.tokenizers import train_tokenizer
from fgrlhf_jax.errors import InputError
from fgrlhf_jax.models import attention, hf_load, hf_save, llama, lora, peft
from fgrlhf_jax.models.cards import Origin, format_figures
from fgrlhf_jax.models.heads import CausalLM
from fgrlhf_jax.models.sizes import SIZES
from fgrlhf_jax.runtime import optim, sharding
from fgrlhf_jax.runtime.memory import release_unused
from fgrlhf_jax.runtime.optim import TrainState

RANDOM_SIZES = ("tiny", "small")  # that can learn something from random weights


class Setup(NamedTuple):
    """What a run is made with before its rows are encoded.

    Attributes:
      cfg: of the model.
      data: the fields of ``config.data`` that encode rows.
    """

    mesh: Mesh
    cfg: llama.LlamaConfig
    tokenizer: Any
    data: dict


def set_up(config: ConfigDict, rows: list, tokenizer=None) -> Setup:
    """The mesh, model and tokenizer of a config; see :func:`model_and_tokenizer`."""
    mesh = make_mesh(config)
    attention.check_devices(config.model.attention, mesh)
    cfg, tokenizer = model_and_tokenizer(config, rows, tokenizer)
    data = config.data.to_dict()
    del data["buckets"]
    return Setup(mesh, cfg, tokenizer, data)


def make_mesh(config: ConfigDict) -> Mesh:
    """The mesh of the config; raises InputError where batches do not divide over it."""
    mesh = sharding.make_mesh(config.mesh)
    micro_batch_size = config.micro_batch_size or config.batch_size
    sharding.check_batch(mesh, micro_batch_size)
    if config.batch_size % micro_batch_size:
        raise InputError(
            f"batch_size={config.batch_size} is not a multiple of "
            f"micro_batch_size={micro_batch_size}"
        )
    return mesh


def eval_batch_size(config: ConfigDict, mesh: Mesh) -> int:
    """Rows of an evaluation at a time: those of a micro-batch unless the config says otherwise."""
    size = config.eval_batch_size or config.micro_batch_size or config.batch_size
    return sharding.round_batch_size(size, mesh)


def model_and_tokenizer(config: ConfigDict, rows: list, tokenizer=None):
    """The configuration of the model, and its tokenizer.

    Both are of the checkpoint in ``model.path``. For random weights the tokenizer is
    ``model.tokenizer``, or else the one given here, or else one trained on the texts of ``rows``.

    Raises:
      InputError: for a checkpoint that cannot be used, an unknown size, or a tokenizer or lengths
        that do not fit the model.
    """
    adapters = lora.from_config(config)
    options = {
        name: config.model[name]
        for name in ("dtype", "remat", "scan_layers", "attention", "float32_gradients")
    }
    options["lora_scale"] = adapters.scale if adapters else 1.0
    if adapters and not config.model.path:
        raise InputError(
            f"lora.rank={adapters.rank} needs a model to adapt; give "
            "--config.model.path=FOLDER|HUB_ID"
        )
    if config.model.path:
        if adapters:
            peft.check_same(config.model.path, adapters)
        cfg = dataclasses.replace(hf_load.read_config(config.model.path), **options)
        tokenizer = hf_load.load_tokenizer(config.model.path)
    elif config.model.size in RANDOM_SIZES:
        if config.model.tokenizer:
            tokenizer = hf_load.load_tokenizer(config.model.tokenizer)
        elif tokenizer is None:
            fields = (field for row in rows for field in dataclasses.asdict(row).items())
            texts = (text for name, text in fields if isinstance(text, str) and name != "id")
            tokenizer = train_tokenizer(texts, config.model.vocab_size)
        cfg = dataclasses.replace(SIZES[config.model.size], vocab_size=len(tokenizer), **options)
    else:
        raise InputError(
            "model.path is empty, and random weights are for model.size="
            f"{' or '.join(RANDOM_SIZES)} only, not {config.model.size!r}; "
            "give --config.model.path=FOLDER|HUB_ID|FILE.gguf"
        )
    check_vocabulary(tokenizer, cfg.vocab_size, config.data.template)
    if config.data.max_length > cfg.max_position:
        raise InputError(
            f"data.max_length={config.data.max_length} is more than the model's "
            f"{cfg.max_position} positions; lower it"
        )
    return cfg, tokenizer


def check_freeze(pattern: str, params: dict) -> None:
    """Raises InputError for an ``optimizer.freeze`` that finds no parameter, or every one."""
    names = [sharding.path_name(p) for p, _ in jax.tree_util.tree_leaves_with_path(params)]
    matching = [name for name in names if re.search(pattern, name)]
    if pattern and len(matching) in (0, len(names)):
        raise InputError(
            f"optimizer.freeze={pattern!r} finds {'every' if matching else 'no'} parameter; there "
            f"are {', '.join(names)}"
        )


def random_params(model, key: jax.Array, abstract: dict) -> dict:
    """Those of ``model``'s random parameters that ``abstract`` names, laid out as it says."""

    def init(key):
        row = jnp.zeros((1, 2), jnp.int32)
        params = model.init(key, row, *llama.positions_and_mask(row == 0))["params"]
        return {part: {n: params[part][n] for n in tree} for part, tree in abstract.items()}

    return jax.jit(init, out_shardings=jax.tree.map(lambda x: x.sharding, abstract))(key)


def initial_params(config: ConfigDict, model: CausalLM, abstract: dict) -> dict:
    """The parameters that a language model starts from: those of ``model.path``, or random.

    With an adapter in ``abstract`` that alone.
    """
    path, key = config.model.path, jax.random.key(config.seed)
    if "lora" in abstract:
        return {"lora": hf_load.initial_adapter(path, key, abstract["lora"])}
    return hf_load.load_params(path, abstract) if path else random_params(model, key, abstract)


@dataclasses.dataclass(eq=False)
class SupervisedTrainer:
    """A ``run.Trainer`` on the rows of a data set.

    Every update is a function of its number, so that a resume needs nothing but the train state.

    Args:
      config: ``configs/sft.py`` or ``configs/rm.py``.
      mesh: see :func:`make_mesh`.
      params: abstract parameters that are trained.
      frozen: abstract parameters that are not; ``lora.join`` of both are the model's.
      train, validation: encoded rows, dataclasses of arrays with a ``length``.
      buckets: numbers of columns that batches are padded to.
      pad: ``(rows, columns)`` -> host arrays [B, ...], among them mask_BS, True on real tokens.
      train_step: pure, ``(state, micro-batches [A, B, ...], frozen parameters, optimizer=…,
        freeze=…)`` -> ``(state, metrics)``.
      flops: of a forward pass over the real tokens of a host batch.
      initial_params: see ``run.Trainer``.
      evaluate_model: metrics of a model with these parameters, see ``run.Trainer``.
      remember: what the run remembers, as JSON, of the model that it starts from; None: nothing.

    Raises:
      InputError: for sizes of batches and numbers of updates that cannot be.
    """

    config: ConfigDict
    mesh: Mesh
    params: dict
    frozen: dict
    train: list
    validation: list
    _: dataclasses.KW_ONLY
    buckets: Sequence[int]
    pad: Callable[[list, int], dict[str, np.ndarray]]
    train_step: Callable[..., tuple[TrainState, dict]]
    flops: Callable[[dict[str, np.ndarray]], float]
    initial_params: Callable[[], dict]
    evaluate_model: Callable[[dict], dict[str, float]]
    remember: Callable[[dict], dict] | None = None

    def __post_init__(self):
        config, buckets = self.config, self.buckets
        lengths = [row.length for row in self.train]
        check_freeze(config.optimizer.freeze, self.params)
        self.eval_every, self.patience = config.eval_every, config.patience
        self.bar = {"loss": ".4f", "accuracy": ".2f", "tokens_per_second": ".0f"}
        self.overlaps, self.memory, self.problem = True, {}, ""
        self.base_digest = ""  # of what is frozen, once it is loaded
        self.micro_batch_size = config.micro_batch_size or config.batch_size

        @functools.lru_cache(maxsize=2)
        def plan(epoch: int):
            return plan_epoch(lengths, config.batch_size, buckets, seed=config.seed, epoch=epoch)

        self.plan, self.updates_per_epoch = plan, len(plan(0))
        self.steps = config.steps or config.epochs * self.updates_per_epoch
        if self.steps < 1:
            raise InputError(
                f"steps={config.steps}, epochs={config.epochs}: there is nothing to do"
            )
        options = config.optimizer.to_dict()
        warmup = min(round(options.pop("warmup_share") * self.steps), self.steps - 1)
        rate = optim.schedule(
            options.pop("schedule"), options.pop("learning_rate"), self.steps, warmup
        )
        self.learning_rates = np.asarray(jax.vmap(rate)(jnp.arange(self.steps)))
        self.optimizer = optim.adamw(rate, **options)
        self.abstract = optim.abstract_state(self.params, self.optimizer, self.mesh)
        self.data = _digest([self.train, self.validation])
        self.compiled = {}

    def batch(self, step: int) -> tuple[int, dict[str, np.ndarray]]:
        """The width and the host arrays [A, B, ...] of the update after ``step`` of them."""
        epoch, index = divmod(step, self.updates_per_epoch)
        width, rows = self.plan(epoch)[index]
        padded = self.pad([self.train[row] for row in rows], width)
        micro = self.micro_batch_size
        return width, {n: x.reshape(-1, micro, *x.shape[1:]) for n, x in padded.items()}

    @functools.cached_property
    def frozen_params(self) -> dict:
        """The frozen parameters, loaded once; raises InputError where a resume finds others."""
        if not self.frozen:
            return {}
        config = self.config
        params, self.base_digest = hf_load.load_base(config.model.path, self.frozen)
        with jax.set_mesh(self.mesh):
            base = int(sharding.fingerprint(params))
        if self.memory.setdefault("base", base) != base:
            raise InputError(
                f"run_dir={config.run_dir}: the weights in {config.model.path} have changed "
                "since the run began; choose another run_dir, or put the old ones back"
            )
        return params

    def whole(self, params: dict) -> dict:
        """All parameters of the model whose trained ones are ``params``."""
        return lora.join(self.frozen_params, params)

    def evaluate(self, params: dict, step: int) -> dict[str, float]:
        return self.evaluate_model(self.whole(params))

    @property
    def passes(self) -> int:
        """FLOPs of an update over those of a forward pass: frozen kernels have no gradients."""
        return 2 if self.frozen else 3

    def prepare(self, state: TrainState, start: int) -> dict[str, float]:
        """Loads what is frozen; compiles the train step for every shape of batch in use."""
        _ = self.frozen_params
        if self.remember and not start:
            self.memory |= self.remember(self.whole(state.params))
        step_of_width = {width: step for step, (width, _) in enumerate(self.plan(0)[: self.steps])}
        for step in step_of_width.values():
            width, batch = self.batch(step)
            self.compiled[width] = self.compile(sharding.put_batch(batch, self.mesh, axis=1))
        release_unused()
        return {}

    def compile(self, batch: dict):
        """The train step for batches of one shape, see ``optim.compile_step``."""
        step = functools.partial(
            self.train_step, optimizer=self.optimizer, freeze=self.config.optimizer.freeze
        )
        return optim.compile_step(step, self.abstract, batch, self.mesh, self.frozen)

    def update(self, state: TrainState, step: int) -> tuple[TrainState, dict]:
        width, batch = self.batch(step)
        on_mesh = sharding.put_batch(batch, self.mesh, axis=1)
        state, metrics = self.compiled[width](state, on_mesh, self.frozen_params)
        tokens, rate = int(batch["mask_BS"].sum()), float(self.learning_rates[step])
        flops = self.passes * self.flops(batch)
        return state, metrics | {"tokens": tokens, "learning_rate": rate, "model_flops": flops}

    def value(self, evaluation: dict[str, float]) -> float:
        if self.config.best_metric == "loss":
            return -evaluation["validation/loss"]
        return evaluation["validation/accuracy"]


def _digest(sets: list[list]) -> str:
    """Of all arrays of all rows."""
    digest = hashlib.sha256()
    for rows in sets:
        digest.update(np.array(len(rows)).tobytes())
        for row in rows:
            for value in vars(row).values():
                digest.update(np.asarray(value).tobytes())
    return digest.hexdigest()[:16]


def export_policy(
    trainer: SupervisedTrainer,
    folder: Path,
    params: dict,
    cfg: llama.LlamaConfig,
    tokenizer: Any,
    data: dict,
    figures: dict[str, float],
) -> str:
    """Writes a trained language model to ``export`` of a run folder, as ``hf_save.save`` does.

    Args:
      params: all that the model has.
      data: how rows were encoded, see :class:`Setup`.
      figures: what the card says of the model.

    Returns:
      A sentence on what was written and what can load it.
    """
    config = trainer.config
    base, digest = config.model.path, trainer.base_digest
    return hf_save.save(
        folder / "export",
        params,
        cfg,
        tokenizer,
        architecture=hf_save.LANGUAGE_MODEL,
        dtype=config.export.dtype,
        origin=Origin(base, config.train, format_figures(figures), base_digest=digest),
        extra={"data": data},
        adapter=None if config.export.merged else lora.from_config(config),
    )
