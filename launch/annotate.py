r"""People edit responses in a browser, minimally; their edits are what launch.train_rm learns from.

python -m launch.annotate --config.input=FILE --config.output=FILE.jsonl [--config.port=7860]
                          [--config.overlap=1] [--config.FIELD=VALUE ...]
python -m launch.annotate --config.input=FILE [--config.output=FILE.jsonl] \
                          --config.export=FILE.json --config.format=argilla|label_studio|edits

FILE holds instructions with their output, edits to go over again, or what Argilla or Label Studio
exported, answers included. Every decision is on the disk before the next row shows, and the same
command goes on where it stopped. Set FGRLHF_ANNOTATE_PASSWORD to have the page ask for a password.
With no flag at all, responses of the embedded world are edited, to try it.
"""

from pathlib import Path

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.feedback.annotation import agreement, formats, log, page, server
from fgrlhf_jax.feedback.annotation.history import Decision, Item, read_decisions
from fgrlhf_jax.feedback.annotation.store import Annotations
from fgrlhf_jax.tiny_world.datasets import make_instructions
from launch.shared import cli

CONFIG = "configs/annotate.py"
EMBEDDED = "runs/annotate_tiny/edits.jsonl"


def main(config) -> None:
    output = config.output or ("" if config.input else EMBEDDED)
    export = check_export(config, output) if config.export else None
    if config.input:
        items, imported = drop_empty_responses(*formats.read(config.input), config.input)
    else:
        rows = make_instructions(20, "feedback", 0)
        items = [Item(str(n), row.instruction, "", row.output) for n, row in enumerate(rows, 1)]
        imported = []
    if export:
        decisions = read_decisions(items, output, imported) if output else imported
        count = formats.write(export, config.format, items, decisions)
        print(f"{count} rows in {export}")
        return
    if Path(output).suffix != ".jsonl":
        raise InputError(f"output={output}: give --config.output=FILE.jsonl")
    password = server.password()
    if config.host not in server.LOCAL and not password:
        raise InputError(
            f"host={config.host}: can be reached from elsewhere; set a password in the "
            f"environment variable {server.PASSWORD}"
        )
    release = 60 * config.release_minutes
    with (
        server.listen(config.host, config.port) as bound,
        Annotations(
            items, output, overlap=config.overlap, release_after=release, imported=imported
        ) as store,
    ):
        blocks = page.build(
            store, max_change_ratio=config.max_change_ratio, logged_in=bool(password)
        )
        host = f"[{config.host}]" if ":" in config.host else config.host
        print(f"Open http://{host}:{bound.getsockname()[1]} (stop with Ctrl-C)", flush=True)
        try:
            server.serve(blocks, bound, host=config.host, password=password)
        finally:
            print(summarize(store), flush=True)


def check_export(config, output: str) -> Path:
    """The file to export to; raises InputError where it cannot be, or nothing was annotated."""
    suffix = ".jsonl" if config.format == "edits" else ".json"
    path = cli.check_output(config.export, (suffix,), "export")
    files = [output, str(log.state_path(output))] if output else []
    cli.check_not_overwritten([path], [config.input, *files], "export")
    if config.output and not Path(files[1]).exists():
        raise InputError(
            f"output={output}: nothing was annotated into it ({files[1]} is missing); correct it, "
            "or leave it out to export what input holds"
        )
    return path


def drop_empty_responses(
    items: list[Item], decisions: list[Decision], source: str
) -> tuple[list[Item], list[Decision]]:
    """The rows that have a response to edit, and the decisions on them."""
    editable = [item for item in items if item.original.strip()]
    if not editable:
        raise InputError(
            f"input={source}: none of its rows has a response to edit; "
            "launch.generate makes responses"
        )
    if len(editable) < len(items):
        empty = len(items) - len(editable)
        print(f"{empty} rows of {source} are left out: their response is empty")
    ids = {item.id for item in editable}
    return editable, [decision for decision in decisions if decision.id in ids]


def summarize(store: Annotations) -> str:
    """The counts and the agreement of annotators, in sentences."""
    progress = store.progress("")
    counts = (
        f"{progress['edited']} edits in {store.output}; {progress['fine']} rows were fine, "
        f"{progress['skipped']} skipped; {progress['done']} of {progress['rows']} are done"
    )
    agreed = agreement.measure_agreement(store.items, store.decisions())
    return f"{counts}\n{agreement.describe(agreed)}" if agreed else counts


if __name__ == "__main__":
    cli.command(main, CONFIG, __doc__)
