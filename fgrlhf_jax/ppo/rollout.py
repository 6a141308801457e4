"""Rollouts: prompts to sampled, scored responses; for learning and for watching."""

import time
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from fgrlhf_jax.data import templates
from fgrlhf_jax.data.prompts import encode_prompts, pad_prompts
from fgrlhf_jax.data.tokenizers import token_texts
from fgrlhf_jax.errors import InputError
from fgrlhf_jax.models import hf_load, sampling
from fgrlhf_jax.ppo import algorithm as ppo
from fgrlhf_jax.ppo import models as ppo_models
from fgrlhf_jax.reward_model import model as reward
from fgrlhf_jax.runtime import multihost, sharding, user_function

SAMPLE, SHUFFLE, EVALUATE, NORMALIZE = range(4)  # purposes of random keys


class Prompts(NamedTuple):
    """Encoded prompts and their texts."""

    ids: list[list[int]]
    texts: list[str]
    records: list


class Models(NamedTuple):
    """What a run computes with."""

    modules: ppo_models.Modules
    tokenizer: Any
    mesh: Mesh
    reference: dict
    scorer: dict
    compiled: dict


def key_of(seed: int, purpose: int, step: int) -> jax.Array:
    """The random key of a purpose at a step: nothing of it needs to be saved."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), purpose), step)


def template(config: ConfigDict, modules: ppo_models.Modules) -> str:
    """The prompt template: the one that the config names, or the reward model's, or where there
    is none, or a function pays, the one that the policy was fine-tuned with, or alpaca.

    Raises:
      InputError: when the reward model was trained with another one; and when it and the policy
        differ, and the config does not say that this is meant.
    """
    learned = modules.meta.data["template"] if modules.meta else ""
    named, own = config.data.template, hf_load.learned_template(config.policy)
    if learned and own and learned != own and not named and not config.reward_function:
        raise InputError(
            f"the policy was fine-tuned with the template {own}, the reward model with {learned}; "
            f"train both with the same, or give data.template={learned} if this is meant"
        )
    if named and learned and named != learned and not config.reward_function:
        raise InputError(
            f"data.template={named}: the reward model was trained with {learned}; it scores the "
            "sampled tokens with their prompt as it is, so both need the same"
        )
    paid_by = (own, learned) if config.reward_function else (learned, own)
    return named or next(filter(None, paid_by), "alpaca")


def encode(name: str, rows: list, config: ConfigDict, modules, tokenizer) -> Prompts:
    """Prompts of records, saying how many were left out or cut; raises InputError when none is
    left."""
    try:
        ids, kept, counts = encode_prompts(
            rows,
            tokenizer,
            template=template(config, modules),
            max_prompt_length=config.data.max_prompt_length,
            overlong=config.data.overlong,
        )
    except InputError as error:
        raise InputError(f"{name}: {error}") from error
    longest = max(map(len, ids)) + config.data.max_new_tokens
    limits = [modules.policy.cfg.max_position]
    limits += [modules.scorer.cfg.max_position] if modules.scorer else []
    if longest > min(limits):
        raise InputError(
            f"a prompt and data.max_new_tokens make {longest} tokens, more than the model's "
            f"{min(limits)} positions; lower data.max_new_tokens or data.max_prompt_length"
        )
    print(f"{name}: " + ", ".join(f"{n} {what}" for what, n in counts.items()))
    records = [rows[number] for number in kept]
    return Prompts(
        ids, [templates.plain_text(r.instruction, r.input) for r in records], records
    )


def roll_out(
    config: ConfigDict,
    models: Models,
    params: dict,
    normalization: reward.Normalization,
    some: Prompts,
    key: jax.Array,
) -> tuple[ppo.Rollout, np.ndarray, dict[str, float], list[str], list[list[int]], float]:
    """Sample a response to every prompt and have it scored.

    Returns:
      The rollout, raw rewards [B, T], seconds of both halves, the responses as texts and ids, and
      the KL (nats a token) from the distribution they were drawn from to the policy that is
      updated: 0 but for rounding, or the sampler and the policy are two.
    """
    clock = time.perf_counter()
    width = models.compiled["generate"].in_avals[0][1].shape[1]
    arrays = pad_prompts(some.ids, width)
    prompt_BP, mask_BP = sharding.put_batch(arrays, models.mesh)
    with jax.set_mesh(models.mesh):
        where = sharding.batch_sharding(models.mesh)
        make = jax.jit(sampling.row_keys, static_argnums=1, out_shardings=where)
        keys = make(key, len(some.ids))
        sampled = models.compiled["generate"](params["policy"], prompt_BP, mask_BP, keys)
        tokens_BT, length_B, finished_B, drawn_BT = sharding.to_host(sampled)
        sampled_at = time.perf_counter()
        rollout, raw_BT = models.compiled["assess"](
            params,
            models.reference,
            models.scorer,
            reward.Normalization(*map(np.float32, normalization)),
            prompt_BP,
            mask_BP,
            sampled,
        )
        ids = [row[:length].tolist() for row, length in zip(tokens_BT, length_B, strict=True)]
        texts = [
            models.tokenizer.decode(one[: len(one) - bool(ended)], skip_special_tokens=False)
            for one, ended in zip(ids, finished_B, strict=True)
        ]
        if config.reward_function:
            values = call(
                config.reward_function,
                models,
                some.texts,
                texts,
                ids,
                finished_B,
                lengths=length_B.tolist(),
            )
            raw_BT = user_function.scatter_rewards(values, length_B, tokens_BT.shape[1])
            rollout = rollout._replace(reward_BT=sharding.put_batch(raw_BT, models.mesh))
        raw_BT = np.asarray(sharding.to_host(raw_BT))
        logprob_BT, response_BT = sharding.to_host((rollout.logprob_BT, rollout.response_BT))
        log_ratio = (logprob_BT - drawn_BT)[response_BT]
        sampler_kl = float(np.mean(np.expm1(log_ratio) - log_ratio))
    scored_at = time.perf_counter()
    seconds = {"rollout": sampled_at - clock, "scoring": scored_at - sampled_at}
    return rollout, raw_BT, seconds, texts, ids, sampler_kl


def call(
    name: str,
    models: Models,
    prompts_: list[str],
    texts: list[str],
    ids: list,
    finished,
    lengths: list[int] | None = None,
) -> list:
    """A user's function on responses, see reward_function; process 0 alone calls it."""

    def ask() -> list:
        function = user_function.load(name)
        tokens = None
        if user_function.takes(function, "tokens"):
            tokens = [token_texts(models.tokenizer, one) for one in ids]
        return user_function.score_responses(
            function,
            name,
            prompts_,
            texts,
            tokens=tokens,
            finished=[bool(f) for f in finished],
            lengths=lengths,
        )

    return multihost.from_first(ask)


