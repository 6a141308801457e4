r"""Report how minimal edits are: categories, change ratios, lengths, annotators, examples.

python -m launch.edit_report --config.input=FILE.jsonl [--config.output=FILE.html|FILE.json]
                             [--config.tokenizer=FOLDER] [--config.FIELD=VALUE …]

Prints a table. FILE.html is a page with coloured changes; FILE.json has the statistics of the file
and of every row. Without flags, it reports on edits of the embedded world.
"""

import sys
from pathlib import Path

from fgrlhf_jax.data import records, templates
from fgrlhf_jax.data.sources import split_sources
from fgrlhf_jax.errors import InputError
from fgrlhf_jax.feedback.edits import report
from fgrlhf_jax.feedback.edits.minimality import LONGEST
from fgrlhf_jax.feedback.edits.request import count_rejected
from fgrlhf_jax.runtime.files import write_json, write_text
from fgrlhf_jax.tiny_world.datasets import make_feedback
from launch.shared import cli, reading

CONFIG = "configs/edit_report.py"
EMBEDDED_ROWS = 300


def main(config) -> None:
    output = cli.check_output(config, (".html", ".json"), [config.input])
    sources = [Path(source) for source in split_sources(config.input)]
    if config.input:
        edits, annotators = read_edits(config)
        rejected = count_rejected(sources)
    else:
        edits, _ = make_feedback(EMBEDDED_ROWS, config.seed)
        annotators, rejected = [], {}
    statistics = report.compute_statistics(
        edits,
        annotators=annotators,
        encode=make_encoder(config.tokenizer),
        max_change_ratio=config.max_change_ratio,
        rejected=rejected,
        examples=config.examples,
    )
    if output.suffix == ".html":
        names = ", ".join(path.name for path in sources)
        title = f"Edits: {names}" if config.input else "Edits of the embedded world"
        source = config.input or "the embedded world"
        write_text(output, report.render_page(statistics, title=title, source=source))
    elif config.output:
        write_json(output, {"input": config.input, **statistics})
    print(report.format_figures(statistics))
    print("", report.format_examples(statistics, colour=sys.stdout.isatty()), sep="\n")
    if config.output:
        print(f"\nwritten to {output}")


def read_edits(config) -> tuple[list[records.Edit], list[str]]:
    """Reads the edits of files and the annotator of each, "" if the row names none.

    Raises InputError for a row that is not an edit and, unless invalid=drop, for a too long row.
    """
    edits, annotators = [], []
    for n, (row, fields) in enumerate(reading.read_with_rows(config, config.input, "pairs"), 1):
        if not isinstance(row, records.Edit):
            remedy = "launch.collect_edits makes edits of responses"
            if {"chosen", "rejected"} <= fields.keys():
                remedy = "set --config.columns=original=rejected,edited=chosen"
            raise InputError(
                f"{config.input}: row {n} is not an edit (instruction, original, edited); {remedy}"
            )
        length = max(len(row.original), len(row.edited))
        if length > LONGEST:
            sentence = f"{config.input}: row {n} has a response of {length:,} characters, more than"
            if config.invalid != "drop":
                raise InputError(f"{sentence} {LONGEST:,}; shorten it, or set invalid=drop")
            print(f"{sentence} {LONGEST:,}; it is left out", file=sys.stderr)
            continue
        edits.append(row)
        annotators.append(str(fields.get("annotator") or ""))
    if not edits:
        raise InputError(f"{config.input}: every row is too long; give shorter responses")
    return edits, annotators


def make_encoder(tokenizer: str):
    """A function from text to token ids, or None without a tokenizer."""
    if not tokenizer:
        return None
    from fgrlhf_jax.models import hf_load  # imports JAX

    loaded = hf_load.load_tokenizer(tokenizer)
    return lambda text: templates.encode_text(loaded, text)


if __name__ == "__main__":
    cli.command(main, CONFIG, __doc__)
