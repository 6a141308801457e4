"""What survives a killed process: the cache of replies, and the file of rows."""

import contextlib
import errno
import functools
import os
import sqlite3
import subprocess
import sys

import llm_server
import pytest
from request_cases import (
    IDENTITY,
    FakeModel,
    answer,
    cached_prompts,
    collect,
    echo,
    questions,
    read,
    save,
)

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.feedback.llm import cache
from fgrlhf_jax.feedback.llm.client import Rejected, Reply, Request
from fgrlhf_jax.feedback.llm.requests import Usage, request_key
from fgrlhf_jax.runtime import files

# --- the cache


def test_nothing_is_sent_twice(tmp_path):
    send, requests = FakeModel(), questions(5) * 3
    for usage in (Usage(requests=5, input_tokens=10, output_tokens=15), Usage(cached=15)):
        counted = Usage()
        replies = list(collect(requests, send, tmp_path, usage=counted))
        assert replies == [answer(request) for request in requests]
        assert counted == usage
    assert len(send.prompts) == 5


def test_everything_that_determines_a_reply_is_in_its_key():
    """And the keys of earlier versions hold."""
    request = Request("a", 1, 0.0)
    key = request_key(IDENTITY, request)
    others = ("x", 1, 0.0), ("a", 9, 0.0), ("a", 1, 1.0), ("a", 1, 0.0, {"type": "object"})
    assert key not in {request_key(IDENTITY, Request(*other)) for other in others}
    assert key not in {request_key({**IDENTITY, name: "x"}, request) for name in IDENTITY}
    assert request_key(dict(reversed(IDENTITY.items())), request) == key
    assert key == "3a532054e8d6506c37cf5a55f706f2a1c1f2ddb5b7569db84b04d70a17c6d7b6"


def test_a_reply_comes_back_from_the_disk_as_it_was(tmp_path):
    reply = Reply("ü🙂\x00\r\n\u2028 'quoted'", "length", 5, 0)
    for _ in range(2):
        assert list(collect([Request("a\ud83d")], FakeModel(lambda *_: reply), tmp_path)) == [reply]


def execute(sql):
    def run(path):
        with contextlib.closing(sqlite3.connect(path)) as connection:
            connection.executescript(sql)

    return run


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (execute(f"{cache.TABLE}; PRAGMA user_version=2"), "not a cache of this version .*is 2"),
        (execute("CREATE TABLE t (x)"), "not a cache of this version"),
        (lambda path: path.mkdir(), "cache .*sqlite: cannot be used .* or name another cache"),
    ],
)
def test_a_file_that_is_no_cache(tmp_path, make, message):
    make(tmp_path / "cache.sqlite")
    for call in (lambda *args: list(collect(*args)), save):
        with pytest.raises(InputError, match=message):
            call(questions(1), echo, tmp_path)


PROCESS = """
import pathlib, sys
import request_cases

request_cases.shorten_pauses()
url, folder, count = sys.argv[1], pathlib.Path(sys.argv[2]), int(sys.argv[3])
folder.mkdir()
options = {"cache": folder.parent / "cache.sqlite"}
send = request_cases.connected(type("Server", (), {"url": url}))
print(request_cases.save(request_cases.questions(count), send, folder, **options))
"""


def test_processes_that_share_a_cache_pay_each_prompt_once(tmp_path, request):
    count, folders = request.config.getoption("--requests") // 2, [tmp_path / n for n in "123"]
    with llm_server.running(llm_server.shaky(0.2), work=0.01) as server:
        start = functools.partial(subprocess.Popen, stdout=subprocess.PIPE, text=True)
        command = [sys.executable, "-c", PROCESS, server.url]
        processes = [start([*command, str(folder), str(count)]) for folder in folders]
        outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert outputs == [f"({count}, 0)\n"] * 3
    assert server.delivered == {request.prompt: 1 for request in questions(count)}
    rows = [read(folder / "out.jsonl") for folder in folders]
    assert [row["prompt"] for row in rows[0]] == [request.prompt for request in questions(count)]
    assert rows[0] == rows[1] == rows[2]


