"""Demonstrations to imitate: records to token ids, and ids to padded batches.

Masks come from lengths, as in ``pairs``. B rows, S columns.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from fgrlhf_jax.data.bucketing import fill_batch, pad_responses
from fgrlhf_jax.data.records import Instruction, Record
from fgrlhf_jax.data.templates import check_limits, encode_responses
from fgrlhf_jax.data.tokenizers import Tokenizer
from fgrlhf_jax.errors import InputError


@dataclasses.dataclass(frozen=True, eq=False)
class Demonstration:
    """A prompt and its response: int32[S], of which the first ``prompt_length`` are prompt."""

    tokens: np.ndarray
    prompt_length: int


def encode_demonstrations(
    records: Sequence[Record],
    tokenizer: Tokenizer,
    *,
    template: str,
    max_length: int,
    max_prompt_length: int,
    overlong: str = "truncate",
    append_eos: bool = True,
) -> tuple[list[Demonstration], dict[str, int]]:
    """Demonstrations of the usable records, in their order, and counts of what was left out.

    A row whose output is empty is left out.

    Args:
      max_length: tokens of prompt and response.
      overlong: "drop" leaves out rows beyond the limits; "truncate" shortens their prompts
        (``fit_prompt``) and cuts the responses' tails, their EOS with them.

    Raises:
      InputError: for records that are no instructions, limits that leave no room for a response,
        and when nothing is left.
    """
    check_limits(overlong, max_prompt_length, max_length)
    options = {"max_prompt_length": max_prompt_length, "append_eos": append_eos}
    names = ("kept", "dropped_empty", "dropped_overlong", "truncated")
    counts = {"rows": len(records), **dict.fromkeys(names, 0)}
    demonstrations = []
    for row, record in enumerate(records):
        if not isinstance(record, Instruction):
            raise InputError(
                f"row {row + 1}: has no demonstration; give rows with instruction and output."
            )
        if not record.output.strip():
            counts["dropped_empty"] += 1
            continue
        (encoded,), truncated = encode_responses(
            tokenizer, template, record, [record.output], **options
        )
        truncated = truncated or len(encoded.ids) > max_length
        if truncated and overlong == "drop":
            counts["dropped_overlong"] += 1
            continue
        counts["truncated"] += truncated
        tokens = np.array(encoded.ids[:max_length], np.int32)
        demonstrations.append(Demonstration(tokens, encoded.start))
    counts["kept"] = len(demonstrations)
    if not demonstrations:
        reason = f"no demonstration is left of {len(records)}"
        if not counts["dropped_overlong"]:
            raise InputError(f"{reason}: all have an empty output or none; give other data.")
        raise InputError(
            f"{reason}: {counts['dropped_empty']} have an empty output or none, the others are "
            f"longer than max_length {max_length} or max_prompt_length {max_prompt_length}; raise "
            "these, or set overlong='truncate'."
        )
    return demonstrations, counts


def pad_demonstrations(
    demonstrations: Sequence[Demonstration], bucket: int, batch_size: int | None = None
) -> dict[str, np.ndarray]:
    """One batch, padded on the right to ``bucket`` columns.

    Args:
      batch_size: rows; beyond the demonstrations the last one is repeated with weight 0.

    Returns:
      tokens_BS int32; mask_BS bool, real tokens; response_BS bool, the tokens to imitate; weight_B
      float32, 1 or 0.
    """
    rows, weight_B = fill_batch(demonstrations, batch_size)
    starts = [row.prompt_length for row in rows]
    arrays = pad_responses([row.tokens for row in rows], starts, bucket)
    return {f"{name}_BS": array for name, array in arrays.items()} | {"weight_B": weight_B}
