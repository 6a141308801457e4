"""Converts records to rows of another kind, for editors, judges, TRL or AlpacaFarm.

    edits         original, edited                    instructions  output: one side of a pair
    preferences   output_1, output_2, preference      prompts       the distinct prompts
    trl           prompt with chosen and rejected, or with completion; texts or messages
    messages      the conversation, one side of a pair at its end
    alpaca_farm   preferences or instructions, with AlpacaFarm's columns only
    alpaca_eval   annotated pairs or one model's outputs; ``input`` is part of the instruction

A hash decides which side of an edit, or of chosen and rejected, becomes output_1, so that the
position does not show which is better. A row that keeps its kind keeps its other fields; every row
keeps its id.
"""

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from fgrlhf_jax.data import records, row_fields
from fgrlhf_jax.data.conversations import is_transcript, join_prompt
from fgrlhf_jax.data.records import Edit, Instruction, Preference, Record, RecordAndRow, kind_of
from fgrlhf_jax.data.sources import MESSAGES
from fgrlhf_jax.errors import InputError

TARGETS = (*records.KINDS, "trl", "messages", "alpaca_farm", "alpaca_eval")
SIDES = ("better", "worse")

Row = dict[str, Any]

# Fields that a converted row has under the target's names; a pair may keep labels and predictions.
_REPLACED = {
    *(*row_fields.PROMPTS, *row_fields.ANSWERS, *records.FINISHED),
    *("input", *row_fields.SYSTEMS, "history", "raw_instruction"),
    *("rejected_response", "rejected_messages"),
}
_LABELS = {"predictions", "preference", "overall_preference"}


def as_preference(pair: Edit | Preference, seed: int = 0) -> Preference:
    """Converts a pair to a preference; a hash of its texts decides the order of the sides."""
    names, better = records.sides(pair), 1
    texts = records.better_and_worse(pair)
    hashed = json.dumps([seed, *records.shown_prompt(pair), *texts]).encode()
    if hashlib.sha256(hashed).digest()[0] & 1:
        names, texts, better = names[::-1], texts[::-1], 2
    finished = (records.is_finished(pair, name) for name in names)
    prompt = pair.instruction, pair.input
    return Preference(*prompt, *texts, better, pair.id, pair.messages, *finished)


def json_fields(row: Mapping[str, Any]) -> Row:
    """Converts values that JSON lacks, such as dates of a Parquet file, to text."""
    return json.loads(json.dumps(dict(row), default=str))


def convert_records(
    rows: Sequence[RecordAndRow],
    to: str,
    *,
    side: str = "better",
    distinct: bool = False,
    generator: str = "",
    seed: int = 0,
) -> tuple[list[Row], dict[str, int]]:
    """Converts rows to the kind ``to``, one of TARGETS; also returns counts of left-out rows.

    Args:
      rows: records, each with the row that it was read from.
      side: the response of a pair that becomes an instruction's output: "better" (edited,
        preferred) or "worse" (original, less preferred; the one to edit).
      distinct: leave out rows that equal an earlier one except for the id; always on for prompts.
      generator: the model name for alpaca_eval rows that have none.
      seed: seed of the order of an edit's sides.

    Raises:
      InputError: for a kind that cannot be converted to ``to``, and if no row is left.
    """
    for name, value, choices in (("to", to, TARGETS), ("side", side, SIDES)):
        if value not in choices:
            raise InputError(f"{name}: {value!r} is not one of {', '.join(choices)}")
    counts: Counter[str] = Counter(rows=len(rows), kept=0)
    as_chat = any(_has_turns(record) for record, _ in rows)  # one format for all rows
    seen, converted = set(), []
    for number, (record, row) in enumerate(rows, 1):
        if kind_of(record) == "prompts" and to in ("instructions", "messages", "alpaca_eval"):
            counts["without_output"] += 1
            continue
        try:
            fields = _convert(record, row, to, side, generator, seed, as_chat)
        except InputError as error:
            raise InputError(f"row {number}: {error}") from error
        if distinct or to == "prompts":
            key = json.dumps({k: v for k, v in fields.items() if k != "id"}, sort_keys=True)
            if key in seen:
                counts["repeated"] += 1
                continue
            seen.add(key)
        converted.append(fields)
    answers = ("output_1", "chosen", "completion")
    kinds = {tuple(name in fields for name in answers) for fields in converted}
    if (to.startswith("alpaca") or to == "trl") and len(kinds) > 1:
        names = "pairs, single responses, prompts"
        reason = f"the rows are of several kinds ({names}); convert each by itself"
        raise InputError(f"to={to}: {reason}")
    if not converted:
        reason = f"none of the {len(rows)} rows has an output; choose prompts"
        raise InputError(f"to={to}: {reason}")
    return converted, dict(counts) | {"kept": len(converted)}


