"""Rewards that several models give together: ensembles, and ratios of language models."""

import jax
import jax.numpy as jnp
import numpy as np
import ppo_cases
import pytest
import tiny_cases

from configs import ppo as ppo_config
from fgrlhf_jax.data.tokenizers import train_tokenizer
from fgrlhf_jax.errors import InputError
from fgrlhf_jax.models import heads
from fgrlhf_jax.models.flops import logits_flops, rows_flops
from fgrlhf_jax.plan.shapes import ppo_shapes
from fgrlhf_jax.ppo import models as ppo_models
from fgrlhf_jax.ppo.algorithm import PPOSettings
from fgrlhf_jax.ppo.model_flops import model_flops
from fgrlhf_jax.reward_model.model import score_tokens
from fgrlhf_jax.reward_model.scorer import RewardModel
from fgrlhf_jax.runtime import sharding

ROWS = [[5, 9, 4, 7, 30], [11, 8, 2], [3], [6, 6, 7, 12]] * 2


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    """Reward models and language models."""
    folder = tmp_path_factory.mktemp("models")
    for seed, head in enumerate(("after", "state_action", "action")):
        ppo_cases.save_reward_model(folder / head, "token_edit", seed=seed, head=head)
    ppo_cases.save_reward_model(folder / "sequence", "sequence")
    other = train_tokenizer(["a b c"], 300)
    ppo_cases.save_reward_model(folder / "other", "token_edit", other)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ppo_cases.DATA, "template", "alpaca")
        ppo_cases.save_reward_model(folder / "alpaca", "token_edit")
    for seed, name in enumerate(("policy", "reference")):
        ppo_cases.save_policy(folder / name, seed=seed, template="plain")
    ppo_cases.save_policy(folder / "lm_alpaca", template="alpaca")
    ppo_cases.save_policy(folder / "lm_other", other)
    return {path.name: str(path) for path in folder.iterdir()}


def named(folders: dict[str, str], path: str) -> str:
    """``path`` with the folders of the names in it."""
    for name in sorted(folders, key=len, reverse=True):
        path = path.replace(f"<{name}>", folders[name])
    return path


def rewards(model: RewardModel, side: str = "right") -> list[np.ndarray]:
    """Of ROWS, the padding on that side."""
    tokens_BS, mask_BS = tiny_cases.laid_out(ROWS, side, 3, 7)
    reward_BS = model.score_tokens(tokens_BS.astype(np.int32), mask_BS)
    return [row[mask] for row, mask in zip(np.asarray(reward_BS), mask_BS, strict=True)]


@pytest.mark.parametrize("penalty", [0.0, 1.5])
def test_an_ensemble_of_other_heads_is_its_normalized_rewards(folders, penalty):
    """Each one's as it alone gives them, less its mean and by its standard deviation."""
    names = ("after", "state_action", "action")
    path = named(folders, "<after>, <state_action>,<action>")
    together = RewardModel.load(path, ensemble_penalty=penalty)
    mean, std = ppo_cases.NORMALIZATION
    alone = [rewards(RewardModel.load(folders[name])) for name in names]
    for got, *each in zip(rewards(together), *alone, strict=True):
        each = (np.array(each, np.float64) - mean) / std
        want = each.mean(axis=0) - penalty * each.std(axis=0)
        np.testing.assert_allclose(got, want, atol=1e-5)
    assert together.meta.level == "token"
    (response,) = together.score([{"instruction": "say red", "output": "red blue"}])
    assert len(response.rewards) == len(response.tokens)


apply = jax.jit(ppo_cases.POLICY.apply)


def logprobs(name: str, ids: list[int]) -> np.ndarray:
    """Of each token after the first, by a softmax in float64."""
    params = ppo_cases.policy_params(["policy", "reference"].index(name))
    row = np.array([ids + [0] * (8 - len(ids))])  # nothing after a token matters
    logits = apply({"params": params}, row, *heads.positions_and_mask(jnp.asarray(row >= 0)))
    logits_SV = np.asarray(logits[0, : len(ids) - 1], np.float64)
    logits_SV -= np.log(np.exp(logits_SV).sum(axis=1, keepdims=True))
    return logits_SV[np.arange(len(ids) - 1), ids[1:]]


