"""Runs that train adapters: what they leave, how they resume and go on, and who can use it."""

import random
import shutil
import signal

import numpy as np
import ppo_cases
import pytest
import safetensors.numpy
from ppo_cases import launch
from rm_cases import Command, contents, rows, without_clock

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.models import hf_load, peft
from fgrlhf_jax.models.lora import Lora
from fgrlhf_jax.runtime import sharding
from fgrlhf_jax.runtime.files import read_jsonl
from fgrlhf_jax.training import run as supervised_run
from launch import ppo, score, sft, train_rm

pytest_plugins = ["runs"]
pytestmark = pytest.mark.usefixtures("in_process")
LORA = {"lora__rank": 4, "lora__alpha": 8.0, "lora__targets": "attention"}
RM = "configs/rm.py:tiny,token_edit"
ATTENTION = "^(attention/q|attention/k|attention/v|attention/o)$"


@pytest.fixture(scope="module")
def fields(world, sft_fields) -> dict:
    """Of launch.sft; 64 positions are what the policy has."""
    return sft_fields | LORA | {"model__path": world.policy, "export__dtype": "float32"}


@pytest.fixture(scope="module")
def adapted(fields, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("runs") / "sft"
    launch(sft, fields | {"run_dir": run_dir})
    return run_dir


def tensors(run_dir) -> dict[str, np.ndarray]:
    return safetensors.numpy.load_file(run_dir / "export" / "adapter_model.safetensors")


def test_a_run_leaves_an_adapter_of_its_base(adapted, world):
    assert peft.read_lora(adapted) == Lora(4, 8.0, ATTENTION)
    assert peft.base_of(adapted) == world.policy
    assert hf_load.base_digest(adapted) == hf_load.base_digest(world.policy)
    assert "+" in hf_load.base_digest(adapted)  # an LM head too
    assert len(tensors(adapted)) == 8
    assert all(np.abs(x).max() > 0 for x in tensors(adapted).values())
    assert rows(adapted)[-1]["loss"] < rows(adapted)[0]["loss"]
    assert f"| Adapter of | {world.policy} |" in (adapted / "export" / "README.md").read_text()


def test_a_run_that_lost_its_last_steps_ends_the_same(adapted, fields, tmp_path):
    run_dir = shutil.copytree(adapted, tmp_path / "run")
    for name in ("checkpoints/4", "checkpoints/5", "checkpoints/6", "export"):
        shutil.rmtree(run_dir / name)
    launch(sft, fields | {"run_dir": run_dir})
    assert without_clock(run_dir) == without_clock(adapted)
    assert contents(run_dir / "export") == contents(adapted / "export")


@pytest.mark.long
@pytest.mark.parametrize("module", [sft, train_rm, ppo])
def test_killed_at_random_times(module, world, sft_fields, rm_files, tmp_path, request):
    """Killed in a process of its own, the run ends here like one that was never killed."""
    kills = max(1, request.config.getoption("--kills") // 3)
    rng, steps, default = random.Random(0), 12, ""
    if module == ppo:
        paid = ppo_cases.save_reward_model(tmp_path / "rm", "token_edit", base=world.policy)
        fields = ppo_cases.fields(world, tmp_path / "killed", reward_model=paid)
    else:
        fields = sft_fields if module == sft else {"batch_size": 4, **rm_files}
        fields = fields | {"model__path": world.policy, "run_dir": tmp_path / "killed"}
        fields |= ppo_cases.SHORT_ROWS
        default = RM if module == train_rm else ""
    fields |= LORA | {"steps": steps, "save_every": 2}
    flags = [f"--config={default or module.CONFIG}", *ppo_cases.flags(fields)]
    for kill in range(1, kills + 1):
        run = Command({}, tmp_path / "killed", module.__name__, flags)
        step = max(1, int(steps * (kill - 1 + rng.random()) / kills))
        run.until(lambda run=run, step=step: run.reached(step)).end(signal.SIGKILL)
    assert not (tmp_path / "killed" / "finished.json").exists()
    for name in ("killed", "whole"):
        launch(module, fields | {"run_dir": tmp_path / name}, default)
    assert without_clock(tmp_path / "killed") == without_clock(tmp_path / "whole")
    assert contents(tmp_path / "killed/export") == contents(tmp_path / "whole/export")


def test_another_base_is_no_base_of_an_export_to_be_made(adapted, fields, world, tmp_path):
    run_dir, kept = shutil.copytree(adapted, tmp_path / "run"), tmp_path / "kept"
    shutil.rmtree(run_dir / "export")
    other = ppo_cases.save_policy(tmp_path / "other", seed=5, template="plain")
    world.policy.rename(kept)
    try:
        other.rename(world.policy)
        with pytest.raises(InputError, match=r"the weights in .* have changed since the run began"):
            launch(sft, fields | {"run_dir": run_dir})
    finally:
        shutil.rmtree(world.policy)
        kept.rename(world.policy)


def test_an_export_names_the_base_that_was_trained_on(fields, world, tmp_path, monkeypatch):
    """Of which no bit moved, even where another one is in its place by the time that it ends."""
    base = shutil.copytree(world.policy, tmp_path / "base")
    other = ppo_cases.save_policy(tmp_path / "other", seed=5, template="plain")
    train = supervised_run.run

    def train_and_replace(config, trainer, folder):
        result = train(config, trainer, folder)
        assert int(sharding.fingerprint(trainer.frozen_params)) == trainer.memory["base"]
        shutil.rmtree(base)
        shutil.move(other, base)
        return result

    monkeypatch.setattr(supervised_run, "run", train_and_replace)
    once = fields | {"model__path": base, "run_dir": tmp_path / "run", "steps": 1}
    launch(sft, once | {"optimizer__freeze": "lora_a$"})
    assert "tflops_per_device" not in rows(tmp_path / "run")[-1]  # unknown with frozen parameters
    assert peft.recorded_digest(tmp_path / "run") == hf_load.base_digest(world.policy)


def test_training_goes_on_from_an_adapter_apart_or_merged(adapted, fields, world, tmp_path):
    """At a rate of 0 it ends where it began, on the same base."""
    still = fields | {"model__path": adapted, "steps": 1, "optimizer__learning_rate": 0.0}
    launch(sft, still | {"run_dir": tmp_path / "apart"})
    same = tensors(tmp_path / "apart")
    assert same.keys() == tensors(adapted).keys()
    assert all(np.array_equal(value, same[name]) for name, value in tensors(adapted).items())
    assert peft.base_of(tmp_path / "apart") == world.policy
    launch(sft, still | {"run_dir": tmp_path / "merged", "export__merged": True})
    assert peft.read_lora(tmp_path / "merged") is None
    abstract = ppo_cases.policy_params()
    theirs = hf_load.load_params(adapted, abstract)
    ours = hf_load.load_params(tmp_path / "merged", abstract)
    kernel = ours["backbone"]["layers"]["attention"]["q"]["kernel"]
    change = abstract["backbone"]["layers"]["attention"]["q"]["kernel"] - kernel
    assert np.abs(change).max() > 1e-3
    np.testing.assert_allclose(
        theirs["backbone"]["layers"]["attention"]["q"]["kernel"], kernel, rtol=0, atol=1e-6
    )


@pytest.mark.parametrize(
    ("changes", "start"),
    [
        ({"base_dtype": "nf4"}, "lora.base_dtype=nf4: a kernel's input width of 16 is not a mul"),
        ({"base_dtype": "int8", "rank": 17}, "lora.rank=17: the rank of these layers is at most 1"),
        ({"targets": "w1"}, "lora.targets='w1' finds no linear layer; there are attention/k, "),
    ],
    ids=str,
)
def test_adapters_that_the_base_does_not_take_are_refused(fields, refused, changes, start):
    changes = {f"lora__{name}": value for name, value in changes.items()}
    assert refused(sft, *ppo_cases.flags(fields | {"run_dir": "x"} | changes)).startswith(start)


@pytest.mark.parametrize(("head", "dtype"), [("after", "float32"), ("state_action", "int8")])
def test_a_reward_model_is_an_adapter_and_a_head(adapted, world, rm_files, tmp_path, head, dtype):
    """From the policy's adapter on; then from the reward model's, head and all."""
    options = {"steps": 2, "batch_size": 4, "eval_every": 0, "save_every": 0, "model__head": head}
    options |= rm_files | ppo_cases.SHORT_ROWS | {"lora__base_dtype": dtype}
    start = {"model__path": adapted, "run_dir": tmp_path / "rm"}
    launch(train_rm, options | LORA | start, RM)
    file = next(iter(rm_files.values()))
    flags = {"reward_model": tmp_path / "rm", "input": file, "output": tmp_path / "scores.jsonl"}
    launch(score, flags | {"limit": 3})
    assert len(read_jsonl(tmp_path / "scores.jsonl")) == 3
    assert peft.base_of(tmp_path / "rm") == world.policy
    start = {"model__path": tmp_path / "rm", "run_dir": tmp_path / "again", "steps": 1}
    still = {"optimizer__learning_rate": 0.0}
    launch(train_rm, options | LORA | start | still, RM)
    for name in ["adapter_model", "head"] if head == "state_action" else ["adapter_model"]:
        files = [tmp_path / run / "export" / f"{name}.safetensors" for run in ("rm", "again")]
        assert files[0].read_bytes() == files[1].read_bytes()
    if head == "state_action":
        assert set(safetensors.numpy.load_file(files[0])) == {"head.gate"}
