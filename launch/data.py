r"""What is in files of records, and the same rows as another kind.

python -m launch.data --config.input=FILE|ID[,…] [--config.samples=3] [--config.tokenizer=FOLDER]
                      [--config.output=FILE.json]
python -m launch.data --config.input=FILE|ID[,…] --config.output=FILE.jsonl \
    --config.to=edits|preferences|instructions|prompts|alpaca_farm|alpaca_eval

The first shows rows of each kind, prompts, lengths, repetitions, prompts that files share, and some
rows in full; the second converts. An ID is ORG/NAME[:CONFIG[:SPLIT]] of a dataset, as in
tatsu-lab/alpaca_farm:alpaca_instructions:sft. With no flag it shows the embedded world.
"""

import dataclasses
import os

from fgrlhf_jax.data import convert as conversions
from fgrlhf_jax.data import describe, records
from fgrlhf_jax.errors import InputError
from fgrlhf_jax.models import hf_load
from fgrlhf_jax.runtime.files import write_json, write_jsonl
from fgrlhf_jax.tiny_world.datasets import make_feedback, make_instructions
from launch.shared import cli

CHOICES = {
    "to": ("", *conversions.TARGETS),
    "side": conversions.SIDES,
    "invalid": ("stop", "drop"),
    "template": ("alpaca", "chat", "plain"),
}
AT_LEAST = {
    **dict.fromkeys(("samples", "seed", "limit"), 0),
    **dict.fromkeys(("max_length", "max_prompt_length"), 1),
}
EMBEDDED_ROWS = 500
LEFT_OUT = {
    "invalid": "that cannot be read",
    "ties": "ties",
    "equal": "equal predictions",
    "without_output": "without an output",
    "repeated": "repeated",
}


def main(config) -> None:
    cli.check(config, choices=CHOICES, at_least=AT_LEAST)
    if config.to:
        convert(config)
    else:
        show(config)


def show(config) -> None:
    """The figures of every file, and samples."""
    if config.output.endswith(".jsonl"):
        raise InputError(
            f"output={config.output}: say which rows, --config.to=…, or give a .json"
        )
    output = cli.check_output(config.output, (".json",))
    files, invalid = read(config) if config.input else (embedded(config.seed), {})
    ruler = None
    if config.tokenizer:
        limits = config.max_length, config.max_prompt_length
        tokenizer = hf_load.load_tokenizer(config.tokenizer)
        ruler = describe.Ruler(tokenizer, config.template, *limits)
    found = describe.figures(
        files, invalid=invalid, ruler=ruler, samples=config.samples, seed=config.seed
    )
    print(describe.table(found))
    for one in found["files"]:
        for sample in one["samples"]:
            print(f"\n-- row {sample['row']} of {one['file']}")
            print(describe.sample_text(sample["fields"]))
    if config.output:
        write_json(output, found)


def convert(config) -> None:
    """The rows of all files as one kind."""
    for name, example in (("input", "FILE"), ("output", "FILE.jsonl")):
        if not config[name]:
            raise InputError(f"to={config.to}: {name} is empty; give --config.{name}={example}")
    output = cli.check_output(config.output, (".jsonl", ".json"))
    files, invalid = read(config)
    rows = [pair for pairs in files.values() for pair in pairs]
    counts = {"invalid": sum(map(len, invalid.values()))}
    if config.predictions:
        rows, compared = conversions.compared_predictions(rows, config.seed)
        counts |= compared
    options = {name: config[name] for name in ("side", "distinct", "generator", "seed")}
    made, kept = conversions.convert(rows, config.to, **options)
    counts |= kept
    if output.suffix == ".json":
        write_json(output, made)
    else:
        write_jsonl(output, made)
    print(f"{len(made)} rows in {output}")
    for name, why in LEFT_OUT.items():
        if counts.get(name):
            print(f"left out: {counts[name]} {why}")


def read(config) -> tuple[dict, dict]:
    """Records with their rows by file, and complaints about rows by file."""
    whole = os.path.exists(config.input)
    sources = [config.input] if whole else [s.strip() for s in config.input.split(",")]
    files, invalid = {}, {}
    for source in sources:
        both = os.path.exists(source) and os.path.exists(config.output)
        if both and os.path.samefile(source, config.output):
            raise InputError(f"output={config.output}: is what is read; give another file")
        complaints = [] if config.invalid == "drop" else None
        pairs = records.read_with_rows(source, prompts=True, refused=complaints)
        files[source] = pairs[: config.limit or None]
        invalid[source] = complaints or []
    return files, invalid


def embedded(seed: int) -> dict:
    """The embedded world's sets."""
    edits, preferences = make_feedback(EMBEDDED_ROWS, seed)
    sets = {name: make_instructions(EMBEDDED_ROWS, name, seed) for name in ("sft", "ppo")}
    sets |= {"edits": edits, "preferences": preferences}
    return {
        f"embedded {name}": [(row, dataclasses.asdict(row)) for row in rows]
        for name, rows in sets.items()
    }


if __name__ == "__main__":
    cli.command(main, "configs/data.py", __doc__)
