"""Every variant of every config: it can be had, it is locked, and its train step has a shape."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import ppo, rm
from fgrlhf_jax.data.pairs import Pair
from fgrlhf_jax.errors import InputError
from fgrlhf_jax.plan.shapes import supervised_model_config
from fgrlhf_jax.reward_model.modules import make_module
from fgrlhf_jax.reward_model.train import make_trainer
from fgrlhf_jax.runtime import sharding
from launch import train_rm
from launch.shared import config_files

ROOT = Path(__file__).parents[2]
# Every model, and every loss.
VARIANTS = [(model, rm.LOSSES[0]) for model in rm.VARIANTS]
VARIANTS += [(next(iter(rm.VARIANTS)), loss) for loss in rm.LOSSES[1:]]
PARAMETERS = {"tiny": 0.164e6, "cad": 1.0e6, "smollm2": 134.5e6, "llama_7b": 6607e6}
PARAMETERS |= {"llama_7b_lora": 40e6, "llama3_2_1b": 11.3e6}


@pytest.mark.parametrize("model", ppo.VARIANTS)
@pytest.mark.parametrize("level", ppo.LEVELS)
def test_rewards_of_ppo_are_on_one_scale(model, level):
    """About one unit a response: what a nat costs, and what a value may move by, follow from it."""
    config = ppo.get_config(f"{model},{level}")
    assert config.reward_normalization == "samples"
    assert not config.whiten_rewards
    assert 0.05 <= config.kl.coef <= 0.3
    assert config.value_clip_ratio <= 1
    assert abs(config.missing_eos_penalty) <= 1


def get(*arguments: str):
    return config_files.parse(["", *arguments], "configs/rm.py")


@pytest.mark.parametrize(("model", "loss"), VARIANTS)
def test_train_step_of_a_variant(model, loss):
    """Shapes only: nothing of it is computed or allocated, be it a 7B."""
    config = get(f"--config=configs/rm.py:{model},{loss}")
    assert (config.loss, config.run_dir) == (loss, f"runs/rm_{model}_{loss}")
    # The centre term is of the token losses; nothing pulls a sequence score anywhere.
    assert (config.center_weight > 0) == (loss in ("token_edit", "token_full"))
    with pytest.raises(AttributeError):
        config.optimizer.rate = 1.0
    train_rm.check(config)
    cfg, length = supervised_model_config(config)
    assert config.data.max_prompt_length < length <= cfg.max_position
    tokens = np.zeros(2, np.int32)
    pair = Pair(tokens, tokens, 1, 1, *[tokens > 0] * 3, tokens, 0)
    pairs = {"edits": [pair] * config.batch_size}
    mesh = sharding.make_mesh("1,1,1", jax.devices()[:1])
    module = make_module(cfg, loss, config.model.head)
    more = {"edits": [pair] * (config.batch_size + 1)}
    trainer, *others = (
        make_trainer(config, mesh, module, *sets, (length,))
        for sets in ((pairs, pairs), (more, pairs), (pairs, more))
    )
    assert len({each.data for each in (trainer, *others)}) == 3  # a run goes on with its rows only
    state = trainer.abstract
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(state))
    trained = state.params["lora" if config.lora.rank else "backbone"]
    size = sum(leaf.size for leaf in jax.tree.leaves(trained))
    assert size == pytest.approx(PARAMETERS[model], rel=0.05)
    after, metrics = jax.eval_shape(trainer.train_step, state, trainer.batch(0)[1], trainer.frozen)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    for before, leaf in zip(jax.tree.leaves(state), jax.tree.leaves(after), strict=True):
        assert (leaf.shape, leaf.dtype) == (before.shape, before.dtype)
    # Parameters and optimizer are float32 whatever the computation is.
    assert {leaf.dtype for leaf in jax.tree.leaves(after.params)} == {jnp.dtype("float32")}
    assert metrics.keys() >= {"loss", "accuracy", "grad_norm"}
    assert all((leaf.shape, leaf.dtype) == ((), jnp.float32) for leaf in metrics.values())


def test_overrides():
    assert get("--config=configs/rm.py:cad").loss == "token_edit"
    assert get().run_dir == "runs/rm_tiny_token_edit"
    config = get(
        "--config.steps=7",  # before the config whose field it overrides, or behind it
        "--config=configs/rm.py:cad,sequence",
        "--config.optimizer.learning_rate=1e-4",
        "--config.model.remat",
        "--config.run_dir=a=b",
        "--config.seed",
        "5",
    )
    assert (config.loss, config.steps, config.seed) == ("sequence", 7, 5)
    assert (config.optimizer.learning_rate, config.model.remat) == (1e-4, True)
    assert config.run_dir == "a=b"
    assert config.is_locked
    assert not get("--config.model.remat", "--noconfig.model.remat").model.remat


def test_configs_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert get().model.size == "tiny"
    assert get("--config=configs/rm.py:cad").model.size == "small"
    assert get("--config=rm.py:cad").model.size == "small"
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "rm.py").write_text("raise RuntimeError('somebody else')")
    assert get().model.size == "tiny"  # with no flag it is ours
    with pytest.raises(InputError, match="somebody else"):
        get("--config=configs/rm.py:cad")  # named, the file that lies here
