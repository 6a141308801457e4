"""The annotators' page without a browser: what it says, what it escapes, what it refuses."""

import dataclasses
import html.parser
import itertools
import json
import os
import random
import socket
import sys

import bad_input_cases
import pytest

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.feedback.annotation import html as annotate_html
from fgrlhf_jax.feedback.annotation import page as annotate_page
from fgrlhf_jax.feedback.annotation import server as annotate_server
from fgrlhf_jax.feedback.annotation.history import EDITED, Item, digest
from fgrlhf_jax.feedback.annotation.store import Annotations
from launch import annotate

ROW = '{"instruction": "Say one.", "output": "Won."}\n'
EVIL = '<script>alert("1")</script> ${alert(1)} {{value}} <img src=x onerror=alert(1)> & \'"'


@pytest.mark.parametrize(
    ("given", "name"),
    [("Ann", "Ann"), ("  Ann \t Lee ", "Ann Lee"), ("Zoe\u0308", "Zoë"), ("<b>", "<b>")],
)
def test_names(given, name):
    assert annotate_html.clean_name(given) == name


@pytest.mark.parametrize("given", ["", "  ", None, "x" * 61, "a\x00b", "a\u202eb", "a\ud800"])
def test_what_is_no_name(given):
    with pytest.raises(InputError, match="give"):
        annotate_html.clean_name(given)


@pytest.mark.parametrize(
    ("original", "typed", "kept"),
    [
        ("a\nb", "a\nc", "a\nc"),
        ("a\r\nb", "a\nb", "a\r\nb"),
        ("a\r\nb\r\n", "a\nnew\nb\n", "a\r\nnew\r\nb\r\n"),
        ("a\rb", "b", "b"),
        ("a\nb\r\nc\r\nd", "a\nx\nc\nd\n", "a\nx\r\nc\r\nd\r\n"),
        ("a\r\n\r\nb", "\n\nb\nc", "\r\n\r\nb\r\nc"),
        ("a\r\n", "", ""),
    ],
)
def test_line_ends_are_kept(original, typed, kept):
    assert annotate_html.with_line_ends_of(original, typed) == kept


def test_a_response_that_was_not_touched_comes_back_to_the_letter():
    rng = random.Random(0)
    for _ in range(500):
        original = "".join(
            rng.choices(["a", "b", " ", "\n", "\r", "\r\n"], k=rng.randrange(12))
        )
        typed = original.replace("\r\n", "\n").replace("\r", "\n")
        assert annotate_html.with_line_ends_of(original, typed) == original


@pytest.mark.parametrize(
    ("original", "edited", "shown"),
    [
        ("one two three four", "one 2 three five four!", "one -two+2 three +five four+!"),
        ("Jimmy Carr as head.", "Jimmy Carr.", "Jimmy Carr- as head."),
        ("the Grand Oil Corp (GOC) said", "the GOC said", "the -Grand Oil Corp (GOC-) said"),
        ("gone", "", "-gone"),
        ("same", "same", "same"),
        ("", "", ""),
    ],
)
def test_the_difference_reads_in_order(original, edited, shown):
    marks = {"same": "", "out": "-", "in": "+"}
    parts = annotate_html.inline(original, edited)
    expected = shown
    for kind, text in parts:
        expected = expected.removeprefix(marks[kind] + text)
    assert expected == ""


def test_the_difference_adds_up_to_both_sides():
    rng = random.Random(0)
    words = ["a", "b", "c", ",", "\n", " ", "d-e", "日本"]
    for _ in range(2000):
        sides = ["".join(rng.choices(words, k=rng.randrange(12))) for _ in range(2)]
        parts = annotate_html.inline(*sides)
        for text, other in zip(sides, ("in", "out"), strict=True):
            assert "".join(part for kind, part in parts if kind != other) == text
        assert all(text for _, text in parts)
        assert all(a != b for (a, _), (b, _) in itertools.pairwise(parts))


class Reader(html.parser.HTMLParser):
    """The tags and the text of a piece of HTML."""

    def __init__(self, source: str):
        super().__init__()
        self.tags, self.text = set(), ""
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)

    def handle_data(self, data):
        self.text += data


@pytest.mark.parametrize(
    "source",
    [
        annotate_html.prompt(Item(EVIL, EVIL, EVIL, "x")),
        annotate_html.difference(EVIL, f"{EVIL} more", 0.5),
        annotate_html.difference("more", EVIL, 0.5),
        annotate_html.message(EVIL, wrong=True),
        annotate_html.note(EVIL),
        annotate_html.progress(
            dict.fromkeys(("rows", "done", "edited", "fine", "skipped", "mine"), 1)
            | {"open_elsewhere": 2},
            EVIL,
        ),
    ],
)
def test_everything_is_escaped(source):
    read = Reader(source)
    assert read.tags <= {"div", "p", "small", "b", "del", "ins", "progress"}
    assert EVIL in read.text or {"del", "ins"} <= read.tags


