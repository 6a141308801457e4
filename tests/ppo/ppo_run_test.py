"""PPO as a run: what it leaves, the faults of its peers, a KL that explodes."""

import itertools
import json
import math
import types

import bad_input_cases
import jax
import numpy as np
import ppo_cases
import pytest
import tiny_cases
from ppo_cases import contents, kept_samples, rows, same_run, saved, without_clock

from fgrlhf_jax.data import records
from fgrlhf_jax.errors import InputError
from fgrlhf_jax.functional import policy_losses as po
from fgrlhf_jax.models import hf_load, llama
from fgrlhf_jax.ppo import algorithm as ppo
from fgrlhf_jax.ppo import models as ppo_models
from fgrlhf_jax.ppo import programs as ppo_programs
from fgrlhf_jax.ppo import rollout as rollouts
from fgrlhf_jax.ppo import train as ppo_loop
from fgrlhf_jax.runtime import sharding
from fgrlhf_jax.runtime.checkpoint import Checkpoints
from launch import ppo as command
from launch.shared import config_files

pytest_plugins = ["ppo_runs"]
pytestmark = pytest.mark.usefixtures("in_process")

STEPS = 4

# --- What a run leaves ---

ALWAYS = {
    # the list, and what tells the steps apart
    *(
        "step",
        "reward/mean",
        "reward/raw",
        "reward/std",
        "reward/with_kl_penalty",
        "policy/kl",
        "policy/kl_per_token",
    ),
    *(
        "policy/kl_coef",
        "policy/entropy",
        "policy/clip_fraction",
        "value/clip_fraction",
        "value/explained_variance",
    ),
    *(
        "response/length",
        "reward/length_correlation",
        "response/unfinished",
        "policy/loss",
        "value/loss",
        "policy/approx_kl",
    ),
    *("policy/grad_norm", "value/grad_norm", "policy/learning_rate", "value/learning_rate"),
    *(
        "debug/initial_log_ratio",
        "debug/initial_kl",
        "debug/sampler_mismatch_kl",
        "tokens",
        "time/step",
        "tokens_per_second",
    ),
    *(f"time/{part}" for part in ("rollout", "scoring", "update")),
    *(f"tokens_per_second/{part}" for part in ("rollout", "scoring", "update")),
}
WATCHED = {f"validation/{n}" for n in ("reward", "kl", "length", "unfinished", "score")}


def test_every_step_has_its_row(undisturbed):
    first, *steps = rows(undisturbed)
    assert (
        first.keys()
        == {"step", "reward/normalization_mean", "reward/normalization_std"} | WATCHED
    )
    assert first["validation/kl"] == pytest.approx(0, abs=1e-5)
    assert [row["step"] for row in steps] == list(range(1, STEPS + 1))
    for row in [first, *steps]:
        assert all(math.isfinite(value) for value in row.values())
    for row in steps:
        assert row.keys() >= ALWAYS
        assert (row.keys() >= WATCHED) == (row["step"] % 2 == 0)
        assert row["tokens"] == pytest.approx(16 * row["response/length"])
        parts = [row[f"time/{part}"] for part in ("rollout", "scoring", "update")]
        assert sum(parts) <= row["time/step"] < sum(parts) + 1
        # Calibrated: less the mean a token, over the deviation of the sum.
        centred = (
            row["reward/raw"] - first["reward/normalization_mean"] * row["response/length"]
        )
        assert row["reward/mean"] == pytest.approx(
            centred / first["reward/normalization_std"], abs=1e-5
        )
    assert steps[0]["policy/kl"] == pytest.approx(0, abs=1e-5)
    assert steps[-1]["policy/kl"] > 0.1
    assert 0 < np.mean([row["response/unfinished"] for row in steps]) < 1


def test_the_coefficient_follows_the_kl(undisturbed):
    steps = rows(undisturbed)[1:]
    assert steps[0]["policy/kl_coef"] == 0.1
    for now, after in itertools.pairwise(steps):
        rule = {"target": 0.05, "horizon": 100.0, "rows": 16}
        assert after["policy/kl_coef"] == po.adapt_kl_coef(
            now["policy/kl_coef"], now["policy/kl"], **rule
        )
    assert len({row["policy/kl_coef"] for row in steps}) == STEPS


@pytest.mark.parametrize("overlong", ["drop", "truncate"])
def test_prompts_that_are_left_out_or_cut_are_counted(world, tmp_path, capsys, overlong):
    fields = ppo_cases.fields(world, tmp_path, data__overlong=overlong)
    config = config_files.parse(["", *ppo_cases.flags(fields)], ppo_cases.DEFAULT)
    rows = records.read(str(world.prompts))
    rows += [records.Instruction(" ".join(["apple"] * 40), "", "")] * 2
    models = ppo_models.read_architectures(config)
    rollouts.encode("train", rows, config, models, ppo_cases.TOKENIZER, "plain")
    counts = {
        "drop": "40 kept, 2 dropped_overlong, 0 truncated",
        "truncate": "42 kept, 0 dropped_overlong, 2 truncated",
    }
    assert capsys.readouterr().out == f"train: 42 prompts, {counts[overlong]}\n"


