"""Win rates, their errors, and steps to a score: Tables 1 and 3 of the paper, in NumPy.

Standard errors are over prompts, or over seeds where there are several. A number that cannot be
computed is None.
"""

import itertools
from collections.abc import Sequence

import numpy as np

from fgrlhf_jax.errors import InputError

_CHUNK = 2**22  # prompts drawn at a time


def mean_and_error(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean and its standard error (sample standard deviation / √n), None of one value."""
    values = np.asarray(values, np.float64)
    if values.size < 2:
        return float(values.mean()), None
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(values.size))


def wilson_interval(share: float, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's score interval of a share of ``n`` comparisons, right at 0 and 1 too.

    With draws as one half it is a little wide: they vary less than the binomial distribution.

    Args:
      z: the normal quantile, that of 95 %.

    Returns:
      (low, high): all p for which |share - p| <= z √(p (1 - p) / n).
    """
    center, scale = share + z**2 / (2 * n), 1 + z**2 / n
    half = z * np.sqrt(share * (1 - share) / n + (z / (2 * n)) ** 2)
    return max(0.0, float((center - half) / scale)), min(1.0, float((center + half) / scale))


def outcomes(
    scores: Sequence[float], reference: Sequence[float], tolerance: float = 1e-6
) -> np.ndarray:
    """Whether a policy wins against a reference, prompt by prompt.

    Args:
      scores: float[n], the judge's scores of the policy's responses, higher is better.
      reference: float[n], those of the reference's responses to the same prompts.

    Returns:
      float[n]: 1 won, 0.5 drawn (scores within ``tolerance``), 0 lost.

    Raises:
      InputError: where the lengths differ, or a score is not finite.
    """
    scores, reference = _vector("scores", scores), _vector("reference", reference)
    if scores.size != reference.size:
        raise InputError(
            f"{scores.size} scores cannot be compared with {reference.size} of the reference; "
            "judge both on the same prompts"
        )
    margin = scores - reference
    return np.where(np.abs(margin) <= tolerance, 0.5, (margin > 0).astype(np.float64))


def paired_bootstrap(
    outcomes_a: Sequence[float], outcomes_b: Sequence[float], seed: int, rounds: int = 2000
) -> dict[str, float]:
    """Bootstrap over prompts of the difference between two policies' outcomes.

    Args:
      outcomes_a: float[n], outcome of policy a at each prompt (a mean over seeds, say).
      outcomes_b: float[n], of policy b at the same prompts.

    Returns:
      difference (mean of a less mean of b), low and high (its 95 % percentile interval), and
      not_better, the share of rounds in which a is not better than b.
    """
    a, b = _vector("outcomes_a", outcomes_a), _vector("outcomes_b", outcomes_b)
    if a.size != b.size:
        raise InputError(f"{a.size} outcomes cannot be paired with {b.size}")
    if rounds < 1:
        raise InputError(f"rounds={rounds}: a bootstrap needs at least one")
    rng, difference = np.random.default_rng(seed), a - b
    drawn = np.empty(rounds)
    step = max(1, _CHUNK // a.size)
    for start in range(0, rounds, step):
        size = (min(step, rounds - start), a.size)
        drawn[start : start + step] = difference[rng.integers(0, a.size, size)].mean(axis=1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return {
        "difference": float(difference.mean()),
        "low": float(low),
        "high": float(high),
        # A sum of outcomes that is 0 on paper may be 1e-17 here.
        "not_better": float((drawn <= 1e-12).mean()),
    }


def mean_over_seeds(values: Sequence[float | None]) -> dict[str, float | int | None]:
    """``mean``, ``se`` and ``n`` of one value a seed.

    The error of a single seed is None. If any seed has no value the mean is None too: the mean of
    the others would be biased.
    """
    if not values or any(v is None or not np.isfinite(v) for v in values):
        return {"mean": None, "se": None, "n": len(values)}
    mean, error = mean_and_error(values)
    return {"mean": mean, "se": error, "n": len(values)}


def smooth(scores: Sequence[float]) -> np.ndarray:
    """Averages each evaluation with its two neighbours, the last one with the one before it.

    The first one stays as it is: it is the policy before training, which all arms share.
    """
    scores = _vector("curve_scores", scores)
    return np.array([scores[0], *(scores[k - 1 : k + 2].mean() for k in range(1, scores.size))])


def steps_to_reach(
    curve_steps: Sequence[int],
    curve_scores: Sequence[float],
    share: float = 0.95,
    target: float | None = None,
) -> int | None:
    """The first step at which the smoothed score reaches a target; an entry of Table 3.

    Args:
      curve_steps: int[n], increasing; the first is before training.
      curve_scores: float[n], the judge's mean score at each, smoothed here by :func:`smooth`.
      share: the target, as a share of the way from the first to the best smoothed score.
      target: a fixed score, in the place of ``share``.

    Returns:
      None where it is never reached, or where the best is no better than the start.
    """
    steps, scores = list(curve_steps), smooth(curve_scores)
    if len(steps) != scores.size or any(a >= b for a, b in itertools.pairwise(steps)):
        raise InputError("a curve needs increasing steps, and one score at each of them")
    if target is None:
        gain = scores - scores[0]
        reached = (gain >= share * gain.max()) & (gain.max() > 0)
    else:
        reached = scores >= target
    return int(steps[np.argmax(reached)]) if reached.any() else None


def _vector(name: str, values: Sequence[float]) -> np.ndarray:
    vector = np.asarray(values, np.float64)
    if vector.ndim != 1 or not vector.size:
        raise InputError(f"{name} must be one number a prompt, and at least one")
    if not np.isfinite(vector).all():
        raise InputError(
            f"{name} has {vector[~np.isfinite(vector)][0]} at {np.argmin(np.isfinite(vector))}; "
            "every one must be a finite number"
        )
    return vector
