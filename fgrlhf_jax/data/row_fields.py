"""The names of a row's fields; reads and checks single ones: texts, labels, spans, history."""

import itertools
import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from fgrlhf_jax.data.conversations import Turns, parse_list, parse_turns
from fgrlhf_jax.data.records import FINISHED, Edit, Instruction, Preference
from fgrlhf_jax.errors import InputError

ROW_BYTES = 2_000_000
SYSTEMS = ("system", "system_prompt", "system_message", "systemPrompt")
PROMPTS = ("messages", "conversations", "context", "prompt", "instruction")
COMPARISONS = "comparisons"
LAYOUTS = {
    ("original", "edited"): Edit,
    ("original_response", "edited_response"): Edit,  # HelpSteer3's edit
    ("output_1", "output_2", "preference"): Preference,  # AlpacaFarm, alpaca_eval
    ("chosen", "rejected"): Preference,  # TRL, UltraFeedback, HH-RLHF
    ("response1", "response2", "overall_preference"): Preference,  # HelpSteer3's preference
    ("preferred_output", "non_preferred_output"): Preference,  # OpenAI, with input.messages
    ("good_edited_response", "bad_edited_response"): Preference,  # HelpSteer3's edit_quality
    ("predictions", "preference"): COMPARISONS,  # qa_feedback; only if columns names them
    ("output",): Instruction,
    ("completion",): Instruction,  # TRL
    ("response",): Instruction,  # Dolly
}
_PAIRS = [names[:2] for names, kind in LAYOUTS.items() if kind is Preference]
FLAG_OF = {name: flag for pair in _PAIRS for name, flag in zip(pair, FINISHED[1:], strict=True)}
ANSWERS = tuple(dict.fromkeys(itertools.chain(*LAYOUTS)))
FIELDS = (*ANSWERS, *PROMPTS, "input", "system", "history", "id", "error_spans", *FINISHED)

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


def parse_columns(text: str) -> dict[str, str]:
    """Parses "prompt=question,chosen" to {field: column}; without "=" both have the same name.

    Raises InputError for a field that is not in :data:`FIELDS`.
    """
    columns = {}
    for part in filter(None, map(str.strip, text.split(","))):
        field, _, column = part.partition("=")
        if field not in FIELDS:
            raise InputError(
                f"columns={text:.200}: {field!r:.60} is not a field; write field=column[,…] with "
                f"fields of {', '.join(FIELDS)}"
            )
        columns[field] = column or field
    return columns


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
    """The text in a field of a row; raises InputError if it is missing, and as check_text."""
    text = read_field(row, name, where)
    check_text(text, name, where, blank)
    return text


def check_text(text: Any, name: str, where: str, blank: bool = False) -> None:
    """Raises InputError if a field's value is no text or, unless ``blank``, empty."""
    if not isinstance(text, str):
        value = json.dumps(text, default=str)[:40]
        raise InputError(f"{where}: the field {name!r} is {value}, not a string; put a text there")
    if not blank and not text.strip():
        raise InputError(f"{where}: the response {name!r} is empty; fill it in")


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


def read_history(row: Row, where: str) -> Turns:
    """The turns of a "history" field, [question, answer] pairs as in LLaMA-Factory."""
    pairs = parse_list(row.get("history")) or []
    is_list = isinstance(pairs, list | tuple)
    if not is_list or not all(isinstance(p, list | tuple) and len(p) == 2 for p in pairs):
        reason = "history is not a list of [question, answer] pairs"
        raise InputError(f"{where}: {reason}; correct it, or remove the field")
    roles = zip(("user", "assistant") * len(pairs), itertools.chain(*pairs), strict=True)
    turns = [{"role": role, "content": text} for role, text in roles]
    return parse_turns(turns, f"{where}: history") if turns else []


def with_system(row: Row, turns: Turns, where: str) -> Turns:
    """Puts the field "system", or another of SYSTEMS, before the turns."""
    names = [name for name in SYSTEMS if row.get(name) is not None]
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


def comparisons(row: Row, where: str) -> list[Row]:
    """A row per pair of predictions without a tie; labels are of (1, 2), (1, 3), …, 0 is a tie."""
    texts, labels = parse_list(row.get("predictions")), row.get("preference")
    valid = isinstance(texts, list) and all(isinstance(t, str) and t.strip() for t in texts)
    pairs = list(itertools.combinations(enumerate(texts, 1), 2)) if valid else []
    if not pairs or not isinstance(labels, list) or len(labels) != len(pairs):
        raise InputError(
            f"{where}: has no comparison of predictions; it must have a list `predictions` of "
            "at least two responses and a list `preference` with a label for each pair of them"
        )
    if any(type(label) is not int or label not in (0, 1, 2) for label in labels) or not any(labels):
        raise InputError(
            f"{where}: preference is {json.dumps(labels, default=str)[:40]}; each label must be 1 "
            "(the first is better), 2 (the second) or 0 (a tie), and not all ties"
        )
    id = "" if row.get("id") in (None, "") else f"{row['id']}/"
    rest = {name: value for name, value in row.items() if name not in ANSWERS}
    return [
        rest | {"output_1": a, "output_2": b, "preference": label, "id": id and f"{id}{i}-{j}"}
        for ((i, a), (j, b)), label in zip(pairs, labels, strict=True)
        if label and a != b
    ]
