"""The page of launch.annotate in headless Chromium (``pytest -m browser``), and its exact files."""

import resource
import shutil
import signal
import time

import pytest
from browser_cases import EVIL, Person, Server, Team

from fgrlhf_jax.data import sources
from fgrlhf_jax.feedback.annotation.server import PASSWORD
from fgrlhf_jax.runtime.files import write_jsonl

pytestmark = pytest.mark.browser


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


@pytest.fixture
def team(chromium, start):
    server = start("--config.release_minutes=0.05")
    ann, bob = (Person(chromium, server.url, name) for name in ("Ann", "Bob"))
    for person in (ann, bob):
        person.enter()
    yield Team(server, ann, bob)
    for person in (ann, bob):
        person.leave()


AT_ONCE = """text => {
  $("edit").value = text;
  $("edit").dispatchEvent(new Event("input"));
  return $("save").textContent;
}"""


def test_editing(team):
    ann, bob = team.ann, team.bob
    assert (ann.text(), bob.text()) == ("It is 0.", EVIL)
    ann.type("It is zero.", shown="zero")
    assert ann.page.inner_text("#difference del") == "0"
    assert "25% of the words changed" in ann.page.inner_text("#difference")
    # Bob's response is shown as text, not as markup.
    assert EVIL in bob.page.inner_text("#difference")
    assert bob.page.inner_text("#prompt").count(EVIL) == 2
    assert bob.page.evaluate("window.evil") is None
    assert bob.page.locator("#prompt img, #difference img, #prompt script").count() == 0
    assert ann.page.evaluate(AT_ONCE, "It is 0.") == "Fine as it is"
    assert ann.page.evaluate(AT_ONCE, "It is zero.") == "Save the edit"
    team.edit(ann, "r0", "It is zero.")
    team.edit(bob, "r1", EVIL + " Yes.")
    # Unusual blanks are kept.
    text = "  one\ntwo\t \n\nthree 😀\nfour"
    team.edit(ann, "r2", text, "  one\r\ntwo\t \r\n\r\nthree 😀\r\nfour")
    # An open tab sends pings.
    with ann.page.expect_request(lambda request: '"ping"' in (request.post_data or "")):
        pass
    # A huge paste is refused at once.
    ann.context.grant_permissions(["clipboard-read", "clipboard-write"])
    began, text = time.monotonic(), ann.text()
    ann.page.evaluate("navigator.clipboard.writeText('many words '.repeat(200_000))")
    ann.page.focus("#edit")
    ann.press("Control+v", f"{2_200_000 + len(text)} characters are too many: 50000 at most")
    assert ann.text() == text
    ann.type("It is three, or so.", shown="so")
    assert time.monotonic() - began < 10


def test_two_tabs_of_one_annotator_and_every_key(team):
    ann = team.ann
    first, second = ann.page, ann.tab()
    second.wait_for_selector("#bar")  # as the same person
    ann.page = second
    team.edit(ann, "r0", "It is zero.")
    ann.page = first
    ann.type("It is nought.")
    ann.press("Control+Enter", "not saved: you decided this row before")
    assert (ann.row(), ann.text()) == ("r0", "It is nought.")
    assert ann.page.inner_text("#difference ins") == "nought"
    assert "Ann: 1 decided" in ann.page.inner_text("#progress")
    second.close()
    ann.press("Alt+u", "Row r0 is open again")
    assert (ann.text(), team.expected.pop()["edited"]) == ("It is nought.", "It is zero.")
    ann.page.click("[data-action=versions]")
    ann.page.wait_for_selector("#found:has-text('It is zero.')")
    ann.page.keyboard.press("Escape")
    team.edit(ann, "r0", "It is 0!")
    ann.press("Control+Enter", "Row r2 is fine as it is")
    ann.page.keyboard.press("Alt+n")
    ann.page.wait_for_selector("#prompt:has-text('Row r4')")
    ann.press("Alt+s", "Row r4 is skipped")
    team.edit(ann, "r5", "It is five.")
    assert "Ann: 4 decided, 5 left; all: 3 of 10 done" in ann.page.inner_text("#progress")


