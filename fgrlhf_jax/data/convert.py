"""Converts records of one kind to rows of another: what editors, judges or AlpacaFarm's code read.

    edits         original, edited                    instructions  output: one side of a pair
    preferences   output_1, output_2, preference      prompts       the prompt alone, each once
    alpaca_farm   preferences or instructions, with AlpacaFarm's columns only
    alpaca_eval   annotated pairs or one model's outputs; ``input`` joins the instruction

An edit's sides become output_1 and output_2 in an order that a hash decides, so that neither
position is the better one. A row that keeps its kind keeps its further fields; any row keeps its
id.
"""

import contextlib
import hashlib
import itertools
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from fgrlhf_jax.data import records
from fgrlhf_jax.data.records import Edit, Instruction, Preference, Record, RecordAndRow
from fgrlhf_jax.data.templates import plain_text
from fgrlhf_jax.errors import InputError

TARGETS = (*records.KINDS, "alpaca_farm", "alpaca_eval")
SIDES = ("better", "worse")

Row = dict[str, Any]


def edit_as_preference(edit: Edit, seed: int = 0) -> Preference:
    """The same pair with its sides shuffled; the edited one is preferred."""
    prompt, texts, better = (edit.instruction, edit.input), (edit.original, edit.edited), 2
    if _coin(seed, *prompt, *texts):
        texts, better = texts[::-1], 1
    return Preference(*prompt, *texts, better, id=edit.id)


def _coin(seed: int, *texts: str) -> bool:
    """A fair coin, tossed by a hash of the texts."""
    return bool(hashlib.sha256(json.dumps([seed, *texts]).encode()).digest()[0] & 1)


def json_fields(row: Mapping[str, Any]) -> Row:
    """The row with text for what JSON cannot hold, such as the dates of a Parquet file."""
    text = json.dumps(dict(row), default=str, ensure_ascii=False)
    return json.loads(text.encode("utf-8", "replace"))


def compared_predictions(
    rows: Sequence[RecordAndRow], seed: int = 0
) -> tuple[list[RecordAndRow], dict[str, int]]:
    """Preferences from rows that compare all pairs of their ``predictions``, as qa_feedback's do.

    ``preference`` of such a row has a label for (1, 2), (1, 3), … in this order: 1 the first is
    better, 2 the second, 0 a tie. Ties and equal predictions are left out and counted. Sides are
    shuffled.

    Raises:
      InputError: for a row with other fields, and where all pairs are ties.
    """
    counts: Counter[str] = Counter(rows=len(rows), pairs=0, ties=0, equal=0)
    preferences: list[RecordAndRow] = []
    for number, (record, row) in enumerate(rows, 1):
        texts, labels = _check_predictions(row, number)
        pairs = itertools.combinations(enumerate(texts, 1), 2)
        for ((i, text_1), (j, text_2)), label in zip(pairs, labels, strict=True):
            counts["pairs"] += 1
            if label == 0 or text_1 == text_2:
                counts["equal" if label else "ties"] += 1
                continue
            if _coin(seed, record.instruction, record.input, text_1, text_2):
                text_1, text_2, label = text_2, text_1, 3 - label
            id = {key: f"{value}/{i}-{j}" for key, value in _id(row).items()}
            pair = Preference(record.instruction, record.input, text_1, text_2, label, **id)
            preferences.append((pair, id))
    if not preferences:
        raise InputError(f"predictions: all {counts['pairs']} pairs are ties; nothing is left.")
    return preferences, dict(counts)


def _check_predictions(row: Mapping[str, Any], number: int) -> tuple[list[str], list[int]]:
    """The predictions, which may be a JSON text, and the labels of a row."""
    texts, labels = row.get("predictions"), row.get("preference")
    if isinstance(texts, str):
        with contextlib.suppress(ValueError):
            texts = json.loads(texts)
    valid = isinstance(texts, list) and all(isinstance(t, str) and t.strip() for t in texts)
    pairs = math.comb(len(texts), 2) if valid else 0
    if not pairs or not isinstance(labels, list) or len(labels) != pairs:
        raise InputError(
            f"row {number}: has no comparison of predictions; it must have a list `predictions` of "
            "at least two responses and a list `preference` with a label for each pair of them."
        )
    if any(type(label) is not int or label not in (0, 1, 2) for label in labels):
        raise InputError(
            f"row {number}: preference is {json.dumps(labels, default=str)[:40]}; each label must "
            "be 1 (the first is better), 2 (the second) or 0 (a tie)."
        )
    return texts, labels


