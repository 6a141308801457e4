"""Metrics of pairs by brute force and by hand."""

import itertools
import math

import numpy as np
import pytest

from fgrlhf_jax.functional.pair_metrics import (
    PairValues,
    auroc,
    compute_pair_metrics,
    correlation,
    format_table,
    span_auroc,
)

YES, NO = True, False


def pair_values(value_i, changed_i, value_j, changed_j) -> PairValues:
    return PairValues(
        *(np.array(value_i, np.float32), np.array(changed_i, bool)),
        *(np.array(value_j, np.float32), np.array(changed_j, bool)),
    )


# Three edits: one that replaces, one that only deletes, one that only inserts and is a tie.
EDITS = [
    pair_values([1.0, 2.0], [NO, YES], [0.0, 1.0], [NO, YES]),
    pair_values([-1.0], [NO], [2.0, 3.0, 1.0], [NO, YES, YES]),
    pair_values([4.0, 0.0], [NO, YES], [2.0], [NO]),
]


def brute_force_auroc(score, label):
    positive, negative = score[label], score[~label]
    won = sum(
        1.0 if p > n else 0.5 if p == n else 0.0 for p, n in itertools.product(positive, negative)
    )
    return won / (positive.size * negative.size)


@pytest.mark.parametrize("levels", [2, 5, 1000])
def test_auroc_counts_pairs(levels):
    rng = np.random.default_rng(levels)
    for size in (2, 7, 40):
        score = rng.integers(0, levels, size).astype(np.float32)
        label = np.arange(size) < rng.integers(1, size)
        rng.shuffle(label)
        assert auroc(score, label) == pytest.approx(brute_force_auroc(score, label), abs=1e-12)
        assert auroc(score, label | True) is auroc(score, label & False) is None


def test_span_auroc_joins_the_responses():
    values = [np.array([0.0, -2.0]), np.array([1.0, -1.0, 0.5])]
    labels = [np.array([NO, YES]), np.array([NO, NO, YES])]
    joined = brute_force_auroc(-np.concatenate(values), np.concatenate(labels))
    assert span_auroc(values, labels) == pytest.approx(joined)
    assert span_auroc([], []) is None


def test_correlation():
    x = np.array([1.0, 2.0, 4.0])
    assert correlation(x, 3 - 2 * x) == pytest.approx(-1)
    assert correlation(x, np.ones(3)) is None
    assert correlation(np.ones(3), x) is None
    assert correlation(x[:1], x[:1]) is None
    assert correlation(x[:0], x[:0]) is None


def test_token_level_by_hand():
    metrics = compute_pair_metrics(EDITS, level="token", edits=True)
    # Means: 1.5 against 0.5, -1 against 2, 2 against 2: won, lost, tied.
    assert metrics["n"] == 3
    assert metrics["accuracy"] == pytest.approx(0.5)
    assert metrics["se"] == pytest.approx(0.5 / math.sqrt(3))
    # Equation 4: 2/2 - 1/2 > 0, 0 - (3 + 1)/3 < 0, 0/2 - 0 = 0.
    assert metrics["accuracy_changed_only"] == pytest.approx(0.5)
    assert metrics["se_changed_only"] == pytest.approx(0.5 / math.sqrt(3))
    totals, lengths = [3, 1, -1, 6, 4, 2], [2, 2, 1, 3, 2, 1]
    assert metrics["length_correlation"] == pytest.approx(np.corrcoef(totals, lengths)[0, 1])
    # Originals: changed 1, 3, 1; unchanged 0, 2, 2. -r wins (1, 2), (1, 2), twice, of nine.
    assert metrics["auroc_changed"] == pytest.approx(4 / 9)
    rewards = {
        "unchanged_edited": [1, -1, 4],
        "unchanged_original": [0, 2, 2],
        "changed_edited": [2, 0],
        "changed_original": [1, 3, 1],
    }
    assert metrics["reward"].keys() == rewards.keys()
    for name, values in rewards.items():
        expected = {"mean": np.mean(values), "std": np.std(values), "n": len(values)}
        assert metrics["reward"][name] == pytest.approx(expected)


