r"""How minimal the edits of a file are: kinds, change ratios, lengths, by annotator, and examples.

python -m launch.edit_report --config.input=FILE.jsonl [--config.output=FILE.html|FILE.json]
                             [--config.tokenizer=FOLDER] [--config.FIELD=VALUE …]

Prints a table. FILE.html is one page with the changes coloured; FILE.json has all figures, and
those of every row. With no flag it shows edits of the embedded world.
"""

import sys
from pathlib import Path

from fgrlhf_jax.data import records, templates
from fgrlhf_jax.errors import InputError
from fgrlhf_jax.feedback.edits import page as edit_page
from fgrlhf_jax.feedback.edits import report as edit_report
from fgrlhf_jax.feedback.edits.request import count_rejected
from fgrlhf_jax.models import hf_load
from fgrlhf_jax.runtime.files import write_json, write_text
from fgrlhf_jax.tiny_world.datasets import make_feedback
from launch.shared import cli

EMBEDDED_ROWS = 300


def main(config) -> None:
    cli.check(config, at_least={"max_change_ratio": 0, "examples": 0, "seed": 0})
    output = cli.check_output(config.output, (".html", ".json"))
    cli.check_kept([output] if config.output else [], [config.input])
    sources = [Path(source) for source in records.sources(config.input)]
    if config.input:
        rows, annotators = read(config.input)
        aside = count_rejected(sources)
    else:
        rows, _ = make_feedback(EMBEDDED_ROWS, config.seed)
        annotators, aside = [], {}
    found = edit_report.figures(
        rows,
        annotators=annotators,
        encode=encoder(config.tokenizer),
        max_change_ratio=config.max_change_ratio,
        aside=aside,
        examples=config.examples,
    )
    if output.suffix == ".html":
        names = ", ".join(path.name for path in sources)
        title = f"Edits: {names}" if config.input else "Edits of the embedded world"
        source = config.input or "the embedded world"
        write_text(output, edit_page.page(found, title=title, source=source))
    elif config.output:
        write_json(output, {"input": config.input, **found})
    shown = {**found, "examples": [e for e in found["examples"] if e["rank"] == 1]}
    print(edit_report.table(shown, colour=sys.stdout.isatty()))
    if config.output:
        print(f"\nwritten to {output}")


def read(spec: str) -> tuple[list[records.Edit], list[str]]:
    """The edits of a file and who made each, "" where the row does not say."""
    rows, annotators = [], []
    for n, (row, fields) in enumerate(records.read_with_rows(spec), 1):
        if not isinstance(row, records.Edit):
            raise InputError(
                f"{spec}: row {n} is no edit (instruction, original, edited); "
                "launch.collect_edits makes edits of responses"
            )
        rows.append(row)
        annotators.append(str(fields.get("annotator") or ""))
    return rows, annotators


def encoder(tokenizer: str):
    """Text to token ids, None where no tokenizer is given."""
    if not tokenizer:
        return None
    loaded = hf_load.load_tokenizer(tokenizer)
    return lambda text: templates.encode_response(loaded, text, append_eos=False)


if __name__ == "__main__":
    cli.command(main, "configs/edit_report.py", __doc__)
