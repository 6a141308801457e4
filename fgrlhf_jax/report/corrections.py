"""Correction accuracy of every policy on held-out edits, and its correlation with the judge."""

from collections.abc import Mapping, Sequence

from fgrlhf_jax.functional.correction import rank_correlation
from fgrlhf_jax.functional.win_rate import mean_and_error, mean_over_seeds
from fgrlhf_jax.report.verdict import DECODINGS

_FIGURES = {"sampled": (), "greedy": (), "written": (), "moved": ("unchanged",)}


def compare_arms(arms: Mapping[str, Mapping], table1: Mapping[str, Mapping]) -> dict:
    """Correction accuracy, words still to change and fluency of every arm.

    Args:
      arms: of a study; a measure that its runs lack is None in the result.
      table1: ``gold`` and ``greedy_gold`` by arm.

    Returns:
      ``arms``: per arm the mean and its standard error (over seeds; with one seed over records) of
      the measures of ``functional.correction``, of the change of unchanged tokens'
      log-probabilities, and for each decoding of the words that an editor would still change and
      of ``fluency``.
      ``rank_correlation`` (Spearman, over arms) of correction accuracy with the judge's score:
      "sampled" with the score at T = 1, "greedy" with the greedy score.
    """
    rows = {name: measure_arm(arm["runs"]) for name, arm in arms.items()}
    scores = {"sampled": "gold", "greedy": "greedy_gold"}
    correlations = {
        decoding: rank_correlation(
            [row[decoding]["mean"] for row in rows.values()], [table1[name][score] for name in rows]
        )
        for decoding, score in scores.items()
    }
    return {"arms": rows, "rank_correlation": correlations}


def measure_arm(runs: Sequence[Mapping]) -> dict:
    """The row of one arm in the result of :func:`compare_arms`."""
    row = {}
    for name, path in _FIGURES.items():
        parts = [run.get("corrections") or {} for run in runs]
        for key in (*path, name):
            parts = [part.get(key) or {} for part in parts]
        row[name] = combine_seeds([(part.get("mean"), part.get("se")) for part in parts])
    for decoding in DECODINGS:
        words = [run[decoding].get("words_to_change") or [] for run in runs]
        seeds = [mean_and_error(counts) if counts else (None, None) for counts in words]
        row[f"words_{decoding}"] = combine_seeds(seeds)
        parts = [(run.get("fluency") or {}).get(decoding) or {} for run in runs]
        row[f"fluency_{decoding}"] = combine_seeds([(p.get("mean"), p.get("se")) for p in parts])
    return row


def combine_seeds(runs: Sequence[tuple[float | None, float | None]]) -> dict[str, float | None]:
    """Combines (mean, error) of each seed; the error over seeds, or that of a single seed."""
    combined = mean_over_seeds([mean for mean, _ in runs])
    return {"mean": combined["mean"], "se": runs[0][1] if len(runs) == 1 else combined["se"]}
