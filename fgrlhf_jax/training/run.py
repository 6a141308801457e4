"""The loop of supervised updates: log, evaluate, save, stop; and go on as if never interrupted."""

import math
import resource
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.runtime import sharding
from fgrlhf_jax.runtime.checkpoint import Checkpoints
from fgrlhf_jax.runtime.metric_log import Log, compilations, to_floats
from fgrlhf_jax.runtime.run_dir import Interrupt


class Progress(NamedTuple):
    """What a loop remembers besides its state; saved with every checkpoint."""

    best_step: int = 0  # 0: none was evaluated yet
    best_value: float = math.inf
    stale: int = 0  # evaluations since the best one
    done: bool = False
    data: str = ""  # digest of the data: a resume on others would not be one


def peak_memory() -> str:
    """The most memory used so far: of one accelerator, or of this process on the CPU."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "peak_bytes_in_use" in stats:
        return f"{stats['peak_bytes_in_use'] / 2**30:.2f} GiB on a device"
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB (process)"


def run(
    state: Any,
    progress: Progress,
    *,
    start: int,
    steps: int,
    update: Callable[[Any, int], tuple[Any, dict, dict]],
    evaluate: Callable[[Any], dict[str, float]],
    select: Callable[[dict], float],
    eval_every: int,
    save_every: int,
    patience: int,
    checkpoints: Checkpoints,
    log: Log,
) -> Progress:
    """Make updates ``start + 1`` to ``steps``; the last one made is always saved.

    Args:
      state: a NamedTuple of trees; donated to ``update``.
      progress: as restored, or a fresh one.
      update: (state, updates made so far) -> new state, device scalars ``loss``, ``accuracy``, …,
        and host values for the same row, among them ``tokens``.
      evaluate: state -> figures of the validation set.
      select: those figures -> the value whose minimum marks the best checkpoint.
      eval_every: updates between evaluations; 0 never evaluates.
      save_every: updates between checkpoints; 0 saves at evaluations that improve and at the end.
      patience: evaluations without improvement before stopping; 0 never stops.

    Returns:
      The progress at the end, with ``done`` set.

    Raises:
      InputError: when the loss or its gradient is not finite; nothing is saved from there on.
      KeyboardInterrupt: after a signal, with the state saved.
    """
    for part in state:  # compiled here, in the warm-up, rather than at the first save
        sharding.fingerprint(part)
    compiled, clock, seconds, tokens = compilations(), time.perf_counter(), 0.0, 0
    pending = None

    def settle(evaluation: dict | None = None) -> None:
        """Write the row of the update before; its metrics are fetched only now."""
        nonlocal pending, clock, seconds, tokens
        number, device_metrics, extra = pending
        row = {"step": number, **to_floats(device_metrics), **extra}
        checked = {name: row[name] for name in ("loss", "grad_norm")} | (evaluation or {})
        for name, value in checked.items():
            if not math.isfinite(value):
                checkpoints.wait()
                last = checkpoints.latest
                kept = (
                    f"the last good checkpoint is step {last}" if last else "nothing was saved"
                )
                raise InputError(
                    f"step {number}: {name} is {value}; stopped, {kept}; lower "
                    "optimizer.learning_rate in a new run_dir, or look for what is wrong in the "
                    "data of that batch"
                )
        now = time.perf_counter()
        took, clock = now - clock, now
        seconds, tokens = seconds + took, tokens + row["tokens"]
        row |= {"time/step": took, "tokens_per_second": row["tokens"] / took}
        log.write(row | (evaluation or {}))
        log.progress(
            number,
            loss=f"{row['loss']:.4f}",
            acc=f"{row['accuracy']:.2f}",
            tok_s=f"{row['tokens_per_second']:.0f}",
        )
        pending = None

    with Interrupt() as interrupt:
        for step in range(start, steps):
            state, device_metrics, extra = update(state, step)
            if pending:
                settle()
            number = step + 1
            pending = (number, device_metrics, extra)
            last = number == steps
            evaluation = None
            improved = False
            if eval_every and (number % eval_every == 0 or last):
                jax.block_until_ready(device_metrics)
                pause = time.perf_counter()
                evaluation = evaluate(state)
                clock += time.perf_counter() - pause
                value = select(evaluation)
                improved = value < progress.best_value
                progress = progress._replace(stale=progress.stale + 1)
                if improved:
                    progress = progress._replace(best_step=number, best_value=value, stale=0)
            stop = last or (patience and progress.stale >= patience)
            if evaluation:
                settle(evaluation)
                log.print(describe(number, evaluation, improved))
            interrupted = interrupt.requested()
            if interrupted or improved or stop or (save_every and number % save_every == 0):
                if pending:
                    settle()
                progress = progress._replace(done=bool(stop))
                checkpoints.save(number, state._asdict(), progress._asdict(), best=improved)
                clock = time.perf_counter()
            if stop:
                break
            if interrupted:
                checkpoints.wait()
                raise KeyboardInterrupt(f"interrupted; step {number} is saved")
    checkpoints.wait()
    if seconds:
        log.print(
            f"{tokens / seconds:.0f} tokens/s over {seconds:.0f} s of updates; "
            f"peak memory {peak_memory()}; {compilations() - compiled} compilations after warm-up"
        )
    return progress


def describe(number: int, evaluation: dict[str, float], improved: bool) -> str:
    figures = "  ".join(f"{name} {value:.4f}" for name, value in evaluation.items())
    return f"step {number}: {figures}{'  (best so far)' if improved else ''}"
