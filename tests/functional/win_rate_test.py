"""Win rates, intervals and steps to a score: by hand, by loops, and by a published figure."""

import math

import numpy as np
import pytest
from scipy import stats

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.functional import win_rate

SCORES = [0, 1, 2, 3, 4, 3]  # smoothed: 0, 1, 2, 3, 10/3, 3.5
STEPS = [0, 10, 20, 30, 40, 50]


def test_outcomes_by_hand():
    # Won, drawn (within the tolerance, from either side), lost.
    won = win_rate.outcomes([1.0, 0.5, 0.3, 0.2], [0.5, 0.5 + 9e-7, 0.3 - 9e-7, 0.4])
    assert won.tolist() == [1, 0.5, 0.5, 0]
    assert win_rate.outcomes([0.1, 0.9], [0.0, 1.0], tolerance=0.2).tolist() == [0.5, 0.5]
    assert win_rate.outcomes([0.25], [0.0], tolerance=0.25).tolist() == [0.5]
    assert win_rate.mean_and_error([2.0]) == (2.0, None)


@pytest.mark.parametrize(("share", "n"), [(1.0, 20), (0.0, 20), (0.5, 1), (0.75, 40), (0.15, 804)])
def test_intervals_of_shares(share, n):
    """Their ends are the shares p that lie z √(p (1 - p) / n) from the observed one."""
    ends = win_rate.wilson_interval(share, n)
    for end, bound in zip(ends, (0, 1), strict=True):
        if share == bound:
            assert end == bound
        else:
            error = math.sqrt(end * (1 - end) / n)
            assert abs(share - end) == pytest.approx(1.959964 * error)
    if n == 20:
        assert abs(sum(ends) - 1) == pytest.approx(20 / (20 + 1.959964**2))


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
        win_rate.outcomes(scores, reference)


@pytest.mark.parametrize("size", [4, 33])
def test_bootstrap_equals_a_loop(size, monkeypatch):
    rng = np.random.default_rng(size)
    a, b = rng.choice([0.0, 0.5, 1.0], (2, size))
    rng, drawn = np.random.default_rng(5), []
    for _ in range(201):
        rows = rng.integers(0, size, size)
        drawn.append(sum(a[row] - b[row] for row in rows) / size)
    drawn.sort()
    lead, unseen = (a - b).mean(), 1 - 0.025 ** (1 / size)  # a share that may be -1, or 1
    expected = {
        "difference": lead,
        "low": min(drawn[5], lead - unseen * (1 + lead)),  # 2.5 % of 200 steps
        "high": max(drawn[195], lead + unseen * (1 - lead)),
        "not_better": sum(value < 1e-9 for value in drawn) / 201,
    }
    result = win_rate.paired_bootstrap(a, b, seed=5, rounds=201)
    assert result == pytest.approx(expected, abs=1e-12)
    # Drawn in pieces: the same rounds.
    monkeypatch.setattr("fgrlhf_jax.functional.win_rate._CHUNK_SIZE", 7 * size)
    assert win_rate.paired_bootstrap(a, b, seed=5, rounds=201) == result


def test_bootstrap_at_its_ends():
    a = np.array([1.0, 0.5, 0.0, 1.0])
    for lead, size in ((0.0, 1), (0.0, 9), (1.0, 1), (1.0, 9)):  # as sure as paired_interval
        b = np.full(size, 1.0 - lead)
        expected = win_rate.paired_interval([b + lead], [b]) | {"not_better": 1.0 - lead}
        assert win_rate.paired_bootstrap(b + lead, b, seed=0) == expected
    # 0.1 + 0.2 less 0.3 is not 0 in floating point, but is no lead.
    sums = np.full(10, 0.1 + 0.2)
    assert win_rate.paired_bootstrap(sums, np.full(10, 0.3), seed=0)["not_better"] == 1.0
    with pytest.raises(InputError, match="4 outcomes cannot be paired with 3"):
        win_rate.paired_bootstrap(a, a[:3], seed=0)
    with pytest.raises(InputError, match="rounds=0"):
        win_rate.paired_bootstrap(a, a, seed=0, rounds=0)


def test_intervals_of_one_seed_and_where_seeds_alone_differ_are_those_of_t_tests():
    a, b = np.random.default_rng(0).choice([0.0, 0.5, 1.0], (2, 1, 40))
    low, high = stats.ttest_rel(a[0], b[0]).confidence_interval(0.95)
    expected = {"difference": (a - b).mean(), "low": low, "high": high}
    assert win_rate.paired_interval(a, b) == pytest.approx(expected)
    a = np.array([[1.0, 0.5, 0.0, 1.0] * 5] * 3) + np.array([[0.1], [0.0], [-0.3]])
    b = np.array([[1.0, 0.5, 0.0, 1.0] * 5])
    low, high = stats.ttest_1samp([0.1, 0.0, -0.3], 0).confidence_interval(0.95)
    expected = {"difference": -0.2 / 3, "low": low, "high": high}
    assert win_rate.paired_interval(a, b) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("seeds", "spread_of_seeds", "spread_of_prompts"),
    [(3, 0.0, 0.0), (3, 0.1, 0.1), (5, 0.0, 0.3), (5, 0.02, 0.0), (5, 0.05, 0.1), (5, 0.1, 0.3)],
)
def test_intervals_cover_what_is_so(seeds, spread_of_seeds, spread_of_prompts):
    """In studies whose seeds, prompts and chance all vary, 95 % of the intervals contain it."""
    rng, prompts, covered = np.random.default_rng(1), 60, []
    for _ in range(800):
        a = 0.3 + rng.normal(0, spread_of_seeds, (seeds, 1))
        a = a + rng.normal(0, spread_of_prompts, prompts) + rng.normal(0, 0.5, (seeds, prompts))
        interval = win_rate.paired_interval(a, np.zeros((1, prompts)))
        covered.append(interval["low"] <= 0.3 <= interval["high"])
    assert 0.935 <= np.mean(covered) <= 0.995


