"""PPO with token-level rewards, as pure functions of arrays: rollout -> advantages -> update.

A rollout's row is [prompt, padded on the left | response, padded on the right], so that response
tokens stand in the last T columns of S = P + T for every row. The policy's log-probability and
the critic's value of a response token a_t are read from the state before it (column P + t - 1);
its reward from the state at it (column P + t), through ``score_tokens`` and nothing else.
The reward of a sequence-level reward model is 0 everywhere but at the last token, so that
sequence-level and token-level rewards are treated alike.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from fgrlhf_jax.functional import policy_losses
from fgrlhf_jax.functional.masking import masked_mean
from fgrlhf_jax.models import llama
from fgrlhf_jax.models.sampling import Sampled
from fgrlhf_jax.ppo.models import Architectures
from fgrlhf_jax.reward_model.model import Normalization, normalize_rewards, score_tokens
from fgrlhf_jax.runtime import sharding
from fgrlhf_jax.runtime.optim import TrainState, accumulate_gradients, apply_gradients


@dataclasses.dataclass(frozen=True)
class PPOSettings:
    """The numbers and choices that are compiled into the programs; fields of ``configs/ppo.py``.

    Attributes:
      max_new_tokens: T, columns of a response.
      temperature: logits are divided by it, for sampling and for log-probabilities alike.
      micro_batch_size: rows that are computed at a time.
    """

    max_new_tokens: int
    temperature: float
    micro_batch_size: int
    minibatch_size: int
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

    @classmethod
    def from_config(cls, config: ConfigDict) -> "PPOSettings":
        values = {field.name: config.get(field.name) for field in dataclasses.fields(cls)}
        return cls(
            **values
            | {
                "max_new_tokens": config.data.max_new_tokens,
                "temperature": config.sampling.temperature,
                "micro_batch_size": config.micro_batch_size or config.minibatch_size,
                "kl_estimator": config.kl.estimator,
                "kl_in_reward": config.kl.in_reward,
            }
        )


class Rollout(NamedTuple):
    """Sampled responses and what the models make of them; everything that PPO learns from.

    Attributes:
      tokens_BS, mask_BS: int32 and bool, prompt and response.
      response_BT: bool, real response tokens (the end-of-sequence token is one).
      finished_B: bool, whether the response ended by itself.
      logprob_BT, ref_logprob_BT: float32, of the sampled tokens under policy and reference, both
        scaled by the sampling temperature.
      value_BT: float32, the critic's value of the state before each token.
      raw_reward_BT, reward_BT: float32, before and after normalization; 0 beyond the response.
    """

    tokens_BS: jax.Array
    mask_BS: jax.Array
    response_BT: jax.Array
    finished_B: jax.Array
    logprob_BT: jax.Array
    ref_logprob_BT: jax.Array
    value_BT: jax.Array
    raw_reward_BT: jax.Array
    reward_BT: jax.Array


class Experience(NamedTuple):
    """What an update needs of a rollout: [B, S] and [B, T] as there."""

    tokens_BS: jax.Array
    mask_BS: jax.Array
    response_BT: jax.Array
    logprob_BT: jax.Array
    value_BT: jax.Array
    advantage_BT: jax.Array
    return_BT: jax.Array


def predict(
    params: dict,
    tokens_BS: jax.Array,
    mask_BS: jax.Array,
    *,
    models: Architectures,
    settings: PPOSettings,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Log-probability, entropy and value of the response columns, each float32[B, T].

    Rollouts and updates share this function: the first minibatch recomputes exactly the
    log-probabilities of the rollout, so that its ratio is 1.

    Args:
      params: {"policy": ..., "critic": ...}; without the latter the values are zeros. Where
        ``models.critic`` is None, it is {"head": ...} alone, on the policy's own states.
    """
    T = settings.max_new_tokens
    positions = llama.positions_and_mask(mask_BS)
    variables = {"params": params["policy"]}
    hidden_BSD = models.policy.apply(variables, tokens_BS, *positions, method="states")
    before_BTD = hidden_BSD[:, -T - 1 : -1]
    logits_BTV = models.policy.apply(variables, before_BTD, method="unembed")
    logits_BTV = logits_BTV / settings.temperature
    logprobs_BTV = jax.nn.log_softmax(logits_BTV, axis=-1)
    chosen_BT1 = tokens_BS[:, -T:, None]
    logprob_BT = jnp.take_along_axis(logprobs_BTV, chosen_BT1, axis=-1)[..., 0]
    entropy_BT = jax.vmap(policy_losses.entropy)(logits_BTV)
    if "critic" not in params:
        value_BT = jnp.zeros_like(logprob_BT)
    elif models.critic is None:
        head = llama.ScalarHead(models.policy.cfg, False, True)
        value_BT = head.apply({"params": params["critic"]["head"]}, before_BTD, None, None)
    else:
        value_BS = models.critic.apply({"params": params["critic"]}, tokens_BS, *positions)
        value_BT = value_BS[:, -T - 1 : -1]
    return logprob_BT, entropy_BT, value_BT


