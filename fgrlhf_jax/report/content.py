"""The content of ``report.json``, computed from a study's results; both pages only render it.

:func:`build_report` takes the results of a pipeline's stages as one plain dict. Per arm and seed:
the judge's scores of the test responses, outcomes against the reference, lengths and the learning
curve. Per reward model and seed: accuracies and the token rewards of sample responses. Also
seconds and commands. It computes only means, errors, steps and intervals.

Standard errors are over seeds if an arm has several runs, else over prompts ("se_over").
"""

import itertools
import json
import math

import numpy as np

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.functional import win_rate
from fgrlhf_jax.functional.win_rate import mean_and_error, mean_over_seeds
from fgrlhf_jax.report import corrections, speed, verdict

_COPIED_KEYS = (
    *("title", "judge", "seeds", "test_prompts"),
    *("heatmaps", "samples", "seconds", "commands", "config", "about"),
)
CURVES = ("gold", "reward", "kl", "length", "unfinished", "seconds")


def build_report(study: dict) -> dict:
    """The content of ``report.json``: tables, curves, differences, heat maps, commands, the answer.

    Raises InputError if an arm has no run, or if runs differ in their number of test prompts.
    """
    arms, models = study["arms"], study["reward_models"]
    _check(study)
    trained = {n: curves for n, arm in arms.items() if (curves := _evaluations(arm["runs"]))}
    # If the usual baseline is missing, the first arm of PPO takes its place.
    baseline = verdict.BASELINE if verdict.BASELINE in trained else next(iter(trained), None)
    target = speed.gold_target(trained[baseline]) if baseline else None
    labels = {
        part: {name: item["label"] for name, item in study[part].items()}
        for part in ("arms", "reward_models")
    }
    seconds = {n: [run["seconds_per_step"] for run in arms[n]["runs"]] for n in trained}
    report = {
        "labels": labels,
        "table1": {name: _table1_row(arm["runs"]) for name, arm in arms.items()},
        "differences": _differences(arms),
        "table2": {name: _accuracies(model["runs"]) for name, model in models.items()},
        "auroc": {
            name: mean_over_seeds([run.get("auroc") for run in model["runs"]])
            for name, model in models.items()
        },
        "table3": {n: speed.time_arm(c, seconds[n], target) for n, c in trained.items()},
        "speed": [
            {"arm": verdict.TOKEN, "against": rival}
            | speed.compare_arms(trained[verdict.TOKEN], trained[rival], target, rival == baseline)
            for rival in verdict.RIVALS
            if {verdict.TOKEN, rival} <= trained.keys()
        ],
        "at_once": study.get("at_once", 1),
        "gold_target": target,
        "gold_target_arm": baseline,
        "curves": {
            n: _mean_curve(c)
            | {"reward_length_correlation": _mean_of_runs(arms[n]["runs"], "length_correlation")}
            for n, c in trained.items()
        },
        **{key: study[key] for key in _COPIED_KEYS},
    }
    report["corrections"] = corrections.compare_arms(arms, report["table1"])
    # The oracle's rewards are not available in practice: such arms are never recommended.
    rows = {n: row for n, row in report["table1"].items() if not arms[n].get("oracle")}
    report["recommendation"] = verdict.recommend(report["differences"], rows)
    report["answer"] = verdict.answer_questions(report)
    return _to_plain(report)


def to_json(report: dict) -> str:
    """The text of ``report.json``."""
    return json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _check(study: dict) -> None:
    for name, arm in study["arms"].items():
        if not arm["runs"]:
            raise InputError(f"arm {name!r} has no run; leave it out of the study")
        for seed, run in enumerate(arm["runs"]):
            for decoding in verdict.DECODINGS:
                sizes = {len(run[decoding][key]) for key in ("scores", "outcome", "lengths")}
                if sizes != {study["test_prompts"]}:
                    raise InputError(
                        f"arm {name!r}, run {seed}, {decoding}: {sorted(sizes)} responses are "
                        f"not one for each of the {study['test_prompts']} test prompts"
                    )


def _evaluations(runs: list[dict]) -> list[list[dict]]:
    """The learning curves of all runs that have one, without points that have no judge's score."""
    curves = [
        [p for p in run["curve"] if p.get("gold") is not None and math.isfinite(p["gold"])]
        for run in runs
    ]
    return [curve for curve in curves if curve]


def _mean_of_seeds(sets: list[dict], key: str) -> tuple[float | None, float | None]:
    """Mean and standard error of ``key``, over seeds, or over prompts if there is only one seed.

    (None, None) without a judge.
    """
    values = [responses.get(key, [None]) for responses in sets]
    if None in values[0]:
        return None, None
    return mean_and_error(values[0] if len(sets) == 1 else [np.mean(row) for row in values])


