"""A study's figures -> the content of ``report.json``; the pages are renderings of that alone.

``content`` takes what the stages of a pipeline left behind, as one plain dict: per arm and seed the
judge's scores of the test responses, outcomes against the reference, lengths and the learning
curve; per reward model and seed its accuracies; one response's token rewards under each reward
model; seconds and commands. It computes no more than means, errors, steps and bootstraps.

Standard errors are over seeds where an arm has several runs, else over prompts ("se_over").
"""

import itertools
import json
import math

import numpy as np

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.functional import pair_metrics
from fgrlhf_jax.functional import win_rate as evaluation
from fgrlhf_jax.report import verdict as report_answer

REFERENCE, BASELINE = "sft", "ppo_rlhf"

# Asked beside every arm and the one before it. An arm that is missing asks nothing.
QUESTIONS = (
    ("fine_grained", "ppo_rlhf"),
    ("fine_grained_token", "fine_grained"),
    ("fine_grained_token", "ppo_rlhf"),
    ("fine_grained_token", "sft_edits"),
    ("edits_then_token", "sft_edits"),
)
DECODINGS = ("sampled", "greedy")
CURVES = ("gold", "reward", "kl", "length", "unfinished", "seconds")
_SHARES = {"steps_80": 0.80, "steps_95": 0.95}


def content(study: dict) -> dict:
    """What ``report.json`` holds: table1, table2, table3, curves, seconds, and beyond these what
    the pages show (labels, bootstraps, the fixed gold score, heat maps, commands, the answer).

    Raises:
      InputError: where runs of the study are not on the same test prompts.
    """
    arms, models = study["arms"], study["reward_models"]
    _check(study)
    # The first arm of PPO where the one that everything is measured by is missing.
    trained = {name: _curves(arm["runs"]) for name, arm in arms.items()}
    trained = {name: runs for name, runs in trained.items() if runs}
    baseline = BASELINE if BASELINE in trained else next(iter(trained), None)
    target = study.get("gold_target")
    if target is None and baseline:
        target = gold_target(trained[baseline])
    found = {
        "title": study["title"],
        "judge": study["judge"],
        "seeds": study["seeds"],
        "test_prompts": study["test_prompts"],
        "labels": {
            part: {name: item["label"] for name, item in study[part].items()}
            for part in ("arms", "reward_models")
        },
        "table1": _table1(arms),
        "table2": {name: _rm_row(rm["runs"]) for name, rm in models.items()},
        "auroc": {name: _rm_auroc(rm["runs"]) for name, rm in models.items()},
        "table3": {
            name: _time_row(
                runs, [run["seconds_per_step"] for run in arms[name]["runs"]], target
            )
            for name, runs in trained.items()
        },
        "gold_target": target,
        "gold_target_arm": baseline if study.get("gold_target") is None else None,
        "curves": {name: _curve_row(runs) for name, runs in trained.items()},
        "comparisons": _comparisons(arms, study["bootstrap_seed"]),
        "heatmaps": study["heatmaps"],
        "seconds": study["seconds"],
        "commands": study["commands"],
        "config": study["config"],
    }
    found["answer"] = report_answer.answer(found)
    return _plain(found)


def to_json(found: dict) -> str:
    """Text of ``report.json``."""
    return json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def gold_target(runs: list[list[dict]]) -> float | None:
    """The fixed score of Table 3: 80 % of the way from the baseline's start to its best.

    The best is the lowest of its seeds' bests, so that every seed of it gets there; the scores are
    smoothed as in ``evaluation.steps_to_reach``. None where a seed has no gain.
    """
    smooth = [evaluation.smooth([row["gold"] for row in rows]) for rows in runs]
    start = float(np.mean([scores[0] for scores in smooth]))
    best = float(min(scores.max() for scores in smooth))
    return start + 0.8 * (best - start) if best > start else None


def _check(study: dict) -> None:
    for name, arm in study["arms"].items():
        if not arm["runs"]:
            raise InputError(f"arm {name!r} has no run; leave it out of the study")
        for seed, run in enumerate(arm["runs"]):
            for decoding in DECODINGS:
                sizes = {len(run[decoding][k]) for k in ("scores", "outcome", "lengths")}
                if sizes != {study["test_prompts"]}:
                    raise InputError(
                        f"arm {name!r}, run {seed}, {decoding}: {sorted(sizes)} responses are "
                        f"not one for each of the {study['test_prompts']} test prompts"
                    )


def _curves(runs: list[dict]) -> list[list[dict]]:
    """The evaluations of every run that has any, without those the judge has no score of."""
    curves = [[row for row in run["curve"] if _number(row.get("gold"))] for run in runs]
    return [rows for rows in curves if rows]


def _number(value) -> bool:
    return value is not None and math.isfinite(value)


def _over(samples: list[list[float]]) -> tuple[float, float | None]:
    """Mean and error of one list of numbers a seed: over seeds, of one seed over prompts."""
    if len(samples) == 1:
        return evaluation.mean_and_error(samples[0])
    return evaluation.mean_and_error([np.mean(sample) for sample in samples])


