"""What a study does between its commands: data, feedback, answers, tables; all of it files.

    folder/data/       sft, feedback, ppo, validation and test .jsonl
    folder/sft/        the policy that everything starts from
    folder/seed_S/     samples.json -> feedback/ -> rm_*/ -> ppo runs -> answers/, tables.json

Seed S has its own samples, feedback, reward models and policies.
"""

import json
from pathlib import Path

from ml_collections import ConfigDict

from fgrlhf_jax.data import records
from fgrlhf_jax.data.bucketing import make_buckets
from fgrlhf_jax.data.records import Edit, Instruction, Preference, Record
from fgrlhf_jax.data.templates import plain_text
from fgrlhf_jax.errors import InputError
from fgrlhf_jax.functional import win_rate
from fgrlhf_jax.models import hf_load, language_model
from fgrlhf_jax.pipeline.arms import select_arms, select_reward_models
from fgrlhf_jax.reward_model import scorer as reward_eval
from fgrlhf_jax.reward_model import token_rewards
from fgrlhf_jax.runtime import metric_log, run_dir, user_function
from fgrlhf_jax.tiny_world import datasets as tiny_world
from fgrlhf_jax.tiny_world import judge as tiny_judge
from fgrlhf_jax.tiny_world import people as tiny_people

FIELDS = {Edit: ("original", "edited"), Preference: ("output_1", "output_2", "preference")}
SETS = ("sft", "feedback", "ppo", "validation", "test")
REFERENCE_SEED = 10**6  # added to a seed for the reference's own samples
TASKS = ("data", "feedback", "answers", "tables")


def run_task(config: ConfigDict) -> None:
    """Do ``config.task``, NAME or NAME:SEED, with the config of the run folder."""
    folder = Path(config.run_dir)
    name, _, seed = config.task.partition(":")
    if name not in TASKS:
        raise InputError(f"task={config.task!r}: is not one of {', '.join(TASKS)}")
    config = ConfigDict(json.loads((folder / "config.json").read_text()))
    arms, home = select_arms(config), folder / f"seed_{seed}"
    if name == "data":
        make_data(config, folder)
    elif name == "feedback":
        make_feedback(config, folder, int(seed))
    elif name == "tables":
        models = {model: str(home / model) for model in select_reward_models(arms)}
        make_tables(config, folder, int(seed), models)
    else:
        policies = {arm: str(home / arm / "export") for arm in arms}
        # The last one: its file says that all are there.
        policies["sft"] = str(folder / "sft" / "export")
        make_answers(config, folder, int(seed), policies)


def make_data(config: ConfigDict, folder: Path) -> None:
    """``data/``: of the embedded world, or of the files that the config names."""
    if not config.files.edits:
        rates = tiny_people.Rates(**config.world.rates)
        sizes = {name: config.world[name] for name in SETS}
        tiny_world.tokenizer().save_pretrained(folder / "data" / "tokenizer")
        tiny_world.write_data(folder / "data", sizes, config.seed, rates)
        return
    files = config.files
    edits = records_of(Edit, files.edits)
    if files.edits_validation:
        held = records_of(Edit, files.edits_validation)
    else:
        edits, held = records.split(edits, 0.1, config.seed)
    sft = records.read(files.sft) if files.sft else []
    # Without demonstrations a policy imitates both sides of the edits.
    sft = sft or [Instruction(e.instruction, e.input, t) for e in edits for t in sides(e)]
    train_prompts = records.read(files.prompts, prompts=True) if files.prompts else edits
    # Another seed than that of the split before, whose hash these rows have in common.
    validation, test = records.split(held, 0.5, config.seed + 1)
    sets = {
        "sft": sft,
        "ppo": distinct(train_prompts),
        "validation": distinct(validation),
        "test": distinct(records.read(files.test, prompts=True) if files.test else test),
        "edits_train": edits,
        "edits_validation": validation,
        "edits_test": test,
    }
    if files.preferences:
        preferences = records_of(Preference, files.preferences)
        train, rest = records.split(preferences, 0.1, config.seed)
        sets |= {"preferences_train": train}
        names = ("preferences_validation", "preferences_test")
        sets |= dict(zip(names, records.split(rest, 0.5, config.seed + 1), strict=True))
    # Nothing is learned from a prompt that is kept for watching or for the end.
    held = {asked(row) for name, rows in sets.items() if _is_held(name) for row in rows}
    held_last = {asked(row) for name, rows in sets.items() if "test" in name for row in rows}
    for name, rows in sets.items():
        barred = set() if "test" in name else held_last if _is_held(name) else held
        kept = [row for row in rows if asked(row) not in barred]
        dropped = len(rows) - len(kept)
        print(f"{name}: {len(rows)} rows, {dropped} dropped: their prompt is held out")
        records.write_jsonl(folder / "data" / f"{name}.jsonl", kept)


def records_of(kind: type, spec: str) -> list[Record]:
    """Records of files that hold one kind; raises InputError where a row is another."""
    rows, name = records.read(spec), kind.__name__.lower()
    for number, row in enumerate(rows, 1):
        if not isinstance(row, kind):
            fields = ", ".join(FIELDS[kind])
            raise InputError(f"{spec}: row {number} is no {name} ({fields}); give {name}s")
    return rows


