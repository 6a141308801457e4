"""The win rate at equal length: closed forms, loops, and what alpaca_eval's own code made of it."""

import math
import sys

import numpy as np
import pytest
from scipy import optimize

from fgrlhf_jax.feedback.judges import length_control

pytest.importorskip("sklearn")

STRENGTHS = [10 ** (-4 + 8 * k / 9) for k in range(10)]  # of the loss against the penalty


def example(size: int = 120) -> tuple[list[int], list[float | None]]:
    """Longer responses win more often; some draws, shares and missing verdicts."""
    delta = [5 * ((37 * i) % 101 - 40) for i in range(size)]
    outcomes = []
    for i, d in enumerate(delta):
        score = (i * 53) % 97 / 97 - 0.3 * math.tanh(d / 150)
        if i % 29 == 0:
            outcomes.append(None)
        elif i % 17 == 0:
            outcomes.append(0.5)
        else:
            outcomes.append(1.0 if score > 0.42 else 0.0 if i % 13 else 0.25)
    return delta, outcomes


def test_what_alpaca_eval_makes_of_it():
    """Its fit_LogisticRegressionCV with its formula length_controlled_minimal on these rows."""
    assert length_control.win_rate(*example()).rate == pytest.approx(0.5811558628, abs=1e-6)


def loss(theta, rows) -> float:
    """Cross-entropy of shares."""
    x, won = np.array(rows).T
    z = theta[0] * x + theta[1]
    return float(np.sum(won * np.logaddexp(0, -z) + (1 - won) * np.logaddexp(0, z)))


def lasso(rows, strength: float) -> list[float]:
    """The coefficients as differences of two parts that are not negative: so |·| is smooth."""

    x, won = np.array(rows).T

    def objective(parts):
        theta = (parts[0] - parts[1], parts[2] - parts[3])
        residual = 1 / (1 + np.exp(-theta[0] * x - theta[1])) - won
        slope = strength * np.repeat([residual @ x, residual.sum()], 2) * [1, -1, 1, -1]
        value = strength * loss(theta, rows) + sum(parts)
        return value / (1 + strength), (slope + 1) / (1 + strength)

    minimum = optimize.minimize(
        objective, [0.1] * 4, jac=True, bounds=[(0, 20)] * 4, method="L-BFGS-B"
    )
    return [minimum.x[0] - minimum.x[1], minimum.x[2] - minimum.x[3]]


def test_the_regression_as_loops():
    delta, outcomes = example()
    spread = np.std(delta, ddof=1)  # of all rows, those without a verdict too
    known = [(d, won) for d, won in zip(delta, outcomes, strict=True) if won is not None]
    rows = [(math.tanh(d / spread), won) for d, won in known]
    # Groups of equal size go round the folds from the last to the first.
    folds = [[row for i, row in enumerate(rows[::-1]) if i % 5 == k] for k in range(5)]
    losses = {}
    for strength in STRENGTHS:
        held = 0.0
        for k, fold in enumerate(folds):
            rest = [row for j, other in enumerate(folds) if j != k for row in other]
            held += loss(lasso(rest, strength), fold) / len(fold)
        losses[strength] = held
    best = min(losses, key=losses.get)
    assert min(losses) < best < max(losses)
    theta = lasso(rows, best)
    want = 1 / (1 + math.exp(-theta[1]))
    assert abs(want - np.mean([won for _, won in rows])) > 0.03  # length matters here
    assert length_control.win_rate(delta, outcomes).rate == pytest.approx(want, abs=2e-4)


@pytest.mark.parametrize(
    "outcomes",
    [
        [1.0] * 30 + [0.0] * 90,
        [1.0, 0.5, 0.25, 0.0, 0.0, 0.0] * 40,
        [1.0] * 5 + [0.0] * 95,
        ([1.0] * 3 + [0.5] * 2 + [0.0] * 15) * 200,
    ],
)
def test_at_equal_lengths_it_is_the_plain_win_rate_but_for_the_penalty(outcomes):
    """Without a length C Σ loss + |θ| is least where C n (share - σ(θ)) = sign(θ)."""
    n, share = len(outcomes), np.mean(outcomes)
    result = length_control.win_rate([0] * n, outcomes)
    closed = [share - np.sign(share - 0.5) / (strength * n) for strength in STRENGTHS]
    assert min(abs(result.rate - rate) for rate in closed) < 2e-5
    assert result.rate == pytest.approx(share, abs=0.05)
    assert result.se == pytest.approx(np.std(outcomes) / math.sqrt(n), rel=0.25)


def test_the_two_sides_swapped():
    delta, outcomes = example()
    result = length_control.win_rate(delta, outcomes)
    opposite = [None if won is None else 1 - won for won in outcomes]
    swapped = length_control.win_rate([-d for d in delta], opposite)
    assert result.rate + swapped.rate == pytest.approx(1, abs=1e-3)
    assert result.se == pytest.approx(swapped.se, rel=1e-2)


def test_length_that_wins_is_taken_out():
    """Both sides are equally good; the model's is mostly longer, and the longer mostly wins."""
    rng = np.random.default_rng(0)
    delta = rng.normal(-150, 200, 900)
    odds = -2 * np.tanh(delta / delta.std(ddof=1))
    outcomes = (rng.random(900) < 1 / (1 + np.exp(-odds))).astype(float)
    assert outcomes.mean() > 0.65
    result = length_control.win_rate(delta, outcomes)
    assert result.rate == pytest.approx(0.5, abs=3 * result.se)
    assert 0.015 < result.se < 0.04
    # Its error is that of the same fit on other draws.
    draws = rng.integers(0, 900, (4, 900))
    rates = [length_control.win_rate(delta[rows], outcomes[rows]).rate for rows in draws]
    assert 0.4 < np.std(rates, ddof=1) / result.se < 2.5


@pytest.mark.parametrize(
    ("delta", "outcomes", "reason"),
    [
        ([0] * 30, [1.0] * 30, "30 won and 0 lost are too few, it needs 5 of each"),
        (range(30), [1.0] * 4 + [0.0] * 26, "4 won and 26 lost are too few"),
        ([], [], "0 won and 0 lost are too few"),
        (range(9), [0.5] * 9, "4.5 won and 4.5 lost are too few"),
        ([7] * 20, [1.0, 0.0] * 10, "always longer by the same number of characters"),
        ([7] * 20 + [1], [1.0, 0.0] * 10 + [None], "always longer"),  # no verdict, no help
        (range(-10, 10), [1.0] * 10 + [0.0] * 10, "length alone decides every comparison"),
    ],
)
def test_what_cannot_be_fitted(delta, outcomes, reason):
    result = length_control.win_rate(list(delta), outcomes)
    assert (result.rate, result.se) == (None, None)
    assert reason in result.reason


def test_without_the_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    result = length_control.win_rate(*example())
    assert result.rate is None
    assert "pip install 'fgrlhf_jax[collect]'" in result.reason
