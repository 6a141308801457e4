"""The results of a study → the content of ``report.json``; the pages are renderings of that alone.

:func:`build_report` takes what the stages of a pipeline left behind, as one plain dict: per arm and
seed the judge's scores of the test responses, outcomes against the reference, lengths and the
learning curve; per reward model and seed its accuracies; one response's token rewards under each
reward model; seconds and commands. It computes no more than means, errors, steps and intervals.

Standard errors are over seeds where an arm has several runs, else over prompts ("se_over").
"""

import itertools
import json
import math

import numpy as np

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.functional import win_rate
from fgrlhf_jax.functional.win_rate import mean_and_error, mean_over_seeds
from fgrlhf_jax.report import corrections, speed, verdict

_AS_IT_IS = (
    *("title", "judge", "seeds", "test_prompts"),
    *("heatmaps", "samples", "seconds", "commands", "config", "about"),
)
CURVES = ("gold", "reward", "kl", "length", "unfinished", "seconds")


def build_report(study: dict) -> dict:
    """What ``report.json`` holds: tables, curves, differences, heat maps, commands, the answer.

    Raises InputError where runs of the study are not on the same test prompts.
    """
    arms, models = study["arms"], study["reward_models"]
    _check(study)
    trained = {n: curves for n, arm in arms.items() if (curves := _evaluations(arm["runs"]))}
    # The first arm of PPO where the one that everything is measured by is missing.
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
            | {"reward_length_correlation": _of_runs(arms[n]["runs"], "length_correlation")}
            for n, c in trained.items()
        },
        **{key: study[key] for key in _AS_IT_IS},
    }
    report["corrections"] = corrections.compare_arms(arms, report["table1"])
    # Nobody can train with an oracle's rewards.
    rows = {n: row for n, row in report["table1"].items() if not arms[n].get("oracle")}
    report["recommendation"] = verdict.recommend(report["differences"], rows)
    report["answer"] = verdict.answer_questions(report)
    return _plain(report)


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
    """The curve of every run that has one, without points that the judge has no score of."""
    curves = [
        [p for p in run["curve"] if p.get("gold") is not None and math.isfinite(p["gold"])]
        for run in runs
    ]
    return [curve for curve in curves if curve]


def _mean_of_seeds(sets: list[dict], key: str) -> tuple[float | None, float | None]:
    """Mean and error of a list of numbers in each seed's set: over seeds, of one seed over prompts.

    None and None without a judge.
    """
    samples = [responses.get(key, [None]) for responses in sets]
    if None in samples[0]:
        return None, None
    return mean_and_error(samples[0] if len(sets) == 1 else [np.mean(each) for each in samples])


def _table1_row(runs: list[dict]) -> dict:
    row = {key: _of_runs(runs, key) for key in ("correction_accuracy", "kl", "seconds")}
    for decoding, prefix in zip(verdict.DECODINGS, ("", "greedy_"), strict=True):
        sets = [run[decoding] for run in runs]
        row[f"{prefix}win_rate"], row[f"{prefix}se"] = _mean_of_seeds(sets, "outcome")
        row[f"{prefix}gold"], row[f"{prefix}gold_se"] = _mean_of_seeds(sets, "scores")
        row[f"{prefix}length"], _ = _mean_of_seeds(sets, "lengths")
        strict, _ = _mean_of_seeds(sets, "outcome_greedy_start")
        row[f"{prefix}win_rate_greedy_start"] = strict
        row[f"{prefix}unfinished"] = _of_runs(sets, "unfinished")
    return row | {
        "correction_se": corrections.correction_error(runs),
        "n": len(runs[0]["sampled"]["outcome"]),
        "seeds": len(runs),
        "se_over": "seeds" if len(runs) > 1 else "prompts",
    }


def _of_runs(runs: list[dict], key: str) -> float | None:
    return mean_over_seeds([run.get(key) for run in runs])["mean"]


def _accuracies(runs: list[dict]) -> dict:
    """One reward model on every test set that all its seeds were tried on."""
    row = {}
    for test_set in runs[0]:
        tables = [run[test_set] for run in runs if test_set in run]
        if test_set == "auroc" or len(tables) < len(runs):
            continue
        over = mean_over_seeds([table["accuracy"] for table in tables])
        se = over["se"] if len(runs) > 1 else tables[0]["se"]
        row[test_set] = {"accuracy": over["mean"], "se": se, "n": tables[0]["n"]}
    return row | {"auroc": _of_runs(runs, "auroc")}


def _mean_curve(curves: list[list[dict]]) -> dict:
    """Means over seeds at the steps that all of them have, as columns, each with its error."""
    by_step = [{point["step"]: point for point in curve} for curve in curves]
    steps = sorted(set.intersection(*map(set, by_step)))
    columns = {"seeds": len(curves), "step": steps}
    for field in CURVES:
        over = [mean_over_seeds([points[step].get(field) for points in by_step]) for step in steps]
        columns[field] = [o["mean"] for o in over]
        columns[f"{field}_se"] = [o["se"] for o in over]
    return columns


def _differences(arms: dict) -> list[dict]:
    """Win rates of every pair of arms, in points, with intervals over seeds and prompts.

    Without a judge correction accuracy takes their place, and edits that of prompts.
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
    """What every arm is compared by, a row a seed; {} where that is not known."""
    values = {a: [run[decoding]["outcome"] for run in arm["runs"]] for a, arm in arms.items()}
    if any(None in row for rows in values.values() for row in rows):
        values = {a: [_by_record(run, decoding) for run in arm["runs"]] for a, arm in arms.items()}
    sizes = {len(row) for rows in values.values() for row in rows}
    if 0 in sizes:
        return {}
    if len(sizes) > 1:  # every seed has edits of its own
        values = {a: [[float(np.mean(row))] for row in rows] for a, rows in values.items()}
    return values


def _by_record(run: dict, decoding: str) -> list[float]:
    return ((run.get("corrections") or {}).get("by_record") or {}).get(decoding, [])


def _plain(value):
    """What JSON can say: no array types, and null for what is not a finite number."""
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | None) else str(value)
