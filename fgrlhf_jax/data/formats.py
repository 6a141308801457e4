"""The layouts that rows of people's data sets have, and the record in each of them.

A row is a prompt and what answers it. :data:`LAYOUTS` names the fields of the answers and
:data:`PROMPTS` those of the prompt; both are recognised apart, so that any prompt goes with any
answers. A prompt is a text or a conversation, an answer a text, a message, or a conversation that
ends with it. Of two layouts that fit one row none is taken: ``columns`` decides.
"""

import itertools
import json
from collections.abc import Iterable, Mapping
from types import MappingProxyType
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

EDIT, PREFERENCE, COMPARISONS, RESPONSE = "edit", "preference", "comparisons", "response"
LAYOUTS = {
    ("original", "edited"): EDIT,
    ("original_response", "edited_response"): EDIT,  # HelpSteer3's edit
    ("output_1", "output_2", "preference"): PREFERENCE,  # AlpacaFarm, alpaca_eval
    ("chosen", "rejected"): PREFERENCE,  # TRL, UltraFeedback, HH-RLHF
    ("response1", "response2", "overall_preference"): PREFERENCE,  # HelpSteer3's preference
    ("good_edited_response", "bad_edited_response"): PREFERENCE,  # HelpSteer3's edit_quality
    ("predictions", "preference"): COMPARISONS,  # qa_feedback; only where columns names them
    ("output",): RESPONSE,
    ("completion",): RESPONSE,  # TRL
    ("response",): RESPONSE,  # Dolly
}
PROMPTS = ("messages", "conversations", "context", "prompt", "instruction")
ANSWERS = tuple(dict.fromkeys(itertools.chain(*LAYOUTS)))
UNUSABLE = ("tools", "images")  # of TRL
FINISHED = ("finished", "finished_1", "finished_2")
FIELDS = (*ANSWERS, *PROMPTS, "input", "system", "id", "error_spans", *FINISHED)
ROW_BYTES = 2_000_000

Row = Mapping[str, Any]
NO_COLUMNS: Mapping[str, str] = MappingProxyType({})


def parse_columns(text: str) -> dict[str, str]:
    """{field: column} of "prompt=question,chosen"; a field without "=" is a column of that name.

    Raises:
      InputError: for what is no field of :data:`FIELDS`.
    """
    columns = {}
    for part in filter(None, map(str.strip, text.split(","))):
        field, _, column = part.partition("=")
        if field not in FIELDS:
            raise InputError(
                f"columns={text:.200}: {field!r:.60} is no field; write field=column[,…] with "
                f"fields of {', '.join(FIELDS)}."
            )
        columns[field] = column or field
    return columns


