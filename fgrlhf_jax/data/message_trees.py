"""Reads message trees in OpenAssistant's format (OASST): a row per message, or per tree."""

import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from fgrlhf_jax.data.row_fields import to_number
from fgrlhf_jax.data.tables import Rows
from fgrlhf_jax.errors import InputError

Row = Mapping[str, Any]


def unfold(rows: Iterable[tuple[str, Any]], need: str = "any") -> Rows:
    """Converts rows of message trees to rows of prompts and responses; others stay unchanged.

    Ranked responses to one message (0 is best) make pairs: each with every worse one.

    Args:
      need: "pairs": only pairs; "responses": only the best response to a message; "prompts": only
        the messages to answer; "any", "rows": pairs, and each response without a rank.
    """
    nodes: dict[str, tuple[str, Row]] = {}
    for where, row in rows:
        messages = messages_of(row)
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


def messages_of(row: Any) -> list[Row]:
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
