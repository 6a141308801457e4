"""Refuses rows whose labels, weights or scores contradict what would be learned from them."""

import re
from collections.abc import Iterable, Mapping

from fgrlhf_jax.data.conversations import parse_list
from fgrlhf_jax.data.row_fields import Row, read_flag, to_number
from fgrlhf_jax.errors import InputError

# Fields in which the better answer has the higher value, unlike rank or toxicity_score.
_SCORE = re.compile(r"(?=.*chosen)(?:(?:chosen|score|rating|reward|rm|avg|mean|overall)s?[-_ .]?)+")

_LEFT_OUT = ("mask", "ignore")  # flags that are true for a turn not to learn


def check_trained(row: Row, fields: Iterable[str], where: str) -> None:
    """Raises InputError for a response (last turn of ``fields``) marked as not to be learned."""
    turns = [parse_list(row.get(name)) for name in fields]
    last = [each[-1] for each in turns if isinstance(each, list | tuple) and each]
    # OpenAI's files have a weight, axolotl's and SWIFT's a flag; TRL's completions a label,
    # LLaMA-Factory's rows a tag.
    label = read_flag(row, "label", where) if "completion" in fields else row.get("label")
    marked = [turn for turn in last if isinstance(turn, Mapping)]
    names = "weight", "train", "training", "loss", "loss_scale", "loss_weight"
    flags = [(name, turn.get(name)) for turn in marked for name in names]
    flags += [("label", label), ("kto_tag", row.get("kto_tag"))]  # other labels may be 0
    flags += [(name, turn[name]) for turn in marked for name in _LEFT_OUT if name in turn]
    for name, value in flags:
        is_zero = name not in ("label", *_LEFT_OUT) and to_number(value) == 0
        if is_zero or str(value).lower() == ("true" if name in _LEFT_OUT else "false"):
            reason = f"{name} is {value}".lower()
            raise InputError(f"{where}: {reason}, a response not to learn; leave it out")


def check_scores(row: Row, where: str) -> None:
    """Raises InputError if a row's scores or ratings are higher for the rejected answer."""
    for name in filter(_SCORE.fullmatch, row):
        other = name.replace("chosen", "rejected")
        values = [to_number(row.get(field)) for field in (name, other)]
        if values[0] < values[1]:
            raise InputError(
                f"{where}: {name} is {values[0]:g}, and {other} is {values[1]:g}; exchange the two "
                "answers, or take these fields away"
            )
    if to_number(row.get("margin")) < 0:  # TRL: score of chosen minus score of rejected
        reason = f"margin is {row['margin']}: the rejected answer is better"
        raise InputError(f"{where}: {reason}; exchange the two answers, or take this field away")