def _table1_row(runs: list[dict]) -> dict:
    row = {key: _mean_of_runs(runs, key) for key in ("correction_accuracy", "kl", "seconds")}
    for decoding, prefix in zip(verdict.DECODINGS, ("", "greedy_"), strict=True):
        sets = [run[decoding] for run in runs]
        row[f"{prefix}win_rate"], row[f"{prefix}se"] = _mean_of_seeds(sets, "outcome")
        row[f"{prefix}gold"], row[f"{prefix}gold_se"] = _mean_of_seeds(sets, "scores")
        row[f"{prefix}length"], _ = _mean_of_seeds(sets, "lengths")
        strict, _ = _mean_of_seeds(sets, "outcome_greedy_start")
        row[f"{prefix}win_rate_greedy_start"] = strict
        for name in verdict.SIGNS:
            row[f"{prefix}{name}"] = _mean_of_runs(sets, name)
    return row | {
        "correction_se": corrections.measure_arm(runs)["sampled"]["se"],
        "n": len(runs[0]["sampled"]["outcome"]),
        "seeds": len(runs),
        "se_over": "seeds" if len(runs) > 1 else "prompts",
    }


def _mean_of_runs(runs: list[dict], key: str) -> float | None:
    return mean_over_seeds([run.get(key) for run in runs])["mean"]


def _accuracies(runs: list[dict]) -> dict:
    """Accuracy of one reward model on every test set on which all its seeds were evaluated."""
    row = {}
    for test_set in runs[0]:
        tables = [run[test_set] for run in runs if test_set in run]
        if test_set == "auroc" or len(tables) < len(runs):
            continue
        mean = corrections.combine_seeds([(table["accuracy"], table["se"]) for table in tables])
        row[test_set] = {"accuracy": mean["mean"], "se": mean["se"], "n": tables[0]["n"]}
    return row | {"auroc": _mean_of_runs(runs, "auroc")}


def _mean_curve(curves: list[list[dict]]) -> dict:
    """Columns of means and errors over seeds, at the steps that all seeds evaluated."""
    by_step = [{point["step"]: point for point in curve} for curve in curves]
    steps = sorted(set.intersection(*map(set, by_step)))
    columns = {"seeds": len(curves), "step": steps}
    for field in CURVES:
        means = [mean_over_seeds([points[step].get(field) for points in by_step]) for step in steps]
        columns[field] = [mean["mean"] for mean in means]
        columns[f"{field}_se"] = [mean["se"] for mean in means]
    return columns


def _differences(arms: dict) -> list[dict]:
    """Difference in win rate of every pair of arms, in percentage points, with 95 % intervals.

    Intervals are over seeds and prompts. Without a judge, correction accuracy over seeds and edits.
    """
    values = {decoding: _paired_values(arms, decoding) for decoding in verdict.DECODINGS}

    def compare(arm: str, against: str, decoding: str) -> dict:
        interval = win_rate.paired_interval(values[decoding][arm], values[decoding][against])
        names = {"points": "difference", "low": "low", "high": "high"}
        return {name: 100 * interval[key] for name, key in names.items()}

    return [
        {
            "arm": a,
            "against": b,
            **{decoding: compare(a, b, decoding) for decoding in verdict.DECODINGS},
        }
        for b, a in itertools.combinations(arms, 2)
        if all(values.values())
    ]


def _paired_values(arms: dict, decoding: str) -> dict[str, list[list[float]]]:
    """Per arm one row per seed of the values to compare; {} if an arm lacks them."""
    values = {a: [run[decoding]["outcome"] for run in arm["runs"]] for a, arm in arms.items()}
    if any(None in row for rows in values.values() for row in rows):
        values = {a: [_by_record(run, decoding) for run in arm["runs"]] for a, arm in arms.items()}
    sizes = {len(row) for rows in values.values() for row in rows}
    if 0 in sizes:
        return {}
    if len(sizes) > 1:  # seeds have different edits: compare means
        values = {a: [[float(np.mean(row))] for row in rows] for a, rows in values.items()}
    return values


def _by_record(run: dict, decoding: str) -> list[float]:
    return ((run.get("corrections") or {}).get("by_record") or {}).get(decoding, [])


def _to_plain(value):
    """Converts a value to plain JSON types; numbers that are not finite become null."""
    if isinstance(value, dict):
        return {str(key): _to_plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_to_plain(inner) for inner in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | None) else str(value)
