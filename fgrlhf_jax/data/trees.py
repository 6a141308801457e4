"""Message trees, as OpenAssistant's (OASST): a row a message, with its parent, or a row a tree."""

import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

Row = Mapping[str, Any]


def unfold(rows: Iterable[tuple[str, Any]], need: str = "any") -> Iterator[tuple[str, Any]]:
    """Rows as they are; those of message trees become rows of prompts and answers.

    Answers to one message that have ranks (0 is best) make pairs, each with each of a lower rank.

    Args:
      need: "pairs": only these; "responses": only the best answer to a message; "prompts": only
        the messages to answer; "any": the pairs, and each answer without a rank.
    """
    rows = iter(rows)
    first = next(rows, ("", None))
    rows = itertools.chain([first] if first[0] else [], rows)
    if not isinstance(first[1], Mapping) or not (_is_message(first[1]) or _is_tree(first[1])):
        yield from rows
        return
    nodes: dict[Any, tuple[str, Row]] = {}
    answers = defaultdict(list)
    for where, row in rows:
        if not isinstance(row, Mapping) or not (_is_message(row) or _is_tree(row)):
            yield where, row
            continue
        for message in _messages(row["prompt"] if _is_tree(row) else row, None):
            if not message.get("deleted") and message.get("review_result") is not False:
                nodes[str(message["message_id"])] = where, message
    for _, message in nodes.values():
        if message.get("role") == "assistant":
            answers[str(message.get("parent_id"))].append(message)
    for id, (where, message) in nodes.items():
        if message.get("role") == "assistant":
            continue
        prompt = {"id": id, "messages": _path(nodes, id)}
        replies = sorted(answers[id], key=_rank)
        ranked = [reply for reply in replies if _rank(reply) < math.inf]
        ranked = ranked if len(set(map(_rank, ranked))) > 1 else []
        if need == "prompts":
            yield where, prompt
        elif need == "responses":
            yield from ((where, prompt | {"output": reply["text"]}) for reply in replies[:1])
        else:
            for better, worse in itertools.combinations(ranked, 2):
                if _rank(better) < _rank(worse):
                    yield where, prompt | {"chosen": better["text"], "rejected": worse["text"]}
            alone = [reply for reply in replies if reply not in ranked] if need == "any" else []
            yield from ((where, prompt | {"output": reply["text"]}) for reply in alone)


def _is_message(row: Row) -> bool:
    return {"message_id", "parent_id", "text", "role"} <= row.keys()


def _is_tree(row: Row) -> bool:
    prompt = row.get("prompt")
    return isinstance(prompt, Mapping) and {"message_id", "text", "role"} <= prompt.keys()


def _messages(message: Row, parent: Any) -> Iterator[Row]:
    """A message and those below it, each with its parent."""
    waiting = [(message, message.get("parent_id") or parent)]
    while waiting:
        message, parent = waiting.pop()
        yield dict(message) | {"parent_id": parent}
        replies = message.get("replies")
        for reply in replies if isinstance(replies, list) else ():
            if isinstance(reply, Mapping) and {"message_id", "text"} <= reply.keys():
                waiting.append((reply, message["message_id"]))


def _rank(message: Row) -> float:
    rank = message.get("rank")
    return rank if isinstance(rank, int | float) and not isinstance(rank, bool) else math.inf


def _path(nodes: Mapping[str, tuple[str, Row]], id: str) -> list[Row] | None:
    """The messages from the root to one, None where one between them is missing."""
    path, seen = [], set()
    while id not in seen and id in nodes:
        seen.add(id)
        message = nodes[id][1]
        path.append({"role": message.get("role"), "content": message["text"]})
        if message.get("parent_id") is None:
            return path[::-1]
        id = str(message["parent_id"])
    return None
