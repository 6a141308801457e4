"""Win rates, bootstraps and times by hand, by loops, and by a published figure."""

import math
import statistics

import numpy as np
import pytest

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.functional import win_rate as evaluation


def test_win_rate_by_hand():
    # Won, drawn (within the tolerance, from either side), lost.
    found = evaluation.win_rate([1.0, 0.5, 0.3, 0.2], [0.5, 0.5 + 9e-7, 0.3 - 9e-7, 0.4])
    assert found["win_rate"] == pytest.approx(0.5)
    assert found["se"] == pytest.approx(statistics.stdev([1, 0.5, 0.5, 0]) / 2)
    assert found["n"] == 4
    assert found["draws"] == 2


def test_tolerance():
    one, other = [0.1, 0.9], [0.0, 1.0]
    assert evaluation.outcomes(one, other).tolist() == [1, 0]
    assert evaluation.outcomes(one, other, tolerance=0.2).tolist() == [0.5, 0.5]
    assert evaluation.outcomes([0.25], [0.0], tolerance=0.25).tolist() == [0.5]


def test_what_one_wins_the_other_loses():
    rng = np.random.default_rng(0)
    for size in (2, 3, 50):
        one, other = rng.integers(0, 4, (2, size)) / 4
        there, back = evaluation.win_rate(one, other), evaluation.win_rate(other, one)
        assert there["win_rate"] + back["win_rate"] == pytest.approx(1)
        assert there["se"] == pytest.approx(back["se"])
        assert there["draws"] == back["draws"] == sum(one == other)


def test_a_published_win_rate():
    """text-davinci-001 on AlpacaEval: 112 won, 20 drawn, 672 lost; 15.1741 ± 1.2351 %."""
    scores = np.repeat([1.0, 0.0, -1.0], [112, 20, 672])
    found = evaluation.win_rate(scores, np.zeros(804))
    assert round(100 * found["win_rate"], 4) == 15.1741
    assert round(100 * found["se"], 4) == 1.2351
    assert (found["n"], found["draws"]) == (804, 20)


def test_one_prompt_has_no_error():
    assert evaluation.win_rate([2.0], [1.0]) == {
        "win_rate": 1.0,
        "se": None,
        "n": 1,
        "draws": 0,
    }


@pytest.mark.parametrize(
    ("scores", "reference", "message"),
    [
        ([1.0, 2.0], [1.0], "2 scores cannot be compared with 1 of the reference"),
        ([], [], "at least one"),
        ([1.0, math.nan], [1.0, 2.0], "scores has nan at 1"),
        ([1.0, 2.0], [-math.inf, 2.0], "reference has -inf at 0"),
        ([[1.0], [2.0]], [1.0, 2.0], "one number a prompt"),
    ],
)
def test_scores_that_cannot_be_compared(scores, reference, message):
    with pytest.raises(InputError, match=message):
        evaluation.win_rate(scores, reference)


def loop_bootstrap(a, b, seed, rounds):
    """The same prompts drawn again for both, one at a time."""
    rng, drawn = np.random.default_rng(seed), []
    for _ in range(rounds):
        total_a = total_b = 0.0
        for index in rng.integers(0, len(a), len(a)):
            total_a += a[index]
            total_b += b[index]
        drawn.append((total_a - total_b) / len(a))
    drawn.sort()
    return drawn


@pytest.mark.parametrize("size", [4, 33])
def test_bootstrap_equals_a_loop(size, monkeypatch):
    rng = np.random.default_rng(size)
    a, b = rng.choice([0.0, 0.5, 1.0], (2, size))
    drawn = loop_bootstrap(a, b, 5, 201)
    want = {
        "difference": a.mean() - b.mean(),
        "low": drawn[5],  # 2.5 % of 200 steps
        "high": drawn[195],
        "not_better": sum(value < 1e-9 for value in drawn) / 201,
    }
    found = evaluation.paired_bootstrap(a, b, seed=5, rounds=201)
    assert found == pytest.approx(want, abs=1e-12)
    monkeypatch.setattr(evaluation, "_CHUNK", 7 * size)  # drawn in pieces: the same rounds
    assert evaluation.paired_bootstrap(a, b, seed=5, rounds=201) == found


def test_bootstrap_interval_is_that_of_the_paired_error():
    rng = np.random.default_rng(3)
    b = rng.random(800)
    a = np.clip(b + rng.normal(0.02, 0.1, 800), 0, 1)
    found = evaluation.paired_bootstrap(a, b, seed=0, rounds=4000)
    mean, error = evaluation.mean_and_error(a - b)
    assert found["difference"] == pytest.approx(mean)
    assert (found["high"] - found["low"]) / (2 * 1.96) == pytest.approx(error, rel=0.06)
    assert (found["high"] + found["low"]) / 2 == pytest.approx(mean, abs=error / 5)
    # Unpaired, the prompts' own spread would be in it.
    assert error < 0.5 * math.hypot(*(evaluation.mean_and_error(x)[1] for x in (a, b)))


def test_bootstrap_is_its_own_mirror():
    rng = np.random.default_rng(4)
    a, b = rng.choice([0.0, 0.5, 1.0], (2, 41))
    there, back = (evaluation.paired_bootstrap(*x, seed=1) for x in ((a, b), (b, a)))
    assert there["difference"] == pytest.approx(-back["difference"])
    assert there["low"] == pytest.approx(-back["high"])
    ties = there["not_better"] + back["not_better"] - 1
    assert 0 <= ties < 0.2


