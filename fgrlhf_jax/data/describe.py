"""What is in files of records: counts, lengths, repetitions, and prompts that files share.

Figures are a dict for JSON; `table` shows them in a terminal. Two prompts are one when they differ
in spacing only, or in how much of them is called input.
"""

import random
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fgrlhf_jax.data.convert import KINDS, Read, better_and_worse, kind, plain, responses
from fgrlhf_jax.data.records import Edit, Preference, Record
from fgrlhf_jax.data.templates import encode_prompt, encode_response, plain_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class Ruler(NamedTuple):
    """What measures tokens: the limits are those of launch.sft, train_rm and ppo."""

    tokenizer: "PreTrainedTokenizerFast"
    template: str
    max_length: int
    max_prompt_length: int


def prompt_key(record: Record) -> str:
    """The same for two records with the same prompt."""
    return " ".join(plain_text(record.instruction, record.input).split())


def figures(
    files: Mapping[str, Sequence[Read]],
    *,
    invalid: Mapping[str, Sequence[str]] | None = None,
    ruler: Ruler | None = None,
    samples: int = 0,
    seed: int = 0,
) -> dict[str, Any]:
    """{"files": [figures of one file, …], "shared_prompts": [{"files", "prompts"}, …]}.

    files: name -> its records with their rows. invalid: name -> the complaints about rows that
    could not be read. samples: rows a file to copy in full, drawn by `seed`.
    """
    found = []
    for name, read in files.items():
        one = {"file": name, **file_figures([record for record, _ in read], ruler)}
        complaints = (invalid or {}).get(name, ())
        if complaints:
            one["invalid"] = {"rows": len(complaints), "first": complaints[0]}
        drawn = random.Random(seed).sample(range(len(read)), min(samples, len(read)))
        one["samples"] = [{"row": n + 1, "fields": plain(read[n][1])} for n in sorted(drawn)]
        found.append(one)
    keys = {name: {prompt_key(record) for record, _ in read} for name, read in files.items()}
    shared = [
        {"files": [a, b], "prompts": len(keys[a] & keys[b])} for a, b in combinations(files, 2)
    ]
    return {"files": found, "shared_prompts": shared}


def file_figures(records: Sequence[Record], ruler: Ruler | None = None) -> dict[str, Any]:
    """The figures of one file's records."""
    kinds = Counter(kind(record) for record in records)
    bodies = {(kind(r), r.instruction, r.input, *_said(r)) for r in records}
    texts: dict[str, list[str]] = {}
    for record in records:
        prompt = {"prompt": plain_text(record.instruction, record.input)}
        for name, text in (prompt | responses(record)).items():
            texts.setdefault(name, []).append(text)
    found = {
        "rows": len(records),
        "kinds": {name: kinds[name] for name in KINDS},
        "distinct_prompts": len({prompt_key(record) for record in records}),
        "with_input": sum(bool(record.input.strip()) for record in records),
        "duplicates": len(records) - len(bodies),
        "error_spans": _spans(records),
        "words": {name: spread([len(t.split()) for t in said]) for name, said in texts.items()},
    }
    if kinds["preferences"]:
        found["preferred"] = _positions([r for r in records if isinstance(r, Preference)])
    if ruler:
        found["tokens"] = _tokens(records, ruler)
    return found


def spread(lengths: Sequence[int]) -> dict[str, int]:
    """Median, 90th centile and maximum: lengths that occur."""
    at = np.quantile(lengths, (0.5, 0.9, 1.0), method="inverted_cdf")
    return dict(zip(("median", "p90", "max"), map(int, at), strict=True))


def _said(record: Record) -> tuple:
    preference = (record.preference,) if isinstance(record, Preference) else ()
    return (*responses(record).values(), *preference)


def _spans(records: Sequence[Record]) -> dict[str, int]:
    marked = [len(r.error_spans) for r in records if isinstance(r, Edit) and r.error_spans]
    return {"rows": len(marked), "spans": sum(marked)}


def _positions(pairs: Sequence[Preference]) -> dict[str, float]:
    """Shares of pairs whose first, and whose longer, response is preferred (in words, ties ½)."""
    lengths = [[len(text.split()) for text in better_and_worse(pair)] for pair in pairs]
    longer = [0.5 * (1 + np.sign(better - worse)) for better, worse in lengths]
    return {
        "first": float(np.mean([pair.preference == 1 for pair in pairs])),
        "longer": float(np.mean(longer)),
    }


