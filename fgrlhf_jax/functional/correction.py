"""Correction accuracy: how often a policy prefers people's insertions to what they removed.

In NumPy on the host. At each place that an edit changed, A are the next tokens of the edited text,
B equally many of the original, and x is the prefix of both:

    sampled   P(A | x) / (P(A | x) + P(B | x)): how often a policy that writes A or B writes A
    greedy    1 if P(a_1 | x) > P(b_1 | x), the first tokens, which differ; one half if equal
    written   1 if greedy decoding takes a_1

Means are over changes. Changes of one record are not independent, so standard errors are over
records (the linearised ratio estimator; Cochran 1977, "Sampling techniques", 6.4).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import special

from fgrlhf_jax.functional.win_rate import clopper_pearson, wilson_interval

MEASURES = ("sampled", "greedy", "written")


class Scores(NamedTuple):
    """A policy's log-probabilities (float) on a file of edits: N changes, M unchanged tokens."""

    kind_N: np.ndarray  # str, kind of change: insert, replace or delete
    record_N: np.ndarray  # int, the record of the change
    inserted_N: np.ndarray  # log P(A | x)
    removed_N: np.ndarray  # log P(B | x)
    first_inserted_N: np.ndarray  # of the first token of A
    first_removed_N: np.ndarray  # of B
    written_N: np.ndarray  # bool, whether greedy decoding takes the first token of A
    record_M: np.ndarray
    logprob_M: np.ndarray  # of each token that nobody changed


def preferences(scores: Scores) -> dict[str, np.ndarray]:
    """float64[N] for each of ``MEASURES``, by the formulas at the top of this file."""
    margin_N = scores.inserted_N.astype(np.float64) - scores.removed_N
    first_N = scores.first_inserted_N.astype(np.float64) - scores.first_removed_N
    return {
        "sampled": 0.5 * (1.0 + np.tanh(margin_N / 2)),
        "greedy": 0.5 * (1.0 + np.sign(first_N)),
        "written": scores.written_N.astype(np.float64),
    }


def cluster_mean(values_N: np.ndarray, record_N: np.ndarray, exact: Callable | None = None) -> dict:
    """The mean over all values, with its standard error over their records.

    With n_r values of sum s_r in record r of R, and m = Σ s_r / Σ n_r,

        se² = R / (R - 1) Σ_r (s_r - m n_r)² / (Σ n_r)²

    Returns ``mean``, ``se``, ``low`` and ``high`` (mean ± t se, t the 97.5 % quantile of Student's
    t with R - 1 degrees of freedom), and the counts ``n`` of values and ``records``. Without values
    all but the counts are None; with a single record se, low and high are None. If records do not
    differ, low and high are ``exact(mean, R)``, if it is given.
    """
    records, index_N = np.unique(record_N, return_inverse=True)
    result = dict.fromkeys(("mean", "se", "low", "high"))
    result |= {"n": len(values_N), "records": len(records)}
    if not len(values_N):
        return result
    result["mean"] = mean = float(np.mean(values_N, dtype=np.float64))
    if len(records) > 1:
        residual_R = np.bincount(index_N, np.asarray(values_N, np.float64) - mean)
        correction = len(records) / (len(records) - 1)
        error = float(np.sqrt(correction * np.sum(residual_R**2)) / len(values_N))
        margin = special.stdtrit(len(records) - 1, 0.975) * error
        low, high = mean - margin, mean + margin
        if exact and not error:
            low, high = exact(mean, len(records))
        result |= {"se": error, "low": float(low), "high": float(high)}
    return result


def record_shares(values_N: np.ndarray, record_N: np.ndarray) -> list[float]:
    """One number per record, for pairing two policies by record as win rates are by prompt.

    It is R / N times the sum of the record's values; the mean of the R numbers is the mean of all
    N values.
    """
    records, index_N = np.unique(record_N, return_inverse=True)
    return (np.bincount(index_N, values_N) * len(records) / len(values_N)).tolist()


