"""The actions of the annotation page: each changes annotations and returns what to show next.

Every request has the annotator's name and the tab's row, so that a reload, a second tab or a
restart of the server loses nothing. The macros of ``fragments.html`` render texts escaped.
"""

import dataclasses
import datetime
from collections.abc import Mapping
from typing import Any

from fgrlhf_jax.data.row_fields import is_unicode
from fgrlhf_jax.data.text_forms import restore_line_ends
from fgrlhf_jax.data.words import mark_changes
from fgrlhf_jax.errors import InputError
from fgrlhf_jax.feedback.annotation import agreement
from fgrlhf_jax.feedback.annotation.database import DRAFT
from fgrlhf_jax.feedback.annotation.items import EDITED, FINE, SKIPPED, Decision, Item, input_digest
from fgrlhf_jax.feedback.annotation.store import Annotations
from fgrlhf_jax.feedback.edits import minimality
from fgrlhf_jax.report.html import ENVIRONMENT

LONGEST = 50_000  # characters of a response; comparing longer ones takes seconds
ACTIONS = ["open", "draft", "save", "skip", "next", "reopen", "rows", "versions", "ping"]
LISTED = 20  # maximal number of rows or texts in a list
TEMPLATES = "feedback/annotation/assets"

Json = dict[str, Any]


def render(name: str, *values: Any) -> str:
    """Returns the HTML of a macro of ``fragments.html``."""
    macros = ENVIRONMENT.get_template(f"{TEMPLATES}/fragments.html").module
    return str(getattr(macros, name)(*values))


def difference(original: str, text: str, limit: float) -> str:
    """Returns the changes as HTML, with a warning if the word change ratio is above ``limit``."""
    metrics, parts = minimality.measure(original, text), mark_changes(original, text)
    return render("difference", metrics, parts, limit, text != original and not metrics.changes)


