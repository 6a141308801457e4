"""How far annotators of the same rows agree."""

import itertools
import math
from collections import defaultdict
from collections.abc import Sequence

from fgrlhf_jax.data.alignment import align
from fgrlhf_jax.feedback.annotation.history import EDITED, SKIPPED, Decision, Item
from fgrlhf_jax.feedback.edits import minimality


def agreement(items: Sequence[Item], decisions: Sequence[Decision]) -> dict[str, float] | None:
    """Over all pairs of annotators of a row; None where no row has two.

    rows, pairs: how many. verdict: the share of pairs that both edited, or both left as it was.
    same_text: the share with the same text. changed_words: of pairs that both edited, the mean
    Dice coefficient of the words of the original that each took out or put something beside, 1
    where both changed the same places.
    """
    by_row = defaultdict(list)
    for one in decisions:
        if one.verdict != SKIPPED:
            by_row[one.id].append(one)
    pairs = [pair for row in by_row.values() for pair in itertools.combinations(row, 2)]
    if not pairs:
        return None
    originals = {item.id: item.original for item in items}
    places = [
        _dice(*(_places(originals[one.id], one.text) for one in pair))
        for pair in pairs
        if all(one.verdict == EDITED for one in pair)
    ]
    return {
        "rows": len({one.id for one, _ in pairs}),
        "pairs": len(pairs),
        "verdict": sum(one.verdict == two.verdict for one, two in pairs) / len(pairs),
        "same_text": sum(one.text == two.text for one, two in pairs) / len(pairs),
        "changed_words": sum(places) / len(places) if places else float("nan"),
    }


def sentence(figures: dict[str, float]) -> str:
    told = (
        f"{figures['rows']} rows were decided by several people: the same verdict in "
        f"{figures['verdict']:.0%} of {figures['pairs']} pairs, the same text in "
        f"{figures['same_text']:.0%}"
    )
    if math.isnan(figures["changed_words"]):
        return told
    return f"{told}, agreement on the changed words {figures['changed_words']:.2f}"


def _places(original: str, edited: str) -> set[tuple[str, int]]:
    """Words taken out, and words behind which others were put in."""
    before, after = minimality.split_words(original), minimality.split_words(edited)
    number = {word: n for n, word in enumerate(dict.fromkeys([*before, *after]))}
    aligned = align([number[w] for w in after], [number[w] for w in before])
    places = {("out", int(j)) for j in aligned.changed_j.nonzero()[0]}
    last = -1
    for partner in aligned.partner_i.tolist():
        if partner < 0:
            places.add(("in", last))
        else:
            last = partner
    return places


def _dice(one: set, two: set) -> float:
    return 2 * len(one & two) / (len(one) + len(two)) if one or two else 1.0
