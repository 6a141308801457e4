"""Reads and checks single fields of a row: texts, prompt, labels and spans."""

import itertools
import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from fgrlhf_jax.data.conversations import (
    Turns,
    is_transcript,
    join_prompt,
    parse_list,
    parse_turns,
    transcribe,
)
from fgrlhf_jax.errors import InputError

ROW_BYTES = 2_000_000
PROMPTS = ("messages", "conversations", "context", "prompt", "instruction")

Row = Mapping[str, Any]
# Marks of turns in formats other than Anthropic's: "### User:", "<|user|>", a line "user".
_TURN_MARKS = [
    re.compile(rf"(?im)(?:^|[<|>#])[ \t*]*+(?:{roles})[ \t*]*+(?:[:>|<]|$)|\[/INST\]")
    for roles in ("human|user|prompter", "assistant|bot|gpt")
]
# The opening of the assistant's turn at the end of a prompt rendered by a template.
OPEN_TURN = re.compile(
    r"(?im)(?:(?:[|>#][ *]*|^)(?:assistant|response)(?::|\W*end_header_id)?\W*|\[/INST\]\s*)\Z"
)


def check_row(row: Any, where: str) -> None:
    """Raises InputError for a row that is not an object, is too large, or has invalid Unicode."""
    if isinstance(row, InputError):
        raise row
    if not isinstance(row, Mapping):
        raise InputError(f"{where}: is not an object; each row is {{field: value, …}}")
    try:
        size = len(json.dumps(dict(row), ensure_ascii=False, default=str).encode())
    except UnicodeEncodeError:
        name = next(name for name in row if not is_unicode([name, row[name]]))
        reason = f"the field {name!a:.60} holds invalid Unicode (half of a surrogate pair)"
        raise InputError(f"{where}: {reason}; remove it") from None
    except (RecursionError, TypeError, ValueError) as error:
        raise InputError(f"{where}: cannot be read ({error}); correct this row") from error
    if size > ROW_BYTES:
        reason = f"has {size:,} bytes, more than the {ROW_BYTES:,} that a row may have"
        raise InputError(f"{where}: {reason}; shorten it")


def is_unicode(value: Any) -> bool:
    """Whether all texts in a JSON value are valid Unicode, without unpaired surrogates."""
    try:
        return bool(json.dumps(value, ensure_ascii=False, default=str).encode())
    except UnicodeEncodeError:
        return False


def _names(names: Iterable[str]) -> str:
    names = [f"{name:.40}" for name in names]
    return ", ".join([*names[:12], *(["…"] if len(names) > 12 else [])]) or "none"


def read_field(row: Row, name: str, where: str) -> Any:
    if name not in row:
        raise InputError(
            f"{where}: misses the field {name!r:.60} (it has {_names(row)}); a row has a prompt "
            "(instruction, prompt or messages) and original and edited, chosen and rejected, "
            "output_1, output_2 and preference, or output; give other names with "
            "--config.columns=field=column, such as prompt=question"
        )
    return row[name]


def read_text(row: Row, name: str, where: str, blank: bool = False) -> str:
    """The text in a field of a row; raises InputError if missing or, unless ``blank``, empty."""
    text = read_field(row, name, where)
    if not isinstance(text, str):
        value = json.dumps(text, default=str)[:40]
        raise InputError(f"{where}: the field {name!r} is {value}, not a string; put a text there")
    if not blank and not text.strip():
        raise InputError(f"{where}: the response {name!r} is empty; fill it in")
    return text


def read_preference(row: Row, name: str, where: str) -> int:
    """Which answer is better, 1 or 2."""
    value = read_field(row, name, where)
    number = to_number(value)
    if name == "overall_preference":
        if 1 <= abs(number) <= 3:
            return 1 if number < 0 else 2
        allowed = "-3 to -1 (response1 is better) or 1 to 3; ties teach nothing"
    else:
        if number in (1, 2):
            return int(number)
        allowed = "1 or 2, the better output"
    shown = json.dumps(value, default=str)[:40]
    raise InputError(f"{where}: {name} is {shown}; it must be {allowed}")


def to_number(value: Any) -> float:
    """Converts a number or its text (as in CSV) to float; NaN for other values."""
    try:
        return math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


_FLAGS = {
    **dict.fromkeys(("true", "1", "1.0"), True),
    **dict.fromkeys(("false", "0", "0.0"), False),
}


def read_flag(row: Row, name: str, where: str) -> bool:
    """The bool in a field, or its text (as in CSV); True if it is missing."""
    value = row.get(name)
    flag = True if value in (None, "") else _FLAGS.get(str(value).lower())
    if flag is None:
        reason = f"{name} is {value!r:.40}; it must be true or false"
        raise InputError(f"{where}: {reason}; correct it, or remove the field")
    return flag


def read_spans(spans: Any, begin: int, length: int, where: str) -> tuple[tuple[int, int], ...]:
    """(start, end) from ``begin`` of spans given as {"start", "end"} objects or as [start, end]."""
    if spans is not None and not isinstance(spans, list | tuple):
        raise InputError(f"{where}: error_spans is {spans!r:.40}, not a list of spans")
    checked = []
    for span in spans or ():
        pair = (span.get("start"), span.get("end")) if isinstance(span, Mapping) else span
        match pair:
            case [start, end] if type(start) is type(end) is int and begin <= start < end <= length:
                checked.append((start - begin, end - begin))
            case _:
                raise InputError(
                    f"{where}: error_spans holds {span!r:.60}; give start and end as character "
                    f"offsets into the original ({begin} to {length})"
                )
    return tuple(checked)