def normalize(
    row: Any, where: str, columns: Mapping[str, str] = NO_COLUMNS, need: str = "any"
) -> list[tuple[str, dict[str, Any]]]:
    """(EDIT, PREFERENCE or RESPONSE, the record's fields) of each record in a row, checked.

    Args:
      where: the row's place, which opens every message.
      columns: the row's name of a field where that is another; what it names is preferred.
      need: "prompts": a row without an answer is a RESPONSE whose output is "", as is any
        conversation that ends with the user; "candidates": two
        answers need no label and no difference, and may be empty.
    """
    check_row(row, where)
    for name in filter(row.get, UNUSABLE):
        if parse_list(row[name]):
            reason = f"{name} are a part of its prompt, and only texts can be used"
            raise InputError(f"{where}: {reason}; leave such rows out, or take the field away.")
    row = dict(row) | {field: _field(row, column, where) for field, column in columns.items()}
    if "raw_instruction" in row:  # of a file for alpaca_eval
        raw, input = (text_of(row, name, where, True) for name in ("raw_instruction", "input"))
        if join_prompt(raw, input) != row.get("instruction"):
            _refuse_two_prompts(["raw_instruction and input", "instruction"], where)
        row["instruction"] = raw
    layout, is_candidate = _layout(row, columns.keys(), where, need), need == "candidates"
    kind = LAYOUTS.get(layout, RESPONSE)
    if kind == COMPARISONS:
        named = {name: name for name in columns if name in PROMPTS}
        parts = [normalize(part, where, named) for part in _comparisons(row, where)]
        return [record for part in parts for record in part]
    names, answers, before = layout[:2], [], {}
    for name in names:
        whole = name in columns or name in ("chosen", "rejected")  # may be a transcript
        turns, text = _answer(row, name, where, whole, kind == RESPONSE or is_candidate)
        answers.append(text)
        if turns:
            before[name] = turns
    if len(before) == 2 and before[names[0]] != before[names[1]]:
        reason = f"{' and '.join(names)} end different conversations"
        raise InputError(f"{where}: {reason}; only the last answer may differ.")
    if len(set(answers)) == 1 and len(names) > 1 and not is_candidate:
        reason = f"{' and '.join(names)} are equal and teach nothing"
        raise InputError(f"{where}: {reason}; give two that differ.")
    prompt, last = _prompt(row, columns.keys(), before, answers, where)
    if not prompt:
        prompt, answers = _common_beginning(row, names, answers, where)
    if last is not None and not answers:
        answers = [last]
    if is_transcript(row.get("prompt")):
        answers = [text.removeprefix(" ") for text in answers]
    if kind == EDIT:
        spans = _spans(row.get("error_spans"), len(answers[0]), where)
        fields = {"original": answers[0], "edited": answers[1], "error_spans": spans}
        fields |= _finished(row, FINISHED[:1], where)
    elif kind == PREFERENCE:
        has_label = len(layout) > 2 and not is_candidate
        preference = _preference(row, layout[2], where) if has_label else 1
        fields = {"output_1": answers[0], "output_2": answers[1], "preference": preference}
        fields |= _finished(row, FINISHED[1:], where)
    else:
        label = row.get("label")  # of TRL's completions: a bool, or what a table makes of one
        is_false = layout == ("completion",) and str(label).lower() in ("false", "0", "0.0")
        if (label is False or is_false) and need not in ("prompts", "candidates"):
            raise InputError(f"{where}: label is false, a response not to learn; leave it out.")
        if not answers:
            is_open = need == "prompts" or any(row.get(name) for name in PROMPTS[:2])
            answers = [""] if is_open else [text_of(row, "output", where)]
        return [(kind, prompt | {"output": answers[0]} | _finished(row, FINISHED[:1], where))]
    return [(kind, prompt | fields | {"id": "" if row.get("id") is None else str(row["id"])})]


def is_prompt_in_texts(row: Row, columns: Mapping[str, str]) -> bool:
    """Whether a row that was read has its prompt as the beginning of two texts, as in TRL."""
    chosen = row.get(columns.get("chosen", "chosen"))
    has_text = isinstance(chosen, str) and not is_transcript(chosen)
    return has_text and not any(name in row or name in columns for name in PROMPTS)


def check_row(row: Any, where: str) -> None:
    """Raises InputError for what is no object, is too large, or holds invalid Unicode."""
    if isinstance(row, InputError):
        raise row
    if not isinstance(row, Mapping):
        raise InputError(f"{where}: is not an object; each row is {{field: value, …}}.")
    try:
        size = len(json.dumps(dict(row), ensure_ascii=False, default=str).encode())
    except UnicodeEncodeError:
        name = next(name for name in row if not _is_unicode([name, row[name]]))
        reason = f"the field {name!a:.60} holds invalid Unicode (half of a surrogate pair)"
        raise InputError(f"{where}: {reason}; remove it.") from None
    except (RecursionError, TypeError, ValueError) as error:
        raise InputError(f"{where}: cannot be read ({error}); correct this row.") from error
    if size > ROW_BYTES:
        reason = f"has {size:,} bytes, more than the {ROW_BYTES:,} that a row may have"
        raise InputError(f"{where}: {reason}; shorten it.")


def _is_unicode(value: Any) -> bool:
    try:
        return bool(json.dumps(value, ensure_ascii=False, default=str).encode())
    except UnicodeEncodeError:
        return False


def _names(names: Iterable[str]) -> str:
    names = [f"{name:.40}" for name in names]
    return ", ".join([*names[:12], *(["…"] if len(names) > 12 else [])]) or "none"


def _field(row: Row, name: str, where: str) -> Any:
    if name not in row:
        raise InputError(
            f"{where}: misses the field {name!r:.60} (it has {_names(row)}); a row has a prompt "
            "(instruction, prompt or messages) and original and edited, chosen and rejected, "
            "output_1, output_2 and preference, or output; give other names with "
            "--config.columns=field=column, as prompt=question."
        )
    return row[name]


def text_of(row: Row, name: str, where: str, blank: bool = False) -> str:
    """The text in a field of a row; raises InputError where there is none.

    Args:
      blank: whether the text may be empty.
    """
    text = _field(row, name, where)
    if not isinstance(text, str):
        value = json.dumps(text, default=str)[:40]
        raise InputError(f"{where}: the field {name!r} is {value}, not a string; put a text there.")
    if not blank and not text.strip():
        raise InputError(f"{where}: the response {name!r} is empty; fill it in.")
    return text


