"""Decisions are durable: killed processes, full disks, old logs, and files that were changed."""

import contextlib
import json
import random
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from annotations_cases import IMPORTED, accept_next, edits, items, lines
from bad_input_cases import read_files

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.feedback.annotation.items import EDITED, FINE, SKIPPED, Decision, Item, edit_row
from fgrlhf_jax.feedback.annotation.store import Annotations, database_path
from fgrlhf_jax.runtime.files import write_jsonl

CHILD = """
import random, sys
from concurrent.futures import ThreadPoolExecutor
from annotations_cases import Annotations, accept, draft, items
output, names, count, overlap = sys.argv[1:]

def annotate(name):
    rng = random.Random(name)
    while True:
        item, progress = store.take(name), store.progress(name)
        if item is None:
            if progress["done"] == int(count) or not progress["open_elsewhere"]:
                return
            continue
        choice = rng.random()
        if choice < 0.1:
            store.take(name, put_back=item.id)
        elif choice < 0.2 and progress["mine"]:
            print("undone", store.reopen(name, item.id).id, flush=True)
        else:
            draft(store, name, item.id, "Edi")
            accept(store, name, item.id, f"Edited {item.id} by {name}")
            print("edited", item.id, flush=True)
            store.write_edits()

with Annotations(items(int(count)), output, overlap=int(overlap)) as store:
    input("ready\\n")
    with ThreadPoolExecutor() as pool:
        list(pool.map(annotate, names.split()))
"""


