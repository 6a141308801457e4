"""Fine-grained RLHF in JAX: token rewards learned from edits of responses, and PPO with them.

    import fgrlhf_jax as fg

    policy = fg.LanguageModel.load("runs/sft_tiny")
    answers = policy.generate(["Name three fruits."], fg.SamplingParams(max_new_tokens=64), seed=0)
    reward_model = fg.RewardModel.load("runs/rm_tiny_token_edit")
    for token, reward in reward_model.score([{"instruction": "…", "output": answers.texts[0]}])[0]:
        print(token, reward)

Names are imported on first use, because importing JAX takes a second.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fgrlhf_jax.data.alignment import align
    from fgrlhf_jax.errors import InputError
    from fgrlhf_jax.models.language_model import LanguageModel, SamplingParams
    from fgrlhf_jax.reward_model.model import score_tokens
    from fgrlhf_jax.reward_model.scorer import RewardModel

__all__ = ["InputError", "LanguageModel", "RewardModel", "SamplingParams", "align", "score_tokens"]

_MODULES = {
    "InputError": "errors",
    "LanguageModel": "models.language_model",
    "RewardModel": "reward_model.scorer",
    "SamplingParams": "models.language_model",
    "align": "data.alignment",
    "score_tokens": "reward_model.model",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__]
