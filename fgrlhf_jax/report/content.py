"""The results of a study → the content of ``report.json``; the pages are renderings of that alone.

:func:`build_report` takes what the stages of a pipeline left behind, as one plain dict: per arm and
seed the judge's scores of the test responses, outcomes against the reference, lengths and the
learning curve; per reward model and seed its accuracies; one response's token rewards under each
reward model; seconds and commands. It computes no more than means, errors, steps and bootstraps.

Standard errors are over seeds where an arm has several runs, else over prompts ("se_over").
"""

import functools
import itertools
import json
import math
from collections.abc import Sequence

import numpy as np

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.functional import pair_metrics, win_rate
from fgrlhf_jax.functional.win_rate import mean_and_error, mean_over_seeds, steps_to_reach
from fgrlhf_jax.report import corrections
from fgrlhf_jax.report.verdict import answer_questions

REFERENCE, BASELINE = "sft", "ppo_rlhf"
# Pairs of arms to compare, besides every arm with the one before it.
COMPARED = (
    ("fine_grained", "ppo_rlhf"),
    ("fine_grained_token", "fine_grained"),
    ("fine_grained_token", "ppo_rlhf"),
    ("fine_grained_token", "sft_edits"),
    ("edits_then_token", "sft_edits"),
)
DECODINGS = ("sampled", "greedy")
CURVES = ("gold", "reward", "kl", "length", "unfinished", "seconds")
SHARES_OF_GAIN = {"steps_80": 0.80, "steps_95": 0.95}


def build_report(study: dict) -> dict:
    """What ``report.json`` holds: tables, curves, bootstraps, heat maps, commands, the answer.

    Raises:
      InputError: where runs of the study are not on the same test prompts.
    """
    arms, models = study["arms"], study["reward_models"]
    _check(study)
    trained = {n: curves for n, arm in arms.items() if (curves := _evaluations(arm["runs"]))}
    # The first arm of PPO where the one that everything is measured by is missing.
    baseline = BASELINE if BASELINE in trained else next(iter(trained), None)
    target = study.get("gold_target")
    if target is None and baseline:
        target = gold_target(trained[baseline])
    report = {
        **{key: study[key] for key in ("title", "judge", "seeds", "test_prompts")},
        "labels": {
            part: {name: item["label"] for name, item in study[part].items()}
            for part in ("arms", "reward_models")
        },
        "table1": _table1(arms),
        "table2": {name: _accuracies(model["runs"]) for name, model in models.items()},
        "auroc": {name: _auroc(model["runs"]) for name, model in models.items()},
        "table3": {n: _times(curves, arms[n]["runs"], target) for n, curves in trained.items()},
        "gold_target": target,
        "gold_target_arm": baseline if study.get("gold_target") is None else None,
        "curves": {name: _mean_curve(curves) for name, curves in trained.items()},
        "comparisons": _comparisons(arms, study["bootstrap_seed"]),
        **{key: study[key] for key in ("heatmaps", "samples", "seconds", "commands", "config")},
        "about": study["about"],
    }
    report["corrections"] = corrections.compare_arms(arms, report["table1"])
    report["answer"] = answer_questions(report)
    return _plain(report)


def to_json(report: dict) -> str:
    """The text of ``report.json``."""
    return json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def gold_target(curves: Sequence[list[dict]]) -> float | None:
    """The fixed score of Table 3: 80 % of the way from the baseline's start to its best.

    The best is the lowest of its seeds' bests, so that every seed of it gets there; the scores are
    smoothed as in ``win_rate.steps_to_reach``. None where a seed has no gain.
    """
    scores = [win_rate.smooth([point["gold"] for point in curve]) for curve in curves]
    start = float(np.mean([of_seed[0] for of_seed in scores]))
    best = float(min(of_seed.max() for of_seed in scores))
    return start + 0.8 * (best - start) if best > start else None


def _check(study: dict) -> None:
    for name, arm in study["arms"].items():
        if not arm["runs"]:
            raise InputError(f"arm {name!r} has no run; leave it out of the study")
        for seed, run in enumerate(arm["runs"]):
            for decoding in DECODINGS:
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


def _mean_of_seeds(samples: list[list[float]]) -> tuple[float, float | None]:
    """Mean and error of one list of numbers a seed: over seeds, of one seed over prompts.

    None and None without a judge.
    """
    if None in samples[0]:
        return None, None
    if len(samples) == 1:
        return mean_and_error(samples[0])
    return mean_and_error([np.mean(sample) for sample in samples])


