"""A server of the annotation page in its own process, and annotators with browsers."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

EVIL = "<script>evil = 1</script> ${evil = 2} {{value}} <img src=x onerror='evil = 3'>"
ROWS = [
    {"id": f"r{k}", "instruction": f"Name the number {k}.", "input": "", "output": f"It is {k}."}
    for k in range(10)
]  # fmt: skip
ROWS[1] |= {"instruction": EVIL, "input": EVIL, "output": EVIL}
ROWS[2] |= {"output": "  one\r\ntwo\t \r\n\r\nthree 😀\r\n"}


class Server:
    """``launch.annotate`` in its own process."""

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

    def edits(self, count: int) -> list[dict]:
        """The rows of the file once it has ``count`` rows; it is written just after the reply."""
        for _ in range(100):
            rows = [json.loads(line) for line in self.output.read_text().splitlines()]
            if len(rows) == count:
                return rows
            time.sleep(0.05)
        raise AssertionError(rows)


class Person:
    """An annotator with a browser context that records requests and errors."""

    def __init__(self, browser, url: str, name: str, width: int = 1280, height: int = 860):
        self.context = browser.new_context(viewport={"width": width, "height": height})
        self.requests, self.faults, self.url, self.name = [], [], url, name
        self.context.on("request", lambda request: self.requests.append(request.url))
        self.context.on("weberror", lambda error: self.faults.append(str(error.error)))
        self.context.on(
            "console", lambda m: self.faults.append(m.text) if m.type == "error" else None
        )
        self.page = self.tab()

    def tab(self):
        page = self.context.new_page()
        page.set_default_timeout(15_000)
        page.goto(self.url)
        return page

    def enter(self) -> None:
        self.page.fill("#name", self.name)
        self.page.keyboard.press("Enter")
        self.page.wait_for_selector("#bar, #message:has-text('new here')")
        if not self.page.is_visible("#bar"):
            self.page.click("#enter")
        self.page.wait_for_selector("#bar")

    def row(self) -> str:
        """The id of the displayed row, or ""."""
        match = re.search(r"Row (\S+)", self.page.inner_text("#prompt"))
        return match[1] if match else ""

    def text(self) -> str:
        return self.page.input_value("#edit")

    def wait_for_message(self, text: str) -> None:
        self.page.wait_for_function(
            "text => document.querySelector('#message').innerText.includes(text)", arg=text
        )

    def type(self, text: str, shown: str = "") -> None:
        """Types a text and waits until the difference shows ``shown`` as inserted."""
        self.page.fill("#edit", text)
        if shown:
            self.page.wait_for_selector(f"#difference ins:has-text('{shown}')")

    def edit(self, text: str) -> None:
        """Types an edit, waits for its difference, saves it by keyboard, waits for the message."""
        row = self.row()
        self.type(text)
        self.page.wait_for_selector("#save:has-text('Save the edit')")
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


@dataclasses.dataclass
class Team:
    """Two annotators at one server, and the edits expected in the file."""

    server: Server
    ann: Person
    bob: Person
    expected: list[dict] = dataclasses.field(default_factory=list)

    def edit(self, person: Person, row: str, text: str, saved: str = "") -> None:
        """Edits the person's current row, and checks that the file has it when the next shows."""
        assert person.row() == row
        person.edit(text)
        record = next(record for record in ROWS if record["id"] == row)
        prompt = {name: record[name] for name in ("id", "instruction", "input")}
        texts = {"original": record["output"], "edited": saved or text}
        self.expected.append({**prompt, **texts, "annotator": person.name})
        rows = self.server.edits(len(self.expected))
        assert [row | {"seconds": 0} for row in rows] == [e | {"seconds": 0} for e in self.expected]
