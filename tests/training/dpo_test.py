"""Learning from pairs: the policy's log-probabilities, an update, what a run leaves, its resume."""

import functools
import json
import math
import shutil
import signal

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import ppo_cases
import pytest
import rm_cases
import tiny_cases
from rm_cases import contents, rows, saved, without_clock

from fgrlhf_jax.data import records
from fgrlhf_jax.data.alignment import align
from fgrlhf_jax.data.pairs import Pair, pad_pairs
from fgrlhf_jax.data.records import Edit
from fgrlhf_jax.functional.preference_losses import PreferenceSettings, preference_loss
from fgrlhf_jax.models import heads, hf_load, llama
from fgrlhf_jax.models.language_model import LanguageModel
from fgrlhf_jax.runtime import optim, sharding
from fgrlhf_jax.training import correction, dpo
from launch import dpo as command
from launch.shared import config_files

pytest_plugins = ["runs"]
MODEL = heads.CausalLM(tiny_cases.CFG)
PARAMS = tiny_cases.parameters(MODEL)
OPTIMIZER = optax.sgd(1.0)  # the change of a parameter is its gradient
SETTINGS = {loss: PreferenceSettings(loss, 0.3, 2.0) for loss in ("dpo", "ddpo", "salt", "figa")}
WIDTH, RESPONSE = 24, 16


def make_pair(seed: int, start: int) -> Pair:
    """A prompt of ``start`` tokens, and two responses that begin alike."""
    rng = np.random.default_rng(seed)
    prompt, beginning, *ends = (rng.integers(0, 64, n) for n in (start, seed % 3, 3, 4 + seed % 2))
    sides = [np.concatenate([prompt, beginning, end]).astype(np.int32) for end in ends]
    aligned = align(*(side[start:] for side in sides))
    changed = [np.r_[np.zeros(start, bool), x] for x in (aligned.changed_i, aligned.changed_j)]
    partner = np.full(len(sides[0]), -1, np.int32)
    return Pair(*sides, start, start, *changed, np.zeros(len(sides[1]), bool), partner, seed)


PAIRS = [make_pair(seed, start) for seed, start in enumerate([0, 1, 2, 3, 4, 1, 2, 3])]
REFERENCE = np.random.default_rng(9).normal(-20, 1, (len(PAIRS), 2, 2)).astype(np.float32)


def make_batch(parts: int = 0) -> dict:
    """The pairs as one batch, or as micro-batches [A, B, ...]."""
    batch = pad_pairs(PAIRS, WIDTH)
    starts = np.array([dpo.first_column(pair) for pair in PAIRS])[:, None]
    columns_BT = np.minimum(starts + np.arange(RESPONSE), WIDTH - 1)
    batch |= {"columns_BT": columns_BT.astype(np.int32), "reference_B22": REFERENCE}
    batch["response_B2S"][..., 0] = False
    if parts:
        batch = {name: x.reshape(parts, -1, *x.shape[1:]) for name, x in batch.items()}
    return batch


@jax.jit
def logits_of(tokens_S) -> jax.Array:
    """Of one text alone, padded on the right: nothing after a token matters."""
    args = llama.positions_and_mask(jnp.ones((1, WIDTH), bool))
    return MODEL.apply({"params": PARAMS}, tokens_S[None], *args)[0]


def read(tokens: np.ndarray) -> np.ndarray:
    """Log-probability of every token but the first one, float64[S]."""
    padded = np.zeros(WIDTH, np.int32)
    padded[: len(tokens)] = tokens
    logits = np.asarray(logits_of(padded), np.float64)
    total = np.log(np.exp(logits).sum(axis=-1))
    return np.array([0] + [logits[t - 1, x] - total[t - 1] for t, x in enumerate(tokens) if t])


def test_log_probabilities_of_a_shared_row_are_those_of_its_two_texts():
    found = dpo.pair_logprobs(PARAMS, make_batch(), model=MODEL)
    for pair, logprob_2S in zip(PAIRS, np.asarray(found), strict=True):
        for side, tokens in enumerate((pair.tokens_i, pair.tokens_j)):
            at = slice(dpo.first_column(pair), len(tokens))
            np.testing.assert_allclose(logprob_2S[side, at], read(tokens)[at], atol=2e-5)


@functools.partial(jax.jit, static_argnames=("settings", "optimizer"))
def step(state, batch, settings, optimizer=OPTIMIZER):
    return dpo.train_step(state, batch, model=MODEL, settings=settings, optimizer=optimizer)


def learn(batch, settings, optimizer=OPTIMIZER):
    state = optim.TrainState(PARAMS, optimizer.init(PARAMS))
    return jax.device_get(step(state, batch, settings, optimizer))


