"""Responses to the prompts of records, sampled and ranked, as rows of a file."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from fgrlhf_jax.data.prompts import encode_prompts
from fgrlhf_jax.data.records import Record, alpaca_eval_prompt
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

    Args:
      records: any kind; their responses are not read.
      generator: the model's name in the rows.
      max_prompt_length: tokens; longer prompts are cut ("truncate") or left out ("drop").
      samples: responses a prompt, each with the key of (seed, record, sample), prompt by prompt.
      guide, progress: as for :meth:`LanguageModel.generate_from_ids`.
      score: from (ids of prompt and response, how many are the prompt's) to what each response is
        worth; those to a prompt then come best first.
      keep: how many of them; 0 keeps all.
      log: gets a line on how many prompts were cut or left out, where any were.

    Returns:
      The fields of ``alpaca_eval_prompt``, "output", "generator", "length" (tokens, end included),
      "finished"; unless greedy, "logprob" (of the response as drawn); with ``score``, "reward".

    Raises:
      InputError: when no prompt is left, or one leaves no room for a response.
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
    sampled = sampling_params.temperature > 0  # greedily a token has no other to be drawn
    return [
        {
            **alpaca_eval_prompt(records[streams[row][0]]),
            "input": records[streams[row][0]].input,
            "output": responses.texts[row],
            "generator": generator,
            "length": len(responses.ids[row]),
            "finished": responses.finished[row],
            **({"logprob": float(responses.logprobs[row].sum())} if sampled else {}),
            **({"reward": float(rewards[row])} if score else {}),
        }
        for row in order
    ]