def asked(row) -> tuple[str, str]:
    """The prompt of a record, as ``records.split`` tells prompts apart."""
    return row.instruction.strip(), row.input.strip()


def _is_held(name: str) -> bool:
    return "validation" in name or "test" in name


def sides(edit: Edit) -> tuple[str, str]:
    return edit.original, edit.edited


def distinct(rows: list) -> list[Instruction]:
    """The prompts of records, each once, in order."""
    first: dict = {}
    for row in rows:
        first.setdefault(asked(row), Instruction(row.instruction, row.input, ""))
    return [*first.values()]


def make_feedback(config: ConfigDict, folder: Path, seed: int) -> None:
    """``feedback/``: preferences and edits of a seed's samples, split by prompt; what to imitate.

    In the world its people say what they think of two samples a prompt; ``gold_test`` are the same
    pairs as ``preferences_test``, labelled without noise. Otherwise the files' own feedback.
    """
    out = folder / f"seed_{seed}" / "feedback"
    if config.files.edits:
        sets = {}
        for path in sorted((folder / "data").glob("*_*.jsonl")):
            sets[path.stem] = records.read(str(path))
    else:
        rows = json.loads((folder / f"seed_{seed}" / "samples.json").read_text())
        prompts = [row["instruction"] for row in rows[::2]]
        ones, twos = ([row["output"] for row in rows[start::2]] for start in (0, 1))
        rates = tiny_people.Rates(**config.world.rates)
        made = tiny_world.feedback(prompts, ones, twos, config.seed + seed, rates)
        sets = {}
        for name, rows in zip(("edits", "preferences"), made, strict=True):
            train, rest = records.split(rows, 0.15, config.seed)
            validation, test = records.split(rest, 0.6, config.seed + 1)
            sets |= {f"{name}_train": train, f"{name}_validation": validation}
            sets[f"{name}_test"] = test
        sets["gold_test"] = gold_pairs(sets["preferences_test"])
    for name in ("train", "validation"):
        sets[f"imitate_{name}"] = [
            Instruction(e.instruction, e.input, e.edited) for e in sets[f"edits_{name}"]
        ]
    for name, rows in sets.items():
        records.write_jsonl(out / f"{name}.jsonl", rows)
    run_dir.write_json(out / "counts.json", {name: len(rows) for name, rows in sets.items()})


def gold_pairs(rows: list[Preference]) -> list[Preference]:
    """The same pairs labelled by the gold judge; those it finds equal left out."""
    labelled = []
    for row in rows:
        one, two = (tiny_judge.gold(row.instruction, t) for t in (row.output_1, row.output_2))
        if one != two:
            better = 1 if one > two else 2
            labelled.append(
                Preference(row.instruction, "", row.output_1, row.output_2, better, row.id)
            )
    return labelled


def make_answers(config: ConfigDict, folder: Path, seed: int, policies: dict[str, str]) -> None:
    """``answers/ARM.json``: every policy's responses to the test prompts, at T = 1 and greedy,
    with the judge's scores.

    ``answers/reference.json`` are other samples of the SFT policy, drawn with keys that no arm has:
    with the same ones a response would often be its own reference.

    Args:
      policies: folder of a language model by arm, ``sft`` among them.

    Raises:
      InputError: for a policy that was fine-tuned with another template.
    """
    for path in policies.values():
        learned = hf_load.learned_template(path)
        if learned not in ("", config.template):
            raise InputError(
                f"{path}: was fine-tuned with the template {learned}, not {config.template}; "
                f"give --config.template={learned} and another run_dir"
            )
    prompts = records.read(str(folder / "data" / "test.jsonl"))[: config.test_prompts]
    judge = user_function.load(config.judge)
    drawn = {"reference": (policies["sft"], {"sampled": 1.0}, REFERENCE_SEED)}
    both = {"sampled": 1.0, "greedy": 0.0}
    drawn |= {arm: (path, both, 0) for arm, path in policies.items()}
    for arm, (path, decodings, other) in drawn.items():
        made = {}
        for decoding, temperature in decodings.items():
            rows = language_model.answer(
                path,
                prompts,
                template=config.template,
                max_prompt_length=config.max_prompt_length,
                max_new_tokens=config.max_new_tokens,
                temperature=temperature,
                seed=config.seed + seed + other,
                batch_size=config.answer_batch_size,
                generator=arm,
            )
            scores = user_function.call(
                judge,
                config.judge,
                [plain_text(row.instruction, row.input) for row in prompts],
                [row["output"] for row in rows],
                finished=[row["finished"] for row in rows],
            )
            made[decoding] = [
                row | {"score": score} for row, score in zip(rows, scores, strict=True)
            ]
        run_dir.write_json(folder / f"seed_{seed}" / "answers" / f"{arm}.json", made)


