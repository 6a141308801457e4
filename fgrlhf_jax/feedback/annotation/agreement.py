"""Measures how far annotators of the same rows agree."""

import itertools
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from fgrlhf_jax.data.words import align_words, split_words
from fgrlhf_jax.feedback.annotation.items import EDITED, SKIPPED, Decision, Item


def measure_agreement(
    items: Sequence[Item], decisions: Sequence[Decision]
) -> dict[str, float | None] | None:
    """Compares every two decisions on the same row, except skips; None if there are no two.

    Returns:
      rows, pairs: numbers of rows and pairs. verdict, same_text: shares of pairs that agree.
      changed_words: mean Dice coefficient of the changed places, over pairs of two edits; a place
        is a word of the original that was deleted, or after which words were inserted.
    """
    by_row = defaultdict(list)
    for decision in decisions:
        if decision.verdict != SKIPPED:
            by_row[decision.id].append(decision)
    pairs = [pair for row in by_row.values() for pair in itertools.combinations(row, 2)]
    if not pairs:
        return None
    originals = {item.id: item.original for item in items}
    overlaps = []
    for pair in pairs:
        if {decision.verdict for decision in pair} == {EDITED}:
            a, b = (_changed_places(originals[d.id], d.text) for d in pair)
            overlaps.append(2 * len(a & b) / (len(a) + len(b)) if a or b else 1.0)
    return {
        "rows": len({first.id for first, _ in pairs}),
        "pairs": len(pairs),
        "verdict": sum(first.verdict == second.verdict for first, second in pairs) / len(pairs),
        "same_text": sum(first.text == second.text for first, second in pairs) / len(pairs),
        "changed_words": sum(overlaps) / len(overlaps) if overlaps else None,
    }


def describe(agreement: dict[str, float | None]) -> str:
    """Returns the agreement as a sentence."""
    words = agreement["changed_words"]
    return (
        f"Rows decided by several people: {agreement['rows']}; the same verdict in "
        f"{agreement['verdict']:.0%} of {agreement['pairs']} pairs, the same text in "
        f"{agreement['same_text']:.0%}"
    ) + ("" if words is None else f", agreement on the changed words {words:.2f}")


def _changed_places(original: str, edited: str) -> set[tuple[str, int]]:
    """Returns the indices of deleted words ("out") and of words before insertions ("in")."""
    aligned = align_words(*map(split_words, (original, edited)))
    out = aligned.changed_j.nonzero()[0].tolist()
    behind = np.maximum.accumulate(aligned.partner_i)[aligned.changed_i].tolist()
    return {("out", n) for n in out} | {("in", n) for n in behind}
