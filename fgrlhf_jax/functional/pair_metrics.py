"""Metrics of a reward model on pairs of responses, in NumPy on the host.

Accuracy, AUROC and length correlation, as in Table 2 of the paper, and the mean reward of changed
and unchanged tokens.
"""

from typing import NamedTuple

import numpy as np

from fgrlhf_jax.functional.win_rate import mean_and_error, wilson_interval


class PairValues(NamedTuple):
    """A reward model's values for the response tokens of one pair, without prompt and padding.

    Side i is the edited or preferred response, side j the other one. Values are float[T^i] and
    float[T^j]. ``changed`` is bool of the same lengths, True on tokens that the edit changed (in a
    preference pair: on all).
    """

    value_i: np.ndarray
    changed_i: np.ndarray
    value_j: np.ndarray
    changed_j: np.ndarray


def auroc(score: np.ndarray, label: np.ndarray) -> float | None:
    """Area under the ROC curve: P(score of a positive > score of a negative), ties one half.

    ``score`` is float[n], ``label`` bool[n]. None if one class is empty.
    """
    label = np.asarray(label, bool)
    positives, negatives = score[label], np.sort(score[~label])
    if not positives.size or not negatives.size:
        return None
    below, ties_too = (np.searchsorted(negatives, positives, side) for side in ("left", "right"))
    area = (below + ties_too).sum() / 2 / (positives.size * negatives.size)
    return float(np.where(np.isnan(score).any(), np.nan, area))


def correlation(x: np.ndarray, y: np.ndarray) -> float | None:
    """Pearson's r, or None if either argument is constant."""
    if x.size < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    return float(np.corrcoef(x, y)[0, 1])


def _moments(values: list[np.ndarray]) -> dict:
    joined = np.concatenate(values) if values else np.zeros(0)
    if not joined.size:
        return {"mean": None, "std": None, "n": 0}
    return {"mean": float(joined.mean()), "std": float(joined.std()), "n": int(joined.size)}


def _accuracy(margins: list[float]) -> tuple[float, float | None]:
    """Share of positive margins (ties count one half), and its error; None for a single pair."""
    return mean_and_error(0.5 * (1.0 + np.sign(np.array(margins, np.float64))))


def compute_pair_metrics(
    pairs: list[PairValues], *, level: str, edits: bool, center: float = 0.0
) -> dict:
    """Metrics of one set of pairs.

    Args:
      pairs: at least one, in any order.
      level: "token": a response scores the mean of its rewards (Equation 1); "sequence": the value
        at its last token.
      edits: whether the pairs are edits; adds metrics of changed tokens.
      center: the constant that normalization subtracts from every token's reward; with it, a
        response's total would depend on its length.

    Returns:
      n, accuracy and its standard error ``se``, length_correlation (of a response's total reward
      with its length, both sides). For edits also accuracy_changed_only (Equation 4's score);
      auroc_changed (-r_t against "the edit changed this token", on original-side tokens; None at
      the sequence level, whose values were never trained as token rewards); and reward (mean, std,
      n on unchanged and changed tokens of each side).
    """
    if level == "sequence":
        score = total = lambda values: values[-1]
    else:
        score, total = np.mean, lambda values: (values - center).sum()
    accuracy, error = _accuracy([score(p.value_i) - score(p.value_j) for p in pairs])
    responses = [r for p in pairs for r in (p.value_i, p.value_j)]
    totals, lengths = np.array([(total(r), r.size) for r in responses], np.float64).T
    table = {
        "n": len(pairs),
        "accuracy": accuracy,
        "se": error,
        "length_correlation": correlation(totals, lengths),
    }
    if not edits:
        return table
    changed_margins = [
        p.value_i[p.changed_i].sum() / p.value_i.size
        - p.value_j[p.changed_j].sum() / p.value_j.size
        for p in pairs
    ]
    table["accuracy_changed_only"], table["se_changed_only"] = _accuracy(changed_margins)
    values = [p.value_j for p in pairs] if level == "token" else []
    table["auroc_changed"] = span_auroc(values, [p.changed_j for p in pairs])
    table["reward"] = {
        "unchanged_edited": _moments([p.value_i[~p.changed_i] for p in pairs]),
        "unchanged_original": _moments([p.value_j[~p.changed_j] for p in pairs]),
        "changed_edited": _moments([p.value_i[p.changed_i] for p in pairs]),
        "changed_original": _moments([p.value_j[p.changed_j] for p in pairs]),
    }
    return table


def span_auroc(values: list[np.ndarray], labels: list[np.ndarray]) -> float | None:
    """AUROC of -r_t against tokens that are marked as errors; one array per response."""
    return auroc(-np.concatenate(values), np.concatenate(labels)) if values else None


def _format(value) -> str:
    return "-" if value is None else f"{value:.3f}"


def _format_share(value, error, n) -> str:
    if value is None:
        return "-"
    low, high = wilson_interval(value, n)
    spread = "" if not error else f" ± {100 * error:.1f}"
    return f"{100 * value:.1f}{spread} % ({100 * low:.0f}–{100 * high:.0f})"


def format_table(tables: dict) -> str:
    """The metrics of ``eval.json`` (set name -> kind of pairs -> metrics) as text.

    One line per set and kind, then the rewards of unchanged and changed tokens. Shares have ± one
    standard error and Wilson's 95 % interval.
    """
    lines = [
        f"{'set':<12}{'pairs':<12}{'n':>6}{'loss':>8}{'accuracy (95 %)':>24}{'changed only':>24}"
        f"{'AUROC':>8}{'spans':>8}{'r(length)':>11}"
    ]
    rewards = []
    for name, kinds in tables.items():
        for kind, table in kinds.items():
            n, names = table["n"], ("accuracy_changed_only", "se_changed_only")
            changed = _format_share(*map(table.get, names), n)
            lines.append(
                f"{name:<12}{kind:<12}{n:>6}{_format(table.get('loss')):>8}"
                f"{_format_share(table['accuracy'], table['se'], n):>24}{changed:>24}"
                f"{_format(table.get('auroc_changed')):>8}{_format(table.get('auroc_spans')):>8}"
                f"{_format(table['length_correlation']):>11}"
            )
            for token_class, moments in table.get("reward", {}).items():
                rewards.append(
                    f"{name:<12}{token_class.replace('_', ', '):<22}{moments['n']:>8} tokens   "
                    f"raw reward: mean {_format(moments['mean'])}, std {_format(moments['std'])}"
                )
    return "\n".join(lines + (["", *rewards] if rewards else []))
