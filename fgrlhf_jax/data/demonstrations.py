"""Instructions to token sequences: demonstrations to imitate, and prompts to answer.

Masks come from lengths, as in batches.py. B rows, S columns, P columns of a prompt.
"""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from fgrlhf_jax.data.records import Instruction, Record
from fgrlhf_jax.data.templates import check_limits, encode_prompt, encode_response
from fgrlhf_jax.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclasses.dataclass(frozen=True, eq=False)
class Demonstration:
    """A prompt and its demonstration: int32[S], of which the first ``prompt_length`` are prompt."""

    tokens: np.ndarray
    prompt_length: int


def encode_demonstrations(
    records: Sequence[Record],
    tokenizer: "PreTrainedTokenizerFast",
    *,
    template: str,
    max_length: int,
    max_prompt_length: int,
    overlong: str = "truncate",
    append_eos: bool = True,
) -> tuple[list[Demonstration], dict[str, int]]:
    """Examples of the usable records, in order, and what became of the rest.

    "drop" leaves out a row whose prompt is longer than max_prompt_length or that is longer than
    max_length as a whole; "truncate" shortens the prompt's input and cuts the response's tail, its
    EOS with it. A row whose output is empty is left out. Raises InputError for other records,
    settings that leave no room, and when nothing is left.
    """
    check_limits(overlong, max_prompt_length, max_length)
    names = ("kept", "dropped_empty", "dropped_overlong", "truncated")
    counts = {"rows": len(records), **dict.fromkeys(names, 0)}
    examples = []
    for row, record in enumerate(records):
        if not isinstance(record, Instruction):
            raise InputError(
                f"row {row + 1}: has no demonstration; give rows with instruction and output."
            )
        if not record.output.strip():
            counts["dropped_empty"] += 1
            continue
        prompt, cut = encode_prompt(
            tokenizer, template, record.instruction, record.input, max_prompt_length
        )
        response = encode_response(tokenizer, record.output, append_eos)
        room = max_length - len(prompt)
        if cut or len(response) > room:
            if overlong == "drop":
                counts["dropped_overlong"] += 1
                continue
            counts["truncated"] += 1
        examples.append(
            Demonstration(np.array(prompt + response[:room], np.int32), len(prompt))
        )
    counts["kept"] = len(examples)
    if not examples:
        raise InputError(
            f"no demonstration is left of {len(records)}: {counts['dropped_empty']} have an empty "
            f"output, the others are longer than max_length {max_length} or max_prompt_length "
            f"{max_prompt_length}; raise these, or set overlong='truncate'."
        )
    return examples, counts


def pad_demonstrations(
    examples: Sequence[Demonstration], bucket: int, batch_size: int | None = None
) -> dict[str, np.ndarray]:
    """One batch, padded on the right to `bucket` columns.

    tokens_BS int32; mask_BS bool, real tokens; response_BS bool, the tokens to imitate; weight_B
    float32, 1. Rows asked for beyond the examples repeat the last one with weight 0.
    """
    size = len(examples) if batch_size is None else batch_size
    batch = {
        "tokens_BS": np.zeros((size, bucket), np.int32),
        "mask_BS": np.zeros((size, bucket), bool),
        "response_BS": np.zeros((size, bucket), bool),
        "weight_B": (np.arange(size) < len(examples)).astype(np.float32),
    }
    for b, example in enumerate([*examples, *[examples[-1]] * (size - len(examples))]):
        end = len(example.tokens)
        batch["tokens_BS"][b, :end] = example.tokens
        batch["mask_BS"][b, :end] = True
        batch["response_BS"][b, example.prompt_length : end] = True
    return batch
