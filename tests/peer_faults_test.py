"""Faults that other implementations of RLHF shipped, a test each (METHOD, section 7).

Each calls the code where the fault would stand. A comment names the tests that hold the same
ground more widely.
"""

import dataclasses
import difflib
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_cases

from fgrlhf_jax.data.alignment import align
from fgrlhf_jax.functional import policy_losses as po
from fgrlhf_jax.models import llama, sampling
from fgrlhf_jax.reward_model import model as reward

POLICY = llama.CausalLM(tiny_cases.CFG)
PARAMS = tiny_cases.parameters(POLICY)

pytestmark = pytest.mark.usefixtures("quick_compilation")


def sample(prompts, side="left", fill=63, width=8, model=POLICY, **options):
    tokens, mask = tiny_cases.laid_out(prompts, side, fill, width)
    keys = sampling.row_keys(jax.random.key(1), len(prompts))
    options = {"max_new": 9, "model": model, **options}
    out = sampling.generate(PARAMS, tokens.astype(np.int32), mask, keys, **options)
    return jax.device_get(out)


@functools.partial(jax.jit, static_argnames="model")
def full_pass(tokens_1S, *, model):
    args = llama.positions_and_mask(jnp.ones_like(tokens_1S, bool))
    return model.apply({"params": PARAMS}, tokens_1S, *args)[0]


def logits_of(model, tokens) -> np.ndarray:
    """Of one row, by a pass over all of it: no cache, no padding.

    What follows the row to make one width of all rows is text like any other: a token's logits
    depend on nothing after it.
    """
    row = jnp.array([[*tokens, *[1] * (14 - len(tokens))]], jnp.int32)
    return np.asarray(full_pass(row, model=model))[: len(tokens)]


def test_fault_1_rewards_accumulated_as_integers():
    """0.7 in an integer array is 0: such an array is refused, and 0.7 comes out as 0.7."""
    # The reward model's side: objectives_test.test_integer_rewards_are_refused.
    kl_T, real_T = jnp.zeros(3), jnp.ones(3, bool)
    whole_T, part_T = jnp.array([0, 0, 1]), jnp.array([0.0, 0.0, 0.7])
    for args in ((whole_T, kl_T), (part_T, whole_T)):
        with pytest.raises(AssertionError, match="type"):
            po.reward_vector(*args, real_T, 0.1)
        with pytest.raises(AssertionError, match="type"):
            po.gae(*args, real_T, 1.0, 1.0)
    kept_T = po.missing_eos(whole_T, real_T, jnp.array(False), rule="replace", penalty=-0.7)
    assert kept_T.tolist() == jnp.array([0, 0, -0.7]).tolist()
    reward_T = po.reward_vector(part_T, kl_T, real_T, 0.1)
    advantage_T, return_T = po.gae(reward_T, kl_T, real_T, 1.0, 1.0)
    for x_T in (reward_T, advantage_T, return_T, po.whiten(reward_T, real_T)):
        assert x_T.dtype == jnp.float32
    np.testing.assert_allclose(return_T, [0.7] * 3)


@pytest.mark.parametrize("std", [0.1, 3.0, 50.0])
def test_fault_2_whitening_divided_by_the_root_of_the_deviation(std):
    # Divided by sqrt(std) the deviation would be sqrt(std), which is 1 only where std is.
    x = std * jax.random.normal(jax.random.key(0), (8, 16))
    for shift_mean in (True, False):
        white = po.whiten(x, jnp.ones((8, 16), bool), shift_mean=shift_mean)
        assert np.std(white) == pytest.approx(1.0, rel=1e-4)


