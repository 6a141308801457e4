"""Runs of launch.ppo whose policy, critic and reward model are adapters on one base."""

import shutil
from pathlib import Path

import chex
import hf_cases
import numpy as np
import ppo_cases
import pytest
from rm_cases import contents, rows, saved, without_clock

from fgrlhf_jax import LanguageModel, SamplingParams
from fgrlhf_jax.errors import InputError
from fgrlhf_jax.models import hf_load, peft
from fgrlhf_jax.ppo.models import read_architectures
from fgrlhf_jax.runtime import sharding
from fgrlhf_jax.runtime.checkpoint import Checkpoints
from fgrlhf_jax.training import run as training

pytest_plugins = ["runs"]
pytestmark = pytest.mark.usefixtures("in_process")

SETTINGS = hf_cases.ADAPTER
LORA = {f"lora__{name}": value for name, value in vars(SETTINGS).items()}


@pytest.fixture(scope="module")
def reward_model(world, tmp_path_factory) -> Path:
    """An adapter on the policy."""
    folder = tmp_path_factory.mktemp("rm") / "token"
    return ppo_cases.save_reward_model(folder, "token_edit", base=world.policy)


@pytest.fixture(scope="module")
def fields(world, reward_model):
    def make(run_dir: Path, **changes) -> dict:
        changes = {"reward_model": reward_model, **LORA, **changes}
        return ppo_cases.fields(world, run_dir, **changes)

    return make


@pytest.fixture(scope="module")
def lora_run(in_process, fields, world, tmp_path_factory) -> Path:
    run_dir = tmp_path_factory.mktemp("runs") / "lora"
    before, train = contents(world.policy), training.run

    def train_and_compare(config, trainer, folder):
        result = train(config, trainer, folder)
        after = [int(sharding.fingerprint(part)) for part in trainer.frozen]
        assert after == trainer.memory["frozen"]
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "run", train_and_compare)
        ppo_cases.run(fields(run_dir))
    assert contents(world.policy) == before
    return run_dir


def test_what_a_run_leaves(lora_run, world):
    """It starts as its reference to the bit, and keeps no weights of the base."""
    assert rows(lora_run)[0]["validation/kl"] == 0.0 < rows(lora_run)[-1]["policy/kl"]
    metadata = Checkpoints(lora_run / "checkpoints")._metadata(max(saved(lora_run)))
    assert metadata["layouts"]["params"]
    for name in metadata["layouts"]["params"]:
        assert "/lora/" in name or name.startswith("critic/head/"), name
    assert peft.read_lora(lora_run / "export") == SETTINGS
    assert peft.base_of(lora_run / "export").resolve() == world.policy.resolve()
    params, prompts = SamplingParams(1.0, max_new_tokens=6), ["capital of hungary"]
    ours, base = (
        LanguageModel.load(path).generate(prompts, params) for path in (lora_run, world.policy)
    )
    assert not np.array_equal(ours.logprobs, base.logprobs)


def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(fields, lora_run, tmp_path):
    """With a merged export, which has the same weights."""
    run_dir = tmp_path / "run"
    for go in (ppo_cases.run_until_asked_to_stop, ppo_cases.run):
        go(fields(run_dir, save_every=0, export__merged=True))
    assert without_clock(run_dir) == without_clock(lora_run)
    assert (run_dir / "samples.jsonl").read_text() == (lora_run / "samples.jsonl").read_text()
    assert not (run_dir / "export" / "adapter_config.json").exists()
    abstract = hf_cases.abstract(ppo_cases.POLICY)
    merged, apart = (hf_load.load_params(path, abstract) for path in (run_dir, lora_run))
    chex.assert_trees_all_close(merged, apart, rtol=0, atol=1e-6)


def test_an_adapted_policy_goes_on_and_its_reference_keeps_its_adapter(fields, world, tmp_path):
    policy = ppo_cases.save_policy(tmp_path / "sft", seed=3, base=world.policy)
    ppo_cases.run(fields(tmp_path / "run", policy=policy, steps=1))
    assert rows(tmp_path / "run")[0]["validation/kl"] == 0.0
    assert peft.base_of(tmp_path / "run").resolve() == world.policy.resolve()
    with pytest.raises(InputError, match=r"lora.rank=5: the adapter in .* has another"):
        ppo_cases.run(fields(tmp_path / "other", policy=policy, lora__rank=5))


def test_a_head_on_the_policy_as_critic_and_a_function_as_reward(fields, tmp_path):
    changes = ppo_cases.FUNCTION | {"reward_function": "fgrlhf_jax.tiny_world.judge:judge"}
    ppo_cases.run(fields(tmp_path / "run", steps=1, **changes))
    assert rows(tmp_path / "run")[0]["validation/kl"] == 0.0


def test_an_adapter_of_another_base_is_refused_unless_both_are_held(fields, world, tmp_path):
    other = ppo_cases.save_policy(tmp_path / "other", seed=9, template="plain")
    changes = {
        "reward_model": ppo_cases.save_reward_model(tmp_path / "rm", "token_edit", base=other)
    }
    with pytest.raises(InputError, match=r"is an adapter of .*other, and the policy's base is"):
        ppo_cases.run(fields(tmp_path / "run", **changes))
    ppo_cases.run(fields(tmp_path / "both", steps=1, lora__share_base=False, **changes))
    assert rows(tmp_path / "both")[0]["validation/kl"] == 0.0


def test_the_same_base_may_be_elsewhere(fields, world, tmp_path):
    """Which its digest tells, of a policy of whole weights and of an adapter."""
    copy = shutil.copytree(world.policy, tmp_path / "copy")
    adapted = ppo_cases.save_policy(tmp_path / "sft", seed=3, base=copy)
    for policy in (copy, adapted):
        changes = fields(tmp_path / "run", policy=policy)
        assert read_architectures(ppo_cases.parse(changes)).reward_lora == SETTINGS
    ppo_cases.save_policy(copy, seed=5, template="plain")
    with pytest.raises(InputError, match=r"is an adapter of .*, and the policy's base is .*copy;"):
        ppo_cases.run(fields(tmp_path / "run", policy=copy))


def test_a_base_in_another_dtype_is_said(fields, tmp_path, capsys):
    for dtype, said in (("float32", ""), ("nf4", "was trained on a base in float32; here it is")):
        read_architectures(ppo_cases.parse(fields(tmp_path / "run", lora__base_dtype=dtype)))
        output = capsys.readouterr().out
        assert said in output
        assert bool(said) == bool(output)