def _mean(values: list) -> float | None:
    return evaluation.mean_over_seeds(values)["mean"]


def _decoded(sets: list[dict]) -> dict:
    """Figures of one way of decoding; one set of responses a seed."""
    win_rate, se = _over([s["outcome"] for s in sets])
    gold, gold_se = _over([s["scores"] for s in sets])
    return {
        "win_rate": win_rate,
        "se": se,
        "gold": gold,
        "gold_se": gold_se,
        "length": _over([s["lengths"] for s in sets])[0],
        "kl": _mean([s["kl"] for s in sets]),
        "unfinished": _mean([s["unfinished"] for s in sets]),
    }


def _table1(arms: dict) -> dict:
    table = {}
    for name, arm in arms.items():
        sampled, greedy = (_decoded([run[d] for run in arm["runs"]]) for d in DECODINGS)
        common = {
            "n": len(arm["runs"][0]["sampled"]["outcome"]),
            "seeds": len(arm["runs"]),
            "se_over": "seeds" if len(arm["runs"]) > 1 else "prompts",
        }
        prefixed = {f"greedy_{key}": value for key, value in greedy.items()}
        table[name] = {**sampled, **prefixed, **common, "decoding": "sampled"}
        if name == REFERENCE and f"{name}_greedy" not in arms:
            table[f"{name}_greedy"] = {**greedy, **prefixed, **common, "decoding": "greedy"}
    return table


def _rm_row(runs: list[dict]) -> dict:
    """One reward model on every test set that all its seeds were tried on."""
    row = {}
    for test_set in runs[0]:
        tried = [run[test_set] for run in runs if test_set in run]
        if test_set == "auroc" or len(tried) < len(runs):
            continue
        over = evaluation.mean_over_seeds([t["accuracy"] for t in tried])
        row[test_set] = {
            "accuracy": over["mean"],
            "se": over["se"] if len(runs) > 1 else tried[0]["se"],
            "n": tried[0]["n"],
        }
    return row | {"auroc": _rm_auroc(runs)["mean"]}


def _rm_auroc(runs: list[dict]) -> dict:
    return evaluation.mean_over_seeds([run.get("auroc") for run in runs])


def _time_row(runs: list[list[dict]], seconds_per_step: list, target: float | None) -> dict:
    """Steps, their errors over seeds, and seconds; of a target: how many seeds reached it."""
    per_step = _mean([s for s in seconds_per_step if s is not None])
    steps = {name: [] for name in (*_SHARES, "steps_to_gold")}
    for rows in runs:
        curve = [row["step"] for row in rows], [row["gold"] for row in rows]
        for name, share in _SHARES.items():
            steps[name].append(evaluation.steps_to_reach(*curve, share=share))
        reached = None if target is None else evaluation.steps_to_reach(*curve, target=target)
        steps["steps_to_gold"].append(reached)
    row = {"seeds": len(runs), "seconds_per_step": per_step}
    for name, values in steps.items():
        over = evaluation.mean_over_seeds(values)
        row[name], row[f"{name}_se"] = over["mean"], over["se"]
        row[f"{name}_reached"] = sum(v is not None for v in values)
        known = over["mean"] is not None and per_step is not None
        row[name.replace("steps", "seconds")] = over["mean"] * per_step if known else None
    return row


def _curve_row(runs: list[list[dict]]) -> dict:
    """Means over seeds at the steps that all of them have, as columns, each with its error."""
    by_step = [{row["step"]: row for row in rows} for rows in runs]
    steps = sorted(set.intersection(*map(set, by_step)))
    row = {"seeds": len(runs), "step": steps}
    for field in CURVES:
        over = [
            evaluation.mean_over_seeds([b[step].get(field) for b in by_step]) for step in steps
        ]
        row[field] = [o["mean"] for o in over]
        row[f"{field}_se"] = [
            o["se"] if len(runs) > 1 else by_step[0][step].get(f"{field}_se")
            for o, step in zip(over, steps, strict=True)
        ]
    both = [
        (r, n) for r, n in zip(row["reward"], row["length"], strict=True) if None not in (r, n)
    ]
    rewards, lengths = np.array(both, np.float64).reshape(-1, 2).T
    row["reward_length_correlation"] = pair_metrics.correlation(rewards, lengths)
    return row


def _comparisons(arms: dict, seed: int) -> list[dict]:
    """Paired bootstraps over prompts of each arm and the one before it, and of ``QUESTIONS``.

    A prompt's outcome is its mean over seeds.
    """
    names = [name for name in arms if name != REFERENCE]
    pairs = [(b, a) for a, b in itertools.pairwise(names)]
    pairs += [q for q in QUESTIONS if q not in pairs and all(name in arms for name in q)]
    outcome = {
        (name, decoding): np.mean([run[decoding]["outcome"] for run in arms[name]["runs"]], 0)
        for name in names
        for decoding in DECODINGS
    }
    return [
        {
            "a": a,
            "b": b,
            **{
                d: evaluation.paired_bootstrap(outcome[a, d], outcome[b, d], seed)
                for d in DECODINGS
            },
        }
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
