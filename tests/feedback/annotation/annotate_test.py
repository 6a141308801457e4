"""launch.annotate without a browser: actions of the page, exports, and invalid settings."""

import dataclasses
import json
import socket
from pathlib import Path
from unittest import mock

import pytest
from annotations_cases import accept_next, lines
from browser_cases import Server
from request_cases import launch

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.feedback.annotation import exports, formats, server
from fgrlhf_jax.feedback.annotation.items import EDITED, Decision, Item, input_digest
from fgrlhf_jax.feedback.annotation.page import LONGEST, Page
from fgrlhf_jax.feedback.annotation.store import Annotations
from launch import annotate

ROW = '{"instruction": "Say one.", "output": "Won."}\n'


@pytest.fixture
def act(store):
    """A function from an action of a tab to its answer."""

    def act(action: str, row: str = "", text: str = "", name: str = "Ann", **data) -> dict:
        return Page(store, limit=0.5).act(name, data | {"action": action, "row": row, "text": text})

    return act


def test_a_session_at_the_page(store, act):
    view = act("open")
    assert (view["row"], view["text"], view["message"]) == ("1", "This is 1.\r\nOr not.", "")
    notes = {"seconds": 7.5, "tags": ["a", "b"], "comment": "Why?"}
    view = act("save", "1", "This is one.\nOr not.", **notes)
    assert (view["row"], view["message"]) == ("2", "Row 1 is saved.")
    (decision,) = store.decisions()
    assert decision.text == "This is one.\r\nOr not."
    assert notes.items() <= (dataclasses.asdict(decision) | {"tags": ["a", "b"]}).items()
    view = act("save", "2", "This is 2.\nOr not.")
    assert (view["row"], view["text"], view["message"]) == ("", "", "Row 2 is fine as it is.")
    assert "Not done: 2 decided by you, to be decided by others as well." in view["prompt"]
    assert [(act("reopen")["row"], len(store.decisions())) for _ in range(2)] == 2 * [("2", 1)]
    act("save", "2", "This is two.\nOr not.")
    view = act("reopen", "2")  # in a tab that still shows it
    assert (view["row"], view["message"].split(":")[0]) == ("2", "Row 2 is open again")
    act("skip", "2")
    for name in ("Bob", "Cem"):
        view = act("open", name=name)
        while view["row"]:
            view = act("save", view["row"], f"This is {name}.\nOr not.", name=name)
    view = act("open")
    assert "All rows are done" in view["prompt"]
    assert "Rows decided by several people: 2" in view["prompt"]
    summary = f"{store.output}: 4 edited, 0 fine, 1 skipped; 2 of 2 rows are done, by 2"
    assert annotate.summarize(store).startswith(summary)


def test_rows_that_cannot_be_finished_are_explained(store, act):
    progress = act("open")["progress"]
    assert "<b>0</b> decided, <b>2</b> left;\nall: 0 of 2 done, 2 people each" in progress
    act("skip", "1")
    act("open", name="Bob")
    act("skip", "2")
    assert "Not done: 2 skipped by you (open again in My rows)" in act("open")["prompt"]
    act("open", name="Cem")
    assert "<b>0</b> decided, <b>1</b> left" in act("open", name="Dan")["progress"]
    shown = act("skip", "2", name="Dan")["prompt"]
    assert "Not done: 1 skipped by you (open again in My rows); 1 open with others." in shown
    summary = annotate.summarize(store)
    assert "not done and skipped (to be opened again in My rows): Ann 2, Dan 1" in summary
    assert "still open in browsers: 1" in summary
    with pytest.raises(InputError, match="Row 1 is with somebody else now"):
        act("reopen", "1")


def test_an_edit_beyond_the_limit_is_confirmed_and_marked(store, act):
    act("open")
    for confirmed in ({}, {"confirmed": "yes"}):
        answer = act("save", "1", "Of another kind altogether.", **confirmed)
        assert (answer.keys(), store.decisions()) == ({"confirm"}, [])
        assert "more than 50%" in answer["confirm"]
    act("save", "1", "Of another kind altogether.", confirmed=True)
    act("save", "2", "This is two.\nOr not.", confirmed=True)
    store.write_edits()
    assert [row.get("over_limit") for row in lines(store.output)] == [True, None]


def test_own_rows_are_searched_and_opened_again(store, act):
    act("open")
    act("save", "1", "This is one.\nOr not.", tags=["odd"], comment="A remark")
    act("skip", "2")
    for search, count in (("", 2), ("ONE", 1), ("remark", 1), ("odd", 1), ("say 2", 1), ("x", 0)):
        assert act("rows", search=search)["list"].count("<details>") == count
    assert act("rows", name="Bob")["list"].count("<details>") == 0
    notes = {"text": "This is one.\r\nOr not.", "tags": ("odd",), "comment": "A remark"}
    assert notes.items() <= act("reopen", "1").items()
    assert [decision.verdict for decision in store.decisions()] == ["skipped"]


