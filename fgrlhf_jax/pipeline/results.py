"""Collects the results of a study from the files of its stages, for the report."""

from collections.abc import Iterable
from pathlib import Path
from statistics import fmean

from ml_collections import ConfigDict

from fgrlhf_jax.data import sources
from fgrlhf_jax.data.records import prompt_text
from fgrlhf_jax.functional import win_rate
from fgrlhf_jax.pipeline import repetition
from fgrlhf_jax.pipeline.arms import BASE, ORACLE
from fgrlhf_jax.runtime import run_dir
from fgrlhf_jax.runtime.files import read_json, read_jsonl

CORRELATION = "reward/length_correlation"  # metric of PPO, over the responses of a rollout
DECODINGS = ("sampled", "greedy")
FIGURES = ("kl", "correction_accuracy", "corrections", "fluency")  # measures of a policy


def gather(config: ConfigDict, folder: Path, arms: dict[str, str], models: dict[str, str]) -> dict:
    """The ``study`` for ``report.content.build_report``, without seconds and commands.

    Args:
      arms: labels of the arms, in display order.
      models: labels of the reward models.
    """
    seed_dirs = [folder / f"seed_{seed}" for seed in range(config.seeds)]
    tables = [read_json(seed_dir / "tables.json", {}) for seed_dir in seed_dirs]
    reference = read_json(seed_dirs[0] / "answers" / "reference.json", {})["sampled"]
    return {
        "config": run_dir.flatten(config.to_dict()),
        "seeds": config.seeds,
        "title": config.title,
        "judge": config.judge and (config.judge_name or config.judge.rpartition(".")[2]),
        "test_prompts": len(reference),
        "arms": {
            arm: {"label": label, "runs": [read_run(seed_dir, arm) for seed_dir in seed_dirs]}
            for arm, label in arms.items()
        },
        "reward_models": {
            name: {"label": label, "runs": [table["reward_models"][name] for table in tables]}
            for name, label in models.items()
        },
        "heatmaps": [
            item | {"by": {n: side for n, side in item["by"].items() if n in (*models, ORACLE)}}
            for item in tables[0]["heatmaps"]
            if models  # the folder may have heat maps of other arms' models
        ],
        "samples": read_samples(folder, seed_dirs[0] / "answers", arms, config.report_samples),
        "at_once": config.workers,
        "about": {"Hardware": tables[0].get("devices", "not recorded")},
    }


def read_run(seed_dir: Path, arm: str) -> dict:
    """Results of one arm and seed: test responses; for PPO also evaluations, seconds per step."""
    rows = read_jsonl(seed_dir / arm / "metrics.jsonl")
    curve = learning_curve(rows)
    seconds = [row["time/step"] for row in rows if "time/step" in row][1:]
    correlations = [row[CORRELATION] for row in rows if row.get(CORRELATION) is not None][-10:]
    answers, reference, start = (
        read_json(seed_dir / "answers" / f"{name}.json", {}) for name in (arm, "reference", BASE)
    )
    # Outcomes against the reference samples (T = 1), and against the start's greedy responses.
    references = {"outcome": reference["sampled"], "outcome_greedy_start": start["greedy"]}
    run = {
        "curve": curve,
        "seconds_per_step": sum(seconds) / len(seconds) if curve and seconds else None,
        "length_correlation": sum(correlations) / len(correlations) if correlations else None,
        **{name: answers.get(name) for name in FIGURES},
    }
    for decoding in DECODINGS:
        responses = answers[decoding]
        texts, prompts = ([r[key] for r in responses] for key in ("output", "instruction"))
        run[decoding] = {
            "scores": [response["score"] for response in responses],
            **{name: _outcomes(responses, other) for name, other in references.items()},
            "lengths": [response["length"] for response in responses],
            "unfinished": sum(not r["finished"] for r in responses) / len(responses),
            "words_to_change": [r["words_to_change"] for r in responses if "words_to_change" in r],
            "repeated": fmean(map(repetition.repeated, texts)),
            "copied": fmean(map(repetition.copied, texts, prompts)),
            "same_phrase": repetition.same_phrase(texts, prompts),
        }
    return run


def read_samples(folder: Path, answers: Path, arms: Iterable[str], count: int) -> list[dict]:
    """Responses of the arms and of the reference (T = 1) to the first ``count`` test prompts."""
    reference = read_json(answers / "reference.json", {})["sampled"][:count]
    prompts = sources.read(str(folder / "data" / "test.jsonl"))[: len(reference)]
    samples = [{"prompt": prompt_text(prompt), "by": {}} for prompt in prompts]
    for name in ("reference", *arms):
        answers_of_arm = read_json(answers / f"{name}.json", {})["sampled"][:count]
        outcomes = _outcomes(answers_of_arm, reference)
        for sample, answer, outcome in zip(samples, answers_of_arm, outcomes, strict=True):
            sample["by"][name] = {
                "text": answer["output"],
                "score": answer["score"],
                "outcome": None if name == "reference" else outcome,
            }
    return samples


def _outcomes(responses: list[dict], reference: list[dict]) -> list[float | None]:
    """Outcomes as in ``win_rate.outcomes``; None for every response without a judge."""
    scores, ref_scores = ([row["score"] for row in rows] for rows in (responses, reference))
    known = None not in scores
    return win_rate.outcomes(scores, ref_scores).tolist() if known else [None] * len(scores)


def learning_curve(rows: list[dict]) -> list[dict]:
    """The evaluations in the rows of PPO's metrics.jsonl; empty for other runs.

    ``gold`` is the judge's score, ``seconds`` the training time up to the evaluation.
    """
    curve = []
    for row in rows:
        if "validation/kl" in row:
            seconds = [r.get("time/step", 0.0) for r in rows if r["step"] <= row["step"]]
            point = {"step": row["step"], "gold": row.get("validation/score")}
            for name in ("reward", "kl", "length", "unfinished"):
                point[name] = row.get(f"validation/{name}")
            curve.append(point | {"seconds": sum(seconds)})
    return curve
