"""Where an edit changed a text, and the continuations that are compared there."""

import numpy as np
import pytest
import tiny_cases

from fgrlhf_jax.data.changes import find_changes, make_row, pad_rows

PROMPT = [50, 51]
END = 0


def changes(edited, original, ends=(True, True)) -> list[tuple]:
    sides = (text + [END] * end for text, end in zip((edited, original), ends, strict=True))
    found = find_changes(tiny_cases.pair(PROMPT, *sides))
    return [(c.kind, c.column - 2, c.inserted.tolist(), c.removed.tolist()) for c in found]


@pytest.mark.parametrize(
    ("edited", "original", "expected"),
    [
        ([1, 9, 3], [1, 2, 3], [("replace", 1, [9], [2])]),
        # The shorter span goes on with its own text.
        ([1, 7, 8, 9, 3], [1, 4, 5, 3], [("replace", 1, [7, 8, 9], [4, 5, 3])]),
        ([9, 1, 2], [1, 2], [("insert", 0, [9], [1])]),
        ([8, 9, 1, 2], [1, 2], [("insert", 0, [8, 9], [1, 2])]),
        ([1, 2], [9, 1, 2], [("delete", 0, [1], [9])]),
        # At the end EOS stands against what was taken out: of more tokens only the first.
        ([1, 2], [1, 2, 8], [("delete", 2, [END], [8])]),
        ([1, 2], [1, 2, 8, 9], [("delete", 2, [END], [8])]),
        ([1, 2, 8, 9], [1, 2], [("insert", 2, [8], [END])]),
        ([], [1], [("delete", 0, [END], [1])]),
        # The second of two equal tokens is the one put in, or taken out.
        ([4, 4, 5], [4, 5], [("insert", 1, [4], [5])]),
        ([4, 5], [4, 4, 5], [("delete", 1, [5], [4])]),
        ([1, 2, 1, 2, 3], [1, 2, 3], [("insert", 2, [1, 2], [3, END])]),
        # Several, where the first one's continuation ends at the second one.
        ([7, 8, 1, 9, 3], [1, 2, 3], [("insert", 0, [7], [1]), ("replace", 3, [9], [2])]),
        # Moved to the right, a change meets the next one, and they are one.
        ([4, 4, 6, 5], [4, 7, 5], [("replace", 1, [4, 6], [7, 5])]),
        ([1, 2], [1, 2], []),
        ([1, 2, 3], [4, 5], [("replace", 0, [1, 2, 3], [4, 5, END])]),  # nothing is shared
    ],
)
def test_changes(edited, original, expected):
    assert changes(edited, original) == expected


def test_without_an_end_nothing_is_compared_with_nothing():
    assert changes([1, 2, 8], [1, 2], (True, False)) == [("insert", 2, [], [])]
    assert changes([1, 2], [1, 2, 8], (False, True)) == [("delete", 2, [], [])]
    row = make_row(tiny_cases.pair(PROMPT, [1, 2, 8], [1, 2]))
    assert (row.changes, row.unchanged.tolist()) == ([], [False, False, True, True, False])
    assert changes([1, 9, 3], [1, 2], (True, False)) == [("replace", 1, [9], [2])]


def test_both_continuations_stand_behind_the_same_prefix():
    """Of random edits: they differ at once, have one length, and are read off the two texts."""
    for pair in tiny_cases.pairs(0, 200, vocab=5):
        row = make_row(pair)
        edited, at = pair.tokens_i.tolist(), 0
        for change, start in zip(row.changes, row.branches, strict=True):
            n = len(change.inserted)
            assert len(change.removed) == n >= 1
            assert change.inserted[0] != change.removed[0]
            assert edited[change.column : change.column + n] == change.inserted.tolist()
            assert row.tokens[start : start + n].tolist() == change.removed.tolist()
            assert change.column >= at
            at = change.end
        kept = pair.tokens_i[row.unchanged].tolist()
        original = pair.tokens_j[pair.start_j :].tolist()
        for token in kept:  # the unchanged tokens are a subsequence of the original
            original = original[original.index(token) + 1 :]


def test_a_padded_row_by_hand():
    """The table of the docstring: prompt 5, edited 6 7, and 8 9 where the original goes on."""
    row = make_row(tiny_cases.pair([5], [6, 7, 3], [6, 8, 9, 3]))
    assert [len(change.removed) for change in row.changes] == [2]
    batch = pad_rows([row], 8, 2)
    expected = {
        "tokens_BS": [5, 6, 7, 3, 8, 9, 0, 0],
        "branch_BS": [0, 0, 0, 0, 1, 1, 0, 0],
        "positions_BS": [0, 1, 2, 3, 2, 3, 0, 0],
        "limit_BS": [1, 2, 3, 4, 2, 2, 0, 0],
        "previous_BS": [0, 0, 1, 2, 1, 4, 0, 0],
        "mask_BS": [1, 1, 1, 1, 1, 1, 0, 0],
    }
    assert batch.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(batch[name], [values] * 2, err_msg=name)
