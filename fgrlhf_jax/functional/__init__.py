"""Losses, advantages and metrics: pure functions, arrays in and arrays out.

Each is about one response or one pair, and ``jax.vmap`` makes a batch of it:

    import jax

    from fgrlhf_jax.functional.masking import masked_mean
    from fgrlhf_jax.functional.policy_losses import gae, policy_loss

    def loss(logprob_BT, old_logprob_BT, reward_BT, value_BT, response_BT):
        batched = jax.vmap(gae, in_axes=(0, 0, 0, None, None))
        advantage_BT, _ = batched(reward_BT, value_BT, response_BT, 1.0, 0.95)
        batched = jax.vmap(policy_loss, in_axes=(0, 0, 0, None))
        loss_BT, _ = batched(logprob_BT, old_logprob_BT, advantage_BT, 0.2)
        return masked_mean(loss_BT, response_BT)

Arrays of shapes or dtypes that do not fit, as in a call without ``vmap``, raise an AssertionError
(chex). A mask is bool. ``reward_losses`` are of reward models; ``policy_losses`` are PPO, RLOO and
GRPO; ``preference_losses`` DPO, dense DPO, SALT and FIGA; ``masking`` is for all of them. In NumPy:
``win_rate``, ``length_control`` (a win rate at equal length, by ``logistic``), ``pair_metrics`` of
a reward model and ``correction`` of a policy, both on held-out edits.
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