def test_intervals_at_their_ends():
    a = np.array([[1.0, 0.5, 0.0, 1.0]])
    for prompts in (1, 5, 6, 20):  # all won: as sure as a sign test, 2 / 2^N
        all_won = win_rate.paired_interval(np.ones((2, prompts)), np.zeros((1, prompts)))
        assert (all_won["low"] > 0) == (2 / 2**prompts < 0.05)
        assert (all_won["difference"], all_won["high"]) == (1.0, 1.0)
    unseen = 1 - 0.025 ** (1 / 4)
    assert win_rate.paired_interval(a, a) == {"difference": 0.0, "low": -unseen, "high": unseen}
    for other in (a[:, :3], np.ones((3, 4))):
        with pytest.raises(InputError, match=r"shape \(2, 4\) cannot be paired with \(\d, \d\)"):
            win_rate.paired_interval(np.repeat(a, 2, 0), other)
    with pytest.raises(InputError, match="one row a seed"):
        win_rate.paired_interval(a[0], a[0])


def test_relabelling_by_hand():
    """Of two and two runs there are six ways; 1 + 2 against 3 + 4 is the farthest of three."""

    def difference(one, other):
        return [np.mean(one) - np.mean(other), 0.0]

    observed, p = win_rate.permutation_test([1.0, 2.0], [3.0, 4.0], difference)
    assert (observed, p) == ([-2.0, 0.0], [pytest.approx(2 / 6), 1.0])
    assert win_rate.permutation_test([1.0, 4.0], [3.0, 2.0], difference)[1] == [1.0, 1.0]


def test_relabelling_equals_another_implementation(monkeypatch):
    rng = np.random.default_rng(0)
    first, second = rng.normal(0, 1, 6), rng.normal(1, 1, 6)

    def difference(one, other, axis=-1):
        return np.mean(one, axis=axis) - np.mean(other, axis=axis)

    expected = stats.permutation_test((first, second), difference, n_resamples=np.inf).pvalue

    def statistics(one, other):
        return [difference(one, other)]

    assert win_rate.permutation_test(first, second, statistics)[1] == [pytest.approx(expected)]
    monkeypatch.setattr("fgrlhf_jax.functional.win_rate._MAX_SPLITS", 500)  # of 924
    assert win_rate.permutation_test(first, second, statistics)[1] == [
        pytest.approx(expected, abs=0.03)
    ]


def test_mean_over_seeds():
    result = win_rate.mean_over_seeds([1.0, 2.0, 6.0])
    assert result == pytest.approx({"mean": 3.0, "se": math.sqrt(14 / 2 / 3), "n": 3})
    assert win_rate.mean_over_seeds([0.5]) == {"mean": 0.5, "se": None, "n": 1}
    for values in ([], [10, None, 20], [10, math.nan]):
        assert win_rate.mean_over_seeds(values) == {"mean": None, "se": None, "n": len(values)}


def test_smoothing_by_hand():
    np.testing.assert_allclose(win_rate.smooth([0, 3, 6, 0]), [0, 3, 3, 3])
    np.testing.assert_allclose(win_rate.smooth([1, 3]), [1, 2])
    np.testing.assert_allclose(win_rate.smooth([5]), [5])
    np.testing.assert_allclose(win_rate.smooth(SCORES), [0, 1, 2, 3, 10 / 3, 3.5])


@pytest.mark.parametrize(
    ("scores", "options", "step"),
    [
        (SCORES, {}, 40),  # 0.95 of 3.5 is 3.325
        (SCORES, {"share": 0.8}, 30),
        (SCORES, {"share": 0.5}, 20),
        (SCORES, {"share": 1.0}, 50),
        (SCORES, {"target": 2}, 20),
        (SCORES, {"target": 2.01}, 30),
        (SCORES, {"target": -1}, 0),  # it starts there
        (SCORES, {"target": 3.6}, None),  # 4 is one noisy evaluation
        # The first time counts, even if it is lost again.
        ([0, 4, 8, 0, 0, 0], {"share": 0.8}, 10),
        ([0, 4, 8, 0, 0, 0], {"target": 4}, 10),
        ([3, 5, 5, -9, -9, -9], {"share": 0.8}, 10),
        # Without a gain, never.
        ([3, 2, 2, 1, 1, 0], {}, None),
        ([3] * 6, {}, None),
        ([3], {}, None),
    ],
)
def test_steps_to_reach_a_score(scores, options, step):
    steps = STEPS[: len(scores)]
    assert win_rate.steps_to_reach(steps, win_rate.smooth(scores), **options) == step
    if "target" not in options:  # whatever the unit of the scores
        other = win_rate.smooth(0.3 * np.array(scores) - 0.7)
        assert win_rate.steps_to_reach(steps, other, **options) == step


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
        win_rate.steps_to_reach(steps, scores)
