"""PPO as a run: what it leaves, the faults of its peers, a KL that explodes."""

import contextlib
import itertools
import json
import math
import re
import types

import bad_input_cases
import chex
import jax
import jax.numpy as jnp
import numpy as np
import ppo_cases
import pytest
import tiny_cases
from ppo_cases import parse, read_samples, same_run
from rm_cases import contents, rows, saved, unexplained, without_clock

from fgrlhf_jax.data import records, sources
from fgrlhf_jax.data.records import Edit
from fgrlhf_jax.errors import InputError
from fgrlhf_jax.functional.policy_losses import adapt_kl_coef
from fgrlhf_jax.models import heads, hf_load
from fgrlhf_jax.models.language_model import LanguageModel
from fgrlhf_jax.ppo import checks, learning, models, programs, rollout, train
from fgrlhf_jax.runtime import sharding
from fgrlhf_jax.runtime.checkpoint import Checkpoints
from fgrlhf_jax.runtime.files import write_jsonl
from fgrlhf_jax.runtime.run_dir import read_finished
from fgrlhf_jax.training import correction
from launch import ppo as command

pytest_plugins = ["runs"]
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("in_process")]

STEPS = 4
METRICS = {
    "debug": "initial_log_ratio initial_kl sampler_mismatch_kl",
    "policy": "kl kl_per_token kl_coef entropy clip_fraction approx_kl loss advantage_rms "
    "grad_norm learning_rate update_rms",
    "response": "length unfinished",
    "reward": "mean raw std with_kl_penalty length_correlation",
    "time": "step rollout scoring update",
    "tokens_per_second": "rollout scoring update device",
    "value": "mean return loss clip_fraction explained_variance grad_norm learning_rate update_rms",
}
ALWAYS = {f"{group}/{name}" for group, names in METRICS.items() for name in names.split()}
ALWAYS |= {"step", "tokens", "tokens_per_second", "tflops_per_device"}
VALIDATION = {f"validation/{n}" for n in ("reward", "kl", "length", "unfinished", "score")}
VALIDATION |= {"validation/reward_with_missing_eos"}


# What a run leaves


def test_every_step_has_its_row(ppo_run):
    first, *steps = rows(ppo_run)
    assert not unexplained(first.keys() | steps[-1].keys())
    mean, std = (first.pop(f"reward/normalization_{name}") for name in ("mean", "std"))
    assert first.keys() == {"step"} | VALIDATION
    assert first["validation/kl"] == pytest.approx(0, abs=1e-5)
    assert [row["step"] for row in steps] == list(range(1, STEPS + 1))
    for row in steps:
        evaluated = VALIDATION if row["step"] % 2 == 0 else set()
        assert row.keys() == ALWAYS | evaluated
        assert all(math.isfinite(value) for value in row.values())
        assert row["tokens"] == pytest.approx(16 * row["response/length"])
        parts = sum(row[f"time/{part}"] for part in ("rollout", "scoring", "update"))
        assert parts <= row["time/step"] < parts + 1
        # Less the mean a token, over the deviation of the sum.
        normalized = (row["reward/raw"] - mean * row["response/length"]) / std
        assert row["reward/mean"] == pytest.approx(normalized, abs=1e-5)
        # Peer fault 6: the policy that is updated is the one that sampled.
        assert row["debug/initial_log_ratio"] < 1e-4
        assert abs(row["debug/initial_kl"]) < 1e-6
        assert abs(row["debug/sampler_mismatch_kl"]) < 1e-6
    assert steps[0]["policy/kl"] == pytest.approx(0, abs=1e-5)
    assert steps[-1]["policy/kl"] > 0.1
    assert 0 < np.mean([row["response/unfinished"] for row in steps]) < 1


def test_the_coefficient_follows_the_kl(ppo_run):
    steps = rows(ppo_run)[1:]
    assert steps[0]["policy/kl_coef"] == 0.1
    for now, after in itertools.pairwise(steps):
        rule = {"target": 0.05, "horizon": 100.0, "rows": 16}
        coefficient = adapt_kl_coef(now["policy/kl_coef"], now["policy/kl"], **rule)
        assert after["policy/kl_coef"] == coefficient != now["policy/kl_coef"]