def start(output: Path, names: str = "Ann", count: int = 4000, overlap: int = 1):
    """A process that edits, puts back and undoes rows (a thread per name) once it gets a line."""
    command = [sys.executable, "-c", CHILD, str(output), names, str(count), str(overlap)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    child = subprocess.Popen(command, **pipes)
    assert child.stdout.readline() == "ready\n"
    return child


def test_a_killed_process_loses_no_accepted_edit(output):
    rng, accepted = random.Random(0), {}
    for _ in range(4):
        child = start(output)
        print(file=child.stdin, flush=True)
        printed = [child.stdout.readline() for _ in range(rng.randrange(5, 40))]
        child.send_signal(signal.SIGKILL)
        with child:
            printed += child.stdout.readlines()
        accepted |= {row: event for event, row in map(str.split, printed)}
    with Annotations(items(4000), output) as store:
        ids = [decision.id for decision in store.decisions()]
    assert ids == [row["id"] for row in lines(output)]
    assert len(ids) == len(set(ids))
    # The last event of each run may have been stored and not printed.
    assert len({row for row, event in accepted.items() if event == "edited"} ^ set(ids)) <= 4


@pytest.mark.parametrize("overlap", [1, 3])
def test_processes_and_threads_share_rows_up_to_the_overlap(output, overlap):
    children = [start(output, names, 25, overlap) for names in ("Ann Bob", "Cem Dan", "Eve")]
    for child in children:
        print(file=child.stdin, flush=True)
    for child in children:
        child.communicate()
        assert child.returncode == 0
    with Annotations(items(25), output, overlap=overlap) as store:
        decisions = store.decisions()
    for item in items(25):
        names = [decision.annotator for decision in decisions if decision.id == item.id]
        assert len(names) == len(set(names)) == overlap
    assert edits(output) == [(decision.text, decision.annotator) for decision in decisions]


def test_edits_that_cannot_be_written_are_in_the_database(output):
    with Annotations(items(1), output) as store:
        accept_next(store, "Ann", "Zero.")
        output.unlink()
        output.mkdir()
        with pytest.raises(InputError, match=r"edits are safe in .*edits.jsonl.sqlite"):
            store.write_edits()
        output.rmdir()
        store.write_edits()
        with contextlib.closing(sqlite3.connect(database_path(output))) as database:
            assert database.execute("PRAGMA journal_mode").fetchall() == [("wal",)]
    assert edits(output) == [("Zero.", "Ann")]


# The log of earlier versions for items(4).
OLD_HEAD = {
    "format": "fgrlhf_jax annotations, version 1",
    "input": "4ea4eceb1791d5c796858d81f672b352ecc5ec558ca60b25e09dcd60719067f0",
}
OLD_EVENTS = [
    *(("open", "r0", "Ann"), ("edited", "r0", "Ann", "Zero, é."), ("open", "r1", "Bob")),
    *(("edited", "r1", "Bob", "One."), ("open", "r2", "Ann"), ("skipped", "r2", "Ann")),
    *(("undo", "r1", "Bob"), ("edited", "r1", "Bob", "Won."), ("open", "r2", "Bob")),
    *(("fine", "r3", "Cem"), ("open", None, "Bob"), ("undo", "r0", "Ann")),
]
LOST = {"event": "lost", "id": "r0", "annotator": "Ann", "time": "2026-11-28"}


@pytest.fixture
def old(output) -> Path:
    """The log, and in ``output`` the edits before its last event."""
    names, time = ("event", "id", "annotator", "text"), {"time": "2026-11-28T17:55:04+00:00"}
    events = [dict(zip(names, event, strict=False)) | time for event in OLD_EVENTS]
    log = output.with_name("edits.jsonl.state.jsonl")
    log.write_text("".join(json.dumps(row) + "\n" for row in [OLD_HEAD, *events]))
    decisions = Decision("r0", "Ann", EDITED, "Zero, é."), Decision("r1", "Bob", EDITED, "Won.")
    write_jsonl(output, [*map(edit_row, items(2), decisions)])
    return log


@pytest.mark.parametrize("torn", [0, 20])  # bytes missing at the end of the file of edits
def test_a_log_of_an_earlier_version_is_imported_once(output, old, torn):
    log, second_line = old.read_bytes(), output.read_bytes().splitlines()[1]
    skipped = Decision("r2", "Ann", SKIPPED, "This is number 2.")
    fine = Decision("r3", "Cem", FINE, "This is number 3.")
    output.write_bytes(output.read_bytes()[: -torn or None])
    for is_first in (True, False):
        with Annotations(items(4), output) as store:
            assert store.imported_log == (old if is_first else None)
            assert store.decisions() == [skipped, Decision("r1", "Bob", EDITED, "Won."), fine]
            assert (store.take("Ann").id, store.latest("Ann", "r0").text) == ("r0", "Zero, é.")
            assert [d.text for _, d in store.versions("Bob", "r1")] == ["Won.", "One.", "One."]
            assert store.versions("Bob", "r1")[0][0] == 1795888504
    assert (old.read_bytes(), output.read_bytes()) == (log, second_line + b"\n")


def assert_refused(message: str, output: Path, rows=None, **options) -> None:
    before = read_files(output.parent)
    with pytest.raises(InputError, match=message):
        Annotations(rows or items(4), output, **options)
    assert read_files(output.parent) == before


@pytest.mark.parametrize(
    ("line", "text", "message"),
    [
        (0, {}, "is not of the form"),
        (0, OLD_HEAD | {"input": "0"}, "the input has changed since"),
        (3, "{", "jsonl:4: this row is damaged"),
        (3, {"event": "fine"}, "are inconsistent"),
        (1, LOST | {"event": "undo"}, "are inconsistent"),
        (1, LOST, "are inconsistent"),
    ],
)
def test_a_damaged_log_is_refused(output, old, line, text, message):
    rows = old.read_text().splitlines()
    rows[line] = text if isinstance(text, str) else json.dumps(text)
    old.write_text("\n".join(rows) + "\n")
    assert_refused(message, output)


@pytest.fixture
def edited(output) -> Path:
    with Annotations(items(2), output) as store:
        accept_next(store, "Ann", "Zero.")
        accept_next(store, "Ann", "One.")
        store.write_edits()
    return output


def test_another_input_is_refused(edited):
    changed = [*items(1), Item("r1", "Say 1.", "", "This is number one.")]
    for rows in (items(1), items(3), items(2)[::-1], changed):
        assert_refused("the input has changed since", edited, rows)
    assert_refused("the input has changed since", edited, items(2), imported=IMPORTED[:1])


def test_edits_that_another_program_changed_are_refused(edited):
    text = edited.read_text()
    changes = (1, text.replace("Zero", "Nil")), (3, text + "mine\n"), (3, text + "["), (1, "[1]\n")
    for line, changed in changes:
        edited.write_text(changed)
        assert_refused(rf"jsonl:{line}: .*move the file away", edited, items(2))
    edited.unlink()
    with Annotations(items(2), edited) as store:
        assert edited.read_text() == text
        store.reopen("Ann", "")
        edited.write_text(text + "mine\n")
        with pytest.raises(InputError, match="move the file away"):
            store.write_edits()
        assert edited.read_text().endswith("mine\n")


def test_outputs_and_databases_of_other_programs_are_refused(output, tmp_path):
    output.write_text('{"some": "rows"}\n')
    (tmp_path / "folder.jsonl").mkdir()
    for path in (output, output / "edits.jsonl"):
        assert_refused("choose another output", path)
    assert_refused("cannot be written", tmp_path / "folder.jsonl")
    output.unlink()
    path, message = database_path(output), "edits.jsonl.sqlite: .*choose another output"
    with contextlib.closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE mine (x)")
    assert_refused(message, output)
    path.write_bytes(b"no database " * 100)
    assert_refused(message, output)
