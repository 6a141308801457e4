"""The smallest change that fits, with a made-up memory formula and with a compiled run."""

import operator
import types

import pytest

from configs import ppo, rm
from fgrlhf_jax.plan import fit
from fgrlhf_jax.plan.memory import format_advice, measure
from fgrlhf_jax.plan.shapes import reward_model_shapes
from fgrlhf_jax.runtime import sharding

MICRO = fit.MICRO_BATCH


def make_config(**fields):
    config = rm.get_config("tiny")
    config.update_from_flattened_dict({"batch_size": 16, "mesh": "1,8,1"} | fields)
    return config


@pytest.fixture
def needs(monkeypatch):
    """A run of 100 bytes, plus 10 per row on a device (5 with remat), minus 64 if tensor=4."""

    def make_shapes(config):
        mesh = sharding.make_mesh(config.mesh)
        micro = config.micro_batch_size or config.batch_size
        sharding.check_batch(mesh, micro)
        rows = 10 * micro / (mesh.size / mesh.shape["tensor"])
        total = 100 + rows * (0.5 if config.model.remat else 1)
        total -= 64 if mesh.shape["tensor"] == 4 else 0
        return types.SimpleNamespace(models={}, optimizer={}, mesh=mesh, steps={"train": total})

    monkeypatch.setattr(fit, "measure_step", lambda need, _, memory, __: {"fits": need <= memory})
    return make_shapes


@pytest.mark.parametrize(
    ("memory", "fields", "expected"),
    [
        (110, {}, {"micro_batch_size": 8}),  # of 120
        (105, {"micro_batch_size": 8}, {"model.remat": True}),  # of 110
        (90, {"micro_batch_size": 8}, {"mesh": "1,2,4"}),  # 36 + 40
        (110, {"model.remat": True, "batch_size": 32}, {"micro_batch_size": 16}),
        (104, {"micro_batch_size": 8, "model.remat": True}, {"mesh": "1,2,4", MICRO: 16}),
        (56, {}, {"mesh": "1,2,4", "micro_batch_size": 4}),
        (41, {}, {"model.remat": True, "mesh": "1,2,4", "micro_batch_size": 2}),
        (40, {}, None),
    ],
)
def test_the_fewest_fields_and_the_largest_micro_batch(needs, memory, fields, expected):
    assert fit.smallest_change(make_config(**fields), needs, memory, lambda line: None) == expected


@pytest.mark.parametrize(
    ("memory", "fields", "expected"),
    [
        (119, {"micro_batch_size": 8}, {}),
        (139, {"micro_batch_size": 8, "batch_size": 64}, {"micro_batch_size": 16}),
        (1000, {"micro_batch_size": 8, "batch_size": 48}, {"micro_batch_size": 48}),
        (1000, {"batch_size": 48}, {}),
    ],
)
def test_the_largest_micro_batch_of_a_run_that_fits(needs, memory, fields, expected):
    config = make_config(**fields)
    assert fit.largest_micro_batch(config, needs, memory, lambda line: None) == expected


@pytest.mark.parametrize(
    ("config", "field", "changes"),
    [
        (make_config(**{"lora.rank": 4}), "lora.base_dtype", ["bfloat16", "int8", "nf4"]),
        (ppo.get_config("tiny"), "generation_mesh", ["1,1,8"]),
    ],
)
def test_base_dtype_and_generation_mesh_are_tried(config, field, changes):
    def tried() -> set:
        configs, shapes = [], types.SimpleNamespace(models={}, optimizer={})
        assert not fit.holds_models(config, lambda c: configs.append(c) or shapes, memory=-1)
        return {operator.attrgetter(field)(c) for c in configs}

    assert tried() == {operator.attrgetter(field)(config), *changes}
    config.update_from_flattened_dict({field: changes[-1]})
    assert tried() == {changes[-1]}


@pytest.mark.slow
def test_a_compiled_run():
    """With the memory that 16 rows need, the largest micro-batch is 16."""
    config = make_config(batch_size=32, **{"data.max_length": 24, "model.remat": True})

    def total(**fields):
        shapes = reward_model_shapes(fit.changed(config, fields))
        return max(step["total"] for step in measure(shapes, 1e9)["steps"].values())

    memory = total(micro_batch_size=16)
    assert fit.holds_models(config, reward_model_shapes, memory)
    lines = []
    change = fit.smallest_change(config, reward_model_shapes, memory, lines.append)
    assert change == {"micro_batch_size": 16}
    assert lines[0] == "trying --config.micro_batch_size=8 …"


def test_the_advice():
    change = fit.format_change({"model.remat": True, "micro_batch_size": 2})
    text = "It does not fit 24 GB; the smallest change that does: --config.model.remat=True "
    assert format_advice(change, 24e9) == f"{text}--config.micro_batch_size=2"
