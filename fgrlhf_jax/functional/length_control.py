"""Length-controlled win rates: alpaca_eval's estimate for responses of equal length.

The regression of tatsu-lab/alpaca_eval (`src/alpaca_eval/metrics/glm_winrate.py`; Dubois et al.
2024, "Length-Controlled AlpacaEval"), in its three forms:

    logit P(the model's is better) = φ tanh(Δ / standard deviation of Δ) + ψ difficulty + θ
    Δ = characters of the reference's response - characters of the model's response
    win rate = mean of σ(ψ difficulty + θ) over all prompts

φ, ψ and θ have an L1 penalty whose strength is chosen by 5-fold cross-validation; with few rows it
draws the result towards one half. An outcome between lost and won counts as a share of each.

- ``length_controlled_minimal`` has no ψ and needs annotations only. Do not compare it with a
  leaderboard's figure: on 25 of alpaca_eval's own GPT-4 annotation files it differs by 5 points
  on average (at most 19), with nearly the same ranking (Spearman 0.97).
- ``length_controlled_v1`` is the leaderboard's figure, from its file `df_gamed.csv`: the difficulty
  of each instruction, estimated from all models of the leaderboard, and, at a fifth of the weight,
  comparisons with the baseline asked to be terse or long, which have no θ and restrain φ.
- ``length_controlled_noreg`` uses a file of difficulties alone.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.functional import logistic

MINIMAL, NOREG, LEADERBOARD = (f"length_controlled_{name}" for name in ("minimal", "noreg", "v1"))
_BASELINE_WEIGHT = 0.2 / 2  # there are two of them
_LARGEST_SE = 0.5


class Controlled(NamedTuple):
    """A length-controlled win rate (a share) and its standard error, or the reason for None."""

    rate: float | None
    se: float | None
    reason: str | None
    name: str  # of alpaca_eval's three forms


class Difficulty(NamedTuple):
    """The difficulty of N prompts, in the order of the annotations, and baseline comparisons.

    ``baselines_G3``: for each comparison with a baseline asked to be terse or long, Δ / standard
    deviation of Δ, difficulty, and outcome; G may be 0.
    """

    difficulty_N: np.ndarray
    baselines_G3: np.ndarray


def win_rate(
    delta: Sequence[float], outcomes: Sequence[float | None], difficulty: Difficulty | None = None
) -> Controlled:
    """The share of prompts that would be won at equal length.

    If all lengths are equal, ``se`` is the ordinary standard error. (alpaca_eval's is the spread of
    the predictions over instructions, which is 0 without difficulties.) Raises InputError if the
    numbers of difficulties and prompts differ.

    Args:
      delta: for every prompt, characters of the reference's response minus those of the model's.
      outcomes: for every prompt 1 won, 0 lost, or between; None without a verdict.
      difficulty: of the same prompts in the same order; None for the minimal form.
    """
    delta_N = np.asarray(delta, np.float64)
    won_N = np.asarray(outcomes, np.float64)  # NaN for None
    known_N, name, columns = ~np.isnan(won_N), MINIMAL, [np.ones(delta_N.size)]
    baselines_GF, baselines_won_G = np.zeros((0, 2)), np.zeros(0)
    if difficulty is not None:
        if difficulty.difficulty_N.size != delta_N.size:
            raise InputError(
                f"difficulty: is of {difficulty.difficulty_N.size} instructions, and "
                f"{delta_N.size} are compared; they are matched by number, so compare all in "
                "alpaca_eval's order"
            )
        columns.insert(0, difficulty.difficulty_N)
        std_delta_G, difficulty_G, baselines_won_G = difficulty.baselines_G3.T
        baselines_GF = np.stack([np.tanh(std_delta_G), difficulty_G, 0 * difficulty_G], axis=1)
        name = LEADERBOARD if len(baselines_GF) else NOREG
    if reason := _why_undetermined(delta_N[known_N], won_N[known_N]):
        return Controlled(None, None, reason, name)
    delta_std = delta_N.std(ddof=1) or 1.0  # 0: all are equally long
    features_NF = np.stack([np.tanh(delta_N / delta_std), *columns], axis=1)
    rows_RF = np.concatenate([baselines_GF, features_NF[known_N]])
    won_R = np.concatenate([baselines_won_G, won_N[known_N]])
    weight_R = np.repeat([_BASELINE_WEIGHT, 1.0], [len(baselines_GF), known_N.sum()])
    varying_F = rows_RF.any(axis=0)
    features_NF[:, 0] = 0.0
    rows_RF, features_NF = rows_RF[:, varying_F], features_NF[:, varying_F]
    try:
        rate, se = logistic.predict_mean(rows_RF, won_R, weight_R, features_NF)
    except ImportError:
        rate, se, reason = None, None, "it needs scikit-learn: pip install 'fgrlhf_jax[collect]'"
    else:
        if not se < _LARGEST_SE:
            rate, se, reason = None, None, "length and quality cannot be told apart"
    return Controlled(rate, se, reason, name)


def _why_undetermined(delta_N: np.ndarray, won_N: np.ndarray) -> str | None:
    """Why length and quality cannot be told apart in these outcomes."""
    won, lost = won_N.sum(), (1 - won_N).sum()
    if min(won, lost) < logistic.FOLDS:
        return f"{won:g} won and {lost:g} lost are too few, it needs {logistic.FOLDS} of each"
    if not delta_N.any():
        return None
    if np.ptp(delta_N) == 0:
        return "one side is always longer by the same number of characters"
    delta_won, delta_lost = delta_N[won_N > 0], delta_N[won_N < 1]
    if delta_won.min() >= delta_lost.max() or delta_lost.min() >= delta_won.max():
        return "the difference in length alone decides every comparison"
    return None
