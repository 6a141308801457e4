"""Supervised fine-tuning: the loss of the response alone; what a run leaves, and its resume."""

import contextlib
import dataclasses
import functools
import json
import math
import random
import re
import shutil
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import ppo_cases
import pytest
import tiny_cases
from bad_input_cases import damage
from rm_cases import contents, rows, saved, unexplained, without_clock

from fgrlhf_jax.data.demonstrations import Demonstration, pad_demonstrations
from fgrlhf_jax.models import heads
from fgrlhf_jax.runtime import optim, sharding
from fgrlhf_jax.training import sft, supervised
from launch import sft as command
from launch.shared import cli

MODEL = heads.CausalLM(tiny_cases.CFG)
PARAMS = tiny_cases.parameters(MODEL)
OPTIMIZER = optax.sgd(1.0)  # the change of a parameter is its gradient

pytest_plugins = ["runs"]


def texts(seed: int) -> list[Demonstration]:
    """Prompts of 1 to 3 tokens, responses of 1 to 8, none as long as another."""
    rng = np.random.default_rng(seed)
    demonstrations = []
    for length in range(1, 9):
        prompt = int(rng.integers(1, 4))
        tokens = rng.integers(0, 64, prompt + length).astype(np.int32)
        demonstrations.append(Demonstration(tokens, prompt))
    return demonstrations


@jax.jit
def outputs(tokens_S) -> tuple[jax.Array, jax.Array]:
    """States and logits of one text without padding in front: nothing after a token matters."""
    args = heads.positions_and_mask(jnp.ones((1, 12), bool))
    variables = {"params": PARAMS}
    states = MODEL.apply(
        variables, tokens_S[None], *args, method=lambda model, *x: model.backbone(*x)
    )
    return states[0], MODEL.apply(variables, tokens_S[None], *args)[0]


def read(tokens) -> tuple[np.ndarray, np.ndarray]:
    padded = np.zeros(12, np.int32)  # one width for all: one compilation
    padded[: len(tokens)] = tokens
    return tuple(np.asarray(x, np.float64) for x in outputs(padded))


def with_greedy_tokens(example: Demonstration) -> Demonstration:
    """The same with some tokens that greedy decoding would have taken."""
    tokens = example.tokens.copy()
    for t in range(example.prompt_length, len(tokens), 2):
        tokens[t] = read(tokens)[1][t - 1].argmax()
    return Demonstration(tokens, example.prompt_length)


TEXTS = [with_greedy_tokens(text) if n % 2 else text for n, text in enumerate(texts(0))]


def by_hand(examples: list[Demonstration]) -> tuple[float, int, int]:
    """Loss, greedy hits and tokens, one text at a time, in float64."""
    loss, hits, count = 0.0, 0, 0
    for text in examples:
        logits = read(text.tokens)[1]
        for t in range(text.prompt_length, len(text.tokens)):
            before = logits[t - 1]
            loss += np.log(np.exp(before).sum()) - before[text.tokens[t]]
            hits += int(before.argmax() == text.tokens[t])
            count += 1
    return loss, hits, count


token_sums = jax.jit(functools.partial(supervised.eval_step, **sft.objective(MODEL)))


def sums(batch) -> dict[str, float]:
    return {k: float(v) for k, v in token_sums(PARAMS, batch)[0].items()}


@jax.jit
@jax.grad
def gradient(params, batch):
    """Of the mean over all response tokens."""
    total, _ = token_sums(params, batch)
    return total["loss"] / total["tokens"]


@functools.partial(jax.jit, static_argnames="optimizer")
def step(state, batch, optimizer=OPTIMIZER):
    return supervised.train_step(state, batch, optimizer=optimizer, **sft.objective(MODEL))


def learn(batch, optimizer=OPTIMIZER):
    return jax.device_get(
        step(optim.TrainState(PARAMS, jax.jit(optimizer.init)(PARAMS)), batch, optimizer)
    )


def stacked(examples, parts: int, rows: int = 8) -> dict:
    """A batch in micro-batches: [A, B, ...]; responses have 8 columns."""
    batch = pad_demonstrations(examples, 12, rows, 8)
    return {k: v.reshape(parts, -1, *v.shape[1:]) for k, v in batch.items()}


