"""Records to the reward of every response token, and which tokens the edit changed."""

import dataclasses
from collections.abc import Callable, Iterable

import numpy as np

from fgrlhf_jax.data import records, templates
from fgrlhf_jax.data.alignment import align
from fgrlhf_jax.data.bucketing import by_length, make_buckets
from fgrlhf_jax.data.tokenizers import token_texts
from fgrlhf_jax.errors import InputError
from fgrlhf_jax.reward_model import model as reward
from fgrlhf_jax.reward_model.scorer import Scorer
from fgrlhf_jax.runtime import sharding

RESPONSES = {
    records.Edit: ("original", "edited"),
    records.Preference: ("output_1", "output_2"),
    records.Instruction: ("output",),
}


@dataclasses.dataclass
class Side:
    """One response: its field, and for each token what it shows, its reward, whether it changed."""

    label: str
    tokens: list[str]
    rewards: list[float]
    changed: list[bool]
    truncated: bool  # the prompt or the response was longer than it may be


def score_rows(
    scorer: Scorer,
    rows: list,
    *,
    batch_size: int,
    max_length: int,
    calibrated: bool,
    progress: Callable[[Iterable], Iterable] = iter,
) -> list[list[Side]]:
    """The sides of every row, in order; rewards come from ``score_tokens``.

    Args:
      batch_size: responses at a time, rounded up to what the mesh divides.
      max_length: tokens of prompt and response; the tail of a longer response is cut.
      calibrated: rewards in the units that PPO gets, or as the model gives them.
      progress: wraps the iteration over batches.

    Raises:
      InputError: for a row without a response, or whose prompt leaves no room for one.
    """
    data = scorer.meta.data
    batch_size = sharding.round_batch_size(batch_size, scorer.mesh)
    jobs = []  # (row, side, prompt length, ids)
    sides: list[list[Side]] = []
    for number, row in enumerate(rows):
        prompt, cut = templates.encode_prompt(
            scorer.tokenizer,
            data["template"],
            row.instruction,
            row.input,
            data["max_prompt_length"],
        )
        names = RESPONSES[type(row)]
        texts = [getattr(row, name) for name in names]
        missing = [name for name, text in zip(names, texts, strict=True) if not text]
        if missing:
            raise InputError(
                f"row {number + 1}: there is no response in {missing[0]!r} to score"
            )
        room = max_length - len(prompt)
        if room < 1:
            raise InputError(
                f"row {number + 1}: its prompt of {len(prompt)} tokens leaves no room for a "
                f"response within max_length={max_length}; raise it"
            )
        ids = [
            templates.encode_response(scorer.tokenizer, t, data["append_eos"]) for t in texts
        ]
        changed = [np.zeros(len(i), bool) for i in ids]
        if isinstance(row, records.Edit):
            aligned = align(ids[1], ids[0], data["alignment"])
            changed = [aligned.changed_j, aligned.changed_i]
        sides.append([])
        for name, response, mask in zip(names, ids, changed, strict=True):
            truncated = cut or len(response) > room
            response = response[:room]
            pieces = token_texts(scorer.tokenizer, response)
            sides[-1].append(Side(name, pieces, [], mask[:room].tolist(), truncated))
            jobs.append((number, len(sides[-1]) - 1, len(prompt), prompt + response))

    lengths = [len(ids) for *_, ids in jobs]
    for batch in progress(by_length(lengths, batch_size, make_buckets(max_length))):
        chunk, width = [jobs[row] for row in batch.rows], batch.width
        tokens_BS = np.zeros((batch_size, width), np.int32)
        real_BS, response_BS = np.zeros((2, batch_size, width), bool)
        real_BS[:, 0] = True  # rows that only fill the batch
        for b, (_, _, prompt_length, ids) in enumerate(chunk):
            tokens_BS[b, : len(ids)] = ids
            real_BS[b, : len(ids)] = True
            response_BS[b, prompt_length : len(ids)] = True
        tokens, real = sharding.put_batch((tokens_BS, real_BS), scorer.mesh)
        reward_BS = sharding.to_host(scorer.score_tokens(tokens, real))
        if calibrated:
            reward_BS = reward.normalize_rewards(
                reward_BS, response_BS, scorer.meta.normalization, level=scorer.meta.level
            )
        reward_BS = np.asarray(reward_BS, np.float64)
        for b, (number, side, prompt_length, ids) in enumerate(chunk):
            sides[number][side].rewards = reward_BS[b, prompt_length : len(ids)].tolist()
    return sides