@pytest.mark.parametrize("loss", SETTINGS)
def test_an_update_is_the_gradient_of_the_mean_over_pairs(loss):
    """However many micro-batches there are, of each side read alone."""

    def mean_loss(params):
        losses = []
        for pair, reference_22 in zip(PAIRS, REFERENCE, strict=True):
            logprob, masks = [], []
            for letter in "ij":
                tokens, changed = (getattr(pair, f"{n}_{letter}") for n in ("tokens", "changed"))
                padded = np.zeros((1, WIDTH), np.int32)
                padded[0, : len(tokens)] = tokens
                args = llama.positions_and_mask(np.ones((1, WIDTH), bool))
                logits = jax.nn.log_softmax(MODEL.apply({"params": params}, padded, *args)[0])
                logprob.append(jnp.r_[0.0, logits[np.arange(WIDTH - 1), padded[0, 1:]]])
                response = np.arange(WIDTH) < len(tokens)
                response[: dpo.first_column(pair)] = False
                masks.append((response, np.r_[changed, np.zeros(WIDTH - len(tokens), bool)]))
            response_2S, changed_2S = (jnp.array(x) for x in zip(*masks, strict=True))
            arrays = jnp.stack(logprob), response_2S, changed_2S, jnp.array(reference_22)
            losses.append(preference_loss(*arrays, SETTINGS[loss])[0])
        return jnp.mean(jnp.stack(losses))

    value, grads = jax.jit(jax.value_and_grad(mean_loss))(PARAMS)
    expected = jax.tree.map(lambda p, g: p - g, PARAMS, grads)
    for parts in (1, 4):
        state, metrics = learn(make_batch(parts), SETTINGS[loss])
        assert metrics["loss"] == pytest.approx(float(value), rel=1e-4)
        chex.assert_trees_all_close(state.params, jax.device_get(expected), atol=2e-4)
        assert metrics["grad_norm"] == pytest.approx(float(optax.tree.norm(grads)), rel=1e-3)


def test_a_mesh_learns_what_one_device_does():
    optimizer = optim.adamw(optax.constant_schedule(1e-2), eps=1e-2)
    batch, settings = make_batch(2), SETTINGS["ddpo"]
    alone, metrics = learn(batch, settings, optimizer)
    mesh = sharding.make_mesh("1,4,2")
    state = optim.TrainState(PARAMS, optimizer.init(PARAMS))
    state = jax.device_put(state, sharding.shardings(state, mesh))
    with jax.set_mesh(mesh):
        spread, same = step(state, sharding.put_batch(batch, mesh, axis=1), settings, optimizer)
    chex.assert_trees_all_close(jax.device_get(spread.params), alone.params, atol=2e-5)
    chex.assert_trees_all_close(jax.device_get(same), metrics, rtol=1e-4)


# A run


@pytest.fixture(scope="module")
def fields(world, rm_files) -> dict:
    """Of launch.dpo; the rate changes from update to update."""
    return rm_files | {
        "policy": world.policy,
        "steps": 6,
        "batch_size": 4,
        "micro_batch_size": 2,
        "eval_every": 2,
        "save_every": 1,
        "max_to_keep": 6,
        "data__max_length": 48,
        "data__buckets": 1,
        "data__max_prompt_length": 24,
        "optimizer__learning_rate": 1e-3,
    }


def launch(fields, loss="ddpo") -> None:
    flags = [f"--config=configs/dpo.py:tiny,{loss}", *ppo_cases.flags(fields)]
    command.main(config_files.parse(["", *flags], command.CONFIG))


@pytest.fixture(scope="module")
def run_of(fields, tmp_path_factory, in_process):
    @functools.cache
    def run(loss: str):
        run_dir = tmp_path_factory.mktemp("runs") / loss
        launch(fields | {"run_dir": run_dir}, loss)
        return run_dir

    return run


@pytest.mark.parametrize("loss", SETTINGS)
def test_what_a_run_leaves(run_of, fields, loss, world):
    run_dir = run_of(loss)
    metrics, evaluation = rows(run_dir), json.loads((run_dir / "eval.json").read_text())
    result = evaluation["validation"]
    with_reference = loss in ("dpo", "ddpo")
    names = {"loss", "accuracy", "logprob/chosen", "logprob/rejected"}
    if with_reference:
        names |= {"reward/chosen", "reward/rejected", "reward/margin", "reference_kl"}
    assert [row["step"] for row in metrics] == list(range(1, 7))
    for row in metrics:
        assert names | {"grad_norm", "learning_rate", "tokens", "tflops_per_device"} <= row.keys()
        assert all(math.isfinite(value) for value in row.values())
        assert ("validation/loss" in row) == (row["step"] % 2 == 0)
    assert result.keys() == names | {"n"}
    assert result["n"] == 24  # edits and preferences
    best = min(row["validation/loss"] for row in metrics if "validation/loss" in row)
    assert result["loss"] == pytest.approx(best)
    if with_reference:  # nothing has changed yet
        assert metrics[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)
        assert metrics[0]["reference_kl"] == pytest.approx(0, abs=1e-3)
    policy = LanguageModel.load(run_dir)
    assert policy.template == hf_load.learned_template(world.policy) == "plain"
    card = (run_dir / "export" / "README.md").read_text()
    assert f"| Trained from | {world.policy} |" in card
    assert "of the pairs" in card
    edits = [row for row in records.read(str(fields["validation"])) if isinstance(row, Edit)]
    expected = correction.evaluate(policy, edits, LanguageModel.load(world.policy))
    corrections = evaluation["corrections"]
    assert corrections["gain"]["sampled"] == pytest.approx(expected["gain"]["sampled"], abs=1e-4)
    assert f"correction/sampled       {corrections['sampled']['mean']:.6g} of the places" in card