@pytest.mark.parametrize("fill", [0, 2, 63])
def test_padding_of_any_length_and_content_changes_nothing(fill):
    base = sums(pad_demonstrations(TEXTS, 12))
    batch = pad_demonstrations(TEXTS, 16, response_width=8)
    batch["tokens_BS"] = np.where(batch["mask_BS"], batch["tokens_BS"], fill).astype(np.int32)
    chex.assert_trees_all_close(sums(batch), base, rtol=1e-5)


def test_only_the_response_is_learned():
    """The output layer sees the error of every response token, and nothing else."""
    text = next(text for text in TEXTS if text.prompt_length > 1 and len(text.tokens) > 5)
    batch = pad_demonstrations([text], 12, 8)
    tokens = len(text.tokens) - text.prompt_length
    assert sums(batch)["tokens"] == tokens
    states, logits = read(text.tokens)
    expected = 0.0
    for t in range(text.prompt_length, len(text.tokens)):
        error = np.exp(logits[t - 1]) / np.exp(logits[t - 1]).sum()
        error[text.tokens[t]] -= 1
        expected += np.outer(states[t - 1], error) / tokens
    np.testing.assert_allclose(gradient(PARAMS, batch)["lm_head"]["kernel"], expected, atol=1e-5)


@pytest.mark.parametrize("parts", [1, 4])
def test_an_update_is_the_gradient_of_the_mean_over_all_response_tokens(parts):
    """However many micro-batches there are: not the mean of their means."""
    state, metrics = learn(stacked(TEXTS, parts))
    grads = gradient(PARAMS, pad_demonstrations(TEXTS, 12))
    expected = jax.tree.map(lambda p, g: p - g, PARAMS, grads)
    chex.assert_trees_all_close(state.params, jax.device_get(expected), atol=1e-5)
    loss, hits, tokens = by_hand(TEXTS)
    assert 0 < hits < tokens == 36
    assert metrics["loss"] == pytest.approx(loss / tokens, rel=1e-5)
    assert metrics["accuracy"] == pytest.approx(hits / tokens)
    assert metrics["grad_norm"] == pytest.approx(float(optax.tree.norm(grads)), rel=1e-4)
    pairs = [by_hand(TEXTS[n : n + 2]) for n in range(0, 8, 2)]
    means = [loss / tokens for loss, _, tokens in pairs]
    assert abs(np.mean(means) - loss / tokens) > 1e-2  # or the test could not tell


def test_prompts_cost_no_logits():
    """Nor their gradients: rows of 13 columns, of which 8 are responses'."""
    model = heads.CausalLM(dataclasses.replace(tiny_cases.CFG, vocab_size=96))
    batch = pad_demonstrations(TEXTS, 13, response_width=8)
    loss = lambda params: sft.token_sums(params, batch, model=model)[0]  # noqa: E731
    text = str(jax.make_jaxpr(jax.grad(loss))(tiny_cases.parameters(model)))
    assert "f32[8,8,96]" in text
    assert not re.search(r"f32\[(8,13|104),96\]", text)


def test_rows_of_weight_0_count_nothing():
    """Neither in the sums, nor in the update, nor in what its mean is over."""
    examples = TEXTS[:5]
    loss, hits, tokens = by_hand(examples)
    batch = pad_demonstrations(examples, 12, 8)
    assert sums(batch) == pytest.approx({"loss": loss, "accuracy": hits, "tokens": tokens})
    for parts in (1, 4):  # of 4, one has no other row
        state, metrics = learn(stacked(examples, parts))
        assert metrics["loss"] == pytest.approx(loss / tokens, rel=1e-5)
        assert metrics["accuracy"] == pytest.approx(hits / tokens)
        expected = jax.tree.map(lambda p, g: p - g, PARAMS, gradient(PARAMS, batch))
        chex.assert_trees_all_close(state.params, jax.device_get(expected), atol=1e-5)


def test_a_mesh_learns_what_one_device_does():
    optimizer = optim.adamw(optax.constant_schedule(1e-2), eps=1e-2)
    batch = stacked([*TEXTS, *texts(1)], 2, rows=16)
    alone, metrics = learn(batch, optimizer)
    mesh = sharding.make_mesh("2,2,2")
    state = optim.TrainState(PARAMS, jax.jit(optimizer.init)(PARAMS))
    state = jax.device_put(state, sharding.shardings(state, mesh))
    with jax.set_mesh(mesh):
        spread, same = step(state, sharding.put_batch(batch, mesh, axis=1), optimizer)
    chex.assert_trees_all_close(jax.device_get(spread.params), alone.params, atol=2e-5)
    chex.assert_trees_all_close(jax.device_get(same), metrics, rtol=1e-4)


