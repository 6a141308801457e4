"""Pairs of responses as lists of their tokens' rewards, and the same padded."""

from typing import NamedTuple

import numpy as np


class Pair(NamedTuple):
    """One pair without padding: side 0 is i, side 1 is j; ``matched`` holds (t, t')."""

    prompt: int
    reward: tuple[list[float], list[float]]
    matched: list[tuple[int, int]]

    def changed(self, side: int) -> list[bool]:
        kept = {match[side] for match in self.matched}
        return [t not in kept for t in range(len(self.reward[side]))]


def draw_pair(rng: np.random.Generator, kept: int, inserted: int, deleted: int) -> Pair:
    """A random monotone matching of ``kept`` tokens; values are multiples of 1/64.

    Sums of such values and of their squares are exact in float32 whatever the order of the
    additions, which makes exact comparisons across paddings possible.
    """
    lengths = (kept + inserted, kept + deleted)
    places = [sorted(rng.choice(n, kept, replace=False).tolist()) for n in lengths]
    rewards = tuple((rng.integers(-128, 129, n) / 64).tolist() for n in lengths)
    return Pair(int(rng.integers(0, 4)), rewards, list(zip(*places, strict=True)))


def pad(pair: Pair, columns: int, *, left: tuple[int, int] = (0, 0), junk: float = 1e6):
    """(reward_2S, response_2S, changed_2S, partner_S) with ``left`` columns before each side.

    The reward of every column that is no response token, the prompt's too, is ``junk``.
    """
    reward_2S = np.full((2, columns), junk)
    response_2S = np.zeros((2, columns), bool)
    changed_2S = np.zeros((2, columns), bool)
    start = [left[side] + pair.prompt for side in (0, 1)]
    for side in (0, 1):
        for t, r in enumerate(pair.reward[side]):
            reward_2S[side, start[side] + t] = r
            response_2S[side, start[side] + t] = True
            changed_2S[side, start[side] + t] = pair.changed(side)[t]
    partner_S = np.full(columns, -1, np.int32)
    for t, other in pair.matched:
        partner_S[start[0] + t] = start[1] + other
    return reward_2S, response_2S, changed_2S, partner_S


def pairs(count: int) -> list[Pair]:
    """Pairs that only delete, that only insert, that share nothing, and any others, in turn."""
    rng = np.random.default_rng(7)
    drawn = []
    for k in range(count):
        kept, inserted, deleted = rng.integers(1, 6, 3).tolist()
        shape = [
            (kept, 0, deleted),
            (kept, inserted, 0),
            (0, inserted, deleted),
            (kept, inserted, deleted),
        ]
        drawn.append(draw_pair(rng, *shape[k % 4]))
    return drawn
