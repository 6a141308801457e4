"""The run as a user starts it: commands on one device, killed, stopped and started again."""

import json
import math
import re
import resource
import signal
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy
from rm_cases import (
    EVAL_EVERY,
    SAVE_EVERY,
    STEPS,
    Command,
    contents,
    flags,
    rows,
    saved,
    unexplained,
    without_clock,
)

from fgrlhf_jax.models import heads, hf_load
from fgrlhf_jax.reward_model.modules import make_module
from fgrlhf_jax.runtime import sharding
from fgrlhf_jax.runtime.checkpoint import Checkpoints
from launch import evaluate_rm, train_rm
from launch.shared import cli

pytest_plugins = ["runs"]
pytestmark = pytest.mark.slow


def launch(monkeypatch, module, default: str, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", [module.__name__, *arguments])
    before = signal.getsignal(signal.SIGTERM)
    try:
        cli.command(module.main, default, module.__doc__)
    finally:
        signal.signal(signal.SIGTERM, before)


def train(monkeypatch, *arguments: str) -> None:
    launch(monkeypatch, train_rm, "configs/rm.py", *arguments)


def test_what_a_person_sees(rm_run):
    status, out, err = rm_run.end()
    assert status == 0
    assert "train: edits: 60 rows, 60 kept, 0 dropped_overlong, 0 truncated, 0 unchanged" in out
    last = next(line for line in reversed(err) if line.startswith("100%"))
    assert re.search(rf"{STEPS}/{STEPS} \[\d\d:\d\d<\d\d:\d\d", last)  # time taken and left
    assert re.search(r"loss=\d\.\d+, accuracy=\d\.\d+, tokens_per_second=\d+", last)
    assert re.search(r"step 8: validation/loss \d\.\d+  validation/accuracy \d\.\d+", out)
    assert "validation  edits" in out
    assert "validation  preferences" in out
    assert "validation  changed, original" in out
    assert compilations(out) == 0


def test_what_a_run_leaves(rm_run):
    run_dir = rm_run.run_dir
    found = rows(run_dir)
    assert [row["step"] for row in found] == list(range(1, STEPS + 1))
    always = {"loss", "accuracy", "grad_norm", "learning_rate", "tokens", "tflops_per_device"}
    for row in found:
        assert always <= row.keys()
        assert all(math.isfinite(value) for value in row.values())
        assert ("validation/loss" in row) == (row["step"] % EVAL_EVERY == 0)
        assert not unexplained(row)
    table = json.loads((run_dir / "eval.json").read_text())["validation"]
    assert table["edits"]["n"] == table["preferences"]["n"] == 12
    for name in ("accuracy", "accuracy_changed_only", "auroc_changed", "length_correlation"):
        assert math.isfinite(table["edits"][name])
    config = json.loads((run_dir / "config.json").read_text())
    assert (config["steps"], config["model"]["vocab_size"]) == (STEPS, 300)


def test_the_best_checkpoint_is_kept_and_exported(rm_run):
    run_dir = rm_run.run_dir
    losses = {r["step"]: r["validation/loss"] for r in rows(run_dir) if "validation/loss" in r}
    best = min(losses, key=losses.get)
    assert saved(run_dir) == sorted({best, STEPS})
    assert kernel(run_dir, best) == exported(run_dir)


def kernel(run_dir: Path, step: int) -> bytes:
    """The scalar head's kernel in a checkpoint."""
    checkpoints = Checkpoints(run_dir / "checkpoints")
    model = make_module(hf_load.read_config(run_dir / "export"), "token_edit", "after")
    mesh = jax.make_mesh((1, 1, 1), sharding.AXES, devices=jax.devices()[:1])
    restored = checkpoints.restore(step, {"params": heads.abstract_params(model, mesh)})["params"]
    checkpoints.close()
    return np.asarray(restored["head"]["kernel"]).tobytes()


def exported(run_dir: Path) -> bytes:
    weights = safetensors.numpy.load_file(run_dir / "export" / "model.safetensors")
    return weights["score.weight"].tobytes()


def test_a_run_that_is_killed_again_and_again_ends_the_same(rm_run, rm_files, tmp_path):
    """Killed, killed while saving, out of disk space, and stopped politely."""
    run_dir = tmp_path / "killed"

    run = Command(rm_files, run_dir)
    run.until(lambda: run.reached(SAVE_EVERY + 1) and saved(run_dir)).end(signal.SIGKILL)

    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 99, "loss": 0.6')  # torn by the kill
    saving = "checkpoints/*.orbax-checkpoint-tmp"
    run = Command(rm_files, run_dir)
    run.until(lambda: run.reached(SAVE_EVERY + 1) and any(run_dir.glob(saving)))
    run.end(signal.SIGKILL)
    assert len(rows(run_dir)) < STEPS

    before = saved(run_dir)[-1]
    run = Command(rm_files, run_dir)
    run.until(lambda: run.reached(before + 1))
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.prlimit(run.process.pid, resource.RLIMIT_FSIZE, (30_000, hard))
    status, _, err = run.end()
    good = saved(run_dir)[-1]
    assert good < STEPS
    assert (status, err[-1]) == (
        2,
        f"error: {run_dir}/checkpoints: saving a checkpoint failed (File too large); the last "
        f"good one is step {good}; correct this and run the same command again",
    )
    assert not [line for line in err if "Traceback" in line or "ERROR" in line], err

    run = Command(rm_files, run_dir)
    run.until(lambda: run.reached(good + 1))
    status, _, err = run.end(signal.SIGINT)
    step = rows(run_dir)[-1]["step"]
    assert (status, err[-1]) == (
        130,
        f"interrupted; step {step} is saved; run the same command to go on",
    )
    assert step < STEPS
    assert saved(run_dir)[-1] == step
    assert not (run_dir / "eval.json").exists()

    status, _, err = Command(rm_files, run_dir).end()
    assert status == 0, err
    assert without_clock(run_dir) == without_clock(rm_run.run_dir)
    for name in ("export", "eval.json"):
        for folder in (run_dir, rm_run.run_dir):
            assert (folder / name).exists()
    assert contents(run_dir / "export") == contents(rm_run.run_dir / "export")
    ours, theirs = ((d / "eval.json").read_bytes() for d in (run_dir, rm_run.run_dir))
    assert ours == theirs
    assert saved(run_dir) == saved(rm_run.run_dir)


def test_a_finished_run_only_prints_its_table(rm_run, rm_files, monkeypatch, capsys):
    before = contents(rm_run.run_dir)
    train(monkeypatch, *flags(rm_files, rm_run.run_dir))
    _, first, table = capsys.readouterr().out.split("\n", 2)
    assert first == f"{rm_run.run_dir} is finished; its results:"
    assert rm_run.end()[1].endswith(table)
    assert contents(rm_run.run_dir) == before


def compilations(out: str) -> int:
    """As the closing line says; it also has the speed and the memory."""
    closing = re.search(
        r"^(\d+) tokens/s over \d+ s of updates; peak memory (\d+\.\d+) GiB \(process\); "
        r"(\d+) compilations after the first update$",
        out,
        re.MULTILINE,
    )
    assert closing, out
    assert int(closing[1]) > 0
    assert 0.1 < float(closing[2]) < 20
    return int(closing[3])


@pytest.mark.usefixtures("one_device")
def test_evaluate_gives_the_table_of_the_run(rm_run, rm_files, tmp_path, monkeypatch):
    output = tmp_path / "table.json"
    arguments = {
        "reward_model": rm_run.run_dir,
        "test": rm_files["validation"],
        "output": output,
        "batch_size": 2,  # as in the run before, so that nothing new is compiled
    }
    launch(
        monkeypatch,
        evaluate_rm,
        "configs/evaluate_rm.py",
        *(f"--config.{name}={value}" for name, value in arguments.items()),
    )
    ours = json.loads(output.read_text())["test"]
    theirs = json.loads((rm_run.run_dir / "eval.json").read_text())["validation"]
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for kind in theirs:
        for name in ("n", "loss", "accuracy", "length_correlation"):
            np.testing.assert_allclose(ours[kind][name], theirs[kind][name], rtol=1e-3)
