"""Builds the pairs of responses that a judge compares: from two files of responses, or from one.

Responses are rows of instruction, input and output, as `launch.generate` and alpaca_eval write
them; two files are matched by instruction and input.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from fgrlhf_jax.data import formats, records
from fgrlhf_jax.errors import InputError
from fgrlhf_jax.feedback.judges import alpaca_eval
from fgrlhf_jax.feedback.judges.alpaca_eval import Comparison

_SIDES = (("output_1", "output_2"), ("original", "edited"))
_Rows = Sequence[tuple[str, Mapping[str, Any]]]  # (where, row)
_Response = tuple[records.Instruction, Mapping[str, Any]]  # and its row


def match_files(outputs: str, reference: str, common: bool = False) -> list[Comparison]:
    """Pairs a model's responses (`output_2`) with a reference's (`output_1`) to the same prompts.

    Args:
      outputs, reference: sources for ``records.read``, one response a prompt.
      common: compare only the prompts that both have, in place of refusing the others.

    Returns:
      One comparison a prompt, in the order of the reference.

    Raises:
      InputError: for a prompt that stands twice in a file or in only one of them.
    """
    ours, theirs = _read_responses(outputs), _read_responses(reference)
    missing = [prompt for prompt in ours if prompt not in theirs]
    unanswered = [prompt for prompt in theirs if prompt not in ours]
    if (missing or unanswered) and not common:
        raise InputError(
            f"{outputs} has {len(missing)} prompts that {reference} lacks, and lacks "
            f"{len(unanswered)} that it has (the first: {(missing + unanswered)[0][0]!r:.60}); "
            "answer the same prompts with both, or set common=True"
        )
    prompts = [prompt for prompt in theirs if prompt in ours]
    if not prompts:
        raise InputError(f"{outputs} and {reference} have no prompt in common")
    return [_comparison(theirs[prompt], ours[prompt]) for prompt in prompts]


def _comparison(response_1: _Response, response_2: _Response) -> Comparison:
    (first, row_1), (second, row_2) = response_1, response_2
    return Comparison(
        *(first.instruction, first.input, first.output, second.output),
        generator_1=str(row_1.get("generator") or ""),
        generator_2=str(row_2.get("generator") or ""),
        finished_1=row_1.get("finished") is not False,
        finished_2=row_2.get("finished") is not False,
    )


def _read_responses(spec: str) -> dict[tuple[str, str], _Response]:
    """The response to each prompt, each with the name of a generator."""
    rows = records.read_with_rows(spec)
    names = {str(row.get("generator") or "") for _, row in rows} - {""}
    stems = ", ".join(Path(source).stem for source in records.sources(spec))
    default = names.pop() if len(names) == 1 else stems
    responses = {}
    for number, (record, row) in enumerate(rows, 1):
        if not isinstance(record, records.Instruction):
            raise InputError(
                f"{spec}:row {number}: is of a pair; give responses: instruction, input, output"
            )
        prompt = records.prompt_key(record)
        if prompt in responses:
            raise InputError(
                f"{spec}:row {number}: an earlier row has the same prompt; give one response a "
                "prompt"
            )
        responses[prompt] = record, row | {"generator": row.get("generator") or default}
    return responses


def read_pairs(path: str) -> tuple[list[Comparison], Counter]:
    """Pairs of one file to be labelled, and how many rows were left out and why.

    Rows have two responses (output_1 and output_2, or original and edited; a label is ignored), or
    one, the rows of a prompt following one another (`launch.generate` with samples=2): of these the
    distinct ones make pairs, first with second, third with fourth. Empty and identical responses
    teach nothing and are left out.

    Raises:
      InputError: for other rows, or when no pair is left.
    """
    rows, left_out = alpaca_eval.read_rows(path), Counter()
    where, first_row = rows[0]
    sides = next((names for names in _SIDES if first_row.keys() >= set(names)), None)
    if sides:
        pairs = _pairs_in_rows(rows, sides, left_out)
    elif "output" in first_row:
        pairs = _pairs_of_samples(rows, left_out)
    else:
        raise InputError(
            f"{where}: has neither output_1 and output_2 (or original and edited) nor output; "
            "give two responses a row, or several rows a prompt"
        )
    if not pairs:
        reasons = ", ".join(f"{count} {reason}" for reason, count in left_out.items())
        raise InputError(f"{path}: holds no pair of two different responses ({reasons})")
    return pairs, left_out


def _pairs_in_rows(rows: _Rows, sides: tuple[str, str], left_out: Counter) -> list[Comparison]:
    pairs = []
    for where, row in rows:
        prompt = records.prompt_of(row, where)
        first, second = (formats.text_of(row, name, where, blank=True) for name in sides)
        if not (first.strip() and second.strip()):
            left_out["empty responses"] += 1
        elif first == second:
            left_out["identical responses"] += 1
        else:
            generators = (str(row.get(f"generator_{side}") or "") for side in (1, 2))
            pairs.append(Comparison(*prompt, first, second, None, *generators))
    return pairs


def _pairs_of_samples(rows: _Rows, left_out: Counter) -> list[Comparison]:
    pairs = []
    for prompt, group in groupby(rows, key=lambda item: records.prompt_of(*item[::-1])):
        distinct: dict[str, _Response] = {}
        for where, row in group:
            text = formats.text_of(row, "output", where, blank=True)
            if not text.strip():
                left_out["empty responses"] += 1
            elif text in distinct:
                left_out["identical responses"] += 1
            else:
                distinct[text] = records.Instruction(*prompt, text), row
        samples = list(distinct.values())
        left_out["responses without another"] += len(samples) % 2
        pairs += map(_comparison, samples[::2], samples[1::2])
    return pairs