def test_bootstrap_at_its_ends():
    a = np.array([1.0, 0.5, 0.0, 1.0])
    same = evaluation.paired_bootstrap(a, a, seed=0)
    assert same == {"difference": 0.0, "low": 0.0, "high": 0.0, "not_better": 1.0}
    all_won = evaluation.paired_bootstrap(np.ones(9), np.zeros(9), seed=0)
    assert all_won == {"difference": 1.0, "low": 1.0, "high": 1.0, "not_better": 0.0}
    assert evaluation.paired_bootstrap(a, a[::-1], 7) == evaluation.paired_bootstrap(
        a, a[::-1], 7
    )
    with pytest.raises(InputError, match="4 outcomes cannot be paired with 3"):
        evaluation.paired_bootstrap(a, a[:3], seed=0)
    with pytest.raises(InputError, match="rounds=0"):
        evaluation.paired_bootstrap(a, a, seed=0, rounds=0)


def test_rounds_that_cancel_are_not_better():
    """0.1 thirty times less 3.0 once is not 0 in floating point, but is no lead."""
    a = np.full(10, 0.1 + 0.2)
    assert evaluation.paired_bootstrap(a, np.full(10, 0.3), seed=0)["not_better"] == 1.0


def test_over_seeds():
    found = evaluation.over_seeds([1.0, 2.0, 6.0])
    assert found["mean"] == pytest.approx(3.0)
    assert found["se"] == pytest.approx(math.sqrt((4 + 1 + 9) / 2 / 3))
    assert found["n"] == 3
    assert evaluation.over_seeds([0.5]) == {"mean": 0.5, "se": None, "n": 1}
    nothing = {"mean": None, "se": None}
    assert evaluation.over_seeds([]) == {**nothing, "n": 0}
    assert evaluation.over_seeds([10, None, 20]) == {**nothing, "n": 3}
    assert evaluation.over_seeds([10, math.nan]) == {**nothing, "n": 2}


def test_smoothing_by_hand():
    np.testing.assert_allclose(evaluation.smooth([0, 3, 6, 0]), [0, 3, 3, 3])
    np.testing.assert_allclose(evaluation.smooth([1, 3]), [1, 2])
    np.testing.assert_allclose(evaluation.smooth([5]), [5])
    line = np.arange(9.0)
    np.testing.assert_allclose(evaluation.smooth(line)[:-1], line[:-1])


STEPS = [0, 10, 20, 30, 40, 50]


def test_time_to_a_share_of_the_own_gain():
    # Smoothed: 0, 1, 2, 3, 3 1/3, 3.5, so the gain is 3.5.
    scores = [0, 1, 2, 3, 4, 3]
    np.testing.assert_allclose(evaluation.smooth(scores), [0, 1, 2, 3, 10 / 3, 3.5])
    assert evaluation.time_to(STEPS, scores) == 40  # 3.325
    assert evaluation.time_to(STEPS, scores, share=0.8) == 30  # 2.8
    assert evaluation.time_to(STEPS, scores, share=0.5) == 20
    assert evaluation.time_to(STEPS, scores, share=1.0) == 50


def test_time_to_does_not_depend_on_the_unit():
    scores = np.array([0, 1, 2, 3, 4, 3])
    for share in (0.1, 0.5, 0.8, 0.95, 1.0):
        moved = evaluation.time_to(STEPS, 0.3 * scores - 0.7, share=share)
        assert moved == evaluation.time_to(STEPS, scores, share=share)


def test_time_to_a_fixed_score():
    scores = [0, 1, 2, 3, 4, 3]
    assert evaluation.time_to(STEPS, scores, target=2) == 20
    assert evaluation.time_to(STEPS, scores, target=2.01) == 30
    assert evaluation.time_to(STEPS, scores, target=-1) == 0  # it starts there
    assert evaluation.time_to(STEPS, scores, target=3.6) is None  # 4 is one noisy evaluation


def test_the_first_time_counts_even_if_it_is_lost_again():
    assert evaluation.time_to(STEPS, [0, 4, 8, 0, 0, 0], share=0.8) == 10
    assert evaluation.time_to(STEPS, [0, 4, 8, 0, 0, 0], target=4) == 10


def test_no_gain_is_never():
    assert evaluation.time_to(STEPS, [3, 2, 2, 1, 1, 0]) is None
    assert evaluation.time_to(STEPS, [3] * 6) is None
    assert evaluation.time_to([0], [3]) is None
    # A collapse after a gain is a gain.
    assert evaluation.time_to(STEPS, [3, 5, 5, -9, -9, -9], share=0.8) == 10


@pytest.mark.parametrize(
    ("steps", "scores", "message"),
    [
        ([0, 10], [1.0], "one score at each"),
        ([0, 10, 10], [1.0, 2.0, 3.0], "increasing"),
        ([0, 10], [1.0, math.nan], "nan at 1"),
        ([], [], "at least one"),
    ],
)
def test_curves_that_are_none(steps, scores, message):
    with pytest.raises(InputError, match=message):
        evaluation.time_to(steps, scores)
