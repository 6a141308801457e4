"""Estimates the win rate if both responses were equally long: alpaca_eval's regression.

It is what tatsu-lab/alpaca_eval calls ``length_controlled_minimal``
(`src/alpaca_eval/metrics/glm_winrate.py`; Dubois et al. 2024, "Length-Controlled AlpacaEval"):

    logit P(the model's is better) = φ tanh(Δ / standard deviation of Δ) + θ
    Δ = characters of the reference's response less those of the model's; the result is σ(θ)

with an L1 penalty on φ and θ, whose strength is chosen by 5-fold cross-validation and which draws
the result towards one half where there are few rows; an outcome between lost and won counts as a
share of each.

The figure of its leaderboard (``length_controlled_v1``) has two things more, which one or two
annotation files cannot give: a term ψ · difficulty of the instruction, estimated from all models of
the leaderboard, and, at a fifth of the weight, responses of the baseline that were asked to be
terse or long, which hold φ back. So the two are not to be compared. On 25 of the project's own
GPT-4 annotation files the minimal one is 5 points from the published on average (at most 19) and
ranks alike (Spearman 0.97); the longer one side is throughout, the farther apart they are.
"""

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

FOLDS = 5


class Controlled(NamedTuple):
    """A length-controlled win rate (a share) and its standard error, or why there is none."""

    rate: float | None
    se: float | None
    reason: str | None


def win_rate(delta: Sequence[float], outcomes: Sequence[float | None]) -> Controlled:
    """The share of prompts that would be won at equal length.

    Args:
      delta: characters of the reference's response less those of the model's, for every prompt.
      outcomes: 1 won, 0 lost, or between; None without a verdict.

    Returns:
      ``se`` by the delta method from the sandwich covariance, so that it is the plain one where
      all lengths are equal. (alpaca_eval's is the spread of the predictions over instructions,
      which is 0 without a difficulty.)
    """
    delta_N = np.asarray(delta, np.float64)
    won_N = np.asarray(outcomes, np.float64)  # NaN for None
    known = ~np.isnan(won_N)
    if reason := _why_undetermined(delta_N[known], won_N[known]):
        return Controlled(None, None, reason)
    columns = [np.ones(known.sum())]
    if delta_N[known].any():
        columns.insert(0, np.tanh(delta_N / delta_N.std(ddof=1))[known])
    try:
        return Controlled(*_regress(np.stack(columns, axis=1), won_N[known]), None)
    except ImportError:
        return Controlled(None, None, "it needs scikit-learn: pip install 'fgrlhf_jax[collect]'")


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


def _regress(features_NF: np.ndarray, won_N: np.ndarray) -> tuple[float, float]:
    """The share won where all features but the last, which is 1, are 0; and its error."""
    import sklearn
    from sklearn.linear_model import LogisticRegressionCV
    from sklearn.metrics import get_scorer
    from sklearn.model_selection import GroupKFold

    n, width = features_NF.shape
    # Each row once as won and once as lost, weighted by the shares. A weight of 0 would take the
    # row away, and a fold without any win would be fitted as if nothing were known.
    share_N = np.clip(won_N, 1e-12, 1 - 1e-12)
    with warnings.catch_warnings(), sklearn.config_context(enable_metadata_routing=True):
        # It announces another form of attributes that are not read here.
        warnings.simplefilter("ignore", FutureWarning)
        model = LogisticRegressionCV(
            Cs=10,  # 1e-4 … 1e4
            cv=GroupKFold(FOLDS),
            scoring=get_scorer("neg_log_loss").set_score_request(sample_weight=True),
            l1_ratios=(1.0,),
            solver="liblinear",
            fit_intercept=False,
            random_state=123,
        ).set_fit_request(sample_weight=True)
        model.fit(
            np.concatenate([features_NF, features_NF]),
            np.repeat([1, 0], n),
            sample_weight=np.concatenate([share_N, 1 - share_N]),
            groups=np.tile(np.arange(n), 2),
        )
    rate = float(model.predict_proba(np.eye(width)[-1:])[0, 1])
    p_N = model.predict_proba(features_NF)[:, 1]
    # scikit-learn has no errors of coefficients.
    information = (features_NF * (p_N * (1 - p_N))[:, None]).T @ features_NF
    score_NF = features_NF * (won_N - p_N)[:, None]
    half = np.linalg.solve(information, score_NF.T)
    variance = (half @ half.T)[-1, -1]
    return rate, rate * (1 - rate) * float(np.sqrt(variance))
