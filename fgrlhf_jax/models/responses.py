"""Samples and ranks responses to the prompts of records, as rows of a file."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from fgrlhf_jax.data.records import Record, alpaca_eval_prompt
from fgrlhf_jax.data.templates import encode_prompts
from fgrlhf_jax.models import sampling
from fgrlhf_jax.models.language_model import LanguageModel, SamplingParams


def generate_responses(
    model: LanguageModel,
    records: Sequence[Record],
    sampling_params: SamplingParams,
    *,
    generator: str,
    max_prompt_length: int,
    overlong: str = "truncate",
    samples: int = 1,
    seed: int = 0,
    batch_size: int = 16,
    guide: sampling.Guide | None = None,
    score: Callable[[list[tuple[list[int], int]]], list[float]] | None = None,
    keep: int = 0,
    progress: Callable[[Iterable], Iterable] = iter,
    log: Callable[[str], None] = print,
) -> list[dict]:
    """Responses to the prompts of records, as rows in the output format of alpaca_eval.

    The rows, prompt by prompt, have the fields of ``alpaca_eval_prompt``, "output", "generator",
    "length" (tokens, including the end), "finished"; unless greedy, "logprob" (of the response as
    sampled); with ``score``, "reward". Raises InputError if no prompt is left, or one leaves no
    room for a response.

    Args:
      records: records of any kind; their responses are ignored.
      generator: the model's name in the rows.
      max_prompt_length: tokens; longer prompts are cut ("truncate") or left out ("drop"), and
        ``log`` receives a line with their number.
      samples: responses per prompt, each with the key of (seed, record, sample).
      guide, progress: as for :meth:`LanguageModel.generate_from_ids`.
      score: maps (ids of prompt and response, number of prompt ids) to a score per response;
        responses to a prompt are then sorted, best first.
      keep: number of responses to keep per prompt; 0 keeps all.
    """
    lengths = {"max_prompt_length": max_prompt_length, "overlong": overlong}
    prompts, numbers, counts = encode_prompts(
        records, model.tokenizer, template=model.template, **lengths
    )
    if counts["truncated"] or counts["dropped_overlong"]:
        log(", ".join(f"{count} {name}" for name, count in counts.items()))
    streams = [(number, sample) for number in numbers for sample in range(samples)]
    repeated = [ids for ids in prompts for _ in range(samples)]
    options = {"seed": seed, "batch_size": batch_size, "guide": guide, "progress": progress}
    responses = model.generate_from_ids(repeated, sampling_params, streams=streams, **options)
    order, rewards = range(len(streams)), []
    if score:
        texts = zip(repeated, responses.ids, strict=True)
        rewards = score([(prompt + ids, len(prompt)) for prompt, ids in texts])
        best_NK = np.argsort(-np.reshape(rewards, (-1, samples)), axis=1, kind="stable")
        order = (best_NK + samples * np.arange(len(best_NK))[:, None])[:, : keep or samples].ravel()
    is_sampled = sampling_params.temperature > 0  # greedy tokens have no sampling probability
    return [
        {
            **alpaca_eval_prompt(records[streams[row][0]]),
            "input": records[streams[row][0]].input,
            "output": responses.texts[row],
            "generator": generator,
            "length": len(responses.ids[row]),
            "finished": responses.finished[row],
            **({"logprob": float(responses.logprobs[row].sum())} if is_sampled else {}),
            **({"reward": float(rewards[row])} if score else {}),
        }
        for row in order
    ]
