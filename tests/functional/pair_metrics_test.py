"""Table 2 by brute force and by hand."""

import itertools
import math

import numpy as np
import pytest

from fgrlhf_jax.data.pairs import Pair, pad_pairs
from fgrlhf_jax.functional import pair_metrics
from fgrlhf_jax.functional.pair_metrics import Scored

YES, NO = True, False


def scored(value_i, changed_i, value_j, changed_j) -> Scored:
    return Scored(
        np.array(value_i, np.float32),
        np.array(changed_i, bool),
        np.array(value_j, np.float32),
        np.array(changed_j, bool),
    )


# Three edits: one that replaces, one that only deletes, one that only inserts and is a tie.
EDITS = [
    scored([1.0, 2.0], [NO, YES], [0.0, 1.0], [NO, YES]),
    scored([-1.0], [NO], [2.0, 3.0, 1.0], [NO, YES, YES]),
    scored([4.0, 0.0], [NO, YES], [2.0], [NO]),
]


def brute_force_auroc(score, label):
    positive, negative = score[label], score[~label]
    won = sum(
        1.0 if p > n else 0.5 if p == n else 0.0
        for p, n in itertools.product(positive, negative)
    )
    return won / (positive.size * negative.size)


@pytest.mark.parametrize("levels", [2, 5, 1000])
def test_auroc_counts_pairs(levels):
    rng = np.random.default_rng(levels)
    for size in (2, 7, 40):
        score = rng.integers(0, levels, size).astype(np.float32)
        label = np.arange(size) < rng.integers(1, size)
        rng.shuffle(label)
        want = brute_force_auroc(score, label)
        assert pair_metrics.auroc(score, label) == pytest.approx(want, abs=1e-12)
        assert pair_metrics.auroc(-score, label) == pytest.approx(1 - want, abs=1e-12)
        assert pair_metrics.auroc(np.exp(score / levels), label) == pytest.approx(want)


def test_auroc_at_its_ends():
    label = np.array([NO, YES, NO, YES])
    assert pair_metrics.auroc(np.array([0.0, 3.0, 1.0, 2.0]), label) == 1.0
    assert pair_metrics.auroc(np.array([3.0, 0.0, 2.0, 1.0]), label) == 0.0
    assert pair_metrics.auroc(np.zeros(4), label) == 0.5
    assert pair_metrics.auroc(np.zeros(4), np.ones(4, bool)) is None
    assert pair_metrics.auroc(np.zeros(4), np.zeros(4, bool)) is None


def test_correlation():
    x = np.array([1.0, 2.0, 4.0])
    assert pair_metrics.correlation(x, 3 - 2 * x) == pytest.approx(-1)
    # deviations (-4, -1, 5)/3 and (2, -1, -1): covariance -2, variances 14/3 and 6
    assert pair_metrics.correlation(x, np.array([2.0, -1.0, -1.0])) == pytest.approx(
        -4 / math.sqrt(14 / 3 * 6)
    )
    assert pair_metrics.correlation(x, np.ones(3)) is None
    assert pair_metrics.correlation(np.ones(3), x) is None
    assert pair_metrics.correlation(x[:1], x[:1]) is None
    assert pair_metrics.correlation(x[:0], x[:0]) is None