def test_the_row_of_an_annotator_who_left_goes_to_others(team):
    ann, bob = team.ann, team.bob
    bob.type("It is o", shown="o")
    bob.page.close()
    for row in ("r0", *(f"r{k}" for k in range(2, 10))):
        ann.press("Control+Enter", f"Row {row} is fine as it is")
    while ann.row() != "r1":
        ann.page.wait_for_timeout(200)
        ann.page.click("#next")
    team.edit(ann, "r1", EVIL + " Yes.")
    assert "All rows are done" in ann.page.inner_text("#prompt")
    status, out, err = team.server.stop()
    counts = "1 edited, 9 fine, 0 skipped; 10 of 10 rows are done"
    assert (status, out) == (130, f"{team.server.output}: {counts}\n")
    assert err == "interrupted; the same command goes on from what it has saved, or begins again\n"
    assert len(sources.read(str(team.server.output))) == 1


def test_confirmation_earlier_versions_and_search(team):
    ann = team.ann
    ann.type("It is zero, I think.", shown="think")
    ann.type("Nothing of it is left here.", shown="Nothing")
    assert "no longer a minimal edit" in ann.page.inner_text("#difference")
    ann.page.keyboard.press("Control+Enter")
    ann.page.wait_for_selector("#confirm[open]")
    ann.page.keyboard.press("Enter")  # back to the edit
    ann.page.reload()
    ann.page.wait_for_selector("#bar")
    assert ann.text() == "Nothing of it is left here."
    ann.page.click("#reset")
    assert ann.text() == "It is 0."
    ann.page.wait_for_selector("#save:has-text('Fine as it is')")
    ann.page.click("#versions")
    ann.page.locator("#list section", has_text="I think").get_by_role("button").click()
    assert ann.text() == "It is zero, I think."
    ann.type("Nothing of it is left here.", shown="Nothing")
    ann.page.click("#notes summary")
    ann.page.fill("#tags", "odd, wrong fact")
    ann.page.fill("#comment", "It was hopeless.")
    ann.page.wait_for_timeout(1100)
    ann.page.keyboard.press("Control+Enter")
    ann.page.click("#confirmed")
    ann.wait_for_message("Row r0 is saved")
    (row,) = team.server.edits(1)
    assert (row["over_limit"], row["tags"]) == (True, ["odd", "wrong fact"])
    assert row["comment"] == "It was hopeless."
    assert 1 <= row["seconds"] < 60
    ann.page.click("#rows")
    ann.page.fill("#search", "hopeless")
    ann.page.click("#found summary")
    ann.page.click("#found [data-action=reopen]")
    ann.wait_for_message("Row r0 is open again")
    assert ann.page.input_value("#comment") == "It was hopeless."
    assert team.server.edits(0) == []


CONTRAST = """() => {
  const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = (colour) => [.2126, .7152, .0722].reduce((sum, weight, k) => {
    const value = colour[k] / 255;
    return sum + weight * (value <= .04 ? value / 12.92 : ((value + .055) / 1.055) ** 2.4);
  }, 0);
  const ground = (node) => {
    for (; node; node = node.parentElement) {
      const colour = numbers(getComputedStyle(node).backgroundColor);
      if (colour.length === 3) return colour;
    }
    return [255, 255, 255];
  };
  return [...document.querySelectorAll("body *")].filter((node) => node.checkVisibility() &&
    [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim())
  ).map((node) => {
    const both = [light(numbers(getComputedStyle(node).color)), light(ground(node))];
    return [(Math.max(...both) + .05) / (Math.min(...both) + .05), node.outerHTML.slice(0, 80)];
  }).filter(([ratio]) => ratio < 4.5);
}"""

CODE = f"```\n{'name' * 20} = " + "x + " * 2000


