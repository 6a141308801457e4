"""Learning from pairs: the policy's log-probabilities, an update, what a run leaves, its resume."""

import functools
import json
import math
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
from rm_cases import contents, rows, saved, unexplained, without_clock

from fgrlhf_jax.data import sources
from fgrlhf_jax.data.alignment import align
from fgrlhf_jax.data.pairs import Pair, pad_pairs
from fgrlhf_jax.data.records import Edit
from fgrlhf_jax.errors import InputError
from fgrlhf_jax.functional.preference_losses import PreferenceSettings, preference_loss
from fgrlhf_jax.models import heads, hf_load
from fgrlhf_jax.models.language_model import LanguageModel
from fgrlhf_jax.runtime import optim, sharding
from fgrlhf_jax.training import correction, dpo
from fgrlhf_jax.training.supervised import train_step
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


@functools.partial(jax.jit, static_argnames=("settings", "optimizer"))
def step(state, batch, settings, optimizer=OPTIMIZER):
    losses = functools.partial(dpo.pair_losses, model=MODEL, settings=settings)
    return train_step(state, batch, losses=losses, optimizer=optimizer)


def learn(batch, settings, optimizer=OPTIMIZER):
    state = optim.TrainState(PARAMS, jax.jit(optimizer.init)(PARAMS))
    return jax.device_get(step(state, batch, settings, optimizer))


def sides() -> tuple[np.ndarray, ...]:
    """Each side alone: tokens [B, 2, S], and which of them are of the response and changed."""
    tokens, *masks = np.zeros((3, len(PAIRS), 2, WIDTH), np.int32)
    for b, pair in enumerate(PAIRS):
        for side, letter in enumerate("ij"):
            ids, changed = (getattr(pair, f"{n}_{letter}") for n in ("tokens", "changed"))
            tokens[b, side, : len(ids)], masks[1][b, side, : len(ids)] = ids, changed
            masks[0][b, side, dpo.first_column(pair) : len(ids)] = True
    return tokens, *(mask.astype(bool) for mask in masks)


@jax.jit
def read_alone(params, cotangent_B2S):
    """Log-probabilities of all sides, [B, 2, S], and the gradient of their products with that."""
    tokens_BS = sides()[0].reshape(-1, WIDTH)
    args = heads.positions_and_mask(np.ones(tokens_BS.shape, bool))

    def read(params):
        logits = jax.nn.log_softmax(MODEL.apply({"params": params}, tokens_BS, *args))
        later = jnp.take_along_axis(logits[:, :-1], tokens_BS[:, 1:, None], axis=-1)[..., 0]
        return jnp.pad(later, ((0, 0), (1, 0))).reshape(-1, 2, WIDTH)

    logprob_B2S, pull_back = jax.vjp(read, params)
    return logprob_B2S, *pull_back(cotangent_B2S)


def test_log_probabilities_of_a_shared_row_are_those_of_its_two_texts():
    found_B2S = np.asarray(dpo.pair_logprobs(PARAMS, make_batch(), model=MODEL))
    expected_B2S, _ = read_alone(PARAMS, np.zeros((len(PAIRS), 2, WIDTH), np.float32))
    _, response_B2S, _ = sides()
    np.testing.assert_allclose(found_B2S[response_B2S], expected_B2S[response_B2S], atol=2e-5)


@pytest.mark.parametrize(("loss", "counts"), [("ddpo", (1, 4)), ("salt", (4,))])
def test_an_update_is_the_gradient_of_the_mean_over_pairs(loss, counts):
    """However many micro-batches there are, of each side read alone."""

    def mean_loss(logprob_B2S):
        arrays = logprob_B2S, *map(jnp.array, sides()[1:]), jnp.array(REFERENCE)
        return jnp.mean(jax.vmap(lambda *x: preference_loss(*x, SETTINGS[loss])[0])(*arrays))

    logprob_B2S, _ = read_alone(PARAMS, np.zeros((len(PAIRS), 2, WIDTH), np.float32))
    value, cotangent_B2S = jax.value_and_grad(mean_loss)(logprob_B2S)
    grads = read_alone(PARAMS, cotangent_B2S)[1]
    expected = jax.tree.map(lambda p, g: p - g, PARAMS, grads)
    for parts in counts:
        state, metrics = learn(make_batch(parts), SETTINGS[loss])
        assert metrics["loss"] == pytest.approx(float(value), rel=1e-4)
        chex.assert_trees_all_close(state.params, jax.device_get(expected), atol=2e-4)
        assert metrics["grad_norm"] == pytest.approx(float(optax.tree.norm(grads)), rel=1e-3)


