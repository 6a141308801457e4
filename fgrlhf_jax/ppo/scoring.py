"""Scores prompts and responses: predictions of policy and critic, and rewards.

Rows begin at column 0 and are padded on the right. Micro-batches have rows of similar length, taken
longest first; each has the narrowest width that holds its longest row, and as many rows as its
tokens allow. A program has one loop body per width, runs it as often as the lengths require, and is
never recompiled.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fgrlhf_jax.functional import policy_losses
from fgrlhf_jax.models import heads, lora
from fgrlhf_jax.models.sampling import Sampled
from fgrlhf_jax.ppo.algorithm import Experience, PPOSettings, Predictions, Rollout, Rows, rows_of
from fgrlhf_jax.ppo.models import Architectures, Frozen, merge_base, merge_frozen, parts_of
from fgrlhf_jax.reward_model.model import Normalization, normalize_rewards, score_tokens
from fgrlhf_jax.runtime import sharding


class Target(NamedTuple):
    """The distillation target: the closed-form improvement of the reference by a reward model.

        pi+(a|s) ~ pi_ref(a|s) exp(r(s, a) / beta)

    maximises E[r(s, a)] - beta KL(pi || pi_ref) in every state (see ``sampling.Guide``). On the
    policy's own responses it is the teacher of Agarwal et al. 2024, arXiv:2306.13649.
    """

    reference: dict  # all parameters of the reference
    reward_model: dict
    beta: jax.Array  # float32 scalar, kl_coef times the std that rewards are normalized by


def predict(
    params: dict,
    rows: Rows,
    target: Target | None = None,
    *,
    models: Architectures,
    settings: PPOSettings,
) -> Predictions:
    """Log-probability, entropy and value of the response columns.

    Rollouts and updates share this function, so that the first minibatch reproduces the rollout's
    log-probabilities and its ratio is 1.

    Args:
      params: all parameters of "policy", "critic" or both; predictions of a missing part are 0. If
        ``models.critic`` is None, "critic" is {"head": ...}, on the policy's own states.
      target: for distillation, the target that the policy is compared with over all tokens.
    """
    previous_BT = jnp.maximum(rows.columns_BT - 1, 0)
    inputs = rows.tokens_BS, *heads.positions_and_mask(rows.mask_BS)
    logprob_BT = entropy_BT = value_BT = jnp.zeros(previous_BT.shape, jnp.float32)
    target_kl_BT = None
    if "policy" in params:
        read = functools.partial(heads.next_tokens_at, inputs=inputs, columns_BT=previous_BT)
        hidden_BTD, logits_BTV = read(models.policy, params["policy"])
        logits_BTV = logits_BTV / settings.temperature
        token_BT = jnp.take_along_axis(rows.tokens_BS, rows.columns_BT, axis=1)
        logprob_BT, entropy_BT = jax.vmap(policy_losses.logprob_and_entropy)(logits_BTV, token_BT)
        if target is not None:
            _, reference_BTV = read(models.policy, target.reference)
            _, reward_BTV = read(models.reward_model, target.reward_model)
            target_BTV = reference_BTV / settings.temperature + reward_BTV / target.beta
            target_kl_BT = jax.vmap(policy_losses.kl_to_target)(logits_BTV, target_BTV)
    if "critic" in params and models.critic is None:
        head = heads.ScalarHead(models.policy.cfg, "after", True)
        value_BT = head.apply({"params": params["critic"]["head"]}, hidden_BTD, None, None)
    elif "critic" in params:
        value_BS = models.critic.apply(lora.variables(params["critic"]), *inputs)
        value_BT = jnp.take_along_axis(value_BS, previous_BT, axis=1)
    return Predictions(logprob_BT, entropy_BT, value_BT, target_kl_BT)


def score_rollout(
    params: dict,
    frozen: Frozen,
    normalization: Normalization,
    learning: jax.Array,
    prompt_BP: jax.Array,
    prompt_mask_BP: jax.Array,
    sampled: Sampled,
    *,
    models: Architectures,
    settings: PPOSettings,
) -> Rollout:
    """Log-probabilities, values and rewards of sampled responses, in micro-batches.

    Scores the sampled ids directly; nothing is decoded and re-encoded.

    Args:
      params: the trained parameters of policy and critic.
      frozen: the other parameters; without a reward model rewards are 0, to be filled in later.
      learning: bool, whether an update follows. A separate critic's values are computed only then;
        predictions of policy and critic are 0 if the update computes them itself
        (:attr:`PPOSettings.one_pass`).
      prompt_BP, prompt_mask_BP: prompts padded on the left.
    """
    B, T = sampled.tokens_BT.shape
    start_B = jnp.sum(prompt_mask_BP, axis=1, dtype=jnp.int32)
    padded_BS = jnp.concatenate([prompt_BP, sampled.tokens_BT], axis=1)
    tokens_BS = jax.vmap(jnp.roll)(padded_BS, start_B - prompt_BP.shape[1])  # from column 0 on
    all_rows = Rows(tokens_BS, start_B, jnp.arange(T)[None] < sampled.length_B[:, None])
    params, (reference, reward_model) = merge_base(params, frozen), merge_frozen(frozen)
    predict_rows = functools.partial(predict, models=models, settings=settings)
    level = models.meta.level if reward_model else ""

    def score(outputs, rows, numbers, is_real):
        skip = functools.partial(predict_rows, {}, rows)
        first, *others = (
            functools.partial(predict_rows, {name: params[name] for name in part}, rows)
            for part in parts_of(models)
        )
        if settings.one_pass:
            predictions = jax.lax.cond(learning, skip, first)
        else:
            predictions = first()
            for critic in others:
                values = jax.lax.cond(learning, critic, skip)
                predictions = predictions._replace(value_BT=values.value_BT)
        results = {
            "logprob_BT": predictions.logprob_BT,
            "value_BT": predictions.value_BT,
            "ref_logprob_BT": predict_rows({"policy": reference}, rows).logprob_BT,
        }
        if reward_model:
            reward_BS = score_tokens(
                *(reward_model, rows.tokens_BS, rows.mask_BS),
                model=models.reward_model,
                level=level,
            )
            results["raw_reward_BT"] = jnp.take_along_axis(reward_BS, rows.columns_BT, axis=1)
        numbers, columns = jnp.where(is_real, numbers, B), rows.response_BT.shape[1]
        return outputs | {
            name: outputs[name]
            .at[numbers, :columns]
            .set(jnp.where(rows.response_BT, result, 0.0), mode="drop")
            for name, result in results.items()
        }

    names = ("logprob_BT", "value_BT", "ref_logprob_BT", "raw_reward_BT")
    zeros = {name: jnp.zeros((B, T), jnp.float32) for name in names}
    outputs = fold(score, zeros, all_rows, settings)
    reward_BT = outputs["raw_reward_BT"]
    if reward_model:
        reward_BT = normalize_rewards(reward_BT, all_rows.response_BT, normalization, level=level)
    return Rollout(
        **all_rows._asdict(),
        finished_B=sampled.finished_B,
        sampler_logprob_BT=sampled.logprob_BT,
        reward_BT=reward_BT,
        **outputs,
    )


def fold(function: Callable, carry, batch: Experience | Rows, settings: PPOSettings):
    """``carry = function(carry, part, numbers, is_real)`` over micro-batches of all rows.

    Args:
      function: receives some rows of ``batch``, cut to the width of their micro-batch, the rows'
        indices int32[n], and bool[n], False on rows that only fill up a micro-batch.
      batch: arrays [B, ...], [B, S]. With a single width the rows stay in order, and
        ``micro_batch_size`` divides B.
    """
    length_B, widths = rows_of(batch).length_B, settings.widths
    B = length_B.shape[0]
    sizes = [min(rows_of_width(width, settings), B) for width in widths]

    def apply(carry, numbers, is_real, width):
        def take(x):
            x = x[numbers]
            return sharding.constrain(x[:, :width] if x.ndim == 2 else x)

        return function(carry, jax.tree.map(take, batch), numbers, is_real)

    if len(widths) == 1:
        (n,) = sizes
        all_real = jnp.ones(n, bool)

        def body(number, carry):
            return apply(carry, number * n + jnp.arange(n), all_real, widths[0])

        return body(0, carry) if n == B else jax.lax.fori_loop(0, B // n, body, carry)
    order_B = jnp.argsort(-length_B, stable=True)
    sorted_B = length_B[order_B]
    start = jnp.int32(0)
    for width, n, narrower in zip(widths[::-1], sizes[::-1], (*widths[-2::-1], 0), strict=True):

        def unfinished(state, narrower=narrower):
            start = state[0]
            return (start < B) & (sorted_B[jnp.minimum(start, B - 1)] > narrower)

        def step(state, width=width, n=n):
            start, carry = state
            places = start + jnp.arange(n)
            numbers = order_B[jnp.minimum(places, B - 1)]
            return start + n, apply(carry, numbers, places < B, width)

        with jax.named_scope(scope(width)):
            start, carry = jax.lax.while_loop(unfinished, step, (start, carry))
    return carry


def rows_of_width(width: int, settings: PPOSettings) -> int:
    """Number of rows of a micro-batch of this width.

    As many as have no more tokens, and no more response columns, than ``micro_batch_size`` rows of
    the last width; a multiple of the devices.
    """
    full, rows, T = settings.widths[-1], settings.micro_batch_size, settings.max_new_tokens
    count = rows * min(full / width, min(full, T) / min(width, T))
    shards = sharding.batch_shards()
    return max(int(count) // shards * shards, shards)


def scope(width: int) -> str:
    """The name of a width's loop in the compiled program."""
    return f"width_{width}"


def count_micro_batches(lengths: Sequence[int], settings: PPOSettings) -> dict[int, int]:
    """The number of micro-batches of each width that :func:`fold` makes for these lengths."""
    ordered, start, counts = np.sort(lengths)[::-1], 0, {}
    for width, narrower in zip(settings.widths[::-1], (*settings.widths[-2::-1], 0), strict=True):
        counts[width] = 0
        while start < len(ordered) and ordered[start] > narrower:
            start += min(rows_of_width(width, settings), len(ordered))
            counts[width] += 1
    return counts