def test_token_level_table_by_hand():
    table = pair_metrics.pair_table(EDITS, level="token", edits=True)
    # Means: 1.5 against 0.5, -1 against 2, 2 against 2: won, lost, tied.
    assert table["n"] == 3
    assert table["accuracy"] == pytest.approx(0.5)
    assert table["se"] == pytest.approx(0.5 / math.sqrt(3))
    # Equation 4: 2/2 - 1/2 > 0, 0 - (3 + 1)/3 < 0, 0/2 - 0 = 0.
    assert table["accuracy_changed_only"] == pytest.approx(0.5)
    assert table["se_changed_only"] == pytest.approx(0.5 / math.sqrt(3))
    # Totals 3, 1, -1, 6, 4, 2 of lengths 2, 2, 1, 3, 2, 1.
    totals, lengths = [3, 1, -1, 6, 4, 2], [2, 2, 1, 3, 2, 1]
    assert table["length_correlation"] == pytest.approx(np.corrcoef(totals, lengths)[0, 1])
    # Originals: changed 1, 3, 1; unchanged 0, 2, 2. -r wins (1, 2), (1, 2), twice, of nine.
    assert table["auroc_changed"] == pytest.approx(4 / 9)
    moments = {
        "unchanged_edited": [1, -1, 4],
        "unchanged_original": [0, 2, 2],
        "changed_edited": [2, 0],
        "changed_original": [1, 3, 1],
    }
    assert set(table["reward"]) == set(moments)
    for part, values in moments.items():
        mean = sum(values) / len(values)
        assert table["reward"][part]["n"] == len(values)
        assert table["reward"][part]["mean"] == pytest.approx(mean)
        spread = math.sqrt(sum((v - mean) ** 2 for v in values) / len(values))
        assert table["reward"][part]["std"] == pytest.approx(spread)


def test_sequence_level_reads_the_last_value_only():
    table = pair_metrics.pair_table(EDITS, level="sequence", edits=True)
    # 2 against 1, -1 against 1, 0 against 2.
    assert table["accuracy"] == pytest.approx(1 / 3)
    assert table["se"] == pytest.approx(np.std([1, 0, 0], ddof=1) / math.sqrt(3))
    assert table["length_correlation"] == pytest.approx(
        np.corrcoef([2, 1, -1, 1, 0, 2], [2, 2, 1, 3, 2, 1])[0, 1]
    )
    assert table["accuracy_changed_only"] == pytest.approx(0.5)


def test_equation_4_divides_by_the_whole_length():
    # Changed sums 3 and 2, but over 6 and over 2 tokens.
    pair = scored([0] * 5 + [3], [NO] * 5 + [YES], [0, 2], [NO, YES])
    table = pair_metrics.pair_table([pair], level="token", edits=True)
    assert table["accuracy_changed_only"] == 0.0
    assert table["se_changed_only"] == table["se"] == 0.0  # of one pair nothing can be said


def test_sides_without_changed_or_unchanged_tokens():
    only_deletes = scored([1.0], [NO], [1.0, -1.0], [NO, YES])
    table = pair_metrics.pair_table([only_deletes] * 2, level="token", edits=True)
    assert table["reward"]["changed_edited"] == {"mean": None, "std": None, "n": 0}
    assert table["accuracy_changed_only"] == 1.0  # 0 against -1/2
    nothing_left = scored([1.0], [YES], [1.0, -1.0], [YES, YES])
    table = pair_metrics.pair_table([nothing_left], level="token", edits=True)
    assert table["auroc_changed"] is None
    assert table["reward"]["unchanged_original"]["n"] == 0


def test_preferences_have_no_figures_of_changed_tokens():
    pairs = [scored(p.value_i, p.value_i > -9, p.value_j, p.value_j > -9) for p in EDITS]
    table = pair_metrics.pair_table(pairs, level="token", edits=False)
    assert set(table) == {"n", "accuracy", "se", "length_correlation"}


def test_standard_error_is_that_of_many_tables():
    # Of 50 pairs that win with probability 0.8, over 200 draws.
    rng = np.random.default_rng(0)
    draws = []
    for _ in range(200):
        won = rng.random(50) < 0.8
        pairs = [scored([w], [YES], [0.5], [YES]) for w in won]
        draws.append(pair_metrics.pair_table(pairs, level="token", edits=False))
    spread = np.std([t["accuracy"] for t in draws])
    assert np.mean([t["se"] for t in draws]) == pytest.approx(spread, rel=0.1)


