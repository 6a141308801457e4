"""Builds the pairs of responses that a judge compares: from two files of responses, or from one."""

from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from fgrlhf_jax.data import records
from fgrlhf_jax.data.sources import split_sources
from fgrlhf_jax.errors import InputError
from fgrlhf_jax.feedback.judges.alpaca_eval import Comparison, by_prompt, prompt_key


class Responses(NamedTuple):
    """The rows of one or several files of responses, and the names of the files."""

    spec: str
    rows: Sequence[records.RecordAndRow]


def match_files(outputs: Responses, reference: Responses, common: bool = False) -> list[Comparison]:
    """Pairs a model's responses (`output_2`) with a reference's (`output_1`) to the same prompts.

    Returns a comparison per row of the reference, in its order; rows with the same prompt are
    matched in order. Raises InputError if a prompt is in only one of the files, or more often in
    one; with ``common`` such prompts are left out.
    """
    ours, theirs = _by_prompt(outputs), _by_prompt(reference)
    missing = [prompt for prompt in ours if prompt not in theirs]
    unanswered = [prompt for prompt in theirs if prompt not in ours]
    if (missing or unanswered) and not common:
        raise InputError(
            f"{outputs.spec} has {len(missing)} prompts that {reference.spec} lacks, and lacks "
            f"{len(unanswered)} that it has (the first: {(missing + unanswered)[0][0]!r:.60}); "
            "answer the same prompts with both, or set common=True"
        )
    uneven = {prompt for prompt, _ in missing + unanswered}
    prompts = [key for key in theirs if key[0] not in uneven]
    if not prompts:
        raise InputError(f"{outputs.spec} and {reference.spec} have no prompt in common")
    return [_comparison(theirs[prompt], ours[prompt]) for prompt in prompts]


def _comparison(response_1: records.RecordAndRow, response_2: records.RecordAndRow) -> Comparison:
    (first, row_1), (second, row_2) = response_1, response_2
    return Comparison(
        *(first.instruction, first.input, first.output, second.output),
        generator_1=str(row_1.get("generator") or ""),
        generator_2=str(row_2.get("generator") or ""),
        finished_1=first.finished,
        finished_2=second.finished,
        messages=first.messages,
    )


def _by_prompt(responses: Responses) -> dict[tuple[str, int], records.RecordAndRow]:
    """Returns the rows by prompt, with a ``generator`` added if they have none."""
    spec, rows = responses
    names = {str(row.get("generator") or "") for _, row in rows} - {""}
    stems = ", ".join(Path(source).stem for source in split_sources(spec))
    default = names.pop() if len(names) == 1 else stems
    for number, (record, _) in enumerate(rows, 1):
        if not isinstance(record, records.Instruction):
            raise InputError(f"{spec}:row {number}: is a pair; give one response a row")
    named = ((record, row | {"generator": row.get("generator") or default}) for record, row in rows)
    return dict(zip(by_prompt(record for record, _ in rows), named, strict=True))


def pair_responses(responses: Responses) -> tuple[list[Comparison], Counter]:
    """Returns pairs to label, and the number of responses left out by reason.

    Rows are pairs, whose label is ignored, or single responses (`launch.generate` with samples=2).
    Consecutive ones to the same prompt are paired: first and second, third and fourth. Empty and
    identical responses are left out. Raises InputError if there is no pair.
    """
    pairs, left_out = [], Counter()
    for _, group in groupby(responses.rows, key=lambda item: prompt_key(item[0])):
        distinct: dict[str, records.RecordAndRow] = {}
        for record, row in group:
            names = records.RESPONSES[type(record)]
            texts = [getattr(record, name) for name in names]
            if not all(text.strip() for text in texts):
                left_out["empty responses"] += 1
            elif len(set(texts)) < len(names) or (len(names) == 1 and texts[0] in distinct):
                left_out["identical responses"] += 1
            elif isinstance(record, records.Instruction):
                distinct[record.output] = record, row
            else:
                sides = [records.as_instruction(record, name) for name in names]
                generators = [{"generator": row.get(f"generator_{side}")} for side in (1, 2)]
                pairs.append(_comparison(*zip(sides, generators, strict=True)))
        samples = list(distinct.values())
        left_out["responses without another"] += len(samples) % 2
        pairs += map(_comparison, samples[::2], samples[1::2])
    if not pairs:
        reasons = ", ".join(f"{count} {reason}" for reason, count in left_out.items())
        raise InputError(f"{responses.spec}: holds no two different responses ({reasons})")
    return pairs, left_out