def test_sequence_level_reads_the_last_value_only():
    metrics = compute_pair_metrics(EDITS, level="sequence", edits=True)
    # 2 against 1, -1 against 1, 0 against 2.
    assert metrics["accuracy"] == pytest.approx(1 / 3)
    assert metrics["se"] == pytest.approx(np.std([1, 0, 0], ddof=1) / math.sqrt(3))
    assert metrics["length_correlation"] == pytest.approx(
        np.corrcoef([2, 1, -1, 1, 0, 2], [2, 2, 1, 3, 2, 1])[0, 1]
    )
    assert metrics["auroc_changed"] is None  # its values were never trained as rewards of tokens


def test_sides_without_changed_or_unchanged_tokens():
    only_deletes = pair_values([1.0], [NO], [1.0, -1.0], [NO, YES])
    metrics = compute_pair_metrics([only_deletes] * 2, level="token", edits=True)
    assert metrics["reward"]["changed_edited"] == {"mean": None, "std": None, "n": 0}
    assert metrics["accuracy_changed_only"] == 1.0  # 0 against -1/2
    nothing_left = pair_values([1.0], [YES], [1.0, -1.0], [YES, YES])
    metrics = compute_pair_metrics([nothing_left], level="token", edits=True)
    assert metrics["auroc_changed"] is None
    assert metrics["reward"]["unchanged_original"]["n"] == 0
    assert metrics["se"] is None  # of one pair nothing can be said
    assert "100.0 % (21–100)" in format_table({"test": {"edits": metrics}})
    # Equation 4 divides by the whole length: changed sums 3 and 2, over 6 and over 2 tokens.
    longer = pair_values([0] * 5 + [3], [NO] * 5 + [YES], [0, 2], [NO, YES])
    metrics = compute_pair_metrics([longer], level="token", edits=True)
    assert metrics["accuracy_changed_only"] == 0.0


def test_the_table_shows_every_number():
    names = ("accuracy", "se", "accuracy_changed_only", "se_changed_only")
    names += ("auroc_changed", "auroc_spans", "length_correlation", "loss")
    metrics = {name: 0.5 + k / 1000 for k, name in enumerate(names, 1)} | {"n": 4321}
    parts = ("unchanged_edited", "unchanged_original", "changed_edited", "changed_original")
    metrics["reward"] = {
        part: {"mean": 0.6 + k / 100, "std": 0.7 + k / 100, "n": 7000 + k}
        for k, part in enumerate(parts)
    }
    text = format_table({"validation": {"edits": metrics}})
    shown = [f"{100 * metrics[name]:.1f}" for name in names[:4]]
    shown += [f"{metrics[name]:.3f}" for name in names[4:]]
    for row in metrics["reward"].values():
        shown += [f"{row['mean']:.3f}", f"{row['std']:.3f}", str(row["n"])]
    assert not [x for x in ("validation", "edits", "4321", *shown) if x not in text]


def test_the_table_has_dashes_where_there_is_no_number():
    edits = compute_pair_metrics(EDITS[1:2] * 2, level="token", edits=True) | {"loss": 0.25}
    preferences = compute_pair_metrics(EDITS, level="token", edits=False) | {"loss": 0.75}
    assert set(preferences) == {"n", "accuracy", "se", "length_correlation", "loss"}
    text = format_table({"test": {"edits": edits, "preferences": preferences}})
    head, edits, preferences, *rewards = [line for line in text.splitlines() if line]
    assert "± 0.0 %" not in edits
    assert "0.0 % (0–66)" in edits  # nought percent is a number, of two pairs
    assert (edits.count("%"), preferences.count("%")) == (2, 1)
    assert preferences.split()[:3] == ["test", "preferences", "3"]
    assert " - " in preferences
    assert len(rewards) == 4
    assert any("mean -, std -" in line for line in rewards)  # nothing changed on the edited sides
    assert len(edits) == len(preferences) == len(head) <= 113
