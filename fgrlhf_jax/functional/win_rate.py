"""Win rates, their errors, and steps to a score: Tables 1 and 3 of the paper, in NumPy.

Standard errors are over prompts, or over seeds if there are several; intervals of differences are
over both. A number that cannot be computed is None.
"""

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy import special

from fgrlhf_jax.errors import InputError

_CHUNK_SIZE = 2**22  # prompts drawn at a time
_MAX_SPLITS = 5000  # largest number of splits of runs into two groups


def mean_and_error(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean and its standard error (sample standard deviation / √n; None for one value)."""
    values = np.asarray(values, np.float64)
    if values.size < 2:
        return float(values.mean()), None
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(values.size))


def wilson_interval(share: float, n: int) -> tuple[float, float]:
    """Wilson's score interval (low, high) of a share of ``n`` comparisons; valid at 0 and 1 too.

    It contains all p with |share - p| <= z √(p (1 - p) / n), z the normal quantile of 95 %. With
    draws counted as one half it is slightly wide, because they vary less than a binomial.
    """
    z = 1.959964
    center, scale = share + z**2 / (2 * n), 1 + z**2 / n
    margin = z * np.sqrt(share * (1 - share) / n + (z / (2 * n)) ** 2)
    return max(0.0, float((center - margin) / scale)), min(1.0, float((center + margin) / scale))


def outcomes(
    scores: Sequence[float], reference: Sequence[float], tolerance: float = 1e-6
) -> np.ndarray:
    """Wins of a policy against a reference, from a judge's scores of both on the same prompts.

    float[n]: 1 won, 0.5 drawn (scores within ``tolerance``), 0 lost. Raises InputError if the
    lengths differ, or a score is not finite.
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
    """Bootstrap over prompts of the difference between two policies' outcomes, float[n] each.

    Returns ``difference`` (mean of a - mean of b), ``low`` and ``high`` (its 95 % percentile
    interval, at least that of :func:`without_spread`), and ``not_better``, the share of rounds in
    which a is not better than b.
    """
    a, b = _vector("outcomes_a", outcomes_a), _vector("outcomes_b", outcomes_b)
    if a.size != b.size:
        raise InputError(f"{a.size} outcomes cannot be paired with {b.size}")
    if rounds < 1:
        raise InputError(f"rounds={rounds}: a bootstrap needs at least one")
    rng, difference = np.random.default_rng(seed), a - b
    means = np.empty(rounds)
    step = max(1, _CHUNK_SIZE // a.size)
    for start in range(0, rounds, step):
        size = (min(step, rounds - start), a.size)
        means[start : start + step] = difference[rng.integers(0, a.size, size)].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    exact = clopper_pearson(difference.mean(), a.size)  # of what so few prompts may not have shown
    return {
        "difference": float(difference.mean()),
        "low": float(min(low, exact[0])),
        "high": float(max(high, exact[1])),
        # A mean that is exactly 0 in theory may be 1e-17 in floating point.
        "not_better": float((means <= 1e-12).mean()),
    }


def paired_interval(
    outcomes_a: Sequence[Sequence[float]], outcomes_b: Sequence[Sequence[float]]
) -> dict[str, float]:
    """How much better policy a is than policy b: a 95 % interval over training seeds and prompts.

    The paired difference of seed s on prompt n is modelled as mean + A_s + B_n + E_sn. Two-way
    analysis of variance gives the variances of the seed means, of the prompt means and of the rest:

        V = V_seed / S + V_prompt / N - V_rest / (S N)

    as in the two-way cluster variance of Cameron, Gelbach and Miller (2011). The interval is mean ±
    t √V with Satterthwaite's degrees of freedom, which are S - 1 if the seeds dominate. With one
    seed it is over prompts alone. If V is 0, as for equal differences, it is that of Clopper and
    Pearson for none of N prompts. (Resampling seeds and prompts instead covers 70 to 90 % rather
    than 95 % with three or five seeds that differ much, 99 to 100 % with seeds that do not.)

    Args:
      outcomes_a: float[S, N], outcomes of policy a, one row per seed, on each prompt.
      outcomes_b: float[S, N], of policy b with the same seeds on the same prompts. Either array may
        have a single row, which then serves all seeds.

    Returns ``difference`` (mean of a - mean of b), and ``low`` and ``high``, its interval. Raises
    InputError if the shapes differ, or an outcome is not finite.
    """
    a, b = _matrix("outcomes_a", outcomes_a), _matrix("outcomes_b", outcomes_b)
    if a.shape[1] != b.shape[1] or (len(a) != len(b) and 1 not in (len(a), len(b))):
        raise InputError(f"outcomes of shape {a.shape} cannot be paired with {b.shape}")
    difference = a - b
    seeds, prompts = difference.shape
    mean = difference.mean()
    seed_S, prompt_N = difference.mean(1) - mean, difference.mean(0) - mean
    residual = difference - mean - seed_S[:, None] - prompt_N
    dof = (max(1, seeds - 1), max(1, prompts - 1))  # where 0, the sum of squares is 0 too
    parts = (seed_S @ seed_S / dof[0] / seeds, prompt_N @ prompt_N / dof[1] / prompts)
    variance = sum(parts) - (residual**2).sum() / (dof[0] * dof[1]) / (seeds * prompts)
    variance = max(variance, *(0.0, parts[1] if seeds > 1 else sum(parts)))
    spread = sum(part**2 / df for part, df in zip(parts, dof, strict=True))
    if variance > 0:
        margin = special.stdtrit(variance**2 / spread, 0.975) * variance**0.5
        low, high = mean - margin, mean + margin
    else:
        low, high = clopper_pearson(mean, prompts)
    return {"difference": float(mean), "low": float(low), "high": float(high)}


def clopper_pearson(difference: float, prompts: int) -> tuple[float, float]:
    """The interval if all N differences are equal, after Clopper and Pearson.

    It allows for the largest share of other prompts that N prompts miss with probability 2.5 %.
    """
    unseen = 1 - 0.025 ** (1 / prompts)
    return difference - unseen * (1 + difference), difference + unseen * (1 - difference)


def mean_over_seeds(values: Sequence[float | None]) -> dict[str, float | int | None]:
    """``mean``, ``se`` and ``n`` of one value per seed.

    The error of a single seed is None. If any seed has no value, the mean is None too, because the
    mean of the others would be biased.
    """
    if not values or any(v is None or not np.isfinite(v) for v in values):
        return {"mean": None, "se": None, "n": len(values)}
    mean, error = mean_and_error(values)
    return {"mean": mean, "se": error, "n": len(values)}


def smooth(scores: Sequence[float]) -> np.ndarray:
    """Averages each evaluation with its two neighbours, the last one with the one before it.

    The first one is unchanged: it is the policy before this training.
    """
    scores = _vector("curve_scores", scores)
    return np.array([scores[0], *(scores[k - 1 : k + 2].mean() for k in range(1, scores.size))])


def steps_to_reach(
    curve_steps: Sequence[int],
    curve_scores: Sequence[float],
    share: float = 0.95,
    target: float | None = None,
) -> int | None:
    """The first step at which a score reaches a target, an entry of Table 3; None if it never does.

    None too if the best score is not above the first.

    Args:
      curve_steps: increasing; the first is before training.
      curve_scores: the judge's mean score at each step, preferably after :func:`smooth`.
      share: the target as a share of the gain from the first to the best score.
      target: a fixed score instead of ``share``.
    """
    steps, scores = list(curve_steps), _vector("curve_scores", curve_scores)
    if len(steps) != scores.size or any(a >= b for a, b in itertools.pairwise(steps)):
        raise InputError("a curve needs increasing steps, and one score at each of them")
    if target is None:
        gain = scores - scores[0]
        reached = (gain >= share * gain.max()) & (gain.max() > 0)
    else:
        reached = scores >= target
    return int(steps[np.argmax(reached)]) if reached.any() else None


def permutation_test(
    first: Sequence, second: Sequence, statistics: Callable[[list, list], Sequence[float]]
) -> tuple[list[float], list[float]]:
    """Two-sided permutation test: do two groups of runs differ by any of several criteria?

    p is the share of splits of the runs whose largest statistic, each in units of its standard
    deviation over the splits, is at least the observed one (the maximum-statistic correction of
    Westfall and Young, 1993). If the groups do not differ, the probability that any criterion has p
    <= α is at most α. All splits are counted if there are at most 5,000, else 5,000 random ones.

    ``statistics`` maps two groups of runs, in any form that it accepts, to one number per
    criterion, 0 if they do not differ. Returns the observed statistics, and p for each criterion.
    """
    runs = [*first, *second]
    indices, count = range(len(runs)), len(first)
    if math.comb(len(runs), count) <= _MAX_SPLITS:
        splits = itertools.combinations(indices, count)  # the observed one comes first
    else:
        rng = np.random.default_rng(0)
        shuffled = (rng.permutation(len(runs))[:count].tolist() for _ in range(_MAX_SPLITS - 1))
        splits = itertools.chain([range(count)], shuffled)
    values = np.array(
        [
            statistics([runs[k] for k in split], [runs[k] for k in indices if k not in split])
            for split in splits
        ],
        np.float64,
    )
    scale = values.std(axis=0)
    sizes = np.abs(values) / np.where(scale > 0, scale, 1)
    largest = sizes.max(axis=1)
    p = [float((largest >= size - 1e-9).mean()) for size in sizes[0]]
    return values[0].tolist(), p


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


def _matrix(name: str, values: Sequence[Sequence[float]]) -> np.ndarray:
    matrix = np.asarray(values, np.float64)
    if matrix.ndim != 2:
        raise InputError(f"{name} must be one row a seed, of one number a prompt")
    return np.stack([_vector(name, row) for row in matrix])
