"""Prompts to answer: records to token ids, and ids to left-padded batches.

B rows, P columns of a prompt.
"""

from collections.abc import Sequence

import numpy as np

from fgrlhf_jax.data.records import Record
from fgrlhf_jax.data.templates import check_limits, encode_prompt
from fgrlhf_jax.data.tokenizers import Tokenizer
from fgrlhf_jax.errors import InputError


def encode_prompts(
    records: Sequence[Record],
    tokenizer: Tokenizer,
    *,
    template: str,
    max_prompt_length: int,
    overlong: str,
) -> tuple[list[list[int]], list[int], dict[str, int]]:
    """Token ids of the usable prompts, the numbers of their records, and counts of the rest.

    Args:
      records: of any kind; their responses are not read.
      overlong: "drop" leaves out prompts longer than ``max_prompt_length``, "truncate" shortens
        them (:func:`encode_prompt`).

    Raises:
      InputError: when nothing is left.
    """
    check_limits(overlong, max_prompt_length)
    prompts, rows = [], []
    counts = {"prompts": len(records), "kept": 0, "dropped_overlong": 0, "truncated": 0}
    for row, record in enumerate(records):
        ids, truncated = encode_prompt(tokenizer, template, record, max_prompt_length)
        if truncated and overlong == "drop":
            counts["dropped_overlong"] += 1
            continue
        counts["truncated"] += truncated
        prompts.append(ids)
        rows.append(row)
    counts["kept"] = len(prompts)
    if not prompts:
        raise InputError(
            f"all {len(records)} prompts are longer than max_prompt_length {max_prompt_length}; "
            "raise it, or set overlong='truncate'"
        )
    return prompts, rows, counts


def pad_prompts(prompts: Sequence[Sequence[int]], width: int) -> tuple[np.ndarray, np.ndarray]:
    """tokens_BP int32 and mask_BP bool, padded on the left, so that a response follows at once."""
    tokens_BP = np.zeros((len(prompts), width), np.int32)
    mask_BP = np.zeros((len(prompts), width), bool)
    for b, ids in enumerate(prompts):
        tokens_BP[b, width - len(ids) :] = ids
        mask_BP[b, width - len(ids) :] = True
    return tokens_BP, mask_BP
