"""Estimates the win rate if both responses were equally long: alpaca_eval's regression.

The model of tatsu-lab/alpaca_eval (`src/alpaca_eval/metrics/glm_winrate.py`; Dubois et al. 2024,
"Length-Controlled AlpacaEval"), in each of its three forms:

    logit P(the model's is better) = φ tanh(Δ / standard deviation of Δ) + ψ difficulty + θ
    Δ = characters of the reference's response less those of the model's
    the result is the mean of σ(ψ difficulty + θ) over all prompts

with an L1 penalty on φ, ψ and θ, whose strength is chosen by 5-fold cross-validation and which
draws the result towards one half where there are few rows; an outcome between lost and won counts
as a share of each.

``length_controlled_minimal`` has no ψ: it needs annotations only. The leaderboard's figure is
``length_controlled_v1``, from its file `df_gamed.csv`: the difficulty of each instruction,
estimated from all models of the leaderboard, and, at a fifth of the weight, comparisons with the
baseline asked to be terse or long, which have no θ and hold φ back. A file of difficulties alone
gives ``length_controlled_noreg``. The minimal one is not to be compared with a leaderboard's: on 25
of the project's own GPT-4 annotation files it is 5 points from the published on average (at most
19) and ranks alike (Spearman 0.97).
"""

import csv
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fgrlhf_jax.errors import InputError

FOLDS = 5
STRENGTHS = np.logspace(-4, 4, 10)  # of the loss against the penalty
MINIMAL, NOREG, LEADERBOARD = (f"length_controlled_{name}" for name in ("minimal", "noreg", "v1"))
_BASELINE_WEIGHT = 0.2 / 2  # there are two of them
_LARGEST_SE = 0.5


class Controlled(NamedTuple):
    """A length-controlled win rate (a share) and its standard error, or why there is none."""

    rate: float | None
    se: float | None
    reason: str | None
    name: str  # of alpaca_eval's three forms


class Difficulty(NamedTuple):
    """The difficulty of N prompts, in the order of the annotations, and comparisons of baselines.

    ``baselines_G3`` has Δ / standard deviation of Δ, difficulty and outcome of each comparison with
    a baseline that was asked to be terse or long; G may be 0.
    """

    path: str
    difficulty_N: np.ndarray
    baselines_G3: np.ndarray