def summarize(scores: Scores, reference: Scores | None = None) -> dict:
    """Correction accuracy, overall and by kind of change, and how far unchanged tokens moved.

    Args:
      reference: scores of another policy on the same changes and tokens, such as the policy before
        training.

    Returns:
      - each of ``MEASURES``: its :func:`cluster_mean`; ``by_kind``: the same per kind of change;
      - ``by_record``: see :func:`record_shares`;
      - ``unchanged``: ``logprob``, the mean log-probability of unchanged tokens;
      - with a reference: ``reference``, its own summary; ``gain``, the paired differences to it for
        each measure; and in ``unchanged`` the means ``moved`` of |log p - log p_ref| and ``drift``
        of log p - log p_ref, in nats per token.
    """
    accuracy = preferences(scores)
    result = _means(scores, accuracy, wilson_interval)
    result["by_record"] = {n: record_shares(accuracy[n], scores.record_N) for n in MEASURES}
    result["unchanged"] = {"logprob": cluster_mean(scores.logprob_M, scores.record_M)}
    if reference is not None:
        ref_accuracy = preferences(reference)
        gains = {name: accuracy[name] - ref_accuracy[name] for name in MEASURES}
        drift_M = scores.logprob_M.astype(np.float64) - reference.logprob_M
        result["unchanged"] |= {
            "moved": cluster_mean(np.abs(drift_M), scores.record_M),
            "drift": cluster_mean(drift_M, scores.record_M),
        }
        result["reference"] = summarize(reference)
        result["gain"] = _means(scores, gains, clopper_pearson)
    return result


def _means(scores: Scores, values: Mapping[str, np.ndarray], exact: Callable) -> dict:
    """Means of the values of each measure, over all changes and over each kind of change."""
    by_kind = {}
    for kind in dict.fromkeys(scores.kind_N.tolist()):
        of_kind = scores.kind_N == kind
        record_N = scores.record_N[of_kind]
        by_kind[kind] = {n: cluster_mean(values[n][of_kind], record_N, exact) for n in MEASURES}
    means = {n: cluster_mean(values[n], scores.record_N, exact) for n in MEASURES}
    return means | {"by_kind": by_kind}


def rank_correlation(x: Sequence[float | None], y: Sequence[float | None]) -> float | None:
    """Spearman's rank correlation over the pairs in which both values are known.

    None with fewer than three such pairs, or if x or y is constant.
    """
    from scipy.stats import spearmanr  # a second to import

    known = np.array([p for p in zip(x, y, strict=True) if None not in p], np.float64)
    if len(known) < 3 or not np.ptp(known, axis=0).all():
        return None
    return float(spearmanr(*known.T).statistic)


def format_table(result: Mapping) -> str:
    """The result of :func:`summarize` as text, one line per kind of change."""
    headings = "".join(f"{name:>22}" for name in MEASURES)
    lines = [f"{'changes':<12}{'n':>7}{headings}"]
    tables = {"": result, "reference": result.get("reference"), "gain": result.get("gain")}
    for title, table in tables.items():
        is_gain, rows = title == "gain", {"all": table, **table["by_kind"]} if table else {}
        lines += [title] if table and title else []
        for kind, row in rows.items():
            cells = "".join(f"{_percent(row[name], is_gain):>22}" for name in MEASURES)
            lines.append(f"{kind:<12}{row['sampled']['n']:>7}{cells}")
    unchanged = result["unchanged"]
    lines.append(f"unchanged tokens: {unchanged['logprob']['n']}, in nats a token:")
    for name, row in unchanged.items():
        error = "" if row["se"] is None else f" ± {row['se']:.4f}"
        value = "-" if row["mean"] is None else f"{row['mean']:.4f}{error}"
        lines.append(f"{name:<12}{value:>7}")
    return "\n".join(lines)


def _percent(row: Mapping, signed: bool) -> str:
    if row["mean"] is None:
        return "-"
    value = f"{100 * row['mean']:{'+' if signed else ''}.1f}"
    if row["se"] == 0:
        return f"{value} % ({100 * row['low']:.0f} to {100 * row['high']:.0f})"
    return f"{value} %" if row["se"] is None else f"{value} ± {100 * row['se']:.1f} %"
