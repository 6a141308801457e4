"""One training loop for supervised fine-tuning, reward models and PPO.

Read :func:`run` from top to bottom: restore, update, log the previous update, evaluate, save, stop.
A :class:`Trainer` defines the model and its batches: ``supervised.SupervisedTrainer`` draws them
from a data set, ``ppo.train.PPOTrainer`` samples them from the policy.
"""

import contextlib
import math
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.runtime import multihost, run_dir, sharding
from fgrlhf_jax.runtime.checkpoint import Checkpoints
from fgrlhf_jax.runtime.interrupt import Interrupt
from fgrlhf_jax.runtime.metric_log import Log, check_rows
from fgrlhf_jax.runtime.optim import TrainState


class Progress(NamedTuple):
    """State of a run besides its train state; saved with every checkpoint, as JSON."""

    data: str  # digest of the data, which must be the same in a resume
    memory: dict  # see Trainer.memory
    config: dict  # see run_dir.config_values
    log: dict  # see metric_log.RowFile.state
    best_step: int = 0  # of the best evaluation so far; 0 is the start
    best_value: float = -math.inf  # -inf: no evaluation yet
    stale: int = 0  # evaluations since the best one
    done: bool = False

    def evaluated(self, step: int, value: float) -> "Progress":
        """The progress after an evaluation, which may be the best so far."""
        if value > self.best_value:
            return self._replace(best_step=step, best_value=value, stale=0)
        return self._replace(stale=self.stale + 1)


class Trainer(Protocol):
    """The interface between :func:`run` and an algorithm.

    Attributes:
      mesh: the devices of all computations.
      optimizer: the optax transformation of the parameters.
      abstract: shapes, dtypes and shardings of the train state.
      steps: updates of the whole run.
      data: digest of all rows used for training or evaluation.
      bar: metrics in the progress bar, {metric: format}.
      overlaps: whether :meth:`update` returns while the device is still computing. A row is then
        logged, and checked for non-finite values, during the next update.
      eval_every: updates between evaluations; 0 never evaluates.
      patience: evaluations without improvement before the run stops; 0 never stops it.
      memory: the trainer's state besides the train state, as JSON; restored by a resume.
      problem: why the run must stop after saving its state; "" if it need not.
    """

    mesh: Mesh
    optimizer: optax.GradientTransformation
    abstract: TrainState
    steps: int
    data: str
    bar: dict[str, str]
    overlaps: bool
    eval_every: int
    patience: int
    memory: dict[str, Any]
    problem: str

    def initial_params(self) -> dict:
        """The parameters to start from, on the mesh."""

    def prepare(self, state: TrainState, start: int) -> dict[str, float]:
        """Compiles and loads what updates need; returns the metrics of step 0 ({}: no row)."""

    def update(self, state: TrainState, step: int) -> tuple[TrainState, dict]:
        """Makes update ``step`` + 1; returns the new state, and metrics on device or host.

        The state is donated. The log turns the metrics ``tokens`` (trained on) and ``model_flops``
        (see ``models.flops``) into rates.
        """

    def evaluate(self, params: dict, step: int) -> dict[str, float]:
        """Metrics of the validation set, named ``validation/…``."""

    def value(self, evaluation: dict[str, float]) -> float:
        """The value that the best checkpoint maximises; -inf for no preference."""


def run(config: ConfigDict, trainer: Trainer, folder: Path) -> tuple[int, dict]:
    """Trains until all updates are made or the evaluations stop improving.

    A run that was interrupted, killed or out of disk space resumes from its last checkpoint, with
    the same results. With ``config.max_seconds`` an update remains a function of its number; the
    clock only decides which is the last one.

    Returns the step and the parameters of the best evaluation; without evaluations of the last
    update.

    Raises:
      InputError: if a metric is not finite (nothing is saved from then on), if the trainer has a
        problem (the state is saved), and if the data has changed since the last start.
      KeyboardInterrupt: after Ctrl-C or SIGTERM, with the state saved.
    """
    if config.profile > trainer.steps:
        raise InputError(
            f"profile={config.profile}: the run has {trainer.steps} steps; name one of them"
        )
    multihost.check_same(trainer.data, "training or validation data")
    checkpoints = Checkpoints(folder / "checkpoints", config.max_to_keep)
    with contextlib.closing(checkpoints):
        start = checkpoints.latest or 0
        progress = _restore_progress(config, trainer, checkpoints, start)
        if progress.done:
            return _best_params(trainer, progress, checkpoints)
        state = _restore_state(trainer, checkpoints, start)
        baseline = trainer.prepare(state, start)
        multihost.wait_for_all()
        steps = start, None if config.max_seconds else trainer.steps
        log = Log(folder, checkpoints, trainer.bar, progress.log, steps, config.tensorboard)
        with contextlib.closing(log), Interrupt(distributed=jax.process_count() > 1) as interrupt:
            if baseline:
                log.write_baseline(baseline)
                progress = progress._replace(best_value=trainer.value(baseline))
            for step in range(start, trainer.steps):
                number = step + 1
                if number == config.profile:
                    state, metrics = _trace_update(trainer, state, step, folder / "profile")
                else:
                    state, metrics = trainer.update(state, step)
                log.write()  # the previous update's row, while the device computes this one
                log.add(number, metrics)
                is_last = number == trainer.steps
                is_last |= config.max_seconds > 0 and log.has_spent(config.max_seconds)

                if trainer.eval_every and (number % trainer.eval_every == 0 or is_last):
                    progress = _evaluate(trainer, state.params, progress, number, log)
                improved = progress.best_step == number
                if not trainer.overlaps:
                    log.write()

                stop = is_last or (trainer.patience > 0 and progress.stale >= trainer.patience)
                interrupted = interrupt.requested(number)
                is_due = config.save_every and number % config.save_every == 0
                if stop or improved or interrupted or is_due or trainer.problem:
                    log.write()
                    stop = stop and not trainer.problem
                    progress = progress._replace(done=stop, memory=trainer.memory, log=log.state)
                    checkpoints.best = progress.best_step
                    checkpoints.save(number, state._asdict(), progress._asdict())
                    log.restart_clock()
                if stop or trainer.problem or interrupted:
                    break
            checkpoints.wait()
            if trainer.problem:
                raise InputError(trainer.problem)
            if not progress.done:
                raise KeyboardInterrupt(f"interrupted; step {number} is saved")
            log.print(log.summary())
        del state
        return _best_params(trainer, progress, checkpoints)