def score_rollout(
    params: dict,
    reference: dict,
    reward_model: dict,
    normalization: Normalization,
    prompt_BP: jax.Array,
    prompt_mask_BP: jax.Array,
    sampled: Sampled,
    *,
    models: Architectures,
    settings: PPOSettings,
) -> Rollout:
    """Log-probabilities, values and rewards of sampled responses, in micro-batches.

    The sampled ids themselves are scored; nothing is decoded and encoded again.

    Args:
      params: of policy and critic, see :func:`predict`.
      reference: parameters of the reference policy.
      reward_model: its parameters; {}: the rewards are zeros, a function gives them later.
      prompt_BP, prompt_mask_BP: prompts padded on the left.
    """
    columns_1T = jnp.arange(settings.max_new_tokens)[None]
    response_BT = columns_1T < sampled.length_B[:, None]
    tokens_BS = jnp.concatenate([prompt_BP, sampled.tokens_BT], axis=1)
    mask_BS = jnp.concatenate([prompt_mask_BP, response_BT], axis=1)
    apply = functools.partial(predict, models=models, settings=settings)

    def predict_rows(batch):
        logprob_BT, _, value_BT = apply(params, *batch)
        ref_logprob_BT, _, _ = apply({"policy": reference}, *batch)
        return logprob_BT, ref_logprob_BT, value_BT

    def score_rows(batch):
        tokens_BS, mask_BS, response_BT = batch
        level, T = models.meta.level, settings.max_new_tokens
        reward_BS = score_tokens(
            reward_model, tokens_BS, mask_BS, model=models.reward_model, level=level
        )
        raw_BT = jnp.where(response_BT, reward_BS[:, -T:], 0.0)
        return raw_BT, normalize_rewards(raw_BT, response_BT, normalization, level=level)

    def by_micro_batches(function, arrays):
        results = jax.lax.map(function, _micro_batches(arrays, settings))
        flat = lambda x: sharding.constrain(x.reshape(-1, settings.max_new_tokens))  # noqa: E731
        return jax.tree.map(flat, results)

    logprob_BT, ref_logprob_BT, value_BT = by_micro_batches(predict_rows, (tokens_BS, mask_BS))
    raw_BT = reward_BT = jnp.zeros(response_BT.shape, jnp.float32)
    if reward_model:
        arrays = (tokens_BS, mask_BS, response_BT)
        raw_BT, reward_BT = by_micro_batches(score_rows, arrays)
    return Rollout(
        tokens_BS,
        mask_BS,
        response_BT,
        sampled.finished_B,
        logprob_BT,
        ref_logprob_BT,
        value_BT,
        raw_BT,
        reward_BT,
    )


