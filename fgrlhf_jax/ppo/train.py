"""PPO as a run: prompts, a policy and a source of rewards in; an aligned policy out."""

import functools
import hashlib
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict
from tqdm import tqdm

from fgrlhf_jax.data import templates
from fgrlhf_jax.data.demonstrations import Demonstration
from fgrlhf_jax.data.records import Edit
from fgrlhf_jax.errors import InputError
from fgrlhf_jax.functional.policy_losses import adapt_kl_coef
from fgrlhf_jax.models import attention, hf_load, hf_save
from fgrlhf_jax.models.cards import Origin, format_figures
from fgrlhf_jax.ppo import imitation, learning, micro_batches, programs, rollout
from fgrlhf_jax.ppo import models as ppo_models
from fgrlhf_jax.ppo.algorithm import PPOSettings, samples_per_prompt
from fgrlhf_jax.ppo.model_flops import model_flops
from fgrlhf_jax.ppo.models import Architectures, Frozen
from fgrlhf_jax.ppo.rollout import PPOContext, Prompts
from fgrlhf_jax.reward_model.model import Normalization
from fgrlhf_jax.runtime import files, metric_log, multihost, run_dir, sharding, user_function
from fgrlhf_jax.runtime.memory import release_unused
from fgrlhf_jax.runtime.optim import TrainState
from fgrlhf_jax.training import correction, supervised
from fgrlhf_jax.training import run as training

HIGH_KL = 100.0  # nats a response: a run without a limit warns from half of it on


def run(config: ConfigDict, train: list, validation: list, edits: Sequence = ()) -> Path:
    """Trains as ``config`` says; goes on where an earlier start stopped.

    Args:
      config: ``configs/ppo.py``.
      train, validation: records with the prompts to learn from, and to evaluate on.
      edits: records to imitate, where ``config.ptx_weight`` is above 0.

    Returns:
      The run folder, with ``export`` in it, and where ``validation`` has edits ``eval.json`` with
      "corrections", as ``correction.before_and_after``.

    Raises:
      InputError: for anything in the config, prompts, models or reward function that cannot be
        used; when a number stops being finite, and when the KL passes its limit.
      KeyboardInterrupt: after Ctrl-C or SIGTERM, once the state is saved.
    """
    mesh = sharding.make_mesh(config.mesh)
    programs.check_sizes(config, mesh)
    attention.check_devices(config.model.attention, mesh)
    models = ppo_models.read_architectures(config)
    supervised.check_freeze(config.optimizer.freeze, ppo_models.abstract_params(models, mesh))
    tokenizer = ppo_models.read_tokenizer(config, models)
    template = read_template(config, models, tokenizer)
    prompts = {
        name: rollout.encode(name, rows, config, models, tokenizer, template)
        for name, rows in (("train", train), ("validation", validation))
    }
    check_prompts(config, prompts)
    imitated = imitation.encode(edits, config, tokenizer, template) if config.ptx_weight else []

    def load_functions() -> None:
        for path in filter(None, (config.reward_function, config.judge)):
            user_function.load(path)

    multihost.from_first(load_functions)
    trainer = PPOTrainer(config, mesh, models, tokenizer, prompts, imitated)
    trainer.folder = run_dir.open_run(config)
    step, params = training.run(config, trainer, trainer.folder)
    policy = params["policy"]
    if models.lora:  # the base is what it was, also where a run had only its export to make
        policy = trainer.frozen.base | policy
    shown = [row for row in validation if isinstance(row, Edit)]
    corrections = trainer.correct(policy, shown, template)
    figures = read_figures(trainer.folder, step) | correction.card_figures(corrections)
    note = export(trainer, policy, step, template, format_figures(figures))
    result = {"corrections": corrections} if corrections else None
    run_dir.finish(trainer.folder, step, note, result)
    return trainer.folder


def read_template(config: ConfigDict, models: Architectures, tokenizer) -> str:
    """That of ``rollout.resolve_template``; prints what is unusual about it."""
    template = rollout.resolve_template(config, models, tokenizer)
    learned = hf_load.learned_template(config.policy)
    if learned not in ("", template):
        print(f"data.template={template}, though the policy was fine-tuned with {learned}")
    ends = hf_load.end_ids(config.policy, tokenizer)
    if note := templates.check_end_of_turn(tokenizer, template, ends):
        print(f"policy={config.policy}: {note}")
    return template


