"""Correction accuracy by hand, its errors against a loop, and rank correlations."""

import math

import numpy as np
import pytest
from scipy import stats

from fgrlhf_jax.functional import correction
from fgrlhf_jax.functional.correction import Scores, cluster_mean, rank_correlation, summarize


def scores(put_in, taken_out, records, kinds, logprob=(-1.0, -2.0), **fields) -> Scores:
    texts, written = (put_in, taken_out), [False] * len(records)
    values = kinds, records, *texts, *texts, written, range(len(logprob)), logprob
    arrays = dict(zip(Scores._fields, values, strict=True)) | fields
    return Scores(**{name: np.array(value) for name, value in arrays.items()})


def test_by_hand():
    """P(A) = .6 against P(B) = .2; .1 against .3; equal; the first tokens say otherwise."""
    made = scores(
        np.log([0.6, 0.1, 0.4]),
        np.log([0.2, 0.3, 0.4]),
        [0, 0, 1],
        ["replace", "insert", "replace"],
        first_inserted_N=np.log([0.6, 0.5, 0.4]),
        written_N=[True, False, False],
    )
    result = summarize(made)
    assert result["sampled"]["mean"] == pytest.approx((0.75 + 0.25 + 0.5) / 3)
    assert result["greedy"]["mean"] == pytest.approx((1 + 1 + 0.5) / 3)
    assert result["written"]["mean"] == pytest.approx(1 / 3)
    assert result["by_record"]["sampled"] == pytest.approx([1 * 2 / 3, 0.5 * 2 / 3])
    assert result["by_kind"]["replace"]["sampled"]["mean"] == pytest.approx(0.625)
    assert result["by_kind"]["insert"]["sampled"] == {
        "mean": pytest.approx(0.25),
        "n": 1,
        "records": 1,
        **dict.fromkeys(("se", "low", "high")),
    }
    assert result["unchanged"]["logprob"]["mean"] == -1.5
    # Records 0 and 1 have residuals 0 and 0 around the mean .5.
    assert result["sampled"]["se"] == pytest.approx(0)
    assert correction.format_table(result).splitlines()[1].split()[:3] == ["all", "3", "50.0"]


def test_probabilities_that_underflow():
    result = summarize(scores([-3000.0, -900.0], [-2000.0, -901.0], [0, 1], ["insert"] * 2))
    assert result["sampled"]["mean"] == pytest.approx((0 + 1 / (1 + math.exp(-1))) / 2)


def test_against_a_reference():
    """The gain is paired, so that its error is that of the differences."""
    kinds = ["insert", "delete", "insert"]
    before = scores(np.log([0.1, 0.2, 0.3]), np.log([0.9, 0.8, 0.7]), [0, 1, 2], kinds)
    after = scores(np.log([0.3, 0.4, 0.5]), np.log([0.7, 0.6, 0.5]), [0, 1, 2], kinds, (-1.5, -1))
    result = summarize(after, before)
    assert result["gain"]["sampled"]["mean"] == pytest.approx(0.2)
    assert result["gain"]["sampled"]["se"] == pytest.approx(0, abs=1e-12)
    assert result["gain"]["by_kind"]["delete"]["sampled"]["mean"] == pytest.approx(0.2)
    assert result["reference"]["sampled"]["mean"] == pytest.approx(0.2)
    assert result["unchanged"]["moved"]["mean"] == pytest.approx((0.5 + 1) / 2)
    assert result["unchanged"]["drift"]["mean"] == pytest.approx((-0.5 + 1) / 2)
    assert summarize(before, before)["unchanged"]["moved"]["mean"] == 0
    assert "gain" in correction.format_table(result)
    alike = summarize(*[scores([-1.0] * 9, [-2.0] * 9, [*range(3)] * 3, ["insert"] * 9)] * 2)
    low, high = stats.binomtest(3, 3).proportion_ci(method="wilson")  # three do not make it certain
    assert (alike["greedy"]["low"], alike["greedy"]["high"]) == pytest.approx((low, high))
    assert "100.0 % (44 to 100)" in correction.format_table(alike)
    assert alike["gain"]["greedy"]["low"] == -alike["gain"]["greedy"]["high"] < -0.5


def test_the_error_is_over_records():
    """Against the formula as a loop; copies of every value in its record do not make it smaller."""
    rng = np.random.default_rng(0)
    records = rng.integers(0, 30, 200)
    values = rng.normal(size=200) + records % 3
    result = cluster_mean(values, records)
    mean = sum(values) / 200
    squares = sum(
        (sum(values[records == r]) - mean * sum(records == r)) ** 2 for r in set(records.tolist())
    )
    count = len(set(records.tolist()))
    expected = math.sqrt(count / (count - 1) * squares) / 200
    assert result["se"] == pytest.approx(expected)
    half = stats.t.ppf(0.975, count - 1) * expected
    assert (result["low"], result["high"]) == pytest.approx((mean - half, mean + half))
    copies = cluster_mean(np.repeat(values, 7), np.repeat(records, 7))
    assert copies["se"] == pytest.approx(expected)
    alone = cluster_mean(values, np.arange(200))
    assert alone["se"] == pytest.approx(np.std(values, ddof=1) / math.sqrt(200))
    assert cluster_mean(np.zeros(0), np.zeros(0))["mean"] is None


def test_rank_correlation():
    """Ranks 1 2 3 4 against 2 1 3 4: 1 - 6 · 2 / (4 · 15)."""
    assert rank_correlation([0.1, 0.2, 5, 9], [20, 10, 30, 40]) == pytest.approx(0.8)
    assert rank_correlation([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert rank_correlation([1, None, 2, 3, 9], [1, 9, 2, 3, None]) == pytest.approx(1)
    assert rank_correlation([1, 2], [1, 2]) is None
    assert rank_correlation([1, 1, 1], [1, 2, 3]) is None
