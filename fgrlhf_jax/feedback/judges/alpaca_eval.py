"""Two responses to each of many prompts, and which is better: alpaca_eval's format and figures.

A row has the reference's response, `output_1`, and the model's, `output_2`; `preference` is 1 where
the reference's is better, 2 where the model's is, 1.5 for a draw (0 in old files), anything between
from a judge that says how sure it is, and null where no verdict could be had. This is how
tatsu-lab/alpaca_eval has it (`src/alpaca_eval/metrics/helpers.py`, `winrate.py`): the win rate is
the mean of `preference` - 1 over the rows that have one, its error their sample standard deviation
/ √n. Figures here are in percent and lengths in characters, as on its leaderboards.
"""

import contextlib
import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.feedback.judges import length_control
from fgrlhf_jax.functional import win_rate as evaluation
from fgrlhf_jax.runtime.files import write_json

_TEXTS = ("instruction", "output_1", "output_2")
_NAMES = ("input", "generator_1", "generator_2", "annotator", "reason")


class Verdict(NamedTuple):
    """One answer of a judge: which output it was shown first, and what it said of the two."""

    shown_first: int  # 1 | 2
    said: str | None  # "first" | "second" | "tie"; None where the reply is no verdict
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

    @property
    def prompt(self) -> tuple[str, str]:
        """What rows of different files are matched by."""
        return self.instruction.strip(), self.input.strip()


def read(path: str | os.PathLike) -> list[Comparison]:
    """The rows of an annotation file: JSON, a list of objects, or JSONL.

    Raises:
      InputError: `file:row N: …` for the first row that is not in the format.
    """
    rows = read_rows(path)
    return [_comparison(row, f"{path}:row {number}") for number, row in enumerate(rows, 1)]


