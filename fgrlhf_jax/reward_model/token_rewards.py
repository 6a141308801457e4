"""Encodes the responses of records, and holds their token rewards."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from fgrlhf_jax.data import formats, records, templates
from fgrlhf_jax.data.alignment import align
from fgrlhf_jax.data.tokenizers import Tokenizer, token_texts
from fgrlhf_jax.errors import InputError


@dataclasses.dataclass
class ScoredResponse:
    """A response and the reward of each of its tokens; iterating gives (token, reward).

    Attributes:
      label: the response's field in its record.
      tokens: the text of each token.
      rewards: the reward of each token.
      changed: whether the edit changed it.
      truncated: whether prompt or response was cut.
    """

    label: str
    tokens: list[str]
    rewards: list[float]
    changed: list[bool]
    truncated: bool

    def __iter__(self) -> Iterator[tuple[str, float]]:
        return zip(self.tokens, self.rewards, strict=True)


def as_records(rows: Sequence[records.Record | Mapping[str, Any]]) -> list[records.Record]:
    """Checks mappings and converts them to records; records are returned unchanged."""
    return [
        row if isinstance(row, records.Record) else formats.parse_record(row, f"row {number}")
        for number, row in enumerate(formats.as_list(rows, "record"), 1)
    ]


def encode_responses(
    rows: Sequence[records.Record], tokenizer: Tokenizer, data: dict, max_length: int
) -> list[list[tuple[ScoredResponse, list[int], int]]]:
    """The responses of each record, in the order of its fields, without rewards yet.

    With each are the token ids of its prompt and itself, and the number of the prompt's. Raises
    InputError for a record without a response, or whose prompt leaves no room for one.

    Args:
      data: the encoding arguments of the reward model's training data.
      max_length: tokens of prompt and response; longer responses are cut.
    """
    encoded: list[list[tuple]] = []
    options = {name: data[name] for name in ("max_prompt_length", "append_eos")}
    for number, row in enumerate(rows, 1):
        texts = {name: getattr(row, name) for name in records.RESPONSES[type(row)]}
        if missing := [name for name, text in texts.items() if not text]:
            raise InputError(f"row {number}: there is no response in {missing[0]!r} to score")
        sides, is_cut = templates.encode_responses(
            tokenizer, data["template"], row, texts, **options
        )
        if (length := max(side.start for side in sides)) >= max_length:
            raise InputError(
                f"row {number}: its prompt of {length} tokens leaves no room for a response "
                f"within max_length={max_length}; raise it"
            )
        changed = [np.zeros(len(side.ids) - side.start, bool) for side in sides]
        if isinstance(row, records.Edit):
            responses = (side.ids[side.start :] for side in reversed(sides))
            alignment = align(*responses, data["alignment"])
            changed = [alignment.changed_j, alignment.changed_i]
        encoded.append([])
        for name, (ids, start, _), changed_T in zip(texts, sides, changed, strict=True):
            tokens = token_texts(tokenizer, ids[start:max_length])
            changed_T = changed_T[: len(tokens)].tolist()
            scored = ScoredResponse(name, tokens, [], changed_T, is_cut or len(ids) > max_length)
            encoded[-1].append((scored, ids[:max_length], start))
    return encoded
