"""PPO with token-level rewards, as pure functions of arrays: rollout -> advantages -> update.

A rollout's row is [prompt, padded on the left | response, padded on the right], so that response
tokens stand in the last T columns of S = P + T for every row. The policy's log-probability and
the critic's value of a response token a_t are read from the state before it (column P + t - 1);
its reward from the state at it (column P + t), through ``reward.score_tokens`` and nothing else.
What a reward model says about a sequence is a reward of 0 everywhere but at the last token, so
sequence-level and token-level rewards go the same way.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fgrlhf_jax.functional import policy_losses as po
from fgrlhf_jax.models import llama
from fgrlhf_jax.models.sampling import Sampled
from fgrlhf_jax.reward_model import model as reward
from fgrlhf_jax.runtime import sharding
from fgrlhf_jax.runtime.optim import TrainState


class Rollout(NamedTuple):
    """Sampled responses and what the models say about them; everything PPO learns from.

    Attributes:
      tokens_BS, mask_BS: int32 and bool, prompt and response.
      response_BT: bool, real response tokens (the end-of-sequence token is one).
      finished_B: bool, whether the response ended by itself.
      logprob_BT, ref_logprob_BT: float32, of the sampled tokens under policy and reference, both
        scaled by the sampling temperature.
      value_BT: float32, the critic's value of the state before each token.
      reward_BT: float32, normalized rewards; 0 beyond the response.
    """

    tokens_BS: jax.Array
    mask_BS: jax.Array
    response_BT: jax.Array
    finished_B: jax.Array
    logprob_BT: jax.Array
    ref_logprob_BT: jax.Array
    value_BT: jax.Array
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


def join(prompt_BP, prompt_mask_BP, sampled: Sampled) -> tuple[jax.Array, jax.Array, jax.Array]:
    """tokens_BS, mask_BS and response_BT of left-padded prompts and their responses."""
    columns_1T = jnp.arange(sampled.tokens_BT.shape[1])[None]
    response_BT = columns_1T < sampled.length_B[:, None]
    tokens_BS = jnp.concatenate([prompt_BP, sampled.tokens_BT], axis=1)
    return tokens_BS, jnp.concatenate([prompt_mask_BP, response_BT], axis=1), response_BT


def predict(
    params: dict,
    tokens_BS: jax.Array,
    mask_BS: jax.Array,
    *,
    length: int,
    policy: llama.CausalLM,
    critic: llama.TokenValueModel | None,
    temperature: float,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Log-probability, entropy and value of the last ``length`` columns, each float32[B, T].

    The one function that rollouts and updates share: what the old policy said about its own
    samples is what the first minibatch finds again.

    Args:
      params: {"policy": ..., "critic": ...}; without the latter there are no values (zeros).
      critic: None reads the value from the policy's own states; ``params["critic"]`` is then
        {"head": ...} alone.
      temperature: logits are divided by it, as they were for sampling.
    """
    where = llama.positions_and_mask(mask_BS)
    variables = {"params": params["policy"]}
    hidden_BSD = policy.apply(variables, tokens_BS, *where, method="states")
    before_BTD = hidden_BSD[:, -length - 1 : -1]
    logits_BTV = policy.apply(variables, before_BTD, method="unembed") / temperature
    logprobs_BTV = jax.nn.log_softmax(logits_BTV, axis=-1)
    chosen_BT1 = tokens_BS[:, -length:, None]
    logprob_BT = jnp.take_along_axis(logprobs_BTV, chosen_BT1, axis=-1)[..., 0]
    entropy_BT = jax.vmap(po.entropy)(logits_BTV)
    if "critic" not in params:
        value_BT = jnp.zeros_like(logprob_BT)
    elif critic is None:
        head = llama.ScalarHead(policy.cfg, False, True)
        value_BT = head.apply({"params": params["critic"]["head"]}, before_BTD, None, None)
    else:
        value_BS = critic.apply({"params": params["critic"]}, tokens_BS, *where)
        value_BT = value_BS[:, -length - 1 : -1]
    return logprob_BT, entropy_BT, value_BT


def _micro_batches(tree, size: int):
    """[B, ...] -> [A, size, ...], the rows of each micro-batch spread over the mesh."""
    return jax.tree.map(
        lambda x: sharding.constrain(x.reshape(-1, size, *x.shape[1:]), axis=1), tree
    )


