r"""Serve a page where people edit responses minimally; launch.train_rm learns from the edits.

python -m launch.annotate --config.input=FILE --config.output=FILE.jsonl [--config.port=7860]
                          [--config.overlap=1] [--config.FIELD=VALUE ...]
python -m launch.annotate --config.input=FILE [--config.output=FILE.jsonl] \
                          --config.export=FILE.json --config.format=argilla|label_studio|edits

FILE holds instructions with their output, edits to review, or an export of Argilla or Label Studio,
answers included. Every decision is on disk before the next row is shown; the same command resumes.
If FGRLHF_ANNOTATE_PASSWORD is set, the page asks for that password. Without flags, the page shows
responses of the embedded world.
"""

import importlib.util
import re
import socket
from pathlib import Path

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.feedback.annotation import agreement, formats, old_log, server
from fgrlhf_jax.feedback.annotation.items import Decision, Item
from fgrlhf_jax.feedback.annotation.page import LONGEST, Page
from fgrlhf_jax.feedback.annotation.store import Annotations, database_path
from fgrlhf_jax.tiny_world.datasets import make_instructions
from launch.shared import cli

CONFIG = "configs/annotate.py"
EMBEDDED = "runs/annotate_tiny/edits.jsonl"
MAX_PROMPT = 10 * LONGEST
REQUIRED = ("starlette", "uvicorn", "markdown_it")


def main(config) -> None:
    output = config.output or ("" if config.input else EMBEDDED)
    if config.export:
        export(config, output)
        return
    items, imported = read_items(config)
    check_server(config)
    guidelines = server.read_guidelines(config.guidelines)
    with (
        server.listen(config.host, config.port) as sock,
        open_annotations(config, items, output, imported) as store,
    ):
        options = {"root_path": config.root_path, "password": server.password()}
        page = Page(store, config.max_change_ratio)
        app = server.App(page, host=config.host, guidelines=guidelines, **options)
        address = describe_address(config.host, sock.getsockname()[1], config.root_path)
        facts = [f"rows: {len(items)}", f"people a row: {config.overlap}"]
        facts += ["with a password" if app.password else "no password"]
        facts += ["with guidelines" if guidelines else "no guidelines", "stop with Ctrl-C"]
        print(f"Open {address} ({', '.join(facts)})", flush=True)
        try:
            server.serve(app, sock)
        finally:
            store.write_edits()
            print(summarize(store), flush=True)


def describe_address(host: str, port: int, root_path: str) -> str:
    """The address of the page as text: the proxy's, or this machine's."""
    name = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    address = f"http://{name}:{port}"
    if root_path:
        return f"{root_path.rstrip('/')}/ ; its proxy passes it on to {address}"
    if host in server.ANY:
        return f"{address} ; others http://{socket.gethostname()}:{port} or this machine's address"
    return address


def export(config, output: str) -> None:
    """Writes the annotations, or without an output the input, in another tool's format."""
    path = check_export(config, output)
    items, decisions = read_items(config)
    if output:
        with open_annotations(config, items, output, decisions) as store:
            decisions = store.decisions()
    print(f"{formats.write(path, config.format, items, decisions)} rows in {path}")


def open_annotations(
    config, items: list[Item], output: str, imported: list[Decision]
) -> Annotations:
    if Path(output).suffix != ".jsonl":
        raise InputError(f"output={output}: give --config.output=FILE.jsonl")
    release = 60 * config.release_minutes
    options = {"overlap": config.overlap, "release_after": release, "imported": imported}
    store = Annotations(items, output, **options)
    if store.imported_log:
        count = len(store.decisions())
        print(f"{count} decisions of an earlier version were taken over from {store.imported_log}")
    return store


def read_items(config) -> tuple[list[Item], list[Decision]]:
    """Reads the items to annotate, and another tool's decisions on them."""
    if not config.input:
        rows = make_instructions(20, "feedback", 0)
        return [Item(str(n), row.instruction, "", row.output) for n, row in enumerate(rows, 1)], []
    refused = [] if config.invalid == "drop" else None
    items, decisions = formats.read(config.input, columns=config.columns, refused=refused)
    if refused:
        print(f"{len(refused)} rows left out; the first: {refused[0]}")
    return drop_unusable_responses(items, decisions, config.input)


def check_server(config) -> None:
    """Raises InputError for settings with which the page cannot be served."""
    if missing := [name for name in REQUIRED if importlib.util.find_spec(name) is None]:
        raise InputError(
            f"the page needs {' and '.join(missing)}: pip install 'fgrlhf_jax[annotate]'"
        )
    if config.root_path and not re.match(r"https?://[^/]", config.root_path):
        raise InputError(
            f"root_path={config.root_path}: give the address that browsers show, https://HOST/PATH"
        )
    if config.host not in server.LOCAL and not server.password():
        raise InputError(
            f"host={config.host}: can be reached from elsewhere; set a password in the "
            f"environment variable {server.PASSWORD}"
        )


def check_export(config, output: str) -> Path:
    """The export's path; raises InputError if it is invalid or there are no annotations."""
    suffix = ".jsonl" if config.format == "edits" else ".json"
    database, log = database_path(output), old_log.path_of(Path(output).resolve())
    files = [output, str(database), str(log)] if output else []
    path = cli.check_output(config, (suffix,), [config.input, *files], field="export")
    if config.output and not (database.exists() or log.exists()):
        raise InputError(
            f"output={output}: nothing was annotated into it ({database} is missing); correct it, "
            "or leave it out to export what input holds"
        )
    return path


def drop_unusable_responses(
    items: list[Item], decisions: list[Decision], source: str
) -> tuple[list[Item], list[Decision]]:
    """The rows that have a response to edit, and the decisions on them."""
    too_long = {item.id for item in items if is_too_long(item)}
    editable = [item for item in items if item.original.strip() and item.id not in too_long]
    if not editable:
        raise InputError(
            f"input={source}: none of its rows has a response to edit (of at most {LONGEST} "
            "characters); launch.generate makes responses"
        )
    if empty := len(items) - len(editable) - len(too_long):
        print(f"{empty} rows of {source} are left out: their response is empty")
    if too_long:
        print(
            f"{len(too_long)} rows of {source} are left out: their response has more than "
            f"{LONGEST} characters, or their prompt {MAX_PROMPT}"
        )
    ids = {item.id for item in editable}
    return editable, [decision for decision in decisions if decision.id in ids]


def is_too_long(item: Item) -> bool:
    prompt = [item.instruction, item.input, *(text for _, text in item.turns)]
    response = max(len(item.original), len(item.suggestion))
    return response > LONGEST or sum(map(len, prompt)) > MAX_PROMPT


def summarize(store: Annotations) -> str:
    """Counts of decisions, the rows that are not done and why, and annotator agreement."""
    progress = store.progress("")
    counts = (
        f"{store.output}: {progress['edited']} edited, {progress['fine']} fine, "
        f"{progress['skipped']} skipped; {progress['done']} of {progress['rows']} rows are done"
    )
    if store.overlap > 1:
        counts += f", by {store.overlap} people each"
    if skipped := progress["skipped_by"]:
        names = ", ".join(f"{name} {number}" for name, number in skipped.items())
        counts += f"\nnot done and skipped (to be opened again in My rows): {names}"
    if progress["open"]:
        counts += f"\nstill open in browsers: {progress['open']}"
    agreed = agreement.measure_agreement(store.items, store.decisions())
    return f"{counts}\n{agreement.describe(agreed)}" if agreed else counts


if __name__ == "__main__":
    cli.command(main, CONFIG, __doc__)