def test_samples_have_their_tokens_and_rewards(ppo_run, world):
    samples = read_samples(ppo_run)
    assert [sample["step"] for sample in samples] == [0] * 4 + [2] * 4 + [4] * 4
    instructions = [row.instruction for row in sources.read(str(world.validation))]
    for number, sample in enumerate(samples):
        assert sample["instruction"] == instructions[number % 4]
        assert len(sample["tokens"]) == len(sample["rewards"])
        assert "".join(sample["tokens"]) == sample["output"] + "</s>" * sample["finished"]
        assert sample["finished"] or len(sample["tokens"]) == 6
    assert len({sample["output"] for sample in samples}) > 4


def test_edits_in_the_validation_are_corrected_before_and_after(run, world, tmp_path):
    """In eval.json as launch.evaluate would, and in the card."""
    pairs = [("dog cat sun", "dog sun"), ("sun", "sun dog"), ("cat dog", "dog cat")]
    texts = itertools.cycle(pairs)
    edits = [Edit(row.instruction, "", *next(texts)) for row in sources.read(str(world.validation))]
    write_jsonl(tmp_path / "edits.jsonl", edits)
    run_dir = run(validation=tmp_path / "edits.jsonl", steps=1)
    found = json.loads((run_dir / "eval.json").read_text())["corrections"]
    after, before = (LanguageModel.load(path) for path in (run_dir, world.policy))
    expected = correction.evaluate(after, edits, before)
    for table, other in ((found, expected), (found["gain"], expected["gain"])):
        assert table["sampled"] == pytest.approx(other["sampled"], abs=1e-4)
    assert found["gain"]["sampled"]["mean"] != 0
    card = (run_dir / "export" / "README.md").read_text()
    assert f"correction/sampled       {found['sampled']['mean']:.6g} of the places" in card


def test_the_export_is_the_last_policy(ppo_run, world):
    export = ppo_run / "export"
    card = (export / "README.md").read_text()
    assert f"| Rewards from | {world.token} |" in card
    assert re.search(r"validation/kl +\S+ nats a response\n", card)
    cfg = hf_load.read_config(export)
    assert cfg == ppo_cases.CFG
    assert hf_load.load_tokenizer(export).get_vocab() == ppo_cases.TOKENIZER.get_vocab()
    assert hf_load.encoding_settings(str(export)) == {"template": "plain", "max_new_tokens": 6}
    abstract = heads.abstract_params(heads.CausalLM(cfg), sharding.make_mesh("1,-1,1"))
    exported = hf_load.load_params(export, abstract)
    mesh = sharding.make_mesh("1,-1,1")
    critic = heads.abstract_params(heads.TokenValueModel(cfg, "after"), mesh)
    checkpoints = Checkpoints(ppo_run / "checkpoints")
    parts = {"params": {"policy": abstract, "critic": critic}}
    last = checkpoints.restore(STEPS, parts)["params"]["policy"]
    checkpoints.close()
    jax.tree.map(np.testing.assert_array_equal, exported, last)
    start = ppo_cases.policy_params()
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max() > 1e-4, exported, start)
    assert all(jax.tree.leaves(moved))
    assert saved(ppo_run) == [STEPS]
    assert read_finished(ppo_run)["step"] == STEPS


def test_a_finished_run_makes_no_step(ppo_run, run):
    paths = [ppo_run / name for name in ("samples.jsonl", "metrics.jsonl")]
    before = [path.read_bytes() for path in paths], contents(ppo_run / "export")
    run(ppo_run)
    assert ([path.read_bytes() for path in paths], contents(ppo_run / "export")) == before
    for path, content in zip(paths, before[0], strict=True):
        path.write_bytes(content.replace(b"1", b"2", 1))
        with pytest.raises(InputError, match=f"{path.name}: is not as the run left it; put back"):
            run(ppo_run)
        path.write_bytes(content)


# Prompts


def test_prompts_that_are_left_out_or_cut_are_counted(world, tmp_path, capsys):
    prompts = sources.read(str(world.prompts))
    prompts += [records.Instruction(" ".join(["apple"] * 40), "", "")] * 2
    counts = {"drop": "40 kept, 2 dropped_overlong, 0 truncated"}
    counts["truncate"] = "42 kept, 0 dropped_overlong, 2 truncated"
    for overlong, expected in counts.items():
        config = parse(ppo_cases.fields(world, tmp_path, data__overlong=overlong))
        architectures = models.read_architectures(config)
        rollout.encode("train", prompts, config, architectures, ppo_cases.TOKENIZER, "plain")
        assert capsys.readouterr().out == f"train: 42 prompts, {expected}\n"


