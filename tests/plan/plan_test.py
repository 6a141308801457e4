"""The plan of a run against sums computed by hand."""

import dataclasses
import functools
import json

import jax
import pytest
from plan_cases import EPOCHS, TINY, B, P, T, numbers, ppo_config, row_flops

from configs import dpo, rm, sft
from fgrlhf_jax.errors import InputError
from fgrlhf_jax.plan.memory import bytes_per_device, format_table, measure, measure_step
from fgrlhf_jax.plan.shapes import (
    RunShapes,
    dpo_shapes,
    ppo_shapes,
    reward_model_shapes,
    sft_shapes,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def shapes() -> RunShapes:
    """Shapes whose steps are compiled only once."""
    shapes = ppo_shapes(ppo_config())
    steps = {n: s._replace(compile=functools.cache(s.compile)) for n, s in shapes.steps.items()}
    return shapes._replace(steps=steps)


@pytest.fixture(scope="module")
def plan(shapes) -> dict:
    return measure(shapes, 1e9)


def test_models_and_optimizer_state(plan):
    policy, critic = numbers(TINY, 2), numbers(TINY, 1) + TINY.hidden_size + 1
    sizes = {"policy": policy, "reference": policy, "critic": critic, "reward model": critic}
    assert plan["models"] == {
        name: {"parameters": size, "dtype": "float32", "bytes": 4 * size}
        for name, size in sizes.items()
    }
    # Two moments, and a few counters.
    assert plan["optimizer"] == pytest.approx(2 * 4 * (policy + critic), abs=64)
    assert plan["cache"] == TINY.num_layers * 2 * (B // 8) * TINY.num_kv_heads * (
        (P + T) * TINY.head_dim * 4
    )


def test_memory_of_a_step(plan):
    together = plan["optimizer"] + sum(model["bytes"] for model in plan["models"].values())
    generate, score, update = plan["steps"].values()
    prompts = B // 8 * P * (4 + 1)
    assert generate["arguments"] == plan["models"]["policy"]["bytes"] + prompts + B // 8 * 8
    assert generate["beside"] == together
    assert generate["temporaries"] > plan["cache"]
    assert score["beside"] == plan["optimizer"]
    frozen = plan["models"]["reference"]["bytes"] + plan["models"]["reward model"]["bytes"]
    assert update["beside"] == frozen
    assert update["reused"] == pytest.approx(together - frozen, abs=64)
    for step in (generate, score, update):
        parts = step["arguments"] + step["temporaries"] + step["outputs"] - step["reused"]
        assert step["total"] == parts + step["beside"]
        assert together < step["total"] < 1e9


def test_flops_of_the_model(plan):
    decoding = [P] * P + [P + t for t in range(1, T)]
    whole = [P + T] * (P + T)
    policy, value = row_flops(TINY, whole, T), row_flops(TINY, whole, 0)
    expected = {
        "generate": row_flops(TINY, decoding, T),
        "score_rollout": 2 * policy + 2 * value,
        "update": EPOCHS * 3 * (policy + value),
    }
    for name, flops in expected.items():
        step = plan["steps"][name]
        assert step["model_flops"] == pytest.approx(B / 8 * flops, rel=1e-12)
        # The compiled decoding step also attends to empty columns of the cache.
        least = 0.9 if name == "generate" else 0.99
        assert least < step["model_flops"] / step["compiled_flops"] <= 1
    rounds = f"a loop that may end early is counted with all its {T - 1} rounds"
    assert [step["notes"] for step in plan["steps"].values()] == [[rounds], [], []]


def test_whether_it_fits(shapes, plan):
    assert plan["fits"]
    largest = max(step["total"] for step in plan["steps"].values())
    for memory, count in ((largest, 3), (largest - 1, 2)):
        again = measure(shapes, memory)
        assert sum(step["fits"] for step in again["steps"].values()) == count
        assert again["fits"] == ("   NO\n" not in format_table(again)) == (count == 3)
    update = plan["steps"]["update"]
    cells = [line.split() for line in format_table(plan).splitlines()]
    names = ("arguments", "temporaries", "outputs", "reused", "beside", "total")
    assert ["update", *(f"{update[name] / 1e6:.3f}" for name in names), "yes"] in cells


def test_score_rollout_without_predictions():
    """If the update predicts, reference and reward model remain in ``score_rollout``."""
    step = ppo_shapes(ppo_config(ppo_epochs=1, minibatch_size=B)).steps["score_rollout"]
    costs, whole = measure_step(step, 0, 1e9, 8), [P + T] * (P + T)
    expected = B / 8 * (row_flops(TINY, whole, T) + row_flops(TINY, whole, 0))
    assert costs["model_flops"] == pytest.approx(expected, rel=1e-12)
    assert 0.999 < expected / costs["compiled_flops"] <= 1


def test_sharded_models_are_smaller():
    sizes = {mesh: ppo_shapes(ppo_config(mesh=mesh)) for mesh in ("8,1,1", "1,8,1", "1,4,2")}
    for name, whole in sizes["8,1,1"].models.items():
        assert bytes_per_device(whole) > 7 * bytes_per_device(sizes["1,8,1"].models[name])
    # The cache is sharded: rows by 4, heads by 2.
    assert {shapes.cache for shapes in sizes.values()} == {sizes["8,1,1"].cache}
    int8 = ppo_shapes(ppo_config(**{"sampling.int8_cache": True}))  # heads of 16, and a scale
    assert int8.cache == sizes["8,1,1"].cache * (16 + 4) / (16 * 4)


def test_models_depend_on_the_config():
    shared = ppo_shapes(ppo_config(critic="shared"))
    assert bytes_per_device(shared.models["critic"]) == 4 * (TINY.hidden_size + 1)
    own = ppo_shapes(ppo_config(reward_function="module:function"))
    assert own.models.keys() == {"policy", "reference", "critic"}
    kinds = ("ppo", "rloo", "distill")
    ppo, rloo, distill = (ppo_shapes(ppo_config(algorithm=name)) for name in kinds)
    assert ppo.models.keys() - rloo.models.keys() == {"critic"}
    updates = [shapes.steps["update"] for shapes in (rloo, distill)]
    assert updates[0].flops < updates[1].flops
    assert bytes_per_device(updates[0].resident) < bytes_per_device(updates[1].resident)
    flops = [x.steps["score_rollout"].flops for x in (own, ppo_shapes(ppo_config()))]
    assert flops[0] < flops[1]
    half = {"inference_dtype": "bfloat16", "model.dtype": "bfloat16"}
    half = ppo_shapes(ppo_config(**half)).models  # norms stay in float32
    whole = (2 * TINY.num_layers + 1) * TINY.hidden_size
    sizes = [bytes_per_device(half[name]) for name in ("reference", "policy")]
    assert 2 * sizes[0] == sizes[1] + 4 * whole


def test_adapters_have_one_base():
    """All models share one base; an update takes it as an argument, with the adapters."""
    numbers_of = {"base": numbers(TINY, 2)}
    D, F, K = TINY.hidden_size, TINY.intermediate_size, TINY.num_kv_heads * TINY.head_dim
    adapter = 4 * TINY.num_layers * (2 * (D + D) + 2 * (D + K) + 3 * (D + F))
    numbers_of |= {"policy": adapter, "critic": adapter + D + 1, "reward model": adapter + D + 1}
    shapes = ppo_shapes(ppo_config(**{"lora.rank": 4}))
    sizes = {name: bytes_per_device(model) for name, model in shapes.models.items()}
    assert sizes == {name: 4 * size for name, size in numbers_of.items()}
    optimizer = bytes_per_device(shapes.optimizer)
    assert optimizer == pytest.approx(2 * 4 * (2 * adapter + D + 1), abs=64)
    _, score, update = (bytes_per_device(step.resident) for step in shapes.steps.values())
    assert score == sum(sizes.values())
    assert update == sum(sizes.values()) + optimizer - sizes["reward model"]
    # With a full reward model the critic is an adapter of its backbone, an argument of updates.
    own = ppo_shapes(ppo_config(**{"lora.rank": 4, "lora.share_base": False}))
    every = sum(map(bytes_per_device, [*own.models.values(), own.optimizer]))
    assert bytes_per_device(own.steps["update"].resident) == every - 4 * (D + 1)
    half = ppo_shapes(ppo_config(**{"lora.rank": 4, "lora.base_dtype": "bfloat16"})).models["base"]
    tables = (2 * TINY.vocab_size + 2 * TINY.num_layers + 1) * D
    assert 2 * bytes_per_device(half) <= bytes_per_device(shapes.models["base"]) + 4 * tables


def test_the_table_of_a_state_action_head_is_of_the_frozen_base():
    config = rm.get_config("tiny")
    config.update_from_flattened_dict({"lora.rank": 4, "model.head": "state_action"})
    shapes = reward_model_shapes(config)
    assert "unembed" not in shapes.models["reward model"]["head"]
    sizes = {n: sum(x.size for x in jax.tree.leaves(m)) for n, m in shapes.models.items()}
    base = rm.get_config("tiny").model.vocab_size * TINY.hidden_size
    plain = rm.get_config("tiny")
    plain.update_from_flattened_dict({"lora.rank": 4})
    plain = reward_model_shapes(plain)
    without = {n: sum(x.size for x in jax.tree.leaves(m)) for n, m in plain.models.items()}
    assert sizes["base"] == without["base"] + base
    assert sizes["reward model"] == without["reward model"] + TINY.hidden_size


@pytest.mark.parametrize(
    ("config", "make_shapes", "model", "tokens"),
    [
        (rm.get_config("tiny"), reward_model_shapes, "reward model", 2 * 40),
        (sft.get_config("tiny"), sft_shapes, "policy", 40),
        (dpo.get_config("tiny"), dpo_shapes, "policy", 2 * 40),
    ],
)
def test_supervised(config, make_shapes, model, tokens):
    """Rows (for SFT) or pairs of rows of the maximum length; full evaluation batches."""
    sizes = {"batch_size": 16, "micro_batch_size": 8, "eval_batch_size": 6}
    config.update_from_flattened_dict(sizes | {"mesh": "4,1,2", "data.max_length": 40})
    plan = measure(make_shapes(config), 1e9)
    assert plan["models"].keys() == {model}
    train, evaluate = plan["steps"]["train"], plan["steps"]["evaluate"]
    size = plan["models"][model]["bytes"]
    # Per token: its id and two masks (real, response); more in pairs.
    most = 6 * 2 if tokens == 40 else 6 * 7
    assert 16 / 4 * tokens * 6 < train["arguments"] - 3 * size < 16 / 4 * tokens * most
    assert 8 / 4 * tokens * 6 < evaluate["arguments"] - size < 8 / 4 * tokens * most
    assert (train["beside"], evaluate["beside"]) == (0, plan["optimizer"])
    assert train["reused"] == size + plan["optimizer"] - 4  # the last update_rms is not read
    cfg = dataclasses.replace(TINY, vocab_size=config.model.get("vocab_size", TINY.vocab_size))
    columns = config.data.max_length
    flops = tokens / columns * row_flops(cfg, [columns] * columns, 0)
    if model == "policy":
        flops += row_flops(cfg, [], tokens - 1)  # the first token has no prediction
    assert train["model_flops"] == pytest.approx(3 * 16 * flops / 8, rel=1e-12)
    assert evaluate["model_flops"] == pytest.approx(8 * flops / 8, rel=1e-12)
    for step in (train, evaluate):
        assert step["notes"] == []
        assert 0.85 < step["model_flops"] / step["compiled_flops"] <= 1


def test_sizes_come_from_a_checkpoint(tmp_path):
    """Only its config.json is read."""
    cfg = dataclasses.replace(TINY, num_layers=3, vocab_size=96)
    shapes = {"max_position_embeddings": 64, "num_hidden_layers": 3, "vocab_size": 96}
    shapes |= {"hidden_size": cfg.hidden_size, "intermediate_size": cfg.intermediate_size}
    shapes |= {"num_attention_heads": cfg.num_heads, "num_key_value_heads": cfg.num_kv_heads}
    (tmp_path / "config.json").write_text(json.dumps(shapes | {"model_type": "llama"}))
    policy = ppo_shapes(ppo_config(policy=str(tmp_path))).models["policy"]
    assert bytes_per_device(policy) == 4 * numbers(cfg, 2)
    config = sft.get_config("tiny")
    config.model.path, config.data.max_length = str(tmp_path), 64
    policy = sft_shapes(config).models["policy"]
    assert 8 * bytes_per_device(policy) > 4 * numbers(cfg, 2)
    with pytest.raises(InputError, match="rows of 72 tokens are more than the model's 64 pos"):
        ppo_shapes(ppo_config(policy=str(tmp_path), **{"data.max_prompt_length": 60}))
