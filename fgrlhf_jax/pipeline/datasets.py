"""The data of a study: ``data/``, each seed's ``feedback/``, and the edits of later rounds."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from fgrlhf_jax.data import records, sources
from fgrlhf_jax.data.records import Edit, Instruction, Preference, Record
from fgrlhf_jax.data.split import split
from fgrlhf_jax.errors import InputError
from fgrlhf_jax.pipeline import arms
from fgrlhf_jax.runtime.files import read_json, write_json, write_jsonl
from fgrlhf_jax.tiny_world.datasets import collect_feedback, make_instructions
from fgrlhf_jax.tiny_world.judge import gold_score
from fgrlhf_jax.tiny_world.people import Rates
from fgrlhf_jax.tiny_world.words import make_tokenizer

FIELDS = {Edit: ("original", "edited"), Preference: ("output_1", "output_2", "preference")}
SETS = ("sft", "feedback", "ppo", "validation", "test")
ROUND_SEED = 10**5  # times the round's number: added to the seed of its simulated editors


def make_data(config: ConfigDict, folder: Path) -> None:
    """Writes ``data/``, from the embedded world or from the files that the config names."""
    if config.files.edits:
        sets = read_file_sets(config)
        for name, rows in drop_held_out_prompts(sets).items():
            total = len(sets[name])
            print(f"{name}: {total} rows, {total - len(rows)} dropped: held-out prompts")
            write_jsonl(folder / "data" / f"{name}.jsonl", rows)
    else:
        options = {"rates": Rates(**config.world.rates), "world": config.world.kind}
        make_tokenizer().save_pretrained(folder / "data" / "tokenizer")
        for name in SETS:
            rows = make_instructions(config.world[name], name, config.seed, **options)
            write_jsonl(folder / "data" / f"{name}.jsonl", rows)


def read_file_sets(config: ConfigDict) -> dict[str, list[Record]]:
    """The rows of every file of ``data/``, read from the files that the config names."""
    files = config.files
    edits = read_kind(Edit, files.edits)
    preferences = read_kind(Preference, files.preferences) if files.preferences else []
    # Edits and preferences are split together, so that a prompt of both is on one side. The split
    # is exact: a file that the same hash has split before may have no low hashes.
    if files.edits_validation:
        held_out = read_kind(Edit, files.edits_validation)
        train, rest = preferences, []
        if preferences:
            train, rest = split(preferences, 0.1, config.seed, exact=True)
        train, held_out = [*edits, *train], [*held_out, *rest]
    else:
        train, held_out = split([*edits, *preferences], 0.1, config.seed, exact=True)
    # A new seed: the rows were selected by the hash with the first seed.
    parts = {"train": train}
    parts["validation"], parts["test"] = split(held_out, 0.5, config.seed + 1, exact=True)
    kinds = {"edits": Edit, "preferences": Preference} if preferences else {"edits": Edit}
    feedback = {
        f"{name}_{part}": [row for row in rows if isinstance(row, kind)]
        for name, kind in kinds.items()
        for part, rows in parts.items()
    }
    edits = feedback["edits_train"]
    # Without demonstrations a policy imitates both sides of the edits.
    sft = (sources.read(files.sft, need="responses") if files.sft else []) or [
        records.as_instruction(edit, name) for edit in edits for name in records.RESPONSES[Edit]
    ]
    prompts = sources.read(files.prompts, need="prompts") if files.prompts else edits
    test = sources.read(files.test, need="prompts") if files.test else feedback["edits_test"]
    return {
        "sft": sft,
        "ppo": distinct_prompts(prompts),
        "validation": distinct_prompts(feedback["edits_validation"]),
        "test": distinct_prompts(test),
        **feedback,
    }


def drop_held_out_prompts(sets: dict[str, list[Record]]) -> dict[str, list[Record]]:
    """Removes test prompts from validation, and prompts of both from the training sets."""

    def prompts_of(*parts: str) -> set[str]:
        names = [name for name in sets if any(part in name for part in parts)]
        return {records.prompt_id(row) for name in names for row in sets[name]}

    test, held_out = prompts_of("test"), prompts_of("validation", "test")
    allowed = {}
    for name, rows in sets.items():
        excluded = set() if "test" in name else test if "validation" in name else held_out
        allowed[name] = [row for row in rows if records.prompt_id(row) not in excluded]
        if rows and not allowed[name]:
            reason = f"all {len(rows)} rows have a prompt that is held out, perhaps the only one"
            raise InputError(f"{name}: {reason}; give more prompts, or use launch.train_rm or dpo")
    return allowed


def read_kind(kind: type, spec: str) -> list[Record]:
    """The records of files with one kind of row; raises InputError for a row of another kind."""
    rows, name = sources.read(spec), kind.__name__.lower()
    for number, row in enumerate(rows, 1):
        if not isinstance(row, kind):
            fields = ", ".join(FIELDS[kind])
            advice = f"give {name}s"
            if kind is Edit and isinstance(row, Preference):
                columns = "--config.columns=original=rejected,edited=chosen"
                advice += f", as `launch.data {columns} --config.to=edits` makes of preferences"
            raise InputError(f"{spec}: row {number} is no {name} ({fields}); {advice}")
    return rows


def distinct_prompts(rows: Sequence[Record]) -> list[Instruction]:
    """The distinct prompts of records, in order."""
    first: dict = {}
    for row in rows:
        prompt = Instruction(row.instruction, row.input, "", row.messages)
        first.setdefault(records.prompt_id(row), prompt)
    return [*first.values()]


def make_feedback(config: ConfigDict, folder: Path, seed: int) -> None:
    """Writes ``feedback/``: a seed's edits and preferences, split by prompt."""
    out = folder / f"seed_{seed}" / "feedback"
    if config.files.edits:
        paths = sorted((folder / "data").glob("*_*.jsonl"))
        sets = {path.stem: sources.read(str(path)) for path in paths}
    else:
        sets = feedback_on_samples(config, out.parent / "samples.json", seed)
    write_sets(out, sets)


