"""What survives a kill: the cache of replies, the file of rows, and both on a full disk."""

import contextlib
import errno
import os
import sqlite3
import threading

import pytest
from request_cases import IDENTITY, Counting, in_cache, questions, read, run, save, says

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.feedback.llm import cache
from fgrlhf_jax.feedback.llm.client import Refused, Reply, Request
from fgrlhf_jax.feedback.llm.requests import Usage, estimate, request_key
from fgrlhf_jax.runtime import files

# --- the cache


def test_a_second_run_asks_nothing(tmp_path):
    send, usage = Counting(), Usage()
    first = run(questions(20), send, tmp_path)
    assert run(questions(20), send, tmp_path, usage=usage) == first
    assert len(send.asked) == 20
    assert usage == Usage(cached=20)
    assert first == [says(request) for request in questions(20)]


def test_the_same_request_twice_is_asked_once(tmp_path):
    send, usage = Counting(), Usage()
    requests = questions(5) * 3
    assert run(requests, send, tmp_path, usage=usage) == [says(r) for r in requests]
    assert len(send.asked) == 5
    assert usage.requests == 5


@pytest.mark.parametrize(
    "change",
    [{"prompt": "x"}, {"system": "x"}, {"max_tokens": 9}, {"temperature": 1.0}],
)
def test_whatever_determines_an_answer_is_in_its_key(change):
    request = Request("a", "b", 1, 0.0)
    other = Request(**{**vars(request), **change})
    assert request_key(IDENTITY, request) != request_key(IDENTITY, other)
    for name in IDENTITY:
        assert request_key(IDENTITY, request) != request_key({**IDENTITY, name: "x"}, request)
    assert request_key(IDENTITY, request) == request_key(
        dict(reversed(IDENTITY.items())), request
    )


def test_a_reply_comes_back_from_the_disk_as_it_was(tmp_path):
    reply = Reply("ü🙂\x00\r\n\u2028 'quoted'", "length", 5, 0)
    for _ in range(2):
        assert run([Request("a\ud83d")], lambda request: reply, tmp_path) == [reply]


def test_a_cache_of_another_version(tmp_path):
    run(questions(1), says, tmp_path)
    with contextlib.closing(sqlite3.connect(tmp_path / "cache.sqlite")) as connection:
        connection.execute("PRAGMA user_version=2")
    for call in (run, save):
        with pytest.raises(InputError, match=r"no cache of this version .*is 2, not 1"):
            call(questions(1), says, tmp_path)


def test_a_database_of_something_else(tmp_path):
    with contextlib.closing(sqlite3.connect(tmp_path / "cache.sqlite")) as connection:
        connection.execute("CREATE TABLE t (x)")
    with pytest.raises(InputError, match="no cache of this version"):
        run(questions(1), says, tmp_path)


@pytest.mark.parametrize("content", [b"not a database " * 100, None])
def test_a_cache_that_is_none(tmp_path, content):
    path = tmp_path / "cache.sqlite"
    path.write_bytes(content) if content else path.mkdir()
    with pytest.raises(InputError, match=r"cache.*cannot be used"):
        run(questions(1), says, tmp_path)


