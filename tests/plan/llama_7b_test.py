"""Plans of LLaMA-7B on eight devices of 80 GB, compiled on a host with far less memory."""

import math
import resource

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache

from configs import dpo, ppo, rm, sft
from fgrlhf_jax.models.sizes import SIZES
from fgrlhf_jax.plan.memory import bytes_per_device, format_table, measure
from fgrlhf_jax.plan.shapes import dpo_shapes, ppo_shapes, reward_model_shapes, sft_shapes
from fgrlhf_jax.runtime import sharding

pytestmark = [pytest.mark.slow, pytest.mark.long]


@pytest.fixture(autouse=True)
def nothing_allocated():
    arrays = sum(x.nbytes for x in jax.live_arrays())
    yield
    assert sum(x.nbytes for x in jax.live_arrays()) <= arrays + 2**20


@pytest.fixture
def uncached():
    """Disables the compilation cache, so that the test measures a compilation."""
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    yield
    jax.config.update("jax_enable_compilation_cache", True)
    compilation_cache.reset_cache()


def check_supervised_flops(plan: dict, rows: int, extra: float = 0.015) -> None:
    """Checks 6 FLOPs per parameter and token at 512 tokens, plus recomputation by remat.

    ``extra`` allows for attention scores: the model counts all, the program skips some masked ones.
    """
    train, evaluate = plan["steps"]["train"], plan["steps"]["evaluate"]
    least = 6 * 6.6e9 * rows * 512 / 8
    assert least < train["model_flops"] < 1.1 * least
    assert 3 / 4 < train["model_flops"] / train["compiled_flops"] < 1
    assert evaluate["model_flops"] == pytest.approx(evaluate["compiled_flops"], rel=extra)


def test_reward_model(uncached):
    """The plan compiles the step exactly as the run does; the host needs little memory."""
    shapes = reward_model_shapes(rm.get_config("llama_7b"))
    params = jax.tree.leaves(shapes.models)
    assert {leaf.dtype for leaf in params} == {jnp.dtype("float32")}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    plan = measure(shapes, 80e9)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) * 1024
    assert plan["mesh"] == {"data": 1, "fsdp": 8, "tensor": 1}
    # Parameters and two moments, one eighth per device; donated, so outputs reuse them.
    state = 3 * 4 * sum(math.prod(leaf.shape) for leaf in params)
    assert state > 79e9
    train = plan["steps"]["train"]
    assert train["arguments"] == pytest.approx(state / 8, rel=0.001)
    assert train["reused"] == pytest.approx(state / 8, rel=0.001)
    assert train["temporaries"] > state / 3 / 8  # the gradients
    assert train["total"] < 80e9
    assert grown < 2e9
    # Most scores between the two sides are computed and then masked.
    check_supervised_flops(plan, rows=2 * 16, extra=0.03)


def test_supervised_fine_tuning():
    plan = measure(sft_shapes(sft.get_config("llama_7b")), 80e9)
    assert max(step["total"] for step in plan["steps"].values()) < 25e9
    check_supervised_flops(plan, rows=128)


def test_losses_on_pairs():
    """DPO holds one model: the reference's log-probabilities are precomputed."""
    plan = measure(dpo_shapes(dpo.get_config("llama_7b")), 80e9)
    assert plan["models"].keys() == {"policy"}
    assert max(step["total"] for step in plan["steps"].values()) < 25e9
    check_supervised_flops(plan, rows=2 * 32, extra=0.03)


def test_ppo():
    """AlpacaFarm's batch sizes fit within the 75 % of memory that JAX allocates by default."""
    config = ppo.get_config("llama_7b")
    assert (config.rollout_batch_size, config.minibatch_size) == (512, 256)
    assert (config.data.max_prompt_length, config.data.max_new_tokens) == (192, 300)
    plan = measure(ppo_shapes(config), 80e9)
    assert plan["fits"]
    assert max(step["total"] for step in plan["steps"].values()) < 56e9
    # An eighth of four models of about 6.7e9 parameters, two in half precision, and moments.
    together = plan["optimizer"] + sum(model["bytes"] for model in plan["models"].values())
    assert together == pytest.approx((2 * 4 + 2 * 2 + 2 * 8) * 6.67e9 / 8, rel=0.01)
    assert plan["cache"] == 512 // 8 * (192 + 300) * 32 * 2 * 4096 * 2
    generate, score, update = plan["steps"].values()
    # No second copy of the weights that are its argument.
    assert generate["temporaries"] < plan["cache"] + 2e9
    share = [step["model_flops"] / step["compiled_flops"] for step in (generate, score, update)]
    assert share[0] > 0.98
    assert share[1] == pytest.approx(1, abs=0.015)
    assert share[2] > 3 / 4  # remat computes each block twice


@pytest.mark.parametrize(
    ("variant", "devices", "most"),
    [("llama_7b_lora", 1, 72e9), ("llama_7b_lora", 8, 14e9), ("llama3_2_1b", 1, 14e9)],
)
def test_ppo_by_adapters(monkeypatch, variant, devices, most):
    """AlpacaFarm's lengths, rollouts of 128; one base and small adapters stay in memory."""
    make = sharding.make_mesh
    monkeypatch.setattr(sharding, "make_mesh", lambda shape: make(shape, jax.devices()[:devices]))
    config = ppo.get_config(variant)
    assert config.rollout_batch_size >= 128
    assert (config.data.max_prompt_length, config.data.max_new_tokens) == (192, 300)
    shapes = ppo_shapes(config)
    models = {name: bytes_per_device(tree) for name, tree in shapes.models.items()}
    cfg = SIZES[config.size]
    numbers = sum(leaf.size for leaf in jax.tree.leaves(shapes.models["base"]))
    tables = (1 if cfg.tie_embeddings else 2) * cfg.vocab_size * cfg.hidden_size  # in float32
    assert models.pop("base") == pytest.approx(2 * (numbers + tables) / devices, rel=0.001)
    assert models.keys() == {"policy", "critic", "reward model"}
    assert sum(models.values()) < 1e9
    plan = measure(shapes, most)
    assert plan["fits"], format_table(plan)
    # Merged weights, in bfloat16, are split over the generation mesh.
    assert plan["steps"]["generate"]["arguments"] == pytest.approx(2 * numbers / devices, rel=0.01)
