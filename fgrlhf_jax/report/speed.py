"""Table 3, which arm is faster: steps and seconds to a score, and a test of two arms' curves."""

import math
from collections.abc import Sequence

import numpy as np

from fgrlhf_jax.functional.win_rate import mean_over_seeds, permutation_test, smooth, steps_to_reach

SHARES_OF_GAIN = {"steps_80": 0.80, "steps_95": 0.95}
CRITERIA = (*SHARES_OF_GAIN, "steps_to_gold")
SIGNIFICANCE = 0.05  # largest false-positive rate of the test, over all criteria


def gold_target(curves: Sequence[list[dict]]) -> float | None:
    """The fixed score of Table 3: 80 % of the way from the baseline's start to its best score.

    The best score is the lowest of its seeds' best smoothed scores, so every seed of the baseline
    reaches it. None if a seed has no gain.
    """
    return _target([_scores(curve) for curve in curves])


def time_arm(
    curves: list[list[dict]], seconds_per_step: list[float | None], target: float | None
) -> dict:
    """Per criterion: mean steps, their error over seeds, seconds, and how many seeds reached it."""
    per_step = mean_over_seeds([s for s in seconds_per_step if s is not None])["mean"]
    row = {"seeds": len(curves), "seconds_per_step": per_step}
    for name in CRITERIA:
        values = [_first_step(_steps(curve), _scores(curve), name, target) for curve in curves]
        steps = mean_over_seeds(values)
        row[name], row[f"{name}_se"] = steps["mean"], steps["se"]
        row[f"{name}_reached"] = sum(value is not None for value in values)
        known = steps["mean"] is not None and per_step is not None
        row[name.replace("steps", "seconds")] = steps["mean"] * per_step if known else None
    return row


def compare_arms(
    first: list[list[dict]], second: list[list[dict]], target: float | None, against_baseline: bool
) -> dict:
    """Tests whether two arms differ in steps, by all criteria at once: see ``permutation_test``.

    The test permutes the labels of whole curves, one per seed. A criterion that is never reached
    counts as the step after the last evaluation. With S seeds per arm no p is below
    2 / binomial(2S, S), because swapping the arms only changes a difference's sign; half of that if
    the target is recomputed. The minimum is 0.1 with three seeds and 0.03 with four.

    Args:
      target: the fixed score; None leaves out its criterion.
      against_baseline: the target is the second arm's ``gold_target``, so each permutation
        recomputes it from the curves labelled as the second arm.

    Returns:
      For each criterion a ``difference`` in mean steps (below 0: the first arm is faster) and its
      corrected ``p``; ``seeds``; and ``least_p``, the smallest possible p.
    """
    names = [name for name in CRITERIA if name in SHARES_OF_GAIN or target is not None]
    runs = [(_steps(curve), _scores(curve)) for curve in (*first, *second)]
    runs = [(*run, [_censored(*run, name, None) for name in SHARES_OF_GAIN]) for run in runs]

    def statistics(first_runs: list, second_runs: list) -> list[float]:
        goal = _target([scores for _, scores, _ in second_runs]) if against_baseline else target
        columns = []
        for side in (first_runs, second_runs):
            rows = [
                [*shares, *([] if target is None else [_censored(steps, scores, names[-1], goal)])]
                for steps, scores, shares in side
            ]
            columns.append(np.mean(rows, axis=0))
        return columns[0] - columns[1]

    differences, p = permutation_test(runs[: len(first)], runs[len(first) :], statistics)
    tested = zip(names, differences, p, strict=True)
    is_symmetric = len(first) == len(second) and (target is None or not against_baseline)
    return {
        "seeds": min(len(first), len(second)),
        "least_p": (1 + is_symmetric) / math.comb(len(runs), len(first)),
        **{name: {"difference": d, "p": p_value} for name, d, p_value in tested},
    }


def _steps(curve: list[dict]) -> list[int]:
    return [point["step"] for point in curve]


def _scores(curve: list[dict]) -> np.ndarray:
    return smooth([point["gold"] for point in curve])


def _target(scores: list[np.ndarray]) -> float | None:
    start = float(np.mean([seed_scores[0] for seed_scores in scores]))
    best = float(min(seed_scores.max() for seed_scores in scores))
    return start + 0.8 * (best - start) if best > start else None


def _first_step(
    steps: list[int], scores: np.ndarray, criterion: str, target: float | None
) -> int | None:
    if criterion in SHARES_OF_GAIN:
        return steps_to_reach(steps, scores, share=SHARES_OF_GAIN[criterion])
    return None if target is None else steps_to_reach(steps, scores, target=target)


def _censored(steps: list[int], scores: np.ndarray, criterion: str, target: float | None) -> int:
    reached = _first_step(steps, scores, criterion, target)
    interval = steps[-1] - steps[-2] if len(steps) > 1 else 1
    return steps[-1] + interval if reached is None else reached
