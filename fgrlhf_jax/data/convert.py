"""Records of one kind to rows of another: what an editor, a judge or AlpacaFarm's code reads.

    edits         original, edited                    instructions  output: one side of a pair
    preferences   output_1, output_2, preference      prompts       the prompt alone, each once
    alpaca_farm   preferences or instructions, with AlpacaFarm's columns only
    alpaca_eval   annotated pairs or one model's outputs; `input` joins the instruction

An edit's sides become output_1 and output_2 in an order that a hash decides, so that neither
position is the better one. A row that stays what it is keeps its further fields; any row keeps
its id.
"""

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fgrlhf_jax.data.records import Edit, Instruction, Preference, Record
from fgrlhf_jax.data.templates import plain_text
from fgrlhf_jax.errors import InputError

KINDS = ("edits", "preferences", "instructions", "prompts")
TARGETS = (*KINDS, "alpaca_farm", "alpaca_eval")
SIDES = ("better", "worse")

Read = tuple[Record, Mapping[str, Any]]  # a record and the row that it was made of
Row = dict[str, Any]


def kind(record: Record) -> str:
    """One of KINDS; a prompt is an instruction with a blank output."""
    if isinstance(record, Edit):
        return "edits"
    if isinstance(record, Preference):
        return "preferences"
    return "instructions" if record.output.strip() else "prompts"


def responses(record: Record) -> dict[str, str]:
    """The responses of a record by the names of their fields; of a prompt none."""
    names = {
        "edits": ("original", "edited"),
        "preferences": ("output_1", "output_2"),
        "instructions": ("output",),
        "prompts": (),
    }
    return {name: getattr(record, name) for name in names[kind(record)]}


def better_and_worse(pair: Edit | Preference) -> tuple[str, str]:
    """The edited or preferred response of a pair, and the other one."""
    if isinstance(pair, Edit):
        return pair.edited, pair.original
    texts = pair.output_1, pair.output_2
    return texts if pair.preference == 1 else texts[::-1]


def as_preference(edit: Edit, seed: int = 0) -> Preference:
    """The same pair with its sides shuffled; the edited one is preferred."""
    first = _second_first(seed, edit.instruction, edit.input, edit.original, edit.edited)
    texts = (edit.edited, edit.original) if first else (edit.original, edit.edited)
    return Preference(edit.instruction, edit.input, *texts, 1 if first else 2, id=edit.id)


def _second_first(seed: int, *texts: str) -> bool:
    """A fair coin that belongs to these texts."""
    return bool(hashlib.sha256(json.dumps([seed, *texts]).encode()).digest()[0] & 1)


def plain(row: Mapping[str, Any]) -> Row:
    """The row with text for what JSON cannot hold, such as the dates of a Parquet file."""
    text = json.dumps(dict(row), default=str, ensure_ascii=False)
    return json.loads(text.encode("utf-8", "replace"))


def compared_predictions(
    read: Sequence[Read], seed: int = 0
) -> tuple[list[Read], dict[str, int]]:
    """Preferences of rows that compare all pairs of their `predictions`, as qa_feedback's do.

    `preference` of such a row has a label for (1, 2), (1, 3), … in this order: 1 the first is
    better, 2 the second, 0 a tie. Left out and counted are ties and equal predictions. Sides are
    shuffled. Raises InputError for a row with other fields.
    """
    counts: Counter[str] = Counter(rows=len(read), pairs=0, ties=0, equal=0)
    made: list[Read] = []
    for number, (record, row) in enumerate(read, 1):
        texts, labels = _compared(row, number)
        pairs = itertools.combinations(enumerate(texts, 1), 2)
        for ((i, one), (j, two)), label in zip(pairs, labels, strict=True):
            counts["pairs"] += 1
            if label == 0 or one == two:
                counts["equal" if label else "ties"] += 1
                continue
            if _second_first(seed, record.instruction, record.input, one, two):
                one, two, label = two, one, 3 - label
            known = row.get("id") not in (None, "")
            named = {"id": f"{row['id']}/{i}-{j}"} if known else {}
            pair = Preference(record.instruction, record.input, one, two, label, **named)
            made.append((pair, named))
    if not made:
        raise InputError(f"predictions: all {counts['pairs']} pairs are ties; nothing is left.")
    return made, dict(counts)


def _compared(row: Mapping[str, Any], number: int) -> tuple[list[str], list[int]]:
    """The checked predictions and labels of a row; predictions may be a JSON text, as there."""
    texts, labels = row.get("predictions"), row.get("preference")
    if isinstance(texts, str):
        try:
            texts = json.loads(texts)
        except ValueError:
            texts = None
    said = isinstance(texts, list) and all(isinstance(t, str) and t.strip() for t in texts)
    pairs = len(texts) * (len(texts) - 1) // 2 if said else 0
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


