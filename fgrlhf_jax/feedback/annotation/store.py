"""Assigns rows to annotators and records their decisions, each on disk before the next row shows.

An annotator has one row open at a time, the same in all tabs, and decides it: edited, fine as it is
(nothing changed) or skipped. Nobody else gets it, unless `overlap` asks for several people a row,
or that annotator's browser has been silent for `release_after` seconds and no other row is left.
log.py keeps every event on disk, history.py replays them.
"""

import contextlib
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.feedback.annotation import history
from fgrlhf_jax.feedback.annotation.history import EDITED, SKIPPED, Decision, History, Item
from fgrlhf_jax.feedback.annotation.log import Log


class Annotations(contextlib.AbstractContextManager):
    """The rows, who has them open, and the decisions. Any method may be called from any thread.

    Args:
      items: in the order in which they are assigned; their ids are distinct.
      output: FILE.jsonl of edits; new, or continued.
      overlap: how many people edit each row.
      release_after: seconds of silence after which an open row may be assigned to somebody else.
      imported: decisions of another tool, with which a new output begins.

    Raises:
      InputError: as ``log.Log``.
    """

    def __init__(
        self,
        items: Sequence[Item],
        output: str | os.PathLike,
        *,
        overlap: int = 1,
        release_after: float = 300.0,
        imported: Sequence[Decision] = (),
        clock: Callable[[], float] = time.monotonic,
    ):
        self.items, self.overlap = tuple(items), overlap
        self._number = {item.id: n for n, item in enumerate(self.items)}
        self.release_after, self._clock = release_after, clock
        self._lock = threading.RLock()
        self._drafts: dict[tuple[str, str], str] = {}
        self._shown: dict[str, int] = {}  # annotator -> number of the last row shown
        self._history = History(self.items)
        digest = history.input_digest(items, imported)
        self._log = Log(output, digest, lambda events: History(items, events).edit_lines())
        self.output = self._log.output
        try:
            self._history = History(items, self._log.events)
            self._record(imported[len(self._log.events) :])  # the first events of all
        except BaseException:
            self.close()
            raise
        self._seen = dict.fromkeys(self._history.open, clock())

    def close(self) -> None:
        """Gives the files back to other processes."""
        with self._lock:
            self._log.close()

    def __exit__(self, *_):
        self.close()

    def item(self, id: str) -> Item:
        """The row of this id; raises InputError where there is none."""
        if id not in self._number:
            raise InputError(f"there is no row {id!r}; load the page again")
        return self.items[self._number[id]]

    def may_undo(self, name: str, id: str) -> bool:
        """Whether a tab that shows this row, "" for none, is up to date or has decided it."""
        with self._lock:
            is_open = self._history.open.get(name, "") == id
            return is_open or name in self._history.verdicts.get(id, ())

    def text(self, name: str, id: str) -> str:
        """The response as the annotator has it so far."""
        item = self.item(id)
        return self._drafts.get((name, id), item.suggestion or item.original)

    def draft(self, name: str, id: str, text: str, *, older: bool = False) -> bool:
        """Keeps what is typed in memory, for a tab that is loaded again.

        Args:
          older: keep it only if there is no draft yet.

        Returns:
          Whether the annotator has the row open; if not, nothing is kept.
        """
        with self._lock:
            self.touch(name)
            if self._history.open.get(name) != id:
                return False
            if not (older and (name, id) in self._drafts):
                self._drafts[name, id] = text
            return True

    def touch(self, name: str) -> None:
        """Notes that the annotator's browser is still connected."""
        with self._lock:
            self._seen[name] = self._clock()

    def take(self, name: str, put_back: str | None = None) -> Item | None:
        """Opens a row for the annotator and returns it.

        Args:
          put_back: the id of a row to close undecided, if it is the open one.

        Returns:
          The annotator's open row, or else the next free one; None where none is free.
        """
        with self._lock:
            self.touch(name)
            open_id = self._history.open.get(name)
            if open_id is not None:
                self._shown[name] = self._number[open_id]
                if open_id != put_back:
                    return self.item(open_id)
            number = self._next_free(name)
            if number is None:
                if open_id is not None:
                    self._write([history.make_event(history.OPEN, name, None)])
                return None
            item = self.items[number]
            if item.id != open_id:
                self._release_silent(name, item.id)
                self._write([history.make_event(history.OPEN, name, item.id)])
            self._shown[name] = number
            return item

    def accept(self, name: str, id: str, text: str) -> Decision:
        """Records the edit, or that the row is fine where nothing was changed."""
        item = self.item(id)
        if not text.strip():
            raise InputError("not saved: an edit cannot be empty; skip the row instead")
        if any("\ud800" <= letter <= "\udfff" for letter in text):
            raise InputError("not saved: half a character is in the text; type it again")
        verdict = history.FINE if text == item.original else EDITED
        return self._decide(Decision(id, name, verdict, text))

    def skip(self, name: str, id: str) -> Decision:
        """Records that this annotator leaves the row alone; others may still get it."""
        return self._decide(Decision(id, name, SKIPPED, self.item(id).original))

    def undo(self, name: str) -> Item:
        """Takes the annotator's last decision back: its row is open again, its text the draft.

        A skipped row that others have taken up meanwhile stays skipped, and the decision before it
        is taken back.
        """
        with self._lock:
            self.touch(name)
            for decision in reversed(self._history.decisions):
                if decision.annotator != name or not self._has_room(name, decision.id):
                    continue
                undo = history.make_event(history.UNDO, name, decision.id)
                after = History(self.items, [*self._log.events, undo])
                edits = after.edit_lines() if decision.verdict == EDITED else None
                self._write([undo], edits=edits)
                if decision.verdict != SKIPPED:
                    self._drafts[name, decision.id] = decision.text
                self._shown[name] = self._number[decision.id]
                return self.item(decision.id)
            raise InputError("there is nothing to undo")

    def decisions(self) -> list[Decision]:
        """Those that stand, in the order in which they were made."""
        with self._lock:
            return list(self._history.decisions)

    def progress(self, name: str) -> dict[str, int]:
        """Counts: rows, done, open_elsewhere; decisions: edited, fine, skipped, and mine."""
        with self._lock:
            decisions = self._history.decisions
            counts = Counter(decision.verdict for decision in decisions)
            return {
                "rows": len(self.items),
                "done": sum(self._deciders(item.id) >= self.overlap for item in self.items),
                "open_elsewhere": sum(other != name for other in self._history.open),
                **{verdict: counts[verdict] for verdict in history.VERDICTS},
                "mine": sum(decision.annotator == name for decision in decisions),
            }

    def _decide(self, decision: Decision) -> Decision:
        name, id = decision.annotator, decision.id
        with self._lock:
            self.touch(name)
            if name in self._history.verdicts.get(id, {}):
                if self._history.last(name, id) == decision:  # sent twice
                    return decision
                raise InputError(
                    "not saved: you decided this row before, perhaps in another tab; press Undo "
                    "to change it"
                )
            if not self._has_room(name, id, count_silent=False):
                raise InputError(
                    "not saved: your browser was silent so long that somebody else has this row "
                    "now; copy what you want to keep, and press Next"
                )
            self._release_silent(name, id)
            self._record([decision])
            if decision.verdict != SKIPPED:
                self._drafts.pop((name, id), None)
            return decision

    def _next_free(self, name: str) -> int | None:
        """After the row last shown, then from the start; rows of silent annotators at last."""
        start = self._shown.get(name, -1) + 1
        for count_silent in (True, False):
            for number in (*range(start, len(self.items)), *range(start)):
                id = self.items[number].id
                decided = name in self._history.verdicts.get(id, ())
                if not decided and self._has_room(name, id, count_silent):
                    return number
        return None

    def _has_room(self, name: str, id: str, count_silent: bool = True) -> bool:
        """Whether fewer than ``overlap`` other people have decided the row or have it open."""
        others = {other for other, held in self._history.open.items() if held == id} - {name}
        working = sum(count_silent or self._is_present(other) for other in others)
        return self._deciders(id, besides=name) + working < self.overlap

    def _deciders(self, id: str, besides: str | None = None) -> int:
        """How many people have decided the row otherwise than by skipping it."""
        verdicts = self._history.verdicts.get(id, {}).items()
        return sum(verdict != SKIPPED and name != besides for name, verdict in verdicts)

    def _is_present(self, name: str) -> bool:
        return self._clock() - self._seen.get(name, -float("inf")) < self.release_after

    def _release_silent(self, name: str, id: str) -> None:
        """Makes room where silent annotators have the row open."""
        for other, held in list(self._history.open.items()):
            if held == id and not self._has_room(name, id) and not self._is_present(other):
                self._write([history.make_event(history.OPEN, other, None)])

    def _record(self, decisions: Sequence[Decision]) -> None:
        events = [history.make_event(d.verdict, d.annotator, d.id, d.text) for d in decisions]
        self._write(events, added=self._history.edit_lines(decisions))

    def _write(self, events: Sequence[dict], **edits) -> None:
        """Events on the disk and then in memory; InputError leaves both as they were."""
        if events:
            self._log.write(events, **edits)
        for event in events:
            self._history.add(event)
