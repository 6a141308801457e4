"""Rollouts: from prompts to sampled, scored responses, for training and evaluation."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from fgrlhf_jax.data.records import prompt_fields, prompt_text
from fgrlhf_jax.data.templates import encode_prompts, pad_prompts
from fgrlhf_jax.data.tokenizers import decode, token_texts
from fgrlhf_jax.errors import InputError
from fgrlhf_jax.models import sampling
from fgrlhf_jax.ppo.algorithm import GROUPED, Rollout
from fgrlhf_jax.ppo.models import Architectures, Frozen
from fgrlhf_jax.reward_model.model import Normalization, fit_normalization
from fgrlhf_jax.runtime import multihost, sharding, user_function
from fgrlhf_jax.runtime.memory import release_unused

SAMPLE, SHUFFLE, EVALUATE, NORMALIZE = range(4)  # purposes of random keys


class Prompts(NamedTuple):
    """Encoded prompts with their texts and records."""

    ids: list[list[int]]
    texts: list[str]
    records: list

    def take(self, rows: Iterable[int]) -> "Prompts":
        rows = list(rows)
        return Prompts(*([column[row] for row in rows] for column in self))


def encode(
    name: str, rows: list, config: ConfigDict, models: Architectures, tokenizer, template: str
) -> Prompts:
    """Encodes the prompts of records; prints how many were left out or cut.

    Raises InputError if none is left, or if they leave no room for responses.
    """
    limits = {name: config.data[name] for name in ("max_prompt_length", "overlong")}
    try:
        ids, numbers, counts = encode_prompts(rows, tokenizer, template=template, **limits)
    except InputError as error:
        raise InputError(f"{name}: {error}") from error
    longest = max(map(len, ids)) + config.data.max_new_tokens
    limit = min(m.cfg.max_position for m in (models.policy, models.reward_model) if m)
    if longest > limit:
        raise InputError(
            f"a prompt and data.max_new_tokens make {longest} tokens, more than the model's "
            f"{limit} positions; lower data.max_new_tokens or data.max_prompt_length"
        )
    print(f"{name}: " + ", ".join(f"{n} {label}" for label, n in counts.items()))
    records = [rows[number] for number in numbers]
    return Prompts(ids, [prompt_text(r) for r in records], records)


class PPOContext(NamedTuple):
    """Models, mesh, programs and config of rollouts."""

    config: ConfigDict
    models: Architectures
    tokenizer: Any
    mesh: Mesh
    generation_mesh: Mesh  # see programs.generation_mesh
    prompt_width: int  # columns of padded prompts
    frozen: Frozen
    programs: dict  # the compiled programs.make
    place_weights: Callable  # copies the policy for decoding, see decoding.make_placer


class Responses(NamedTuple):
    """Sampled and scored responses to prompts, on the host except ``rollout``."""

    prompts: Prompts
    rollout: Rollout
    ids: list[list[int]]
    texts: list[str]  # without the end of sequence
    finished_B: np.ndarray
    raw_reward_BT: np.ndarray  # before normalization
    seconds: dict[str, float]  # of both halves, "rollout" and "scoring"


def step_key(seed: int, purpose: int, step: int) -> jax.Array:
    """The random key of a purpose at a step; a pure function, so no key needs to be saved."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), purpose), step)


