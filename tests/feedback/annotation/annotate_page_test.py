"""People at the page: real headless Chromium, the real command, files that must come out exact.

Run with `pytest -m browser`. Chromium is any on the PATH (Debian: apt-get install chromium).
"""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from fgrlhf_jax.data import records
from fgrlhf_jax.feedback.annotation.server import PASSWORD

pytestmark = pytest.mark.browser

EVIL = "<script>evil = 1</script> ${evil = 2} {{value}} <img src=x onerror='evil = 3'>"
ROWS = [
    {"id": f"r{k}", "instruction": f"Name the number {k}.", "input": "", "output": f"It is {k}."}
    for k in range(10)
]  # fmt: skip
ROWS[1] |= {"instruction": EVIL, "input": EVIL, "output": EVIL}
ROWS[2] |= {"output": "  one\r\ntwo\t \r\n\r\nthree 😀\r\n"}


@pytest.fixture(scope="module")
def chromium():
    from playwright.sync_api import sync_playwright

    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.fail("there is no chromium: apt-get install chromium, or -m 'not browser'")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path)
        yield browser
        browser.close()


class Server:
    """The command in a process of its own."""

    def __init__(self, folder: Path, *flags: str, port: int = 0, **environment: str):
        (folder / "rows.json").write_text(json.dumps(ROWS))
        self.output = folder / "edits.jsonl"
        command = [sys.executable, "-m", "launch.annotate", f"--config.port={port}"]
        command += [f"--config.input={folder / 'rows.json'}", f"--config.output={self.output}"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        environment = os.environ | environment
        self.process = subprocess.Popen([*command, *flags], env=environment, **pipes)
        line = self.process.stdout.readline()
        assert line.startswith("Open http"), self.process.communicate()
        self.url = re.search(r"http://\S+", line)[0]

    def stop(self, number: int = signal.SIGINT) -> tuple[int, str, str]:
        self.process.send_signal(number)
        out, err = self.process.communicate(timeout=20)
        return self.process.returncode, out, err

    def edits(self) -> list[dict]:
        return [json.loads(line) for line in self.output.read_text().splitlines()]


@pytest.fixture
def start(tmp_path):
    servers = []

    def make(*flags, **options) -> Server:
        servers.append(Server(tmp_path, *flags, **options))
        return servers[-1]

    yield make
    for server in servers:
        if server.process.poll() is None:
            server.process.kill()
            server.process.communicate()


class Person:
    """A browser of one's own, watched: what it asks for, and what goes wrong in it."""

    def __init__(self, browser, url: str, name: str):
        self.context = browser.new_context(viewport={"width": 1280, "height": 860})
        self.requests, self.faults, self.url, self.name = [], [], url, name
        self.context.on("request", lambda request: self.requests.append(request.url))
        self.context.on("weberror", lambda error: self.faults.append(str(error.error)))
        self.context.on(
            "console", lambda m: self.faults.append(m.text) if m.type == "error" else None
        )
        self.page = self.tab()

    def tab(self):
        page = self.context.new_page()
        page.set_default_timeout(60_000)
        page.goto(self.url)
        return page

    def enter(self) -> None:
        self.page.fill("#name textarea, #name input", self.name)
        self.page.keyboard.press("Enter")
        self.page.wait_for_selector("#undo")

    def row(self) -> str:
        """The id of the row that is shown, "" where none is."""
        match = re.search(r"row (\S+)", self.page.inner_text("#prompt"))
        return match[1] if match else ""

    def text(self) -> str:
        return self.page.input_value("#edit textarea")

    def wait_for_message(self, text: str) -> None:
        self.page.wait_for_function(
            "text => document.querySelector('#message').innerText.includes(text)", arg=text
        )

    def type(self, text: str, shown: str = "") -> None:
        """Types a text, and waits for a part of it in the difference."""
        self.page.fill("#edit textarea", text)
        if shown:
            self.page.wait_for_selector(f"#difference ins:has-text('{shown}')")

    def edit(self, text: str) -> None:
        """Type it, see that it is compared, save it with the keyboard, see that it is saved."""
        row = self.row()
        self.type(text)
        self.page.wait_for_selector("#accept:has-text('Save the edit')")
        self.page.keyboard.press("Control+Enter")
        self.wait_for_message(f"Row {row} is saved")

    def press(self, keys: str, then: str) -> None:
        self.page.keyboard.press(keys)
        self.wait_for_message(then)

    def leave(self) -> None:
        self.context.close()
        own = (self.url, "data:", "blob:")
        assert self.requests
        assert not [url for url in self.requests if not url.startswith(own)]
        assert not self.faults


def test_two_annotators_edit_ten_rows(chromium, start):
    server = start("--config.release_minutes=0.05")
    ann, bob = (Person(chromium, server.url, name) for name in ("Ann", "Bob"))
    ann.enter()
    bob.enter()
    expected = []

    def edit(person: Person, row: str, text: str, saved: str = "") -> None:
        assert person.row() == row
        person.edit(text)
        record = next(record for record in ROWS if record["id"] == row)
        prompt = {name: record[name] for name in ("id", "instruction", "input")}
        texts = {"original": record["output"], "edited": saved or text}
        expected.append({**prompt, **texts, "annotator": person.name})
        assert server.edits() == expected  # before the next row is worked on

    # Ann edits, with a look at what she sees; Bob's response is text and nothing but text.
    assert (ann.text(), bob.text()) == ("It is 0.", EVIL)
    ann.type("It is zero.", shown="zero")
    assert ann.page.inner_text("#difference del") == "0"
    assert "25 % of the words changed" in ann.page.inner_text("#difference")
    ann.type("Nothing of it is left here.")
    ann.page.wait_for_selector("#difference .warn, #difference.warn, .difference.warn")
    assert "no longer a minimal edit" in ann.page.inner_text("#difference")
    assert EVIL in bob.page.inner_text("#difference")
    assert bob.page.inner_text("#prompt").count(EVIL) == 2
    assert bob.page.evaluate("window.evil") is None
    assert bob.page.locator("#prompt img, #difference img, #prompt script").count() == 0
    edit(ann, "r0", "It is zero.")
    edit(bob, "r1", EVIL + " Yes.")

    # Ann has the row with odd blanks: all of them come back; then a reload in the middle of a row.
    text = "  one\ntwo\t \n\nthree 😀\nfour"
    edit(ann, "r2", text, "  one\r\ntwo\t \r\n\r\nthree 😀\r\nfour")
    assert (bob.row(), ann.row()) == ("r3", "r4")
    ann.type("It is fo", shown="fo")
    ann.page.reload()
    ann.page.wait_for_selector("#undo")
    assert (ann.row(), ann.text()) == ("r4", "It is fo")
    ann.page.wait_for_function("document.activeElement.tagName === 'TEXTAREA'")
    ann.page.keyboard.press("Control+End")
    ann.page.keyboard.type("ur. ")
    ann.page.keyboard.press("Backspace")
    ann.page.wait_for_selector("#difference ins:has-text('four')")
    edit(ann, "r4", "It is four.")

    # A tab that is only open lets the others know.
    with ann.page.expect_request("**/run/predict"):
        pass

    # The same name in another tab has the same row; a second decision is refused.
    first, second = ann.page, ann.tab()
    second.fill("#name textarea, #name input", "Ann")
    second.click("#start")
    second.wait_for_selector("#undo")
    ann.page = second
    edit(ann, "r5", "It is five.")
    ann.page = first
    ann.type("It is the fifth.")
    ann.press("Control+Enter", "not saved: you decided this row before")
    assert (ann.row(), ann.text()) == ("r5", "It is the fifth.")
    second.close()

    # Undo, fine as it is, skip, decide later.
    ann.press("Alt+u", "Row r5 is open again")
    assert ann.text() == expected.pop()["edited"]
    edit(ann, "r5", "It is 5!")
    ann.press("Control+Enter", "Row r6 is fine as it is")
    ann.page.keyboard.press("Alt+n")
    ann.page.wait_for_selector("#prompt:has-text('row r8')")
    ann.press("Alt+s", "Row r8 is skipped")
    edit(ann, "r9", "It is nine.")
    edit(ann, "r7", "It is seven.")

    # Bob closes the browser with r3 open and half an edit; Ann ends up with it.
    bob.type("It is thr")
    bob.leave()
    while ann.row() != "r3":
        ann.page.wait_for_timeout(200)
        ann.page.keyboard.press("Alt+n")
    assert ann.text() == "It is 3."
    edit(ann, "r3", "It is three.")
    assert "No row is free for you now" in ann.page.inner_text("#prompt")
    progress = ann.page.inner_text("#progress")
    assert "9 of 10 rows done: 8 edited, 1 fine as they were, 1 skipped" in progress
    ann.leave()

    status, out, err = server.stop()
    assert status == 130
    assert out.startswith(f"8 edits in {server.output}; 1 rows were fine, 1 skipped; 9 of 10")
    assert err == "interrupted; run the same command to go on\n"
    assert len(records.read(str(server.output))) == 8


def test_a_full_disk_and_a_server_that_comes_back(chromium, start):
    server = start()
    ann = Person(chromium, server.url, "Ann")
    ann.enter()
    ann.edit("It is zero.")

    size = server.output.with_name("edits.jsonl.state.jsonl").stat().st_size
    unlimited = resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (size + 20, unlimited[1]))
    ann.type("Two tons of text.")
    ann.press("Control+Enter", "not saved: ")
    assert ann.row() == "r1"
    assert ann.text() == "Two tons of text."
    assert len(server.edits()) == 1
    resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, unlimited)
    ann.press("Control+Enter", "Row r1 is saved")

    # Killed, with the tab left open on a row: the tab goes on with the next server.
    ann.type("It is two, I say.", shown="say")
    server.stop(signal.SIGKILL)
    ann.page.keyboard.press("Control+Enter")
    ann.page.wait_for_timeout(500)
    assert ann.text() == "It is two, I say."
    server = start(port=int(server.url.rpartition(":")[2]))
    ann.page.wait_for_event("load")  # gradio loads the page again
    ann.page.wait_for_selector("#undo")
    assert (ann.row(), ann.text()) == ("r2", "It is two, I say.")
    ann.press("Control+Enter", "Row r2 is saved")
    ann.edit("It is three.")
    ann.faults.clear()  # requests that met no server
    ann.leave()
    texts = ["It is zero.", "Two tons of text.", "It is two, I say.", "It is three."]
    assert [edit["edited"] for edit in server.edits()] == texts


