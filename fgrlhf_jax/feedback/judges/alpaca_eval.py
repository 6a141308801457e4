"""Annotation files of tatsu-lab/alpaca_eval, and the win rates computed from them.

A row has the reference's response, `output_1`, and the model's, `output_2`; `preference` is 1 where
the reference's is better, 2 where the model's is, 1.5 for a draw (0 in old files), anything between
from a judge that gives its confidence, and null without a verdict. The win rate is the mean of
`preference` - 1 over the rows that have one, its error their sample standard deviation / √n.
Win rates here are in percent and lengths in characters, as on its leaderboards.
"""

import dataclasses
import itertools
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fgrlhf_jax.data import conversations, formats, records, row_fields, sources
from fgrlhf_jax.errors import InputError
from fgrlhf_jax.feedback.judges.verdicts import CHOICES
from fgrlhf_jax.functional import length_control, win_rate
from fgrlhf_jax.runtime.files import write_json

_VERDICT_FIELDS = ("shown_first", "said", "reply")


class Verdict(NamedTuple):
    """One reply of a judge: the output that it was shown first, and its choice."""

    shown_first: int  # 1 | 2
    choice: str | None  # "first" | "second" | "tie"; None if the reply has no verdict
    reply: str


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Two responses to one prompt; `preference` as in alpaca_eval, None without a verdict."""

    instruction: str
    input: str
    output_1: str  # the reference's
    output_2: str  # the model's
    preference: float | None = None
    generator_1: str = ""
    generator_2: str = ""
    annotator: str = ""
    verdicts: tuple[Verdict, ...] = ()
    reason: str = ""  # why there is no preference
    finished_1: bool = True  # whether the response ended by itself
    finished_2: bool = True
    messages: tuple[records.Message, ...] = ()  # turns of a chat, in place of an instruction

    @property
    def outcome(self) -> float | None:
        """``preference`` - 1: 1 if the model's response is better, 0 if the reference's is."""
        return None if self.preference is None else self.preference - 1


def prompt_key(record: records.Record | Comparison) -> str:
    """Returns the prompt as one text, the same for a separate input and one joined to it."""
    return conversations.join_prompt(*records.prompt_key(record))


def by_prompt(rows: Iterable) -> dict[tuple[str, int], Any]:
    """Returns rows by (prompt, number of earlier rows with it), so that repeats match in order."""
    seen, numbered = Counter(), {}
    for row in rows:
        prompt = prompt_key(row)
        numbered[prompt, seen[prompt]] = row
        seen[prompt] += 1
    return numbered


def read(path: str) -> list[Comparison]:
    """Reads an annotation file (JSON, JSONL or Parquet); raises InputError for an invalid row."""
    rows = [_comparison(row, where) for where, row in sources.read_rows(path)]
    if not rows:
        raise InputError(f"{path}: holds no rows; give a file with at least one")
    return rows


def _comparison(row: Mapping[str, Any], where: str) -> Comparison:
    row_fields.check_row(row, where)
    fields = {name: value for name, value in row.items() if name not in row_fields.ANSWERS}
    prompt = formats.parse_record(fields, where)
    named = ("generator_1", "generator_2", "annotator", "reason")
    names = "output_1", "output_2", *(name for name in named if row.get(name) is not None)
    texts = {name: row_fields.read_text(row, name, where, blank=True) for name in names}
    value = row.get("preference", "missing")
    if type(value) not in (int, float, type(None)):
        raise InputError(
            f"{where}: preference is {value!r:.40}; it must be a number from 1 (the reference's "
            "is better) to 2, 1.5 or 0 for a draw, or null"
        )
    value = 1.5 if value == 0 else value
    verdicts, possible = row.get("verdicts") or (), itertools.product((1, 2), (*CHOICES, None))
    try:
        read = tuple(Verdict(*(verdict[name] for name in _VERDICT_FIELDS)) for verdict in verdicts)
        if not set(possible).issuperset(verdict[:2] for verdict in read):
            raise ValueError
    except (TypeError, KeyError, ValueError) as error:
        reason = f"verdicts is {verdicts!r:.60}, not what launch.evaluate writes"
        raise InputError(f"{where}: {reason}; remove it") from error
    return Comparison(
        *(prompt.instruction, prompt.input),
        messages=prompt.messages,
        **texts,
        # alpaca_eval drops NaN and other numbers too
        preference=float(value) if value is not None and 1 <= value <= 2 else None,
        verdicts=read,
        finished_1=row_fields.read_flag(row, "finished_1", where),
        finished_2=row_fields.read_flag(row, "finished_2", where),
    )


def write(path: str | os.PathLike, comparisons: Sequence[Comparison]) -> None:
    """Writes an annotation file atomically; fields unknown to alpaca_eval only if they are set."""
    unset = {"verdicts": [], "reason": "", "finished_1": True, "finished_2": True, "messages": ()}
    rows = []
    for comparison in comparisons:
        row = dataclasses.asdict(comparison) | records.alpaca_eval_prompt(comparison)
        row["verdicts"] = [dict(zip(_VERDICT_FIELDS, v, strict=True)) for v in row["verdicts"]]
        rows.append({name: v for name, v in row.items() if v != unset.get(name, ...)})
    write_json(path, rows)


def read_difficulty(path: str) -> length_control.Difficulty:
    """Reads alpaca_eval's `df_gamed.csv`, or a file of two columns: row number and difficulty."""
    names = ("std_delta_len", "instruction_difficulty", "preference")
    difficulties, baselines = {}, []
    for where, row in sources.read_rows(path):
        row_fields.check_row(row, where)
        row = dict(zip(("index", names[1]), row.values(), strict=True)) if len(row) == 2 else row
        try:
            known = [name for name in names if row.get(name) not in (None, "")]
            values = [float(row[name]) if name in known else 0.0 for name in names]
            if names[1] not in known or not np.isfinite(values).all():
                raise ValueError
            difficulties.setdefault(int(row["index"]), values[1])
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(
                f"{where}: is not a row of numbers; give alpaca_eval's df_gamed.csv (index, "
                "instruction_difficulty, std_delta_len, preference) or two columns, row number and "
                "difficulty"
            ) from error
        baselines += [values] if names[2] in known else []
    if not difficulties or sorted(difficulties) != list(range(len(difficulties))):
        raise InputError(f"{path}: index must number the instructions 0, 1, 2, …")
    difficulty_N = np.array([difficulties[index] for index in range(len(difficulties))])
    return length_control.Difficulty(difficulty_N, np.array(baselines, np.float64).reshape(-1, 3))


