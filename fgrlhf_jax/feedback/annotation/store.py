"""Assigns rows to annotators and stores each decision on disk before the next row is shown.

    OUTPUT.jsonl          the current edits, written from the database
    OUTPUT.jsonl.sqlite   the database (database.py)

An annotator has one open row at a time, the same in all tabs, and decides it: edited, fine (nothing
changed) or skipped. A row goes to at most `overlap` annotators at a time. If an annotator's browser
has sent nothing for `release_after` seconds, the row may go to another who has no other row left.
"""

import contextlib
import dataclasses
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rapidfuzz.distance import Postfix, Prefix

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.feedback.annotation import old_log
from fgrlhf_jax.feedback.annotation.database import CLOSED, DRAFT, OPEN, Events
from fgrlhf_jax.feedback.annotation.items import (
    EDITED,
    FINE,
    SKIPPED,
    VERDICTS,
    Decision,
    Item,
    input_digest,
)

DECIDED = "standing AND event IN ('edited', 'fine', 'skipped')"


def database_path(output: str | os.PathLike) -> Path:
    """Returns the path of the database that belongs to a file of edits."""
    output = Path(output).resolve()
    return output.with_name(output.name + ".sqlite")


class Annotations(contextlib.AbstractContextManager):
    """Rows, their assignments and the decisions on them; all methods are thread-safe.

    Args:
      items: in the order in which they are assigned; their ids are distinct.
      output: FILE.jsonl of edits. A new database starts with the events of an earlier version's
        log (``imported_log``), or else with the decisions ``imported`` from another tool.
      overlap: how many people edit each row.
      release_after: seconds without a request after which an open row may go to somebody else.

    Raises InputError if the files belong to another input, are of another kind, or are unwritable.
    """

    def __init__(
        self,
        items: Sequence[Item],
        output: str | os.PathLike,
        *,
        overlap: int = 1,
        release_after: float = 300.0,
        imported: Sequence[Decision] = (),
        clock: Callable[[], float] = time.time,
    ):
        self.items, self.overlap = tuple(items), overlap
        self._number = {item.id: n for n, item in enumerate(self.items)}
        self.release_after = release_after
        self.output, path = Path(output).resolve(), database_path(output)
        self.imported_log: Path | None = None
        self._is_written = False
        is_new = not path.exists()
        self._events = Events(path, clock, release_after)
        self.touch, self.close = self._events.touch, self._events.close
        try:
            with self._events.transaction():
                digest, log = input_digest(items, imported), old_log.path_of(self.output)
                is_empty = self._events.begin(digest)
                if is_empty and log.exists():
                    self.imported_log = log
                    for event in old_log.read(log, self.items, digest):
                        self._events.add(**event)
                elif is_empty:
                    for decision in imported:
                        self._events.record(decision)
            self.write_edits()
            with contextlib.suppress(InputError):  # some file systems do not support it
                self._events.query("PRAGMA journal_mode = WAL")
            self._events.query("UPDATE events SET seen = :now WHERE standing", now=clock())
        except BaseException:
            self.close()
            if is_new:
                path.unlink(missing_ok=True)
            raise

    def __exit__(self, *_):
        self.close()

    def item(self, id: str) -> Item:
        """Returns the row with this id; raises InputError if there is none."""
        if id not in self._number:
            raise InputError(f"there is no row {id!r:.60}; load the page again")
        return self.items[self._number[id]]

    def take(self, name: str, put_back: str | None = None) -> Item | None:
        """Returns the open row; opens the next free one if there is none or it is ``put_back``."""
        self.touch(name)
        with self._events.transaction():
            open_id = self._events.open_row(name)
            if open_id and open_id != put_back:
                return self.item(open_id)
            item = self._next_free(name)
            if item is None and open_id:
                self._events.add(CLOSED, open_id, name)
            elif item is not None and item.id != open_id:
                self._release_silent(name, item.id)
                self._events.add(OPEN, item.id, name)
            return item

    def latest(self, name: str, id: str) -> Decision:
        """Returns the annotator's last draft or decision of a row, else a draft to start from."""
        item = self.item(id)
        new = Decision(id, name, DRAFT, item.suggestion or item.original)
        return next((version for _, version in self.versions(name, id)), new)

    def versions(self, name: str, id: str) -> list[tuple[float, Decision]]:
        """Returns (time, draft or decision) of all texts of an annotator in a row, latest first."""
        condition = "annotator = :name AND row = :id AND text NOT NULL AND event != 'skipped'"
        return self._events.select(condition, name=name, id=id)[::-1]

    def draft(self, draft: Decision) -> bool:
        """Stores a draft; returns False if the annotator no longer has the row open.

        A draft that only inserts text at one place of the last draft replaces it. An earlier text
        (after a reset, for instance) is added instead, so that the last draft is not lost.
        """
        name, id = draft.annotator, draft.id
        self.touch(name)
        with self._events.transaction():
            if self._events.open_row(name) != id:
                return False
            query = "SELECT n, event, text FROM events WHERE annotator = :name AND row = :id"
            *before, (n, event, last) = self._events.query(f"{query} ORDER BY n", name=name, id=id)
            item, old, new = self.item(id), last or "", draft.text
            earlier = {item.original, *item.edits, *(text for *_, text in before)}
            common = Prefix.similarity(old, new) + Postfix.similarity(old, new)
            # Text was inserted at one place and nothing deleted.
            is_typed_on = new not in earlier and len(old) <= min(common, len(new))
            if event == DRAFT and (new == last or is_typed_on):
                change = "UPDATE events SET text = :text, details = :details WHERE n = :n"
                self._events.query(change, text=new, details=draft.details, n=n)
            else:
                self._events.record(draft)
            return True

    def decide(self, decision: Decision) -> Decision:
        """Records a decision and returns it; an edit without a change becomes "fine"."""
        name, id, original = decision.annotator, decision.id, self.item(decision.id).original
        if decision.verdict == SKIPPED:
            decision = dataclasses.replace(decision, text=original)
        elif decision.text == original:
            decision = dataclasses.replace(decision, verdict=FINE, over_limit=False)
        if not decision.text.strip():
            raise InputError("not saved: an edit cannot be empty; skip the row instead")
        with self._events.transaction():
            condition = f"{DECIDED} AND annotator = :name AND row = :id"
            for _, before in self._events.select(condition, name=name, id=id):
                if (before.verdict, before.text) == (decision.verdict, decision.text):
                    return before  # the request was sent twice
                raise InputError("not saved: you decided this row before; press Undo to change it")
            if not self._has_room(name, id, count_silent=False):
                raise InputError(
                    "not saved: your browser was inactive for so long that this row went to "
                    "somebody else; copy what you want to keep, and press Decide later"
                )
            self._release_silent(name, id)
            self._events.record(decision)
            self._is_written = False
            return decision

    def reopen(self, name: str, id: str) -> Item | None:
        """Undoes the decision on a row, or the last one if the row (or "", no row) is open.

        Returns the row, which is open again, or None if the tab is out of date.
        """
        with self._events.transaction():
            mine = self.decisions(name)[::-1]
            on_row = [decision for decision in mine if decision.id == id]
            if not on_row and self._events.open_row(name) != id:
                return None
            for decision in on_row or mine:
                if self._has_room(name, decision.id):
                    # Editing of a skipped row continues with its last draft.
                    text = None if decision.verdict == SKIPPED else decision.text
                    self._events.add(OPEN, decision.id, name, text=text, details=decision.details)
                    self._is_written = False
                    return self.item(decision.id)
        if not mine:
            raise InputError("You have decided nothing yet")
        rows = f"Row {id} is" if on_row else "All rows that you decided are"
        raise InputError(f"{rows} with somebody else now")

    def decisions(self, name: str | None = None) -> list[Decision]:
        """Returns the current decisions of all annotators or one, in order of time."""
        condition = DECIDED if name is None else f"{DECIDED} AND annotator = :name"
        return [decision for _, decision in self._events.select(condition, name=name)]

    def annotators(self) -> list[str]:
        """Returns the names of all annotators who had a row, in the order of their first one."""
        names = "SELECT annotator FROM events WHERE annotator != ''"
        rows = self._events.query(f"{names} GROUP BY annotator ORDER BY min(n)")
        return [name for (name,) in rows]

    def progress(self, name: str) -> dict[str, Any]:
        """Returns the number of rows, ``overlap``, and counts for all annotators and for one.

        Returns:
          done: edited or found fine by ``overlap`` people. edited, fine, skipped, open: of all
          annotators. skipped_by: name -> skipped and not done. mine: decided by the annotator.
          left: free for the annotator, or open. open_elsewhere: the others that are not done.
        """
        query = "SELECT row, annotator, event FROM events WHERE standing"
        with self._events.transaction():
            standing, taken = self._events.query(query), self._events.taken(name)
        verdicts = Counter(event for *_, event in standing)
        deciders = Counter(row for row, _, event in standing if event in (EDITED, FINE))
        done = {row for row, number in deciders.items() if number >= self.overlap}
        mine = {row for row, other, event in standing if other == name and event != OPEN}
        to_do = self._number.keys() - done - mine
        left = sum(taken.get(row, (0,))[0] < self.overlap for row in to_do)
        skipped = [who for row, who, event in standing if event == SKIPPED and row not in done]
        return {
            "rows": len(self.items),
            "overlap": self.overlap,
            "done": len(done),
            **{verdict: verdicts[verdict] for verdict in VERDICTS},
            "mine": len(mine),
            "left": left,
            "open_elsewhere": len(to_do) - left,
            "open": len({row for row, _, event in standing if event == OPEN}),
            "skipped_by": Counter(skipped),
        }

    def write_edits(self) -> None:
        """Writes the current edits to ``output`` unless this process already has."""
        if not self._is_written:
            with self._events.transaction():
                self._events.write_edits(self.output, self.item)
                self._is_written = True

    def _next_free(self, name: str) -> Item | None:
        """Returns the next free row in cyclic order; rows open in silent browsers come last."""
        last = "SELECT row FROM events WHERE annotator = :name ORDER BY n DESC LIMIT 1"
        start = sum(self._number[row] + 1 for (row,) in self._events.query(last, name=name))
        taken = self._events.taken(name)
        for count in (0, 1):
            for item in (*self.items[start:], *self.items[:start]):
                *others, decided = taken.get(item.id, (0, 0, 0))
                if not decided and others[count] < self.overlap:
                    return item
        return None

    def _has_room(self, name: str, row: str, count_silent: bool = True) -> bool:
        """Whether fewer than ``overlap`` other people decided the row or have it open."""
        others, present, _ = self._events.taken(name, row).get(row, (0, 0, 0))
        return (others if count_silent else present) < self.overlap

    def _release_silent(self, name: str, row: str) -> None:
        """Closes the row for silent annotators until it is free for ``name``."""
        for other in self._events.silent(name, row):
            if not self._has_room(name, row):
                self._events.add(CLOSED, row, other)
