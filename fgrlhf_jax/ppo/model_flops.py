"""FLOPs that a PPO step needs for rows of given lengths; see ``models.flops``."""

import numpy as np

from fgrlhf_jax.models.flops import decoding_flops, logits_flops, rows_flops
from fgrlhf_jax.models.heads import CausalLM
from fgrlhf_jax.ppo.algorithm import PPOSettings
from fgrlhf_jax.ppo.models import Architectures
from fgrlhf_jax.reward_model.combined import models_of


def model_flops(
    models: Architectures, settings: PPOSettings, prompts, responses, *, scored: bool, imitated=None
) -> dict[str, float]:
    """FLOPs of each program for rows of these tokens, over all devices.

    Args:
      prompts, responses: number of tokens of every row.
      scored: whether a reward model gives the rewards.
      imitated: numbers of prompt and response tokens of imitated demonstrations, if any.
    """
    cfg, rows = models.policy.cfg, np.add(prompts, responses)

    def policy_flops(prompts, responses) -> float:
        logits = logits_flops(cfg, np.sum(responses, dtype=float))
        return rows_flops(cfg, np.add(prompts, responses).ravel()) + logits

    forward = policy_flops(prompts, responses)
    value = rows_flops(models.critic.cfg, rows) if models.critic else 0.0
    ptx = policy_flops(*imitated) if imitated else 0.0
    scorers = models_of(models.reward_model) if scored else ()
    read = sum(rows_flops(model.cfg, rows) for model in scorers)
    policies = [model for model in scorers if isinstance(model, CausalLM)]
    score = read + sum(logits_flops(model.cfg, np.sum(rows, dtype=float)) for model in policies)
    epochs, target = settings.ppo_epochs, 0.0
    if settings.algorithm == "distill":  # the update also runs reference and reward models
        target = epochs * (
            forward + read + len(scorers) * logits_flops(cfg, np.sum(responses, dtype=float))
        )
    recomputed = 0.0 if settings.one_pass else forward + value
    return {
        "generate": decoding_flops(cfg, prompts, responses),
        "score_rollout": forward + recomputed + score,
        "update": (2 if models.lora else 3) * (epochs * (forward + value) + ptx) + target,
    }