@pytest.mark.parametrize("padding", [0.0, 7.0, jnp.nan])
def test_fault_3_whitening_and_means_that_include_padding(padding):
    # Bit for bit and with every kind of junk: policy_objectives_test and objectives_test,
    # test_padding_of_any_length_...
    x_BT = jnp.array([[1.0, 2.0, 3.0, 6.0], [4.0, 8.0, padding, padding]])
    mask_BT = jnp.array([[True] * 4, [True, True, False, False]])
    real = np.array([1.0, 2.0, 3.0, 6.0, 4.0, 8.0])
    assert po.masked_mean(x_BT, mask_BT) == 4.0
    white_BT = np.asarray(po.whiten(x_BT, mask_BT))
    expected = (real - 4.0) / math.sqrt(34 / 6)  # (9 + 4 + 1 + 4 + 0 + 16) / 6
    np.testing.assert_allclose(white_BT[mask_BT], expected, rtol=1e-6)
    assert not white_BT[~mask_BT].any()
    assert po.explained_variance(x_BT / 2, x_BT, mask_BT) == 0.75
    with_mean = po.whiten(x_BT, mask_BT, shift_mean=False)
    assert po.masked_mean(with_mean, mask_BT) == pytest.approx(4.0)


@pytest.mark.parametrize("eos", [0, 12])
def test_fault_4_off_by_one_where_padding_is_the_end(eos):
    """EOS in prompts, as padding of prompts, and (0) as what stands beyond a response's end."""
    # Reward model: reward_test.test_a_sequence_is_scored_at_its_last_real_token_...
    prompts = [[5, 6, eos], [eos], [3, eos, 4], [8, 8], *([n % 64] for n in range(150))]
    free = sample(prompts, eos=-1)
    ends = [np.flatnonzero(row == eos) for row in free.tokens_BT]
    assert any(end.size and end[0] == 0 for end in ends)  # at once
    assert any(end.size and 0 < end[0] < 8 for end in ends)  # in time
    assert any(not end.size for end in ends)  # never
    for side in ("left", "right"):
        out = sample(prompts, side, fill=eos, eos=eos)
        for b, (prompt, end) in enumerate(zip(prompts, ends, strict=True)):
            length = end[0] + 1 if end.size else 9
            assert out.length_B[b] == length
            assert out.finished_B[b] == bool(end.size)
            said = out.tokens_BT[b, :length]
            np.testing.assert_array_equal(said, free.tokens_BT[b, :length])
            if b < 4:  # the last token's probability too
                logprobs = jax.nn.log_softmax(logits_of(POLICY, [*prompt, *said])[:-1])
                expected = np.asarray(logprobs)[-length:][np.arange(length), said]
                np.testing.assert_allclose(out.logprob_BT[b, :length], expected, atol=1e-5)


def test_fault_5_score_on_the_first_padding_after_the_end():
    # The reward model's own last token: reward_test, the same name as for fault 4.
    for last in (0, 3, 5):  # the last of which has no padding
        response_T = jnp.arange(6) <= last
        last_T = po.last_token(response_T)
        assert np.flatnonzero(last_T).tolist() == [last]
        score_T = jnp.where(last_T, 2.0, 0.0)
        reward_T = po.reward_vector(score_T, jnp.full(6, 0.5), response_T, 0.5)
        assert reward_T[last] == 1.75
        assert reward_T.sum() == 2.0 - 0.25 * (last + 1)  # the score arrives, once
        ended_T = po.missing_eos(
            score_T, response_T, jnp.array(False), rule="replace", penalty=-3.0
        )
        assert np.flatnonzero(ended_T).tolist() == [last]
        paid_T = reward.normalize_rewards(
            score_T[None], response_T[None], reward.Normalization(1.0, 0.5), level="sequence"
        )[0]
        assert np.flatnonzero(paid_T).tolist() == [last]
        assert paid_T[last] == 2.0


def test_fault_7_head_of_the_wrong_width():
    """1/(d + 1) for 1/sqrt(d + 1): 32 times too small here."""
    # As a run starts: reward_test.test_a_run_starts_with_a_head_of_std_one_over_root_d_plus_one.
    cfg = llama.LlamaConfig(8, 1024, 8, 1, 2, 1, 2)
    for state_action in (False, True):
        head = llama.ScalarHead(cfg, state_action, True)
        tokens = jnp.zeros((1, 2), jnp.int32)
        params = head.init(jax.random.key(0), jnp.ones((1, 2, 1024)), tokens, tokens)["params"]
        assert np.std(params["kernel"]) == pytest.approx(1025**-0.5, rel=0.1)


