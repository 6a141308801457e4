"""The annotators' page: rendering and escaping; over HTTP, allowed hosts and refused requests."""

import time
from pathlib import Path

import pytest
import starlette.testclient
from html_page import Page as Html

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.feedback.annotation import server
from fgrlhf_jax.feedback.annotation.items import Decision, Item
from fgrlhf_jax.feedback.annotation.page import Page, difference, render
from fgrlhf_jax.feedback.annotation.store import Annotations

EVIL = '<script>alert("1")</script> ${alert(1)} {{value}} <img src=x onerror=alert(1)> & \'"'


def serve(store, **options):
    options = {"host": "127.0.0.1", "root_path": "", "password": "", "guidelines": ""} | options
    app = server.App(Page(store, 0.5), **options)
    return starlette.testclient.TestClient(app, base_url="http://localhost")


@pytest.mark.parametrize(
    ("host", "origin", "served_at", "root_path", "allowed"),
    [
        ("127.0.0.1:7860", None, "127.0.0.1", "", True),
        ("[::1]:7860", None, "::1", "", True),
        ("evil.example:7860", None, "127.0.0.1", "", False),
        ("evil.example:7860", None, "0.0.0.0", "", True),
        ("MyMachine", "http://mymachine", "mymachine", "", True),
        ("[evil", None, "0.0.0.0", "", False),
        ("", None, "127.0.0.1", "", False),
        ("localhost:1", "http://localhost:1", "127.0.0.1", "", True),
        ("localhost:1", "http://localhost:2", "127.0.0.1", "", False),
        ("localhost:1", "null", "127.0.0.1", "", False),
        # Behind a proxy that keeps the host, and one that writes its own.
        ("team.example", "https://team.example", "127.0.0.1", "https://team.example/a", True),
        ("localhost:1", "https://team.example", "127.0.0.1", "https://team.example/a", True),
        ("localhost:1", "https://evil.example", "127.0.0.1", "https://team.example/a", False),
    ],
)
def test_allowed_hosts_and_origins(store, host, origin, served_at, root_path, allowed):
    headers = {"host": host} | ({"origin": origin} if origin else {})
    response = serve(store, host=served_at, root_path=root_path).get("/", headers=headers)
    assert response.status_code == (200 if allowed else 403)
    assert ("--config.root_path=https://HOST/PATH" in response.text) == (not allowed)
    assert "default-src 'none'" in response.headers["content-security-policy"]


def test_under_a_path(store):
    client = serve(store, root_path="https://localhost/team/a/")
    for path in ("/", "/team/a/"):  # with a proxy that removes the path, or not
        assert '<base href="/team/a/">' in client.get(path).text
        assert client.post(f"{path}act", json={"action": "enter", "name": "Ann"}).json()["token"]
    assert client.get("/team/a", follow_redirects=False).headers["location"] == "/team/a/"
    response = client.get("/config")
    assert response.status_code == 404
    assert "the page is at /team/a/. If a proxy" in response.text


def test_guidelines_are_shown_and_their_html_is_text(store):
    Path("g.md").write_text("# Be *kind*\n\n<script>evil()</script> [x](javascript:y)")
    text = serve(store, guidelines=server.read_guidelines("g.md")).get("/").text
    assert "<h1>Be <em>kind</em></h1>" in text
    assert text.count("<script>") == 1
    assert 'href="javascript' not in text


def test_a_password_and_tokens(store):
    client = serve(store, password="open sesame")

    def act(body: dict, token: str = "") -> dict:
        return client.post("/act", json=body, headers={"authorization": token.encode()}).json()

    guess, began = {"action": "enter", "name": " Ann  Lee", "password": "sesame"}, time.monotonic()
    assert act(guess)["message"] == "that is not the password."
    assert time.monotonic() - began > 0.9  # one guess per second
    assert act(guess | {"name": " "})["wrong"]
    right = guess | {"password": "open sesame"}
    token = act(right)["token"]
    assert {"annotator": "Ann Lee", "row": "1"}.items() <= act({"action": "open"}, token).items()
    assert act(right | {"name": "annlee"})["token"] == token
    assert act(right | {"name": "Bob"})["message"].endswith("So far: Ann Lee.")
    assert act(right | {"name": "Bob", "new": True})["token"].startswith("Bob ")
    for forged in (token.replace("Ann", "Bob"), token[:-1], "Ann%20Lee ", "", "é"):
        assert act({"action": "open"}, forged)["enter"]
    assert client.post("/act", json={"action": "open"}).json()["enter"]  # without a token


