"""Answers requests with a local checkpoint in place of an API.

Requests are sampled in batches, each with a random key derived from its own content, so that a
reply depends neither on the other requests nor on their order.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np

from fgrlhf_jax.feedback.llm.client import END, LENGTH, Rejected, Reply, Request
from fgrlhf_jax.models.language_model import LanguageModel, SamplingParams, check_max_new_tokens


def connect(
    model: str, *, batch_size: int = 8, max_prompt_length: int = 1024, seed: int = 0, **options
) -> Callable[[Sequence[Request]], list[Reply | Rejected]]:
    """Returns a function from requests to a Reply or a Rejected for each, in order.

    Args:
      max_prompt_length: in tokens; a longer prompt is rejected, never truncated.
      seed: for sampling requests with a temperature above 0.
      options: of ``LanguageModel.load``, which raises InputError for an unusable model. The
        function raises InputError if max_tokens leaves no room for a prompt.
    """
    language_model = LanguageModel.load(model, **options)

    def send(requests: Sequence[Request]) -> list[Reply | Rejected]:
        replies: list = [_encode(language_model, r, max_prompt_length) for r in requests]
        groups = defaultdict(list)  # requests that differ only in the prompt
        for number, request in enumerate(requests):
            if not isinstance(replies[number], Rejected):
                groups[request.max_tokens, request.temperature].append(number)
        for (max_tokens, temperature), numbers in groups.items():
            responses = language_model.generate_from_ids(
                [replies[number] for number in numbers],
                SamplingParams(temperature, max_new_tokens=max_tokens),
                seed=seed,
                streams=[_digest_words(requests[number]) for number in numbers],
                batch_size=batch_size,
                longest=max_prompt_length,
            )
            for row, number in enumerate(numbers):
                stop = END if responses.finished[row] else LENGTH
                lengths = len(replies[number]), len(responses.ids[row])
                replies[number] = Reply(responses.texts[row], stop, *lengths)
        return replies

    return send


def _encode(model: LanguageModel, request: Request, longest: int) -> list[int] | Rejected:
    """Returns the prompt's token ids, or Rejected if it is too long."""
    check_max_new_tokens(request.max_tokens, model.module.cfg)
    ids = model.encode(request.prompt)
    room = min(longest, model.module.cfg.max_position - request.max_tokens)
    if len(ids) > room:
        return Rejected(f"the prompt has {len(ids)} tokens, more than {room}")
    return ids


def _digest_words(request: Request) -> tuple[int, int]:
    """Returns two 32-bit words of the request's digest, for its random key."""
    parts = [request.prompt, "", request.max_tokens, request.temperature]
    digest = hashlib.sha256(json.dumps(parts).encode()).digest()
    return tuple(np.frombuffer(digest[:8], np.uint32).tolist())
