"""Losses, advantages and metrics: pure functions, arrays in and arrays out.

Each function takes one response or one pair; ``jax.vmap`` applies it to a batch:

    import jax

    from fgrlhf_jax.functional.masking import masked_mean
    from fgrlhf_jax.functional.policy_losses import gae, policy_loss

    def loss(logprob_BT, old_logprob_BT, reward_BT, value_BT, response_BT):
        batched = jax.vmap(gae, in_axes=(0, 0, 0, None, None))
        advantage_BT, _ = batched(reward_BT, value_BT, response_BT, 1.0, 0.95)
        batched = jax.vmap(policy_loss, in_axes=(0, 0, 0, None))
        loss_BT, _ = batched(logprob_BT, old_logprob_BT, advantage_BT, 0.2)
        return masked_mean(loss_BT, response_BT)

Wrong shapes or dtypes, as in a call without ``vmap``, raise an AssertionError (chex). Masks are
bool. In JAX: ``reward_losses`` (reward models), ``policy_losses`` (PPO, RLOO, GRPO),
``preference_losses`` (DPO, dense DPO, SALT, FIGA) and ``masking``, which all of them use. In NumPy:
``win_rate``, ``length_control`` (win rate at equal length, fitted by ``logistic``), and on held-out
edits ``pair_metrics`` (reward models) and ``correction`` (policies).
"""

import importlib
import pkgutil
from types import ModuleType

__all__ = [module.name for module in pkgutil.iter_modules(__path__)]


def __getattr__(name: str) -> ModuleType:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module(f"{__name__}.{name}")


def __dir__() -> list[str]:
    return __all__
