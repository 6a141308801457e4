"""Splits records into training and validation sets that share no prompt."""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence

from fgrlhf_jax.data.records import Record, prompt_id, prompt_key, responses_of
from fgrlhf_jax.errors import InputError


def split(
    records: Sequence[Record], share: float, seed: int, *, exact: bool = False
) -> tuple[list[Record], list[Record]]:
    """Returns (train, validation), with about ``share`` of the prompts in validation, in order.

    A hash of (seed, prompt) decides, so that all rows of a prompt are on one side, independent of
    other rows. If half of the rows have one prompt, or there are too few prompts for the share, it
    splits by response instead and prints a line. If a side would be empty, it gets the nearest
    prompt, and a line is printed.

    Args:
      exact: validation gets exactly the rounded share of prompts, those with the lowest hashes, and
        so depends on other rows.

    Raises:
      InputError: a side is empty.
    """
    spelling: dict[str, tuple[str, ...]] = {}  # the key of a prompt's first spelling
    keys = [spelling.setdefault(prompt_id(record), prompt_key(record)) for record in records]
    unit, counts, rows = "prompt", Counter(keys), len(keys)
    is_large = 4 * min(share, 1 - share) * len(counts) < 1 or max(counts.values()) * 2 >= rows
    if 0 < share < 1 < rows and (len(counts) == 1 or (is_large and rows >= 20)):
        keys, unit = _response_keys(records), "response"
        print(f"the {rows} rows have {len(counts)} prompts; validation is split off by {unit}")
    digests = {key: hashlib.sha256(json.dumps([seed, *key]).encode()).digest() for key in keys}
    fractions = {key: int.from_bytes(value[:8], "big") / 2**64 for key, value in digests.items()}
    selected = sum(fraction < share for fraction in fractions.values())
    count = requested = round(share * len(fractions)) if exact else selected
    if 0 < share < 1 < len(fractions):
        count = min(max(requested, 1), len(fractions) - 1)
    held_out = set(sorted(fractions, key=fractions.__getitem__)[:count])
    sides: tuple[list[Record], list[Record]] = ([], [])
    for record, key in zip(records, keys, strict=True):
        sides[key in held_out].append(record)
    for side_name, side in zip(("training", "validation"), sides, strict=True):
        if not side:
            raise InputError(
                f"validation share {share}: of {len(records)} rows none is left for {side_name}; "
                "change the share or give a validation file"
            )
    if count != requested:
        amount, size = ("none", "larger") if count > requested else ("all", "smaller")
        print(
            f"validation: {len(sides[1])} of {rows} rows (validation_share={share} is {amount} of "
            f"{len(fractions)} {unit}s); give --config.validation or a {size} share"
        )
    return sides


def _response_keys(records: Sequence[Record]) -> list[tuple[str]]:
    """Equal keys for records that share a response, directly or through other records."""
    parent: dict[str, str] = {}

    def find(text: str) -> str:
        while parent.setdefault(text, text) != text:
            parent[text] = parent[parent[text]]
            text = parent[text]
        return text

    texts = [[*responses_of(record).values()] or [""] for record in records]
    for group in texts:
        roots = sorted(find(text) for text in group)
        parent.update(dict.fromkeys(roots, roots[0]))
    return [(find(group[0]),) for group in texts]