def check_prompts(config: ConfigDict, prompts: dict[str, Prompts]) -> None:
    """Raises InputError for too few to learn from; prints that there are few to evaluate on."""
    count, samples = len(prompts["train"].ids), samples_per_prompt(config)
    if count * samples < config.rollout_batch_size:
        times = f", {samples} times each" if samples > 1 else ""
        raise InputError(
            f"rollout_batch_size={config.rollout_batch_size} is more than the {count} prompts "
            f"there are{times}; lower it or give more prompts"
        )
    wanted, count = config.validation_prompts, len(prompts["validation"].ids)
    if count < wanted:
        print(
            f"validation_prompts={wanted}: an evaluation has only {count}, which is all there are; "
            "for more give --config.validation or a larger validation_share"
        )


def export(trainer: "PPOTrainer", policy: dict, step: int, template: str, figures: str) -> str:
    """Writes the policy of a step as a Hugging Face folder; a note as of ``hf_save.save``."""
    config = trainer.config
    return hf_save.save(
        trainer.folder / "export",
        policy,
        trainer.models.policy.cfg,
        trainer.tokenizer,
        architecture=hf_save.LANGUAGE_MODEL,
        dtype=config.export.dtype,
        origin=Origin(
            config.policy,
            config.prompts,
            figures,
            config.reward_function or config.reward_model,
            trainer.base_digest,
        ),
        extra={"data": {"template": template}, "step": step},
        adapter=None if config.export.merged else trainer.models.lora,
    )


def read_figures(folder: Path, step: int) -> dict[str, float]:
    """The last evaluation up to a step, from the log of the run; {} on a host without it."""
    rows = files.read_jsonl(folder / "metrics.jsonl")
    last = [row for row in rows if "validation/kl" in row and row["step"] <= step][-1:]
    shown = [item for row in last for item in row.items() if item[0].startswith("validation/")]
    return dict(shown)