def _layout(row: Row, named: Iterable[str], where: str, need: str) -> tuple[str, ...]:
    """The fields of the answers; () where there are none, some missing where a pair is torn."""
    wanted = set(named) & set(ANSWERS)
    layouts = [names for names in LAYOUTS if wanted.issubset(names)]
    if not wanted:
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
            f"--config.columns={','.join(complete[0])} or {','.join(complete[1])}."
        )
    torn = [names for names in layouts if len(names) > 1 and present & set(names)]
    if torn and not pairs:
        return max(torn, key=lambda names: len(present & set(names)))
    return complete[0] if complete else ()


def _answer(row: Row, name: str, where: str, whole: bool, blank: bool) -> tuple[Turns, str]:
    """The conversation before an answer, where the field holds it, and the answer's text."""
    value = row.get(name)
    if isinstance(value, str) and not (whole and is_transcript(value)):
        return [], text_of(row, name, where, blank)
    if not value or not isinstance(value, str | list | tuple | Mapping):
        text_of(row, name, where)
    turns = parse_turns(value, f"{where}: {name}")
    if turns[-1]["role"] != "assistant":
        raise InputError(f"{where}: {name} ends with no answer of the assistant; add it.")
    return turns[:-1], text_of({name: turns[-1]["content"]}, name, where, blank)


def _prompt(
    row: Row, named: Iterable[str], before: Mapping[str, Turns], answers: list[str], where: str
) -> tuple[dict[str, Any], str | None]:
    """Fields of a record's prompt ({}: there is none), and the answer that ends its conversation.

    Args:
      before: the conversation that a field of the answers holds, if any.
    """
    names = set(named) & set(PROMPTS) or PROMPTS
    conversations, texts, last = dict(before), {}, None
    for name in PROMPTS:
        value = row.get(name)
        if name not in names or value is None or value == []:
            continue
        if name == "instruction":
            texts[name] = text_of(row, name, where, blank=True)
        elif not isinstance(value, str) or name in PROMPTS[:2] or is_transcript(value):
            turns = parse_turns(value, f"{where}: {name}")
            *rest, end = turns
            is_open = is_transcript(value) and not end["content"]  # it ends in "Assistant:"
            may_end = is_open or end["content"] in answers or (not answers and name != "context")
            if end["role"] == "assistant" and may_end:
                last, turns = (None if is_open else end["content"]), rest
            conversations[name] = turns
        elif name != "context":
            texts[name] = text_of(row, name, where, blank=True)
    input = row.get("input", row.get("context") if isinstance(row.get("context"), str) else None)
    input = "" if input is None else text_of({"input": input}, "input", where, blank=True)
    for name, turns in before.items():
        if turns[0]["role"] == "assistant" and "prompt" in conversations:  # it goes on there
            conversations[name] = conversations["prompt"] + turns
    if any(conversations[name] != before[name] for name in before):
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
        raise InputError(f"{where}: {first}: {reason}.")
    known = {turn["content"].strip() for turn in turns if turn["role"] == "user"}
    known |= {"", transcribe(turns).strip()}
    other = [name for name, others in conversations.items() if others != turns]
    other += [name for name, text in texts.items() if join_prompt(text, input).strip() not in known]
    if other:
        _refuse_two_prompts([first, other[0]], where)
    if len(turns) == 1 and input and join_prompt(texts.get("instruction", ""), input) in known:
        return {"instruction": texts["instruction"], "input": input}, last
    return {"messages": _with_system(row, turns, where)}, last


def _text_prompt(row: Row, texts: Mapping[str, str], input: str, where: str) -> dict[str, Any]:
    text = next((text for text in reversed(texts.values()) if text.strip()), "")
    if not (text.strip() or input.strip()):
        names = "instruction and input are both" if "instruction" in texts else "prompt is"
        raise InputError(f"{where}: {names} empty; give a prompt.")
    whole = join_prompt(text, input)
    if texts.get("prompt", text).strip() not in ("", text.strip(), whole.strip()):
        _refuse_two_prompts(["prompt", "instruction"], where)
    turns = _with_system(row, [{"role": "user", "content": whole}], where)
    return {"messages": turns} if len(turns) > 1 else {"instruction": text, "input": input}


def _with_system(row: Row, turns: Turns, where: str) -> Turns:
    """The turns behind the message of a column "system"."""
    system = row.get("system")
    text = "" if system is None else text_of(row, "system", where, blank=True)
    if not text.strip() or turns[0] == {"role": "system", "content": text}:
        return turns
    return parse_turns([{"role": "system", "content": text}, *turns], where)