def read_rows(path: str | os.PathLike) -> list[dict[str, Any]]:
    """The objects of a JSON list or of JSONL, whatever their fields.

    Raises:
      InputError: when there are none, or the file cannot be read.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}); check the path"
        ) from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: invalid UTF-8; save the file as UTF-8") from error
    try:
        rows = _parse(text)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{path}: malformed JSON ({error}); give a list of objects, or an object a line"
        ) from error
    if not rows:
        raise InputError(f"{path}: holds no rows; give a file with at least one")
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise InputError(f"{path}:row {number}: is not an object; each row is {{field: …}}")
        try:
            json.dumps(row, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"{path}:row {number}: holds invalid Unicode (half of a surrogate pair); remove it"
            ) from error
    return rows


def _parse(text: str) -> list:
    if text.lstrip().startswith("["):
        return json.loads(text)
    lines = [line for line in text.split("\n") if line.strip()]
    try:
        return [json.loads(line) for line in lines]
    except ValueError:
        with contextlib.suppress(ValueError):
            return [json.loads(text)]  # one object, written over several lines
        raise


def _comparison(row: Mapping[str, Any], where: str) -> Comparison:
    missing = [name for name in (*_TEXTS, "preference") if name not in row]
    if missing:
        raise InputError(
            f"{where}: misses {', '.join(missing)}; an annotation of alpaca_eval has "
            "instruction, output_1 (the reference's), output_2 (the model's) and preference"
        )
    texts = {name: row[name] for name in _TEXTS}
    texts |= {name: "" if row.get(name) is None else row[name] for name in _NAMES}
    for name, text in texts.items():
        if not isinstance(text, str):
            raise InputError(f"{where}: {name} is {text!r:.40}, not a string; put a text there")
    value = row["preference"]
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise InputError(
            f"{where}: preference is {value!r:.40}; it must be a number from 1 (the reference's "
            "is better) to 2, 1.5 or 0 for a draw, or null"
        )
    if value == 0:
        value = 1.5
    if value is not None and not 1 <= value <= 2:  # nor NaN: alpaca_eval drops it too
        value = None
    finished = {name: row.get(name, True) is not False for name in ("finished_1", "finished_2")}
    return Comparison(
        **texts,
        **finished,
        preference=None if value is None else float(value),
        verdicts=_verdicts(row.get("verdicts") or (), where),
    )


def _verdicts(given: Any, where: str) -> tuple[Verdict, ...]:
    try:
        verdicts = tuple(Verdict(**verdict) for verdict in given)
        valid = all(
            v.shown_first in (1, 2) and v.said in ("first", "second", "tie", None)
            for v in verdicts
        )
    except TypeError:
        valid = False
    if not valid:
        raise InputError(f"{where}: verdicts is {given!r:.60}, not as we write it; remove it")
    return verdicts


def write(path: str | os.PathLike, comparisons: Sequence[Comparison]) -> None:
    """All or nothing, as alpaca_eval has it; what is ours beyond that only where it says something.

    Raises:
      InputError: when the file cannot be written.
    """
    rows = []
    for one in comparisons:
        row = dataclasses.asdict(one) | {"verdicts": [v._asdict() for v in one.verdicts]}
        ours = {"verdicts": [], "reason": "", "finished_1": True, "finished_2": True}
        rows.append({name: v for name, v in row.items() if name not in ours or v != ours[name]})
    write_json(Path(path), rows)


def summary(comparisons: Sequence[Comparison]) -> dict[str, float | int | str | None]:
    """What is to be said of one model against one reference; shares and errors in percent.

    Returns:
      win_rate and ``se`` over the ``n`` rows with a preference; wins, losses, draws; ``unparsed``,
      the rows without one; ``length`` and ``reference_length``, mean characters over all rows;
      length_controlled_win_rate, length_controlled_se and, where they are None,
      length_controlled_reason (``length_control``);
      ``first_shown``, the share of a judge's decided verdicts for the response it was shown first
      (``verdicts``: how many these are; 50 is no bias), None without such.

    Raises:
      InputError: without one preference, or with responses of several models on one side.
    """
    for side in ("generator_1", "generator_2"):
        names = sorted({getattr(one, side) for one in comparisons} - {""})
        if len(names) > 1:
            raise InputError(
                f"{side} is {names[0]} in some rows and {names[1]} in others; give one file for "
                "each pair of a model and a reference"
            )
    won = np.array([one.preference - 1 for one in comparisons if one.preference is not None])
    if not won.size:
        raise InputError(
            f"none of {len(comparisons)} comparisons has a preference, so there is no win rate"
        )
    mean, error = evaluation.mean_and_error(won)
    controlled = length_control.win_rate(
        [len(one.output_1) - len(one.output_2) for one in comparisons],
        [None if one.preference is None else one.preference - 1 for one in comparisons],
    )
    said = [v.said for c in comparisons for v in c.verdicts if v.said in ("first", "second")]
    return {
        "win_rate": 100 * mean,
        "se": _percent(error),
        "n": won.size,
        "wins": int((won > 0.5).sum()),
        "losses": int((won < 0.5).sum()),
        "draws": int((won == 0.5).sum()),
        "unparsed": len(comparisons) - won.size,
        "length": float(np.mean([len(one.output_2) for one in comparisons])),
        "reference_length": float(np.mean([len(one.output_1) for one in comparisons])),
        "length_controlled_win_rate": _percent(controlled.rate),
        "length_controlled_se": _percent(controlled.se),
        "length_controlled_reason": controlled.reason,
        "first_shown": 100 * said.count("first") / len(said) if said else None,
        "verdicts": len(said),
    }


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def paired(
    model: Sequence[Comparison], other: Sequence[Comparison], seed: int = 0
) -> dict[str, float | int]:
    """Two models against the same reference: the win rate of the first less that of the second.

    Returns:
      difference, low and high in percent (``evaluation.paired_bootstrap``), not_better (a share),
      and n, the prompts with a preference in both.

    Raises:
      InputError: when the prompts or the reference's responses are not the same.
    """
    sides = []
    for number, rows in enumerate((model, other), 1):
        by_prompt = {one.prompt: one for one in rows}
        if len(by_prompt) < len(rows):
            raise InputError(
                f"of the {len(rows)} comparisons of model {number} some have the same prompt; two "
                "models are compared on prompts that stand once"
            )
        sides.append(by_prompt)
    first, second = sides
    alone = [prompt for prompt in (*first, *second) if (prompt in first) != (prompt in second)]
    if alone:
        raise InputError(
            f"{len(alone)} prompts are of one model only, the first of them {alone[0][0]!r:.60}; "
            "compare both models on the same prompts"
        )
    differing = sum(first[prompt].output_1 != second[prompt].output_1 for prompt in first)
    if differing:
        raise InputError(
            f"output_1 differs at {differing} of {len(first)} prompts; compare both models with "
            "the same reference"
        )
    both = [
        (first[prompt].preference - 1, second[prompt].preference - 1)
        for prompt in first
        if first[prompt].preference is not None and second[prompt].preference is not None
    ]
    if not both:
        raise InputError("no prompt has a preference for both models; there is nothing to pair")
    found = evaluation.paired_bootstrap(*zip(*both, strict=True), seed)
    percent = {name: 100 * found[name] for name in ("difference", "low", "high")}
    return {**percent, "not_better": found["not_better"], "n": len(both)}
