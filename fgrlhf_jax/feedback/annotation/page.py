"""The annotators' page (gradio): a prompt, its response to edit in place, the live difference.

The name and the row of a tab are kept in the tab and come with every event, so a reload, a second
tab or a restart of the server loses nothing. With a password the name is that of the login. The
`head` and `js` hooks add keyboard shortcuts and, in sessionStorage, a name and a text that survive
a reload of this tab (gradio reloads it when the server was restarted) and that other tabs do not
see. What is saved is read from the text field itself, not from gradio's copy, which may lag behind.
"""

import os
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.feedback.annotation import agreement, html
from fgrlhf_jax.feedback.annotation.history import FINE, Item, input_digest
from fgrlhf_jax.feedback.annotation.store import Annotations

if TYPE_CHECKING:
    import gradio

HEARTBEAT = 20.0  # seconds, at most, between two signs of life of a tab

HEAD = """
<script>
document.addEventListener("keydown", (event) => {
  const plain = event.altKey && !event.ctrlKey && !event.metaKey && !event.shiftKey;
  const id = (event.ctrlKey || event.metaKey) && event.key === "Enter" ? "accept"
    : plain ? {KeyS: "skip", KeyN: "next", KeyU: "undo"}[event.code] : undefined;
  const button = id && document.getElementById(id);
  if (!button || event.isComposing) return;
  event.preventDefault();
  if (!event.repeat) button.click();
}, true);
</script>
"""
READ_TEXT_FIELD = """(name, row, text) => {
  const field = document.querySelector("#edit textarea");
  return [name, row, field ? field.value : text];
}"""
KEEP_TYPED = """(name, row, text, digest) => {
  if (row) sessionStorage.setItem("typed", JSON.stringify([row, text, digest]));
  return [name, row, text, digest];
}"""
RESTORE_TYPED = """() => [sessionStorage.getItem("annotator") || "",
  ...JSON.parse(sessionStorage.getItem("typed") || '["", "", ""]')]"""
KEEP_NAME = '(name) => { sessionStorage.setItem("annotator", name); }'
FOCUS = """() => {
  const look = (times) => {  // until the field is there
    const field = document.querySelector("#edit textarea");
    if (field) field.focus(); else if (times) setTimeout(look, 50, times - 1);
  };
  look(20);
}"""


class View(NamedTuple):
    """What an annotator is shown: a row with the text so far, or none; and a message."""

    name: str
    item: Item | None
    text: str
    message: str
    wrong: bool = False


def view(store: Annotations, name: str, message: str = "", put_back: str | None = None) -> View:
    """The annotator's row, or the next one. What was saved before stays saved if this fails."""
    try:
        item = store.take(name, put_back)
    except InputError as error:
        message = f"{message} No row was opened: {error}".strip()
        return View(name, None, "", message, wrong=True)
    return View(name, item, store.text(name, item.id) if item else "", message)


def reopen(store: Annotations, name: str, row: str, typed: str, digest: str) -> View:
    """The view after a reload, with the text last typed in this tab if the server lacks it.

    Args:
      digest: of the item that the text was typed for; the server may have another input by now.
    """
    shown = view(store, name)
    if shown.item is None or shown.item.id != row or input_digest([shown.item], []) != digest:
        return shown
    text = html.with_line_ends_of(shown.item.original, typed)
    store.draft(name, row, text, older=True)
    return view(store, name)


def accept(store: Annotations, name: str, row: str, text: str) -> View:
    text = html.with_line_ends_of(store.item(row).original, text)
    fine = store.accept(name, row, text).verdict == FINE
    return view(store, name, f"Row {row} is fine as it is." if fine else f"Row {row} is saved.")


def skip(store: Annotations, name: str, row: str) -> View:
    store.skip(name, row)
    return view(store, name, f"Row {row} is skipped.")


