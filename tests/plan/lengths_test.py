"""Plans for rows of real lengths."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from plan_cases import TINY, ppo_config, row_flops

from configs import rm, sft
from fgrlhf_jax.errors import InputError
from fgrlhf_jax.plan.lengths import Lengths
from fgrlhf_jax.plan.memory import measure_step
from fgrlhf_jax.plan.shapes import ppo_shapes
from fgrlhf_jax.ppo import scoring
from fgrlhf_jax.ppo.algorithm import PPOSettings, Rows
from fgrlhf_jax.runtime import sharding
from fgrlhf_jax.runtime.files import write_jsonl
from launch import plan as command

pytestmark = pytest.mark.slow


def test_rows_of_real_lengths():
    """The plan has the micro-batches per width and the FLOPs of rows with these lengths."""
    sizes = {"rollout_batch_size": 64, "minibatch_size": 64, "micro_batch_size": 16}
    config = ppo_config(**sizes | {"data.max_prompt_length": 40, "data.max_new_tokens": 200})
    rng = np.random.default_rng(1)
    lengths = Lengths(rng.integers(4, 60, 300), rng.integers(1, 300, 300))
    longest, real = ppo_shapes(config), ppo_shapes(config, lengths)
    step = real.steps["score_rollout"]
    assert 0.4 < step.flops / longest.steps["score_rollout"].flops < 0.7
    assert len(step.trips) > 2
    assert sum(step.trips.values()) < 64 / 16 + 3  # a narrow one has more rows
    with pytest.raises(InputError, match=r"^all 300 prompts of --lengths are longer"):
        ppo_shapes(ppo_config(**{"data.max_prompt_length": 2}), lengths)


@pytest.mark.parametrize(
    ("kind", "config"), [("rm", rm.get_config("tiny")), ("sft", sft.get_config("tiny"))]
)
def test_supervised_rows_of_real_lengths(kind, config, tmp_path):
    """One program per width, with the FLOPs of a mean batch and its share of the updates."""
    sizes = {"batch_size": 8, "mesh": "4,1,2", "data.max_length": 64, "data.buckets": 2}
    config.update_from_flattened_dict(sizes)
    names = ("common", "edited", "original") if kind == "rm" else ("prompt", "response")
    short, long = ((4, 9, 11), (7, 25, 13)) if kind == "rm" else ((4, 20), (5, 40))
    rows = [dict(zip(names, row, strict=True)) for row in [short] * 24 + [long] * 8]
    too_long = dict.fromkeys(names, 40)
    write_jsonl(tmp_path / "rows.jsonl", [too_long, *rows])
    read = command.read_rows(config, kind, str(tmp_path / "rows.jsonl"))
    assert len(read) == len(rows)
    shapes = command.SHAPES[kind](config, read)
    assert [step.share for step in shapes.steps.values()] == [0.75, 0.25, 1]
    cfg = dataclasses.replace(TINY, vocab_size=config.model.vocab_size)
    for name, row in {"train_24": short, "train_48": long}.items():
        if kind == "rm":
            keys = [k for n in row[1:] for k in [row[0] + n] * (row[0] + n)]
            flops = row_flops(cfg, keys, 0) - row_flops(cfg, [row[0]] * row[0], 0)
        else:
            flops = row_flops(cfg, [sum(row)] * sum(row), row[1])
        assert shapes.steps[name].flops == pytest.approx(3 * 8 * flops, rel=1e-12)
    plan = measure_step(shapes.steps["train_48"], 0, 1e9, 8)
    assert plan["notes"] == ["25% of the updates"]
    assert plan["stages"]["train_48"]["flops"] == pytest.approx(plan["compiled_flops"] / 4)
    assert 0.7 < plan["model_flops"] / plan["compiled_flops"] <= 1
    (tmp_path / "rows.jsonl").write_text("[1, 2]\n")
    with pytest.raises(InputError, match=r"rows\.jsonl: tokenizing texts needs a model"):
        command.read_rows(config, kind, str(tmp_path / "rows.jsonl"))
    (tmp_path / "rows.jsonl").write_text(json.dumps(too_long))  # a last line without its end
    with pytest.raises(InputError, match=r"all rows are longer than data\.max_length=64"):
        command.read_rows(config, kind, str(tmp_path / "rows.jsonl"))


@pytest.mark.parametrize("rows", [16, 8])
def test_rounds_are_those_of_the_compiled_loop(rows):
    config = ppo_config(mesh="1,8,1", **{"data.max_new_tokens": 200})
    settings = PPOSettings.from_config(config, (96, 160, 208))
    lengths = np.random.default_rng(rows).integers(1, 209, rows)
    counted = []

    def function(carry, part, numbers, real):
        jax.debug.callback(lambda: counted.append(part.tokens_BS.shape[1]))
        return carry

    with jax.set_mesh(sharding.make_mesh(config.mesh)):
        expected = scoring.count_micro_batches(lengths, settings)
        tokens_BS, response_BT = jnp.zeros((rows, 208), jnp.int32), jnp.zeros((rows, 200), bool)
        batch = Rows(tokens_BS, jnp.asarray(lengths), response_BT)
        jax.jit(lambda batch: scoring.fold(function, 0, batch, settings))(batch)
        jax.effects_barrier()
    assert {width: counted.count(width) for width in settings.widths} == expected