@pytest.mark.parametrize(("weight", "side"), [("", "right"), (":0.75", "left"), (":0", "left")])
def test_a_ratio_is_the_log_probabilities_of_two_language_models(folders, weight, side):
    """Without a weight the second one is not loaded."""
    model = RewardModel.load(named(folders, f"<policy>:<reference>{weight}"))
    scale = float(weight[1:] or 1)
    assert model.params.keys() == ({"policy", "reference"} if scale else {"policy"})
    for ids, got in zip(ROWS, rewards(model, side), strict=True):
        want = logprobs("policy", ids) - scale * logprobs("reference", ids)
        np.testing.assert_allclose(got, [0, *want], atol=2e-5)


@pytest.mark.parametrize("path", ["<after>,<state_action>", "<policy>:<reference>"])
def test_ppo_holds_every_model_once_and_a_plan_counts_them(folders, path):
    config = ppo_config.get_config("tiny,token")
    path = named(folders, path)
    config.update({"policy": folders["policy"], "reward_model": path, "ensemble_penalty": 0.5})
    models, mesh = ppo_models.read_architectures(config), sharding.make_mesh(config.mesh)
    frozen, _ = ppo_models.load_frozen(config, models, mesh)
    _, params = ppo_models.merge_frozen(frozen)
    tokens_BS, mask_BS = tiny_cases.laid_out(ROWS, "right", 0, 6)
    inputs = tokens_BS.astype(np.int32), mask_BS
    with jax.set_mesh(mesh):
        got = score_tokens(params, *inputs, model=models.reward_model, level="token")
    alone = RewardModel.load(path, ensemble_penalty=0.5)
    np.testing.assert_array_equal(got, alone.score_tokens(*inputs))

    critic = ppo_models.initial_params(config, models, mesh)["critic"]["backbone"]
    first = params["members_0" if "," in path else "policy"]["backbone"]
    jax.tree.map(np.testing.assert_array_equal, critic, first)

    def size(tree) -> int:
        return sum(leaf.size for leaf in jax.tree.leaves(tree))

    config.data.update({"max_prompt_length": 4, "max_new_tokens": 6})
    assert size(ppo_shapes(config).models["reward model"]) == size(params) > 1.9 * size(critic)
    settings = PPOSettings.from_config(config, ())
    flops = [
        model_flops(models, settings, [4], [6], scored=scored)["score_rollout"]
        for scored in (True, False)
    ]
    cfg, logits = models.policy.cfg, ":" in path
    one = rows_flops(cfg, [10]) + (logits_flops(cfg, 10) if logits else 0)
    assert flops[0] - flops[1] == pytest.approx(2 * one)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("<after>,<sequence>", "rewards every sequence, .*after token; an ensemble is of"),
        ("<after>,<alpaca>", "was trained with the template alpaca, .*after plain"),
        ("<after>,<other>", "have different tokenizers"),
        ("<after>,", "an empty name; give A,B,C or POLICY:REFERENCE"),
        ("<after>,<policy>", "policy: is not a reward model of launch.train_rm"),
        ("<policy>:<lm_alpaca>", "fine-tuned with the templates plain and alpaca"),
        ("<policy>:<lm_other>", "have different tokenizers"),
        ("<policy>:<after>", "after: is a reward model"),
        ("<policy>:<reference>:half", "is not POLICY:REFERENCE or POLICY:REFERENCE:WEIGHT"),
        ("<policy>:<reference>,<after>", "is not POLICY:REFERENCE or"),
    ],
)
def test_models_that_do_not_go_together_are_refused(folders, path, message):
    with pytest.raises(InputError, match=message):
        RewardModel.load(named(folders, path))
