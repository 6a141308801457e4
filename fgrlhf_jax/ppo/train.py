"""PPO as a run: prompts in; an aligned policy, its log and its samples out; resumable."""

import contextlib
import hashlib
import json
import math
import time
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.functional import policy_losses as po
from fgrlhf_jax.models import hf_load, hf_save
from fgrlhf_jax.ppo import models as ppo_models
from fgrlhf_jax.ppo import programs as ppo_programs
from fgrlhf_jax.ppo import rollout as rollouts
from fgrlhf_jax.reward_model import model as reward
from fgrlhf_jax.runtime import files, metric_log, multihost, run_dir, sharding, user_function
from fgrlhf_jax.runtime.checkpoint import Checkpoints
from fgrlhf_jax.runtime.files import write_json
from fgrlhf_jax.runtime.optim import TrainState
from fgrlhf_jax.training import supervised
from fgrlhf_jax.training.run import peak_memory

HIGH_KL = 100.0  # nats a response: a run without a limit warns from half of it on


class Progress(NamedTuple):
    """What a run remembers besides its state; saved with every checkpoint."""

    kl_coef: float
    best_step: int = 0
    best_value: float = -math.inf
    normalization_mean: float = 0.0
    normalization_std: float = 1.0
    data: str = ""  # digest of all prompts: a resume on others would not be one
    frozen: list[int] | None = None  # fingerprints of reference and reward model, likewise
    exploded: float = 0.0  # the KL that stopped the run


def run(config: ConfigDict, train: list, validation: list) -> Path:
    """Train as ``config`` says; go on where an earlier start stopped.

    Args:
      config: ``configs/ppo.py``.
      train, validation: records with the prompts to learn from, and to watch.

    Returns:
      The run folder, with ``export`` in it.

    Raises:
      InputError: for anything in the config, prompts, models or reward function that cannot be
        used; when a number stops being finite, and when the KL passes its limit.
      KeyboardInterrupt: after Ctrl-C or SIGTERM, once the state is saved.
    """
    mesh = sharding.make_mesh(config.mesh)
    ppo_programs.check(config, mesh)
    modules = ppo_models.read_modules(config)
    supervised.check_freeze(config.optimizer.freeze, ppo_models.abstract_params(modules, mesh))
    tokenizer = ppo_models.read_tokenizer(config, modules)
    own, used = hf_load.learned_template(config.policy), rollouts.template(config, modules)
    if own not in ("", used):
        print(f"data.template={used}, though the policy was fine-tuned with {own}")
    sets = {"train": train, "validation": validation}
    sets = {
        name: rollouts.encode(name, rows, config, modules, tokenizer)
        for name, rows in sets.items()
    }
    if len(sets["train"].ids) < config.rollout_batch_size:
        raise InputError(
            f"rollout_batch_size={config.rollout_batch_size} is more than the "
            f"{len(sets['train'].ids)} prompts there are; lower it or give more prompts"
        )

    def load() -> None:
        for name in ("reward_function", "judge"):
            if config[name]:
                user_function.load(config[name])

    multihost.from_first(load)
    width = max(len(ids) for one in sets.values() for ids in one.ids)
    optimizer, rates = ppo_programs.make_optimizer(config)
    programs = ppo_programs.make(
        config,
        modules,
        mesh,
        optimizer,
        eos=tokenizer.eos_token_id,
        prompt_width=width,
    )
    folder = run_dir.open_run(config)
    abstract = programs["learn"].arguments[0]
    checkpoints = Checkpoints(folder / "checkpoints", config.max_to_keep)
    with contextlib.closing(checkpoints):
        start = checkpoints.latest or 0
        digest = hashlib.sha256(
            json.dumps([one.ids for one in sets.values()]).encode()
        ).hexdigest()[:16]
        multihost.check_same(digest, "prompts")
        progress = Progress(kl_coef=config.kl.coef, data=digest)
        if start:
            progress = Progress(**checkpoints.loop(start))
            if progress.data != digest:
                raise InputError(
                    f"run_dir={folder}: the prompts or their tokenizer have changed since step "
                    f"{start}; choose another run_dir, or put the old prompts back"
                )
            if progress.exploded and config.kl.limit:
                raise InputError(_explosion(config, start, progress.exploded))
        if start < config.steps:
            if start:
                state = TrainState(**checkpoints.restore(start, abstract._asdict()))
            else:
                with jax.set_mesh(mesh):
                    params = ppo_models.initial_params(config, modules, mesh)
                    layout = jax.tree.map(lambda x: x.sharding, abstract.opt_state)
                    opt_state = jax.jit(optimizer.init, out_shardings=layout)(params)
                    state = TrainState(params, opt_state)
                    del params, opt_state
            reference, scorer = ppo_models.frozen_params(config, modules, mesh)
            with jax.set_mesh(mesh):
                frozen = [int(sharding.fingerprint(part)) for part in (reference, scorer)]
            if start and progress.frozen != frozen:
                changed = "policy" if progress.frozen[0] != frozen[0] else "reward_model"
                raise InputError(
                    f"run_dir={folder}: the weights in {changed}={config[changed]} have changed "
                    f"since step {start}; choose another run_dir, or put the old ones back"
                )
            compiled = {name: one.lower(mesh).compile() for name, one in programs.items()}
            multihost.wait_for_all()
            models = rollouts.Models(modules, tokenizer, mesh, reference, scorer, compiled)
            if not start:
                mean, std = rollouts.fit_normalization(
                    config, models, state.params, sets["validation"]
                )
                progress = progress._replace(
                    normalization_mean=mean, normalization_std=std, frozen=frozen
                )
            progress = loop(
                config, models, sets, state, progress, start, rates, checkpoints, folder
            )
            del state, reference, scorer, models
        step = checkpoints.latest
        if config.best_metric == "score" and progress.best_step in (0, *checkpoints.steps):
            step = progress.best_step
        if step:
            params = checkpoints.restore(step, {"params": abstract.params})["params"]
        else:  # nothing was better than the policy before PPO
            params = ppo_models.initial_params(config, modules, mesh)
    note = hf_save.save(
        folder / "export",
        params["policy"],
        modules.policy.cfg,
        tokenizer,
        architecture=hf_save.LANGUAGE_MODEL,
        extra={"data": {"template": rollouts.template(config, modules)}, "step": step},
    )
    if jax.process_index() == 0:
        print(note)
        write_json(folder / "finished.json", {"step": step})
    multihost.wait_for_all()
    return folder


