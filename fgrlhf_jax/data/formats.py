"""Parses rows of common data-set layouts into records.

A row has a prompt and answers. :data:`LAYOUTS` has the field names of answers, :data:`PROMPTS`
those of prompts; they are recognised independently, so that every combination works. A prompt is a
text or a conversation; an answer is a text, a message, or a conversation that ends with it. If two
layouts fit a row, ``columns`` must choose.
"""

import re
from collections.abc import Container, Iterable, Mapping
from types import MappingProxyType
from typing import Any

from fgrlhf_jax.data import row_fields
from fgrlhf_jax.data.conversations import (
    Turns,
    check_texts,
    is_transcript,
    join_prompt,
    parse_list,
    parse_turns,
    transcribe,
)
from fgrlhf_jax.data.records import (
    FINISHED,
    RESPONSES,
    Edit,
    Instruction,
    Message,
    Preference,
    Record,
)
from fgrlhf_jax.data.row_fields import ANSWERS, LAYOUTS, PROMPTS, Row, check_text, read_text
from fgrlhf_jax.data.row_labels import check_scores, check_trained
from fgrlhf_jax.data.text_forms import restore_line_ends, restore_normal_form
from fgrlhf_jax.errors import InputError

_REASONS = ("finish_reason", "stop_reason", "done_reason", "finishReason")
_CUT = {"length", "max_tokens", "max_output_tokens", "model_length"}  # finish reasons of servers
_CUT |= {"content_filter", "safety", "error", "abort"}


def parse_row(
    row: Any, where: str, need: str = "any", columns: Mapping[str, str] = MappingProxyType({})
) -> list[Record]:
    """Parses and checks a row; returns several records if it compares several answers.

    Args:
      where: the row's location, with which error messages begin.
      need: "pairs" rejects Instructions; "prompts", "rows" read a missing answer, or a conversation
        that ends with the user, as output ""; "candidates" accepts two answers that have no label,
        are equal or are empty.
      columns: column names by field, for fields with other names; these have precedence.
    """
    row_fields.check_row(row, where)
    check_texts(row, where)
    is_argillas = any(str(name).endswith(".responses") for name in row)
    if not columns and (is_argillas or {"annotation_id", "lead_time"} <= row.keys()):
        reason = "is a row of an Argilla or Label Studio table, whose answers are not read here"
        raise InputError(f"{where}: {reason}; give launch.annotate its JSON, or give columns")
    row = _rename_columns(row, where, columns)
    layout, is_candidate = _layout(row, columns.keys(), where, need), need == "candidates"
    kind = LAYOUTS.get(layout, Instruction)
    if kind == row_fields.COMPARISONS:
        named = {name: name for name in columns if name in PROMPTS}
        rows = row_fields.comparisons(row, where)
        return [record for row in rows for record in parse_row(row, where, columns=named)]
    names = layout[:2]
    may_be_blank = kind is Instruction or is_candidate
    answers, histories = _answers(row, names, where, columns, may_be_blank)
    if kind is Edit:
        if not answers[0].isascii():
            answers[1] = restore_normal_form(answers[1], answers[0])
        if "\r" in answers[0] and "\r" not in answers[1]:
            answers[1] = restore_line_ends(answers[1], answers[0])
    if len(set(answers)) == 1 and len(names) > 1 and not is_candidate:
        reason = f"{' and '.join(names)} are equal and teach nothing"
        raise InputError(f"{where}: {reason}; give two that differ")
    length = len(answers[0]) if answers else 0  # a repeated prompt included
    prompt, last = _read_prompt(row, columns.keys(), histories, answers, where)
    if not prompt:
        prompt, answers = row_fields.common_beginning(row, names, answers, where)
    elif {columns.get(name, name) for name in names} == {"chosen", "rejected"} and not histories:
        answers = row_fields.without_prompt(row.get("prompt"), answers)
    if last is not None and not answers:
        answers = [last]
    if is_transcript(row.get("prompt")):
        rests = (re.sub(r"\A(\s*Assistant:)? ?", "", text) for text in answers)
        texts = dict(zip(names or ("output",), rests, strict=False))
        answers = [read_text(texts, name, where, may_be_blank) for name in texts]
    if messages := tuple(Message(**turn) for turn in prompt.pop("messages", ())):
        prompt = {"instruction": "", "input": "", "messages": messages}
    if kind is Instruction:
        if need == "responses":
            check_trained(row, (*names, *(PROMPTS[:2] if last is not None else ())), where)
        if not answers:
            is_open = need in ("prompts", "rows") or any(row.get(name) for name in PROMPTS[:2])
            answers = [""] if is_open else [read_text(row, "output", where)]
    else:
        prompt["id"] = "" if row.get("id") is None else str(row["id"])
    fields = prompt | dict(zip(RESPONSES[kind], answers, strict=True))
    fields |= _labels(row, kind, layout, where, need, columns)
    if kind is Edit:
        start = length - len(answers[0])
        fields["error_spans"] = row_fields.read_spans(row.get("error_spans"), start, length, where)
    if kind is Instruction and need == "pairs":
        raise InputError(
            f"{where}: has one response or none; give edits (original, edited) or preferences "
            "(chosen, rejected or output_1, output_2, preference)"
        )
    return [kind(**fields)]