def _convert(
    record: Record,
    row: Mapping[str, Any],
    to: str,
    side: str,
    generator: str,
    seed: int,
    as_chat: bool,
) -> Row:
    id = getattr(record, "id", "") or row.get("id")
    id = {} if id in (None, "") else {"id": str(id)}
    if to == "alpaca_eval":
        return id | _alpaca_eval(record, row, generator)
    if to in ("instructions", "messages") and not isinstance(record, Instruction):
        record = records.as_instruction(record, records.sides(record)[SIDES.index(side)])
        row = id
    elif to in ("instructions", "messages") and side == "worse":
        raise InputError("an instruction has only one response; choose side=better")
    is_pair = not isinstance(record, Instruction)
    replaced = _REPLACED - _LABELS if is_pair else _REPLACED
    extra = {name: v for name, v in json_fields(row).items() if name not in replaced} | id
    turns = [dataclasses.asdict(turn) for turn in record.messages]
    if to in ("trl", "messages"):
        return extra | _chat_fields(record, turns, to, as_chat)
    prompt = {"messages": turns} if turns else _prompt_fields(record)
    if to == "prompts":
        return id | prompt | {"output": ""}
    if to == "edits" and not isinstance(record, Edit):
        raise InputError(
            f"{kind_of(record)} hold no edits; have responses edited by launch.collect_edits or "
            "launch.annotate, whose input to=instructions makes, or read chosen as the edit of "
            "rejected: columns=original=rejected,edited=chosen"
        )
    if to == "preferences" and not is_pair:
        raise InputError("has a single response, not a preference; give edits or preferences")
    if to == "alpaca_farm":
        if len(turns) > 1:
            raise InputError("has several turns, but AlpacaFarm's rows have one; choose trl")
        prompt = {"instruction": turns[0]["content"], "input": ""} if turns else prompt
        is_raw = isinstance(record, Preference) and "raw_preference" in extra
        extra = id | ({"raw_preference": extra["raw_preference"]} if is_raw else {})
    elif to != kind_of(record):
        extra = id
    has_sides = isinstance(record, Preference) and "output_1" in row
    if to in ("preferences", "alpaca_farm") and is_pair and not has_sides:
        record = as_preference(record, seed)
    fields = {name: getattr(record, name) for name in records.RESPONSES[type(record)]}
    if isinstance(record, Preference):
        fields["preference"] = record.preference
    return extra | prompt | fields | records.unfinished_fields(record)


def _has_turns(record: Record) -> bool:
    """Whether a record is a conversation, or has texts that parse as one."""
    texts = [join_prompt(record.instruction, record.input), *records.responses_of(record).values()]
    return bool(record.messages) or any(is_transcript(t) or MESSAGES.match(t) for t in texts)


def _chat_fields(record: Record, turns: list[Row], to: str, as_chat: bool) -> Row:
    """The fields of a row of messages or for TRL; with ``as_chat`` as messages, else as texts."""
    parts = _prompt_fields(record) if record.input else {}  # one prompt would not separate them
    prompt = join_prompt(record.instruction, record.input)
    chat = turns or [{"role": "user", "content": prompt}]
    is_pair = not isinstance(record, Instruction)
    texts = records.better_and_worse(record) if is_pair else [record.output]
    texts = [text for text in texts if text]
    answers = [[{"role": "assistant", "content": text}] for text in texts]
    if to == "messages":
        fields = {"messages": sum(answers, chat)}
        return parts | fields | records.unfinished_fields(record)
    names = ("chosen", "rejected") if is_pair else ("completion",)
    fields = {"prompt": chat if as_chat else prompt}
    fields |= records.unfinished_fields(record, records.sides(record) if is_pair else ())
    return parts | fields | dict(zip(names, answers if as_chat else texts, strict=False))


def _prompt_fields(record: Record) -> Row:
    return {"instruction": record.instruction, "input": record.input}


def _alpaca_eval(record: Record, row: Mapping[str, Any], generator: str) -> Row:
    prompt = records.alpaca_eval_prompt(record)
    default = generator or "unnamed"
    if isinstance(record, Instruction):
        name = row.get("generator") or default
        fields = {"output": record.output, "generator": name}
        return prompt | fields | records.unfinished_fields(record)
    (name_1, text_1), (name_2, text_2) = records.responses_of(record).items()
    prompt |= records.unfinished_fields(record, (name_1, name_2))
    return prompt | {
        "output_1": text_1,
        "generator_1": row.get("generator_1") or name_1,
        "output_2": text_2,
        "generator_2": row.get("generator_2") or name_2,
        "annotator": row.get("annotator") or default,
        "preference": float(record.preference if isinstance(record, Preference) else 2),
    }
