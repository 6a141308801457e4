"""Statistics of files of records: counts, lengths, duplicates, and prompts that files share.

The statistics are a dict for JSON; :func:`format_table` formats them for a terminal. Two prompts
are equal if they differ only in spacing or in which part of them is the input.
"""

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np

from fgrlhf_jax.data.convert import json_fields
from fgrlhf_jax.data.records import (
    KINDS,
    Edit,
    Preference,
    Record,
    RecordAndRow,
    better_and_worse,
    kind_of,
    prompt_id,
    prompt_text,
    responses_of,
)
from fgrlhf_jax.data.templates import encode_prompt, encode_response
from fgrlhf_jax.data.tokenizers import Tokenizer


class TokenLimits(NamedTuple):
    """Tokenizer and template that count tokens, and the limits of training commands."""

    tokenizer: Tokenizer
    template: str
    max_length: int
    max_prompt_length: int


def describe_files(
    files: Mapping[str, Sequence[RecordAndRow]],
    *,
    limits: TokenLimits | None = None,
    samples: int = 0,
    seed: int = 0,
) -> dict[str, Any]:
    """Computes {"files": [statistics of a file, …], "shared_prompts": [{"files", "prompts"}, …]}.

    Args:
      files: records with their rows, by file name.
      samples: number of random rows of each file to include in full.
    """
    described = []
    for name, rows in files.items():
        statistics = {"file": name, **describe_records([record for record, _ in rows], limits)}
        sampled = sorted(random.Random(seed).sample(range(len(rows)), min(samples, len(rows))))
        statistics["samples"] = [{"row": n + 1, "fields": json_fields(rows[n][1])} for n in sampled]
        described.append(statistics)
    keys = {name: {prompt_id(record) for record, _ in rows} for name, rows in files.items()}
    shared = [
        {"files": [a, b], "prompts": len(keys[a] & keys[b])} for a, b in combinations(files, 2)
    ]
    return {"files": described, "shared_prompts": shared}


def describe_records(records: Sequence[Record], limits: TokenLimits | None = None) -> dict:
    """The statistics of one file's records."""
    kinds, words = Counter(map(kind_of, records)), {}
    for record in records:
        prompt = {"prompt": prompt_text(record)}
        for name, text in (prompt | responses_of(record)).items():
            words.setdefault(name, []).append(len(text.split()))
    spans = [len(r.error_spans) for r in records if isinstance(r, Edit) and r.error_spans]
    ignored = ("id", "error_spans")  # fields in which duplicates may differ
    contents = {tuple(i for i in vars(r).items() if i[0] not in ignored) for r in records}
    statistics = {
        "rows": len(records),
        "kinds": {name: kinds[name] for name in KINDS},
        "distinct_prompts": len({prompt_id(record) for record in records}),
        "with_input": sum(bool(record.input.strip()) for record in records),
        "duplicates": len(records) - len(contents),
        "error_spans": {"rows": len(spans), "spans": sum(spans)},
        "words": {name: length_quantiles(counts) for name, counts in words.items()},
    }
    if pairs := [record for record in records if isinstance(record, Preference)]:
        lengths = [[len(text.split()) for text in better_and_worse(pair)] for pair in pairs]
        longer = [0.5 * (1 + np.sign(better - worse)) for better, worse in lengths]  # ties ½
        statistics["preferred"] = {
            "first": float(np.mean([pair.preference == 1 for pair in pairs])),
            "longer": float(np.mean(longer)),
        }
    if limits:
        statistics["tokens"] = _token_statistics(records, limits)
    return statistics


def length_quantiles(lengths: Sequence[int]) -> dict[str, int]:
    """Median, 90th percentile and maximum, each a length that occurs."""
    values = np.quantile(lengths, (0.5, 0.9, 1.0), method="inverted_cdf")
    return dict(zip(("median", "p90", "max"), map(int, values), strict=True))


def _token_statistics(records: Sequence[Record], limits: TokenLimits) -> dict[str, Any]:
    """Lengths in tokens, and counts of rows beyond the limits; EOS counts."""
    tokenizer, template, max_length, max_prompt_length = limits
    lengths: dict[str, list[int]] = {}
    overlong = overlong_prompts = 0
    for record in records:
        prompt, _ = encode_prompt(tokenizer, template, record)
        responses = {
            name: encode_response(tokenizer, template, record, text)
            for name, text in responses_of(record).items()
        }
        counts = {name: len(side.ids) - side.start for name, side in responses.items()}
        for name, length in ({"prompt": len(prompt)} | counts).items():
            lengths.setdefault(name, []).append(length)
        overlong += max([len(prompt), *(len(s.ids) for s in responses.values())]) > max_length
        overlong_prompts += len(prompt) > max_prompt_length
    return {
        "template": template,
        "lengths": {name: length_quantiles(column) for name, column in lengths.items()},
        "max_length": max_length,
        "rows_over_max_length": overlong,
        "max_prompt_length": max_prompt_length,
        "prompts_over_max_prompt_length": overlong_prompts,
    }


def format_table(statistics: Mapping[str, Any]) -> str:
    """Formats the statistics of :func:`describe_files` as text, without the samples."""
    heads = ("rows", *KINDS, "distinct prompts", "with input", "duplicates")
    widths = {head: max(7, len(head)) + 2 for head in heads}
    lines = ["".join(f"{head:>{width}}" for head, width in widths.items()) + "  file"]
    for file in statistics["files"]:
        counts = file | file["kinds"]
        cells = (f"{counts[head.replace(' ', '_')]:>{width},}" for head, width in widths.items())
        lines.append(f"{''.join(cells)}  {file['file']}")
    for file in statistics["files"]:
        lines += ["", *_file_lines(file)]
    shared = [pair for pair in statistics["shared_prompts"] if pair["prompts"]]
    if statistics["shared_prompts"]:
        lines += ["", "prompts in two files:" if shared else "No prompt is in two files."]
    lines += [f"{pair['prompts']:>9}  {'  and  '.join(pair['files'])}" for pair in shared]
    return "\n".join(lines)


def _file_lines(file: Mapping[str, Any]) -> Iterator[str]:
    tokens = file.get("tokens")
    units = {"words": file["words"]} | ({"tokens": tokens["lengths"]} if tokens else {})
    heads = "".join(f"{f'{unit}: median':>15}{'90 %':>7}{'max':>8}" for unit in units)
    yield f"{'':<12}{heads}  {file['file']}"
    for name in file["words"]:
        columns = [lengths[name].values() for lengths in units.values()]
        cells = (f"{median:>15,}{p90:>7,}{longest:>8,}" for median, p90, longest in columns)
        yield f"{name:<12}{''.join(cells)}"
    if tokens:
        yield (
            f"over max_length {tokens['max_length']}: {tokens['rows_over_max_length']:,} rows; "
            f"over max_prompt_length {tokens['max_prompt_length']}: "
            f"{tokens['prompts_over_max_prompt_length']:,} prompts (template {tokens['template']})"
        )
    if spans := file["error_spans"]["spans"]:
        yield f"error spans: {spans:,} in {file['error_spans']['rows']:,} rows"
    if pairs := file.get("preferred"):
        yield f"preferred: the first in {pairs['first']:.1%}, the longer in {pairs['longer']:.1%}"


def format_fields(fields: Mapping[str, Any]) -> str:
    """Formats every field of a row in full."""
    lines = (f"{name}: {value}" for name, value in fields.items())
    return "\n".join(line.rstrip().replace("\n", "\n    ") for line in lines)