def summarize(
    comparisons: Sequence[Comparison], difficulty: length_control.Difficulty | None = None
) -> dict[str, float | int | str | None]:
    """The results of one model against one reference; shares and errors in percent.

    Returns:
      win_rate, ``se`` and Wilson's 95 % interval (``win_rate_low``, ``win_rate_high``) over the
      ``n`` rows with a preference; wins, losses, draws; ``unparsed``, the rows without one;
      ``length`` and ``reference_length``, mean characters over all rows; the results of
      ``length_control.win_rate``; ``first_shown`` and ``verdicts`` (:func:`position_bias`).
    """
    for side in ("generator_1", "generator_2"):
        names = sorted({getattr(comparison, side) for comparison in comparisons} - {""})
        if len(names) > 1:
            raise InputError(
                f"{side} is {names[0]} in some rows and {names[1]} in others; give one file for "
                "each pair of a model and a reference"
            )
    outcomes = [comparison.outcome for comparison in comparisons]
    known = np.array([outcome for outcome in outcomes if outcome is not None])
    if not known.size:
        raise InputError(f"none of {len(comparisons)} comparisons has a preference: no win rate")
    lengths = np.array([(len(c.output_1), len(c.output_2)) for c in comparisons])
    controlled = length_control.win_rate(lengths[:, 0] - lengths[:, 1], outcomes, difficulty)
    first_shown, verdicts = position_bias(comparisons)
    share, error = win_rate.mean_and_error(known)
    shares = {"win_rate": share, "se": error}
    shares["win_rate_low"], shares["win_rate_high"] = win_rate.wilson_interval(share, known.size)
    shares |= {"length_controlled_win_rate": controlled.rate, "length_controlled_se": controlled.se}
    return {
        **{name: None if value is None else 100 * value for name, value in shares.items()},
        "n": known.size,
        "wins": int((known > 0.5).sum()),
        "losses": int((known < 0.5).sum()),
        "draws": int((known == 0.5).sum()),
        "unparsed": len(comparisons) - known.size,
        "length": float(np.mean(lengths[:, 1])),
        "reference_length": float(np.mean(lengths[:, 0])),
        "length_controlled_reason": controlled.reason,
        "length_controlled_name": controlled.name,
        "first_shown": first_shown,
        "verdicts": verdicts,
    }


def position_bias(comparisons: Sequence[Comparison]) -> tuple[float | None, int]:
    """Returns the percentage of choices that are of the response shown first, and their number."""
    choices = [verdict.choice for c in comparisons for verdict in c.verdicts]
    first, second = choices.count("first"), choices.count("second")
    return (100 * first / (first + second) if first + second else None), first + second


def paired_difference(
    model: Sequence[Comparison], other: Sequence[Comparison], seed: int = 0
) -> dict[str, float | int]:
    """Returns the win rate of one model minus that of another, against the same reference.

    Returns:
      difference, low and high in percent (``win_rate.paired_bootstrap``), not_better (a share),
      and n, the prompts with a preference in both.
    """
    first, second = by_prompt(model), by_prompt(other)
    alone = [key for key in (*first, *second) if (key in first) != (key in second)]
    if alone:
        raise InputError(
            f"{len(alone)} prompts are of one model only, the first of them {alone[0][0]!r:.60}; "
            "compare both models on the same prompts"
        )
    differing = sum(first[key].output_1 != second[key].output_1 for key in first)
    if differing:
        raise InputError(
            f"output_1 differs at {differing} of {len(first)} prompts; compare both models with "
            "the same reference"
        )
    outcomes = [(first[key].outcome, second[key].outcome) for key in first]
    outcomes = [pair for pair in outcomes if None not in pair]
    if not outcomes:
        raise InputError("no prompt has a preference for both models; there is nothing to pair")
    difference = win_rate.paired_bootstrap(*zip(*outcomes, strict=True), seed)
    percent = {name: 100 * difference[name] for name in ("difference", "low", "high")}
    return {**percent, "not_better": difference["not_better"], "n": len(outcomes)}
