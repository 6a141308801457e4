"""The cache of replies, which several processes may share."""

import contextlib
import functools
import sqlite3
import subprocess
import sys

import llm_server
import pytest
from request_cases import IDENTITY, FakeModel, answer, collect, questions, save

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.feedback.llm import cache
from fgrlhf_jax.feedback.llm.client import Reply, Request
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
