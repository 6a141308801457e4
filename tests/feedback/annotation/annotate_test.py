"""launch.annotate without a browser: actions, exports, what is refused and who is served."""

import dataclasses
import itertools
import json
import os
import socket
import subprocess
import sys

import fastapi.testclient
import pytest

from fgrlhf_jax.feedback.annotation import formats, page, server
from fgrlhf_jax.feedback.annotation.history import EDITED, Decision, Item, input_digest
from fgrlhf_jax.feedback.annotation.store import Annotations
from launch import annotate
from launch.shared import config_files

ROW = '{"instruction": "Say one.", "output": "Won."}\n'


@pytest.fixture
def store(tmp_path):
    rows = [Item(str(k), f"Say {k}.", "", f"This is {k}.\r\nOr not.") for k in (1, 2)]
    with Annotations(rows, tmp_path / "edits.jsonl", overlap=2) as store:
        yield store


def test_a_session_at_the_page(store):
    view = page.view(store, "Ann")
    assert (view.item.id, view.text, view.message) == ("1", "This is 1.\r\nOr not.", "")
    view = page.accept(store, "Ann", "1", "This is one.\nOr not.")
    assert (view.item.id, view.message) == ("2", "Row 1 is saved.")
    assert store.decisions()[0].text == "This is one.\r\nOr not."
    view = page.accept(store, "Ann", "2", "This is 2.\nOr not.")
    assert (view.item, view.text, view.message) == (None, "", "Row 2 is fine as it is.")
    assert "No row is free for you now" in page.no_row_message(store, "Ann")
    for _ in range(2):  # pressed twice
        assert page.undo(store, "Ann", "").item.id == "2"
        assert len(store.decisions()) == 1
    page.accept(store, "Ann", "2", "This is two.\nOr not.")
    view = page.undo(store, "Ann", "2")  # in a tab that still shows it
    assert (view.item.id, view.message) == ("2", "Row 2 is open again.")
    page.skip(store, "Ann", "2")
    for name in ("Bob", "Cem"):
        view = page.view(store, name)
        while view.item:
            view = page.accept(store, name, view.item.id, "This is one.\nOr not.")
    message = page.no_row_message(store, "Ann")
    assert "All rows are done" in message
    assert "2 rows were decided by several people" in message
    assert annotate.summarize(store).startswith("4 edits in ")


def test_a_text_typed_for_another_input_is_not_put_into_this_one(store):
    item = page.view(store, "Ann").item
    for original, text in (("Of another file.", item.original), (item.original, "Typed.")):
        digest = input_digest([dataclasses.replace(item, original=original)], [])
        assert page.reopen(store, "Ann", "1", "Typed.", digest).text == text


def test_a_save_is_reported_though_no_next_row_can_be_opened(store, monkeypatch):
    page.view(store, "Ann")
    real, count = os.fsync, itertools.count()

    def full(file):
        if next(count) >= 2:
            raise OSError(28, "No space left on device")
        real(file)

    monkeypatch.setattr(os, "fsync", full)
    view = page.accept(store, "Ann", "1", "One.")
    assert view.message.startswith("Row 1 is saved. No row was opened: not saved: ")
    assert view.wrong
    assert [decision.verdict for decision in store.decisions()] == [EDITED]
    monkeypatch.undo()
    assert page.put_back(store, "Ann", "").item.id == "2"


# The command


@pytest.fixture
def refusal(monkeypatch, refused, tmp_path):
    """The one sentence of the command with these fields."""
    (tmp_path / "rows.jsonl").write_text(ROW)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(server.PASSWORD, raising=False)

    def run(**fields) -> str:
        fields = {"input": "rows.jsonl", "output": "edits.jsonl", "port": 0} | fields
        return refused(annotate, **fields)

    return run


def run(**fields) -> None:
    config = config_files.load(annotate.CONFIG)
    config.update(fields)
    annotate.main(config)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"input": "no.jsonl"}, "no.jsonl: there is no such file"),
        ({"output": "edits.json"}, "give --config.output=FILE.jsonl"),
        ({"output": "rows.jsonl"}, "rows.jsonl: exists, but rows.jsonl.state.jsonl beside it"),
        ({"export": "out.txt"}, "give a FILE.json"),
        ({"export": "out.json", "format": "edits"}, "give a FILE.jsonl"),
        ({"export": "no/out.json"}, "export=no/out.json: the folder no does not exist"),
        ({"export": "out.json"}, "output=edits.jsonl: nothing was annotated into it ("),
        *(
            ({"format": "edits", "export": path}, "export: would write over ")
            for path in ("./rows.jsonl", "edits.jsonl", "edits.jsonl.state.jsonl")
        ),
        ({"host": "0.0.0.0"}, "set a password in the environment variable FGRLHF_ANNOTATE_PA"),
    ],
)
def test_bad_input(refusal, fields, message):
    assert message in refusal(**fields)


