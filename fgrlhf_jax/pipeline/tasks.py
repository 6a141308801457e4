"""The tasks between a study's training commands: data, feedback, answers and tables, as files.

    folder/data/       sft, feedback, ppo, validation and test .jsonl
    folder/sft/        the policy that all arms start from
    folder/seed_S/     samples.json -> feedback/ -> runs of arms and reward models, rounds of edits
                       -> answers/, tables.json

Seed S has its own samples, feedback, reward models and policies.
"""

import functools
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from fgrlhf_jax.data import records, sources
from fgrlhf_jax.data.records import Edit, Record
from fgrlhf_jax.errors import InputError
from fgrlhf_jax.models import hf_load
from fgrlhf_jax.models.language_model import LanguageModel, SamplingParams
from fgrlhf_jax.models.responses import generate_responses
from fgrlhf_jax.pipeline import arms, datasets
from fgrlhf_jax.pipeline.commands import TASK_FIELDS, policy_folder, task_fields
from fgrlhf_jax.reward_model.scorer import RewardModel
from fgrlhf_jax.reward_model.train import evaluate
from fgrlhf_jax.runtime import user_function
from fgrlhf_jax.runtime.files import read_json, write_json
from fgrlhf_jax.runtime.versions import describe_devices
from fgrlhf_jax.tiny_world.judge import gold_score, oracle_rewards, words_to_change
from fgrlhf_jax.training import correction

REFERENCE_SEED = 10**6  # added to a seed for the reference's samples, which differ from the arms'


def run_task(config: ConfigDict) -> None:
    """Runs ``config.task``, NAME[:SEED[:ROUND]], with the config of the run folder."""
    folder = Path(config.run_dir)
    task, seed, name = (*config.task.split(":"), "", "")[:3]
    if task not in TASK_FIELDS:
        raise InputError(f"task={config.task!r}: is not one of {', '.join(TASK_FIELDS)}")
    config = ConfigDict(read_json(folder / "config.json", {}, "start the pipeline again"))
    if task == "data":
        datasets.make_data(config, folder)
        return
    names, seed = arms.select(config), int(seed)
    if task == "feedback":
        datasets.make_feedback(config, folder, seed)
    elif task == "parts":
        datasets.make_parts(config, folder, seed, int(name))
    elif task == "round":
        datasets.make_round(config, folder / f"seed_{seed}", seed, name)
    elif task == "tables":
        seed_dir = folder / f"seed_{seed}"
        models = [*arms.selected(config, "reward_models", names), *tabled_models(seed_dir)]
        make_tables(config, folder, seed, {model: str(seed_dir / model) for model in models})
    else:
        # The common start comes last: its file marks the stage as complete.
        policies = [*arms.selected(config, "arms", names), arms.BASE]
        paths = {arm: policy_folder(config, folder, seed, arm) for arm in policies}
        make_answers(config, folder, seed, paths)


def make_answers(config: ConfigDict, folder: Path, seed: int, policies: dict[str, str]) -> None:
    """Writes ``answers/ARM.json``: every policy's scored responses to the test prompts.

    Each file has responses at T = 1 and greedy, with scores (None without a judge); the policy's
    correction accuracy on the seed's held-out edits; its KL from the start of all arms; in the
    embedded world the words that an editor would still change; and with ``config.fluency_model``
    the fluency of the responses. Files of an earlier start with the same config are kept.

    ``answers/reference.json`` has samples of the SFT policy from keys that no arm uses: with shared
    keys a response would often equal its reference.

    ``policies`` are folders by arm, including ``sft``. Raises as :func:`check_template`.
    """
    for path in policies.values():
        check_template(path, config.template)
    prompts = sources.read(str(folder / "data" / "test.jsonl"))[: config.test_prompts]
    judge = user_function.load(config.judge) if config.judge else None
    score = functools.partial(user_function.score_responses, judge, config.judge)

    texts = [records.prompt_text(row) for row in prompts]
    options = {"max_prompt_length": config.max_prompt_length}
    options |= {"batch_size": config.answer_batch_size}

    def sample_and_score(temperature: float, seed: int, model: LanguageModel, arm: str) -> list:
        sampling = SamplingParams(temperature, max_new_tokens=config.max_new_tokens)
        seed += config.seed
        rows = generate_responses(model, prompts, sampling, generator=arm, seed=seed, **options)
        responses, ended = ([row[key] for row in rows] for key in ("output", "finished"))
        scores = score(texts, responses, finished=ended) if judge else [None] * len(rows)
        for text, row, value in zip(texts, rows, scores, strict=True):
            row["score"] = value
            if config.embedded:
                row["words_to_change"] = words_to_change(text, row["output"])
        return rows

    seed_dir = folder / f"seed_{seed}"
    edits, out = sources.read(str(seed_dir / "feedback" / "edits_test.jsonl")), seed_dir / "answers"
    start = LanguageModel.load(policies["sft"], template=config.template, lazy=True)
    made_with = task_fields(config, "answers")
    for arm, path in policies.items():
        file = out / f"{arm}.json"
        saved = read_json(file, {}).get("made_with", {}) if file.exists() else {}
        if saved and saved == user_function.comparable(made_with, saved):
            continue
        model = LanguageModel.load(path, template=config.template)
        if arm == "sft":
            reference = sample_and_score(1.0, seed + REFERENCE_SEED, model, "reference")
            write_json(out / "reference.json", {"sampled": reference})
        decodings = {"sampled": 1.0, "greedy": 0.0}
        answers = {name: sample_and_score(t, seed, model, arm) for name, t in decodings.items()}
        metrics = compare_with_start(config, model, start, edits, prompts, answers["sampled"])
        if config.fluency_model:
            metrics["fluency"] = measure_fluency(config, prompts, answers)
        write_json(file, {"made_with": made_with} | answers | metrics)
        del model  # frees its weights before the next policy's are loaded


