"""Reads the data of every command, in any layout, and prints what is left out."""

import sys
from collections import Counter
from collections.abc import Sequence

from ml_collections import ConfigDict

from fgrlhf_jax.data import records, sources
from fgrlhf_jax.data.records import Edit, Instruction, Record, RecordAndRow
from fgrlhf_jax.data.row_fields import OPEN_TURN, parse_columns
from fgrlhf_jax.data.split import split

MAX = 3  # printed messages about left-out rows
MIN_ROWS = 20  # smaller validation sets cause a warning


def read_with_rows(config: ConfigDict, spec: str, need: str = "any") -> list[RecordAndRow]:
    """As ``sources.read_with_rows``, with the config's ``columns`` and ``invalid``."""
    refused = [] if config.invalid == "drop" else None
    pairs = sources.read_with_rows(spec, need=need, columns=config.columns, refused=refused)
    if refused:
        print(f"{spec}: {len(refused)} rows left out", *refused[:MAX], sep="\n  ", file=sys.stderr)
    if open_turns := [row for row, _ in pairs if OPEN_TURN.search(records.prompt_text(row)[-100:])]:
        reason = "prompts end as a template opens an answer, and another is written around them"
        print(f"{spec}: {len(open_turns)} {reason}; give messages instead, or template=plain")
    columns = parse_columns(config.columns)
    if count := sum(sources.is_prompt_in_texts(row, columns) for _, row in pairs):
        print(f"{spec}: {count} pairs have no prompt field; their common beginning is the prompt")
    return pairs


def read(config: ConfigDict, spec: str, need: str = "any") -> list[Record]:
    """The records of files; with ``need="responses"`` Instructions only, see :func:`imitated`."""
    rows = [record for record, _ in read_with_rows(config, spec, need)]
    return imitated(rows, spec) if need == "responses" else rows


def imitated(rows: Sequence[Record], spec: str) -> list[Record]:
    """The Instruction to imitate for each record; of a pair, its better response."""
    better = [record for record in rows if not isinstance(record, Instruction)]
    if better:
        print(f"{spec}: {len(better)} pairs; their better responses are imitated")
    rows = [*map(records.better_response, rows)]
    if count := sum(any(turn.role == "assistant" for turn in row.messages) for row in rows):
        print(f"{spec}: {count} conversations; only their last responses are imitated")
    return rows


def print_shared(train: Sequence[Record], others: dict[str, Sequence[Record]]) -> None:
    """Prints how many rows of other files are in the training set, or have a prompt of it."""
    counts = Counter(map(records.prompt_id, train))  # of half of the rows: one for all edits
    known = {*train, *(prompt for prompt, count in counts.items() if 2 * count < len(train))}
    for name, rows in others.items():
        if shared := sum(not known.isdisjoint((row, records.prompt_id(row))) for row in rows):
            message = f"{shared} of {len(rows)} rows have a prompt of the training file"
            print(f"{name}: {message}, and its figures say little of others; take them out")


def read_sets(config: ConfigDict, train: str, need: str = "any") -> dict[str, Sequence[Record]]:
    """Records of ``train``, ``validation`` and, if the config has it, ``test``.

    Args:
      train: FILE, or several separated by commas. If ``config.validation`` is "", a share of its
        prompts is for validation.

    Returns:
      Records by set. With "responses" also ``edits``, whose edited responses are in ``validation``.
    """
    files = {"train": train}
    files |= {name: config.get(name) for name in ("validation", "test") if config.get(name)}
    rows = {n: [record for record, _ in read_with_rows(config, f, need)] for n, f in files.items()}
    sets = rows
    if need == "responses":
        sets = {name: imitated(rows[name], file) for name, file in files.items()}
    if not config.validation:
        parts = split(sets["train"], config.validation_share, config.seed, exact=True)
        sets |= dict(zip(("train", "validation"), parts, strict=True))
        if len(parts[1]) < MIN_ROWS:
            print(
                f"validation: {len(parts[1])} rows are too few for reliable figures; give "
                f"--config.validation or a validation_share above {config.validation_share}"
            )
    print_shared(sets["train"], {name: sets[name] for name in files if name != "train"})
    if need == "responses":
        held_out, source = set(sets["validation"]), rows.get("validation", rows["train"])
        edits = (row for row in source if isinstance(row, Edit))
        sets["edits"] = [edit for edit in edits if records.better_response(edit) in held_out]
    return sets
