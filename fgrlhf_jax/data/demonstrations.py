"""Demonstrations for supervised fine-tuning: records to token ids, and ids to padded batches.

Masks are computed from lengths, as in ``pairs``. B rows, S columns.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from fgrlhf_jax.data.bucketing import fill_batch, pad_right
from fgrlhf_jax.data.records import Instruction, Record
from fgrlhf_jax.data.templates import check_limits, encode_responses
from fgrlhf_jax.data.tokenizers import Tokenizer
from fgrlhf_jax.errors import InputError


@dataclasses.dataclass(frozen=True, eq=False)
class Demonstration:
    """A prompt and its response: int32[S], of which the first ``prompt_length`` are prompt."""

    tokens: np.ndarray
    prompt_length: int

    @property
    def length(self) -> int:
        return len(self.tokens)


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
    """Encodes the usable records, in order; also returns counts of left-out records.

    Records with an empty output are left out.

    Args:
      max_length: tokens of prompt and response.
      overlong: "drop" leaves out rows beyond the limits; "truncate" shortens their prompts
        (``fit_prompt``) and truncates the responses, EOS included.

    Raises:
      InputError: for records that are not instructions, limits that leave no room for a response,
        and if no record is left.
    """
    check_limits(overlong, max_prompt_length, max_length)
    options = {"max_prompt_length": max_prompt_length, "append_eos": append_eos}
    names = ("kept", "dropped_empty", "dropped_overlong", "truncated")
    counts = {"rows": len(records), **dict.fromkeys(names, 0)}
    demonstrations = []
    for row, record in enumerate(records):
        if not isinstance(record, Instruction):
            raise InputError(
                f"row {row + 1}: has no demonstration; give rows with instruction and output"
            )
        if not record.output.strip():
            counts["dropped_empty"] += 1
            continue
        (encoded,), truncated = encode_responses(tokenizer, template, record, ["output"], **options)
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
            raise InputError(f"{reason}: all have an empty output or none; give other data")
        raise InputError(
            f"{reason}: {counts['dropped_empty']} have an empty output or none, the others are "
            f"longer than max_length {max_length} or max_prompt_length {max_prompt_length}; raise "
            "these, or set overlong='truncate'"
        )
    return demonstrations, counts


def response_widths(
    lengths: Sequence[int], starts: Sequence[int], buckets: Sequence[int]
) -> dict[int, int]:
    """The response width of each bucket: the longest response, rounded up to a multiple of 8.

    ``lengths`` has the tokens of each row, ``starts`` the number of tokens before its response.
    """
    lengths, starts, widths = np.asarray(lengths), np.asarray(starts), {}
    for bucket in buckets:
        longest = int((lengths - starts)[lengths <= bucket].max(initial=1))
        widths[bucket] = min(-(-longest // 8) * 8, bucket)
    return widths


def pad_demonstrations(
    demonstrations: Sequence[Demonstration],
    bucket: int,
    batch_size: int | None = None,
    response_width: int = 0,
) -> dict[str, np.ndarray]:
    """One batch, padded on the right to ``bucket`` columns.

    Args:
      batch_size: rows; the last demonstration is repeated with weight 0 to fill them.
      response_width: T, see :func:`response_widths`; 0: ``bucket``.

    Returns:
      tokens_BS int32; mask_BS bool, real tokens; columns_BT int32, columns of the tokens with a
      loss; response_BT bool, which of these are real; weight_B float32, 1 or 0. A token in column 0
      has no loss.
    """
    rows, weight_B = fill_batch(demonstrations, batch_size)
    starts = np.array([max(row.prompt_length, 1) for row in rows])
    ends_B1 = np.array([len(row.tokens) for row in rows])[:, None]
    columns_BT = starts[:, None] + np.arange(response_width or bucket, dtype=np.int32)
    return {
        "tokens_BS": pad_right([row.tokens for row in rows], bucket),
        "mask_BS": np.arange(bucket) < ends_B1,
        "columns_BT": np.minimum(columns_BT, bucket - 1).astype(np.int32),
        "response_BT": columns_BT < ends_B1,
        "weight_B": weight_B,
    }