def _micro_batches(tree, settings: PPOSettings):
    """[B, ...] -> [A, micro-batch, ...], the rows of each micro-batch spread over the mesh."""
    size = settings.micro_batch_size
    return jax.tree.map(
        lambda x: sharding.constrain(x.reshape(-1, size, *x.shape[1:]), axis=1), tree
    )


def make_experience(
    rollout: Rollout, kl_coef: jax.Array, settings: PPOSettings
) -> tuple[Experience, dict[str, jax.Array]]:
    """Advantages and returns of a rollout, and its metrics.

    Whitening is over the real response tokens of the whole (global) batch; rewards keep their
    mean. With ``kl_in_reward=False``, as the paper has it, the KL is reported but no penalty.
    """
    mask_BT = rollout.response_BT
    kl_BT = jax.vmap(functools.partial(policy_losses.kl_estimate, estimator=settings.kl_estimator))(
        rollout.logprob_BT, rollout.ref_logprob_BT
    )
    rule = functools.partial(
        policy_losses.missing_eos,
        rule=settings.missing_eos,
        penalty=settings.missing_eos_penalty,
    )
    reward_BT = jax.vmap(rule)(rollout.reward_BT, mask_BT, rollout.finished_B)
    reward_BT = jax.vmap(policy_losses.reward_vector, (0, 0, 0, None))(
        reward_BT, kl_BT, mask_BT, kl_coef if settings.kl_in_reward else 0.0
    )
    if settings.whiten_rewards:
        reward_BT = policy_losses.whiten(reward_BT, mask_BT, shift_mean=False)
    advantage_BT, return_BT = jax.vmap(policy_losses.gae, (0, 0, 0, None, None))(
        reward_BT, rollout.value_BT, mask_BT, settings.gamma, settings.gae_lambda
    )
    raw_advantage_BT = advantage_BT
    if settings.whiten_advantages:
        advantage_BT = policy_losses.whiten(advantage_BT, mask_BT)
    length_B = jnp.sum(mask_BT, axis=1).astype(jnp.float32)
    total_B = jnp.sum(rollout.reward_BT, axis=1)
    # k1 whatever the penalty's estimator: unbiased, and comparable between runs.
    log_ratio_BT = jnp.where(mask_BT, rollout.logprob_BT - rollout.ref_logprob_BT, 0.0)
    metrics = {
        "reward/mean": jnp.mean(total_B),
        "reward/std": jnp.std(total_B),
        "reward/with_kl_penalty": jnp.mean(jnp.sum(reward_BT, axis=1)),
        "reward/length_correlation": policy_losses.correlation(total_B, length_B),
        "policy/kl": jnp.mean(jnp.sum(log_ratio_BT, axis=1)),
        "policy/kl_per_token": masked_mean(log_ratio_BT, mask_BT),
        "policy/advantage_rms": jnp.sqrt(
            masked_mean(jnp.square(jnp.where(mask_BT, raw_advantage_BT, 0.0)), mask_BT)
        ),
        "response/length": jnp.mean(length_B),
        "response/unfinished": jnp.mean(1.0 - rollout.finished_B),
        "value/mean": masked_mean(rollout.value_BT, mask_BT),
        "value/return": masked_mean(return_BT, mask_BT),
        "value/explained_variance": policy_losses.explained_variance(
            rollout.value_BT, return_BT, mask_BT
        ),
    }
    names = set(Experience._fields) & set(rollout._fields)
    arrays = {name: getattr(rollout, name) for name in names}
    return Experience(**arrays, advantage_BT=advantage_BT, return_BT=return_BT), metrics


def minibatch_rows(key: jax.Array, rows: int, settings: PPOSettings) -> jax.Array:
    """int32[minibatches of all epochs, minibatch]: a fresh permutation for every epoch."""
    fold = functools.partial(jax.random.fold_in, key)
    keys = jax.vmap(fold)(jnp.arange(settings.ppo_epochs))
    order = jax.vmap(lambda k: jax.random.permutation(k, rows))(keys)
    return order.reshape(-1, settings.minibatch_size)


