"""Rewards from several models: an ensemble and a log-ratio, each as one module."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from fgrlhf_jax.functional.policy_losses import logprob_and_entropy
from fgrlhf_jax.functional.reward_losses import pessimistic_reward
from fgrlhf_jax.models.heads import CausalLM, TokenValueModel, state_before
from fgrlhf_jax.models.llama import LlamaConfig


def common_cfg(first: nn.Module, *others: nn.Module) -> LlamaConfig:
    """The first model's, with the smallest number of positions of all models."""
    positions = min(model.cfg.max_position for model in (first, *others))
    return dataclasses.replace(first.cfg, max_position=positions)


class Ensemble(nn.Module):
    """Several reward models; the reward is their mean minus ``penalty`` standard deviations.

    ``scales`` are mean and standard deviation of each model's normalization, which makes their
    rewards comparable.
    """

    members: tuple[TokenValueModel, ...]
    scales: tuple[tuple[float, float], ...]
    penalty: float

    @property
    def cfg(self) -> LlamaConfig:
        return common_cfg(*self.members)

    def __call__(self, *inputs) -> jax.Array:
        pairs = zip(self.members, self.scales, strict=True)
        reward_NBS = jnp.stack([(member(*inputs) - mean) / std for member, (mean, std) in pairs])
        return pessimistic_reward(reward_NBS, self.penalty)


class LogRatio(nn.Module):
    """The log-ratio of two language models as reward: log pi(a_t | s_t) - w log pi_ref(a_t | s_t).

    For a DPO policy and its reference this is, up to DPO's beta, the token reward of RTO (Zhong et
    al. 2024, arXiv:2404.18922): DPO's implicit reward of a response, split over its tokens. A token
    with nothing before it has reward 0. Without a reference (w = 0), distillation sharpens the
    policy: its target is the policy at temperature beta / (1 + beta).
    """

    policy: CausalLM
    reference: CausalLM | None
    reference_weight: float = 1.0

    @property
    def models(self) -> tuple[CausalLM, ...]:
        return (self.policy, self.reference) if self.reference else (self.policy,)

    @property
    def cfg(self) -> LlamaConfig:
        return common_cfg(*self.models)

    def __call__(self, tokens_BS, positions_BS, attend, previous_BS=None) -> jax.Array:
        hidden_BSD = state_before(self.backbone(tokens_BS, positions_BS, attend), previous_BS)
        logprobs = (
            jax.vmap(logprob_and_entropy)(logits_BSV, tokens_BS)[0]
            for logits_BSV in self._logits(hidden_BSD)
        )
        return jnp.where(positions_BS > 0, self._ratio(*logprobs), 0.0)

    def backbone(self, *inputs) -> jax.Array:
        """The states of the models, side by side."""
        return jnp.concatenate([model.backbone(*inputs) for model in self.models], axis=-1)

    def next_tokens(self, hidden_BSD: jax.Array) -> jax.Array:
        """r_BSV, the reward that every next token would get in these states."""
        return self._ratio(*map(jax.nn.log_softmax, self._logits(hidden_BSD)))

    def _logits(self, hidden_BSD: jax.Array) -> list[jax.Array]:
        borders = [self.policy.cfg.hidden_size] if self.reference else []
        pairs = zip(self.models, jnp.split(hidden_BSD, borders, axis=-1), strict=True)
        return [model.next_tokens(state_BSD) for model, state_BSD in pairs]

    def _ratio(self, policy: jax.Array, *reference: jax.Array) -> jax.Array:
        return policy - self.reference_weight * sum(reference)


RewardModule = TokenValueModel | Ensemble | LogRatio


def models_of(module: RewardModule) -> tuple:
    """The single models that ``module`` consists of."""
    match module:
        case Ensemble():
            return module.members
        case LogRatio():
            return module.models
    return (module,)


def first_backbone(params: dict) -> dict:
    """The backbone of a reward model, or of the first of several; {} if there is none."""
    model_params = params.get("members_0") or params.get("policy") or params
    return model_params.get("backbone", {})