def read_prompt(
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
            texts[name] = read_text(row, name, where, blank=True)
        elif not isinstance(value, str) or name in PROMPTS[:2] or is_transcript(value):
            turns = parse_turns(value, f"{where}: {name}")
            *earlier, end = turns
            is_open = is_transcript(value) and not end["content"]  # ends with "Assistant:"
            is_answer = is_open or end["content"] in answers or (not answers and name != "context")
            if end["role"] == "assistant" and is_answer:
                last, turns = (None if is_open else end["content"]), earlier
            conversations[name] = turns
        elif name != "context":
            texts[name] = read_text(row, name, where, blank=True)
    context = row.get("context") if isinstance(row.get("context"), str) else ""
    input = context if row.get("input") is None else row["input"]
    input = read_text({"input": input}, "input", where, blank=True)
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
        refuse_two_prompts([first, other[0]], where)
    ignored = ["history"] if parse_list(row.get("history")) else []
    if not any(input.strip() in text for text in known):
        ignored.append("input" if row.get("input") else "context")
    if ignored and first not in columns:
        refuse_two_prompts([ignored[0], first], where)
    if len(turns) == 1 and input and join_prompt(texts.get("instruction", ""), input) in known:
        return {"instruction": texts["instruction"], "input": input}, last
    return {"messages": _with_system(row, turns, where)}, last


def _text_prompt(row: Row, texts: Mapping[str, str], input: str, where: str) -> dict[str, Any]:
    text = next((text for text in reversed(texts.values()) if text.strip()), "")
    if not (text.strip() or input.strip()):
        names = "instruction and input are both" if "instruction" in texts else "prompt is"
        raise InputError(f"{where}: {names} empty; give a prompt")
    prompt = join_prompt(text, input)
    if texts.get("prompt", text).strip() not in ("", text.strip(), prompt.strip()):
        refuse_two_prompts(["prompt", "instruction"], where)
    turns = [*_history(row, where), {"role": "user", "content": prompt}]
    turns = _with_system(row, turns, where)
    return {"messages": turns} if len(turns) > 1 else {"instruction": text, "input": input}


def _history(row: Row, where: str) -> Turns:
    """The turns of a "history" field, [question, answer] pairs as in LLaMA-Factory."""
    pairs = parse_list(row.get("history")) or []
    is_list = isinstance(pairs, list | tuple)
    if not is_list or not all(isinstance(p, list | tuple) and len(p) == 2 for p in pairs):
        reason = "history is not a list of [question, answer] pairs"
        raise InputError(f"{where}: {reason}; correct it, or remove the field")
    roles = zip(("user", "assistant") * len(pairs), itertools.chain(*pairs), strict=True)
    turns = [{"role": role, "content": text} for role, text in roles]
    return parse_turns(turns, f"{where}: history") if turns else []


def _with_system(row: Row, turns: Turns, where: str) -> Turns:
    """Puts the field "system", or "system_prompt" as in OpenOrca, before the turns."""
    names = [n for n in ("system", "system_prompt", "system_message") if row.get(n) is not None]
    texts = {name: read_text(row, name, where, blank=True) for name in names}
    texts = {name: text for name, text in texts.items() if text.strip()}
    if texts and turns[0]["role"] == "system":
        texts["the system message of the messages"] = turns[0]["content"]
    if len({*texts.values()}) > 1:
        first, other, *_ = texts
        raise InputError(f"{where}: {first} differs from {other}; remove one of them")
    head = [] if turns[0]["role"] == "system" else [*texts.values()][:1]
    return [*({"role": "system", "content": text} for text in head), *turns]


def refuse_two_prompts(names: list[str], where: str) -> None:
    raise InputError(
        f"{where}: {' and '.join(names)} hold two different prompts; choose one of them, such as "
        f"--config.columns={names[1]}"
    )


def common_beginning(
    row: Row, names: tuple[str, ...], answers: list[str], where: str
) -> tuple[dict[str, str], list[str]]:
    """Splits both texts of a TRL pair into their common beginning, the prompt, and the answers."""
    if prompts := [n for n in PROMPTS if n in row and not (row[n] and str(row[n]).strip())]:
        raise InputError(f"{where}: {prompts[0]} is empty; give a prompt")
    rest = {n: value for n, value in row.items() if n not in (*names, "id")}
    parts = {n: value if isinstance(value, list | tuple) else [value] for n, value in rest.items()}
    others = [n for n in rest if any(isinstance(part, str | Mapping) for part in parts[n])]
    start = ""
    if names == ("chosen", "rejected"):
        pairs = zip(*answers, strict=False)
        start = "".join(a for a, _ in itertools.takewhile(lambda ab: ab[0] == ab[1], pairs))
        start = start[: max(start.rfind(blank) for blank in " \n\t") + 1].rstrip()
    if all(turn.search(start) for turn in _TURN_MARKS):
        reason = f"{' and '.join(names)} are conversations in an unknown format"
        raise InputError(f"{where}: {reason}; give lists of messages with role and content")
    if others or not start:
        read_field({n: 0 for n in row if n != "instruction"}, "instruction", where)
    remaining = {name: text[len(start) :] for name, text in zip(names, answers, strict=True)}
    answers = [read_text(remaining, name, where) for name in names]
    return {"instruction": start, "input": ""}, answers


def without_prompt(prompt: Any, answers: list[str]) -> list[str]:
    """Removes the prompt from the answers if all repeat it; a short prompt may repeat by chance."""
    if not isinstance(prompt, str) or len(prompt) < 20:
        return answers
    tails = [text.removeprefix(prompt) for text in answers]
    is_repeated = all(text.startswith(prompt) for text in answers) and all(map(str.strip, tails))
    return tails if is_repeated else answers