@pytest.mark.parametrize("template", ["plain", "alpaca"])
def test_a_template_that_the_policy_has_not_learned_is_reported(world, tmp_path, capsys, template):
    changes = {"reward_model": "", "reward_function": "fgrlhf_jax.tiny_world.judge:judge"}
    changes |= {"data__template": template, "data__max_prompt_length": 1}
    config = parse(ppo_cases.fields(world, tmp_path, **changes))
    prompts = sources.read(str(world.prompts))
    with pytest.raises(InputError, match="max_prompt_length=1: the template"):
        train.run(config, prompts, prompts)
    message = "data.template=alpaca, though the policy was fine-tuned with plain\n"
    assert capsys.readouterr().out == (message if template == "alpaca" else "")


def test_every_epoch_has_all_prompts_in_an_order_of_its_own():
    steps = [rollout.rows_of_step(40, 16, seed=3, step=step) for step in range(8)]
    for epoch in range(4):
        assert len({*steps[2 * epoch], *steps[2 * epoch + 1]}) == 32
    assert len({tuple(rows) for rows in steps}) == 8
    np.testing.assert_array_equal(rollout.rows_of_step(40, 16, seed=3, step=5), steps[5])
    assert {*rollout.rows_of_step(40, 16, seed=4, step=5)} != {*steps[5]}


# Peer faults 6 and 8


def test_fault_6_put_in_stops_the_run(run, monkeypatch):
    """Sampling at T != 1, log-probabilities unscaled."""
    sample = programs.sampling.generate

    def unscaled(*args, temperature, **options):
        return sample(*args, temperature=1.0, **options)

    monkeypatch.setattr(programs.sampling, "generate", unscaled)
    others = {k: p for k, p in ppo_cases.programs.items() if json.loads(k)[0] != "generate"}
    monkeypatch.setattr(ppo_cases, "programs", others)
    with pytest.raises(RuntimeError, match="step 1: the policy is not the one that sampled"):
        run()


@pytest.mark.parametrize(
    ("dtype", "largest", "mean", "reference", "one_pass", "sound"),
    [
        ("int8", 5e-4, 1e-2, 1e-6, True, True),
        ("int8", 2e-3, 1e-2, 1e-6, True, False),
        ("int8", 5e-4, 0.03, 1e-6, True, False),
        ("float32", 5e-4, 1e-6, 1e-6, True, True),
        ("float32", 2e-3, 1e-6, 0.0, True, False),
        ("float32", 0.0, 0.0, 2e-3, True, False),
        ("bfloat16", 0.224, 1e-3, 1e-3, True, True),  # of two sound programs
        ("bfloat16", 0.2, 0.03, 0.0, True, False),
        ("bfloat16", 0.2, 1e-3, 0.03, True, False),
        ("bfloat16", 0.2, 1e-3, 1e-6, False, True),
        ("bfloat16", 0.2, 1e-3, 1e-3, False, False),  # of one program, of rounded norms
    ],
)
def test_in_bfloat16_the_first_step_is_checked_by_its_means(
    dtype, largest, mean, reference, one_pass, sound
):
    names = ("debug/initial_kl", "debug/sampler_mismatch_kl")
    metrics = {"debug/initial_log_ratio": largest} | dict.fromkeys(names, mean)
    if int8 := dtype == "int8":  # of the sampler's cache
        metrics["debug/initial_kl"], dtype = 1e-6, "float32"
    with contextlib.nullcontext() if sound else pytest.raises(RuntimeError, match="step 1: "):
        checks.check_first(metrics, reference, 1, dtype, int8, one_pass)