def test_another_input_gets_nothing_of_what_was_typed_for_the_last(chromium, start, tmp_path):
    server = start()
    ann = Person(chromium, server.url, "Ann")
    ann.enter()
    ann.type("It is zero, I say.", shown="say")
    server.stop(signal.SIGKILL)
    for path in tmp_path.glob("edits.jsonl*"):
        path.unlink()
    (tmp_path / "other.json").write_text(json.dumps([ROWS[0] | {"output": "Nought."}]))
    port = int(server.url.rpartition(":")[2])
    start(f"--config.input={tmp_path / 'other.json'}", port=port)
    ann.page.reload()
    ann.page.wait_for_selector("#undo")
    assert (ann.row(), ann.text()) == ("r0", "Nought.")
    ann.page.context.close()


def test_a_password_and_foreign_pages(chromium, start):
    server = start(**{PASSWORD: "open sesame"})
    for headers in ({"Origin": "http://evil.example"}, {"Host": "evil.example"}):
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(urllib.request.Request(server.url, headers=headers))
    for path in ("config", "gradio_api/info", "gradio_api/file=/etc/hostname"):
        with pytest.raises(urllib.error.HTTPError, match="HTTP Error 40"):
            urllib.request.urlopen(f"{server.url}/{path}")
    ann = Person(chromium, server.url, "Ann")
    for password in ("sesame", "open sesame"):
        ann.page.get_by_label("username").fill(" Ann  Lee")
        ann.page.get_by_label("password").fill(password)
        ann.page.get_by_role("button", name="Login").click()
        if password == "sesame":
            ann.page.wait_for_selector("text=Incorrect")
            ann.faults.clear()
    ann.page.wait_for_selector("#undo")
    ann.edit("It is zero.")
    ann.leave()
    assert server.edits()[0]["annotator"] == "Ann Lee"
