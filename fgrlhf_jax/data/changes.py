"""The places that an edit changed, with both continuations at each, as teacher-forced rows.

A change begins where the two texts differ for the first time since they were last equal. The edited
text before it is the prefix of both continuations, so that all earlier corrections are applied:

    original  a b   x y c </s>        prefix a b,   inserted p q r c   (the span p q r and c)
    edited    a b p q r c </s>                      removed  x y c </s>  (the span x y, c and EOS)

Both continuations have the same number of tokens, so that neither is more likely because it is
shorter: as many as the longer span, or fewer if the texts differ again or end before. The shorter
span is extended by the tokens that follow it in its text.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fgrlhf_jax.data.bucketing import fill_batch, pad_right
from fgrlhf_jax.data.pairs import Pair, common_length


class Change(NamedTuple):
    """One place that an edit changed.

    Attributes:
      kind: insert, replace or delete, by which of the two spans has tokens.
      column: the first differing column of the edited tokens.
      end: the column after the inserted span.
      inserted, removed: int32[n], continuations in the edited and the original text. n is 0 if a
        text ends there without an EOS, so that there is nothing to compare.
    """

    kind: str
    column: int
    end: int
    inserted: np.ndarray
    removed: np.ndarray


def find_changes(pair: Pair) -> list[Change]:
    """The changes of an edit, in order.

    If a span can be shifted, its rightmost place counts: the edit "pear pear ," of "pear ," inserts
    the second "pear".
    """
    edited, original = pair.tokens_i, pair.tokens_j
    matched = [(i, j) for i, j in enumerate(pair.partner.tolist()) if j >= 0]
    matched.append((len(edited), len(original)))
    i = j = min(pair.start_i, pair.start_j)
    changes = []
    while True:
        same = common_length(edited[i:], original[j:])
        i, j = i + same, j + same
        if i == len(edited) and j == len(original):
            return changes
        p, q = next((p, q) for p, q in matched if p >= i and q >= j)
        inserted, removed = p - i, q - j
        count = min(inserted, removed) + common_length(edited[p:], original[q:])
        count = min(max(inserted, removed), count)
        kind = "insert" if not removed else "replace" if inserted else "delete"
        spans = edited[i : i + count], original[j : j + count]
        changes.append(Change(kind, i, p, *spans))
        i, j = p, q


class ChangedRow(NamedTuple):
    """An edited response, followed by the original's continuation at every change.

    Attributes:
      tokens: int32[S], prompt and edited response, then ``removed`` of each change.
      start: the first column of the response.
      length: tokens of prompt and edited response.
      unchanged: bool[length], the response tokens outside inserted spans.
      changes: the changes that can be compared.
      row: number of the record.
    """

    tokens: np.ndarray
    start: int
    length: int
    unchanged: np.ndarray
    changes: list[Change]
    row: int

    @property
    def branches(self) -> list[int]:
        """The first column of every change's ``removed``."""
        sizes = (len(change.removed) for change in self.changes)
        return [*itertools.accumulate(sizes, initial=self.length)][:-1]


def make_row(pair: Pair) -> ChangedRow:
    """Makes the row of an edit; a token in column 0 is neither changed nor unchanged."""
    length, start = len(pair.tokens_i), max(pair.start_i, 1)
    changes = find_changes(pair)
    unchanged = np.arange(length) >= start
    for change in changes:
        unchanged[change.column : change.end] = False
    compared = [change for change in changes if change.column > 0 and len(change.inserted)]
    tokens = np.concatenate([pair.tokens_i, *(change.removed for change in compared)])
    return ChangedRow(tokens, start, length, unchanged, compared, pair.row)


def pad_rows(rows: Sequence[ChangedRow], bucket: int, batch_size: int) -> dict[str, np.ndarray]:
    """One batch, padded on the right with zeros to ``bucket`` columns.

    For prompt a, edited response b c, and a change at c where the original had x y:

        tokens     a b c x y 0
        branch     0 0 0 1 1 0       0: prompt and edited response
        positions  0 1 2 2 3 0
        limit      1 2 3 2 2 0       columns of branch 0 that a token sees

    Returns:
      tokens_BS, branch_BS, positions_BS, limit_BS and previous_BS (column of the previous token, 0
      for the first), all int32; mask_BS bool, real tokens. The last row is repeated to fill the
      batch.
    """
    names = ("branch", "positions", "limit", "previous")
    columns: dict[str, list] = {name: [] for name in names}
    rows, _ = fill_batch(rows, batch_size)
    for row in rows:
        base, branch = np.arange(len(row.tokens), dtype=np.int32), np.zeros_like(row.tokens)
        positions, limit, previous = base.copy(), base + 1, np.maximum(base - 1, 0)
        for number, (change, start) in enumerate(zip(row.changes, row.branches, strict=True), 1):
            part = slice(start, start + len(change.removed))
            branch[part], limit[part] = number, change.column
            positions[part] += change.column - start
            previous[start] = change.column - 1
        for name, values in zip(names, (branch, positions, limit, previous), strict=True):
            columns[name].append(values)
    ends_B1 = np.array([len(row.tokens) for row in rows])[:, None]
    padded = {f"{name}_BS": pad_right(values, bucket) for name, values in columns.items()}
    padded["tokens_BS"] = pad_right([row.tokens for row in rows], bucket)
    return padded | {"mask_BS": np.arange(bucket) < ends_B1}