def rows_of_step(count: int, size: int, *, seed: int, step: int) -> np.ndarray:
    """The rows of a step, int[size]; every epoch has a new permutation. A pure function."""
    epoch, batch = divmod(step, count // size)
    order = np.random.default_rng((seed, epoch)).permutation(count)
    return order[batch * size : (batch + 1) * size]


def roll_out(
    context: PPOContext,
    params: dict,
    normalization: Normalization,
    prompts: Prompts,
    key: jax.Array,
    *,
    learning: bool,
) -> Responses:
    """Samples a response to every prompt and scores it.

    Args:
      normalization: of the reward model's rewards; those of a function are not normalized.
      prompts: ``rollout_batch_size`` of them; for training, each repeated once per sample.
      learning: whether an update follows, see ``scoring.score_rollout``.
    """
    start = time.perf_counter()
    config, mesh, programs = context.config, context.mesh, context.programs
    arrays = pad_prompts(prompts.ids, context.prompt_width)
    prompt_BP, mask_BP = sharding.put_batch(arrays, mesh)
    decoding = context.generation_mesh
    with jax.set_mesh(decoding):
        row_sharding = sharding.batch_sharding(decoding)
        make_keys = jax.jit(sampling.row_keys, static_argnums=1, out_shardings=row_sharding)
        inputs = *sharding.put_batch(arrays, decoding), make_keys(key, len(prompts.ids))
        weights = context.place_weights(context.frozen.base | params["policy"])
        sampled = programs["generate"](weights, *inputs)
        del weights  # freed before the scoring models run
        tokens_BT, length_B, finished_B = sharding.to_host(sampled[:3])
        release_unused()  # the update's arrays would not fit into the freed blocks
    sampled_at = time.perf_counter()
    with jax.set_mesh(mesh):
        rollout = programs["score_rollout"](
            params,
            context.frozen,
            Normalization(*map(np.float32, normalization)),
            np.bool_(learning),
            prompt_BP,
            mask_BP,
            sampled,
        )
        ids = [row[:length].tolist() for row, length in zip(tokens_BT, length_B, strict=True)]
        texts = [
            decode(context.tokenizer, row[: len(row) - bool(is_finished)])
            for row, is_finished in zip(ids, finished_B, strict=True)
        ]
        if config.reward_function:
            values = call_function(
                config.reward_function, context, prompts.texts, texts, ids, finished_B, length_B
            )
            compares_tokens = config.level == "token" and config.algorithm in GROUPED
            if compares_tokens and float in map(type, values):
                raise InputError(
                    f"{config.reward_function}: returned one number a response, and level=token "
                    f"has algorithm={config.algorithm} compare rewards of tokens; give --config="
                    "configs/ppo.py:MODEL,sequence"
                )
            reward_BT = user_function.scatter_rewards(values, length_B, tokens_BT.shape[1])
            reward_on_mesh = sharding.put_batch(reward_BT, mesh)
            rollout = rollout._replace(raw_reward_BT=reward_on_mesh, reward_BT=reward_on_mesh)
        raw_reward_BT = sharding.to_host(rollout.raw_reward_BT)
    seconds = {"rollout": sampled_at - start, "scoring": time.perf_counter() - sampled_at}
    return Responses(prompts, rollout, ids, texts, finished_B, np.asarray(raw_reward_BT), seconds)


def call_function(
    name: str,
    context: PPOContext,
    prompts: Sequence[str],
    responses: Sequence[str],
    ids: Sequence[list[int]],
    finished_B: np.ndarray,
    length_B: np.ndarray | None = None,
) -> list:
    """The numbers of a user's ``module:function`` for responses; only process 0 calls it."""

    def score() -> list:
        function, tokens = user_function.load(name), None
        if user_function.accepts(function, "tokens"):
            tokens = [token_texts(context.tokenizer, row) for row in ids]
        return user_function.score_responses(
            function,
            name,
            prompts,
            responses,
            tokens=tokens,
            finished=[bool(f) for f in finished_B],
            lengths=None if length_B is None else length_B.tolist(),
        )

    return multihost.from_process_0(score)


def roll_out_validation(
    context: PPOContext, params: dict, normalization: Normalization, prompts: Prompts, purpose: int
) -> Iterator[tuple[Responses, int]]:
    """Yields batches of responses to the validation prompts, always sampled with the same keys.

    Also yields how many of them count: the last batch is filled up with the first prompts.
    """
    config, B = context.config, context.config.rollout_batch_size
    count = min(len(prompts.ids), config.validation_prompts)
    for start in range(0, count, B):
        batch = prompts.take(row % count for row in range(start, start + B))
        key = step_key(config.seed, purpose, start)
        responses = roll_out(context, params, normalization, batch, key, learning=False)
        yield responses, min(B, count - start)


def normalize_on_validation(context: PPOContext, params: dict, prompts: Prompts) -> Normalization:
    """The normalization that scales rewards to about one unit per response of this policy."""
    config, meta = context.config, context.models.meta
    identity = Normalization(0.0, 1.0)
    if config.reward_normalization == "none" or not context.frozen.reward_model:
        return identity
    if config.reward_normalization == "reward_model":
        return meta.normalization
    rewards = []
    for responses, count in roll_out_validation(context, params, identity, prompts, NORMALIZE):
        # The first batch counts in full: if prompts are too few, some are sampled several times.
        real = slice(count if rewards else None)
        rows = zip(responses.raw_reward_BT[real], responses.ids[real], strict=True)
        rewards += [raw_T[: len(row)] for raw_T, row in rows]
    return fit_normalization(rewards, level=meta.level)


def apply_missing_eos(reward_B, finished_B, rule: str, penalty: float) -> np.ndarray:
    """The total rewards of responses after ``policy_losses.missing_eos``, on the host."""
    is_kept_B = finished_B | (rule != "replace")
    return reward_B * is_kept_B + np.where(finished_B | (rule == "none"), 0.0, penalty)


def evaluate(
    context: PPOContext, params: dict, normalization: Normalization, prompts: Prompts, step: int
) -> tuple[dict[str, float], list[dict]]:
    """Metrics of responses to the validation prompts, and some responses with their rewards."""
    config = context.config
    names = ("reward", "reward_with_missing_eos", "kl", "length", "unfinished", "score")
    values: dict[str, list[float]] = {name: [] for name in names}
    samples = []
    for responses, count in roll_out_validation(context, params, normalization, prompts, EVALUATE):
        rollout = responses.rollout
        reward_BT, logprob_BT, ref_logprob_BT, response_BT = sharding.to_host(
            (rollout.reward_BT, rollout.logprob_BT, rollout.ref_logprob_BT, rollout.response_BT)
        )
        ids, texts, finished_B = (
            column[:count] for column in (responses.ids, responses.texts, responses.finished_B)
        )
        kl_B = np.where(response_BT, logprob_BT - ref_logprob_BT, 0.0).sum(axis=1)
        reward_B = reward_BT.sum(axis=1)[:count]
        values["reward"] += reward_B.tolist()
        if config.missing_eos != "none":
            rule = config.missing_eos, config.missing_eos_penalty
            total_B = apply_missing_eos(reward_B, finished_B, *rule)
            values["reward_with_missing_eos"] += total_B.tolist()
        values["kl"] += kl_B[:count].tolist()
        values["length"] += [len(row) for row in ids]
        values["unfinished"] += (~finished_B).astype(float).tolist()
        if config.judge:
            values["score"] += call_function(
                config.judge, context, responses.prompts.texts[:count], texts, ids, finished_B
            )
        for b in range(min(count, config.logged_samples - len(samples))):
            record = responses.prompts.records[b]
            samples.append(
                {
                    "step": step,
                    **prompt_fields(record),
                    "output": texts[b],
                    "finished": bool(finished_B[b]),
                    "tokens": token_texts(context.tokenizer, ids[b]),
                    "rewards": reward_BT[b, : len(ids[b])].tolist(),
                }
            )
    return {f"validation/{n}": float(np.mean(v)) for n, v in values.items() if v}, samples
