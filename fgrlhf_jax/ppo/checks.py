"""Checks of a PPO run: its template, prompts, functions and first update."""

import math

import jax
from ml_collections import ConfigDict

from fgrlhf_jax.data.chat import check_end_of_turn
from fgrlhf_jax.errors import InputError
from fgrlhf_jax.models import hf_load
from fgrlhf_jax.ppo.algorithm import samples_per_prompt
from fgrlhf_jax.ppo.models import Architectures
from fgrlhf_jax.ppo.rollout import Prompts
from fgrlhf_jax.runtime import multihost, user_function


def resolve_template(config: ConfigDict, models: Architectures, tokenizer) -> str:
    """The prompt template of a run; prints a line if it is unusual.

    In order: the config's; the reward model's; the one that the policy was fine-tuned with; chat,
    if the policy's tokenizer has a chat template; alpaca. If a function gives the rewards, the
    policy's comes before the reward model's. Raises InputError if the reward model needs another
    one.
    """
    rm_template = models.meta.data["template"] if models.meta else ""
    template, sft_template = config.data.template, hf_load.trained_template(config.policy)
    if config.reward_function:
        rm_template = sft_template or rm_template
    elif rm_template and sft_template and rm_template != sft_template and not template:
        raise InputError(
            f"the policy was fine-tuned with the template {sft_template}, the reward model with "
            f"{rm_template}; train both with the same, or give data.template={rm_template} if "
            "this is meant"
        )
    elif template and rm_template and template != rm_template:
        raise InputError(
            f"data.template={template}: the reward model was trained with {rm_template}; it scores "
            "the sampled tokens with their prompt as it is, so both need the same"
        )
    template = hf_load.resolve_template(config.policy, tokenizer, template or rm_template)
    if sft_template not in ("", template):
        print(f"data.template={template}, though the policy was fine-tuned with {sft_template}")
    ends = hf_load.end_ids(config.policy, tokenizer, print)
    if note := check_end_of_turn(tokenizer, template, ends):
        print(f"policy={config.policy}: {note}")
    return template


def check_prompts(config: ConfigDict, prompts: dict[str, Prompts]) -> None:
    """Raises InputError for too few training prompts."""
    count, samples = len(prompts["train"].ids), samples_per_prompt(config)
    if count * samples < config.rollout_batch_size:
        times = f", {samples} times each" if samples > 1 else ""
        raise InputError(
            f"rollout_batch_size={config.rollout_batch_size} is more than the {count} prompts "
            f"there are{times}; give more, or lower it, minibatch_size and micro_batch_size"
        )


def load_functions(config: ConfigDict) -> None:
    """Raises InputError if the config names a function that cannot be loaded."""

    def load() -> None:
        for path in filter(None, (config.reward_function, config.judge)):
            user_function.load(path)

    multihost.from_process_0(load)


def check_first(
    metrics: dict, reference_kl: float, step: int, dtype: str, int8_cache: bool, one_pass: bool
) -> None:
    """Raises RuntimeError if policies that must be equal give different log-probabilities.

    The updated policy must equal the sampler's and, before any update, the reference. In bfloat16
    only means are compared: for two correct programs of SmolLM2 they differ by 0.001 nats, single
    log-probabilities by 0.2. With ``int8_cache`` the sampler's may differ as much. Without
    ``one_pass`` one program scores policy and reference: on CPUs equal weights give equal bits. An
    accelerator may have different kernels for weights stored in float32 and in bfloat16.
    """
    kls = ("debug/initial_kl", "debug/sampler_mismatch_kl")
    values = {name: metrics[name] for name in ("debug/initial_log_ratio", *kls)}
    values["reference KL"] = reference_kl
    tolerances = dict.fromkeys(values, 1e-3 if dtype == "float32" else 0.02)
    if dtype != "float32":
        tolerances["debug/initial_log_ratio"] = math.inf
    if int8_cache:
        tolerances["debug/sampler_mismatch_kl"] = 0.02
    if not one_pass and jax.default_backend() == "cpu":
        tolerances["reference KL"] = 1e-5
    # NaN and infinity are reported by the training loop.
    if any(tolerances[name] < value < math.inf for name, value in values.items()):
        described = ", ".join(f"{name} {value}" for name, value in values.items())
        raise RuntimeError(
            f"step {step}: the policy is not the one that sampled, or the first minibatch or the "
            f"reference is not as it was: {described}; all must be 0"
        )