def check_template(path: str, template: str) -> None:
    """Raises InputError for a policy that was fine-tuned with another template."""
    trained = hf_load.trained_template(path)
    if trained not in ("", template):
        raise InputError(
            f"{path}: was fine-tuned with the template {trained}, not {template}; give "
            f"--config.template={trained} and another run_dir"
        )


def compare_with_start(
    config: ConfigDict,
    policy: LanguageModel,
    start: LanguageModel,
    edits: Sequence[Edit],
    prompts: Sequence[Record],
    sampled: Sequence[dict],
) -> dict:
    """Correction accuracy of start and policy, and their KL on the policy's samples, in nats."""
    size = config.answer_batch_size
    corrections = correction.evaluate(policy, edits, start, batch_size=size)
    texts, ended = ([row[name] for row in sampled] for name in ("output", "finished"))
    options = {"max_prompt_length": config.max_prompt_length, "batch_size": size}
    logps, start_logps = (
        correction.response_logprobs(model, prompts, texts, ended, **options)
        for model in (policy, start)
    )
    kl = sum(float((a - b).sum()) for a, b in zip(logps, start_logps, strict=True)) / len(prompts)
    return {
        "correction_accuracy": corrections["sampled"]["mean"],
        "greedy_correction_accuracy": corrections["greedy"]["mean"],
        "corrections": corrections,
        "kl": kl,
    }


def measure_fluency(config: ConfigDict, prompts: Sequence[Record], answers: dict) -> dict:
    """Log-probability per token of each decoding's responses under ``config.fluency_model``."""
    model = LanguageModel.load(config.fluency_model, lazy=True)
    return {
        decoding: correction.fluency(
            model, prompts, [row["output"] for row in rows], config.table_batch_size
        )
        for decoding, rows in answers.items()
    }


def tabled_models(seed_dir: Path) -> list[str]:
    """The reward models of an existing tables.json, which an earlier start with other arms made."""
    example, file = {"reward_models": {}}, seed_dir / "tables.json"
    names = read_json(file, example)["reward_models"] if file.exists() else ()
    return [name for name in names if (seed_dir / name / "eval.json").exists()]


def make_tables(config: ConfigDict, folder: Path, seed: int, models: dict[str, str]) -> None:
    """Writes ``tables.json``: each reward model's accuracy per test set, and some token rewards.

    ``models`` are run folders by name.
    """
    feedback = folder / f"seed_{seed}" / "feedback"
    paths = {name: feedback / f"{name}_test.jsonl" for name in ("edits", "preferences", "gold")}
    sets = {name: sources.read(str(path)) for name, path in paths.items() if path.exists()}
    long = [row for row in sets["edits"] if len(row.original.split()) > 5]
    shown = long[: config.heatmaps if models else 0]
    tables, by_model = {}, [{} for _ in shown]
    for name, path in models.items():
        model, tables[name] = RewardModel.load(path), {}
        evaluated = evaluate(model, sets, batch_size=config.table_batch_size, buckets=1)
        for test_set, by_kind in evaluated.items():
            (table,) = by_kind.values()
            tables[name][test_set] = {key: table[key] for key in ("accuracy", "se", "n")}
            if test_set == "edits":
                tables[name]["auroc"] = table["auroc_changed"]
        for sides, (original, *_) in zip(by_model, model.score_all(shown), strict=True):
            sides[name] = {"tokens": original.tokens, "rewards": original.rewards}
    heatmaps = []
    for row, sides in zip(shown, by_model, strict=True):
        prompt, response, gold = records.prompt_text(row), row.original, None
        if not config.files.edits:
            tokens = [*next(iter(sides.values()))["tokens"]]
            (rewards,) = oracle_rewards([prompt], [response], [tokens])
            sides["oracle"] = {"tokens": tokens, "rewards": rewards}
            gold = gold_score(prompt, response)
        heatmaps.append({"by": sides, "gold": gold, "prompt": prompt, "response": response})
    result = {"reward_models": tables, "heatmaps": heatmaps, "devices": describe_devices()}
    write_json(folder / f"seed_{seed}" / "tables.json", result)
