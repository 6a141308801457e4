"""The reward model's losses against plain Python loops in float64, from the paper's formulas.

The oracles never see a mask or a padded row: they take each side as a list of its own response
tokens, so a mistake in masking cannot be made twice.
"""

import functools
import itertools
import math
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized

from fgrlhf_jax.functional import reward_losses
from fgrlhf_jax.functional.reward_losses import LOSSES, SCALES, reward_model_loss

WEIGHTS = [(0.0, 0.0), (0.0, 0.3), (0.7, 0.0), (0.4, 1.1)]
BOTH = {"consistency_weight": 0.5, "center_weight": 0.3}


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


def pairs_of(loss: str, count: int) -> list[Pair]:
    """The same with rewards that the loss allows: tlcr's are between -1 and 1."""
    shrink = 0.45 if loss == "tlcr" else 1.0
    return [
        pair._replace(reward=tuple([shrink * r for r in side] for side in pair.reward))
        for pair in pairs(count)
    ]


def oracle_minus_log_sigmoid(x: float) -> float:
    return math.log1p(math.exp(-x)) if x >= 0 else -x + math.log1p(math.exp(x))


def oracle_score(rewards: list[float], changed: list[bool], loss: str) -> float:
    if loss == "sequence":
        return rewards[-1]
    total = 0.0
    for r, is_changed in zip(rewards, changed, strict=True):
        if loss in ("token_full", "tlcr") or is_changed:
            total += r
    return total / len(rewards)


def oracle_consistency(pair: Pair) -> float:
    total = 0.0
    for t, other in pair.matched:
        total += (pair.reward[0][t] - pair.reward[1][other]) ** 2
    return total / len(pair.matched) if pair.matched else 0.0


def oracle_center(pair: Pair, scale: str) -> float:
    total, count = 0.0, 0
    for side in (0, 1):
        length = len(pair.reward[side]) if scale == "score" else 1
        for r, is_changed in zip(pair.reward[side], pair.changed(side), strict=True):
            if not is_changed:
                total, count = total + (r / length) ** 2, count + 1
    return total / count if count else 0.0


def oracle_tlcr(pair: Pair) -> float:
    total, count = 0.0, 0
    for side in (0, 1):
        for r, is_changed in zip(pair.reward[side], pair.changed(side), strict=True):
            d = (1 + r) / 2
            label = 0.5 if not is_changed else 1.0 if side == 0 else 0.0
            total += -label * math.log(d) - (1 - label) * math.log(1 - d)
            count += 1
    return total / count


def oracle_preference_loss(pair: Pair, loss: str) -> float:
    if loss == "tlcr":
        return oracle_tlcr(pair)
    scores = [oracle_score(pair.reward[side], pair.changed(side), loss) for side in (0, 1)]
    return oracle_minus_log_sigmoid(scores[0] - scores[1])


def oracle_loss(
    pair: Pair,
    loss: str,
    consistency_weight: float,
    center_weight: float,
    center_scale: str = "score",
) -> float:
    total = oracle_preference_loss(pair, loss)
    if loss != "sequence":
        total += consistency_weight * oracle_consistency(pair)
        total += center_weight * oracle_center(pair, center_scale)
    return total


def batch(drawn: list[Pair], junk=(1e6,)) -> list[np.ndarray]:
    """The arrays of :func:`pad` with a first axis for the pairs, which take turns with ``junk``."""
    junk = itertools.cycle(junk)
    padded = (pad(pair, 24, left=(2, 5), junk=next(junk)) for pair in drawn)
    return [np.stack(arrays) for arrays in zip(*padded, strict=True)]


