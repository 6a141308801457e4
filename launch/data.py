r"""Show statistics and rows of data files, or convert them to another kind.

python -m launch.data --config.input=FILE|ID[,…] [--config.samples=3] [--config.tokenizer=FOLDER]
                      [--config.output=FILE.json]
python -m launch.data --config.input=FILE|ID[,…] --config.output=FILE.jsonl \
    --config.to=edits|preferences|instructions|prompts|trl|messages|alpaca_farm|alpaca_eval

The first form prints counts of rows by kind, prompts, lengths, duplicates, prompts that files
share, and some rows in full; the second converts. Only --config.overwrite overwrites a file. An ID
is ORG/NAME[:CONFIG[:SPLIT]] of a dataset, such as tatsu-lab/alpaca_farm:alpaca_instructions:sft.
Without flags, it shows the embedded world.
"""

import dataclasses

from fgrlhf_jax.data.convert import convert_records
from fgrlhf_jax.data.describe import TokenLimits, describe_files, format_fields, format_table
from fgrlhf_jax.data.records import RecordAndRow
from fgrlhf_jax.data.sources import split_sources
from fgrlhf_jax.errors import InputError
from fgrlhf_jax.runtime.files import write_json, write_jsonl
from fgrlhf_jax.tiny_world.datasets import make_feedback, make_instructions
from launch.shared import cli, reading

CONFIG = "configs/data.py"
EMBEDDED_ROWS = 500
DROP_REASONS = {"without_output": "without an output", "repeated": "repeated"}


def main(config) -> None:
    if config.to:
        convert(config)
    else:
        show(config)


def show(config) -> None:
    """Prints statistics and sample rows of every file."""
    if config.output.endswith(".jsonl"):
        raise InputError(f"output={config.output}: say which rows, --config.to=…, or give a .json")
    output = cli.check_output(config, (".json",), [config.input])
    files = read(config) if config.input else embedded(config.seed)
    limits = None
    if config.tokenizer:
        from fgrlhf_jax.models import hf_load  # imports JAX

        tokenizer = hf_load.load_tokenizer(config.tokenizer)
        template = hf_load.resolve_template(config.tokenizer, tokenizer, config.template)
        limits = TokenLimits(tokenizer, template, config.max_length, config.max_prompt_length)
    statistics = describe_files(files, limits=limits, samples=config.samples, seed=config.seed)
    print(format_table(statistics))
    for file in statistics["files"]:
        for sample in file["samples"]:
            print(f"\n-- row {sample['row']} of {file['file']}")
            print(format_fields(sample["fields"]))
    if config.output:
        write_json(output, statistics)


def convert(config) -> None:
    """Converts the rows of all files to one kind and writes them."""
    for name, example in (("input", "FILE"), ("output", "FILE.jsonl")):
        if not config[name]:
            raise InputError(f"to={config.to}: {name} is empty; give --config.{name}={example}")
    output = cli.check_output(config, (".jsonl", ".json"), [config.input])
    rows = [pair for pairs in read(config).values() for pair in pairs]
    options = {name: config[name] for name in ("side", "distinct", "generator", "seed")}
    converted, counts = convert_records(rows, config.to, **options)
    if output.suffix == ".json":
        write_json(output, converted)
    else:
        write_jsonl(output, converted)
    print(f"{len(converted)} rows in {output}")
    for name, reason in DROP_REASONS.items():
        if counts.get(name):
            print(f"left out: {counts[name]} {reason}")


def read(config) -> dict[str, list[RecordAndRow]]:
    """Records with their rows, by file."""
    need = "prompts" if config.to == "prompts" else "rows"
    return {
        source: reading.read_with_rows(config, source, need)[: config.limit or None]
        for source in split_sources(config.input)
    }


def embedded(seed: int) -> dict:
    """Records of the embedded world with their rows, by set."""
    edits, preferences = make_feedback(EMBEDDED_ROWS, seed)
    sets = {name: make_instructions(EMBEDDED_ROWS, name, seed) for name in ("sft", "ppo")}
    sets |= {"edits": edits, "preferences": preferences}
    return {
        f"embedded {name}": [(row, dataclasses.asdict(row)) for row in rows]
        for name, rows in sets.items()
    }


if __name__ == "__main__":
    cli.command(main, CONFIG, __doc__)