def _table1(arms: dict) -> dict:
    table = {}
    for name, arm in arms.items():
        sampled, greedy = (_decoded([run[d] for run in arm["runs"]]) for d in DECODINGS)
        prompts, seeds = len(arm["runs"][0]["sampled"]["outcome"]), len(arm["runs"])
        over = "seeds" if seeds > 1 else "prompts"
        common = {"n": prompts, "seeds": seeds, "se_over": over}
        prefixed = {f"greedy_{key}": value for key, value in greedy.items()}
        table[name] = {**sampled, **prefixed, **common, "decoding": "sampled"}
        if name == REFERENCE and f"{name}_greedy" not in arms:
            table[f"{name}_greedy"] = {**greedy, **prefixed, **common, "decoding": "greedy"}
    return table


def _decoded(sets: list[dict]) -> dict:
    """Figures of one way of decoding; one set of responses a seed."""
    rate, se = _mean_of_seeds([s["outcome"] for s in sets])
    gold, gold_se = _mean_of_seeds([s["scores"] for s in sets])
    scores = {"win_rate": rate, "se": se, "gold": gold, "gold_se": gold_se}
    length, _ = _mean_of_seeds([s["lengths"] for s in sets])
    kl, unfinished = (mean_over_seeds([s[k] for s in sets])["mean"] for k in ("kl", "unfinished"))
    return {**scores, "length": length, "kl": kl, "unfinished": unfinished}


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
    return row | {"auroc": _auroc(runs)["mean"]}


def _auroc(runs: list[dict]) -> dict:
    return mean_over_seeds([run.get("auroc") for run in runs])


def _times(curves: list[list[dict]], runs: list[dict], target: float | None) -> dict:
    """Steps, their errors over seeds, and seconds; of a target: how many seeds reached it."""
    seconds = [run["seconds_per_step"] for run in runs]
    per_step = mean_over_seeds([s for s in seconds if s is not None])["mean"]
    steps = {name: [] for name in (*SHARES_OF_GAIN, "steps_to_gold")}
    for curve in curves:
        columns = [point["step"] for point in curve], [point["gold"] for point in curve]
        for name, share in SHARES_OF_GAIN.items():
            steps[name].append(steps_to_reach(*columns, share=share))
        reached = None if target is None else steps_to_reach(*columns, target=target)
        steps["steps_to_gold"].append(reached)
    row = {"seeds": len(curves), "seconds_per_step": per_step}
    for name, values in steps.items():
        over = mean_over_seeds(values)
        row[name], row[f"{name}_se"] = over["mean"], over["se"]
        row[f"{name}_reached"] = sum(value is not None for value in values)
        known = over["mean"] is not None and per_step is not None
        row[name.replace("steps", "seconds")] = over["mean"] * per_step if known else None
    return row


def _mean_curve(curves: list[list[dict]]) -> dict:
    """Means over seeds at the steps that all of them have, as columns, each with its error."""
    by_step = [{point["step"]: point for point in curve} for curve in curves]
    steps = sorted(set.intersection(*map(set, by_step)))
    columns = {"seeds": len(curves), "step": steps}
    for field in CURVES:
        over = [mean_over_seeds([points[step].get(field) for points in by_step]) for step in steps]
        columns[field] = [o["mean"] for o in over]
        columns[f"{field}_se"] = [
            o["se"] if len(curves) > 1 else by_step[0][step].get(f"{field}_se")
            for o, step in zip(over, steps, strict=True)
        ]
    pairs = zip(columns["reward"], columns["length"], strict=True)
    known = [pair for pair in pairs if None not in pair]
    rewards, lengths = np.array(known, np.float64).reshape(-1, 2).T
    columns["reward_length_correlation"] = pair_metrics.correlation(rewards, lengths)
    return columns


def _comparisons(arms: dict, seed: int) -> list[dict]:
    """Paired bootstraps over prompts of each arm and the one before it, and of ``COMPARED``.

    A prompt's outcome is its mean over seeds.
    """
    names = [name for name in arms if name != REFERENCE]
    if any(None in arms[name]["runs"][0]["sampled"]["outcome"] for name in names):
        return []  # no judge
    pairs = [(b, a) for a, b in itertools.pairwise(names)]
    pairs += [pair for pair in COMPARED if pair not in pairs and {*pair} <= arms.keys()]
    outcomes = {
        (name, decoding): np.mean([run[decoding]["outcome"] for run in arms[name]["runs"]], 0)
        for name in names
        for decoding in DECODINGS
    }
    compare = functools.partial(win_rate.paired_bootstrap, seed=seed)
    return [
        {"a": a, "b": b, **{d: compare(outcomes[a, d], outcomes[b, d]) for d in DECODINGS}}
        for a, b in pairs
    ]


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