def test_a_lock_file_that_is_a_link_is_not_written_through(tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("text")
    for name in (".cache.sqlite.lock", ".out.jsonl.lock"):
        (tmp_path / name).symlink_to(precious)
        with pytest.raises(InputError, match="link"):
            save(questions(1), echo, tmp_path)
        (tmp_path / name).unlink()
    assert precious.read_text() == "text"


# --- the file of rows


def test_a_torn_last_line_is_cut(tmp_path):
    save(questions(9), echo, tmp_path)
    path = tmp_path / "out.jsonl"
    complete = path.read_bytes()
    torn = [complete[:-cut] for cut in (1, 5, len(complete) // 2, len(complete))]
    for content in (*torn, complete + b'{"prom'):
        path.write_bytes(content)
        assert save(questions(9), FakeModel(lambda *args: AssertionError()), tmp_path) == (9, 0)
        assert path.read_bytes() == complete


def test_rows_that_exist_are_not_sent_again_even_without_a_cache(tmp_path):
    save(questions(5), echo, tmp_path)
    for path in tmp_path.glob("*cache*"):
        path.unlink()
    send = FakeModel()
    assert save(questions(8), send, tmp_path) == (8, 0)
    assert sorted(send.prompts) == ["question 5", "question 6", "question 7"]


@pytest.mark.parametrize(
    ("requests", "place"),
    [
        ([*questions(3), Request("other"), *questions(9)[4:]], r"out.jsonl:3: .* row 4 "),
        (questions(9)[1:], r"out.jsonl:1: .* row 1 "),
        (questions(5), r"out.jsonl:5: .* row 6 "),
        ([*questions(2), *questions(9)[3:]], r"out.rejected.jsonl:1: .* row 9 "),
        ([], r"out.jsonl:1: .* row 1 "),
    ],
)
def test_an_input_that_changed(tmp_path, requests, place):
    send = FakeModel(lambda prompt, before: Rejected("no") if prompt.endswith("2") else None)
    assert save(questions(9), send, tmp_path) == (8, 1)
    before = (tmp_path / "out.jsonl").read_bytes()
    with pytest.raises(InputError, match=rf"{place}.*has changed"):
        save(requests, send, tmp_path)
    assert (tmp_path / "out.jsonl").read_bytes() == before


def test_an_output_that_cannot_be_written(tmp_path):
    path = tmp_path / "out.jsonl"
    for line in ('{"prompt": "a"}', "[1]", "text", '{"request_key": 3}'):  # of somebody else
        path.write_text(f"{line}\nlast")
        with pytest.raises(InputError, match=r"out.jsonl:1: "):
            save(questions(3), echo, tmp_path)
        assert path.read_text() == f"{line}\nlast"
    path.unlink()
    with pytest.raises(InputError, match=r"out.jsonl: cannot be written \(No such file"):
        save(questions(1), echo, tmp_path / "nowhere")
    with (
        contextlib.closing(files.Lock(tmp_path / ".out.jsonl.lock")),
        pytest.raises(InputError, match="another process is writing it"),
    ):
        save(questions(2), echo, tmp_path)
    assert save(questions(2), echo, tmp_path) == (2, 0)


def test_a_full_disk_under_the_rows(tmp_path, monkeypatch):
    send, fsync, calls = FakeModel(), os.fsync, []

    def full(number):
        calls.append(number)
        if len(calls) == 6:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(number)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=r"out.jsonl: cannot be written \(No space left"):
        save(questions(20), send, tmp_path)
    assert len(read(tmp_path / "out.jsonl")) == 5
    cached, before = cached_prompts(tmp_path, questions(20)), len(send.prompts)
    assert len(cached) == before
    assert save(questions(20), send, tmp_path) == (20, 0)
    assert not cached & set(send.prompts[before:])