def test_half_a_character_can_be_shown():
    shown = annotate_html.difference("a\ud83d", "b", 1.0) + annotate_html.message("\udc00")
    assert shown.encode().count("\N{REPLACEMENT CHARACTER}".encode()) == 2


def test_the_warning_comes_where_the_edit_is_minimal_no_more():
    before = "one two three four five"
    for after, warned in (("one two three four six", False), ("six", True), (before, False)):
        assert ("no longer a minimal edit" in annotate_html.difference(before, after, 0.5)) == (
            warned
        )
    assert "<b>20 %</b>" in annotate_html.difference(before, "one two three four six", 0.5)
    assert "only blanks differ" in annotate_html.difference("a b", "a  b", 0.5)


# What the buttons do.


@pytest.fixture
def store(tmp_path):
    rows = [Item(str(k), f"Say {k}.", "", f"This is {k}.\r\nOr not.") for k in (1, 2)]
    with Annotations(rows, tmp_path / "edits.jsonl", overlap=2) as store:
        yield store


def test_a_morning_at_the_page(store):
    shown = annotate_page.view(store, "Ann")
    assert (shown.item.id, shown.text, shown.said) == ("1", "This is 1.\r\nOr not.", "")
    shown = annotate_page.accept(store, "Ann", "1", "This is one.\nOr not.")
    assert (shown.item.id, shown.said) == ("2", "Row 1 is saved.")
    assert store.decisions()[0].text == "This is one.\r\nOr not."
    shown = annotate_page.accept(store, "Ann", "2", "This is 2.\nOr not.")
    assert (shown.item, shown.text, shown.said) == (None, "", "Row 2 is fine as it is.")
    assert "No row is free for you now" in annotate_page.rest(store, "Ann")
    for _ in range(2):  # pressed twice
        shown = annotate_page.undo(store, "Ann", "")
        assert shown.item.id == "2"
        assert len(store.decisions()) == 1
    annotate_page.accept(store, "Ann", "2", "This is two.\nOr not.")
    shown = annotate_page.undo(store, "Ann", "2")  # in a tab that still shows it
    assert (shown.item.id, shown.said) == ("2", "Row 2 is open again.")
    annotate_page.skip(store, "Ann", "2")
    for name in ("Bob", "Cem"):
        shown = annotate_page.view(store, name)
        while shown.item:
            shown = annotate_page.accept(store, name, shown.item.id, "This is one.\nOr not.")
    said = annotate_page.rest(store, "Ann")
    assert "All rows are done" in said
    assert "2 rows were decided by several people" in said
    assert annotate.summary(store).startswith("4 edits in ")


def test_what_was_typed_for_another_input_is_not_put_into_this_one(store):
    item = annotate_page.view(store, "Ann").item
    other = dataclasses.replace(item, original="Of another file.")
    for typed_for, text in ((other, item.original), (item, "Typed.")):
        of = digest([typed_for], [])
        assert annotate_page.reopened(store, "Ann", "1", "Typed.", of).text == text


def test_what_was_saved_is_said_though_no_next_row_can_be_opened(store, monkeypatch):
    annotate_page.view(store, "Ann")
    real, count = os.fsync, itertools.count()

    def full(file):
        if next(count) >= 2:
            raise OSError(28, "No space left on device")
        real(file)

    monkeypatch.setattr(os, "fsync", full)
    shown = annotate_page.accept(store, "Ann", "1", "One.")
    assert shown.said.startswith("Row 1 is saved. No row was opened: not saved: ")
    assert shown.wrong
    assert [one.verdict for one in store.decisions()] == [EDITED]
    monkeypatch.undo()
    assert annotate_page.put_back(store, "Ann", "").item.id == "2"


# What is refused before there is a page.


@pytest.fixture
def told(monkeypatch, capsys, tmp_path):
    """The one sentence of a command with these fields."""
    (tmp_path / "rows.jsonl").write_text(ROW)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(annotate_server.PASSWORD, raising=False)

    def run(**fields) -> str:
        fields = {"input": "rows.jsonl", "output": "edits.jsonl", "port": 0} | fields
        default = "configs/annotate.py"
        return bad_input_cases.only(
            bad_input_cases.launch(monkeypatch, capsys, annotate, default, **fields)
        )

    return run


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"input": "no.jsonl"}, "no.jsonl: there is no such file"),
        ({"output": ""}, "give --config.output=FILE.jsonl"),
        ({"output": "edits.json"}, "give --config.output=FILE.jsonl"),
        ({"output": "rows.jsonl"}, "rows.jsonl: exists, but rows.jsonl.state.jsonl beside it"),
        ({"export": "out.txt"}, "give a FILE.json"),
        ({"export": "out.json", "format": "edits"}, "give a FILE.jsonl"),
        ({"export": "no/out.json"}, "export=no/out.json: the folder no does not exist"),
        ({"export": "out.json"}, "output=edits.jsonl: nothing was annotated into it ("),
        *(
            ({"format": "edits", **fields}, "export: would write over ")
            for fields in (
                {"export": "rows.jsonl"},
                {"export": "./rows.jsonl", "input": "more.jsonl, rows.jsonl"},
                {"export": "edits.jsonl"},
                {"export": "edits.jsonl.state.jsonl"},
            )
        ),
        (
            {"host": "0.0.0.0"},
            "set a password in the environment variable FGRLHF_ANNOTATE_PASS",
        ),
    ],
)
def test_bad_input(told, fields, message):
    assert message in told(**fields)