def undo(store: Annotations, name: str, row: str) -> View:
    if not store.may_undo(name, row):  # pressed twice
        return view(store, name)
    return view(store, name, f"Row {store.undo(name).id} is open again.")


def put_back(store: Annotations, name: str, row: str) -> View:
    return view(store, name, put_back=row)


def no_row_message(store: Annotations, name: str) -> str:
    """Why an annotator has no row: all are done, or none is free."""
    progress = store.progress(name)
    if progress["done"] < progress["rows"]:
        return (
            "No row is free for you now: the others have been skipped by you, or somebody has "
            "them open. Look again with Next."
        )
    agreed = agreement.measure_agreement(store.items, store.decisions())
    sentence = f" {agreement.describe(agreed)}." if agreed else ""
    return f"All rows are done. Thank you!{sentence}"


def build(
    store: Annotations, *, max_change_ratio: float, logged_in: bool = False
) -> "gradio.Blocks":
    """Makes the page.

    Args:
      store: what is annotated.
      max_change_ratio: share of changed words above which an edit is no longer minimal.
      logged_in: names are those of gradio's login.

    Raises:
      InputError: where gradio is not installed.
    """
    # gradio prepares connections when it is imported, and fails with proxies or certificates that
    # are unusable; the page makes none.
    unneeded = ("all_proxy", "http_proxy", "https_proxy", "ssl_cert_file", "ssl_cert_dir")
    hidden = {name: os.environ.pop(name) for name in list(os.environ) if name.lower() in unneeded}
    try:
        import gradio
    except ModuleNotFoundError as error:
        raise InputError(
            f"the page needs gradio ({error}): pip install 'fgrlhf_jax[annotate]'"
        ) from error
    finally:
        os.environ.update(hidden)
    with gradio.Blocks(title="Minimal edits", analytics_enabled=False) as blocks:
        page = _Page(gradio, store, max_change_ratio, logged_in)
        page.connect(blocks)
    return blocks