def _tokens(records: Sequence[Record], ruler: Ruler) -> dict[str, Any]:
    """Lengths in tokens, and the rows that are too long for the limits; an EOS ends a response."""
    lengths: dict[str, list[int]] = {}
    overlong = overlong_prompts = 0
    for record in records:
        prompt, _ = encode_prompt(
            ruler.tokenizer, ruler.template, record.instruction, record.input, None
        )
        said = {
            name: len(encode_response(ruler.tokenizer, text, append_eos=True))
            for name, text in responses(record).items()
        }
        for name, length in {"prompt": len(prompt), **said}.items():
            lengths.setdefault(name, []).append(length)
        overlong += len(prompt) + max(said.values(), default=0) > ruler.max_length
        overlong_prompts += len(prompt) > ruler.max_prompt_length
    return {
        "template": ruler.template,
        "lengths": {name: spread(counted) for name, counted in lengths.items()},
        "max_length": ruler.max_length,
        "rows_over_max_length": overlong,
        "max_prompt_length": ruler.max_prompt_length,
        "prompts_over_max_prompt_length": overlong_prompts,
    }


def table(found: Mapping[str, Any]) -> str:
    """The figures as text, without the samples."""
    return "\n".join(_lines(found))


def _lines(found: Mapping[str, Any]) -> Iterator[str]:
    heads = ("rows", *KINDS, "distinct prompts", "with input", "duplicates")
    yield "".join(f"{head:>{max(7, len(head)) + 2}}" for head in heads) + "  file"
    for one in found["files"]:
        counts = {
            name.replace("_", " "): value for name, value in {**one, **one["kinds"]}.items()
        }
        cells = (f"{counts[head]:>{max(7, len(head)) + 2},}" for head in heads)
        yield "".join(cells) + f"  {one['file']}"
    for one in found["files"]:
        yield ""
        yield from _file_lines(one)
    shared = [pair for pair in found["shared_prompts"] if pair["prompts"]]
    if found["shared_prompts"]:
        yield ""
        yield "prompts in two files:" if shared else "No prompt is in two files."
    for pair in shared:
        yield f"{pair['prompts']:>9}  {pair['files'][0]}  and  {pair['files'][1]}"


def _file_lines(one: Mapping[str, Any]) -> Iterator[str]:
    tokens = one.get("tokens")
    unit = ("words", *(("tokens",) if tokens else ()))
    head = "".join(f"{f'{u}: median':>15}{'90 %':>7}{'max':>8}" for u in unit)
    yield f"{'':<12}{head}  {one['file']}"
    for name, words in one["words"].items():
        both = (words, *((tokens["lengths"][name],) if tokens else ()))
        yield f"{name:<12}" + "".join(
            f"{s['median']:>15,}{s['p90']:>7,}{s['max']:>8,}" for s in both
        )
    if tokens:
        yield (
            f"over max_length {tokens['max_length']}: {tokens['rows_over_max_length']:,} rows; "
            f"over max_prompt_length {tokens['max_prompt_length']}: "
            f"{tokens['prompts_over_max_prompt_length']:,} prompts (template {tokens['template']})"
        )
    if spans := one["error_spans"]["spans"]:
        yield f"error spans: {spans:,} in {one['error_spans']['rows']:,} rows"
    if pairs := one.get("preferred"):
        yield (
            f"preferred: the first in {pairs['first']:.1%}, the longer in {pairs['longer']:.1%}"
        )
    if invalid := one.get("invalid"):
        yield f"left out: {invalid['rows']:,} rows that cannot be read, the first being"
        yield f"  {invalid['first']}"


def sample_text(fields: Mapping[str, Any]) -> str:
    """Every field of a row in full; control characters cannot steer the terminal."""
    lines = []
    for name, value in fields.items():
        text = _harmless(value if isinstance(value, str) else str(value))
        lines.append(f"{name}: {text}".rstrip().replace("\n", "\n    "))
    return "\n".join(lines)


def _harmless(text: str) -> str:
    return "".join(
        c if c in "\n\t" or unicodedata.category(c)[0] != "C" else "\N{REPLACEMENT CHARACTER}"
        for c in text
    )
