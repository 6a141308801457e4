"""A PPO run: from prompts, a policy and a source of rewards to an aligned, exported policy."""

import functools
import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict
from tqdm import tqdm

from fgrlhf_jax.data.demonstrations import Demonstration
from fgrlhf_jax.data.records import Edit
from fgrlhf_jax.errors import InputError
from fgrlhf_jax.functional.policy_losses import adapt_kl_coef
from fgrlhf_jax.models import attention, decoding, hf_load, hf_save
from fgrlhf_jax.models.cards import Origin, format_figures
from fgrlhf_jax.ppo import checks, imitation, learning, programs, rollout
from fgrlhf_jax.ppo import models as ppo_models
from fgrlhf_jax.ppo.algorithm import PPOSettings, samples_per_prompt
from fgrlhf_jax.ppo.model_flops import model_flops
from fgrlhf_jax.ppo.models import Architectures, Frozen
from fgrlhf_jax.ppo.rollout import PPOContext, Prompts
from fgrlhf_jax.reward_model.model import Normalization
from fgrlhf_jax.runtime import files, metric_log, multihost, optim, run_dir, sharding
from fgrlhf_jax.runtime.memory import release_unused
from fgrlhf_jax.runtime.optim import TrainState
from fgrlhf_jax.training import correction, setup
from fgrlhf_jax.training import run as training

HIGH_KL = 100.0  # nats per response; a run without a limit warns from half of it on


def run(config: ConfigDict, train: list, validation: list, edits: Sequence = ()) -> Path:
    """Trains as ``config`` (``configs/ppo.py``) says; resumes an interrupted run.

    Args:
      train, validation: records with the prompts for training and for evaluation.
      edits: records to imitate if ``config.ptx_weight`` is above 0.

    Returns the run folder, which has ``export`` and, if ``validation`` has edits, ``eval.json``
    with "corrections", as ``correction.before_and_after``.

    Raises as ``training.run.run``, and InputError for an unusable config, prompt file, model or
    reward function, and if the KL exceeds its limit.
    """
    mesh = sharding.make_mesh(config.mesh)
    programs.check_sizes(config, mesh)
    attention.check_devices(config.model.attention, mesh)
    models = ppo_models.read_architectures(config)
    setup.check_freeze(config.optimizer.freeze, ppo_models.abstract_params(models, mesh))
    tokenizer = ppo_models.read_tokenizer(config, models)
    template = checks.resolve_template(config, models, tokenizer)
    prompts = {
        name: rollout.encode(name, rows, config, models, tokenizer, template)
        for name, rows in (("train", train), ("validation", validation))
    }
    checks.check_prompts(config, prompts)
    imitated = imitation.encode(edits, config, tokenizer, template) if config.ptx_weight else []
    checks.load_functions(config)
    trainer = PPOTrainer(config, mesh, models, tokenizer, prompts, imitated)
    trainer.folder = run_dir.open_run(config)
    step, params = training.run(config, trainer, trainer.folder)
    policy = params["policy"]
    if models.lora:  # checks that the base is unchanged, even if only the export is missing
        policy = trainer.frozen.base | policy
    edited = [row for row in validation if isinstance(row, Edit)]
    corrections = trainer.measure_corrections(policy, edited, template)
    figures = last_evaluation(trainer.folder, step) | correction.card_figures(corrections)
    note = export(trainer, policy, step, template, format_figures(figures))
    result = {"corrections": corrections} if corrections else None
    run_dir.finish(trainer.folder, step, note, result)
    return trainer.folder