def _refuse_two_prompts(names: list[str], where: str) -> None:
    raise InputError(
        f"{where}: {' and '.join(names)} hold two different prompts; choose one of them, as "
        f"--config.columns={names[1]}."
    )


def _common_beginning(
    row: Row, names: tuple[str, ...], answers: list[str], where: str
) -> tuple[dict[str, str], list[str]]:
    """The prompt with which both texts of a TRL pair begin, up to a blank, and their rests."""
    if empty := [name for name in PROMPTS if name in row]:
        raise InputError(f"{where}: {empty[0]} is empty; give a prompt.")
    others = [n for n, value in row.items() if isinstance(value, str) and n not in (*names, "id")]
    begin = ""
    if names == ("chosen", "rejected"):
        pairs = zip(*answers, strict=False)
        begin = "".join(a for a, _ in itertools.takewhile(lambda ab: ab[0] == ab[1], pairs))
        begin = begin[: max(begin.rfind(blank) for blank in " \n\t") + 1].rstrip()
    if others or not begin:
        _field({n: 0 for n in row if n != "instruction"}, "instruction", where)
    rests = {name: text[len(begin) :] for name, text in zip(names, answers, strict=True)}
    return {"instruction": begin, "input": ""}, [text_of(rests, name, where) for name in names]


def _preference(row: Row, name: str, where: str) -> int:
    """Which answer is better, 1 or 2."""
    value = _field(row, name, where)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if name == "overall_preference":
        if is_number and 1 <= abs(value) <= 3:
            return 1 if value < 0 else 2
        allowed = "-3 to -1 (response1 is better) or 1 to 3; ties teach nothing"
    else:
        if value in ("1", "2") or (is_number and value in (1, 2)):
            return int(value)
        allowed = "1 or 2, the better output"
    shown = json.dumps(value, default=str)[:40]
    raise InputError(f"{where}: {name} is {shown}; it must be {allowed}.")


def _finished(row: Row, names: Iterable[str], where: str) -> dict[str, bool]:
    """Which responses ended by themselves; all of which nothing is said. CSV has texts."""
    values = {"true": True, "false": False, "": True, "none": True}
    fields = {name: values.get(str(row.get(name)).lower()) for name in names}
    for name, value in fields.items():
        if value is None:
            raise InputError(f"{where}: {name} is {row[name]!r:.40}; it must be true or false.")
    return fields


def _comparisons(row: Row, where: str) -> list[Row]:
    """A row for each two predictions that are no tie; labels are of (1, 2), (1, 3), …, 0 a tie."""
    texts, labels = parse_list(row.get("predictions")), row.get("preference")
    valid = isinstance(texts, list) and all(isinstance(t, str) and t.strip() for t in texts)
    pairs = list(itertools.combinations(enumerate(texts, 1), 2)) if valid else []
    if not pairs or not isinstance(labels, list) or len(labels) != len(pairs):
        raise InputError(
            f"{where}: has no comparison of predictions; it must have a list `predictions` of "
            "at least two responses and a list `preference` with a label for each pair of them."
        )
    if any(type(label) is not int or label not in (0, 1, 2) for label in labels) or not any(labels):
        raise InputError(
            f"{where}: preference is {json.dumps(labels, default=str)[:40]}; each label must be 1 "
            "(the first is better), 2 (the second) or 0 (a tie), and not all ties."
        )
    id = "" if row.get("id") in (None, "") else f"{row['id']}/"
    rest = {name: value for name, value in row.items() if name not in ANSWERS}
    return [
        rest | {"output_1": a, "output_2": b, "preference": label, "id": id and f"{id}{i}-{j}"}
        for ((i, a), (j, b)), label in zip(pairs, labels, strict=True)
        if label and a != b
    ]


def _spans(spans: Any, length: int, where: str) -> tuple[tuple[int, int], ...]:
    """(start, end) of spans given as {"start", "end"} objects or as [start, end]."""
    if spans is not None and not isinstance(spans, list | tuple):
        raise InputError(f"{where}: error_spans is {spans!r:.40}, not a list of spans.")
    checked = []
    for span in spans or ():
        pair = (span.get("start"), span.get("end")) if isinstance(span, Mapping) else span
        match pair:
            case [start, end] if type(start) is type(end) is int and 0 <= start < end <= length:
                checked.append((start, end))
            case _:
                raise InputError(
                    f"{where}: error_spans holds {span!r:.60}; give start and end as character "
                    f"offsets into the original (0 to {length})."
                )
    return tuple(checked)
