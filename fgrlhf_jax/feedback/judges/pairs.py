"""Builds the pairs of responses that a judge compares: from two files of responses, or from one.

Two files of responses, as `launch.generate` and alpaca_eval write them, are matched by prompt.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from fgrlhf_jax.data import records
from fgrlhf_jax.errors import InputError
from fgrlhf_jax.feedback.judges.alpaca_eval import Comparison

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
        messages=first.messages,
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


def read_pairs(
    rows: Sequence[records.RecordAndRow], source: str
) -> tuple[list[Comparison], Counter]:
    """Pairs to be labelled, and how many rows were left out and why.

    Rows have two responses (a label is ignored), or one, the rows of a prompt following one another
    (`launch.generate` with samples=2): of these the distinct ones make pairs, first with second,
    third with fourth. Empty and identical responses teach nothing and are left out.

    Args:
      rows: what ``records.read_with_rows`` reads with need="candidates".
      source: what a message calls them.

    Raises:
      InputError: when no pair is left.
    """
    pairs, left_out = [], Counter()
    for (is_single, _), group in groupby(rows, key=_group):
        distinct: dict[str, _Response] = {}
        for response, row in (each for item in group for each in _responses(*item)):
            if not response.output.strip():
                left_out["empty responses"] += 1
            elif response.output in distinct:
                left_out["identical responses"] += 1
            else:
                distinct[response.output] = response, row
        samples = list(distinct.values())
        left_out["responses without another"] += is_single and len(samples) % 2
        pairs += map(_comparison, samples[::2], samples[1::2])
    left_out = +left_out
    if not pairs:
        reasons = ", ".join(f"{count} {reason}" for reason, count in left_out.items())
        raise InputError(f"{source}: holds no pair of two different responses ({reasons})")
    return pairs, left_out


def _group(item: records.RecordAndRow) -> tuple[bool, Any]:
    """What rows have in common whose responses are compared; a row of two is alone."""
    is_single = isinstance(item[0], records.Instruction)
    return is_single, records.prompt_key(item[0]) if is_single else id(item)


def _responses(record: records.Record, row: Mapping[str, Any]) -> list[_Response]:
    if isinstance(record, records.Instruction):
        return [(record, row)]
    texts = (getattr(record, name) for name in records.RESPONSES[type(record)])
    return [
        (
            records.Instruction(record.instruction, record.input, text, record.messages),
            {"generator": row.get(f"generator_{number}")},
        )
        for number, text in enumerate(texts, 1)
    ]
