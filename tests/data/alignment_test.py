"""The edit script against a brute-force Levenshtein distance; what all alignments satisfy."""

import time

import numpy as np
import pytest

from fgrlhf_jax.data.alignment import align
from fgrlhf_jax.errors import InputError


def distance(a, b) -> int:
    """Levenshtein distance by the textbook table."""
    table = np.zeros((len(a) + 1, len(b) + 1), int)
    table[:, 0], table[0] = np.arange(len(a) + 1), np.arange(len(b) + 1)
    for i, x in enumerate(a, 1):
        for j, y in enumerate(b, 1):
            swap = table[i - 1, j - 1] + (x != y)
            table[i, j] = min(table[i - 1, j] + 1, table[i, j - 1] + 1, swap)
    return int(table[-1, -1])


def cost(edit) -> int:
    """Edits of the script that the masks stand for: each gap costs its longer side."""
    matched_i = [-1, *np.flatnonzero(~edit.changed_i), len(edit.changed_i)]
    matched_j = [-1, *np.flatnonzero(~edit.changed_j), len(edit.changed_j)]
    assert len(matched_i) == len(matched_j)
    gaps = zip(np.diff(matched_i) - 1, np.diff(matched_j) - 1, strict=True)
    return int(sum(max(gap) for gap in gaps))


def check(edit, edited, original):
    """What every alignment satisfies, whatever the method."""
    assert edit.changed_i.shape == edit.partner_i.shape == (len(edited),)
    assert edit.changed_j.shape == (len(original),)
    assert edit.changed_i.dtype == edit.changed_j.dtype == bool
    assert edit.partner_i.dtype == np.int32
    np.testing.assert_array_equal(edit.partner_i == -1, edit.changed_i)
    partners = edit.partner_i[~edit.changed_i]
    assert (np.diff(partners) > 0).all()
    np.testing.assert_array_equal(partners, np.flatnonzero(~edit.changed_j))
    np.testing.assert_array_equal(
        np.asarray(edited, int)[~edit.changed_i], np.asarray(original, int)[partners]
    )


@pytest.mark.parametrize("alphabet", [1, 2, 3, 20])
def test_script_is_minimal(alphabet):
    rng = np.random.default_rng(alphabet)
    for _ in range(60):
        edited, original = (rng.integers(alphabet, size=rng.integers(15)) for _ in "ij")
        edit = align(edited, original)
        check(edit, edited, original)
        assert cost(edit) == distance(edited, original)


def test_script_is_minimal_for_real_edits():
    """A few tokens changed in a long text: nearly everything matches."""
    rng = np.random.default_rng(0)
    for _ in range(5):
        original = rng.integers(30, size=100).tolist()
        edited = list(original)
        for start in rng.integers(100, size=4):
            edited[start : start + rng.integers(3)] = rng.integers(30, size=rng.integers(3))
        edit = align(edited, original)
        check(edit, edited, original)
        assert cost(edit) == distance(edited, original) <= 8


@pytest.mark.parametrize(
    ("edited", "original", "changed_i", "changed_j"),
    [
        pytest.param([1, 9, 2, 3], [1, 2, 3], [1], [], id="insert marks the edited side"),
        pytest.param([1, 3], [1, 2, 3], [], [1], id="delete marks the original side"),
        pytest.param([1, 9, 3], [1, 2, 3], [1], [1], id="replace marks both"),
        pytest.param([1, 8, 9, 3], [1, 2, 3], [1, 2], [1], id="replace and insert"),
        pytest.param([1, 2], [1, 2], [], [], id="equal"),
        pytest.param([], [], [], [], id="both empty"),
        pytest.param([], [5, 6], [], [0, 1], id="everything deleted"),
        pytest.param([5, 6], [], [0, 1], [], id="everything inserted"),
        pytest.param([0, 0, 2], [0, 0, 0, 2], [], None, id="a repetition deleted"),
    ],
)
def test_sides(edited, original, changed_i, changed_j):
    edit = align(edited, original)
    check(edit, edited, original)
    assert np.flatnonzero(edit.changed_i).tolist() == changed_i
    if changed_j is not None:  # which of the repeated tokens goes is the library's choice
        assert np.flatnonzero(edit.changed_j).tolist() == changed_j


def test_one_insertion_into_a_long_text_of_common_tokens():
    """difflib's default takes tokens that are common in 200 or more for junk and loses them."""
    original = np.random.default_rng(0).integers(5, size=600).tolist()
    edited = [*original[:300], 77, *original[300:]]
    edit = align(edited, original)
    check(edit, edited, original)
    assert np.flatnonzero(edit.changed_i).tolist() == [300]
    assert not edit.changed_j.any()


def test_the_end_of_sequence_always_matches():
    """A last token that stands nowhere else is never counted as an edit."""
    rng = np.random.default_rng(1)
    for _ in range(50):
        edited, original = ([*rng.integers(3, size=rng.integers(9)), 7] for _ in "ij")
        edit = align(edited, original)
        assert edit.partner_i[-1] == len(original) - 1
        assert not edit.changed_i[-1]
        assert not edit.changed_j[-1]


def test_positional_is_the_letter():
    edit = align([1, 9, 2, 3], [1, 2, 3], method="positional")
    check(edit, [1, 9, 2, 3], [1, 2, 3])
    assert edit.changed_i.tolist() == [False, True, True, True]
    assert edit.changed_j.tolist() == [False, True, True]
    for pair in (([], []), ([], [1]), ([1], []), ([1, 2], [1, 2]), ([1, 5, 3], [1, 2, 3, 4])):
        edit = align(*pair, method="positional")
        check(edit, *pair)
        same = [a == b for a, b in zip(*pair, strict=False)]
        assert (~edit.changed_i)[: len(same)].tolist() == same


def test_long_sequences_of_any_kind_are_fast():
    rng = np.random.default_rng(3)
    edited, original = rng.integers(300, size=1500), rng.integers(300, size=1500)
    start = time.perf_counter()
    edits = [align(edited.tolist(), tuple(original.tolist())) for _ in range(20)]
    assert time.perf_counter() - start < 2  # 20 tables of 2.25 million cells take a minute
    for again, expected in zip(edits[0], align(edited, original), strict=True):
        np.testing.assert_array_equal(again, expected)
    check(edits[0], edited, original)


def test_unknown_method():
    with pytest.raises(InputError, match="'words' is not one of levenshtein, positional"):
        align([1], [1], method="words")
