"""Guided decoding and the best of n, against brute force."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import ppo_cases
import pytest
import tiny_cases

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.models import decoding, heads, sampling
from fgrlhf_jax.models.language_model import LanguageModel, SamplingParams
from fgrlhf_jax.reward_model.guide import load_guide
from fgrlhf_jax.reward_model.scorer import RewardModel
from fgrlhf_jax.runtime.files import write_jsonl
from fgrlhf_jax.tiny_world.datasets import make_instructions
from fgrlhf_jax.tiny_world.words import make_tokenizer
from launch import generate

POLICY = heads.CausalLM(tiny_cases.CFG)
PROMPTS = [[5, 6, 7], [9], [3, 1, 4, 1, 5], [8, 8]]
SCALE = 0.8


@functools.cache
def params_of(kind: str = "") -> tuple:
    """A policy, or a reward model with that head, and random parameters."""
    model = heads.TokenValueModel(tiny_cases.CFG, kind) if kind else POLICY
    return model, tiny_cases.parameters(model, seed=bool(kind))


def run(prompts, kind="action", side="left", **options):
    tokens, mask = tiny_cases.laid_out(prompts, side, 63, 7)
    keys = sampling.row_keys(jax.random.key(1), len(prompts))
    model, params = params_of(kind)
    guide = sampling.Guide(model, decoding.decoding_weights(params, model), jnp.float32(SCALE))
    weights = decoding.decoding_weights(params_of()[1], POLICY)
    options = {"model": POLICY, "ends": (2,), "max_new": 5, **options}
    arrays = tokens.astype(np.int32), mask, keys
    return jax.device_get(sampling.generate(weights, *arrays, guide, **options))


@functools.partial(jax.jit, static_argnames="kind")
def guided_logits(tokens_S, kind="action"):
    """log pi(a|s) + scale r(s, a) of every token of the vocabulary, [S, V], without a cache.

    r is what the reward model pays where the token is put behind the state: V rows a state.
    """
    S, V = tokens_S.shape[0], tiny_cases.CFG.vocab_size
    row = tokens_S[None], *heads.positions_and_mask(jnp.ones((1, S), bool))
    policy_SV = POLICY.apply({"params": params_of()[1]}, *row)[0]
    model, params = params_of(kind)

    def price(t, action):
        tokens = jnp.append(jnp.where(jnp.arange(S) <= t, tokens_S, 0), 0).at[t + 1].set(action)
        row = tokens[None], *heads.positions_and_mask(jnp.ones((1, S + 1), bool))
        return model.apply({"params": params}, *row)[0, t + 1]

    price_SV = jax.vmap(lambda t: jax.vmap(lambda a: price(t, a))(jnp.arange(V)))(jnp.arange(S))
    return jax.nn.log_softmax(policy_SV) + SCALE * price_SV


@jax.jit
def plain_logits(tokens_S) -> jax.Array:
    row = tokens_S[None], *heads.positions_and_mask(tokens_S[None] >= 0)
    return POLICY.apply({"params": params_of()[1]}, *row)[0]


@pytest.mark.parametrize(
    ("side", "options"),
    [
        ("left", {}),
        ("right", {"temperature": 1.3, "top_k": 9, "top_p": 0.8}),
        ("left", {"temperature": 0.0}),
    ],
)
def test_tokens_are_drawn_from_the_guided_policy(side, options):
    """Or the best one is taken, often another than without a guide."""
    out, differs = run(PROMPTS, side=side, **options), 0
    filled = {"temperature": 1.0, "top_k": 0, "top_p": 1.0} | options
    for b, prompt in enumerate(PROMPTS):
        response = out.tokens_BT[b, : out.length_B[b]]
        text = np.zeros(10, np.int32)
        text[: len(prompt) + len(response)] = [*prompt, *response]
        logits = guided_logits(text)[len(prompt) - 1 :][: len(response)]
        if filled["temperature"] == 0:
            np.testing.assert_array_equal(response, logits.argmax(-1))
            plain = plain_logits(text)[len(prompt) - 1 :][: len(response)]
            differs += (response != plain.argmax(-1)).sum()
            continue
        logits = jax.vmap(lambda x: sampling.filter_logits(x, **filled))(logits)
        want = np.asarray(jax.nn.log_softmax(logits))[np.arange(len(response)), response]
        np.testing.assert_allclose(out.logprob_BT[b, : len(response)], want, atol=2e-5)
    assert differs > 2 or filled["temperature"]


def test_a_state_action_head_guides_by_what_it_reads_before_the_token():
    """What its price of a token lacks is v . h after it, not another price of the token."""
    out = run(PROMPTS, "state_action", temperature=0.0, max_new=1)
    model, params = params_of("state_action")
    without = {**params["head"], "kernel": np.zeros_like(params["head"]["kernel"])}
    row = np.zeros((1, 4), np.int32)
    row[0, :3] = PROMPTS[0]
    args = heads.positions_and_mask(row >= 0)
    policy_V = plain_logits(row[0])[2]

    @jax.jit
    @jax.vmap
    def price(action):
        tokens = jnp.asarray(row).at[0, 3].set(action)
        return model.apply({"params": params | {"head": without}}, tokens, *args)[0, 3]

    price_V = price(jnp.arange(tiny_cases.CFG.vocab_size))
    assert out.tokens_BT[0, 0] == (policy_V + SCALE * price_V).argmax()


# Reward models of runs


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("guide")
    ppo_cases.save_policy(folder / "policy", template="plain")
    for head in heads.HEADS:
        ppo_cases.save_reward_model(folder / head, "token_edit", head=head)
    write_jsonl(folder / "prompts.jsonl", make_instructions(4, "test", 0))
    return folder


@pytest.fixture(scope="module")
def model(folders):
    with pytest.MonkeyPatch.context() as patch:
        tiny_cases.one_device(patch)
        yield LanguageModel.load(folders / "policy")


def test_the_rewards_are_normalized_and_beta_is_a_kl_coefficient(folders, model):
    guide = load_guide(folders / "action", model, 0.4)
    assert guide.scale == pytest.approx(1 / (0.4 * ppo_cases.NORMALIZATION.std))
    texts = [row.instruction for row in make_instructions(4, "test", 0)]
    params = SamplingParams(1.0, max_new_tokens=4)
    weak = load_guide(folders / "action", model, 1e6)
    plain = model.generate(texts, params)
    assert model.generate(texts, params, guide=weak).ids == plain.ids
    assert model.generate(texts, params, guide=guide).ids != plain.ids
    assert load_guide(folders / "state_action", model, 1.0).module.kind == "state_action"


def test_reward_models_that_cannot_guide_are_refused(folders, model, tmp_path):
    with pytest.raises(InputError, match=r"after: its head .* train one with .*head=action"):
        load_guide(folders / "after", model, 1.0)
    with pytest.raises(InputError, match=r"guide=.*policy:.*: only one reward model guides"):
        load_guide(f"{folders}/policy:{folders}/policy:0", model, 1.0)
    other = make_tokenizer()
    other.add_tokens(["zebra"])
    ppo_cases.save_reward_model(tmp_path / "other", "token_edit", other, head="action")
    with pytest.raises(InputError, match=r"model=.* and guide=.*other have different tokenizers"):
        load_guide(tmp_path / "other", model, 1.0)
    model = dataclasses.replace(model, template="alpaca")
    with pytest.raises(InputError, match=r"guide=.*action: was trained with the template plain"):
        load_guide(folders / "action", model, 1.0)


def test_the_command_guides_and_keeps_the_best(folders, model, monkeypatch):
    tiny_cases.one_device(monkeypatch)
    fields = {"model": folders / "policy", "prompts": folders / "prompts.jsonl", "overwrite": True}
    fields |= {"output": folders / "out.json", "max_new_tokens": 5, "max_prompt_length": 12}

    def run(**changes):
        ppo_cases.launch(generate, fields | changes)
        return json.loads((folders / "out.json").read_text())

    drawn = {"temperature": 1, "seed": 3}
    every = run(**drawn, samples=6)
    ranked = run(**drawn, samples=6, reward_model=folders / "after")
    best = run(**drawn, samples=2, best_of=6, reward_model=folders / "after")
    scorer = RewardModel.load(folders / "after")
    assert len(best) == 8
    for number in range(4):
        rows = ranked[6 * number :][:6]
        rewards = [row["reward"] for row in rows]
        assert rewards == sorted(rewards, reverse=True)
        assert sorted(row["output"] for row in rows) == sorted(
            row["output"] for row in every[6 * number :][:6]
        )
        assert best[2 * number :][:2] == rows[:2]
        for row in rows:
            if not row["finished"] or not row["output"]:
                continue
            (scored,) = scorer.score([row])
            assert row["reward"] == pytest.approx(sum(scored.rewards), abs=1e-4)
    guided = run(**drawn, guide=folders / "action", guide_beta=0.1)
    assert [row["output"] for row in guided] != [row["output"] for row in every[::6]]
    for changes, message in (
        ({"best_of": 4}, "best_of=4: something must choose; give --config.reward_model"),
        ({"best_of": 2, "samples": 3, "reward_model": "x"}, "best_of=2 is less than samples=3"),
        ({"best_of": 2, "reward_model": "x"}, "with temperature=0 all of them are the same"),
        ({"guide": folders / "after"}, "cannot score every next token"),
    ):
        with pytest.raises(InputError, match=message):
            run(**changes)