def assess(
    params: dict,
    ref_params: dict,
    tokens_BS: jax.Array,
    mask_BS: jax.Array,
    *,
    micro: int,
    length: int,
    policy: llama.CausalLM,
    critic: llama.TokenValueModel | None,
    temperature: float,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """logprob_BT, ref_logprob_BT and value_BT of a rollout, in micro-batches of ``micro`` rows."""
    one = functools.partial(
        predict, length=length, policy=policy, critic=critic, temperature=temperature
    )

    def rows(batch):
        logprob_BT, _, value_BT = one(params, *batch)
        ref_logprob_BT, _, _ = one({"policy": ref_params}, *batch)
        return logprob_BT, ref_logprob_BT, value_BT

    found = jax.lax.map(rows, _micro_batches((tokens_BS, mask_BS), micro))
    return jax.tree.map(lambda x: sharding.constrain(x.reshape(-1, length)), found)


def score(
    params: dict,
    tokens_BS: jax.Array,
    mask_BS: jax.Array,
    response_BT: jax.Array,
    *,
    micro: int,
    model: llama.TokenValueModel,
    level: str,
    normalization: reward.Normalization,
) -> tuple[jax.Array, jax.Array]:
    """Raw and normalized rewards float32[B, T] of the response tokens, by a reward model.

    The sampled ids themselves are scored; nothing is decoded and encoded again.
    """
    length = response_BT.shape[1]

    def rows(batch):
        tokens_BS, mask_BS, response_BT = batch
        reward_BS = reward.score_tokens(params, tokens_BS, mask_BS, model=model, level=level)
        raw_BT = jnp.where(response_BT, reward_BS[:, -length:], 0.0)
        return raw_BT, reward.normalize_rewards(raw_BT, response_BT, normalization, level=level)

    found = jax.lax.map(rows, _micro_batches((tokens_BS, mask_BS, response_BT), micro))
    return jax.tree.map(lambda x: sharding.constrain(x.reshape(-1, length)), found)


def advantages(
    rollout: Rollout,
    kl_coef: jax.Array,
    *,
    estimator: str,
    kl_in_reward: bool,
    missing_eos: str,
    missing_eos_penalty: float,
    gamma: float,
    lam: float,
    whiten_rewards: bool,
    whiten_advantages: bool,
) -> tuple[Experience, dict[str, jax.Array]]:
    """Rewards, advantages and returns of a rollout, and what it looked like.

    Whitening is over the real response tokens of the whole (global) batch; rewards keep their
    mean. ``kl_in_reward=False`` is the paper's letter: the KL is reported and not paid for.
    """
    mask_BT = rollout.response_BT
    kl_BT = jax.vmap(functools.partial(po.kl_estimate, estimator=estimator))(
        rollout.logprob_BT, rollout.ref_logprob_BT
    )
    rule = functools.partial(po.missing_eos, rule=missing_eos, penalty=missing_eos_penalty)
    paid_BT = jax.vmap(rule)(rollout.reward_BT, mask_BT, rollout.finished_B)
    reward_BT = jax.vmap(po.reward_vector, (0, 0, 0, None))(
        paid_BT, kl_BT, mask_BT, kl_coef if kl_in_reward else 0.0
    )
    if whiten_rewards:
        reward_BT = po.whiten(reward_BT, mask_BT, shift_mean=False)
    advantage_BT, return_BT = jax.vmap(po.gae, (0, 0, 0, None, None))(
        reward_BT, rollout.value_BT, mask_BT, gamma, lam
    )
    raw_advantage_BT = advantage_BT
    if whiten_advantages:
        advantage_BT = po.whiten(advantage_BT, mask_BT)
    length_B = jnp.sum(mask_BT, axis=1).astype(jnp.float32)
    total_B = jnp.sum(rollout.reward_BT, axis=1)
    # k1 whatever is paid for: the unbiased figure that runs can be compared by.
    log_ratio_BT = jnp.where(mask_BT, rollout.logprob_BT - rollout.ref_logprob_BT, 0.0)
    metrics = {
        "reward/mean": jnp.mean(total_B),
        "reward/std": jnp.std(total_B),
        "reward/with_kl_penalty": jnp.mean(jnp.sum(reward_BT, axis=1)),
        "policy/kl": jnp.mean(jnp.sum(log_ratio_BT, axis=1)),
        "policy/kl_per_token": po.masked_mean(log_ratio_BT, mask_BT),
        "response/length": jnp.mean(length_B),
        "reward/length_correlation": po.correlation(total_B, length_B),
        "response/unfinished": jnp.mean(1.0 - rollout.finished_B),
        "value/mean": po.masked_mean(rollout.value_BT, mask_BT),
        "value/return": po.masked_mean(return_BT, mask_BT),
        "policy/advantage_rms": jnp.sqrt(
            po.masked_mean(jnp.square(jnp.where(mask_BT, raw_advantage_BT, 0.0)), mask_BT)
        ),
        "value/explained_variance": po.explained_variance(rollout.value_BT, return_BT, mask_BT),
    }
    kept = {
        name: getattr(rollout, name) for name in Experience._fields if name in rollout._fields
    }
    return Experience(**kept, advantage_BT=advantage_BT, return_BT=return_BT), metrics


def minibatch_rows(key: jax.Array, rows: int, epochs: int, minibatch: int) -> jax.Array:
    """int32[epochs * rows / minibatch, minibatch]: a fresh permutation for every epoch."""
    keys = jax.vmap(functools.partial(jax.random.fold_in, key))(jnp.arange(epochs))
    order = jax.vmap(lambda k: jax.random.permutation(k, rows))(keys)
    return order.reshape(-1, minibatch)


def losses(
    params: dict,
    batch: Experience,
    tokens: jax.Array,
    *,
    policy: llama.CausalLM,
    critic: llama.TokenValueModel | None,
    temperature: float,
    clip: float,
    value_clip: float,
    value_coef: float,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The share of a minibatch's loss that these rows have, and figures.

    Args:
      tokens: response tokens of the whole minibatch, by which every sum is divided: micro-batches
        add up to exactly the loss of the minibatch.
    """
    mask_BT = batch.response_BT
    logprob_BT, entropy_BT, value_BT = predict(
        params,
        batch.tokens_BS,
        batch.mask_BS,
        length=mask_BT.shape[1],
        policy=policy,
        critic=critic,
        temperature=temperature,
    )
    logprob_BT = jnp.where(mask_BT, logprob_BT, batch.logprob_BT)
    policy_loss_BT, clipped_BT = jax.vmap(po.policy_loss, (0, 0, 0, None))(
        logprob_BT, batch.logprob_BT, batch.advantage_BT, clip
    )
    value_loss_BT, value_clipped_BT = jax.vmap(po.value_loss, (0, 0, 0, None))(
        value_BT, batch.value_BT, batch.return_BT, value_clip
    )

    def share(x_BT):
        return jnp.sum(jnp.where(mask_BT, x_BT, 0.0)) / tokens

    log_ratio_BT = logprob_BT - batch.logprob_BT
    metrics = {
        "policy/loss": share(policy_loss_BT),
        "value/loss": share(value_loss_BT),
        "policy/entropy": share(entropy_BT),
        "policy/clip_fraction": share(clipped_BT),
        "value/clip_fraction": share(value_clipped_BT),
        "policy/approx_kl": share(jnp.expm1(log_ratio_BT) - log_ratio_BT),
        "log_ratio_max": jnp.max(jnp.abs(log_ratio_BT)),
    }
    return metrics["policy/loss"] + value_coef * metrics["value/loss"], metrics


def update(
    state: TrainState,
    experience: Experience,
    key: jax.Array,
    *,
    optimizer: optax.GradientTransformation,
    epochs: int,
    minibatch: int,
    micro: int,
    **settings,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """All updates from one rollout: ``epochs`` times over it, in minibatches, in micro-batches.

    Args:
      state: ``params`` has "policy" and "critic".
      key: of this rollout; every epoch draws its own permutation from it.
      **settings: the keyword arguments of :func:`losses`.

    Returns:
      The new state, and means over the minibatches; ``debug/initial_log_ratio`` and
      ``debug/initial_kl`` are of the first one, where the policy is still the one that sampled:
      both are 0 but for rounding.
    """
    grad = jax.grad(functools.partial(losses, **settings), has_aux=True)

    def one_minibatch(state: TrainState, rows):
        batch = jax.tree.map(lambda x: x[rows], experience)
        tokens = jnp.maximum(jnp.sum(batch.response_BT), 1)

        def accumulate(total, micro_batch):
            grads, metrics = grad(state.params, micro_batch, tokens)
            return jax.tree.map(jnp.add, total, grads), metrics

        zeros = jax.tree.map(jnp.zeros_like, state.params)
        grads, metrics = jax.lax.scan(accumulate, zeros, _micro_batches(batch, micro))
        largest = jnp.max(metrics.pop("log_ratio_max"))
        metrics = jax.tree.map(jnp.sum, metrics) | {"log_ratio_max": largest}
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        for group, part in (("policy", "policy"), ("value", "critic")):
            metrics[f"{group}/grad_norm"] = optax.tree.norm(grads[part])
        return TrainState(optax.apply_updates(state.params, updates), opt_state), metrics

    rows = minibatch_rows(key, experience.tokens_BS.shape[0], epochs, minibatch)
    state, metrics = jax.lax.scan(one_minibatch, state, rows)
    first = {
        "debug/initial_log_ratio": metrics.pop("log_ratio_max")[0],
        "debug/initial_kl": metrics["policy/approx_kl"][0],
    }
    return state, jax.tree.map(jnp.mean, metrics) | first


def optimizer(policy, critic) -> optax.GradientTransformation:
    """One transformation for both parts of the state, each with its own moments and clipping."""
    return optax.multi_transform(
        {"policy": policy, "critic": critic}, {"policy": "policy", "critic": "critic"}
    )