# A run


@pytest.mark.slow
def test_what_a_run_leaves(sft_run):
    metrics, result = rows(sft_run), json.loads((sft_run / "eval.json").read_text())
    assert [row["step"] for row in metrics] == list(range(1, 7))
    always = (
        "step loss accuracy grad_norm update_rms learning_rate tokens tokens_per_second time/step "
    )
    always += "tokens_per_second/device tflops_per_device"
    for row in metrics:
        evaluated = {"validation/loss", "validation/accuracy"} if row["step"] % 2 == 0 else set()
        assert row.keys() == {*always.split()} | evaluated
        assert not unexplained(row)
        assert all(math.isfinite(value) for value in row.values())
    assert metrics[-1]["loss"] < metrics[0]["loss"]
    best = min(row["validation/loss"] for row in metrics if "validation/loss" in row)
    assert result["validation"]["loss"] == pytest.approx(best)
    assert result["validation"]["perplexity"] == pytest.approx(math.exp(best))
    assert (result["validation"]["n"], saved(sft_run)) == (20, [1, 2, 3, 4, 5, 6])
    assert json.loads((sft_run / "export" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    card = (sft_run / "export" / "README.md").read_text()
    assert f"perplexity {'':13} {math.exp(best):.6g}" in card
    assert "| Weights | bfloat16 |" in card


@pytest.mark.slow
def test_a_run_that_lost_its_end_and_its_config(sft_run, sft_fields, in_process, refused, tmp_path):
    """Another one is refused, also the second time, and nothing is written; the same goes on."""
    run_dir = shutil.copytree(sft_run, tmp_path / "run")
    for name in ("checkpoints/4", "checkpoints/5", "checkpoints/6", "export"):
        shutil.rmtree(run_dir / name)
    for name in ("config.json", "finished.json", ".lock"):
        (run_dir / name).unlink(missing_ok=True)
    before = contents(run_dir)
    fields = sft_fields | {"run_dir": run_dir}
    for _ in range(2):
        sentence = refused(command, **fields | {"optimizer__learning_rate": 0.5})
        assert "another config: optimizer.learning_rate (saved 0.01, now 0.5); choose" in sentence
        assert contents(run_dir) == before
    ppo_cases.launch(command, fields)
    assert without_clock(run_dir) == without_clock(sft_run)
    ours, theirs = (contents(folder / "export") for folder in (run_dir, sft_run))
    assert ours | {"README.md": b""} == theirs | {"README.md": b""}  # it has the command's flags
    assert (run_dir / "eval.json").read_bytes() == (sft_run / "eval.json").read_bytes()
    assert saved(run_dir) == saved(sft_run)
    assert json.loads((run_dir / "config.json").read_text())["optimizer"]["learning_rate"] == 0.01


@pytest.mark.slow
@pytest.mark.parametrize("name", ["config.json", "eval.json", "finished.json", "metrics.jsonl"])
def test_a_finished_run_that_was_damaged(
    sft_run, sft_fields, in_process, tmp_path, monkeypatch, capsys, name
):
    """The same figures, or one sentence that names the file or the folder."""
    rng = random.Random(0)
    good = json.loads((sft_run / "eval.json").read_text())["validation"]
    other = tmp_path / "other.json"
    other.write_text((sft_run / name).read_text().replace("1", "2"))
    for how in ("delete", "empty", "cut", "flip", "swap"):
        run_dir = shutil.copytree(sft_run, tmp_path / how)
        damage(run_dir / name, how, rng, other)
        fields = sft_fields | {"run_dir": run_dir}
        monkeypatch.setattr(sys, "argv", ["sft", *ppo_cases.flags(fields)])
        with contextlib.suppress(SystemExit):
            cli.command(command.main, command.CONFIG, "")
        figures = capsys.readouterr()
        if how == "delete" and name in ("eval.json", "finished.json"):  # made again
            assert f"loss {good['loss']:.4f} nats a token" in figures.out
        else:
            assert re.match(rf"error: (run_dir=)?{run_dir}[/ ]", figures.err), (how, figures)
            assert figures.err.count("\n") == 1
            assert f"loss {good['loss']:.4f}" not in figures.out