def read_difficulty(path: str) -> Difficulty:
    """Reads alpaca_eval's `df_gamed.csv`, or a CSV of two columns: row number and difficulty.

    Raises:
      InputError: for a file that is neither, or whose row numbers are not 0, 1, … without a gap.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            head, *lines = list(csv.reader(file)) or [[]]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"difficulty={path}: cannot be read as CSV ({reason})") from error
    head = ["index", "instruction_difficulty"] if len(head) == 2 else head
    difficulties, baselines = {}, []
    for number, line in enumerate(lines, 2):
        try:
            row = dict(zip(head, line, strict=True))
            values = [
                row.get("std_delta_len"),
                row["instruction_difficulty"],
                row.get("preference"),
            ]
            values = [float(value) if value else 0.0 for value in values]
            if not np.isfinite(values).all() or not row["instruction_difficulty"]:
                raise ValueError
            difficulties.setdefault(int(row["index"]), values[1])
        except (ValueError, KeyError) as error:
            raise InputError(
                f"difficulty={path}:{number}: is no row of numbers; give alpaca_eval's "
                "df_gamed.csv (index, instruction_difficulty, std_delta_len, preference) or two "
                "columns, row number and difficulty"
            ) from error
        baselines += [values] if row.get("preference") else []
    if not difficulties or sorted(difficulties) != list(range(len(difficulties))):
        raise InputError(f"difficulty={path}: index must number the instructions 0, 1, 2, …")
    difficulty_N = np.array([difficulties[index] for index in range(len(difficulties))])
    return Difficulty(path, difficulty_N, np.array(baselines, np.float64).reshape(-1, 3))


def win_rate(
    delta: Sequence[float], outcomes: Sequence[float | None], difficulty: Difficulty | None = None
) -> Controlled:
    """The share of prompts that would be won at equal length.

    Args:
      delta: characters of the reference's response less those of the model's, for every prompt.
      outcomes: 1 won, 0 lost, or between; None without a verdict.
      difficulty: of the same prompts in the same order; None for the minimal form.

    Returns:
      ``se`` by the delta method from the sandwich covariance, so that it is the plain one where
      all lengths are equal. (alpaca_eval's is the spread of the predictions over instructions
      alone, which is 0 without a difficulty.)

    Raises:
      InputError: where there are not as many difficulties as prompts.
    """
    delta_N = np.asarray(delta, np.float64)
    won_N = np.asarray(outcomes, np.float64)  # NaN for None
    known, name, one_N = ~np.isnan(won_N), MINIMAL, np.ones(delta_N.size)
    if reason := _why_undetermined(delta_N[known], won_N[known]):
        return Controlled(None, None, reason, name)
    spread = delta_N.std(ddof=1) or 1.0  # 0: all are equally long
    features_NF = np.stack([np.tanh(delta_N / spread), one_N], axis=1)
    baselines_GF, baselines_won_G = np.zeros((0, 2)), np.zeros(0)
    if difficulty is not None:
        if len(difficulty.difficulty_N) != delta_N.size:
            raise InputError(
                f"difficulty={difficulty.path}: is of {len(difficulty.difficulty_N)} instructions, "
                f"and {delta_N.size} are compared; they are matched by number, so compare all in "
                "alpaca_eval's order"
            )
        features_NF = np.insert(features_NF, 1, difficulty.difficulty_N, axis=1)
        std_delta_G, difficulty_G, baselines_won_G = difficulty.baselines_G3.T
        zero_G = np.zeros(std_delta_G.size)
        baselines_GF = np.stack([np.tanh(std_delta_G), difficulty_G, zero_G], axis=1)
        name = LEADERBOARD if zero_G.size else NOREG
    rows_RF = np.concatenate([baselines_GF, features_NF[known]])
    won_R = np.concatenate([baselines_won_G, won_N[known]])
    weight_R = np.repeat([_BASELINE_WEIGHT, 1.0], [len(baselines_GF), known.sum()])
    used_F = rows_RF.any(axis=0)
    features_NF[:, 0] = 0.0
    try:
        rate, se = _regress(rows_RF[:, used_F], won_R, weight_R, features_NF[:, used_F])
    except ImportError:
        reason = "it needs scikit-learn: pip install 'fgrlhf_jax[collect]'"
        return Controlled(None, None, reason, name)
    if not se < _LARGEST_SE:
        reason = "the lengths differ by too nearly the same to tell their share from quality's"
        return Controlled(None, None, reason, name)
    return Controlled(rate, se, None, name)


def _why_undetermined(delta_N: np.ndarray, won_N: np.ndarray) -> str | None:
    """Why length and quality cannot be told apart in these outcomes."""
    won, lost = won_N.sum(), (1 - won_N).sum()
    if min(won, lost) < FOLDS:
        return f"{won:g} won and {lost:g} lost are too few, it needs {FOLDS} of each"
    if not delta_N.any():
        return None
    if np.ptp(delta_N) == 0:
        return "one side is always longer by the same number of characters"
    delta_won, delta_lost = delta_N[won_N > 0], delta_N[won_N < 1]
    if delta_won.min() >= delta_lost.max() or delta_lost.min() >= delta_won.max():
        return "the difference in length alone decides every comparison"
    return None


def _regress(
    rows_RF: np.ndarray, won_R: np.ndarray, weight_R: np.ndarray, at_NF: np.ndarray
) -> tuple[float, float]:
    """The mean of the predictions for ``at_NF``, and its error.

    Rows that are alike are summed up. Strengths are compared by an exact fit; the last fit is
    liblinear's, as alpaca_eval's is: it stops where the fourth digit may still change.
    """
    from sklearn.linear_model import LogisticRegression

    unique_UF, row_of_R = np.unique(rows_RF, axis=0, return_inverse=True)
    fold_R = np.arange(won_R.size)[::-1] % FOLDS  # as GroupKFold's
    cell_R = fold_R * len(unique_UF) + row_of_R.ravel()
    shape = FOLDS, len(unique_UF)
    weight_KU, won_KU = (
        np.bincount(cell_R, values, FOLDS * len(unique_UF)).reshape(shape)
        for values in (weight_R, weight_R * won_R)
    )
    losses_C = np.zeros(len(STRENGTHS))
    for k in range(FOLDS):
        theta_F = np.zeros(unique_UF.shape[1])
        weight_U, won_U = weight_KU.sum(0) - weight_KU[k], won_KU.sum(0) - won_KU[k]
        for c, strength in enumerate(STRENGTHS):
            theta_F = _fit(unique_UF, won_U, weight_U, strength, theta_F)
            losses_C[c] += _loss(unique_UF @ theta_F, won_KU[k], weight_KU[k]) / (fold_R == k).sum()
    model = LogisticRegression(
        C=STRENGTHS[np.argmin(losses_C)],
        l1_ratio=1.0,
        solver="liblinear",
        fit_intercept=False,
        random_state=123,
    )
    won_U, weight_U = won_KU.sum(0), weight_KU.sum(0)
    weight_2U = np.maximum([won_U, weight_U - won_U], 1e-12)  # liblinear drops rows of weight 0
    labels = np.repeat([1, 0], len(unique_UF))
    model.fit(np.tile(unique_UF, (2, 1)), labels, sample_weight=weight_2U.ravel())
    p_R, p_N = (model.predict_proba(features)[:, 1] for features in (rows_RF, at_NF))
    # scikit-learn has no errors of coefficients.
    information = (rows_RF * (weight_R * p_R * (1 - p_R))[:, None]).T @ rows_RF
    score_RF = rows_RF * (weight_R * (won_R - p_R))[:, None]
    half_R = score_RF @ np.linalg.lstsq(information, at_NF.T @ (p_N * (1 - p_N)) / p_N.size)[0]
    variance = half_R @ half_R + p_N.var(ddof=1) / p_N.size
    return float(p_N.mean()), float(np.sqrt(variance))


def _loss(logits: np.ndarray, won: np.ndarray, weight: np.ndarray) -> float:
    """Cross-entropy of summed shares."""
    return float(weight @ np.logaddexp(0, logits) - won @ logits)


def _fit(
    features_UF: np.ndarray,
    won_U: np.ndarray,
    weight_U: np.ndarray,
    strength: float,
    theta_F: np.ndarray,
) -> np.ndarray:
    """Minimises strength · loss + |θ|₁ by Newton's method from ``theta_F``.

    Every step minimises the quadratic with the penalty exactly, by trying all signs that the few
    coefficients may have.
    """
    signs = [np.array(s, float) for s in itertools.product((-1, 0, 1), repeat=theta_F.size)]
    value = strength * _loss(features_UF @ theta_F, won_U, weight_U) + np.abs(theta_F).sum()
    for _ in range(50):
        p_U = 1 / (1 + np.exp(-np.clip(features_UF @ theta_F, -500, 500)))
        slope_F = strength * (features_UF.T @ (weight_U * p_U - won_U))
        curvature = (features_UF * (strength * weight_U * p_U * (1 - p_U))[:, None]).T @ features_UF
        best, step_F = 0.0, np.zeros_like(theta_F)
        for sign_F in signs:
            on = sign_F != 0
            to_F = np.zeros_like(theta_F)
            target = (curvature @ theta_F - slope_F - sign_F)[on]
            to_F[on] = np.linalg.lstsq(curvature[np.ix_(on, on)], target)[0]
            move = to_F - theta_F
            gain = slope_F @ move + move @ curvature @ move / 2
            gain += np.abs(to_F).sum() - np.abs(theta_F).sum()
            best, step_F = min((best, step_F), (gain, move), key=lambda pair: pair[0])
        for size in 0.5 ** np.arange(30):
            new_F = theta_F + size * step_F
            new = strength * _loss(features_UF @ new_F, won_U, weight_U) + np.abs(new_F).sum()
            if new < value:
                break
        if new >= value * (1 - 1e-12):
            return theta_F
        theta_F, value = new_F, new
    return theta_F