def test_fault_8_every_update_has_its_own_order_and_every_rollout_its_own_keys(
    ppo_run, run, capsys
):
    """The same shuffle key at every update. And a KL above half of the limit warns."""
    before = {key: len(program.keys) for key, program in ppo_cases.programs.items()}
    kls = [row["policy/kl"] for row in rows(ppo_run)[1:]]
    limit = 1.5 * max(kls)
    same_run(run(kl__limit=limit), ppo_run)
    keys = {
        json.loads(key)[0]: program.keys[before[key] :]
        for key, program in ppo_cases.programs.items()
        if len(program.keys) > before[key]
    }
    settings = types.SimpleNamespace(ppo_epochs=2, minibatch_size=16)
    assert len(keys["update"]) == STEPS
    orders = np.concatenate([learning.minibatch_rows(key, 16, settings) for key in keys["update"]])
    assert len({tuple(order) for order in orders.tolist()}) == 2 * STEPS
    # Two batches of validation prompts, for the normalization and at steps 0, 2 and 4; between
    # these those to learn from.
    sampling = [jax.random.key_data(key).tobytes() for key in keys["generate"]]
    validation = [sampling[n : n + 2] for n in (2, 6, 10)]
    assert validation[0] == validation[1] == validation[2]
    learned = [*sampling[4:6], *sampling[8:10]]
    assert len({*sampling[:2], *validation[0], *learned}) == 4 + STEPS
    assert len(sampling) == 8 + STEPS

    out = capsys.readouterr().out
    for number, kl in enumerate(kls, 1):
        warning = f"step {number}: warning: KL is {kl:.1f}, above {limit / 2:g} nats"
        assert (warning in out) == (kl > limit / 2)
    assert out.count("warning") == sum(kl > limit / 2 for kl in kls) > 0


# A KL that explodes, a policy that is no number


def test_a_kl_above_the_limit_stops_the_run(ppo_run, world, tmp_path, monkeypatch, capsys):
    """And a second start says so again, instead of going on from there."""
    kls = [row["policy/kl"] for row in rows(ppo_run)[1:]]
    number = next(n for n, kl in enumerate(kls, 1) if kl > 0.3)
    assert number < STEPS
    run_dir = tmp_path / "run"
    limit = {"kl__limit": 0.9 * kls[number - 1], "save_every": 0}
    fields = ppo_cases.fields(world, run_dir, **limit)
    for _ in range(2):
        status, lines = bad_input_cases.run(monkeypatch, capsys, command, **fields)
        assert status == 2
        sentence = f"error: step {number}: KL to the reference is {kls[number - 1]:.1f} nats"
        assert lines[-1].startswith(sentence)
        assert f"step {number} is saved" in lines[-1]
        assert saved(run_dir) == [number]
        assert without_clock(run_dir) == without_clock(ppo_run)[: number + 1]
        assert not (run_dir / "export").exists()


def test_a_policy_that_is_no_number_is_not_saved(run, tmp_path):
    """One update a step, at a rate far too high: the metrics of that step are still numbers."""
    much = {"optimizer__learning_rate": 1e30, "optimizer__schedule": "constant"}
    once = {"steps": 1, "ppo_epochs": 1, "minibatch_size": 16, "optimizer__warmup_steps": 0}
    with pytest.raises(InputError, match=r"step 1: validation/\w+ is (nan|inf).*; stopped, no"):
        run(**much, **once)
    assert saved(tmp_path / "run") == []
    assert [row["step"] for row in rows(tmp_path / "run")] == [0]
    assert not (tmp_path / "run" / "export").exists()


def test_the_weight_of_the_value_loss_does_not_hide_the_critics_rate():
    """Clipping and eps see the critic's own gradients as they are without it."""
    critic, updates = {"kernel": jnp.array([0.1, -2.0, 3.0])}, []
    params = {"policy": {"kernel": jnp.ones(2)}, "critic": critic}
    for weight in (1.0, 0.1):
        fields = {"value_coef": weight, "optimizer__eps": 0.1, "optimizer__warmup_steps": 0}
        optimizer, _ = programs.make_optimizer(parse(fields))
        grads = params | {"critic": {"kernel": weight * critic["kernel"]}}
        updates.append(optimizer.update(grads, optimizer.init(params), params)[0])
    chex.assert_trees_all_close(*updates, rtol=1e-5)


def test_frozen_parameters_of_either_part_stay_as_they_are():
    config = parse({"optimizer__freeze": "embed", "optimizer__warmup_steps": 0})
    optimizer, _ = programs.make_optimizer(config)
    critic = tiny_cases.parameters(heads.TokenValueModel(ppo_cases.CFG, "after"))
    params = {"policy": ppo_cases.policy_params(), "critic": critic}
    updates, _ = jax.jit(lambda p: optimizer.update(p, optimizer.init(p), p))(params)
    for path, update in tiny_cases.by_path(updates).items():
        assert bool(np.any(update)) == ("embed" not in path), path
