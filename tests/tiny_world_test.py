"""The tiny world: always the same, small, its edits minimal, for the better and learnable."""

import hashlib
import itertools
import os
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from fgrlhf_jax.alignment import align
from fgrlhf_jax.records import read, split, write_jsonl
from fgrlhf_jax.tiny_world import generate

BAD_WORDS = ("stupid", "idiot", "dumb", "shut", "um", "well", "basically", "like")
FAMILIES = (
    *("what is the opposite", "what is the capital", "what is the colour"),
    *("list", "count", "reverse"),
)
DIGEST = """
import hashlib; from fgrlhf_jax.tiny_world import generate
print(hashlib.sha256(repr(generate(50, 7)).encode()).hexdigest())
"""


@pytest.fixture(scope="module")
def world():
    return generate(2000, seed=0)


def test_a_function_of_the_seed():
    """In another process too, where Python's own hashes are others."""
    here = hashlib.sha256(repr(generate(50, 7)).encode()).hexdigest()
    environment = os.environ | {"PYTHONHASHSEED": "12345"}
    there = subprocess.run(
        [sys.executable, "-c", DIGEST],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert there.stdout.strip() == here
    assert generate(20, 7) == tuple(rows[:20] for rows in generate(50, 7))
    texts = [[edit.original for edit in generate(50, seed)[0]] for seed in (7, 8)]
    assert texts[0] != texts[1]  # texts only, since an id names its seed


def test_size(world):
    edits, preferences = world
    assert len(edits) == len(preferences) == 2000
    assert [e.instruction for e in edits] == [p.instruction for p in preferences]
    assert len({e.instruction for e in edits}) > 500
    openings = Counter(" ".join(e.instruction.split()[:4]) for e in edits)
    families = {
        family: sum(n for opening, n in openings.items() if opening.startswith(family))
        for family in FAMILIES
    }
    assert sum(families.values()) == 2000
    assert min(families.values()) > 250
    texts = [text for e in edits for text in (e.instruction, e.original, e.edited)]
    texts += [text for p in preferences for text in (p.output_1, p.output_2)]
    assert 150 <= len({word for text in texts for word in text.split()}) <= 200
    lengths = [len(text.split()) for e in edits for text in (e.original, e.edited)]
    assert 11 < np.mean(lengths) < 13
    assert max(lengths) < 25


def test_rows_are_valid_records_that_split_by_prompt(world, tmp_path):
    edits, preferences = world
    write_jsonl(tmp_path / "world.jsonl", [*edits, *preferences])
    assert read(str(tmp_path / "world.jsonl")) == [*edits, *preferences]
    assert len({e.id for e in edits}) == 2000
    train, validation = split(edits, 0.1, seed=0)
    assert len(train) > 1500
    assert len(validation) > 100


def test_edits_are_minimal_and_repair(world):
    edits, _ = world
    share, only_delete, bad = [], 0, Counter()
    for edit in edits:
        original, edited = edit.original.split(), edit.edited.split()
        ids = {word: n for n, word in enumerate({*original, *edited})}
        masks = align([ids[word] for word in edited], [ids[word] for word in original])
        share += [masks.changed_i.mean(), masks.changed_j.mean()]
        only_delete += not masks.changed_i.any()
        for word in BAD_WORDS:
            assert edited.count(word) <= original.count(word)
        bad["before"] += sum(original.count(word) for word in BAD_WORDS)
        bad["after"] += sum(edited.count(word) for word in BAD_WORDS)
    assert 0.05 < np.mean(share) < 0.2
    assert 0.1 < only_delete / len(edits) < 0.5
    # Four of five are repaired; pairs in which nothing was are drawn again.
    assert 0.1 < bad["after"] / bad["before"] < 0.25


def test_preferences_follow_the_flaws(world):
    _, preferences = world
    assert 0.45 < np.mean([p.preference == 1 for p in preferences]) < 0.55

    def flaws(text: str) -> int:
        return sum(word in BAD_WORDS for word in text.split())

    gaps = [(flaws(p.output_2) - flaws(p.output_1), p.preference == 1) for p in preferences]
    agree = np.mean([first == (gap > 0) for gap, first in gaps if abs(gap) >= 2])
    assert 0.75 < agree < 1.0  # two rude words more seldom win, but they can


def test_words_and_their_neighbours_tell_the_edited_side(world):
    """A linear model of words and word pairs ranks unseen prompts; a small LLaMA can too."""
    edits, _ = world
    sides = split(edits, 0.2, seed=0)
    column: dict[tuple[str, ...], int] = {}

    def features(text: str, grow: bool) -> list[int]:
        words = text.split()
        grams = [(word,) for word in words] + list(itertools.pairwise(words))
        if grow:
            return [column.setdefault(gram, len(column)) for gram in grams]
        return [column[gram] for gram in grams if gram in column]

    rows = [
        [(features(e.edited, grow), features(e.original, grow)) for e in side]
        for side, grow in zip(sides, (True, False), strict=True)
    ]
    weight = np.zeros(len(column))
    for _ in range(3):
        for better, worse in rows[0]:
            margin = weight[better].sum() - weight[worse].sum()
            step = 0.3 / (1 + np.exp(margin))
            np.add.at(weight, better, step)
            np.add.at(weight, worse, -step)
    correct = [weight[better].sum() > weight[worse].sum() for better, worse in rows[1]]
    assert np.mean(correct) > 0.8