@pytest.mark.parametrize("template", ["plain", "alpaca"])
def test_a_template_that_the_policy_has_not_learned_is_said(world, tmp_path, capsys, template):
    given = {"reward_model": "", "reward_function": "fgrlhf_jax.tiny_world.judge:judge"}
    given |= {"data__template": template, "data__max_prompt_length": 1}
    fields = ppo_cases.fields(world, tmp_path, **given)
    config = config_files.parse(["", *ppo_cases.flags(fields)], ppo_cases.DEFAULT)
    rows = records.read(str(world.prompts))
    with pytest.raises(InputError, match="longer than max_prompt_length 1"):
        ppo_loop.run(config, rows, rows)
    said = "data.template=alpaca, though the policy was fine-tuned with plain\n"
    assert capsys.readouterr().out == (said if template == "alpaca" else "")


def test_samples_have_their_tokens_and_rewards(undisturbed, world):
    samples = kept_samples(undisturbed)
    assert [sample["step"] for sample in samples] == [0] * 4 + [2] * 4 + [4] * 4
    asked = [row.instruction for row in records.read(str(world.validation))]
    for number, sample in enumerate(samples):
        assert sample["instruction"] == asked[number % 4]
        assert len(sample["tokens"]) == len(sample["rewards"])
        said = "".join(sample["tokens"])
        assert said == sample["output"] + "</s>" * sample["finished"]
        assert sample["finished"] or len(sample["tokens"]) == 6
    assert len({sample["output"] for sample in samples}) > 4


def test_the_export_is_the_last_policy(undisturbed):
    export = undisturbed / "export"
    cfg = hf_load.read_config(export)
    assert cfg == ppo_cases.CFG
    assert hf_load.load_tokenizer(export).get_vocab() == ppo_cases.TOKENIZER.get_vocab()
    assert hf_load.learned_template(str(export)) == "plain"
    mesh = sharding.make_mesh("1,-1,1")
    abstract = llama.abstract_params(llama.CausalLM(cfg), mesh)
    ours = hf_load.load_params(export, abstract)
    checkpoints = Checkpoints(undisturbed / "checkpoints")
    critic = llama.abstract_params(llama.TokenValueModel(cfg, "after"), mesh)
    parts = {"params": {"policy": abstract, "critic": critic}}
    kept = checkpoints.restore(STEPS, parts)["params"]["policy"]
    checkpoints.close()
    jax.tree.map(np.testing.assert_array_equal, ours, kept)
    before = ppo_cases.policy_params()
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max() > 1e-4, jax.device_get(ours), before)
    assert all(jax.tree.leaves(moved))
    assert saved(undisturbed) == [STEPS]
    assert json.loads((undisturbed / "finished.json").read_text()) == {"step": STEPS}


def test_a_finished_run_makes_no_step(undisturbed, run):
    samples, metrics = (undisturbed / n for n in ("samples.jsonl", "metrics.jsonl"))
    before = samples.read_bytes(), metrics.read_bytes(), contents(undisturbed / "export")
    run(undisturbed)
    after = samples.read_bytes(), metrics.read_bytes(), contents(undisturbed / "export")
    assert after == before


# --- Peer fault 6: sampling at T != 1, log-probabilities unscaled ---


def test_fault_6_the_policy_that_is_updated_is_the_one_that_sampled(undisturbed):
    for row in rows(undisturbed)[1:]:
        assert row["debug/initial_log_ratio"] < 1e-4
        assert abs(row["debug/initial_kl"]) < 1e-6
        assert abs(row["debug/sampler_mismatch_kl"]) < 1e-6


def test_fault_6_put_in_stops_the_run(run, monkeypatch):
    sample = ppo_programs.sampling.generate

    def unscaled(*args, temperature, **how):
        return sample(*args, temperature=1.0, **how)

    monkeypatch.setattr(ppo_programs.sampling, "generate", unscaled)
    monkeypatch.setattr(ppo_cases, "programs", {})
    with pytest.raises(RuntimeError, match="step 1: the policy is not the one that sampled"):
        run(steps=1)


# --- Peer fault 8: the same shuffle key at every update ---


@pytest.fixture
def recorded(monkeypatch):
    """The keys of every call of a program, from here on."""
    starts = {
        (key, name): len(program.keys)
        for key, made in ppo_cases.programs.items()
        for name, program in made.items()
    }

    def recorded(name: str) -> list:
        (found,) = [
            program.keys[starts.get((key, name), 0) :]
            for key, made in ppo_cases.programs.items()
            for program in [made[name]]
            if len(program.keys) > starts.get((key, name), 0)
        ]
        return found

    return recorded