def test_two_processes_may_share_a_cache(tmp_path):
    def at_once():
        results.append(run(questions(30), says, tmp_path))

    results: list = []
    threads = [threading.Thread(target=at_once) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [[says(request) for request in questions(30)]] * 4


def test_a_cache_that_another_process_is_making(tmp_path):
    """SQLite's own patience does not cover the change of mode."""
    path = tmp_path / "cache.sqlite"
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    other.execute("CREATE TABLE t (x)")
    timer = threading.Timer(0.2, lambda: other.execute("ROLLBACK"))
    timer.start()
    with contextlib.closing(cache.Cache(path)) as stored:
        assert "a" not in stored
    timer.join()
    other.close()


def test_an_estimate(tmp_path):
    requests = [Request("x" * 40, "y" * 8, 100), *questions(3), *questions(3)]
    path = tmp_path / "cache.sqlite"
    assert estimate(requests, cache=path, identity=IDENTITY) == (4, 12 + 9, 100 + 3072)
    assert not path.exists()
    run(questions(2), says, tmp_path)
    assert estimate(requests, cache=path, identity=IDENTITY) == (2, 12 + 3, 1124)
    other = IDENTITY | {"model": "n"}
    assert estimate(requests, cache=path, identity=other).requests == 4


# --- the file of rows


def test_a_torn_last_line_is_cut(tmp_path):
    save(questions(9), says, tmp_path)
    path = tmp_path / "out.jsonl"
    whole = path.read_bytes()
    for cut in (1, 5, len(whole) // 2, len(whole)):
        path.write_bytes(whole[:-cut])
        assert save(questions(9), Counting(lambda *a: AssertionError()), tmp_path) == (9, 0)
        assert path.read_bytes() == whole


def test_rows_that_are_there_are_not_asked_for_even_without_a_cache(tmp_path):
    save(questions(5), says, tmp_path)
    for path in tmp_path.glob("cache*"):
        path.unlink()
    send = Counting()
    assert save(questions(8), send, tmp_path) == (8, 0)
    assert sorted(send.asked) == ["question 5", "question 6", "question 7"]


@pytest.mark.parametrize(
    ("now", "line"),
    [
        ([*questions(3), Request("other"), *questions(9)[4:]], 4),
        (questions(9)[1:], 1),
        (questions(5), 6),
        ([], 1),
    ],
)
def test_an_input_that_changed(tmp_path, now, line):
    save(questions(9), says, tmp_path)
    before = (tmp_path / "out.jsonl").read_bytes()
    message = rf"out.jsonl:{line}: answers another request than row {line} .*has changed"
    with pytest.raises(InputError, match=message):
        save(now, says, tmp_path)
    assert (tmp_path / "out.jsonl").read_bytes() == before


def test_an_input_that_changed_where_a_row_was_set_aside(tmp_path):
    send = Counting(lambda prompt, before: Refused("no") if prompt.endswith("2") else None)
    assert save(questions(4), send, tmp_path) == (3, 1)
    changed = questions(4)
    changed[2] = Request("other")
    with pytest.raises(InputError, match=r"out.jsonl:3: answers another .*row 3"):
        save(changed, send, tmp_path)
    changed = [*questions(2), questions(4)[3]]
    with pytest.raises(InputError, match=r"out.rejected.jsonl:1: answers another .*row 4"):
        save(changed, send, tmp_path)


@pytest.mark.parametrize("line", ['{"prompt": "a"}', "[1]", "text", '{"request_key": 3}'])
def test_a_file_of_somebody_else(tmp_path, line):
    path = tmp_path / "out.jsonl"
    path.write_text(f"{line}\nlast")
    with pytest.raises(InputError, match=r"out.jsonl:1: "):
        save(questions(3), says, tmp_path)
    assert path.read_text() == f"{line}\nlast"


def test_another_process_is_writing(tmp_path):
    save(questions(1), says, tmp_path)
    with (
        contextlib.closing(files.Lock(tmp_path / ".out.jsonl.lock")),
        pytest.raises(InputError, match="another process is writing it"),
    ):
        save(questions(2), says, tmp_path)
    assert save(questions(2), says, tmp_path) == (2, 0)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match=r"out.jsonl: cannot be written \(No such file"):
        save(questions(1), says, tmp_path / "nowhere")


# --- a full disk


def full():
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_under_the_rows(tmp_path, monkeypatch):
    send, real, calls = Counting(), os.fsync, []

    def fsync(number):
        calls.append(number)
        if len(calls) == 6:
            full()
        real(number)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(InputError, match=r"out.jsonl: cannot be written \(No space left"):
        save(questions(20), send, tmp_path)
    assert len(read(tmp_path / "out.jsonl")) == 5
    there = in_cache(tmp_path, questions(20))
    before = len(send.asked)
    assert save(questions(20), send, tmp_path) == (20, 0)
    assert not there & set(send.asked[before:])
    assert len(there) == before


def test_a_full_disk_under_the_cache(tmp_path, monkeypatch):
    """SQLite's own limit on pages says what a full disk says."""
    prepare = cache.Cache._prepare

    def small(self):
        version = prepare(self)
        self.connection.execute("PRAGMA max_page_count=8")
        return version

    def long(request):
        return Reply(request.prompt + "x" * 1500, "end", 1, 1)

    with monkeypatch.context() as patch:
        patch.setattr(cache.Cache, "_prepare", small)
        message = r"cache .*cannot be used \(database or disk is full\); free some space"
        with pytest.raises(InputError, match=message):
            save(questions(50), long, tmp_path)
    there = in_cache(tmp_path, questions(50))
    assert 2 <= len(there) < 20
    send = Counting()
    assert save(questions(50), send, tmp_path) == (50, 0)
    assert not there & set(send.asked)
    rows = read(tmp_path / "out.jsonl")
    assert sum(row["text"].endswith("xxx") for row in rows) == len(there)