class PPOTrainer:
    """A ``training.run.Trainer`` on the policy's own responses.

    Its memory: ``kl_coef``, the coefficient of the next update; ``normalization`` of the rewards;
    ``samples``, the state of samples.jsonl; ``frozen``, fingerprints of what is only read;
    ``stopped_at``, the step and KL that stopped the run, or None.
    """

    def __init__(
        self,
        config: ConfigDict,
        mesh: Mesh,
        models: Architectures,
        tokenizer,
        prompts: dict[str, Prompts],
        demonstrations: Sequence[Demonstration] = (),
    ):
        self.config, self.mesh, self.models, self.tokenizer = config, mesh, models, tokenizer
        self.prompts, self.demonstrations, self.steps = prompts, demonstrations, config.steps
        self.eval_every, self.patience = config.eval_every or config.steps, 0
        self.overlaps = False  # the next rollout needs the updated policy
        self.bar = {"reward/mean": ".3f", "policy/kl": ".2f"}
        lengths = [len(ids) for part in prompts.values() for ids in part.ids]
        lengths += [row.prompt_length for row in demonstrations]
        widths = micro_batches.row_widths(lengths, config.data.max_new_tokens)
        self.prompt_width, self.width = max(lengths), widths[-1]
        self.one_pass = PPOSettings.from_config(config, widths).one_pass
        self.optimizer, self.learning_rates = programs.make_optimizer(config)
        self.programs = programs.make(
            config,
            models,
            mesh,
            self.optimizer,
            ends=hf_load.end_ids(config.policy, tokenizer),
            prompt_width=self.prompt_width,
            widths=widths,
        )
        self.abstract = self.programs["update"].arguments[0]
        rows = [part.ids for part in prompts.values()]
        if demonstrations:
            rows.append([[row.prompt_length, *row.tokens.tolist()] for row in demonstrations])
        ids = json.dumps(rows)
        self.data = hashlib.sha256(ids.encode()).hexdigest()[:16]
        self.memory = {"kl_coef": config.kl.coef, "stopped_at": None, "samples": {}}
        self.checked, self.base_digest = False, ""

    def initial_params(self) -> dict:
        return ppo_models.initial_params(self.config, self.models, self.mesh)

    @functools.cached_property
    def frozen(self) -> Frozen:
        """What is only read, loaded once; raises InputError where a resume finds other weights."""
        loaded, self.base_digest = ppo_models.load_frozen(self.config, self.models, self.mesh)
        with jax.set_mesh(self.mesh):
            found = [int(sharding.fingerprint(part)) for part in loaded]
        if (known := self.memory.setdefault("frozen", found)) != found:
            changed = "policy" if known[:2] != found[:2] else "reward_model"
            raise InputError(
                f"run_dir={self.folder}: the weights in {changed}={self.config[changed]} have "
                "changed since the run began; choose another run_dir, or put the old ones back"
            )
        return loaded

    def prepare(self, state: TrainState, start: int) -> dict[str, float]:
        """Loads the frozen models, compiles, and evaluates the policy before PPO."""
        config, memory = self.config, self.memory
        _ = self.frozen
        compiled = {name: p.lower().compile() for name, p in self.programs.items()}
        release_unused()
        multihost.wait_for_all()
        self.context = PPOContext(
            config,
            self.models,
            self.tokenizer,
            self.mesh,
            programs.generation_mesh(config, self.mesh),
            self.prompt_width,
            self.frozen,
            compiled,
        )
        self.samples = None
        if jax.process_index() == 0:
            self.samples = metric_log.RowFile(self.folder / "samples.jsonl", memory["samples"])
        if start:
            return {}
        normalization = rollout.normalize_on_validation(
            self.context, state.params, self.prompts["validation"]
        )
        memory["normalization"] = normalization._asdict()
        evaluation = self.evaluate(state.params, 0)
        return evaluation | {
            f"reward/normalization_{name}": value for name, value in memory["normalization"].items()
        }

    def update(self, state: TrainState, step: int) -> tuple[TrainState, dict]:
        """A rollout with the current policy, and all updates from it."""
        config, prompts, kl_coef = self.config, self.prompts["train"], self.memory["kl_coef"]
        samples, size = samples_per_prompt(config), config.rollout_batch_size
        rows = rollout.rows_of_step(len(prompts.ids), size // samples, seed=config.seed, step=step)
        responses = rollout.roll_out(
            self.context,
            state.params,
            Normalization(**self.memory["normalization"]),
            prompts.take(np.repeat(rows, samples)),
            rollout.key_of(config.seed, rollout.SAMPLE, step),
            learning=True,
        )
        clock, std = time.perf_counter(), np.float32(self.memory["normalization"]["std"])
        with jax.set_mesh(self.mesh):
            imitated = imitation.draw(self.demonstrations, config, self.width, step)
            state, metrics = self.context.programs["update"](
                state,
                self.frozen,
                responses.rollout,
                np.float32(kl_coef),
                rollout.key_of(config.seed, rollout.SHUFFLE, step),
                sharding.put_batch(imitated, self.mesh, axis=1),
                std if config.algorithm == "distill" else None,
            )
        metrics = metric_log.to_floats(metrics)
        seconds = responses.seconds | {"update": time.perf_counter() - clock}
        tokens = sum(map(len, responses.ids))
        flops = model_flops(
            self.models,
            [len(ids) for ids in responses.prompts.ids],
            [len(ids) for ids in responses.ids],
            epochs=config.ppo_epochs,
            scored=bool(self.frozen.reward_model),
            one_pass=self.one_pass,
            distills=config.algorithm == "distill",
            imitated=imitated and (imitated.start_B, imitated.response_BT.sum(axis=-1)),
        )
        metrics |= {
            "policy/kl_coef": kl_coef,
            **{
                f"{learning.GROUPS[part]}/learning_rate": float(rates[step])
                for part, rates in self.learning_rates.items()
            },
            "tokens": tokens,
            "model_flops": sum(flops.values()),
            **{f"time/{name}": s for name, s in seconds.items()},
            **{f"tokens_per_second/{name}": tokens / s for name, s in seconds.items()},
        }
        reference_kl = metrics.pop("reference_kl")
        if not self.checked:
            first_kl, int8_cache = 0.0 if step else reference_kl, config.sampling.int8_cache
            check_first(metrics, first_kl, step + 1, config.model.dtype, int8_cache)
            self.checked = True
        self._follow_kl(metrics["policy/kl"], step + 1)
        return state, metrics

    def _follow_kl(self, kl: float, step: int) -> None:
        """Adapts the KL coefficient; a KL above the limit is a problem, a high one is printed."""
        config = self.config.kl
        if config.target:
            self.memory["kl_coef"] = adapt_kl_coef(
                self.memory["kl_coef"],
                kl,
                target=config.target,
                horizon=config.horizon,
                rows=self.config.rollout_batch_size,
            )
        high = (config.limit or HIGH_KL) / 2
        if config.limit and kl > config.limit:
            self.memory["stopped_at"] = [step, kl]
        elif kl > high and jax.process_index() == 0:
            tqdm.write(f"step {step}: warning: KL is {kl:.1f}, above {high:g} nats")

    @property
    def problem(self) -> str:
        if not self.memory["stopped_at"]:
            return ""
        step, kl = self.memory["stopped_at"]
        return (
            f"step {step}: KL to the reference is {kl:.1f} nats a response, above "
            f"kl.limit={self.config.kl.limit}; stopped, step {step} is saved; raise kl.coef or "
            "lower optimizer.learning_rate in a new run_dir"
        )

    def evaluate(self, params: dict, step: int) -> dict[str, float]:
        """Metrics of the validation prompts; appends some responses to ``samples.jsonl``."""
        normalization = Normalization(**self.memory["normalization"])
        metrics, samples = rollout.evaluate(
            self.context, params, normalization, self.prompts["validation"], step
        )
        if self.samples:
            self.samples.append(*samples)
            self.memory["samples"] = self.samples.state
        return metrics

    def correct(self, policy: dict, edits: list[Edit], template: str) -> dict:
        """``correction.before_and_after`` on held-out edits, cut to what a response may be."""
        if not edits:
            return {}
        data = self.config.data
        limits = {
            "template": template,
            "max_prompt_length": data.max_prompt_length,
            "max_length": data.max_prompt_length + data.max_new_tokens,
            "overlong": "truncate",
        }
        pairs = correction.encode_held_out(edits, self.tokenizer, limits)
        start, _ = ppo_models.complete_frozen(self.frozen)
        return correction.before_and_after(start, policy, pairs, self.models.policy, self.mesh)

    def value(self, evaluation: dict[str, float]) -> float:
        """With ``best_metric=score`` the judge's score, or without a judge what PPO is paid for."""
        if self.config.best_metric == "last":
            return -np.inf
        names = ("score", "reward_with_missing_eos", "reward")
        return next(x for name in names if (x := evaluation.get(f"validation/{name}")) is not None)


def check_first(
    metrics: dict, reference_kl: float, step: int, dtype: str, int8_cache: bool
) -> None:
    """Raises RuntimeError where policies that must be the same give other log-probabilities.

    The policy that is updated must be the one that sampled, as it was at the first minibatch and,
    before any update, the reference. In bfloat16 only means are compared: of two sound programs of
    SmolLM2 they differ by 0.001 nats, and a single log-probability by 0.2; with ``int8_cache`` the
    sampler's may differ as much.
    """
    kls = ("debug/initial_kl", "debug/sampler_mismatch_kl")
    values = {name: metrics[name] for name in ("debug/initial_log_ratio", *kls)}
    values["reference KL"] = reference_kl
    tolerances = dict.fromkeys(values, 1e-3 if dtype == "float32" else 0.02)
    if dtype != "float32":
        tolerances["debug/initial_log_ratio"] = math.inf
    if int8_cache:
        tolerances["debug/sampler_mismatch_kl"] = 0.02
    if any(
        tolerances[n] < value < math.inf for n, value in values.items()
    ):  # else the loop says it
        described = ", ".join(f"{name} {value}" for name, value in values.items())
        raise RuntimeError(
            f"step {step}: the policy is not the one that sampled, or the first minibatch or the "
            f"reference is not as it was: {described}; all must be 0"
        )
