"""FLOPs that a PPO step needs, of rows of given lengths; see ``models.flops``."""

import numpy as np

from fgrlhf_jax.models.flops import decoding_flops, logits_flops, rows_flops
from fgrlhf_jax.models.heads import CausalLM
from fgrlhf_jax.ppo.models import Architectures
from fgrlhf_jax.reward_model.combined import models_of


def model_flops(
    models: Architectures,
    prompts,
    responses,
    *,
    epochs: int,
    scored: bool,
    one_pass: bool = False,
    imitated=None,
    distills: bool = False,
) -> dict[str, float]:
    """FLOPs of each program for rows of these tokens, over all devices.

    Args:
      prompts, responses: tokens of every row.
      epochs: passes of the update over the rollout.
      scored: whether a reward model gives the rewards.
      one_pass: whether the update alone predicts what the policy does.
      imitated: tokens of prompts and of responses that are imitated beside, if any.
      distills: whether the update reads reference and reward model, over all tokens.
    """
    cfg, rows = models.policy.cfg, np.add(prompts, responses)

    def of_policy(prompts, responses) -> float:
        logits = logits_flops(cfg, np.sum(responses, dtype=float))
        return rows_flops(cfg, np.add(prompts, responses).ravel()) + logits

    forward = of_policy(prompts, responses)
    value = rows_flops(models.critic.cfg, rows) if models.critic else 0.0
    beside = of_policy(*imitated) if imitated else 0.0
    score = 0.0
    for model in models_of(models.reward_model) if scored else ():
        is_policy = isinstance(model, CausalLM)
        score += rows_flops(model.cfg, rows)
        score += logits_flops(model.cfg, np.sum(rows, dtype=float)) if is_policy else 0.0
    prices = logits_flops(cfg, np.sum(responses, dtype=float))
    taught = epochs * (forward + score + prices) if distills else 0.0
    predicted = value if one_pass else forward + value
    return {
        "generate": decoding_flops(cfg, prompts, responses),
        "score_rollout": forward + predicted + score,
        "update": (2 if models.lora else 3) * (epochs * (forward + value) + beside) + taught,
    }