def watched(
    config: ConfigDict,
    models: Models,
    params: dict,
    normalization: reward.Normalization,
    some: Prompts,
    purpose: int,
):
    """(prompts, rollout, raw_BT, texts, ids, real) of batches that cover the validation prompts,
    always drawn with the same keys; only the first ``real`` rows count."""
    B = config.rollout_batch_size
    count = min(len(some.ids), config.validation_prompts)
    for start in range(0, count, B):
        rows = [r % count for r in range(start, start + B)]  # the last batch begins again
        batch = Prompts(*([part[r] for r in rows] for part in some))
        key = key_of(config.seed, purpose, start)
        rollout, raw_BT, _, texts, ids, _ = roll_out(
            config, models, params, normalization, batch, key
        )
        yield batch, rollout, raw_BT, texts, ids, min(B, count - start)


def fit_normalization(
    config: ConfigDict, models: Models, params: dict, some: Prompts
) -> reward.Normalization:
    """What makes the reward model's rewards about one unit a response of this policy."""
    if (
        config.reward_normalization == "none"
        or models.modules.scorer is None
        or config.reward_function
    ):
        return reward.Normalization(0.0, 1.0)
    if config.reward_normalization == "reward_model":
        return models.modules.meta.normalization
    rewards = []
    nothing = reward.Normalization(0.0, 1.0)
    for _, _, raw_BT, _, ids, real in watched(config, models, params, nothing, some, NORMALIZE):
        pairs = zip(raw_BT[:real], ids[:real], strict=True)
        rewards += [raw_T[: len(one)] for raw_T, one in pairs]
    return reward.fit_normalization(rewards, level=models.modules.meta.level)


def evaluate(
    config: ConfigDict,
    models: Models,
    params: dict,
    normalization: reward.Normalization,
    some: Prompts,
    step: int,
) -> tuple[dict[str, float], list[dict]]:
    """Figures of responses to validation prompts, and samples."""
    found: dict[str, list] = {n: [] for n in ("reward", "kl", "length", "unfinished", "score")}
    samples = []
    for batch, rollout, _, texts, ids, real in watched(
        config, models, params, normalization, some, EVALUATE
    ):
        finished = np.asarray(sharding.to_host(rollout.finished_B))
        host = sharding.to_host(
            (rollout.reward_BT, rollout.logprob_BT, rollout.ref_logprob_BT, rollout.response_BT)
        )
        reward_BT, logprob_BT, ref_BT, response_BT = host
        kl_B = np.where(response_BT, logprob_BT - ref_BT, 0.0).sum(axis=1)
        found["reward"] += reward_BT.sum(axis=1)[:real].tolist()
        found["kl"] += kl_B[:real].tolist()
        found["length"] += [len(one) for one in ids[:real]]
        found["unfinished"] += (~finished[:real]).astype(float).tolist()
        if config.judge:
            found["score"] += call(
                config.judge,
                models,
                batch.texts[:real],
                texts[:real],
                ids[:real],
                finished[:real],
            )
        for b in range(min(real, config.logged_samples - len(samples))):
            samples.append(
                {
                    "step": step,
                    "instruction": batch.records[b].instruction,
                    "input": batch.records[b].input,
                    "output": texts[b],
                    "finished": bool(finished[b]),
                    "tokens": token_texts(models.tokenizer, ids[b]),
                    "rewards": reward_BT[b, : len(ids[b])].tolist(),
                }
            )
    figures = {f"validation/{n}": float(np.mean(v)) for n, v in found.items() if v}
    return figures, samples