def test_unpad_gives_back_what_was_padded():
    rng = np.random.default_rng(1)
    pairs = []
    for row, (prompt, length_i, length_j) in enumerate([(2, 3, 5), (1, 4, 1), (3, 1, 2)]):
        none = np.full(prompt, NO)
        pairs.append(
            Pair(
                rng.integers(0, 9, prompt + length_i).astype(np.int32),
                rng.integers(0, 9, prompt + length_j).astype(np.int32),
                prompt,
                np.concatenate([none, rng.random(length_i) < 0.5]),
                np.concatenate([none, rng.random(length_j) < 0.5]),
                np.full(prompt + length_i, -1, np.int32),
                row,
            )
        )
    batch = pad_pairs(pairs, 10, batch_size=5)
    value_B2S = rng.standard_normal((5, 2, 10)).astype(np.float32)
    found = pair_metrics.unpad(value_B2S, batch)
    assert len(found) == 3  # the two rows that only fill the batch are gone
    for b, (pair, one) in enumerate(zip(pairs, found, strict=True)):
        start = pair.prompt_length
        np.testing.assert_array_equal(one.value_i, value_B2S[b, 0, start : len(pair.tokens_i)])
        np.testing.assert_array_equal(one.value_j, value_B2S[b, 1, start : len(pair.tokens_j)])
        np.testing.assert_array_equal(one.changed_i, pair.changed_i[start:])
        np.testing.assert_array_equal(one.changed_j, pair.changed_j[start:])


def test_span_auroc_joins_the_responses():
    values = [np.array([0.0, -2.0]), np.array([1.0, -1.0, 0.5])]
    labels = [np.array([NO, YES]), np.array([NO, NO, YES])]
    joined = brute_force_auroc(-np.concatenate(values), np.concatenate(labels))
    assert pair_metrics.span_auroc(values, labels) == pytest.approx(joined)
    assert pair_metrics.span_auroc([], []) is None


def table_of_distinct_figures() -> dict:
    numbers = iter(range(1, 100))
    figure = lambda: next(numbers) / 1000 + 0.5  # noqa: E731
    parts = ("unchanged_edited", "unchanged_original", "changed_edited", "changed_original")
    return {
        "n": 4321,
        "accuracy": figure(),
        "se": figure(),
        "accuracy_changed_only": figure(),
        "se_changed_only": figure(),
        "auroc_changed": figure(),
        "auroc_spans": figure(),
        "length_correlation": figure(),
        "loss": figure(),
        "reward": {
            p: {"mean": figure(), "std": figure(), "n": 7000 + i} for i, p in enumerate(parts)
        },
    }


def leaves(tree):
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from ((f"{name}.{inner}", v) for inner, v in leaves(value))
        else:
            yield name, value


def test_the_table_shows_every_figure():
    table = table_of_distinct_figures()
    text = pair_metrics.format_table({"validation": {"edits": table}})
    assert "validation" in text
    assert "edits" in text
    for name, value in leaves(table):
        percent = name.startswith(("accuracy", "se"))
        shown = str(value) if name.endswith("n") and value > 1 else f"{value:.3f}"
        assert (f"{100 * value:.1f}" if percent else shown) in text, name


def test_the_table_says_where_there_is_no_figure():
    real = pair_metrics.pair_table(EDITS[1:2] * 2, level="token", edits=True) | {"loss": 0.25}
    plain = pair_metrics.pair_table(EDITS, level="token", edits=False) | {"loss": 0.75}
    text = pair_metrics.format_table({"test": {"edits": real, "preferences": plain}})
    first, edits, preferences, *rewards = [line for line in text.splitlines() if line]
    assert len(first) <= 100
    assert "0.0 ± 0.0 %" in edits  # nought percent is a figure
    assert edits.count("%") == 2
    assert preferences.split()[:3] == ["test", "preferences", "3"]
    assert preferences.count("%") == 1
    assert " - " in preferences
    assert len(rewards) == 4
    assert any("r = - ± -" in line for line in rewards)  # the edited sides' U1 is empty
    assert [len(edits), len(preferences)] == [len(first)] * 2
