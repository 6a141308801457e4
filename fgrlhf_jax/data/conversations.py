"""Parsing of conversations in the formats of common data sets."""

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
_TEXT_PARTS = ("text", "input_text", "output_text", "refusal")
_NOT_TEXT = {"tools", "functions", "tool_calls", "function_call"}
_NOT_TEXT |= {"audio", "audios", "image", "images", "video", "videos", "chat_template_kwargs"}
_THOUGHTS = {"reasoning", "reasoning_content", "reasoning_details", "thinking", "thinking_blocks"}
# Of an answer: Mistral's, Qwen's, axolotl's, and those of logs.
_PARTS = {"prefix", "partial", "train_detail", "truncated"}


def check_texts(value: Mapping[str, Any], where: str, fields: Iterable[str] = ()) -> None:
    """Raises InputError for a row or message with tools, images or the fields in ``fields``."""
    for name in sorted(_NOT_TEXT.union(fields) & value.keys()):
        if parse_list(value[name]):
            raise InputError(
                f"{where}: has the field {name}, and only whole texts are supported; leave such "
                "rows out, or remove the field"
            )


def is_transcript(value: Any) -> bool:
    """Whether a text has Anthropic's format: "\\n\\nHuman: … \\n\\nAssistant: …".

    Without the blank lines at its beginning, it needs an assistant's turn.
    """
    if not isinstance(value, str) or not (text := value.lstrip()).startswith("Human:"):
        return False
    return value.count("\n", 0, len(value) - len(text)) > 1 or "Assistant" in _TURN.findall(text)


def parse_turns(value: Any, where: str) -> Turns:
    """Converts messages in OpenAI's, ShareGPT's or Anthropic's format to {"role", "content"}."""
    if is_transcript(value):
        parts = _TURN.split(value)[1:]
        pairs = zip(parts[::2], parts[1::2], strict=True)
        value = [{"role": role.lower(), "content": text.removeprefix(" ")} for role, text in pairs]
    value = parse_list(value)
    if isinstance(value, Mapping):  # one message, or a table with a column per field
        by_column = all(isinstance(column, list | tuple) for column in value.values())
        rows = zip(*value.values(), strict=False) if by_column else [value.values()]
        value = [dict(zip(value, row, strict=True)) for row in rows]
    if not isinstance(value, list | tuple) or not value:
        raise InputError(f"{where}: is not a list of messages; give role and content of each")
    turns = []
    for item in value:
        message = item if isinstance(item, Mapping) else {}
        role = message.get("role", message.get("from"))
        content = message.get("content", message.get("value"))
        check_texts(message, where, _THOUGHTS | _PARTS)
        if isinstance(content, list | tuple):
            texts = [_part_text(part) for part in content]
            content = "".join(texts) if all(isinstance(text, str) for text in texts) else None
        if not isinstance(role, str) or role not in ROLES or not isinstance(content, str):
            raise InputError(
                f"{where}: {json.dumps(item, default=str)[:80]} is not a message with a role "
                "(system, user or assistant) and a text as content; correct it"
            )
        if ROLES[role] == "system" and turns:
            raise InputError(f"{where}: a system message comes after others; put it first")
        if content.strip() or ROLES[role] != "system":
            turns.append({"role": ROLES[role], "content": content})
    return turns or parse_turns([], where)


def _part_text(part: Any) -> Any:
    """The text of a part of a message; None for a thought, an image and other types."""
    if not isinstance(part, Mapping):
        return part
    kind = part.get("type", "text")
    return part.get("refusal" if kind == "refusal" else "text") if kind in _TEXT_PARTS else None


def load_json(text: str) -> Any:
    """Parses JSON; raises KeyError(name, end of the object) for a duplicate field in an object."""
    object_numbers = itertools.count()

    def make_object(fields: list[tuple[str, Any]]) -> dict[str, Any]:
        number, row = next(object_numbers), dict(fields)
        if len(row) < len(fields):
            ((duplicate, _),) = Counter(name for name, _ in fields).most_common(1)
            ends = [match.start() for match in _STRING_OR_END.finditer(text) if match[0] == "}"]
            raise KeyError(duplicate, ends[number])
        return row

    return json.loads(text, object_pairs_hook=make_object)


def parse_list(value: Any) -> Any:
    """Parses a text that is a JSON list, such as a CSV cell; returns other values unchanged."""
    try:
        return load_json(value) if isinstance(value, str) and value.startswith("[") else value
    except (KeyError, ValueError, RecursionError):
        return value


def join_prompt(instruction: str, input: str) -> str:
    """Joins instruction, blank line and input."""
    return f"{instruction}\n\n{input}" if input else instruction


def transcribe(turns: Turns) -> str:
    """A conversation as one readable text, "User: …", "Assistant: …"."""
    if len(turns) == 1:
        return turns[0]["content"]
    return "\n\n".join(f"{turn['role'].capitalize()}: {turn['content']}" for turn in turns)