@pytest.mark.parametrize(
    ("body", "message"),
    [
        *((body, "the server cannot read this request") for body in (b"[", b'{"action": "lost"}')),
        (b'{"action": "save", "row": 3}', "the server cannot read this request"),
        (b'{"action": "save", "row": "1", "seconds": "x"}', "the server cannot read this request"),
        (b'{"action": "draft", "row": "1", "text": "\\ud83d"}', "not a valid text"),
        (b'{"action": "save", "row": "9"}', "there is no row '9'"),
        (b'{"action": "save", "row": "1"}', "an edit cannot be empty"),
        (b'{"action": "draft", "row": "1", "text": "%s"}' % (b"x" * 60000), "has 60000 characters"),
        (b" " * 2_000_000, "the text is too long; 50000 characters are the most"),
    ],
)
def test_invalid_requests(store, body, message):
    client = serve(store)
    token = client.post("/act", json={"action": "enter", "name": "Ann"}).json()["token"]
    answer = client.post("/act", content=body, headers={"authorization": token}).json()
    assert message in answer["message"]
    assert (answer["wrong"], store.decisions()) == (True, [])


def test_names():
    names = {"Ann": "Ann", "  Ann \t Lee ": "Ann Lee", "Zoe\u0308": "Zoë", "<b>": "<b>"}
    assert {text: server.clean_name(text) for text in names} == names
    for refused in ("  ", None, "x" * 61, "a\x00b", "a\u202eb", "a\ud800"):
        with pytest.raises(InputError, match="give"):
            server.clean_name(refused)
    known, others = ["Noa", "Ann Lee", "Zoë"], ["noa", "ANNLEE", "zoe\u0308", "Ann"]
    assert [server.known_name(name, known) for name in others] == [*known, ""]


TAGS = {"div", "p", "small", "b", "bdi", "del", "ins", "progress", "details", "summary"}
TAGS |= {"button", "section", "span"}
COUNTS = dict.fromkeys(("rows", "overlap", "done", "mine", "left", "open_elsewhere"), 1)
COUNTS["skipped_by"] = {EVIL: 1}
DECIDED = Item("1", EVIL, "", "x"), Decision("1", EVIL, EVIL, EVIL, 0, (EVIL,), EVIL), []


@pytest.mark.parametrize(
    ("source", "directions"),
    [
        (render("prompt", Item(EVIL, EVIL, EVIL, "x")), 2),
        (render("prompt", Item(EVIL, "", "", "x", turns=((EVIL, EVIL),), finished=False)), 1),
        (difference(EVIL, f"{EVIL} more", 0.5), 1),
        (difference("more", EVIL, 0.5), 1),
        (render("no_row", COUNTS, EVIL, EVIL), 0),
        (render("progress", COUNTS, EVIL), 0),
        (render("edits", {EVIL: [EVIL]}, EVIL), 0),
        (render("versions", [(EVIL, EVIL)]), 1),
        (render("decisions", [DECIDED], 1), 3),
    ],
)
def test_every_text_is_escaped_and_has_its_own_direction(source, directions):
    html = Html(source)
    tags = {tag for tag, _ in html.tags}
    assert tags <= TAGS
    assert EVIL in html.text or {"del", "ins"} <= tags
    assert sum(attributes.get("dir") == "auto" for _, attributes in html.tags) == directions
    assert ("was cut at the length limit." in html.text) == ("turns)" in source)


def test_a_second_pass_shows_the_annotators_of_earlier_edits(output):
    edits = ("Ann", "In Pau."), ("Bob", "In Nice.")
    item = Item("1", "Where?", "", "In Lyon.", "In Pau.", others=(*edits, ("Cem", "In Pau.")))
    with Annotations([item], output) as store:
        page, typed = Page(store, 0.5), {"row": "1", "text": "In Nice."}
        actions = [typed | {"action": name} for name in ("open", "draft", "versions")]
        opened, draft, versions = (page.act("Dan", action) for action in actions)
    for answer, line in ((opened, "Ann and Cem (shown), Bob"), (draft, "Ann and Cem, Bob (shown)")):
        assert Html(answer["edits"]).text.strip() == f"3 edits: {line}"
    assert [versions["list"].count(text) for _, text in edits] == [1, 1]
    assert versions["list"].index(edits[1][1]) < versions["list"].index("The original response")


def test_a_warning_if_the_edit_is_not_minimal():
    before = "one two three four five"
    for after, warned in (("one two three four six", False), ("six", True), (before, False)):
        assert ("no longer a" in difference(before, after, 0.5)) == warned
    assert "<b>20%</b>" in difference(before, "one two three four six", 0.5)
    assert "<b>&lt;1%</b>" in difference("word " * 300, "word " * 299 + "other", 0.5)
    assert "only blanks differ" in difference("a b", "a  b", 0.5)
