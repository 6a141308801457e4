"""Parses messages in rows: texts that hold lists of messages, and message trees.

The trees are in OpenAssistant's format (OASST): a row per message with its parent, or per tree.
"""

import ast
import itertools
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from fgrlhf_jax.data.conversations import ROLES, load_json
from fgrlhf_jax.data.row_fields import to_number
from fgrlhf_jax.data.tables import Rows
from fgrlhf_jax.errors import InputError

Row = Mapping[str, Any]

# Fields that are never messages.
_TEXT_FIELDS = {"instruction", "raw_instruction", "input", "system", "output", "response"}
_TEXT_FIELDS |= {"original", "edited", "output_1", "output_2", "text"}
# Matches a text with an object that begins like a message and has a role and a content.
MESSAGES = re.compile(
    r"(?s)\s*+(?:\[\s*+)?\{\s*(?=[\"'](?:role|content|from|value)[\"']\s*:)"
    rf"(?=.*[\"'](?:role|from)[\"']\s*:\s*[\"'](?:{'|'.join(ROLES)})[\"'])"
    r"(?=.*[\"'](?:content|value)[\"']\s*:)"
)


def with_messages(rows: Rows) -> Rows:
    """Replaces texts that are lists of messages, in JSON or Python's notation, by the lists."""
    for where, row in rows:
        try:
            if isinstance(row, dict):
                row = {n: v if n in _TEXT_FIELDS else _parse(v, where) for n, v in row.items()}
        except InputError as error:
            row = error
        yield where, row


def _parse(text: Any, where: str) -> Any:
    if not (isinstance(text, str) and MESSAGES.match(text)):
        return text
    for parse in (load_json, ast.literal_eval):
        try:
            return parse(text)
        except KeyError as error:
            reason = f"a message has the field {error.args[0]!r:.60} twice; remove one"
            raise InputError(f"{where}: {reason}") from error
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    reason = f"{text[:60]!r} is not a list of messages in JSON"
    raise InputError(f"{where}: {reason}; correct it, or save lists of objects")


def unfold(rows: Iterable[tuple[str, Any]], need: str = "any") -> Rows:
    """Converts rows of message trees to rows of prompts and responses; others stay unchanged.

    Ranked responses to one message (0 is best) make pairs: each with every worse one.

    Args:
      need: "pairs": only pairs; "responses": only the best response to a message; "prompts": only
        the messages to answer; "any", "rows": pairs, and each response without a rank.
    """
    rows = iter(rows)
    head = [*itertools.islice(rows, 1)]
    rows = itertools.chain(head, rows)
    if not (head and _messages(head[0][1])):
        yield from rows
        return
    nodes: dict[str, tuple[str, Row]] = {}
    for where, row in rows:
        messages = _messages(row)
        if not messages:
            yield where, row
        for message in messages:
            deleted, review = (str(message.get(n)).lower() for n in ("deleted", "review_result"))
            if deleted != "true" and review != "false":  # CSV has texts
                id = str(message["message_id"])
                if nodes.setdefault(id, (where, message))[1] != message:
                    reason = f"message_id {id:.60} is another message's too"
                    yield where, InputError(f"{where}: {reason}; give one of them another id")
    answers = defaultdict(list)
    for _, message in nodes.values():
        if message["role"] == "assistant":
            answers[str(message.get("parent_id"))].append(message)
    for id, (where, message) in nodes.items():
        if message["role"] != "assistant":
            prompt = {"id": id, "messages": _path(nodes, id)}
            for fields in _answers(sorted(answers[id], key=_rank), need):
                yield where, prompt | fields


def _answers(replies: list[Row], need: str) -> Iterator[Row]:
    """Yields the response fields of each row about one message; ``replies`` are sorted by rank."""
    ranks = [_rank(reply) for reply in replies]
    if need == "prompts":
        yield {}
    elif need == "responses":
        yield from ({"output": reply["text"]} for reply in replies[:1])
    else:
        indices = range(len(replies))
        pairs = [(i, j) for i, j in itertools.combinations(indices, 2) if ranks[i] < ranks[j]]
        pairs = [(i, j) for i, j in pairs if ranks[j] < math.inf]
        for i, j in pairs:
            yield {"chosen": replies[i]["text"], "rejected": replies[j]["text"]}
        unpaired = {*indices}.difference(*pairs) if need in ("any", "rows") else ()
        yield from ({"output": replies[index]["text"]} for index in sorted(unpaired))


def _messages(row: Any) -> list[Row]:
    """The message or the messages of the tree in a row; [] if it has none."""
    if not isinstance(row, Mapping):
        return []
    messages, pending = [], [row if "parent_id" in row else row.get("prompt")]
    while pending:
        message = pending.pop()
        if isinstance(message, Mapping) and {"message_id", "text", "role"} <= message.keys():
            messages.append(message)
            replies = message.get("replies")
            for reply in replies if isinstance(replies, list) else ():
                if isinstance(reply, Mapping):
                    pending.append(dict(reply) | {"parent_id": message["message_id"]})
    return messages


def _rank(message: Row) -> float:
    rank = to_number(message.get("rank"))
    return math.inf if math.isnan(rank) else rank


def _path(nodes: Mapping[str, tuple[str, Row]], id: str) -> list[Row] | None:
    """The messages from the root to message ``id``; None if one between them is missing."""
    path: dict[str, Row] = {}
    while id in nodes and id not in path:
        message = nodes[id][1]
        path[id] = {"role": message["role"], "content": message["text"]}
        if message.get("parent_id") in (None, ""):
            return [*path.values()][::-1]
        id = str(message["parent_id"])
    return None
