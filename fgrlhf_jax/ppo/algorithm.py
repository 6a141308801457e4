"""PPO, RLOO, GRPO and distillation as pure functions: rollout -> advantages -> update.

A rollout's row is [prompt | response | padding] from column 0 on. A response begins at column
``start_B``; its T columns are gathered from there. The policy's log-probability and the critic's
value of a response token a_t are read from the state before it (column start + t - 1), its reward
from the state at it (column start + t), through ``score_tokens`` only. The reward of a
sequence-level reward model is 0 except at the last token, so sequence-level and token-level rewards
are treated alike.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from fgrlhf_jax.functional import policy_losses
from fgrlhf_jax.functional.masking import last_token, masked_mean

ALGORITHMS = ("ppo", "rloo", "grpo", "distill")
GROUPED = ("rloo", "grpo")  # algorithms that compare the samples of a prompt with each other


def samples_per_prompt(config: ConfigDict) -> int:
    """The config's number of samples per prompt, or the algorithm's default."""
    return config.samples_per_prompt or (4 if config.algorithm in GROUPED else 1)


@dataclasses.dataclass(frozen=True)
class PPOSettings:
    """Settings that are compiled into the programs; fields of ``configs/ppo.py``."""

    algorithm: str
    samples_per_prompt: int  # K consecutive rows have the same prompt
    level: str  # of the rewards: token or sequence
    max_new_tokens: int  # T, columns of a response
    temperature: float  # divides logits, both for sampling and for log-probabilities
    widths: tuple[int, ...]  # possible numbers of columns of micro-batches, ascending
    micro_batch_size: int  # rows at the last width, see scoring.rows_of_width
    minibatch_size: int
    rollout_batch_size: int
    ppo_epochs: int
    kl_estimator: str
    kl_in_reward: bool
    missing_eos: str
    missing_eos_penalty: float
    gamma: float
    gae_lambda: float
    clip_ratio: float
    value_clip_ratio: float
    value_coef: float
    whiten_rewards: bool
    whiten_advantages: bool
    ptx_weight: float = 0.0
    freeze: str = ""

    @property
    def one_pass(self) -> bool:
        """Whether a rollout is used for a single update of a single micro-batch.

        The update's own forward passes then give the old log-probabilities and values.
        """
        return self.ppo_epochs == 1 and self.micro_batch_size == self.rollout_batch_size

    @classmethod
    def from_config(cls, config: ConfigDict, widths: tuple[int, ...]) -> "PPOSettings":
        values = {field.name: config.get(field.name) for field in dataclasses.fields(cls)}
        return cls(
            **values
            | {
                "samples_per_prompt": samples_per_prompt(config),
                "max_new_tokens": config.data.max_new_tokens,
                "temperature": config.sampling.temperature,
                "widths": widths,
                "micro_batch_size": config.micro_batch_size or config.minibatch_size,
                "kl_estimator": config.kl.estimator,
                "kl_in_reward": config.kl.in_reward,
                "freeze": config.optimizer.freeze,
            }
        )


class Rows(NamedTuple):
    """Prompts and their responses."""

    tokens_BS: jax.Array  # int32, from column 0 on
    start_B: jax.Array  # int32, the column of a response's first token
    response_BT: jax.Array  # bool, real response tokens, including the end-of-sequence token

    @property
    def length_B(self) -> jax.Array:
        """int32, real tokens."""
        return self.start_B + jnp.sum(self.response_BT, axis=1, dtype=jnp.int32)

    @property
    def mask_BS(self) -> jax.Array:
        """bool, real tokens."""
        return jnp.arange(self.tokens_BS.shape[1])[None] < self.length_B[:, None]

    @property
    def columns_BT(self) -> jax.Array:
        """int32, the columns of response tokens; an arbitrary valid column for padding."""
        columns_BT = self.start_B[:, None] + jnp.arange(self.response_BT.shape[1])[None]
        return jnp.minimum(columns_BT, self.tokens_BS.shape[1] - 1)


class Rollout(NamedTuple):
    """Sampled responses with their log-probabilities, values and rewards: the input of an update.

    float32 arrays are 0 beyond the response; predictions of policy and critic are 0 if the update
    makes them (:attr:`PPOSettings.one_pass`). Log-probabilities are those at the temperature.
    """

    tokens_BS: jax.Array
    start_B: jax.Array
    response_BT: jax.Array
    finished_B: jax.Array  # bool, whether the response ended with EOS
    sampler_logprob_BT: jax.Array  # float32, log-probability of each token according to the sampler
    logprob_BT: jax.Array  # under the policy
    ref_logprob_BT: jax.Array
    value_BT: jax.Array  # the critic's, of the state before each token
    raw_reward_BT: jax.Array  # before normalization
    reward_BT: jax.Array


class Experience(NamedTuple):
    """The parts of a rollout that an update needs, in the same shapes, and its advantages."""

    tokens_BS: jax.Array
    start_B: jax.Array
    response_BT: jax.Array
    logprob_BT: jax.Array
    value_BT: jax.Array
    advantage_BT: jax.Array
    return_BT: jax.Array


def rows_of(batch: Rollout | Experience | Rows) -> Rows:
    """The prompts and responses of ``batch`` only."""
    return Rows(batch.tokens_BS, batch.start_B, batch.response_BT)


class Predictions(NamedTuple):
    """Predictions for the response columns, float32[B, T] each.

    ``target_kl_BT`` is KL(pi+ || policy), see ``scoring.Target``; None without distillation.
    """

    logprob_BT: jax.Array
    entropy_BT: jax.Array
    value_BT: jax.Array
    target_kl_BT: jax.Array | None = None


def make_experience(
    rollout: Rollout, kl_coef: jax.Array, settings: PPOSettings
) -> tuple[Experience, dict[str, jax.Array]]:
    """Advantages and returns of a rollout, and its metrics.

    Whitening is over the real response tokens of the whole (global) batch; rewards keep their mean.
    With ``kl_in_reward=False``, as in the paper, the KL is reported but not penalised.
    """
    mask_BT = rollout.response_BT
    estimate = functools.partial(policy_losses.kl_estimate, estimator=settings.kl_estimator)
    kl_BT = jax.vmap(estimate)(rollout.logprob_BT, rollout.ref_logprob_BT)
    eos_options = {"rule": settings.missing_eos, "penalty": settings.missing_eos_penalty}
    eos_rule = functools.partial(policy_losses.missing_eos, **eos_options)
    reward_BT = jax.vmap(eos_rule)(rollout.reward_BT, mask_BT, rollout.finished_B)
    reward_BT = jax.vmap(policy_losses.reward_vector, (0, 0, 0, None))(
        reward_BT, kl_BT, mask_BT, kl_coef if settings.kl_in_reward else 0.0
    )
    if settings.whiten_rewards:
        reward_BT = policy_losses.whiten(reward_BT, mask_BT, shift_mean=False)
    advantage_BT, return_BT = advantages(reward_BT, rollout, settings)
    raw_advantage_BT = advantage_BT
    if settings.whiten_advantages:
        advantage_BT = policy_losses.whiten(advantage_BT, mask_BT)
    metrics = compute_metrics(rollout, reward_BT, raw_advantage_BT)
    if settings.algorithm == "ppo":
        metrics |= {
            "value/mean": masked_mean(rollout.value_BT, mask_BT),
            "value/return": masked_mean(return_BT, mask_BT),
            "value/explained_variance": policy_losses.explained_variance(
                rollout.value_BT, return_BT, mask_BT
            ),
        }
    old = rollout.logprob_BT, rollout.value_BT
    return Experience(*rows_of(rollout), *old, advantage_BT, return_BT), metrics


def compute_metrics(
    rollout: Rollout, reward_BT: jax.Array, advantage_BT: jax.Array
) -> dict[str, jax.Array]:
    """Means over a rollout; rewards and advantages are those of the update, before whitening."""
    mask_BT = rollout.response_BT
    length_B = jnp.sum(mask_BT, axis=1).astype(jnp.float32)
    total_B = jnp.sum(rollout.reward_BT, axis=1)
    mismatch_BT = jnp.where(mask_BT, rollout.logprob_BT - rollout.sampler_logprob_BT, 0.0)
    # Always k1, whatever the penalty's estimator: unbiased, and comparable between runs.
    log_ratio_BT = jnp.where(mask_BT, rollout.logprob_BT - rollout.ref_logprob_BT, 0.0)
    return {
        "debug/sampler_mismatch_kl": masked_mean(jnp.expm1(mismatch_BT) - mismatch_BT, mask_BT),
        "reference_kl": masked_mean(jnp.expm1(-log_ratio_BT) + log_ratio_BT, mask_BT),
        "reward/raw": jnp.mean(jnp.sum(rollout.raw_reward_BT, axis=1)),
        "reward/mean": jnp.mean(total_B),
        "reward/std": jnp.std(total_B),
        "reward/with_kl_penalty": jnp.mean(jnp.sum(reward_BT, axis=1)),
        "reward/length_correlation": policy_losses.correlation(total_B, length_B),
        "policy/kl": jnp.mean(jnp.sum(log_ratio_BT, axis=1)),
        "policy/kl_per_token": masked_mean(log_ratio_BT, mask_BT),
        "policy/advantage_rms": jnp.sqrt(
            masked_mean(jnp.square(jnp.where(mask_BT, advantage_BT, 0.0)), mask_BT)
        ),
        "response/length": jnp.mean(length_B),
        "response/unfinished": jnp.mean(1.0 - rollout.finished_B),
    }


def advantages(
    reward_BT: jax.Array, rollout: Rollout, settings: PPOSettings
) -> tuple[jax.Array, jax.Array]:
    """Advantages, float32[B, T], and returns of the configured algorithm.

    With sequence rewards RLOO and GRPO treat a whole response, including its KL, as one action.
    """
    mask_BT, gamma = rollout.response_BT, settings.gamma
    if settings.algorithm not in GROUPED:
        return jax.vmap(policy_losses.gae, (0, 0, 0, None, None))(
            reward_BT, rollout.value_BT, mask_BT, gamma, settings.gae_lambda
        )
    scored_BT, ended_B = mask_BT, jnp.zeros(mask_BT.shape[0])
    if settings.level == "sequence":
        scored_BT, ended_B = jax.vmap(last_token)(mask_BT), jnp.sum(reward_BT, axis=1)
        reward_BT = jnp.where(scored_BT, ended_B[:, None], 0.0)
    if settings.algorithm == "grpo":
        reward_BT = map_groups(policy_losses.whiten, settings, reward_BT, scored_BT)
    return_BT = jax.vmap(policy_losses.return_to_go, (0, 0, None))(reward_BT, mask_BT, gamma)
    if settings.algorithm == "grpo":
        return return_BT, return_BT
    arrays = return_BT, mask_BT, ended_B
    return map_groups(policy_losses.leave_one_out, settings, *arrays), return_BT


def map_groups(function: Callable, settings: PPOSettings, *arrays: jax.Array) -> jax.Array:
    """Applies ``function`` to the K samples of each prompt: arrays [B, ...] as [K, ...] each."""
    K = settings.samples_per_prompt
    result = jax.vmap(function)(*(x.reshape(-1, K, *x.shape[1:]) for x in arrays))
    return result.reshape(-1, *result.shape[2:])


def losses(
    predictions: Predictions,
    batch: Experience,
    tokens: jax.Array,
    parts: tuple[str, ...],
    settings: PPOSettings,
) -> tuple[jax.Array, tuple[dict, dict]]:
    """The contribution of these rows to a minibatch's loss, and metrics: sums and maxima.

    Args:
      tokens: number of response tokens of the whole minibatch. Every sum is divided by it, so that
        the losses of the micro-batches sum to exactly the loss of the minibatch.
      parts: whose losses, "policy" or "critic"; neither depends on the other's predictions.
    """
    mask_BT = batch.response_BT

    def mean(x_BT):
        return jnp.sum(jnp.where(mask_BT, x_BT, 0.0)) / tokens

    loss, sums, maxima = jnp.float32(0), {}, {}
    if "policy" in parts:
        logprob_BT = jnp.where(mask_BT, predictions.logprob_BT, batch.logprob_BT)
        policy_loss_BT, clipped_BT = jax.vmap(policy_losses.policy_loss, (0, 0, 0, None))(
            logprob_BT, batch.logprob_BT, batch.advantage_BT, settings.clip_ratio
        )
        if settings.algorithm == "distill":  # sampled tokens only determine the states
            policy_loss_BT, clipped_BT = predictions.target_kl_BT, jnp.zeros_like(clipped_BT)
        log_ratio_BT = logprob_BT - batch.logprob_BT
        sums |= {
            "policy/loss": mean(policy_loss_BT),
            "policy/entropy": mean(predictions.entropy_BT),
            "policy/clip_fraction": mean(clipped_BT),
            "policy/approx_kl": mean(jnp.expm1(log_ratio_BT) - log_ratio_BT),
        }
        maxima = {"log_ratio_max": jnp.max(jnp.abs(log_ratio_BT))}
        loss += sums["policy/loss"]
    if "critic" in parts:
        value_loss_BT, clipped_BT = jax.vmap(policy_losses.value_loss, (0, 0, 0, None))(
            predictions.value_BT, batch.value_BT, batch.return_BT, settings.value_clip_ratio
        )
        sums |= {"value/loss": mean(value_loss_BT), "value/clip_fraction": mean(clipped_BT)}
        loss += settings.value_coef * sums["value/loss"]
    return loss, (sums, maxima)