def convert(
    read: Sequence[Read],
    to: str,
    *,
    side: str = "better",
    distinct: bool = False,
    generator: str = "",
    seed: int = 0,
) -> tuple[list[Row], dict[str, int]]:
    """Rows of the kind `to`, one of TARGETS, in order, and what became of the rest.

    Args:
      read: records, each with the row that it was made of.
      side: which response of a pair becomes an instruction's output: the "better" (edited,
        preferred) or the "worse" one (original, less preferred: what an editor edits).
      distinct: leave out rows that were there before but for their id. Prompts always are distinct.
      generator: the model's name in rows for alpaca_eval that have none.
      seed: of the order of an edit's sides.

    Raises:
      InputError: for a kind that cannot become `to`, and when nothing is left.
    """
    if to not in TARGETS:
        raise InputError(f"to: {to!r} is not one of {', '.join(TARGETS)}.")
    if side not in SIDES:
        raise InputError(f"side: {side!r} is not one of {', '.join(SIDES)}.")
    makers: dict[str, Callable[[Record, Mapping], Row]] = {
        "instructions": lambda record, row: _instruction(record, row, side),
        "preferences": lambda record, row: _preference(record, row, seed),
        "alpaca_farm": lambda record, row: _alpaca_farm(record, row, seed),
        "alpaca_eval": lambda record, row: _alpaca_eval(record, row, generator),
        "prompts": lambda record, row: {**_prompt(record, row), "output": ""},
        "edits": _edit,
    }
    counts: Counter[str] = Counter(rows=len(read), kept=0)
    seen, rows, columns = set(), [], set()
    for number, (record, row) in enumerate(read, 1):
        if kind(record) == "prompts" and to in ("instructions", "alpaca_eval"):
            counts["without_output"] += 1
            continue
        try:
            made = makers[to](record, row)
        except InputError as error:
            raise InputError(f"row {number}: {error}") from error
        if distinct or to == "prompts":
            key = json.dumps({k: v for k, v in made.items() if k != "id"}, sort_keys=True)
            if key in seen:
                counts["repeated"] += 1
                continue
            seen.add(key)
        rows.append(made)
        columns.add(isinstance(record, Instruction))
    if len(columns) > 1 and to.startswith("alpaca"):
        raise InputError(
            f"to={to}: the rows are both pairs and single responses; convert them one at a time."
        )
    if not rows:
        raise InputError(
            f"to={to}: none of the {len(read)} rows has an output; choose prompts."
        )
    return rows, dict(counts) | {"kept": len(rows)}


def _prompt(record: Record, row: Mapping[str, Any]) -> Row:
    named = {} if row.get("id") in (None, "") else {"id": str(row["id"])}
    return {**named, "instruction": record.instruction, "input": record.input}


def _same(record: Record, row: Mapping[str, Any]) -> Row:
    """The row itself, with every further field; what the record has is as the record has it."""
    asked = {"instruction": record.instruction, "input": record.input}
    return {**plain(row), **asked, **responses(record)}


def _edit(record: Record, row: Mapping[str, Any]) -> Row:
    if not isinstance(record, Edit):
        raise InputError(
            f"{kind(record)} hold no edits; have responses edited by launch.collect_edits or "
            "launch.annotate, whose input to=instructions makes."
        )
    return _same(record, row)


def _instruction(record: Record, row: Mapping[str, Any], side: str) -> Row:
    if not isinstance(record, Instruction):
        return {**_prompt(record, row), "output": better_and_worse(record)[SIDES.index(side)]}
    if side == "worse":
        raise InputError("an instruction has one response, no worse one; choose side=better.")
    return _same(record, row)


def _preference(record: Record, row: Mapping[str, Any], seed: int) -> Row:
    if isinstance(record, Instruction):
        raise InputError("a single response is no preference; give edits or preferences.")
    if isinstance(record, Edit):
        record, row = as_preference(record, seed), {"id": row.get("id")}
        return {**_prompt(record, row), **responses(record), "preference": record.preference}
    return {**_same(record, row), "preference": record.preference}


def _alpaca_farm(record: Record, row: Mapping[str, Any], seed: int) -> Row:
    if isinstance(record, Instruction):
        return {**_prompt(record, row), "output": record.output}
    made = _preference(record, row, seed)
    names = ("output_1", "output_2", "preference", "raw_preference")
    return {**_prompt(record, row), **{name: made[name] for name in names if name in made}}


def _alpaca_eval(record: Record, row: Mapping[str, Any], generator: str) -> Row:
    asked = {"instruction": plain_text(record.instruction, record.input)}
    if isinstance(record, Instruction):
        name = row.get("generator") or generator or "unnamed"
        return {**asked, "output": record.output, "generator": name}
    (name_1, text_1), (name_2, text_2) = responses(record).items()
    return {
        **asked,
        "output_1": text_1,
        "generator_1": row.get("generator_1") or name_1,
        "output_2": text_2,
        "generator_2": row.get("generator_2") or name_2,
        "annotator": row.get("annotator") or generator or "unnamed",
        "preference": float(record.preference if isinstance(record, Preference) else 2),
    }
