"""Conversations: the turns before an answer, in the forms that data sets have."""

import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from fgrlhf_jax.errors import InputError

ROLES = dict.fromkeys(("system", "developer"), "system")
ROLES |= dict.fromkeys(("user", "human", "prompter"), "user")
ROLES |= dict.fromkeys(("assistant", "gpt", "chatgpt", "bot", "model"), "assistant")
Turns = list[dict[str, str]]
_TURN = re.compile(r"(?:\A\s*|\r?\n\r?\n)(Human|Assistant):")
_STRING_OR_END = re.compile(r'(?s)"(?:[^"\\]|\\.)*"|\}')
_TEXT_PARTS = ("text", "input_text", "output_text")
_NOT_TEXT = {"tools", "functions", "tool_calls", "function_call"}
_NOT_TEXT |= {"audio", "audios", "image", "images", "video", "videos", "chat_template_kwargs"}
_THOUGHTS = {"reasoning", "reasoning_content", "reasoning_details", "thinking", "thinking_blocks"}


def check_texts(value: Mapping[str, Any], where: str, more: Iterable[str] = ()) -> None:
    """Raises InputError for a row or message with more than texts: tools, images, or ``more``."""
    for name in sorted(_NOT_TEXT.union(more) & value.keys()):
        if parse_list(value[name]):
            raise InputError(
                f"{where}: {name} stands beside the text, and only texts can be used; leave such "
                "rows out, or take the field away"
            )


def is_transcript(value: Any) -> bool:
    """Whether a text is of Anthropic's form: "\\n\\nHuman: … \\n\\nAssistant: …".

    Where the blank lines in front are lost, an assistant's turn shows it.
    """
    if not isinstance(value, str) or not (text := value.lstrip()).startswith("Human:"):
        return False
    return value.count("\n", 0, len(value) - len(text)) > 1 or "Assistant" in _TURN.findall(text)


def parse_turns(value: Any, where: str) -> Turns:
    """Messages of OpenAI's, ShareGPT's or Anthropic's form as {"role", "content"}."""
    if is_transcript(value):
        parts = _TURN.split(value)[1:]
        pairs = zip(parts[::2], parts[1::2], strict=True)
        value = [{"role": role.lower(), "content": text.removeprefix(" ")} for role, text in pairs]
    value = parse_list(value)
    if isinstance(value, Mapping):  # one message, or a list of them column by column
        by_column = all(isinstance(column, list | tuple) for column in value.values())
        rows = zip(*value.values(), strict=False) if by_column else [value.values()]
        value = [dict(zip(value, row, strict=True)) for row in rows]
    if not isinstance(value, list | tuple) or not value:
        raise InputError(f"{where}: is no list of messages; give role and content of each")
    turns = []
    for each in value:
        message = each if isinstance(each, Mapping) else {}
        role = message.get("role", message.get("from"))
        content = message.get("content", message.get("value"))
        check_texts(message, where, _THOUGHTS)
        if isinstance(content, list | tuple):
            texts = [_part_text(part) for part in content]
            content = "".join(texts) if all(isinstance(text, str) for text in texts) else None
        if not isinstance(role, str) or role not in ROLES or not isinstance(content, str):
            raise InputError(
                f"{where}: {json.dumps(each, default=str)[:80]} is no message with a role "
                "(system, user or assistant) and a text as content; correct it"
            )
        if ROLES[role] == "system" and turns:
            raise InputError(f"{where}: a system message stands behind others; put it before them")
        if content.strip() or ROLES[role] != "system":
            turns.append({"role": ROLES[role], "content": content})
    return turns or parse_turns([], where)


def _part_text(part: Any) -> Any:
    """The text of a part of a message; None of a thought, an image or the like."""
    if not isinstance(part, Mapping):
        return part
    return part.get("text") if part.get("type", "text") in _TEXT_PARTS else None


def load_json(text: str) -> Any:
    """The JSON value; KeyError(name, where the object ends) for a name that an object has twice."""
    closed = itertools.count()

    def make_object(fields: list[tuple[str, Any]]) -> dict[str, Any]:
        number, row = next(closed), dict(fields)
        if len(row) < len(fields):
            ((twice, _),) = Counter(name for name, _ in fields).most_common(1)
            ends = [match.start() for match in _STRING_OR_END.finditer(text) if match[0] == "}"]
            raise KeyError(twice, ends[number])
        return row

    return json.loads(text, object_pairs_hook=make_object)


def parse_list(value: Any) -> Any:
    """The list in a text that is one in JSON, as a cell of a table; else the value."""
    try:
        return load_json(value) if isinstance(value, str) and value.startswith("[") else value
    except (KeyError, ValueError, RecursionError):
        return value


def join_prompt(instruction: str, input: str) -> str:
    """Instruction, blank line, input."""
    return f"{instruction}\n\n{input}" if input else instruction


def transcribe(turns: Turns) -> str:
    """A conversation as people read it."""
    if len(turns) == 1:
        return turns[0]["content"]
    return "\n\n".join(f"{turn['role'].capitalize()}: {turn['content']}" for turn in turns)