@pytest.mark.parametrize(("width", "height"), [(1280, 860), (390, 780)])
def test_layout_on_a_desk_and_a_phone(chromium, start, tmp_path, width, height):
    (tmp_path / "g.md").write_text("# House rules\n\nKeep `code`.\n")
    hebrew = {"instruction": "מה?", "output": "בירת צרפת היא ליון (Lyon), עיר גדולה!"}
    texts = {"user": "Add. " * 300, "assistant": "To what?"}, {"user": "To x.", "assistant": CODE}
    turns = [{"role": role, "content": text} for each in texts for role, text in each.items()]
    write_jsonl(tmp_path / "own.jsonl", [{"messages": turns}, hebrew])
    files = {"input": tmp_path / "own.jsonl", "guidelines": tmp_path / "g.md"}
    server = start(*(f"--config.{name}={path}" for name, path in files.items()))
    ann = Person(chromium, server.url, "Ann with a name of many words", width, height)
    page, read = ann.page, "getComputedStyle(document.querySelector('{}')).{}"

    def check():
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            assert page.evaluate(CONTRAST) == []
        for box in ("document.documentElement", "$('list')", "$('progress')"):
            assert page.evaluate(f"{box}.scrollWidth - {box}.clientWidth") <= 0

    page.wait_for_selector("h1:has-text('House rules')")
    check()
    ann.enter()
    at_end = "$('prompt').scrollHeight - $('prompt').clientHeight < $('prompt').scrollTop + 1"
    assert page.evaluate(at_end)
    for k in (1, 2):
        assert page.locator("#save").bounding_box()["y"] + 30 < height
        font = page.evaluate(read.format("#edit", "fontFamily"))
        assert ("monospace" in font) == (k == 1)
        for selector in ("#prompt p", "#edit", "#difference .text"):
            assert page.evaluate(read.format(selector, "direction")) == ("ltr" if k == 1 else "rtl")
        ann.type(ann.text().replace("x + x", "x - x") + " ok", shown="ok")
        check()
        last, panel = (page.locator(f"#difference {part}").last for part in ("ins", ".text"))
        y, box = last.bounding_box()["y"], panel.bounding_box()
        assert box["y"] <= y < box["y"] + box["height"]
        assert page.locator("#progress").bounding_box()["height"] < 40
        ann.press("Control+Enter", f"Row {k} is saved")
    page.click("#rows")
    page.wait_for_selector("#list[open] details")
    check()
    page.click("#list form button")
    page.get_by_role("button", name="Guidelines").click()
    assert page.locator("dialog h1").is_visible()
    ann.leave()


def test_a_full_disk_and_a_restarted_server(chromium, start):
    server = start("--config.release_minutes=0.05")
    ann = Person(chromium, server.url, "Ann")
    ann.enter()
    ann.edit("It is zero.")
    size = max(path.stat().st_size for path in server.output.parent.glob("*.sqlite*"))
    unlimited = resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (size, unlimited[1]))
    ann.page.fill("#edit", EVIL + " Two tons of text.")
    ann.press("Control+Enter", "free some space, or choose another output")
    assert (ann.row(), ann.text()) == ("r1", EVIL + " Two tons of text.")
    assert len(server.edits(1)) == 1
    resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, unlimited)
    ann.press("Control+Enter", "Row r1 is saved")
    # Killed while the tab shows a row: the tab continues with the next server.
    text = ann.text() + " I say."
    ann.type(text, shown="say")
    server.stop(signal.SIGKILL)
    ann.press("Control+Enter", "the server does not answer. Your text is still here")
    ann.page.fill("#edit", text + " So.")
    assert (ann.row(), ann.text()) == ("r2", text + " So.")
    server = start("--config.release_minutes=0.05", port=int(server.url.rpartition(":")[2]))
    ann.page.wait_for_selector("#message:empty", state="attached")
    ann.page.reload()
    ann.page.wait_for_selector("#bar")
    assert (ann.row(), ann.text()) == ("r2", text + " So.")
    ann.press("Control+Enter", "Row r2 is saved")
    ann.edit("It is three.")
    ann.faults.clear()  # requests that met no server
    ann.leave()
    assert [edit["edited"] for edit in server.edits(4)][-1] == "It is three."


def test_a_password(chromium, start, tmp_path):
    (tmp_path / "g.md").write_text("A rule.\n\n" * 100)
    server = start(f"--config.guidelines={tmp_path / 'g.md'}", **{PASSWORD: "open sesame"})
    ann = Person(chromium, server.url, "Ann", 390, 844)
    for password in ("sesame", "open sesame"):
        ann.page.fill("#name", " Ann  Lee")
        ann.page.fill("#password", password)
        ann.page.click("#enter")
        if password == "sesame":
            ann.wait_for_message("that is not the password")
            assert ann.page.locator("#message").bounding_box()["y"] < 800
            assert ann.page.input_value("#password") == ""
            assert ann.page.evaluate("document.activeElement.id") == "password"
    ann.page.wait_for_selector("#bar")
    ann.edit("It is zero.")
    ann.page.click("#leave")
    assert ann.page.input_value("#name") == ann.page.input_value("#password") == ""
    ann.leave()
    assert server.edits(1)[0]["annotator"] == "Ann Lee"
