"""Decisions are on the disk before the next row shows, and stay there whatever the machine does."""

import contextlib
import functools
import itertools
import os
import random
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from annotations_cases import IMPORTED, edits, items, lines

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.feedback.annotation import history, log
from fgrlhf_jax.feedback.annotation.history import EDITED, History, Item, read_decisions
from fgrlhf_jax.feedback.annotation.store import Annotations


@pytest.fixture
def output(tmp_path) -> Path:
    return tmp_path / "edits.jsonl"


class Killed(BaseException):
    pass


def record_every_kind_of_event(store: Annotations) -> None:
    for name, id, text in (("Ann", "r0", "Zero, é."), ("Bob", "r1", "One.")):
        assert store.take(name).id == id
        store.accept(name, id, text)
    store.skip("Ann", store.take("Ann").id)
    store.undo("Bob")
    store.accept("Bob", "r1", "Won.")
    store.undo("Ann")
    store.take("Ann", put_back="r2")


def test_killed_at_every_write_it_goes_on(tmp_path, monkeypatch):
    """The process ends in the middle of the n-th change of a file, for every n."""
    rows = items(4)
    with Annotations(rows, tmp_path / "whole.jsonl") as store:
        record_every_kind_of_event(store)
        end = store.decisions()
    events = log.read(tmp_path / "whole.jsonl", history.input_digest(rows, []))
    states = [History(rows, events[:n]).decisions for n in range(len(events) + 1)]
    calls = {name: getattr(os, name) for name in ("pwrite", "fsync", "replace", "ftruncate")}
    for deadly in range(1, 200):
        output = tmp_path / f"{deadly}.jsonl"
        count = 0

        def step(name, *args, deadly=deadly):
            nonlocal count
            count += 1
            if count < deadly:
                return calls[name](*args)
            if count == deadly and name == "pwrite":
                file, data, offset = args
                calls[name](file, data[: len(data) // 2], offset)
            raise Killed  # and nothing more happens: the process is dead

        for name in calls:
            monkeypatch.setattr(os, name, functools.partial(step, name))
        store, acknowledged = None, []
        with contextlib.suppress(Killed):
            store = Annotations(rows, output)
            record_every_kind_of_event(store)
        monkeypatch.undo()
        if store is not None:
            acknowledged = store.decisions()
            store.close()
        with Annotations(rows, output) as store:
            assert store.decisions() in states[states.index(acknowledged) :]
            edited = [d for d in store.decisions() if d.verdict == EDITED]
            assert edits(output) == [(d.text, d.annotator) for d in edited]
        if count < deadly:
            assert store.decisions() == end
            break
    assert 30 < deadly < 199


CHILD = """
import sys
from fgrlhf_jax.feedback.annotation.history import Item
from fgrlhf_jax.feedback.annotation.store import Annotations
items = [Item(f"r{k}", f"Say {k}.", "", f"This is number {k}.") for k in range(4000)]
with Annotations(items, sys.argv[1]) as store:
    print("ready", flush=True)
    while (item := store.take("Ann")) is not None:
        store.accept("Ann", item.id, "Edited " + item.id)
        print(item.id, flush=True)
"""


def start(output) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(output)], stdout=subprocess.PIPE, text=True
    )


def test_nothing_that_was_accepted_is_lost_when_killed(output):
    rng, accepted = random.Random(0), []
    for _ in range(3):
        child = start(output)
        assert child.stdout.readline() == "ready\n"
        for _ in range(rng.randrange(5, 40)):
            accepted.append(child.stdout.readline().strip())
        child.send_signal(signal.SIGKILL)
        with child:
            accepted += child.stdout.read().split()
    assert read_decisions(items(4000), output)
    with Annotations(items(4000), output):
        ids = [row["id"] for row in lines(output)]
    assert len(ids) == len(set(ids))
    # The last one of each run may have been accepted without our hearing of it.
    assert set(accepted) <= set(ids)
    assert len(ids) <= len(accepted) + 3


def test_one_process_a_file(output):
    linked = output.with_name("link.jsonl")
    linked.symlink_to(output)
    with start(output) as child:
        child.stdout.readline()
        for path in (output, linked):
            with pytest.raises(InputError, match="another process is annotating into it"):
                Annotations(items(4000), path)
        child.kill()
    with Annotations(items(4000), output), pytest.raises(InputError, match="another process"):
        Annotations(items(4000), output)
    Annotations(items(4000), output).close()


FULL = ("log", "log+1", "log+40", "log+1000")


