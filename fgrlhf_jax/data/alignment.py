"""Which tokens an edit changed, by a minimal edit script on token ids.

Section 2.2 of the paper splits a response's tokens into U1 (changed by the edit) and U0 (the
rest). There the split compares position t with position t, which makes everything after one
inserted token "changed". Here the default is a minimal edit script (Levenshtein): insertions
and replacements mark the edited side, deletions and replacements the original side. A side's U1
is empty when the edit only deleted (edited side) or only inserted (original side).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from rapidfuzz.distance import Levenshtein

from fgrlhf_jax.errors import InputError

METHODS = ("levenshtein", "positional")


class Alignment(NamedTuple):
    """The edit of a pair, i = edited and j = original, with Ti and Tj response tokens.

    Attributes:
      changed_i: bool[Ti], U1 of the edited side.
      changed_j: bool[Tj], U1 of the original side.
      partner_i: int32[Ti], the column in j of the equal token matched with column t of i; -1
        where changed.
    """

    changed_i: np.ndarray
    changed_j: np.ndarray
    partner_i: np.ndarray


def align(
    edited_ids: Sequence[int], original_ids: Sequence[int], method: str | None = "levenshtein"
) -> Alignment:
    """Aligns two token sequences of any lengths, zero included; deterministic.

    Args:
      method: "levenshtein" (minimal edit script), "positional" (as the paper's text: token t is
        unchanged if and only if both sides hold the same id at position t), or None (for unrelated
        responses: every token is changed).

    Raises:
      InputError: for any other method.
    """
    edited, original = [int(x) for x in edited_ids], [int(x) for x in original_ids]
    if method == "levenshtein":
        matched = [
            (np.arange(op.dest_start, op.dest_end), np.arange(op.src_start, op.src_end))
            for op in Levenshtein.opcodes(original, edited)
            if op.tag == "equal"
        ]
    elif method == "positional":
        shared = min(len(edited), len(original))
        same = np.flatnonzero(np.equal(edited[:shared], original[:shared]))
        matched = [(same, same)]
    elif method is None:
        matched = []
    else:
        raise InputError(f"alignment: {method!r} is not one of {', '.join(METHODS)}")

    changed_i, changed_j = np.ones(len(edited), bool), np.ones(len(original), bool)
    partner_i = np.full(len(edited), -1, np.int32)
    for columns_i, columns_j in matched:
        changed_i[columns_i], changed_j[columns_j] = False, False
        partner_i[columns_i] = columns_j
    return Alignment(changed_i, changed_j, partner_i)