def test_fault_8_every_update_has_its_own_order_and_every_rollout_its_own_keys(run, recorded):
    run()
    shuffles = recorded("update")
    assert len(shuffles) == STEPS
    settings = types.SimpleNamespace(ppo_epochs=2, minibatch_size=16)
    orders = np.concatenate([ppo.minibatch_rows(key, 16, settings) for key in shuffles])
    assert len({tuple(order) for order in orders.tolist()}) == 2 * STEPS
    # Two batches of prompts to watch, for the calibration and at steps 0, 2 and 4; between these
    # those to learn from.
    keys = [jax.random.key_data(key).tobytes() for key in recorded("generate")]
    watched = [keys[n : n + 2] for n in (2, 6, 10)]
    assert watched[0] == watched[1] == watched[2]
    assert len({*keys[:2], *watched[0], *keys[4:6], *keys[8:10]}) == 4 + STEPS
    assert len(keys) == 8 + STEPS


def test_every_epoch_has_all_prompts_in_an_order_of_its_own():
    steps = [ppo_loop.rows_of_step(40, 16, seed=3, step=step) for step in range(8)]
    for epoch in range(4):
        assert len({*steps[2 * epoch], *steps[2 * epoch + 1]}) == 32
    assert len({tuple(some) for some in steps}) == 8
    again = ppo_loop.rows_of_step(40, 16, seed=3, step=5)
    np.testing.assert_array_equal(again, steps[5])
    assert {*ppo_loop.rows_of_step(40, 16, seed=4, step=5)} != {*steps[5]}


# --- A KL that explodes ---


def test_a_kl_above_the_limit_stops_the_run_with_its_state_saved(
    undisturbed, world, tmp_path, monkeypatch, capsys
):
    """And a second start says so again, instead of going on from there."""
    kls = [row["policy/kl"] for row in rows(undisturbed)[1:]]
    number = next(n for n, kl in enumerate(kls, 1) if kl > 0.3)
    assert number < STEPS
    run_dir = tmp_path / "run"
    limit = {"kl__limit": 0.9 * kls[number - 1], "save_every": 0}
    fields = ppo_cases.fields(world, run_dir, **limit)
    for _ in range(2):
        status, lines = bad_input_cases.run(monkeypatch, capsys, command, **fields)
        assert status == 2
        assert lines[-1].startswith(
            f"error: step {number}: KL to the reference is {kls[number - 1]:.1f} nats"
        )
        assert f"step {number} is saved" in lines[-1]
        assert saved(run_dir) == [number]
        assert without_clock(run_dir) == without_clock(undisturbed)[: number + 1]
        assert not (run_dir / "export").exists()


def test_a_kl_above_half_of_the_limit_warns(undisturbed, run, capsys):
    kls = [row["policy/kl"] for row in rows(undisturbed)[1:]]
    limit = 1.5 * max(kls)
    run_dir = run(kl__limit=limit)
    out = capsys.readouterr().out
    for number, kl in enumerate(kls, 1):
        says = f"step {number}: warning: KL is {kl:.1f}, above {limit / 2:g} nats"
        assert (says in out) == (kl > limit / 2)
    assert out.count("warning") == sum(kl > limit / 2 for kl in kls) > 0
    same_run(run_dir, undisturbed)


def test_a_policy_that_is_no_number_is_not_saved(run, tmp_path):
    """One update a step, at a rate far too high: the figures of that step are still numbers."""
    much = {"optimizer__learning_rate": 1e30, "optimizer__schedule": "constant"}
    once = {"steps": 1, "ppo_epochs": 1, "minibatch_size": 16, "optimizer__warmup_steps": 0}
    with pytest.raises(InputError, match=r"step 1: validation/\w+ is (nan|inf); stopped, noth"):
        run(**much, **once)
    assert saved(tmp_path / "run") == []
    assert [row["step"] for row in rows(tmp_path / "run")] == [0]
    assert not (tmp_path / "run" / "export").exists()


def test_frozen_parameters_of_either_part_stay_as_they_are():
    given = {"optimizer__freeze": "embed", "optimizer__warmup_steps": 0}
    config = config_files.parse(["", *ppo_cases.flags(given)], ppo_cases.DEFAULT)
    optimizer, _ = ppo_programs.make_optimizer(config)
    critic = tiny_cases.parameters(llama.TokenValueModel(ppo_cases.CFG, "after"))
    params = {"policy": ppo_cases.policy_params(), "critic": critic}
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    for path, update in tiny_cases.by_path(updates).items():
        assert bool(np.any(update)) == ("embed" not in path), path