@pytest.mark.parametrize(
    ("action", "limit"),
    [("accept", limit) for limit in (*FULL, "edits+1", "edits+700")]
    + [("undo", limit) for limit in FULL],
)
def test_a_full_disk_is_reported_and_nothing_is_lost(output, limit, action):
    """A limit on the size of files: the kernel writes some bytes, then refuses the rest."""
    rows = [Item(str(k), "Say it. " * 500, "", f"This is number {k}.") for k in range(4)]
    state = log.state_path(output)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Annotations(rows, output) as store:
        store.accept("Ann", store.take("Ann").id, "Zero.")
        store.accept("Ann", store.take("Ann").id, "One.")
        row, text = store.take("Ann").id, "Two. " * 20
        before = (output.read_bytes(), state.read_bytes(), store.decisions())
        file, _, room = limit.partition("+")
        size = {"log": state, "edits": output}[file].stat().st_size + int(room or 0)
        assert state.stat().st_size + 300 < output.stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            with pytest.raises(InputError, match=r"not saved: .*too large"):
                store.accept("Ann", row, text) if action == "accept" else store.undo("Ann")
            assert (output.read_bytes(), state.read_bytes(), store.decisions()) == before
            assert store.take("Ann").id == row
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        store.accept("Ann", row, text)
        after = store.decisions()
    assert [edited for edited, _ in edits(output)] == ["Zero.", "One.", text]
    with Annotations(rows, output) as store:
        assert store.decisions() == after
    assert sorted(path.name for path in output.parent.iterdir()) == [output.name, state.name]


@pytest.mark.parametrize("failing", [1, 2])  # the log, the edits
def test_what_the_disk_does_not_confirm_does_not_count(output, monkeypatch, failing):
    with Annotations(items(2), output) as store:
        store.take("Ann")
        calls, real = itertools.count(1), os.fsync

        def fsync(file):
            if next(calls) == failing:
                raise OSError(5, "Input/output error")
            real(file)

        monkeypatch.setattr(os, "fsync", fsync)
        with pytest.raises(InputError, match="not saved"):
            store.accept("Ann", "r0", "Zero.")
        assert output.read_bytes() == b""
        assert store.decisions() == []
        monkeypatch.undo()
        store.accept("Ann", "r0", "Zero.")
    assert len(lines(output)) == 1


# Files that somebody changed, damaged or began with another input are refused.


def assert_refused(message: str, output, rows=None, **options) -> None:
    before = {path: path.read_bytes() for path in output.parent.iterdir()}
    with pytest.raises(InputError, match=message):
        Annotations(rows or items(2), output, **options)
    assert {path: path.read_bytes() for path in output.parent.iterdir()} == before


@pytest.fixture
def begun(output) -> Path:
    with Annotations(items(2), output) as store:
        store.accept("Ann", store.take("Ann").id, "Zero.")
        store.accept("Ann", store.take("Ann").id, "One.")
    return output


def test_another_input_is_refused(begun):
    changed = [*items(1), Item("r1", "Say 1.", "", "This is number one.")]
    for rows in (items(1), items(3), items(2)[::-1], changed):
        assert_refused("the input has changed since", begun, rows)
        with pytest.raises(InputError, match="the input has changed"):
            read_decisions(rows, begun)
    assert_refused("the input has changed since", begun, imported=IMPORTED[:1])


def test_edits_changed_by_somebody_else_are_refused(begun):
    text = begun.read_text()
    begun.write_text(text.replace("Zero", "Nil"))
    assert_refused("holds other edits than edits.jsonl.state.jsonl tells of", begun)
    begun.write_text(text + text)
    assert_refused("holds other edits", begun)
    begun.unlink()
    with Annotations(items(2), begun) as store:
        assert begun.read_text() == text
        store.undo("Ann")
        begun.write_text(begun.read_text() + "mine\n")
        with pytest.raises(InputError, match="another program has changed it"):
            store.accept("Ann", "r1", "Two.")
        assert begun.read_text().endswith("mine\n")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda head, *rest: [b"{}", *rest], "is not of this version"),
        (lambda head, *rest: [head.replace(b"version 1", b"version 0"), *rest], "version 1"),
        (lambda head, *rest: [head, b"{", *rest], "is damaged"),
        (lambda head, *rest: [head, b"3", *rest], "event 1 of the annotations makes no sense"),
        (lambda head, first, *rest: [head, *rest, b'{"event": "fine"}'], "makes no sense"),
        (lambda head, *rest: [head, rest[0].replace(b"open", b"undo"), *rest], "no sense"),
        (lambda head, *rest: [head, rest[0].replace(b"open", b"lost"), *rest], "no sense"),
    ],
)
def test_a_damaged_log_is_refused(begun, damage, message):
    path = log.state_path(begun)
    path.write_bytes(b"\n".join(damage(*path.read_bytes().splitlines())) + b"\n")
    assert_refused(message, begun)


def test_refused_outputs(output, tmp_path):
    output.write_text('{"some": "rows"}\n')
    with pytest.raises(InputError, match="choose another output"):
        Annotations(items(2), output)
    assert output.read_text() == '{"some": "rows"}\n'
    with pytest.raises(InputError, match="cannot be written"):
        Annotations(items(1), output / "edits.jsonl")
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(InputError, match=r"folder.jsonl.*cannot be"):
        Annotations(items(1), tmp_path / "folder.jsonl")