@dataclasses.dataclass(frozen=True)
class Page:
    """The actions; each takes a tab's texts as a draft and the data of the request."""

    store: Annotations
    limit: float  # share of changed words above which an edit is no longer minimal

    def act(self, name: str, data: Mapping) -> Json:
        """Runs the ``action`` in ``data`` with the tab's texts; returns what the tab shows."""
        try:
            action, typed = ACTIONS[ACTIONS.index(data["action"])], _read_typed(name, data)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise InputError(
                f"the server cannot read this request ({error!s:.100}); reload the page"
            ) from error
        try:
            return getattr(self, action)(typed, data)
        except InputError as error:
            if action not in ("save", "skip"):
                raise
            # Show why, for example that another tab decided the row, and keep the text.
            return {**self.draft(typed, data), "message": f"{error}.", "wrong": True}

    def view(self, name: str, message: str = "", put_back: str | None = None) -> Json:
        """Returns the annotator's open or next row; an InputError is shown as a message."""
        try:
            item = self.store.take(name, put_back)
        except InputError as error:
            return {"message": f"{message} No row was opened: {error}.".strip(), "wrong": True}
        progress = self.store.progress(name)
        if item is None:
            latest, agreed = Decision("", name, DRAFT, ""), None
            if progress["done"] == progress["rows"]:
                agreed = agreement.measure_agreement(self.store.items, self.store.decisions())
            about = agreement.describe(agreed) if agreed else ""
            shown = {"prompt": render("no_row", progress, name, about)}
        else:
            latest = self.store.latest(name, item.id)
            shown = {"prompt": render("prompt", item), "original": item.original}
            shown |= {"digest": input_digest([item]), **self.compare(item, latest.text)}
        shown |= {"message": message, "progress": render("progress", progress, name)}
        return {"row": latest.id, **dataclasses.asdict(latest), **shown, "longest": LONGEST}

    def compare(self, item: Item, text: str) -> Json:
        changes = difference(item.original, text, self.limit)
        edits = render("edits", item.edits, text)
        return {"difference": changes, "changed": text != item.original, "edits": edits}

    def with_line_ends(self, typed: Decision) -> tuple[Item, Decision]:
        item = self.store.item(typed.id)
        if len(typed.text) > LONGEST:
            raise InputError(f"not saved: it has {len(typed.text)} characters; {LONGEST} at most")
        return item, dataclasses.replace(typed, text=restore_line_ends(typed.text, item.original))

    def open(self, typed: Decision, data: Mapping) -> Json:
        """Returns the view after a reload; keeps the typed text if it is for the same item."""
        item = self.store.take(typed.annotator)
        if item and item.id == typed.id and data.get("digest") == input_digest([item]):
            self.store.draft(self.with_line_ends(typed)[1])
        return self.view(typed.annotator)

    def draft(self, typed: Decision, _: Mapping) -> Json:
        item, draft = self.with_line_ends(typed)
        self.store.draft(draft)
        counts = render("progress", self.store.progress(typed.annotator), typed.annotator)
        return {"progress": counts, **self.compare(item, draft.text)}

    def save(self, typed: Decision, data: Mapping) -> Json:
        """Saves the edit; asks for confirmation first if it is beyond the limit."""
        item, edit = self.with_line_ends(typed)
        ratio = minimality.measure(item.original, edit.text).word_change_ratio
        if ratio > self.limit and edit.text.strip() and data.get("confirmed") is not True:
            self.store.draft(edit)
            return {
                "confirm": f"{ratio:.0%} of the words changed, more than {self.limit:.0%}: this is "
                "a new response rather than an edit, and it is marked as one. Keep more of the "
                "original, or skip the row, unless nothing less makes it right."
            }
        decision = dataclasses.replace(edit, verdict=EDITED, over_limit=ratio > self.limit)
        is_fine = self.store.decide(decision).verdict == FINE
        message = f"Row {item.id} is {'fine as it is' if is_fine else 'saved'}."
        return self.view(typed.annotator, message)

    def skip(self, typed: Decision, _: Mapping) -> Json:
        self.store.decide(dataclasses.replace(typed, verdict=SKIPPED))
        return self.view(typed.annotator, f"Row {typed.id} is skipped.")

    def next(self, typed: Decision, _: Mapping) -> Json:
        return self.view(typed.annotator, put_back=typed.id)

    def reopen(self, typed: Decision, _: Mapping) -> Json:
        item = self.store.reopen(typed.annotator, typed.id)
        message = "is open again: it does not count until you save it."
        return self.view(typed.annotator, f"Row {item.id} {message}" if item else "")

    def ping(self, typed: Decision, _: Mapping) -> Json:
        self.store.touch(typed.annotator)
        return {}

    def rows(self, typed: Decision, data: Mapping) -> Json:
        """Lists the annotator's decisions that contain the searched text, latest first."""
        search = str(data.get("search", "")).casefold()
        matches = []
        for decision in reversed(self.store.decisions(typed.annotator)):
            item = self.store.item(decision.id)
            texts = [*dataclasses.astuple(item)[:4], *(text for _, text in item.turns)]
            texts += [decision.text, decision.comment, *decision.tags]
            if any(search in text.casefold() for text in texts):
                matches.append((item, decision))
        rows = [(i, d, mark_changes(i.original, d.text)) for i, d in matches[:LISTED]]
        return {"list": render("decisions", rows, len(matches))}

    def versions(self, typed: Decision, _: Mapping) -> Json:
        """Lists the annotator's texts of a row, latest first, and the texts in the input."""
        item, name = self.store.item(typed.id), typed.annotator
        texts: dict[str, str] = {}
        for time, version in self.store.versions(name, item.id):
            at = datetime.datetime.fromtimestamp(time).strftime("%Y-%m-%d %H:%M:%S")
            if version.text not in (item.original, *item.edits):
                texts.setdefault(version.text, f"{at}, {version.verdict}")
        listed = [(label, text) for text, label in texts.items()][:LISTED]
        listed += [(f"Edit: {' and '.join(names)}", text) for text, names in item.edits.items()]
        listed.append(("The original response", item.original))
        return {"list": render("versions", listed)}


def _read_typed(name: str, data: Mapping) -> Decision:
    """Returns a tab's texts as a draft; raises ValueError or TypeError if they are invalid."""
    texts = [data.get(key, "") for key in ("row", "text", "comment")]
    tags = tuple(data.get("tags", ()))
    for text in (*texts, *tags):
        if not isinstance(text, str) or not is_unicode(text):
            raise ValueError(f"not a valid text: {text!r:.40}")
    row, text, comment = texts
    seconds = float(data.get("seconds", 0))
    if not 0 <= seconds < 1e9:
        raise ValueError(f"{seconds} seconds")
    return Decision(row, name, DRAFT, text, seconds, tags, comment)
