"""The cache of replies and the file of rows, which survive a killed process."""

import contextlib
import errno
import functools
import os
import sqlite3
import subprocess
import sys

import llm_server
import pytest
from request_cases import IDENTITY, FakeModel, answer, cached_prompts, collect, questions, save

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.feedback.llm import cache
from fgrlhf_jax.feedback.llm.client import Rejected, Reply, Request
from fgrlhf_jax.feedback.llm.requests import Usage, request_key
from fgrlhf_jax.runtime import files


def test_no_request_is_sent_twice_and_stored_replies_are_exact(tmp_path):
    odd = Reply("ü🙂\x00\r\n\u2028 'quoted'", "length", 2, 3)
    send = FakeModel(lambda prompt, _: odd if prompt == "a\ud83d" else None)
    requests = [*questions(4), Request("a\ud83d")] * 3
    for usage in (Usage(requests=5, input_tokens=10, output_tokens=15), Usage(cached=15)):
        counted = Usage()
        replies = list(collect(requests, send, tmp_path, usage=counted))
        assert replies == [*map(answer, questions(4)), odd] * 3
        assert counted == usage
    assert len(send.prompts) == 5


def test_a_key_depends_on_all_that_determines_a_reply_and_on_no_version():
    request = Request("a", 1, 0.0)
    key = request_key(IDENTITY, request)
    others = ("x", 1, 0.0), ("a", 9, 0.0), ("a", 1, 1.0), ("a", 1, 0.0, {"type": "object"})
    assert key not in {request_key(IDENTITY, Request(*other)) for other in others}
    assert key not in {request_key({**IDENTITY, name: "x"}, request) for name in IDENTITY}
    assert request_key(dict(reversed(IDENTITY.items())), request) == key
    assert key == "3a532054e8d6506c37cf5a55f706f2a1c1f2ddb5b7569db84b04d70a17c6d7b6"


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
def test_other_files_are_refused_as_cache(tmp_path, make, message):
    make(tmp_path / "cache.sqlite")
    for call in (lambda *args: list(collect(*args)), save):
        with pytest.raises(InputError, match=message):
            call(questions(1), FakeModel(), tmp_path)


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


def test_processes_that_share_a_cache_send_each_prompt_once(tmp_path, request):
    count, folders = request.config.getoption("--requests") // 2, [tmp_path / n for n in "123"]
    with llm_server.running(llm_server.shaky(0.2), work=0.01) as server:
        start = functools.partial(subprocess.Popen, stdout=subprocess.PIPE, text=True)
        command = [sys.executable, "-c", PROCESS, server.url]
        processes = [start([*command, str(folder), str(count)]) for folder in folders]
        outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert outputs == [f"({count}, 0)\n"] * 3
    assert server.delivered == {request.prompt: 1 for request in questions(count)}
    rows = [files.read_jsonl(folder / "out.jsonl") for folder in folders]
    assert [row["prompt"] for row in rows[0]] == [request.prompt for request in questions(count)]
    assert rows[0] == rows[1] == rows[2]


def test_a_symbolic_link_as_lock_file_is_refused(tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("text")
    for name in (".cache.sqlite.lock", ".out.jsonl.lock"):
        (tmp_path / name).symlink_to(precious)
        with pytest.raises(InputError, match=r"symbolic links|the lock file is a link"):
            save(questions(1), FakeModel(), tmp_path)
    assert precious.read_text() == "text"


def test_a_torn_last_line_is_cut_and_rows_that_exist_are_not_sent_again(tmp_path):
    save(questions(9), FakeModel(), tmp_path)
    path = tmp_path / "out.jsonl"
    complete = path.read_bytes()
    torn = [complete[:-cut] for cut in (1, 5, len(complete) // 2, len(complete))]
    for content in (*torn, complete + b'{"prom'):
        path.write_bytes(content)
        assert save(questions(9), FakeModel(lambda *args: AssertionError()), tmp_path) == (9, 0)
        assert path.read_bytes() == complete
    for path in tmp_path.glob("*cache*"):
        path.unlink()
    send = FakeModel()
    assert save(questions(12), send, tmp_path) == (12, 0)
    assert sorted(send.prompts) == ["question 10", "question 11", "question 9"]


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
def test_a_changed_input_is_refused(tmp_path, requests, place):
    send = FakeModel(lambda prompt, before: Rejected("no") if prompt.endswith("2") else None)
    assert save(questions(9), send, tmp_path) == (8, 1)
    before = (tmp_path / "out.jsonl").read_bytes()
    with pytest.raises(InputError, match=rf"{place}.*has changed"):
        save(requests, send, tmp_path)
    assert (tmp_path / "out.jsonl").read_bytes() == before


def test_an_output_that_cannot_be_written(tmp_path):
    path, send = tmp_path / "out.jsonl", FakeModel()
    for line in ('{"prompt": "a"}', "[1]", "text", '{"request_key": 3}'):  # another program's
        path.write_text(f"{line}\nlast")
        with pytest.raises(InputError, match=r"out.jsonl:1: "):
            save(questions(3), send, tmp_path)
        assert path.read_text() == f"{line}\nlast"
    path.unlink()
    with pytest.raises(InputError, match=r"out.jsonl: cannot be written \(No such file"):
        save(questions(1), send, tmp_path / "nowhere")
    in_use = pytest.raises(InputError, match="another process is writing it")
    with contextlib.closing(files.Lock(tmp_path / ".out.jsonl.lock")), in_use:
        save(questions(2), send, tmp_path)
    assert save(questions(2), send, tmp_path) == (2, 0)


def test_a_full_disk_loses_no_reply(tmp_path, monkeypatch):
    send, fsync, calls = FakeModel(), os.fsync, []

    def full(number):
        calls.append(number)
        if len(calls) == 6:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(number)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=r"out.jsonl: cannot be written \(No space left"):
        save(questions(20), send, tmp_path)
    assert len(files.read_jsonl(tmp_path / "out.jsonl")) == 5
    cached, before = cached_prompts(tmp_path, questions(20)), len(send.prompts)
    assert len(cached) == before
    assert save(questions(20), send, tmp_path) == (20, 0)
    assert not cached & set(send.prompts[before:])
