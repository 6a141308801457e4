"""A PPO run: from prompts, a policy and a source of rewards to an aligned, exported policy."""

from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from fgrlhf_jax.data.chat import check_end_of_turn
from fgrlhf_jax.data.records import Edit, prompt_text
from fgrlhf_jax.data.templates import encode_prompts
from fgrlhf_jax.errors import InputError
from fgrlhf_jax.models import attention, hf_load, hf_save
from fgrlhf_jax.models.cards import Origin, format_figures
from fgrlhf_jax.ppo import imitation, programs
from fgrlhf_jax.ppo import models as ppo_models
from fgrlhf_jax.ppo.algorithm import samples_per_prompt
from fgrlhf_jax.ppo.rollout import Prompts
from fgrlhf_jax.ppo.trainer import PPOTrainer
from fgrlhf_jax.runtime import files, multihost, run_dir, sharding, user_function
from fgrlhf_jax.training import correction, setup
from fgrlhf_jax.training import run as training


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
    template = resolve_template(config, models, tokenizer)
    prompts = {
        name: encode(name, rows, config, models, tokenizer, template)
        for name, rows in (("train", train), ("validation", validation))
    }
    check_prompts(config, prompts)
    imitated = imitation.encode(edits, config, tokenizer, template) if config.ptx_weight else []

    def load_functions() -> None:
        for path in filter(None, (config.reward_function, config.judge)):
            user_function.load(path)

    multihost.from_process_0(load_functions)
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


def resolve_template(config: ConfigDict, models: ppo_models.Architectures, tokenizer) -> str:
    """The prompt template of a run; prints a line if it is unusual.

    In order: the config's; the reward model's; the one that the policy was fine-tuned with; chat,
    if the policy's tokenizer has a chat template; alpaca. If a function gives the rewards, the
    policy's comes before the reward model's. Raises InputError if the reward model needs another
    one.
    """
    rm_template = models.meta.data["template"] if models.meta else ""
    given, sft_template = config.data.template, hf_load.trained_template(config.policy)
    if config.reward_function:
        rm_template = sft_template or rm_template
    elif rm_template and sft_template and rm_template != sft_template and not given:
        raise InputError(
            f"the policy was fine-tuned with the template {sft_template}, the reward model with "
            f"{rm_template}; train both with the same, or give data.template={rm_template} if "
            "this is meant"
        )
    elif given and rm_template and given != rm_template:
        raise InputError(
            f"data.template={given}: the reward model was trained with {rm_template}; it scores "
            "the sampled tokens with their prompt as it is, so both need the same"
        )
    template = hf_load.resolve_template(config.policy, tokenizer, given or rm_template)
    if sft_template not in ("", template):
        print(f"data.template={template}, though the policy was fine-tuned with {sft_template}")
    ends = hf_load.end_ids(config.policy, tokenizer, print)
    if note := check_end_of_turn(tokenizer, template, ends):
        print(f"policy={config.policy}: {note}")
    return template


def encode(
    name: str,
    rows: list,
    config: ConfigDict,
    models: ppo_models.Architectures,
    tokenizer,
    template: str,
) -> Prompts:
    """Encodes the prompts of records; prints how many were left out or cut.

    Raises InputError if none is left, or if they leave no room for responses.
    """
    limits = {name: config.data[name] for name in ("max_prompt_length", "overlong")}
    try:
        ids, numbers, counts = encode_prompts(rows, tokenizer, template=template, **limits)
    except InputError as error:
        raise InputError(f"{name}: {error}") from error
    longest = max(map(len, ids)) + config.data.max_new_tokens
    limit = min(m.cfg.max_position for m in (models.policy, models.reward_model) if m)
    if longest > limit:
        raise InputError(
            f"a prompt and data.max_new_tokens make {longest} tokens, more than the model's "
            f"{limit} positions; lower data.max_new_tokens or data.max_prompt_length"
        )
    print(f"{name}: " + ", ".join(f"{n} {label}" for label, n in counts.items()))
    records = [rows[number] for number in numbers]
    return Prompts(ids, [prompt_text(r) for r in records], records)


def check_prompts(config: ConfigDict, prompts: dict[str, Prompts]) -> None:
    """Raises InputError for too few training prompts."""
    count, samples = len(prompts["train"].ids), samples_per_prompt(config)
    if count * samples < config.rollout_batch_size:
        times = f", {samples} times each" if samples > 1 else ""
        raise InputError(
            f"rollout_batch_size={config.rollout_batch_size} is more than the {count} prompts "
            f"there are{times}; lower it or give more prompts"
        )


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