def _rename_columns(row: Row, where: str, columns: Mapping[str, str]) -> dict[str, Any]:
    """Renames fields of ``columns``, OpenAI's and alpaca_eval's rows to this project's names."""
    named = {field: row_fields.read_field(row, column, where) for field, column in columns.items()}
    row = {name: value for name, value in row.items() if name not in columns.values()} | named
    if isinstance(value := row.get("input"), Mapping) and "messages" in value:
        check_texts(value, where)
        row |= {"input": None, "messages": value["messages"]}
    for name in ("rejected_response", "rejected_messages"):  # SWIFT
        if row.get(name) and row.get("messages"):
            row |= {"chosen": row["messages"], "rejected": row[name]}
    if "raw_instruction" in row:  # alpaca_eval
        raw, input = (read_text(row, name, where, True) for name in ("raw_instruction", "input"))
        if join_prompt(raw, input) != row.get("instruction"):
            row_fields.refuse_two_prompts(["raw_instruction and input", "instruction"], where)
        row["instruction"] = raw
    return row


def _labels(
    row: Row,
    kind: type[Record],
    layout: tuple[str, ...],
    where: str,
    need: str,
    columns: Mapping[str, str],
) -> dict[str, Any]:
    """The record fields ``preference`` and ``finished…`` of a row."""
    fields, names = {}, layout[:2]
    if kind is Preference:
        has_label = len(layout) > 2 and need != "candidates"
        fields["preference"] = row_fields.read_preference(row, layout[2], where) if has_label else 1
        is_labelled = layout == ("chosen", "rejected") and need not in ("prompts", "candidates")
        if is_labelled and not columns.keys() & {*layout}:
            check_scores(row, where)
    flags = FINISHED[1:] if kind is Preference else FINISHED[:1]
    for flag, name in zip(flags, names or ("output",), strict=False):
        column = flag if flag in columns else row_fields.FLAG_OF.get(columns.get(name, name), flag)
        fields[flag] = row_fields.read_flag(row, column, where)
    reasons = {str(row.get(name)).lower() for name in _REASONS}
    is_cut = str(row.get("truncated")).lower() == "true" or not reasons.isdisjoint(_CUT)
    if kind is Instruction and is_cut:
        fields["finished"] = False
    return fields


def as_list(rows: Any, kind: str) -> Iterable:
    """The rows of a list or a pandas DataFrame; raises InputError for a single row."""
    if isinstance(rows, str | Mapping | Record):
        raise InputError(f"{kind}s={rows!r:.60}: is one {kind}; give a list of {kind}s")
    return rows.to_dict("records") if hasattr(rows, "iterrows") else rows


def parse_record(row: Any, where: str) -> Record:
    """Parses a row with one record, which needs no response."""
    return parse_row(row, where, "prompts")[0]


def _layout(row: Row, columns: Iterable[str], where: str, need: str) -> tuple[str, ...]:
    """The layout of the answers; () without answers; an incomplete pair lacks some fields."""
    required = set(columns) & set(ANSWERS)
    layouts = [names for names in LAYOUTS if required.issubset(names)]
    if not required:
        layouts.remove(("predictions", "preference"))
    present = {name for name in ANSWERS if row.get(name) is not None}
    count = 2 if need == "candidates" else None
    complete = [names for names in layouts if present.issuperset(names[:count])]
    pairs = [names for names in complete if len(names) > 1]
    if pairs:  # full-hh-rlhf repeats the chosen text as the response
        answers = [row[name] for name in pairs[0][:2]]
        complete = pairs + [n for n in complete if len(n) == 1 and row[n[0]] not in answers]
    if len(complete) > 1:
        choices = [" and ".join(names) for names in complete[:2]]
        raise InputError(
            f"{where}: fits two layouts, {' or '.join(choices)}; choose one with "
            f"--config.columns={','.join(complete[0])} or {','.join(complete[1])}"
        )
    incomplete = [names for names in layouts if len(names) > 1 and present & set(names)]
    if incomplete and not pairs:
        return max(incomplete, key=lambda names: len(present & set(names)))
    return complete[0] if complete else ()


