"""The annotators' page (gradio): a prompt, its response to edit in place, the live difference.

The name and the row of a tab are kept in the tab and come with every event, so a reload, a second
tab or a restart of the server loses nothing. With a password the name is that of the login. gradio
does all of this but for what its `head` and `js` hooks do here: keyboard shortcuts; a name and a
text that survive a reload of this tab, which gradio makes by itself when the server was restarted,
without being known to other tabs (sessionStorage). What is saved is read from the text field
itself, not from gradio's copy of it, which may lag behind.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.feedback.annotation import agreement
from fgrlhf_jax.feedback.annotation import html as annotate_html
from fgrlhf_jax.feedback.annotation.history import FINE, Item, digest
from fgrlhf_jax.feedback.annotation.store import Annotations

if TYPE_CHECKING:
    import gradio

BEAT = 20.0  # seconds, at most, between two signs of life of a tab

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
WITH_TEXT_OF_FIELD = """(name, row, text) => {
  const field = document.querySelector("#edit textarea");
  return [name, row, field ? field.value : text];
}"""
KEEP_TYPED = """(name, row, text, of) => {
  if (row) sessionStorage.setItem("typed", JSON.stringify([row, text, of]));
  return [name, row, text, of];
}"""
KNOWN = """() => [sessionStorage.getItem("annotator") || "",
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
    """What an annotator is shown: a row with the text so far, or none; and what is to be said."""

    name: str
    item: Item | None
    text: str
    said: str
    wrong: bool = False


def view(store: Annotations, name: str, said: str = "", put_back: str | None = None) -> View:
    """The annotator's row, or the next one. What was saved before stays saved if this fails."""
    try:
        item = store.take(name, put_back)
    except InputError as error:
        return View(name, None, "", f"{said} No row was opened: {error}".strip(), wrong=True)
    return View(name, item, store.text(name, item.id) if item else "", said)


def reopened(store: Annotations, name: str, row: str, typed: str, of: str) -> View:
    """After a reload, with what was last typed in this tab, should the server not know it.

    of: digest of the item that it was typed for; the server may have another input by now.
    """
    shown = view(store, name)
    if shown.item is None or shown.item.id != row or digest([shown.item], []) != of:
        return shown
    ours = annotate_html.with_line_ends_of(shown.item.original, typed)
    store.draft(name, row, ours, older=True)
    return view(store, name)


def accept(store: Annotations, name: str, row: str, text: str) -> View:
    text = annotate_html.with_line_ends_of(store.item(row).original, text)
    fine = store.accept(name, row, text).verdict == FINE
    return view(store, name, f"Row {row} is fine as it is." if fine else f"Row {row} is saved.")


def skip(store: Annotations, name: str, row: str) -> View:
    store.skip(name, row)
    return view(store, name, f"Row {row} is skipped.")


def undo(store: Annotations, name: str, row: str) -> View:
    if row != store.open_row(name) and not store.has_decided(name, row):  # pressed twice
        return view(store, name)
    return view(store, name, f"Row {store.undo(name).id} is open again.")


def put_back(store: Annotations, name: str, row: str) -> View:
    return view(store, name, put_back=row)


def rest(store: Annotations, name: str) -> str:
    """What is said where an annotator has no row."""
    figures = store.progress(name)
    if figures["done"] < figures["rows"]:
        return (
            "No row is free for you now: the others have been skipped by you, or somebody has "
            "them open. Look again with Next."
        )
    agreed = agreement.agreement(store.items, store.decisions())
    return "All rows are done. Thank you!" + (
        f" {agreement.sentence(agreed)}." if agreed else ""
    )


def build(
    store: Annotations, *, max_change_ratio: float, logged_in: bool = False
) -> "gradio.Blocks":
    """The page.

    Args:
      store: what is annotated.
      max_change_ratio: share of changed words above which an edit is no longer minimal.
      logged_in: names are those of gradio's login.

    Raises:
      InputError: where gradio is not installed.
    """
    try:
        import gradio as gr
    except ImportError as error:
        raise InputError("the page needs gradio: pip install 'fgrlhf_jax[annotate]'") from error

    with gr.Blocks(title="Minimal edits", analytics_enabled=False) as page:
        name, row, item_digest = (gr.Textbox(visible=False) for _ in range(3))  # of this tab
        progress = gr.HTML(elem_id="progress")
        with gr.Column(visible=False) as entrance:
            asked = gr.Textbox(label="Your name", elem_id="name", max_lines=1, autofocus=True)
            start = gr.Button("Start", elem_id="start", variant="primary")
        message = gr.HTML(elem_id="message")
        with gr.Column(visible=False) as work:
            prompt = gr.HTML(elem_id="prompt")
            with gr.Row(visible=False) as sides:
                label = "Response: change as little as makes it right"
                wide = {"min_width": 360}  # or one below the other
                edit = gr.Textbox(label=label, elem_id="edit", lines=10, max_lines=28, **wide)
                difference = gr.HTML(elem_id="difference", **wide)
            with gr.Row():
                accepting = gr.Button(elem_id="accept", variant="primary")
                skipping = gr.Button("Skip (Alt+S)", elem_id="skip")
                later = gr.Button("Next, decide later (Alt+N)", elem_id="next")
                undoing = gr.Button("Undo (Alt+U)", elem_id="undo")
        beat = gr.Timer(min(BEAT, max(0.5, store.release_after / 3)))
        everything = [
            name,
            row,
            item_digest,
            progress,
            entrance,
            message,
            work,
            prompt,
            sides,
            edit,
        ]
        everything += [difference, accepting, skipping]

        def compared(item: Item, text: str) -> dict:
            verb = "Fine as it is" if text == item.original else "Save the edit"
            return {
                difference: annotate_html.difference(item.original, text, max_change_ratio),
                accepting: gr.Button(f"{verb} (Ctrl+Enter)", visible=True),
            }

        def shown(view: View) -> dict:
            item, here = view.item, view.item is not None
            nothing = {difference: "", accepting: gr.Button(visible=False)}
            ended = "" if here or view.wrong else rest(store, view.name)
            return {
                name: view.name,
                row: item.id if here else "",
                item_digest: digest([item], []) if here else "",
                progress: annotate_html.progress(store.progress(view.name), view.name),
                entrance: gr.Column(visible=False),
                message: annotate_html.message(view.said, view.wrong),
                work: gr.Column(visible=True),
                prompt: annotate_html.prompt(item) if here else annotate_html.note(ended),
                sides: gr.Row(visible=here),
                edit: view.text,
                skipping: gr.Button(visible=here),
                **(compared(item, view.text) if here else nothing),
            }

        def of(request: gr.Request, given: str) -> str:
            return annotate_html.clean_name(request.username if logged_in else given)

        def does(act: Callable[..., View]) -> Callable[..., dict]:
            """An event of a named annotator; a complaint leaves the rest of the page as it is."""

            def handle(request: gr.Request, given, *values):
                try:
                    return shown(act(store, of(request, given), *values))
                except InputError as error:
                    return {message: annotate_html.message(f"{error}.", wrong=True)}

            return handle

        def opened(request: gr.Request, given, *typed):
            result = does(reopened)(request, given, *typed) if logged_in or given else {}
            return result if work in result else {**result, entrance: gr.Column(visible=True)}

        def typed(request: gr.Request, given, id, text, _):
            try:
                item = store.item(id)
                text = annotate_html.with_line_ends_of(item.original, text)
                kept = store.draft(of(request, given), id, text)
            except InputError:  # no row is open
                return gr.skip()
            return compared(item, text) if kept else gr.skip()

        def lives(request: gr.Request, given):
            if given:
                store.touch(of(request, given))

        quiet = {"show_progress": "hidden", "queue": False, "api_visibility": "private"}
        tab = [name, row, edit]
        page.load(opened, [*tab, item_digest], everything, js=KNOWN, **quiet).then(js=FOCUS)
        for enters in (start.click, asked.submit):
            entered = enters(does(view), [asked], everything, **quiet)
            entered.then(inputs=[name], js=KEEP_NAME).then(js=FOCUS)
        # Not edit.input: gradio tells of keys only, not of what is pasted, cut or deleted.
        drawn = {"js": KEEP_TYPED, "trigger_mode": "always_last", **quiet}
        edit.change(typed, [*tab, item_digest], [difference, accepting], **drawn)
        beat.tick(lives, [name], **quiet)
        for button, act, inputs, js in (
            (accepting, accept, tab, WITH_TEXT_OF_FIELD),
            (skipping, skip, [name, row], None),
            (later, put_back, [name, row], None),
            (undoing, undo, [name, row], None),
        ):
            # Not once: while an event is about to end, gradio would drop the next without a word.
            often = {"js": js, "trigger_mode": "multiple", **quiet}
            button.click(does(act), inputs, everything, **often).then(js=FOCUS)
    return page