def convert_records(
    rows: Sequence[RecordAndRow],
    to: str,
    *,
    side: str = "better",
    distinct: bool = False,
    generator: str = "",
    seed: int = 0,
) -> tuple[list[Row], dict[str, int]]:
    """Rows of the kind ``to``, one of TARGETS, in order, and counts of what was left out.

    Args:
      rows: records, each with the row that it was read from.
      side: which response of a pair becomes an instruction's output: the "better" (edited,
        preferred) or the "worse" one (original, less preferred: what an editor edits).
      distinct: leave out rows that repeat an earlier one but for the id; prompts always are.
      generator: the model's name in rows for alpaca_eval that have none.
      seed: of the order of an edit's sides.

    Raises:
      InputError: for a kind that cannot become ``to``, and when nothing is left.
    """
    if to not in TARGETS:
        raise InputError(f"to: {to!r} is not one of {', '.join(TARGETS)}.")
    if side not in SIDES:
        raise InputError(f"side: {side!r} is not one of {', '.join(SIDES)}.")
    counts: Counter[str] = Counter(rows=len(rows), kept=0)
    seen, converted = set(), []
    for number, (record, row) in enumerate(rows, 1):
        if records.kind_of(record) == "prompts" and to in ("instructions", "alpaca_eval"):
            counts["without_output"] += 1
            continue
        try:
            fields = _convert(record, row, to, side, generator, seed)
        except InputError as error:
            raise InputError(f"row {number}: {error}") from error
        if distinct or to == "prompts":
            key = json.dumps({k: v for k, v in fields.items() if k != "id"}, sort_keys=True)
            if key in seen:
                counts["repeated"] += 1
                continue
            seen.add(key)
        converted.append(fields)
    if to.startswith("alpaca") and len({"output" in fields for fields in converted}) > 1:
        reason = "the rows are both pairs and single responses; convert them one at a time"
        raise InputError(f"to={to}: {reason}.")
    if not converted:
        reason = f"none of the {len(rows)} rows has an output; choose prompts"
        raise InputError(f"to={to}: {reason}.")
    return converted, dict(counts) | {"kept": len(converted)}


def _id(row: Mapping[str, Any]) -> Row:
    return {} if row.get("id") in (None, "") else {"id": str(row["id"])}


def _convert(
    record: Record, row: Mapping[str, Any], to: str, side: str, generator: str, seed: int
) -> Row:
    if to == "alpaca_eval":
        return _alpaca_eval(record, row, generator)
    prompt = {"instruction": record.instruction, "input": record.input}
    new = _id(row) | prompt
    match to, record:
        case ("prompts", _):
            return new | {"output": ""}
        case ("edits", Preference() | Instruction()):
            raise InputError(
                f"{records.kind_of(record)} hold no edits; have responses edited by "
                "launch.collect_edits or launch.annotate, whose input to=instructions makes."
            )
        case ("preferences", Instruction()):
            raise InputError("a single response is no preference; give edits or preferences.")
        case ("preferences" | "alpaca_farm", Edit()):
            pair = edit_as_preference(record, seed)
            return new | records.responses_of(pair) | {"preference": pair.preference}
        case ("alpaca_farm", Instruction()):
            return new | {"output": record.output}
        case ("instructions", Edit() | Preference()):
            return new | {"output": records.better_and_worse(record)[SIDES.index(side)]}
        case ("instructions", Instruction()) if side == "worse":
            raise InputError("an instruction has one response, no worse one; choose side=better.")
    same = json_fields(row) | prompt | records.responses_of(record)
    if isinstance(record, Preference):
        same["preference"] = record.preference
    if to == "alpaca_farm":
        names = ("output_1", "output_2", "preference", "raw_preference")
        return new | {name: same[name] for name in names if name in same}
    return same


def _alpaca_eval(record: Record, row: Mapping[str, Any], generator: str) -> Row:
    prompt = plain_text(record.instruction, record.input)
    unnamed = generator or "unnamed"
    if isinstance(record, Instruction):
        name = row.get("generator") or unnamed
        return {"instruction": prompt, "output": record.output, "generator": name}
    (name_1, text_1), (name_2, text_2) = records.responses_of(record).items()
    return {
        "instruction": prompt,
        "output_1": text_1,
        "generator_1": row.get("generator_1") or name_1,
        "output_2": text_2,
        "generator_2": row.get("generator_2") or name_2,
        "annotator": row.get("annotator") or unnamed,
        "preference": float(record.preference if isinstance(record, Preference) else 2),
    }