def rows_of_step(count: int, size: int, *, seed: int, step: int) -> np.ndarray:
    """int[size]: the prompts of a step, a fresh permutation every epoch; a pure function."""
    epoch, batch = divmod(step, count // size)
    order = np.random.default_rng((seed, epoch)).permutation(count)
    return order[batch * size : (batch + 1) * size]


def loop(
    config: ConfigDict,
    models: rollouts.Models,
    sets: dict[str, rollouts.Prompts],
    state: TrainState,
    progress: Progress,
    start: int,
    rates: np.ndarray,
    checkpoints: Checkpoints,
    folder: Path,
) -> Progress:
    """PPO steps ``start + 1`` to ``config.steps``; the last one made is always saved."""
    B, train = config.rollout_batch_size, sets["train"]
    log = metric_log.Log(folder, step=start, steps=config.steps, tensorboard=config.tensorboard)
    samples_path = folder / "samples.jsonl"
    if log.writes:
        metric_log.cut_rows(samples_path, start or -1)
    for part in state:  # compiled here, in the warm-up
        sharding.fingerprint(part)
    compiled = None
    first = True
    normalization = reward.Normalization(
        progress.normalization_mean, progress.normalization_std
    )

    def watch(params, step: int) -> dict[str, float]:
        figures, samples = rollouts.evaluate(
            config, models, params, normalization, sets["validation"], step
        )
        if log.writes:
            with (
                files.as_input_error(samples_path),
                contextlib.closing(files.JsonlFile(samples_path, durable=False)) as file,
            ):
                file.append(b"".join(map(files.json_line, samples)))
        return figures

    with contextlib.closing(log), run_dir.Interrupt() as interrupt:
        if not start:
            row = {"step": 0, **watch(state.params, 0)}
            row |= {f"reward/normalization_{n}": v for n, v in normalization._asdict().items()}
            check_finite(row, checkpoints)
            log.write(row)
            progress = progress._replace(best_value=watched_value(row))
        for step in range(start, config.steps):
            number = step + 1
            rows = rows_of_step(len(train.ids), B, seed=config.seed, step=step)
            some = rollouts.Prompts(*([part[r] for r in rows] for part in train))
            rollout, raw_BT, seconds, _, ids, sampler_kl = rollouts.roll_out(
                config,
                models,
                state.params,
                normalization,
                some,
                rollouts.key_of(config.seed, rollouts.SAMPLE, step),
            )
            clock = time.perf_counter()
            with jax.set_mesh(models.mesh):
                state, found = models.compiled["learn"](
                    state,
                    rollout,
                    np.float32(progress.kl_coef),
                    rollouts.key_of(config.seed, rollouts.SHUFFLE, step),
                )
            row = {
                "step": number,
                **metric_log.to_floats(found),
                "debug/sampler_mismatch_kl": sampler_kl,
            }
            seconds["update"] = time.perf_counter() - clock
            check_finite(row, checkpoints)
            if first:
                check_first(row, config.model.dtype)
                first = False
            tokens = sum(map(len, ids))
            row |= {
                "reward/raw": float(raw_BT.sum(axis=1).mean()),
                "policy/kl_coef": progress.kl_coef,
                "policy/learning_rate": float(rates[step, 0]),
                "value/learning_rate": float(rates[step, 1]),
                "tokens": tokens,
                "time/step": sum(seconds.values()),
                "tokens_per_second": tokens / sum(seconds.values()),
                **{f"time/{name}": s for name, s in seconds.items()},
                **{f"tokens_per_second/{name}": tokens / s for name, s in seconds.items()},
            }
            if config.kl.target:
                kl_coef = po.adapt_kl_coef(
                    progress.kl_coef,
                    row["policy/kl"],
                    target=config.kl.target,
                    horizon=config.kl.horizon,
                    rows=B,
                )
                progress = progress._replace(kl_coef=kl_coef)
            last = number == config.steps
            improved = False
            if last or (config.eval_every and number % config.eval_every == 0):
                row |= watch(state.params, number)
                check_finite(row, checkpoints)
                value = watched_value(row)
                improved = value > progress.best_value
                if improved:
                    progress = progress._replace(best_step=number, best_value=value)
            log.write(row)
            log.progress(
                number, reward=f"{row['reward/mean']:.3f}", kl=f"{row['policy/kl']:.2f}"
            )
            if compiled is None:
                compiled = metric_log.compilations()
            exploded = config.kl.limit and row["policy/kl"] > config.kl.limit
            high = (config.kl.limit or HIGH_KL) / 2
            if not exploded and row["policy/kl"] > high:
                log.print(
                    f"step {number}: warning: KL is {row['policy/kl']:.1f}, above {high:g} nats"
                )
            progress = progress._replace(exploded=row["policy/kl"] if exploded else 0.0)
            due = config.save_every and number % config.save_every == 0
            best = improved and config.best_metric == "score"
            interrupted = interrupt.requested()
            if last or best or due or exploded or interrupted:
                checkpoints.save(number, state._asdict(), progress._asdict(), best=best)
            if exploded:
                checkpoints.wait()
                raise InputError(_explosion(config, number, row["policy/kl"]))
            if interrupted and not last:
                checkpoints.wait()
                raise KeyboardInterrupt(f"interrupted; step {number} is saved")
        checkpoints.wait()
        log.print(
            f"peak memory {peak_memory()}; "
            f"{metric_log.compilations() - (compiled or 0)} compilations after the first step"
        )
    return progress


def watched_value(row: dict) -> float:
    """What best_metric=score compares: the judge's score, or without a judge the reward."""
    return row.get("validation/score", row["validation/reward"])


def _explosion(config: ConfigDict, step: int, kl: float) -> str:
    return (
        f"step {step}: KL to the reference is {kl:.1f} nats a response, above "
        f"kl.limit={config.kl.limit}; stopped, step {step} is saved; raise kl.coef or lower "
        "optimizer.learning_rate in a new run_dir"
    )


def check_finite(row: dict, checkpoints: Checkpoints) -> None:
    """Raises InputError where a number is not finite."""
    for name, value in row.items():
        if not math.isfinite(value):
            checkpoints.wait()
            last = checkpoints.latest
            kept = f"the last good checkpoint is step {last}" if last else "nothing was saved"
            raise InputError(
                f"step {row['step']}: {name} is {value}; stopped, {kept}; lower "
                "optimizer.learning_rate in a new run_dir"
            )


def check_first(row: dict, dtype: str) -> None:
    """Raises RuntimeError where the policy that is updated is not the one that sampled: the first
    minibatch must have ratio 1 and KL 0 to the old policy, and this one to the sampler, but for
    rounding."""
    tolerance = 1e-3 if dtype == "float32" else 0.2
    names = ("debug/initial_log_ratio", "debug/initial_kl", "debug/sampler_mismatch_kl")
    if any(row[name] > tolerance for name in names):
        found = ", ".join(f"{name} {row[name]}" for name in names)
        raise RuntimeError(
            f"step {row['step']}: the policy is not the one that sampled, or the first minibatch "
            f"is not as it was: {found}; all must be 0"
        )
