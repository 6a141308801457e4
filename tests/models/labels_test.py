"""Preferences to train on: draws, and noise that falls the same way again."""

import itertools
from collections import Counter

import pytest

from fgrlhf_jax.data import records
from fgrlhf_jax.feedback.judges import judge
from fgrlhf_jax.feedback.judges.alpaca_eval import Comparison
from fgrlhf_jax.runtime.files import write_jsonl


def judged(preferences) -> list[Comparison]:
    return [
        Comparison(f"do {n}", "", f"reference {n}", f"model {n}", preference, annotator="me")
        for n, preference in enumerate(preferences)
    ]


def labels(rows, noise=0.0, draws="drop", seed=0):
    return judge.labels(rows, noise=noise, draws=draws, seed=seed)


def test_labels_by_hand(tmp_path):
    made = labels(judged([1.0, 2.0, 1.5, None]))
    assert made.counts == Counter(unparsed=1, draws=1, flipped=0)
    assert made.rows[1] == {
        "instruction": "do 1",
        "input": "",
        "output_1": "reference 1",
        "output_2": "model 1",
        "preference": 2,
        "annotator": "me",
    }
    path = tmp_path / "preferences.jsonl"
    write_jsonl(path, made.rows)
    assert records.read(str(path)) == [
        records.Preference("do 0", "", "reference 0", "model 0", 1),
        records.Preference("do 1", "", "reference 1", "model 1", 2),
    ]


@pytest.mark.parametrize("noise", [0.25, 0.5])
def test_noise_flips_its_share(noise):
    rows = judged(itertools.islice(itertools.cycle([1.0, 2.0]), 2000))
    made = labels(rows, noise)
    flipped = sum(
        row["preference"] != one.preference for row, one in zip(made.rows, rows, strict=True)
    )
    assert flipped == made.counts["flipped"]
    assert flipped / 2000 == pytest.approx(noise, abs=0.04)
    assert labels(rows, noise) == made
    assert labels(rows, noise, seed=1).rows != made.rows
    assert labels(rows[10:20], noise).rows == made.rows[10:20]


def test_more_noise_flips_what_less_flipped():
    rows = judged([1.0] * 500)
    little, much = (
        {row["instruction"] for row in labels(rows, noise).rows if row["preference"] == 2}
        for noise in (0.1, 0.3)
    )
    assert little < much


def test_draws_fall_to_either_side():
    rows = judged([1.5] * 1000)
    assert labels(rows).rows == []
    made = labels(rows, draws="random")
    assert made.counts["draws"] == len(made.rows) == 1000
    assert 430 < sum(row["preference"] == 1 for row in made.rows) < 570
    swaps = labels(
        [Comparison(o.instruction, "", o.output_2, o.output_1, 1.5) for o in rows],
        draws="random",
    )
    assert all(
        one["preference"] == 3 - two["preference"]
        for one, two in zip(made.rows, swaps.rows, strict=True)
    )


def test_identical_responses_never_become_a_label():
    rows = [Comparison("do", "", "a", "a", 1.5)]
    assert labels(rows, draws="random").rows == []