def make_parts(config: ConfigDict, folder: Path, seed: int, total: int) -> None:
    """Writes ``parts_of_N/``: N parts of the feedback's prompts, with the edits on each part.

    Raises InputError if there are fewer prompts than parts.
    """
    seed_dir = folder / f"seed_{seed}"
    paths = (seed_dir / "feedback").glob("*.jsonl")
    feedback = {path.stem: sources.read(str(path)) for path in paths}
    edits = {side: feedback[f"edits_{side}"] for side in ("train", "validation")}
    prompts = [*edits["train"], *edits["validation"]]
    if config.embedded:
        prompts = sources.read(str(folder / "data" / "feedback.jsonl"))
    test = {records.prompt_id(row) for name in feedback if "test" in name for row in feedback[name]}
    prompts = distinct_prompts([row for row in prompts if records.prompt_id(row) not in test])
    if len(prompts) < total:
        raise InputError(f"{total} rounds of edits need as many prompts; there are {len(prompts)}")
    order = np.random.default_rng(config.seed + 2).permutation(len(prompts))
    sets = {}
    for number in range(1, total + 1):
        part = [prompts[index] for index in sorted(order[number - 1 :: total])]
        part_prompts = {records.prompt_id(row) for row in part}
        sets[f"prompts_{number}"] = part
        for side in ("train", "validation"):
            part_edits = [row for row in edits[side] if records.prompt_id(row) in part_prompts]
            sets[f"edits_{number}_{side}"] = part_edits
    write_sets(seed_dir / f"{arms.PARTS_PREFIX}{total}", sets)


def write_sets(folder: Path, sets: dict[str, list[Record]]) -> None:
    """Writes ``NAME.jsonl`` for every set; ``counts.json`` comes last and marks completion."""
    for name, rows in sets.items():
        write_jsonl(folder / f"{name}.jsonl", rows)
    write_json(folder / "counts.json", {name: len(rows) for name, rows in sets.items()})


def make_round(config: ConfigDict, seed_dir: Path, seed: int, name: str) -> None:
    """Writes ``ROUND/``: edits of samples of the round's policy.

    Raises InputError, with the commands, if people or a language model must edit the samples first.
    """
    samples, out = seed_dir / f"{name}_samples.json", seed_dir / name
    if config.embedded:
        rates = Rates(**config.world.rates)
        # Each round has its own seed, so that its simulated editors make other mistakes.
        people_seed = config.seed + seed + ROUND_SEED * int(config.rounds[name].part.split("_")[0])
        edits, _ = collect_feedback(*read_samples(samples), people_seed, rates)
    elif (file := out / "edits.jsonl").exists():
        edits = read_kind(Edit, str(file))
    else:
        raise InputError(
            f"{file}: does not exist; have the responses edited, python -m launch.collect_edits "
            f"--config.input={samples} --config.output={file} --config.provider=… "
            f"--config.model=…, or by people, python -m launch.annotate --config.input={samples} "
            f"--config.output={file}; then run the same command again"
        )
    validation = sources.read(str(seed_dir / "feedback" / "edits_validation.jsonl"))
    held_out = {records.prompt_id(row) for row in validation}
    sets = {"train": [], "validation": []}
    for row in edits:
        sets["validation" if records.prompt_id(row) in held_out else "train"].append(row)
    for part, rows in sets.items():
        if not rows:
            raise InputError(f"{out}: no edit is on a prompt of {part}; have more responses edited")
    write_sets(out, {f"edits_{part}": rows for part, rows in sets.items()})


def feedback_on_samples(config: ConfigDict, path: Path, seed: int) -> dict[str, list[Record]]:
    """Simulated people's edits and preferences on two samples per prompt, as split sets.

    ``gold_test`` has the pairs of ``preferences_test``, labelled without noise.
    """
    rates = Rates(**config.world.rates)
    feedback = collect_feedback(*read_samples(path), config.seed + seed, rates)
    sets = {}
    for name, rows in zip(("edits", "preferences"), feedback, strict=True):
        sets[f"{name}_train"], rest = split(rows, 0.15, config.seed)
        validation, test = split(rest, 0.6, config.seed + 1)
        sets |= {f"{name}_validation": validation, f"{name}_test": test}
    return sets | {"gold_test": gold_pairs(sets["preferences_test"])}


def read_samples(path: Path) -> tuple[list[str], list[str], list[str]]:
    """Prompts and two responses to each, from a file of ``launch.generate``."""
    example, remedy = [{"instruction": "", "output": ""}], "delete it and run the pipeline again"
    samples = read_json(path, example, remedy)
    prompts = [sample["instruction"] for sample in samples[::2]]
    return prompts, *([sample["output"] for sample in samples[k::2]] for k in range(2))


def gold_pairs(rows: Sequence[Preference]) -> list[Preference]:
    """The pairs labelled by the exact judge, without pairs that it scores equally."""
    labelled = []
    for row in rows:
        scores = [gold_score(row.instruction, t) for t in (row.output_1, row.output_2)]
        if scores[0] != scores[1]:
            labelled.append(dataclasses.replace(row, preference=1 if scores[0] > scores[1] else 2))
    return labelled