def test_a_text_typed_for_another_input_is_discarded(store, act):
    item = store.take("Ann")
    for original, text in (("Of another file.", item.original), (item.original, "Typed.")):
        digest = input_digest([dataclasses.replace(item, original=original)])
        assert act("open", "1", "Typed.", digest=digest)["text"] == text


def test_a_save_is_reported_even_if_the_next_row_cannot_be_opened(store, act):
    act("open")
    with mock.patch.object(store, "take", side_effect=InputError("disk full")):
        view = act("save", "1", "This is one.\nOr not.")
    assert view == {"message": "Row 1 is saved. No row was opened: disk full.", "wrong": True}
    assert [decision.verdict for decision in store.decisions()] == [EDITED]
    assert act("next")["row"] == "2"


FIELDS = {"input": "rows.jsonl", "output": "edits.jsonl", "port": 0}


@pytest.fixture(autouse=True)
def rows(monkeypatch, tmp_path):
    (tmp_path / "rows.jsonl").write_text(ROW)
    monkeypatch.delenv(server.PASSWORD, raising=False)


def test_addresses():
    proxy = annotate.describe_address("127.0.0.1", 1, "https://team.example/edits/")
    assert proxy.startswith("https://team.example/edits/ ; ")
    assert f"others http://{socket.gethostname()}:1 " in annotate.describe_address("0.0.0.0", 1, "")
    assert annotate.describe_address("::1", 1, "") == "http://[::1]:1"


def test_settings_with_which_no_page_is_served(refused, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        message = f"port={port}: cannot be used on 127.0.0.1 (Address already in use); choose"
        assert message in refused(annotate, **FIELDS | {"port": port})
    assert not Path("edits.jsonl").exists()
    monkeypatch.setenv(server.PASSWORD, " ")
    assert "FGRLHF_ANNOTATE_PASSWORD is set but empty" in refused(annotate, **FIELDS)
    monkeypatch.setenv(server.PASSWORD, "secret")
    assert "192.0.2.1" in refused(annotate, **FIELDS, host="192.0.2.1")  # not of this machine
    monkeypatch.setattr(annotate, "REQUIRED", ("uvicorn", "no_such_module"))
    assert "needs no_such_module: pip install 'fgrlhf_jax[annotate]'" in refused(annotate, **FIELDS)


def test_the_page_ignores_proxies_and_certificates(tmp_path):
    page = Server(tmp_path, ALL_PROXY="socks5://127.0.0.1:9", SSL_CERT_FILE="nowhere.pem")
    assert page.stop()[0] == 130


@pytest.mark.parametrize("kind", ["plain", "argilla"])
def test_rows_without_a_response_to_edit_are_left_out_and_counted(refused, capsys, kind):
    texts = (" ", "One.", "x" * (LONGEST + 1))
    items = [Item(str(n), "Say.", "", text) for n, text in enumerate(texts)]
    rows = [{"instruction": "Say.", "output": item.original} for item in items]
    if kind == "argilla":
        rows = [exports.argilla_row(i, [Decision(i.id, "Ann", "skipped", " ")]) for i in items]
    Path("rows.json").write_text(json.dumps([*rows, {"fields": 3}]))
    launch(annotate, input="rows.json", export="out.json", invalid="drop")
    out = capsys.readouterr().out
    assert "1 rows left out; the first: rows.json:row 4: " in out
    for reason in ("is empty", "has more than 50000 char"):
        assert f"1 rows of rows.json are left out: their response {reason}" in out
    assert "1 rows in out.json" in out
    Path("rows.jsonl").write_text(json.dumps(rows[0]))
    assert "none of its rows has a response to edit" in refused(annotate, **FIELDS)


def test_export_and_another_input(capsys, refused):
    launch(annotate, input="rows.jsonl", export="out.json")
    items, _ = formats.read("rows.jsonl")
    with Annotations(items, "edits.jsonl") as store:
        accept_next(store, "Ann", "One.")
        launch(annotate, **FIELDS, export="out.json", overwrite=True)  # while it is annotated
        assert formats.read("out.json") == (items, store.decisions())
    launch(annotate, input="out.json", export="x.jsonl", format="edits")
    assert '"edited": "One."' in Path("x.jsonl").read_text()
    out = capsys.readouterr().out
    assert out.splitlines() == 2 * ["1 rows in out.json"] + ["1 rows in x.jsonl"]
    Path("rows.jsonl").write_text(ROW + ROW)
    for fields in ({}, {"export": "new.json"}):
        assert "the input has changed since" in refused(annotate, **FIELDS, **fields)
