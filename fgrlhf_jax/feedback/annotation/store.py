"""Assigns rows to annotators and keeps their decisions, each on the disk before the next row shows.

    OUTPUT.jsonl          the edits that stand, written from the database
    OUTPUT.jsonl.sqlite   the database (database.py)

An annotator has one row open at a time, the same in all tabs, and decides it: edited, fine as it is
(nothing changed) or skipped. Nobody else gets it, unless `overlap` asks for several people a row,
or that annotator's browser has been silent for `release_after` seconds and no other row is left.
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
    """The database that belongs to a file of edits."""
    output = Path(output).resolve()
    return output.with_name(output.name + ".sqlite")


class Annotations(contextlib.AbstractContextManager):
    """The rows, who has them open, and the decisions. Any method may be called from any thread.

    Args:
      items: in the order in which they are assigned; their ids are distinct.
      output: FILE.jsonl of edits, new or continued; new, it begins with the log of an earlier
        version (``imported_log``), or else with the decisions ``imported`` from another tool.
      overlap: how many people edit each row.
      release_after: seconds of silence after which an open row may be assigned to somebody else.

    Raises InputError when the files are of another input, hold something else, or are unwritable.
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
            with contextlib.suppress(InputError):  # not every file system can
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
        """The row of this id; raises InputError where there is none."""
        if id not in self._number:
            raise InputError(f"there is no row {id!r:.60}; load the page again")
        return self.items[self._number[id]]

    def take(self, name: str, put_back: str | None = None) -> Item | None:
        """The annotator's open row; if there is none, or it is ``put_back``, the next free one."""
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
        """What the annotator has of a row so far: the last draft or decision."""
        item = self.item(id)
        new = Decision(id, name, DRAFT, item.suggestion or item.original)
        return next((version for _, version in self.versions(name, id)), new)

    def versions(self, name: str, id: str) -> list[tuple[float, Decision]]:
        """(time, draft or decision) of all texts that the annotator had in a row, latest first."""
        condition = "annotator = :name AND row = :id AND text NOT NULL AND event != 'skipped'"
        return self._events.select(condition, name=name, id=id)[::-1]

    def draft(self, draft: Decision) -> bool:
        """Keeps what is typed; False where the annotator no longer has the row open.

        A draft that only adds to the one before replaces it. A text that was there earlier (after
        a reset, for instance) never does: what it undoes must stay.
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
        """Records an edit (fine, where nothing was changed) or a skipped row."""
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
                    return before  # sent twice
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
        """Takes a decision back: that on a row, or the last one if that row ("" for none) is open.

        Returns the row, which is open again; None for a tab that is out of date.
        """
        with self._events.transaction():
            mine = self.decisions(name)[::-1]
            on_row = [decision for decision in mine if decision.id == id]
            if not on_row and self._events.open_row(name) != id:
                return None
            for decision in on_row or mine:
                if self._has_room(name, decision.id):
                    # Of a skipped row the draft before it goes on.
                    text = None if decision.verdict == SKIPPED else decision.text
                    self._events.add(OPEN, decision.id, name, text=text, details=decision.details)
                    self._is_written = False
                    return self.item(decision.id)
        if not mine:
            raise InputError("You have decided nothing yet")
        rows = f"Row {id} is" if on_row else "All rows that you decided are"
        raise InputError(f"{rows} with somebody else now")

    def decisions(self, name: str | None = None) -> list[Decision]:
        """Those that stand, of all annotators or one, in the order in which they were made."""
        condition = DECIDED if name is None else f"{DECIDED} AND annotator = :name"
        return [decision for _, decision in self._events.select(condition, name=name)]

    def annotators(self) -> list[str]:
        """The names of all who had a row, in the order in which they came."""
        names = "SELECT annotator FROM events WHERE annotator != ''"
        rows = self._events.query(f"{names} GROUP BY annotator ORDER BY min(n)")
        return [name for (name,) in rows]

    def progress(self, name: str) -> dict[str, Any]:
        """How far everybody is, and an annotator.

        Returns:
          rows; done, those that ``overlap`` people edited or found fine; everybody's edited, fine,
          skipped and open, and skipped_by {name: rows not done}; mine, the annotator's decisions;
          left, rows free for them, the open one too; open_elsewhere, rows not done nor left.
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
        """Writes the edits that stand to ``output``, unless this process has since the last one."""
        if not self._is_written:
            with self._events.transaction():
                self._events.write_edits(self.output, self.item)
                self._is_written = True

    def _next_free(self, name: str) -> Item | None:
        """After the row last shown, then from the start; rows of silent annotators at last."""
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
        """Whether fewer than ``overlap`` other people have decided the row or have it open."""
        others, present, _ = self._events.taken(name, row).get(row, (0, 0, 0))
        return (others if count_silent else present) < self.overlap

    def _release_silent(self, name: str, row: str) -> None:
        """Makes room where silent annotators have the row open."""
        for other in self._events.silent(name, row):
            if not self._has_room(name, row):
                self._events.add(CLOSED, row, other)