@pytest.mark.parametrize("side", ["left", "right"])
def test_fault_9_a_score_read_from_a_padding_position(side):
    # Wider: reward_test.test_padding_of_any_side_length_and_content_changes_no_reward.
    model = llama.TokenValueModel(tiny_cases.CFG, use_bias=False)
    params = tiny_cases.parameters(model)
    whole = [5, 6, 7, 2, 9, 4, 1]
    rows = [whole[:n] for n in (7, 4, 2, 1)]
    # A token's value depends on nothing after it: the longest row has those of all.
    value_S = jax.jit(functools.partial(reward.token_values, model=model))(
        params, jnp.array([whole]), jnp.ones((1, 7), bool)
    )[0]
    score = jax.jit(
        lambda tokens, mask: reward.score_tokens(
            params, tokens, mask, model=model, level="sequence"
        )
    )
    for fill in (0, 2, 63):
        tokens, mask = tiny_cases.laid_out(rows, side, fill, 7)
        scores = np.asarray(score(tokens.astype(np.int32), mask))
        for b, row in enumerate(rows):
            place = 6 if side == "left" else len(row) - 1
            assert np.flatnonzero(scores[b]).tolist() == [place]
            np.testing.assert_allclose(scores[b, place], value_S[len(row) - 1], atol=2e-5)


def test_fault_11_positions_that_count_left_padding(monkeypatch):
    """In a full pass, in prefill and in decoding.

    Rotary attention sees differences of positions only, so an equal shift of all of them shows
    nowhere. Here the angles go with the position's square, and any shift shows.
    """
    # The same with plain rotary positions: sampling_test.test_padding_company_and_layout_...
    mask = jnp.array([[False, False, True, True, True], [True, True, True, True, True]])
    positions, _ = llama.positions_and_mask(mask)
    assert positions[:, 2:].tolist() == [[0, 1, 2], [2, 3, 4]]

    plain = llama.rotary_tables
    monkeypatch.setattr(llama, "rotary_tables", lambda cfg, p: plain(cfg, p * p))
    # A model of its own: compiled functions of others must not have the changed tables.
    model = llama.CausalLM(dataclasses.replace(tiny_cases.CFG, max_position=11))
    prompts = [[5, 6, 7], [9], [3, 1, 4, 1, 5], [8, 8]]
    for unroll in (True, False):
        out = sample(prompts, model=model, eos=-1, temperature=0.0, unroll=unroll)
        for prompt, said in zip(prompts, out.tokens_BT, strict=True):
            logits = logits_of(model, [*prompt, *said])[len(prompt) - 1 : -1]
            np.testing.assert_array_equal(said, logits.argmax(-1))
    # And a shift does show.
    shifted = model.apply(
        {"params": PARAMS},
        jnp.array(prompts[2:3]),
        jnp.arange(3, 8)[None],
        jnp.tri(5, dtype=bool)[None],
    )
    assert np.abs(shifted[0] - logits_of(model, prompts[2])).max() > 0.1


def test_fault_12_difflib_with_its_autojunk():
    """It drops tokens that are common in 200 or more, and with them the alignment."""
    # alignment_test: every script is minimal.
    original = np.random.default_rng(0).integers(5, size=600).tolist()
    edited = [*original[:300], 77, *original[300:]]
    edit = align(edited, original)
    assert np.flatnonzero(edit.changed_i).tolist() == [300]
    assert not edit.changed_j.any()
    blocks = difflib.SequenceMatcher(None, original, edited).get_matching_blocks()
    assert sum(block.size for block in blocks) < 600  # the fault, for the record