@pytest.mark.usefixtures("float64")
class LoopsTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.product(loss=LOSSES, weights=WEIGHTS)
    def test_loss(self, loss, weights):
        scale = SCALES[weights[0] == 0]
        options = dict(zip(BOTH, weights, strict=True)) | {"center_scale": scale}
        compute = functools.partial(reward_model_loss, loss=loss, **options)
        drawn = pairs_of(loss, 24)
        value_B, metrics = jax.device_get(self.variant(jax.vmap(compute))(*batch(drawn)))
        chex.assert_type(value_B, jnp.float64)
        for b, pair in enumerate(drawn):
            score = [oracle_score(pair.reward[s], pair.changed(s), loss) for s in (0, 1)]
            expected = {
                "preference_loss": oracle_preference_loss(pair, loss),
                "reward/margin": score[0] - score[1],
                "accuracy": 0.5 if score[0] == score[1] else float(score[0] > score[1]),
            }
            if loss != "sequence":
                expected["reward/consistency_penalty"] = oracle_consistency(pair)
                expected["reward/center_penalty"] = oracle_center(pair, scale)
            np.testing.assert_allclose(value_B[b], oracle_loss(pair, loss, **options), rtol=1e-13)
            row = {name: metric_B[b] for name, metric_B in metrics.items()}
            expected = jax.tree.map(np.float64, expected)
            chex.assert_trees_all_close(row, expected, rtol=1e-13, atol=1e-14)

    @parameterized.product(loss=LOSSES, weights=[WEIGHTS[0], WEIGHTS[3]])
    def test_gradient_equals_differences(self, loss, weights):
        options, step = dict(zip(BOTH, weights, strict=True)), 1e-5
        drawn = pairs_of(loss, 12)
        reward_B2S, response_B2S, *rest = batch(drawn, (1e6, np.nan, np.inf))
        gradient = jax.grad(lambda *p: reward_model_loss(*p, loss=loss, **options)[0])
        slope_B2S = np.array(jax.jit(jax.vmap(gradient))(reward_B2S, response_B2S, *rest))
        expected_B2S = np.zeros_like(slope_B2S)
        for b, pair in enumerate(drawn):
            for side, t in [(s, t) for s in (0, 1) for t in range(len(pair.reward[s]))]:
                ends = []
                for sign in (1, -1):
                    moved = [list(r) for r in pair.reward]
                    moved[side][t] += sign * step
                    ends.append(oracle_loss(pair._replace(reward=tuple(moved)), loss, **options))
                column = np.flatnonzero(response_B2S[b, side])[t]
                expected_B2S[b, side, column] = (ends[0] - ends[1]) / (2 * step)
        np.testing.assert_allclose(slope_B2S, expected_B2S, atol=1e-9)
        # Not merely small: what stands in a prompt or in padding, NaN too, gets none at all.
        assert not slope_B2S[~response_B2S].any()


@pytest.mark.parametrize("loss", LOSSES)
def test_padding_of_any_length_changes_nothing(loss):
    """Bit for bit, wherever the padding stands and whatever the model said there.

    But for the sums of logarithms of tlcr, which the order of the additions rounds.
    """
    compute = jax.jit(functools.partial(reward_model_loss, loss=loss, **BOTH))
    layouts = [(14, (0, 0)), (17, (3, 0)), (64, (41, 50))]
    for pair in pairs_of(loss, 8):
        results = []
        for columns, left in layouts:
            for junk in (0.0, -3e8, np.inf, np.nan):
                reward_2S, *masks = pad(pair, columns, left=left, junk=junk)
                results.append(compute(reward_2S.astype(np.float32), *masks))
        for other in results[1:]:
            if loss == "tlcr":
                chex.assert_trees_all_close(other, results[0], rtol=1e-6)
            else:
                chex.assert_trees_all_equal(other, results[0])


@pytest.mark.parametrize("loss", LOSSES)
def test_a_tie_counts_one_half(loss):
    """Two equal sides; with tlcr of tokens that somebody kept, of which nothing is known."""
    rewards = [0.0, 0.0] if loss == "tlcr" else [0.5, 0.5]
    padded = pad(Pair(1, (rewards, rewards), [(0, 0)]), 4)
    value, metrics = reward_model_loss(*padded, loss=loss, center_weight=0.0)
    np.testing.assert_allclose(value, math.log(2), rtol=1e-6)
    assert metrics["accuracy"] == 0.5