@pytest.mark.parametrize("kind", ["plain", "argilla"])
def test_rows_without_a_response_are_left_out_and_counted(told, tmp_path, capsys, kind):
    empty = {"instruction": "Say two.", "output": " "}
    if kind == "plain":
        rows = [json.loads(ROW), empty]
    else:
        item = annotate.annotation_formats.Item("1", "Say.", "", " ")
        decision = annotate.Decision("1", "Ann", "skipped", " ")
        rows = [annotate.annotation_formats.argilla_row(item, [decision])]
        rows.append(rows[0] | {"id": "2", "fields": {"instruction": "Say.", "response": "1"}})
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    config = bad_input_cases.cli.load("configs/annotate.py")
    config.update({"input": str(tmp_path / "rows.json"), "export": "out.json"})
    annotate.main(config)
    out = capsys.readouterr().out
    assert "1 rows of" in out
    assert "left out: their response is empty" in out
    assert "1 rows in out.json" in out
    (tmp_path / "rows.jsonl").write_text(json.dumps(empty))
    assert "none of its rows has a response to edit" in told()


def test_an_empty_password(told, monkeypatch):
    monkeypatch.setenv(annotate_server.PASSWORD, " ")
    assert "FGRLHF_ANNOTATE_PASSWORD is set but empty" in told()


def test_an_address_that_is_not_ours(told, monkeypatch):
    monkeypatch.setenv(annotate_server.PASSWORD, "secret")
    assert "192.0.2.1" in told(host="192.0.2.1")


def test_a_port_in_use(told, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        sentence = f"port={port}: cannot be used on 127.0.0.1 (Address already in use); choose"
        assert sentence in told(port=port)
    assert not (tmp_path / "edits.jsonl").exists()


def test_without_gradio(told, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert "pip install 'fgrlhf_jax[annotate]'" in told()


def test_an_input_that_changed(told, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    told()
    (tmp_path / "rows.jsonl").write_text(ROW + ROW)
    assert "the input has changed since" in told()
    assert "the input has changed since" in told(export="out.json")


def test_export(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text(ROW)
    config = bad_input_cases.cli.load("configs/annotate.py")
    config.update({"input": "rows.jsonl", "export": "out.json"})
    annotate.main(config)
    items = annotate.annotation_formats.read("rows.jsonl")[0]
    config.update({"output": "e.jsonl"})
    with Annotations(items, "e.jsonl") as store:
        annotate_page.accept(store, "Ann", store.take("Ann").id, "One.")
        annotate.main(config)  # while it is annotated
    assert annotate.annotation_formats.read("out.json") == (items, store.decisions())
    config.update({"input": "out.json", "output": "", "export": "x.jsonl", "format": "edits"})
    annotate.main(config)
    assert '"edited": "One."' in (tmp_path / "x.jsonl").read_text()
    assert capsys.readouterr().out.splitlines() == [
        "1 rows in out.json",
        "1 rows in out.json",
        "1 rows in x.jsonl",
    ]


# Who is served.


@pytest.mark.parametrize(
    ("headers", "hosts", "welcome"),
    [
        ({"host": "127.0.0.1:7860"}, annotate_server.LOCAL, True),
        ({"host": "localhost"}, annotate_server.LOCAL, True),
        ({"host": "[::1]:7860"}, annotate_server.LOCAL, True),
        ({"host": "evil.example:7860"}, annotate_server.LOCAL, False),
        ({"host": "evil.example:7860"}, (), True),
        ({"host": "mymachine:7860"}, ("MyMachine",), True),
        ({"host": "MyMachine", "origin": "http://mymachine"}, ("mymachine",), True),
        ({"host": "[evil"}, (), False),
        ({}, annotate_server.LOCAL, False),
        ({"host": "localhost:1", "origin": "http://localhost:1"}, annotate_server.LOCAL, True),
        ({"host": "localhost:1", "origin": "http://localhost:2"}, annotate_server.LOCAL, False),
        (
            {"host": "localhost:1", "origin": "http://evil.example"},
            annotate_server.LOCAL,
            False,
        ),
        ({"host": "localhost:1", "origin": "null"}, annotate_server.LOCAL, False),
    ],
)
def test_only_pages_of_its_own_are_served(headers, hosts, welcome):
    import asyncio

    sent = []

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message):
        sent.append(message)

    pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "headers": pairs}
    asyncio.run(annotate_server.guarded(app, hosts)(scope, None, send))
    assert sent[0]["status"] == (200 if welcome else 403)
    assert b"content-security-policy" in dict(sent[0]["headers"])