class _Page:
    """The components of the page, and the handlers of their events."""

    def __init__(self, gr, store: Annotations, max_change_ratio: float, logged_in: bool):
        self.gr, self.store = gr, store
        self.max_change_ratio, self.logged_in = max_change_ratio, logged_in
        self.name, self.row, self.digest = (gr.Textbox(visible=False) for _ in range(3))
        self.progress = gr.HTML(elem_id="progress")
        with gr.Column(visible=False) as self.entrance:
            self.name_field = gr.Textbox(
                label="Your name", elem_id="name", max_lines=1, autofocus=True
            )
            self.start = gr.Button("Start", elem_id="start", variant="primary")
        self.message = gr.HTML(elem_id="message")
        with gr.Column(visible=False) as self.work:
            self.prompt = gr.HTML(elem_id="prompt")
            with gr.Row(visible=False) as self.sides:
                label = "Response: change as little as makes it right"
                wide = {"min_width": 360}  # or one below the other
                self.edit = gr.Textbox(label=label, elem_id="edit", lines=10, max_lines=28, **wide)
                self.difference = gr.HTML(elem_id="difference", **wide)
            with gr.Row():
                self.accept = gr.Button(elem_id="accept", variant="primary")
                self.skip = gr.Button("Skip (Alt+S)", elem_id="skip")
                self.next = gr.Button("Next, decide later (Alt+N)", elem_id="next")
                self.undo = gr.Button("Undo (Alt+U)", elem_id="undo")
        self.timer = gr.Timer(min(HEARTBEAT, max(0.5, store.release_after / 3)))

    def connect(self, blocks: "gradio.Blocks") -> None:
        """Gives every event its handler."""
        hidden = {"show_progress": "hidden", "queue": False, "api_visibility": "private"}
        tab = [self.name, self.row, self.edit]
        everything = [*tab, self.digest, self.progress, self.entrance, self.message, self.work]
        everything += [self.prompt, self.sides, self.difference, self.accept, self.skip]
        handler, update = self.handler, self.update
        blocks.load(
            handler(self.on_load), [*tab, self.digest], everything, js=RESTORE_TYPED, **hidden
        ).then(js=FOCUS)
        for enter in (self.start.click, self.name_field.submit):
            entered = enter(handler(partial(update, view)), [self.name_field], everything, **hidden)
            entered.then(inputs=[self.name], js=KEEP_NAME).then(js=FOCUS)
        # Not edit.input: gradio tells of keys only, not of what is pasted, cut or deleted.
        drawn = {"js": KEEP_TYPED, "trigger_mode": "always_last", **hidden}
        outputs = [self.difference, self.accept]
        self.edit.change(handler(self.on_typed), [*tab, self.digest], outputs, **drawn)
        self.timer.tick(handler(self.on_timer), [self.name], **hidden)
        for button, action, inputs, js in (
            (self.accept, accept, tab, READ_TEXT_FIELD),
            (self.skip, skip, tab[:2], None),
            (self.next, put_back, tab[:2], None),
            (self.undo, undo, tab[:2], None),
        ):
            # Not "once": while an event is about to end, gradio would drop the next silently.
            often = {"js": js, "trigger_mode": "multiple", **hidden}
            clicked = button.click(handler(partial(update, action)), inputs, everything, **often)
            clicked.then(js=FOCUS)

    def handler(self, method: Callable) -> Callable:
        """A method as a handler: gradio passes the request where the signature has its type."""

        def handle(request: self.gr.Request, name, *values):
            return method(request.username if self.logged_in else name, *values)

        return handle

    def update(self, action: Callable[..., View], name: str, *values) -> dict:
        """Shows the view after an action; a refusal leaves the rest of the page as it is."""
        try:
            return self.show(action(self.store, html.clean_name(name), *values))
        except InputError as error:
            return {self.message: html.message(f"{error}.", wrong=True)}

    def on_load(self, name: str, *typed) -> dict:
        """Shows the annotator's row, or asks for a name."""
        updates = self.update(reopen, name, *typed) if name else {}
        if self.work not in updates:
            updates[self.entrance] = self.gr.Column(visible=True)
        return updates

    def on_typed(self, name: str, row: str, text: str, _) -> dict:
        """Keeps the draft and shows its difference."""
        try:
            item = self.store.item(row)
            text = html.with_line_ends_of(item.original, text)
            is_open = self.store.draft(html.clean_name(name), row, text)
        except InputError:  # no row is open
            is_open = False
        return self.compare(item, text) if is_open else self.gr.skip()

    def on_timer(self, name: str) -> None:
        """Notes that the tab is still open."""
        if name:
            self.store.touch(html.clean_name(name))

    def show(self, view: View) -> dict:
        """The updates of the components that show a view."""
        gr, item = self.gr, view.item
        has_item = item is not None
        if has_item:
            prompt, compared = html.prompt(item), self.compare(item, view.text)
        else:
            prompt = html.note("" if view.wrong else no_row_message(self.store, view.name))
            compared = {self.difference: "", self.accept: gr.Button(visible=False)}
        return {
            self.name: view.name,
            self.row: item.id if has_item else "",
            self.digest: input_digest([item], []) if has_item else "",
            self.progress: html.progress(self.store.progress(view.name), view.name),
            self.entrance: gr.Column(visible=False),
            self.message: html.message(view.message, view.wrong),
            self.work: gr.Column(visible=True),
            self.prompt: prompt,
            self.sides: gr.Row(visible=has_item),
            self.edit: view.text,
            self.skip: gr.Button(visible=has_item),
            **compared,
        }

    def compare(self, item: Item, text: str) -> dict:
        """The updates of the components that depend on the text typed."""
        verb = "Fine as it is" if text == item.original else "Save the edit"
        return {
            self.difference: html.difference(item.original, text, self.max_change_ratio),
            self.accept: self.gr.Button(f"{verb} (Ctrl+Enter)", visible=True),
        }