def test_a_run_that_lost_its_last_steps_ends_the_same(run_of, fields, in_process, tmp_path):
    """The reference is remembered, not computed anew."""
    run_dir = shutil.copytree(run_of("ddpo"), tmp_path / "run")
    for name in ("checkpoints/4", "checkpoints/5", "checkpoints/6", "export"):
        shutil.rmtree(run_dir / name)
    launch(fields | {"run_dir": run_dir})
    assert without_clock(run_dir) == without_clock(run_of("ddpo"))
    assert contents(run_dir / "export") == contents(run_of("ddpo") / "export")
    assert (run_dir / "eval.json").read_bytes() == (run_of("ddpo") / "eval.json").read_bytes()
    assert saved(run_dir) == saved(run_of("ddpo"))


def test_an_export_that_is_missing_is_made_again(run_of, fields, in_process, tmp_path):
    run_dir = shutil.copytree(run_of("dpo"), tmp_path / "run")
    shutil.rmtree(run_dir / "export")
    launch(fields | {"run_dir": run_dir}, "dpo")
    assert contents(run_dir / "export") == contents(run_of("dpo") / "export")


@pytest.mark.slow
def test_a_run_that_is_killed_ends_the_same(rm_files, world, fields, tmp_path):
    """SIGKILL before its first checkpoint and later."""
    flags = ["--config=configs/dpo.py:tiny,dpo", *ppo_cases.flags(fields | {"steps": 40})]
    start = functools.partial(rm_cases.Command, module="launch.dpo", arguments=flags)
    whole, killed = (tmp_path / name for name in ("whole", "killed"))
    assert start(rm_files, whole).end()[0] == 0
    run = start(rm_files, killed)
    run.until(lambda: run.reached(1)).end(signal.SIGKILL)
    run = start(rm_files, killed)
    run.until(lambda: run.reached(9) and saved(killed)).end(signal.SIGKILL)
    assert len(rows(killed)) < 40
    assert start(rm_files, killed).end()[0] == 0
    assert without_clock(killed) == without_clock(whole)
    assert contents(killed / "export") == contents(whole / "export")


def test_adapters_start_from_their_base(fields, in_process, tmp_path):
    """The reference is the base without them."""
    adapters = {"lora__rank": 4, "lora__targets": "attention", "run_dir": tmp_path / "run"}
    launch(fields | adapters, "dpo")
    metrics = rows(tmp_path / "run")
    assert metrics[0]["reference_kl"] == pytest.approx(0, abs=1e-3)
    assert metrics[-1]["loss"] != pytest.approx(math.log(2), abs=1e-4)
    assert (tmp_path / "run" / "export" / "adapter_model.safetensors").exists()


def test_preferences_count_as_changed_as_a_whole(fields, in_process, capsys, tmp_path):
    files = {"train": fields["validation"], "steps": 1}
    for loss in ("dpo", "salt"):
        launch(fields | files | {"run_dir": tmp_path / loss}, loss)
        told = "train: 12 preferences: every token counts as changed" in capsys.readouterr().out
        assert told == (loss == "salt")


BAD = [
    ({"policy": ""}, "policy is empty; give --config.policy=FOLDER|HUB_ID, as of launch.sft"),
    ({"policy": "REWARD_MODEL"}, "is a reward model"),
    ({"train": "INSTRUCTIONS"}, "has one response or none"),
    ({"loss": "ipo"}, "loss='ipo': is not one of dpo, ddpo, salt, figa"),
    ({"beta": 0}, "beta=0.0: must be at least 1e-06"),
    ({"data__max_length": 100}, "data.max_length=100 is more than the model's 64 positions"),
]


@pytest.mark.parametrize(("changes", "sentence"), BAD)
def test_bad_input(refused, fields, world, in_process, tmp_path, changes, sentence):
    words = {"REWARD_MODEL": world.token, "INSTRUCTIONS": world.prompts}
    changes = {name: words.get(value, value) for name, value in changes.items()}
    assert sentence in refused(command, **fields | {"run_dir": tmp_path / "run"} | changes)
    assert not (tmp_path / "run").exists()
