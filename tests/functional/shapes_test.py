"""Arrays that do not fit each other are refused, and never broadcast to another loss."""

import functools
import textwrap

import jax
import jax.numpy as jnp
import pytest

from fgrlhf_jax import functional
from fgrlhf_jax.functional import policy_losses, preference_losses, reward_losses
from fgrlhf_jax.functional.masking import masked_mean, masked_sum

X_T, MASK_T = jnp.linspace(-1.0, -0.5, 6), jnp.arange(6) < 4
X_2T, MASK_2T = jnp.stack([X_T, X_T]), jnp.stack([MASK_T, MASK_T])
PENALTY = {"rule": "subtract", "penalty": -1.0}
DENSE = functools.partial(preference_losses.dense_logprob, gamma=2.0, normalize=False)
FUNCTIONS = {
    "masked_sum": (masked_sum, X_T, MASK_T),
    "masked_mean": (masked_mean, X_T, MASK_T),
    "whiten": (policy_losses.whiten, X_T, MASK_T),
    "kl_estimate": (lambda *xs: policy_losses.kl_estimate(*xs, "k1"), X_T, X_T),
    "missing_eos": (lambda *xs: policy_losses.missing_eos(*xs, True, **PENALTY), X_T, MASK_T),
    "reward_vector": (lambda *xs: policy_losses.reward_vector(*xs, 0.1), X_T, X_T, MASK_T),
    "gae": (lambda *xs: policy_losses.gae(*xs, 1.0, 0.95), X_T, X_T, MASK_T),
    "return_to_go": (lambda *xs: policy_losses.return_to_go(*xs, 1.0), X_T, MASK_T),
    "leave_one_out": (lambda *xs: policy_losses.leave_one_out(*xs, X_T[:2]), X_2T, MASK_2T),
    "policy_loss": (lambda *xs: policy_losses.policy_loss(*xs, 0.2), X_T, X_T, X_T),
    "value_loss": (lambda *xs: policy_losses.value_loss(*xs, 0.2), X_T, X_T, X_T),
    "explained_variance": (policy_losses.explained_variance, X_T, X_T, MASK_T),
    "last_score": (reward_losses.last_score, X_T, MASK_T),
    "mean_score": (reward_losses.mean_score, X_T, MASK_T),
    "edit_score": (reward_losses.edit_score, X_T, MASK_T, MASK_T),
    "center": (reward_losses.center, X_2T, MASK_2T, MASK_2T),
    "tlcr_loss": (reward_losses.tlcr_loss, X_2T, MASK_2T, MASK_2T),
    "consistency": (reward_losses.consistency, X_2T, jnp.arange(6)),
    "dense_logprob": (DENSE, X_T, MASK_T, MASK_T),
    "logprob_and_entropy": (policy_losses.logprob_and_entropy, jnp.ones([6, 9]), jnp.arange(6)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_no_array_is_broadcast_to_another(name):
    function, *arrays = FUNCTIONS[name]
    function(*arrays)
    for i, array in enumerate(arrays):
        for wrong in (array[..., None], array[..., :1], array[:1]):
            if wrong.shape == array.shape:
                continue
            if name == "logprob_and_entropy" and wrong.shape == (6, 1):
                continue  # a vocabulary of one token
            with pytest.raises((AssertionError, ValueError)):
                function(*arrays[:i], wrong, *arrays[i + 1 :])


def test_one_sample_leaves_none_to_compare_it_with():
    with pytest.raises(AssertionError):
        policy_losses.leave_one_out(X_2T[:1], MASK_2T[:1], X_T[:1])


PAIR = X_2T, MASK_2T, MASK_2T, jnp.arange(6)
CLIP = {"rule": "clip"}
UNKNOWN = {
    "'k2'.*k1_clipped": lambda: policy_losses.kl_estimate(X_T, X_T, "k2"),
    "'clip'.*replace": lambda: policy_losses.missing_eos(X_T, MASK_T, True, **PENALTY | CLIP),
    "'pairwise'.*token_edit": lambda: reward_losses.reward_model_loss(*PAIR, loss="pairwise"),
    "scale 'scores' is not one of": lambda: reward_losses.reward_model_loss(
        *PAIR, loss="token_full", center_scale="scores"
    ),
    "loss 'ipo' is not one of": lambda: preference_losses.preference_loss(
        *PAIR[:3], jnp.zeros((2, 2)), preference_losses.PreferenceSettings("ipo")
    ),
}


@pytest.mark.parametrize("message", UNKNOWN)
def test_unknown_choices_are_named(message):
    with pytest.raises(ValueError, match=message):
        UNKNOWN[message]()


def test_the_example_of_the_package():
    names = {}
    exec(textwrap.dedent(functional.__doc__.split("\n\n", 2)[2].rpartition("\n\n")[0]), names)
    # Rewards of the last token alone and no values: advantages fall by lambda a token.
    reward_2T = jnp.zeros([2, 6]).at[:, 3].set(1.0)
    loss = jax.jit(names["loss"])(X_2T, X_2T, reward_2T, 0.0 * X_2T, MASK_2T)
    assert float(loss) == pytest.approx(-sum(0.95**k for k in range(4)) / 4)