def make_tables(config: ConfigDict, folder: Path, seed: int, models: dict[str, str]) -> None:
    """``tables.json``: each reward model on each test set, and token rewards of some responses.

    Args:
      models: run folder of a reward model by name.
    """
    feedback = folder / f"seed_{seed}" / "feedback"
    sets = {
        name: records.read(str(feedback / f"{name}_test.jsonl"))
        for name in ("edits", "preferences", "gold")
        if (feedback / f"{name}_test.jsonl").exists()
    }
    long = [row for row in sets["edits"] if len(row.original.split()) > 5]
    shown = long[: config.heatmaps if models else 0]
    tables, maps = {}, [{"by": {}, "gold": None} for _ in shown]
    for name, path in models.items():
        scorer = reward_eval.load(path)
        data = scorer.meta.data
        predict = reward_eval.Predictor(
            scorer.model,
            scorer.meta.settings,
            scorer.mesh,
            make_buckets(data["max_length"], 32),
            config.table_batch_size,
        )
        tables[name] = {}
        for test, rows in sets.items():
            pairs = reward_eval.encode(rows, test, scorer.tokenizer, data)
            kind = reward_eval.tables(predict, scorer, pairs, rows)
            (table,) = kind.values()
            tables[name][test] = {key: table[key] for key in ("accuracy", "se", "n")}
            if test == "edits":
                tables[name]["auroc"] = table["auroc_changed"]
        scored = token_rewards.score_rows(
            scorer, shown, batch_size=16, max_length=data["max_length"], calibrated=True
        )
        for one, row, views in zip(maps, shown, scored, strict=True):
            one |= {"prompt": plain_text(row.instruction, row.input), "response": row.original}
            one["by"][name] = {"tokens": views[0].tokens, "rewards": views[0].rewards}
    if not config.files.edits:
        for one in maps:
            tokens = [*next(iter(one["by"].values()))["tokens"]]
            (rewards,) = tiny_judge.oracle_rewards([one["prompt"]], [one["response"]], [tokens])
            one["by"]["oracle"] = {"tokens": tokens, "rewards": rewards}
            one["gold"] = tiny_judge.gold(one["prompt"], one["response"])
    found = {"reward_models": tables, "heatmaps": maps}
    run_dir.write_json(folder / f"seed_{seed}" / "tables.json", found)


def gather(
    config: ConfigDict, folder: Path, labels: dict[str, str], models: dict[str, str]
) -> dict:
    """The ``study`` that ``report.content`` takes, from the files of all stages.

    Args:
      labels: arms in the order to show, and what to call them; likewise ``models``.
    """
    seeds = range(config.seeds)
    reference = [_read(folder, seed, "answers/reference.json") for seed in seeds]
    arms = {}
    for arm, label in labels.items():
        runs = []
        for seed in seeds:
            answers, curve = _read(folder, seed, f"answers/{arm}.json"), []
            path = folder / f"seed_{seed}" / arm / "metrics.jsonl"
            rows = metric_log.read_rows(path)
            for row in rows:
                if "validation/kl" in row:
                    figures = {
                        name: row.get(f"validation/{name}")
                        for name in ("reward", "kl", "length", "unfinished")
                    }
                    spent = sum(r.get("seconds", 0.0) for r in rows if r["step"] <= row["step"])
                    gold = row.get("validation/score")
                    curve.append(
                        {"step": row["step"], "gold": gold, "seconds": spent, **figures}
                    )
            is_ppo, kl = bool(curve), None
            if is_ppo:  # of the step that was exported, which need not be the last one
                exported = _read(folder, seed, f"{arm}/finished.json")["step"]
                kl = {row["step"]: row["kl"] for row in curve}.get(exported)
            steps = [row["seconds"] for row in rows if "seconds" in row][1:]
            run = {
                name: {
                    "scores": [row["score"] for row in answers[name]],
                    # Both decodings against the reference's samples at T = 1.
                    "outcome": win_rate.outcomes(
                        [row["score"] for row in answers[name]],
                        [row["score"] for row in reference[seed]["sampled"]],
                    ).tolist(),
                    "lengths": [row["length"] for row in answers[name]],
                    "unfinished": sum(not r["finished"] for r in answers[name])
                    / len(answers[name]),
                    "kl": kl if name == "sampled" else None,
                }
                for name in ("sampled", "greedy")
            }
            run["curve"] = curve
            run["seconds_per_step"] = sum(steps) / len(steps) if is_ppo and steps else None
            runs.append(run)
        arms[arm] = {"label": label, "runs": runs}
    tables = [_read(folder, seed, "tables.json") for seed in seeds]
    return {
        "config": run_dir.flatten(config.to_dict()),
        "seeds": config.seeds,
        "title": config.title,
        "judge": config.judge_name,
        "test_prompts": len(reference[0]["sampled"]),
        "arms": arms,
        "reward_models": {
            name: {"label": label, "runs": [table["reward_models"][name] for table in tables]}
            for name, label in models.items()
        },
        "heatmaps": tables[0]["heatmaps"],
        "bootstrap_seed": config.seed,
    }


def _read(folder: Path, seed: int, name: str) -> dict:
    return json.loads((folder / f"seed_{seed}" / name).read_text())