def _restore_progress(
    config: ConfigDict, trainer: Trainer, checkpoints: Checkpoints, start: int
) -> Progress:
    """The progress of the last checkpoint, or a new one; restores the trainer's memory."""
    if not start:
        rows = checkpoints.folder.parent / "metrics.jsonl"
        if jax.process_index() == 0 and rows.exists() and rows.stat().st_size:
            print(f"{rows}: has rows, but there is no checkpoint of them; the run begins again")
        return Progress(trainer.data, trainer.memory, run_dir.config_values(config), {})
    loop, folder = checkpoints.loop(start), checkpoints.folder.parent
    if loop.keys() != set(Progress._fields):
        raise InputError(
            f"run_dir={folder}: is a run of another version; finish it with that version, or "
            "choose another run_dir"
        )
    progress = Progress(**loop)
    run_dir.check_config(folder, progress.config, config)
    if progress.data != trainer.data:
        raise InputError(
            f"run_dir={folder}: the training or validation data or the tokenizer has changed "
            f"since step {start}; choose another run_dir, or put the old data back"
        )
    files = {"metrics.jsonl": progress.log, "samples.jsonl": progress.memory.get("samples", {})}
    multihost.from_process_0(lambda: [check_rows(folder / name, files[name]) for name in files])
    if jax.process_index() == 0 and not (folder / "config.json").exists():
        run_dir.write_config(folder, config)
    checkpoints.best, trainer.memory = progress.best_step, progress.memory
    if trainer.problem:
        raise InputError(trainer.problem)
    return progress


def _restore_state(trainer: Trainer, checkpoints: Checkpoints, start: int) -> TrainState:
    """The state of the last checkpoint, or the initial parameters with moments of zero."""
    if start:
        state = TrainState(**checkpoints.restore(start, trainer.abstract._asdict()))
    else:
        with jax.set_mesh(trainer.mesh):
            params = trainer.initial_params()
            layout = jax.tree.map(lambda x: x.sharding, trainer.abstract.opt_state)
            init = jax.jit(trainer.optimizer.init, out_shardings=layout)
            state = TrainState(params, init(params))
    for part in state:  # compiled here rather than at the first save
        sharding.fingerprint(part)
    return state


def _trace_update(
    trainer: Trainer, state: TrainState, step: int, folder: Path
) -> tuple[TrainState, dict]:
    """One update, and a trace of host and devices for TensorBoard and ui.perfetto.dev."""
    with jax.profiler.trace(folder, create_perfetto_trace=jax.process_index() == 0):
        return jax.block_until_ready(trainer.update(state, step))


def _evaluate(trainer: Trainer, params: dict, progress: Progress, step: int, log: Log) -> Progress:
    """Logs an evaluation, ``step 50: validation/loss 0.6704  (best so far)``."""
    with log.paused():
        evaluation = trainer.evaluate(params, step)
    log.write(evaluation)
    progress = progress.evaluated(step, trainer.value(evaluation))
    values = "  ".join(f"{name} {value:.4f}" for name, value in evaluation.items())
    log.print(f"step {step}: {values}{'  (best so far)' * (progress.best_step == step)}")
    return progress


def _best_params(
    trainer: Trainer, progress: Progress, checkpoints: Checkpoints
) -> tuple[int, dict]:
    step = checkpoints.latest if progress.best_value == -math.inf else progress.best_step
    if step == 0:  # nothing was better than the start
        return 0, trainer.initial_params()
    if step not in checkpoints.steps:
        raise InputError(
            f"{checkpoints.folder / str(step)}: the checkpoint of the best step is missing; put "
            "it back, or start in a new run_dir"
        )
    return step, checkpoints.restore(step, {"params": trainer.abstract.params})["params"]