def losses(
    params: dict,
    batch: Experience,
    tokens: jax.Array,
    *,
    models: Architectures,
    settings: PPOSettings,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The share of a minibatch's loss that these rows have, and metrics.

    Args:
      tokens: response tokens of the whole minibatch, by which every sum is divided: the losses of
        its micro-batches sum to exactly the loss of the minibatch.
    """
    mask_BT = batch.response_BT
    logprob_BT, entropy_BT, value_BT = predict(
        params, batch.tokens_BS, batch.mask_BS, models=models, settings=settings
    )
    logprob_BT = jnp.where(mask_BT, logprob_BT, batch.logprob_BT)
    policy_loss_BT, clipped_BT = jax.vmap(policy_losses.policy_loss, (0, 0, 0, None))(
        logprob_BT, batch.logprob_BT, batch.advantage_BT, settings.clip_ratio
    )
    value_loss_BT, value_clipped_BT = jax.vmap(policy_losses.value_loss, (0, 0, 0, None))(
        value_BT, batch.value_BT, batch.return_BT, settings.value_clip_ratio
    )

    def share(x_BT):
        return jnp.sum(jnp.where(mask_BT, x_BT, 0.0)) / tokens

    log_ratio_BT = logprob_BT - batch.logprob_BT
    metrics = {
        "policy/loss": share(policy_loss_BT),
        "policy/entropy": share(entropy_BT),
        "policy/clip_fraction": share(clipped_BT),
        "policy/approx_kl": share(jnp.expm1(log_ratio_BT) - log_ratio_BT),
        "value/loss": share(value_loss_BT),
        "value/clip_fraction": share(value_clipped_BT),
        "log_ratio_max": jnp.max(jnp.abs(log_ratio_BT)),
    }
    return metrics["policy/loss"] + settings.value_coef * metrics["value/loss"], metrics


def update(
    state: TrainState,
    rollout: Rollout,
    kl_coef: jax.Array,
    key: jax.Array,
    *,
    models: Architectures,
    settings: PPOSettings,
    optimizer: optax.GradientTransformation,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """All updates from one rollout: several epochs, in minibatches, in micro-batches.

    Args:
      state: its ``params`` have "policy" and "critic".
      key: of this rollout; every epoch draws its own permutation from it.

    Returns:
      The new state; the metrics of the rollout, and means over the minibatches.
      ``debug/initial_log_ratio`` and ``debug/initial_kl`` are of the first one, where the policy is
      still the one that sampled: both are 0 but for rounding.
    """
    experience, rollout_metrics = make_experience(rollout, kl_coef, settings)
    loss = functools.partial(losses, models=models, settings=settings)

    def update_on(state: TrainState, rows):
        batch = jax.tree.map(lambda x: x[rows], experience)
        tokens = jnp.maximum(jnp.sum(batch.response_BT), 1)
        grads, metrics = accumulate_gradients(
            lambda params, micro_batch: loss(params, micro_batch, tokens),
            state.params,
            _micro_batches(batch, settings),
        )
        largest = jnp.max(metrics.pop("log_ratio_max"))
        metrics = jax.tree.map(jnp.sum, metrics) | {"log_ratio_max": largest}
        metrics["policy/grad_norm"] = optax.tree.norm(grads["policy"])
        metrics["value/grad_norm"] = optax.tree.norm(grads["critic"])
        return apply_gradients(state, grads, optimizer), metrics

    rows = minibatch_rows(key, experience.tokens_BS.shape[0], settings)
    state, metrics = jax.lax.scan(update_on, state, rows)
    first = {
        "debug/initial_log_ratio": metrics.pop("log_ratio_max")[0],
        "debug/initial_kl": metrics["policy/approx_kl"][0],
    }
    return state, rollout_metrics | jax.tree.map(jnp.mean, metrics) | first