def test_center_weighs_tokens_not_sides():
    """Truncation leaves U0 of unequal size on the two sides: 3 and 1 tokens are 4 tokens."""
    response_2S = np.array([[True, True, True, False], [True, True, False, False]])
    changed_2S = np.array([[False] * 4, [True, False, False, False]])
    reward_2S = np.array([[1.0, 1.0, 1.0, 9.0], [9.0, 3.0, 9.0, 9.0]])
    center = functools.partial(reward_losses.center, reward_2S, response_2S, changed_2S)
    assert center("reward") == 3.0
    np.testing.assert_allclose(center(), (3 / 9 + 9 / 4) / 4, rtol=1e-6)


@pytest.mark.parametrize(("difference", "loss", "slope"), [(1e4, 0.0, 0.0), (-1e4, 1e4, -1.0)])
def test_huge_scores(difference, loss, slope):
    value, gradient = jax.value_and_grad(reward_losses.bradley_terry_loss)(difference, 0.0)
    assert value == loss
    assert gradient == slope
    padded = pad(Pair(1, ([difference], [0.0]), []), 4)
    for name in set(LOSSES) - {"tlcr"}:
        assert reward_model_loss(*padded, loss=name)[0] == loss


def test_integer_rewards_and_masks_are_refused():
    """0.7 stored as an integer is 0: such an array never gets as far as a sum."""
    reward_2S, response_2S, changed_2S, partner_S = pad(pairs(4)[3], 12)
    reward_2S = reward_2S.astype(np.int32)
    calls = [
        lambda: reward_losses.last_score(reward_2S[0], response_2S[0]),
        lambda: reward_losses.mean_score(reward_2S[0], response_2S[0]),
        lambda: reward_losses.edit_score(reward_2S[0], changed_2S[0], response_2S[0]),
        lambda: reward_losses.consistency(reward_2S, partner_S),
        lambda: reward_losses.center(reward_2S, response_2S, changed_2S),
        lambda: reward_losses.tlcr_loss(reward_2S, response_2S, changed_2S),
    ]
    for call in calls:
        with pytest.raises(AssertionError, match="type"):
            call()
    masks = (response_2S.astype(int), changed_2S.astype(int))  # ~1 is -2: all are unchanged
    for loss in LOSSES:
        for arrays in ((reward_2S, response_2S, changed_2S), (reward_2S + 0.5, *masks)):
            with pytest.raises(AssertionError, match="type"):
                reward_model_loss(*arrays, partner_S, loss=loss)


@pytest.mark.usefixtures("float64")
def test_tlcr_is_least_where_the_reward_is_put_in_less_taken_out():
    """Of one token that is put in 5 times, kept 3 times and taken out 2 times of 10."""
    counts, rewards = (5, 3, 2), np.linspace(-0.99, 0.99, 1981)
    response_2S = np.array([[True], [True]])
    losses = np.zeros_like(rewards)
    for count, (side, changed) in zip(counts, ((0, True), (0, False), (1, True)), strict=True):
        mask_2S = response_2S & (np.arange(2)[:, None] == side)
        compute = jax.vmap(
            lambda r, m=mask_2S, c=changed: reward_losses.tlcr_loss(jnp.full((2, 1), r), m, m & c)
        )
        losses += count * np.array(compute(rewards))
    np.testing.assert_allclose(rewards[losses.argmin()], 0.3, atol=1e-9)


@pytest.mark.parametrize("penalty", [0.0, 0.7, 1.0])
def test_an_ensemble_is_its_mean_less_deviations(penalty):
    """Against a loop in float64; of two models, 1 is the lower one."""
    reward_3BT = np.random.default_rng(0).normal(size=(3, 2, 4)).astype(np.float32)
    got_BT = np.asarray(reward_losses.pessimistic_reward(jnp.asarray(reward_3BT), penalty))
    for b, t in np.ndindex(2, 4):
        values = [float(x) for x in reward_3BT[:, b, t]]
        mean = sum(values) / 3
        deviation = (sum((x - mean) ** 2 for x in values) / 3) ** 0.5
        assert got_BT[b, t] == pytest.approx(mean - penalty * deviation, abs=1e-6)
    two = reward_losses.pessimistic_reward(jnp.asarray(reward_3BT[:2]), 1.0)
    np.testing.assert_allclose(two, reward_3BT[:2].min(axis=0), atol=1e-6)