def _answers(
    row: Row, names: tuple[str, ...], where: str, columns: Container[str], blank: bool
) -> tuple[list[str], dict[str, Turns]]:
    """The texts of the answers, and by field the conversation before an answer, if it has one."""
    answers, histories = [], {}
    for name in names:
        value = row.get(name)
        may_be_transcript = name in columns or name in ("chosen", "rejected")
        if isinstance(value, str) and not (may_be_transcript and is_transcript(value)):
            check_text(value, name, where, blank)
            answers.append(value)
            continue
        if not value or not isinstance(value, str | list | tuple | Mapping):
            read_text(row, name, where)
        *turns, last = parse_turns(value, f"{where}: {name}")
        if last["role"] != "assistant":
            raise InputError(f"{where}: {name} does not end with the assistant's turn; add it")
        check_text(last["content"], name, where, blank)
        answers.append(last["content"])
        if turns:
            histories[name] = turns
    if len(histories) == 2 and histories[names[0]] != histories[names[1]]:
        reason = f"{' and '.join(names)} belong to different conversations"
        raise InputError(f"{where}: {reason}; only the last answer may differ")
    return answers, histories


def _read_prompt(
    row: Row, columns: Iterable[str], histories: Mapping[str, Turns], answers: list[str], where: str
) -> tuple[dict[str, Any], str | None]:
    """The record fields of a row's prompt ({}: none), and the answer that ends its conversation.

    Args:
      columns: the fields that ``columns`` names.
      histories: by field, the conversation that precedes an answer in its own field, if any.
      answers: texts of the answers.
    """
    names = set(columns) & set(PROMPTS) or PROMPTS
    conversations, texts, last = dict(histories), {}, None
    for name in PROMPTS:
        value = row.get(name)
        if name not in names or value is None or value == []:
            continue
        if name == "instruction":
            check_text(value, name, where, blank=True)
            texts[name] = value
        elif not isinstance(value, str) or name in PROMPTS[:2] or is_transcript(value):
            turns = parse_turns(value, f"{where}: {name}")
            *earlier, end = turns
            is_open = is_transcript(value) and not end["content"]  # ends with "Assistant:"
            is_answer = is_open or end["content"] in answers or (not answers and name != "context")
            if end["role"] == "assistant" and is_answer:
                last, turns = (None if is_open else end["content"]), earlier
            conversations[name] = turns
        elif name != "context":
            texts[name] = value
    context = row.get("context") if isinstance(row.get("context"), str) else ""
    input = context if row.get("input") is None else row["input"]
    check_text(input, "input", where, blank=True)
    input = input if input.strip() or not context.strip() else context
    for name, turns in histories.items():
        if turns[0]["role"] == "assistant" and "prompt" in conversations:  # continues the prompt
            conversations[name] = conversations["prompt"] + turns
    if any(conversations[name] != histories[name] for name in histories):
        del conversations["prompt"]
    if not conversations:
        return (_text_prompt(row, texts, input, where) if texts else {}), last
    (first, turns), *_ = conversations.items()
    reason = ""
    if not turns or turns[-1]["role"] != "user":
        reason = "the messages before the response do not end with one of the user's; add it"
    elif not turns[-1]["content"].strip():
        reason = "the user's message before the response is empty; fill it in"
    if reason:
        raise InputError(f"{where}: {first}: {reason}")
    known = {turn["content"].strip() for turn in turns if turn["role"] == "user"}
    known |= {"", transcribe(turns).strip()}
    other = [name for name, other_turns in conversations.items() if other_turns != turns]
    other += [name for name, text in texts.items() if join_prompt(text, input).strip() not in known]
    if other:
        row_fields.refuse_two_prompts([first, other[0]], where)
    ignored = ["history"] if parse_list(row.get("history")) else []
    if not any(input.strip() in text for text in known):
        ignored.append("input" if row.get("input") else "context")
    if ignored and first not in columns:
        row_fields.refuse_two_prompts([ignored[0], first], where)
    if len(turns) == 1 and input and join_prompt(texts.get("instruction", ""), input) in known:
        return {"instruction": texts["instruction"], "input": input}, last
    return {"messages": row_fields.with_system(row, turns, where)}, last


def _text_prompt(row: Row, texts: Mapping[str, str], input: str, where: str) -> dict[str, Any]:
    text = next((text for text in reversed(texts.values()) if text.strip()), "")
    if not (text.strip() or input.strip()):
        names = "instruction and input are both" if "instruction" in texts else "prompt is"
        raise InputError(f"{where}: {names} empty; give a prompt")
    prompt = join_prompt(text, input)
    if texts.get("prompt", text).strip() not in ("", text.strip(), prompt.strip()):
        row_fields.refuse_two_prompts(["prompt", "instruction"], where)
    turns = [*row_fields.read_history(row, where), {"role": "user", "content": prompt}]
    turns = row_fields.with_system(row, turns, where)
    return {"messages": turns} if len(turns) > 1 else {"instruction": text, "input": input}
