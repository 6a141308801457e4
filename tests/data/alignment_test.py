"""The edit script: minimal, and what all alignments satisfy."""

import numpy as np
import pytest
from rapidfuzz.distance import Levenshtein

from fgrlhf_jax.data.alignment import align
from fgrlhf_jax.errors import InputError


def align_and_check(edited, original, method="levenshtein"):
    """An alignment, with what every one satisfies, whatever the method."""
    edit = align(edited, original, method)
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
    return edit


def cost(edit) -> int:
    """Edits of the script that the masks stand for: each gap costs its longer side."""
    sides = [
        np.diff([-1, *np.flatnonzero(~changed), len(changed)]) - 1
        for changed in (edit.changed_i, edit.changed_j)
    ]
    return np.maximum(*sides).sum()


@pytest.mark.parametrize("alphabet", [1, 2, 3, 20])
@pytest.mark.parametrize("length", [15, 600])
def test_script_is_minimal(alphabet, length):
    """Of unlike responses, and of a few tokens changed in a long text of common ones."""
    rng = np.random.default_rng(alphabet)
    for _ in range(60 if length == 15 else 5):
        original = rng.integers(alphabet, size=rng.integers(length))
        edited = original.tolist()
        for start in rng.integers(length, size=4):
            edited[start : start + rng.integers(3)] = rng.integers(alphabet + 1, size=2)
        for text in (edited, rng.integers(alphabet, size=rng.integers(length))):
            edit = align_and_check(text, original)
            assert cost(edit) == Levenshtein.distance(list(text), list(original))
        # A last token that stands nowhere else, as an EOS does, is never counted as an edit.
        assert align_and_check([*edited, 99], (*original, 99)).partner_i[-1] == len(original)


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
    ],
)
def test_sides(edited, original, changed_i, changed_j):
    edit = align_and_check(edited, original)
    assert np.flatnonzero(edit.changed_i).tolist() == changed_i
    assert np.flatnonzero(edit.changed_j).tolist() == changed_j


@pytest.mark.parametrize(
    ("edited", "original"),
    [
        *(([1, 9, 2, 3], [1, 2, 3]), ([], []), ([], [1]), ([1], [])),
        *(([1, 2], [1, 2]), ([1, 5, 3], [1, 2, 3, 4])),
    ],
)
def test_positional_is_the_letter(edited, original):
    edit = align_and_check(edited, original, "positional")
    same = [a == b for a, b in zip(edited, original, strict=False)]
    for changed, ids in ((edit.changed_i, edited), (edit.changed_j, original)):
        assert (~changed).tolist() == same + [False] * (len(ids) - len(same))


def test_other_methods():
    unaligned = align_and_check([1, 2], [1, 2, 3], None)
    assert unaligned.changed_i.all()
    assert unaligned.changed_j.all()
    with pytest.raises(InputError, match="'words' is not one of levenshtein, positional"):
        align([1], [1], method="words")