def test_a_mesh_learns_what_one_device_does():
    optimizer = optim.adamw(optax.constant_schedule(1e-2), eps=1e-2)
    batch, settings = make_batch(2), SETTINGS["ddpo"]
    alone, metrics = learn(batch, settings, optimizer)
    mesh = sharding.make_mesh("1,4,2")
    state = optim.TrainState(PARAMS, jax.jit(optimizer.init)(PARAMS))
    state = jax.device_put(state, sharding.shardings(state, mesh))
    with jax.set_mesh(mesh):
        spread, same = step(state, sharding.put_batch(batch, mesh, axis=1), settings, optimizer)
    chex.assert_trees_all_close(jax.device_get(spread.params), alone.params, atol=2e-5)
    chex.assert_trees_all_close(jax.device_get(same), metrics, rtol=1e-4)


# A run


@pytest.fixture(scope="module")
def fields(world, rm_files) -> dict:
    """Of launch.dpo; the rate changes from update to update."""
    fields = {"policy": world.policy, "batch_size": 4, "micro_batch_size": 2}
    fields |= {"optimizer__learning_rate": 1e-3}
    return rm_files | fields | ppo_cases.OFTEN | ppo_cases.SHORT_ROWS


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


@pytest.mark.parametrize("loss", ["ddpo", "salt"])  # with a reference and without
def test_what_a_run_leaves(run_of, fields, loss, world):
    run_dir = run_of(loss)
    metrics, evaluation = rows(run_dir), json.loads((run_dir / "eval.json").read_text())
    result = evaluation["validation"]
    with_reference = loss == "ddpo"
    names = {"loss", "accuracy", "logprob/chosen", "logprob/rejected"}
    if with_reference:
        names |= {"reward/chosen", "reward/rejected", "reward/margin", "reference_kl"}
    assert [row["step"] for row in metrics] == list(range(1, 7))
    for row in metrics:
        assert names | {"grad_norm", "learning_rate", "tokens", "tflops_per_device"} <= row.keys()
        assert all(math.isfinite(value) for value in row.values())
        assert ("validation/loss" in row) == (row["step"] % 2 == 0)
        assert not unexplained(row)
    assert result.keys() == names | {"n"}
    assert result["n"] == 24  # edits and preferences
    best = min(row["validation/loss"] for row in metrics if "validation/loss" in row)
    assert result["loss"] == pytest.approx(best)
    if with_reference:  # nothing has changed yet
        assert metrics[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)
        assert metrics[0]["reference_kl"] == pytest.approx(0, abs=1e-3)
    policy = LanguageModel.load(run_dir)
    assert policy.template == hf_load.trained_template(world.policy) == "plain"
    card = (run_dir / "export" / "README.md").read_text()
    assert f"| Trained from | {world.policy} |" in card
    assert "of the pairs" in card
    edits = [row for row in sources.read(str(fields["validation"])) if isinstance(row, Edit)]
    expected = correction.evaluate(policy, edits, LanguageModel.load(world.policy))
    corrections = evaluation["corrections"]
    assert corrections["gain"]["sampled"] == pytest.approx(expected["gain"]["sampled"], abs=1e-4)
    assert f"correction/sampled       {corrections['sampled']['mean']:.6g} of the places" in card


@pytest.mark.slow
def test_a_run_that_is_killed_ends_the_same(run_of, fields, in_process, tmp_path):
    """The reference is remembered, not computed anew."""
    whole, killed = run_of("ddpo"), tmp_path / "killed"
    flags = ["--config=configs/dpo.py:tiny,ddpo", *ppo_cases.flags(fields)]
    run = rm_cases.Command({}, killed, module="launch.dpo", arguments=flags)
    run.until(lambda: run.reached(2) and saved(killed)).end(signal.SIGKILL)
    assert not (killed / "finished.json").exists()
    launch(fields | {"run_dir": killed})
    assert without_clock(killed) == without_clock(whole)
    assert contents(killed / "export") == contents(whole / "export")
    assert (killed / "eval.json").read_bytes() == (whole / "eval.json").read_bytes()
    assert saved(killed) == saved(whole)


def test_adapters_start_from_their_base(fields, in_process, tmp_path, capsys):
    """The reference is the base without them. That one epoch is short is said."""
    adapters = {"lora__rank": 4, "lora__targets": "attention", "run_dir": tmp_path / "run"}
    launch(fields | adapters | {"steps": 0}, "dpo")
    metrics = rows(tmp_path / "run")
    told = f"epochs=1: {len(metrics)} updates of 4 rows are too few to teach much; give --config."
    assert told in capsys.readouterr().out
    assert metrics[0]["reference_kl"] == pytest.approx(0, abs=1e-3)
    assert metrics[-1]["loss"] != pytest.approx(math.log(2), abs=1e-4)
    assert (tmp_path / "run" / "export" / "adapter_model.safetensors").exists()


def test_preferences_count_as_changed_as_a_whole(fields, in_process, capsys, tmp_path):
    files = {"train": fields["validation"], "optimizer__freeze": "nothing", "run_dir": tmp_path}
    for loss in ("dpo", "salt"):
        with pytest.raises(InputError, match="freeze"):  # later
            launch(fields | files, loss)
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
