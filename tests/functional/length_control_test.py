"""The win rate at equal length: closed forms, loops, and what alpaca_eval's own code made of it."""

import math
import sys
import time

import numpy as np
import pytest

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.functional import length_control, logistic


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


def difficulty(name: str) -> length_control.Difficulty | None:
    """The difficulty of each row, and rows of two baselines, one of them longer throughout."""
    difficulties, baselines = [((i * 47) % 67 - 33) / 20 for i in range(120)], []
    for i in range(240):
        x = (-1) ** (i // 120) * ((29 * i) % 53) / 25
        won = round(0.5 - 0.3 * math.tanh(x) + ((i * 71) % 89 - 44) / 300, 4)
        baselines += [(x, difficulties[i % 120], won)] if i % 31 else []
    if name == length_control.NOREG:
        baselines = []
    arrays = np.array(difficulties), np.array(baselines).reshape(-1, 3)
    return None if name == length_control.MINIMAL else length_control.Difficulty(*arrays)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("length_controlled_minimal", 0.5811558628),
        ("length_controlled_noreg", 0.5422721014),
        ("length_controlled_v1", 0.5489603335),
    ],
)
def test_what_alpaca_eval_makes_of_it(name, expected):
    """Its get_length_controlled_winrate on these rows."""
    result = length_control.win_rate(*example(), difficulty(name))
    assert (result.name, result.rate) == (name, pytest.approx(expected, abs=1e-8))


def test_difficulties_of_other_instructions():
    with pytest.raises(InputError, match="is of 120 instructions, and 119 are compared; they"):
        length_control.win_rate(*example(119), difficulty(length_control.NOREG))


def test_many_rows_where_one_side_is_always_longer():
    """Length and quality are nearly one feature: slow for coordinate descent."""
    rng = np.random.default_rng(0)
    delta = rng.integers(300, 50_000, 100_000)
    outcomes = (rng.random(delta.size) < 0.1 + 0.3 * (delta > 25_000)).astype(float)
    start = time.monotonic()
    result = length_control.win_rate(delta, outcomes)
    assert time.monotonic() - start < 20
    assert result.rate == pytest.approx(0.0236, abs=1e-4)


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
    closed = [share - np.sign(share - 0.5) / (strength * n) for strength in logistic.STRENGTHS]
    assert min(abs(result.rate - rate) for rate in closed) < 2e-5
    assert result.rate == pytest.approx(share, abs=0.05)
    assert result.se == pytest.approx(np.std(outcomes) / math.sqrt(n), rel=0.25)


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
        (range(1000, 1500), [1.0, 0.0] * 250, "cannot be told apart"),
        (range(-10, 10), [1.0] * 10 + [0.0] * 10, "length alone decides every comparison"),
    ],
)
def test_what_cannot_be_fitted(delta, outcomes, reason):
    result = length_control.win_rate(list(delta), outcomes)
    assert (result.rate, result.se) == (None, None)
    assert reason in result.reason


def test_without_the_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    result = length_control.win_rate(*example())
    assert result.rate is None
    assert "pip install 'fgrlhf_jax[collect]'" in result.reason
