"""Training on the rows of a data set, shared by SFT, losses on pairs and reward models."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from itertools import chain

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from fgrlhf_jax.data.bucketing import by_length, plan_epoch
from fgrlhf_jax.errors import InputError
from fgrlhf_jax.models import heads, hf_load, lora
from fgrlhf_jax.runtime import optim, sharding
from fgrlhf_jax.runtime.memory import release_unused
from fgrlhf_jax.runtime.optim import TrainState, apply_gradients, fill, without_frozen
from fgrlhf_jax.training import setup


def train_step(
    state: TrainState,
    batch: dict,
    frozen: dict | None = None,
    *,
    losses: Callable[[dict, dict], tuple],
    optimizer: optax.GradientTransformation,
    freeze: str = "",
    count: Callable[[dict], jax.Array] | None = None,
) -> tuple[TrainState, dict]:
    """One update from micro-batches [A, B, ...]; the loss is the mean over all A * B rows.

    Args:
      batch: arrays, including weight_B.
      frozen: parameters of the model that are not in the state, see ``models/lora.py``.
      losses: (all parameters, micro-batch) -> losses [B], metrics [B] by name, and a third result,
        which is ignored here; with ``count``, the sums of both.
      freeze: the pattern of ``optimizer``, see ``optim.adamw``.
      count: the number of tokens in all micro-batches; the loss is then the mean over tokens.

    Returns the new state, and float32 scalars: loss, the metrics, grad_norm.
    """
    A, tokens = batch["weight_B"].shape[0], jnp.maximum(count(batch), 1) if count else None
    trained = without_frozen(state.params, freeze)

    def mean_loss(trained, micro_batch):
        params = lora.join(frozen or {}, fill(trained, state.params))
        loss, metrics, *_ = losses(params, micro_batch)
        metrics = {"loss": loss, **metrics}
        if count:
            return loss / tokens, metrics
        metrics = jax.tree.map(jnp.mean, metrics)
        return metrics["loss"], metrics

    def add(total, micro_batch):
        grads, metrics = gradient(trained, micro_batch)
        return jax.tree.map(jnp.add, total, grads), metrics

    gradient = jax.grad(mean_loss, has_aux=True)
    if A == 1:  # no sum, so no array of zeros to start it
        grads, metrics = gradient(trained, jax.tree.map(lambda x: x[0], batch))
        metrics_A = jax.tree.map(lambda x: x[None], metrics)
    else:
        grads, metrics_A = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, trained), batch)
    if not count:
        grads = jax.tree.map(lambda g: g / A, grads)
    metrics = jax.tree.map(lambda x_A: jnp.sum(x_A) / (tokens if count else A), metrics_A)
    return apply_gradients(state, grads, optimizer), metrics | {"grad_norm": optax.tree.norm(grads)}


def eval_step(
    params: dict,
    batch: dict,
    *,
    losses: Callable[[dict, dict], tuple],
    count: Callable[[dict], jax.Array] | None = None,
    shown: Sequence[str] | None = None,
) -> tuple[dict[str, jax.Array], jax.Array]:
    """Sums of loss and metrics over a batch's real rows, and the third result of ``losses``.

    ``losses`` and ``count`` are those of :func:`train_step`, ``shown`` the metrics (None: all).
    With ``count``, the sums include ``tokens``, and the other result are the weights of the rows.
    """
    loss, metrics, *others = losses(params, batch)
    sums = {"loss": loss, **{name: metrics[name] for name in shown or metrics}}
    if count:
        return sums | {"tokens": count(batch)}, batch["weight_B"]
    return {name: jnp.sum(x_B * batch["weight_B"]) for name, x_B in sums.items()}, *others


class Predictor:
    """Applies a model to rows in a few fixed shapes, with one executable per bucket.

    Args:
      step: (parameters, batch) -> float32 scalars, sums over the rows of weight 1, and an array
        [B, ...].
      pad: (rows, columns, batch size) -> host arrays [B, ...].
      batch_size: rows at a time, rounded up to a multiple that the mesh divides.
    """

    def __init__(
        self,
        step: Callable[[dict, dict], tuple[dict[str, jax.Array], jax.Array]],
        pad: Callable[[list, int, int], dict[str, np.ndarray]],
        mesh: Mesh,
        buckets: Sequence[int],
        batch_size: int,
    ):
        self.pad, self.mesh, self.buckets = pad, mesh, buckets
        self.batch_size = sharding.round_batch_size(batch_size, mesh)
        self.step = jax.jit(step, out_shardings=NamedSharding(mesh, PartitionSpec()))
        self.compiled: dict = {}

    def predict(
        self, params: dict, rows: Sequence, unpad: Callable = lambda values, row: values
    ) -> tuple[dict[str, float], list]:
        """The sums over all rows, and ``unpad(its part of the array, row)`` of each, in order."""
        total, results = {}, [None] * len(rows)
        for numbers, batch in self._batches(rows):
            sums, values_B = jax.device_get(self._executable(params, batch)(params, batch))
            total = {name: total.get(name, 0.0) + float(value) for name, value in sums.items()}
            for number, values in zip(numbers, values_B[: len(numbers)], strict=True):
                results[number] = unpad(values, rows[number])
        return total, results

    def warm_up(self, params: dict, rows: Sequence) -> None:
        """Compiles every shape that ``rows`` need, for abstract parameters."""
        for _, batch in self._batches(rows):
            self._executable(params, batch)

    def _batches(self, rows: Sequence) -> Iterator[tuple[np.ndarray, dict]]:
        """Indices of rows of similar length and their batch on the mesh, in a fixed order."""
        lengths = [row.length for row in rows]
        for width, numbers, _ in by_length(lengths, self.batch_size, self.buckets):
            batch = self.pad([rows[number] for number in numbers], width, self.batch_size)
            yield numbers, sharding.put_batch(batch, self.mesh)

    def _executable(self, params: dict, batch: dict) -> jax.stages.Compiled:
        width = batch["tokens_BS"].shape[-1]
        if width not in self.compiled:
            with jax.set_mesh(self.mesh):
                self.compiled[width] = self.step.lower(params, batch).compile()
        return self.compiled[width]


@dataclasses.dataclass(eq=False)
class SupervisedTrainer:
    """A ``run.Trainer`` on the rows of a data set.

    Every update is a function of its number, so a resume needs only the train state. Raises
    InputError for impossible batch sizes or numbers of updates.

    Args:
      model: its abstract parameters are split into ``params`` (trained) and ``frozen``.
      train: encoded rows, dataclasses of arrays with a ``length``.
      validation: groups of such rows, evaluated one after the other.
      buckets: numbers of columns that batches are padded to.
      pad: ``(rows, columns, batch size or None)`` -> host arrays [B, ...], including tokens_BS and
        mask_BS, True on real tokens.
      losses, count: the objective, see :func:`train_step`.
      flops: FLOPs of a forward pass over the real tokens of a host batch.
      load_params: (config, model, abstract parameters) -> initial parameters.
      shown: metrics of an evaluation, see :func:`eval_step`.
      reference_logprobs: computes, from the initial model, JSON that the run keeps; None: nothing.
    """

    config: ConfigDict
    mesh: Mesh
    model: nn.Module
    train: list
    validation: list[list]
    buckets: Sequence[int]
    _: dataclasses.KW_ONLY
    pad: Callable[..., dict[str, np.ndarray]]
    losses: Callable[[dict, dict], tuple]
    flops: Callable[[dict[str, np.ndarray]], float]
    load_params: Callable[[ConfigDict, nn.Module, dict], dict] = setup.initial_params
    reference_logprobs: Callable[[dict], dict] | None = None
    count: Callable[[dict], jax.Array] | None = None
    shown: Sequence[str] | None = None

    def __post_init__(self):
        config, buckets, mesh = self.config, self.buckets, self.mesh
        abstract, adapters = heads.abstract_params(self.model, mesh), lora.from_config(config)
        self.params, self.frozen = lora.split(abstract, adapters, mesh)
        setup.check_freeze(config.optimizer.freeze, self.params)
        self.eval_every, self.patience = config.eval_every, config.patience
        self.bar = {"loss": ".4f", "accuracy": ".2f", "tokens_per_second": ".0f"}
        self.overlaps, self.memory, self.problem = True, {}, ""
        self.base_digest = ""  # of the frozen parameters, once they are loaded
        self.micro_batch_size = config.micro_batch_size or config.batch_size
        size = config.eval_batch_size or self.micro_batch_size
        objective = {"losses": self.losses, "count": self.count}
        step = functools.partial(eval_step, **objective, shown=self.shown)
        self.predictor = Predictor(step, self.pad, mesh, buckets, size)
        lengths = [row.length for row in self.train]
        plan = functools.partial(plan_epoch, lengths, config.batch_size, buckets, seed=config.seed)
        self.plan = functools.lru_cache(maxsize=2)(lambda epoch: plan(epoch=epoch))
        self.updates_per_epoch = len(self.plan(0))
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
        objective |= {"optimizer": self.optimizer, "freeze": config.optimizer.freeze}
        self.train_step = functools.partial(train_step, **objective)
        self.abstract = optim.abstract_state(self.params, self.optimizer, mesh)
        self.data = setup.digest([self.train, [*chain(*self.validation)]])
        self.compiled = {}

    def batch(self, step: int) -> tuple[int, dict[str, np.ndarray]]:
        """The width and the host arrays [A, B, ...] of update ``step`` + 1."""
        epoch, index = divmod(step, self.updates_per_epoch)
        width, rows = self.plan(epoch)[index]
        padded = self.pad([self.train[row] for row in rows], width)
        size = self.micro_batch_size
        return width, {n: x.reshape(-1, size, *x.shape[1:]) for n, x in padded.items()}

    def initial_params(self) -> dict:
        with jax.set_mesh(self.mesh):  # else a second call would compile all programs again
            return self.load_params(self.config, self.model, self.params)

    @functools.cached_property
    def frozen_params(self) -> dict:
        """The frozen parameters, loaded once; raises InputError if a resume finds others."""
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

    def all_params(self, params: dict) -> dict:
        """All parameters of the model, given the trained ones."""
        return lora.join(self.frozen_params, params)

    def evaluate(self, params: dict, step: int) -> dict[str, float]:
        return self.evaluate_model(self.all_params(params))

    def evaluate_model(self, params: dict) -> dict[str, float]:
        """Metrics of the validation set under all ``params`` of the model, see ``run.Trainer``."""
        parts = [self.predictor.predict(params, rows)[0] for rows in self.validation]
        total = {name: sum(part[name] for part in parts) for name in ("loss", *parts[0])}
        count = total.pop("tokens", sum(map(len, self.validation)))
        return {f"validation/{name}": value / count for name, value in total.items()}

    @property
    def passes(self) -> int:
        """FLOPs of an update / FLOPs of a forward pass; frozen kernels have no gradients."""
        return 2 if self.frozen else 3

    def prepare(self, state: TrainState, start: int) -> dict[str, float]:
        """Loads the frozen parameters; compiles the train step for every batch shape in use."""
        setup.warn_few_updates(self.config, self.steps)
        _ = self.frozen_params
        if self.reference_logprobs and not start:
            self.memory |= self.reference_logprobs(self.all_params(state.params))
        step_of_width = {width: step for step, (width, _) in enumerate(self.plan(0)[: self.steps])}
        lowered = {}
        for step in step_of_width.values():
            width, batch = self.batch(step)
            lowered[width] = self.lower(sharding.put_batch(batch, self.mesh, axis=1))
        self.compiled = optim.compile_all(lowered)
        release_unused()
        return {}

    def lower(self, batch: dict):
        """The train step for batches of one shape, see ``optim.lower_step``."""
        return optim.lower_step(self.train_step, self.abstract, batch, self.mesh, self.frozen)

    def update(self, state: TrainState, step: int) -> tuple[TrainState, dict]:
        width, batch = self.batch(step)
        on_mesh = sharding.put_batch(batch, self.mesh, axis=1)
        state, metrics = self.compiled[width](state, on_mesh, self.frozen_params)
        tokens, rate = int(batch["mask_BS"].sum()), float(self.learning_rates[step])
        freeze = self.config.optimizer.freeze  # saves an unknown part of the backward pass
        flops = 0.0 if freeze else self.passes * self.flops(batch)
        return state, metrics | {"tokens": tokens, "learning_rate": rate, "model_flops": flops}

    def value(self, evaluation: dict[str, float]) -> float:
        if self.config.best_metric == "loss":
            return -evaluation["validation/loss"]
        return evaluation["validation/accuracy"]