class PPOTrainer:
    """A ``training.run.Trainer`` on the policy's own responses.

    Its memory: ``kl_coef``, the coefficient of the next update; ``normalization`` of the rewards;
    ``samples``, the state of samples.jsonl; ``frozen``, fingerprints of the frozen parameters;
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
        widths = programs.row_widths(lengths, config.data.max_new_tokens)
        prompt_widths = programs.prompt_widths(lengths)
        self.prompt_width, self.width = prompt_widths[-1], widths[-1]
        self.settings = PPOSettings.from_config(config, widths)
        self.optimizer, self.learning_rates = programs.make_optimizer(config)
        shapes = {"prompt_widths": prompt_widths, "widths": widths}
        ends = hf_load.end_ids(config.policy, tokenizer)
        self.programs = programs.make(config, models, mesh, self.optimizer, ends=ends, **shapes)
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
        """The frozen parameters, loaded once; raises InputError if a resume finds others."""
        loaded, self.base_digest = ppo_models.load_frozen(self.config, self.models, self.mesh)
        with jax.set_mesh(self.mesh):
            fingerprints = [int(sharding.fingerprint(part)) for part in loaded]
        if (saved := self.memory.setdefault("frozen", fingerprints)) != fingerprints:
            changed = "policy" if saved[:2] != fingerprints[:2] else "reward_model"
            raise InputError(
                f"run_dir={self.folder}: the weights in {changed}={self.config[changed]} have "
                "changed since the run began; choose another run_dir, or put the old ones back"
            )
        return loaded

    def prepare(self, state: TrainState, start: int) -> dict[str, float]:
        """Loads the frozen models, compiles, and evaluates the policy before PPO."""
        config, memory = self.config, self.memory
        _ = self.frozen
        compiled = optim.compile_all({name: p.lower() for name, p in self.programs.items()})
        release_unused()
        multihost.wait_for_all()
        generation_mesh = programs.generation_mesh(config, self.mesh)
        policy = ppo_models.merge_base(state.params, self.frozen)["policy"]
        self.context = PPOContext(
            *(config, self.models, self.tokenizer, self.mesh, generation_mesh),
            *(self.prompt_width, self.frozen, compiled),
            decoding.make_placer(policy, self.models.policy, generation_mesh),
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
        values = memory["normalization"].items()
        return evaluation | {f"reward/normalization_{name}": value for name, value in values}

    def update(self, state: TrainState, step: int) -> tuple[TrainState, dict]:
        """Makes a rollout with the current policy, and all updates from it."""
        config, prompts, kl_coef = self.config, self.prompts["train"], self.memory["kl_coef"]
        samples, size = samples_per_prompt(config), config.rollout_batch_size
        rows = rollout.rows_of_step(len(prompts.ids), size // samples, seed=config.seed, step=step)
        responses = rollout.roll_out(
            self.context,
            state.params,
            Normalization(**self.memory["normalization"]),
            prompts.take(np.repeat(rows, samples)),
            rollout.step_key(config.seed, rollout.SAMPLE, step),
            learning=True,
        )
        start, std = time.perf_counter(), np.float32(self.memory["normalization"]["std"])
        with jax.set_mesh(self.mesh):
            ptx_rows = imitation.draw(self.demonstrations, config, self.width, step)
            state, metrics = self.context.programs["update"](
                state,
                self.frozen,
                responses.rollout,
                np.float32(kl_coef),
                rollout.step_key(config.seed, rollout.SHUFFLE, step),
                sharding.put_batch(ptx_rows, self.mesh, axis=1),
                std if config.algorithm == "distill" else None,
            )
        metrics = metric_log.to_floats(metrics)
        seconds = responses.seconds | {"update": time.perf_counter() - start}
        tokens = sum(map(len, responses.ids))
        flops = model_flops(
            *(self.models, self.settings),
            *([len(ids) for ids in rows] for rows in (responses.prompts.ids, responses.ids)),
            scored=bool(self.frozen.reward_model),
            imitated=ptx_rows and (ptx_rows.start_B, ptx_rows.response_BT.sum(axis=-1)),
        )
        metrics |= {
            "policy/kl_coef": kl_coef,
            **{
                f"{learning.GROUPS[part]}/learning_rate": float(rates[step])
                for part, rates in self.learning_rates.items()
            },
            "tokens": tokens,
            "model_flops": 0.0 if self.settings.freeze else sum(flops.values()),
            **{f"time/{name}": s for name, s in seconds.items()},
            **{f"tokens_per_second/{name}": tokens / s for name, s in seconds.items()},
        }
        reference_kl = metrics.pop("reference_kl")
        if not self.checked:
            first_kl, int8_cache = 0.0 if step else reference_kl, config.sampling.int8_cache
            options = config.model.dtype, int8_cache, self.settings.one_pass
            checks.check_first(metrics, first_kl, step + 1, *options)
            self.checked = True
        self._adapt_kl(metrics["policy/kl"], step + 1)
        return state, metrics

    def _adapt_kl(self, kl: float, step: int) -> None:
        """Adapts the KL coefficient; stops the run above the KL limit, prints a high KL."""
        config = self.config.kl
        if config.target:
            rule = {"target": config.target, "horizon": config.horizon}
            rule["rows"] = self.config.rollout_batch_size
            self.memory["kl_coef"] = adapt_kl_coef(self.memory["kl_coef"], kl, **rule)
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

    def measure_corrections(self, policy: dict, edits: list[Edit], template: str) -> dict:
        """``correction.before_and_after`` on held-out edits, cut to PPO's response length."""
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
        initial, _ = ppo_models.merge_frozen(self.frozen)
        return correction.before_and_after(initial, policy, pairs, self.models.policy, self.mesh)

    def value(self, evaluation: dict[str, float]) -> float:
        """With ``best_metric=score`` the judge's score, without a judge PPO's own reward."""
        if self.config.best_metric == "last":
            return -np.inf
        names = ("score", "reward_with_missing_eos", "reward")
        return next(x for name in names if (x := evaluation.get(f"validation/{name}")) is not None)


def export(trainer: PPOTrainer, policy: dict, step: int, template: str, figures: str) -> str:
    """Writes the policy of a step as a Hugging Face folder; returns ``hf_save.save``'s note."""
    config = trainer.config
    reward_source = config.reward_function or config.reward_model
    data = {"template": template, "max_new_tokens": config.data.max_new_tokens}
    return hf_save.save(
        trainer.folder / "export",
        policy,
        trainer.models.policy.cfg,
        trainer.tokenizer,
        architecture=hf_save.LANGUAGE_MODEL,
        dtype=config.export.dtype,
        origin=Origin(config.policy, config.prompts, figures, reward_source, trainer.base_digest),
        extra={"data": data, "step": step},
        adapter=trainer.models.lora,
        merged=config.export.merged,
    )


def last_evaluation(folder: Path, step: int) -> dict[str, float]:
    """The last evaluation up to a step, from the log of the run; {} on a host without it."""
    rows = files.read_jsonl(folder / "metrics.jsonl")
    last = [row for row in rows if "validation/kl" in row and row["step"] <= step][-1:]
    values = [item for row in last for item in row.items() if item[0].startswith("validation/")]
    return dict(values)
