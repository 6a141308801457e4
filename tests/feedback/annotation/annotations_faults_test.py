"""Decisions are on the disk before the next row shows, and stay there whatever the machine does."""

import json
import os
import random
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from annotations_cases import items, lines

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.feedback.annotation import log as annotation_log
from fgrlhf_jax.feedback.annotation.history import EDITED, History, Item, saved
from fgrlhf_jax.feedback.annotation.store import Annotations


@pytest.fixture
def output(tmp_path) -> Path:
    return tmp_path / "edits.jsonl"


class Killed(BaseException):
    pass


def a_morning(store: Annotations) -> None:
    """Every kind of event."""
    store.take("Ann")
    store.take("Bob")
    store.accept("Ann", "r0", "Zero, é.")
    store.take("Ann")
    store.accept("Bob", "r1", "One.")
    store.skip("Ann", "r2")
    store.undo("Bob")
    store.accept("Bob", "r1", "Won.")
    store.undo("Ann")
    store.take("Ann", put_back="r2")


def states(output: Path) -> list[list]:
    """The decisions that the events of the log come to, after each of them."""
    events = annotation_log.read(
        output,
        json.loads(annotation_log.state_path(output).read_text().splitlines()[0])["input"],
    )
    return [History(items(4), events[:n]).decisions for n in range(len(events) + 1)]


def test_killed_at_every_write_it_goes_on(tmp_path, monkeypatch):
    """The process ends in the middle of the n-th change of a file, for every n."""
    whole = tmp_path / "whole.jsonl"
    with Annotations(items(4), whole) as store:
        a_morning(store)
        end = store.decisions()
    known = states(whole)
    calls = {name: getattr(os, name) for name in ("pwrite", "fsync", "replace", "ftruncate")}
    for deadly in range(1, 200):
        output = tmp_path / f"{deadly}.jsonl"
        count = 0

        def step(name, *args, deadly=deadly):
            nonlocal count
            count += 1
            if count > deadly:  # nothing more happens: the process is dead
                raise Killed
            if count == deadly:
                if name == "pwrite":
                    file, data, offset = args
                    calls[name](file, data[: len(data) // 2], offset)
                raise Killed
            return calls[name](*args)

        for name in calls:
            monkeypatch.setattr(os, name, lambda *args, name=name: step(name, *args))
        store = None
        try:
            store = Annotations(items(4), output)
            a_morning(store)
            alive = True
        except Killed:
            alive = False
        monkeypatch.undo()
        acknowledged = []
        if store is not None:
            acknowledged = store.decisions()
            store.close()
        with Annotations(items(4), output) as store:
            assert store.decisions() in known[known.index(acknowledged) :]
            edits = [d for d in store.decisions() if d.verdict == EDITED]
            assert [row["edited"] for row in lines(output)] == [d.text for d in edits]
        if alive:
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
    many = items(4000)
    assert saved(many, output)
    with Annotations(many, output):
        found = [row["id"] for row in lines(output)]
    assert len(found) == len(set(found))
    # The last one of each run may have been accepted without our hearing of it.
    assert set(accepted) <= set(found)
    assert len(found) <= len(accepted) + 3


def test_one_process_a_file(output):
    child = start(output)
    try:
        child.stdout.readline()
        with pytest.raises(InputError, match="another process is annotating into it"):
            Annotations(items(4000), output)
        linked = output.with_name("link.jsonl")
        linked.symlink_to(output)
        with pytest.raises(InputError, match="another process"):
            Annotations(items(4000), linked)
    finally:
        child.kill()
        child.communicate()
    with (
        Annotations(items(4000), output),
        pytest.raises(InputError, match="another process"),
    ):
        Annotations(items(4000), output)
    Annotations(items(4000), output).close()


FULL = ("log", "log+1", "log+40", "log+1000")


@pytest.mark.parametrize(
    ("act", "limit"),
    [("accept", limit) for limit in (*FULL, "edits+1", "edits+700")]
    + [("undo", limit) for limit in FULL],
)
def test_a_full_disk_is_said_and_nothing_is_lost(output, limit, act):
    """A limit on the size of files: the kernel writes some bytes, then refuses the rest."""
    rows = [Item(str(k), "Say it. " * 500, "", f"This is number {k}.") for k in range(4)]
    state = annotation_log.state_path(output)
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
                store.accept("Ann", row, text) if act == "accept" else store.undo("Ann")
            assert (output.read_bytes(), state.read_bytes(), store.decisions()) == before
            assert store.take("Ann").id == row
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        store.accept("Ann", row, text)
        after = store.decisions()
    assert [edit["edited"] for edit in lines(output)] == ["Zero.", "One.", text]
    with Annotations(rows, output) as store:
        assert store.decisions() == after
    assert sorted(path.name for path in output.parent.iterdir()) == [output.name, state.name]


def test_what_the_disk_does_not_confirm_does_not_count(output, monkeypatch):
    with Annotations(items(2), output) as store:
        store.take("Ann")
        for failing in (1, 2):  # the log, the edits
            calls = 0

            def fsync(file, failing=failing, real=os.fsync):
                nonlocal calls
                calls += 1
                if calls == failing:
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