def test_passwords(refusal, monkeypatch):
    monkeypatch.setenv(server.PASSWORD, " ")
    assert "FGRLHF_ANNOTATE_PASSWORD is set but empty" in refusal()
    monkeypatch.setenv(server.PASSWORD, "secret")
    assert "192.0.2.1" in refusal(host="192.0.2.1")  # no address of this machine


def test_a_port_in_use(refusal, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        message = f"port={port}: cannot be used on 127.0.0.1 (Address already in use); choose"
        assert message in refusal(port=port)
    assert not (tmp_path / "edits.jsonl").exists()


def test_without_gradio_and_with_another_input(refusal, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert "pip install 'fgrlhf_jax[annotate]'" in refusal()
    (tmp_path / "rows.jsonl").write_text(ROW + ROW)
    assert "the input has changed since" in refusal()
    assert "the input has changed since" in refusal(export="out.json")


def test_the_page_cares_for_no_proxy_and_no_certificate(tmp_path):
    (tmp_path / "rows.jsonl").write_text(ROW)
    command = [sys.executable, "-m", "launch.annotate", "--config.input=rows.jsonl"]
    command += ["--config.output=edits.jsonl", "--config.port=0"]
    environment = {"ALL_PROXY": "socks5://127.0.0.1:9", "SSL_CERT_FILE": "nowhere.pem"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=tmp_path, env=os.environ | environment, **pipes) as process:
        line = process.stdout.readline()
        process.terminate()
        assert line.startswith("Open http"), process.stderr.read()


@pytest.mark.parametrize("kind", ["plain", "argilla"])
def test_rows_without_a_response_are_left_out_and_counted(refusal, tmp_path, capsys, kind):
    empty = {"instruction": "Say two.", "output": " "}
    if kind == "plain":
        rows = [json.loads(ROW), empty]
    else:
        decision = Decision("1", "Ann", "skipped", " ")
        rows = [formats.argilla_row(Item("1", "Say.", "", " "), [decision])]
        rows.append(rows[0] | {"id": "2", "fields": {"instruction": "Say.", "response": "1"}})
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    run(input="rows.json", export="out.json")
    out = capsys.readouterr().out
    assert "1 rows of rows.json are left out: their response is empty" in out
    assert "1 rows in out.json" in out
    (tmp_path / "rows.jsonl").write_text(json.dumps(empty))
    assert "none of its rows has a response to edit" in refusal()


def test_export(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text(ROW)
    run(input="rows.jsonl", export="out.json")
    items, _ = formats.read("rows.jsonl")
    with Annotations(items, "e.jsonl") as store:
        page.accept(store, "Ann", store.take("Ann").id, "One.")
        run(input="rows.jsonl", export="out.json", output="e.jsonl")  # while it is annotated
    assert formats.read("out.json") == (items, store.decisions())
    run(input="out.json", export="x.jsonl", format="edits")
    assert '"edited": "One."' in (tmp_path / "x.jsonl").read_text()
    out = capsys.readouterr().out
    assert out.splitlines() == 2 * ["1 rows in out.json"] + ["1 rows in x.jsonl"]


# Who is served


@pytest.mark.parametrize(
    ("host", "origin", "hosts", "allowed"),
    [
        ("127.0.0.1:7860", None, server.LOCAL, True),
        ("localhost", None, server.LOCAL, True),
        ("[::1]:7860", None, server.LOCAL, True),
        ("evil.example:7860", None, server.LOCAL, False),
        ("evil.example:7860", None, (), True),
        ("mymachine:7860", None, ("MyMachine",), True),
        ("MyMachine", "http://mymachine", ("mymachine",), True),
        ("[evil", None, (), False),
        (None, None, server.LOCAL, False),
        ("localhost:1", "http://localhost:1", server.LOCAL, True),
        ("localhost:1", "http://localhost:2", server.LOCAL, False),
        ("localhost:1", "http://evil.example", server.LOCAL, False),
        ("localhost:1", "null", server.LOCAL, False),
    ],
)
def test_only_pages_of_its_own_are_served(host, origin, hosts, allowed):
    app = fastapi.FastAPI()
    app.get("/")(lambda: "the page")
    client = fastapi.testclient.TestClient(server.guard(app, hosts))
    headers = {"host": host, "origin": origin}
    response = client.get("/", headers={k: v for k, v in headers.items() if v is not None})
    assert response.status_code == (200 if allowed else 403)
    assert "default-src 'self'" in response.headers["content-security-policy"]
