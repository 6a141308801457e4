"""The loop with a toy in the place of a model: every moment of a stop, cheaply."""

import json
import math
import random
import signal
import sys
import time
import types
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.runtime import metric_log
from fgrlhf_jax.runtime.checkpoint import Checkpoints
from fgrlhf_jax.runtime.files import read_jsonl
from fgrlhf_jax.training import run as train_loop

STEPS = 24


class State(NamedTuple):
    params: dict
    opt_state: dict


class Killed(BaseException):
    """As little as a process that is killed gets to clean up."""


@jax.jit
def improve(state: State, step):
    """Momentum towards a target that depends on the step."""
    grad = state.params["w"] - jnp.sin(step * jnp.arange(1.0, 5.0))
    speed = 0.9 * state.opt_state["m"] + grad
    loss = jnp.mean(grad**2)
    found = {"loss": loss, "accuracy": jnp.float32(0.5), "grad_norm": jnp.sqrt(loss)}
    return State({"w": state.params["w"] - 0.05 * speed}, {"m": speed}), found


def judge(state: State) -> dict[str, float]:
    return {"validation/loss": float(jnp.sin(7 * state.params["w"]).mean())}


def go(folder: Path, *, spy=lambda what, number: None, evaluate=judge, update=None, **settings):
    """Start or go on; ``spy`` is told of everything that happens before it does."""
    settings = {
        "steps": STEPS,
        "eval_every": 4,
        "save_every": 5,
        "patience": 0,
        "select": lambda figures: figures["validation/loss"],
    } | settings
    checkpoints = Checkpoints(folder / "checkpoints", keep=1)
    with closing(checkpoints):
        start = checkpoints.latest or 0
        progress = train_loop.Progress(**checkpoints.loop(start) if start else {})
        state = State({"w": jnp.zeros(4)}, {"m": jnp.zeros(4)})
        if start:
            shapes = jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
            )
            state = State(**checkpoints.restore(start, shapes._asdict()))
        log = metric_log.Log(folder, step=start, steps=settings["steps"])
        save, write = checkpoints.save, log.write

        def spied_update(state, step):
            spy("update", step)
            if update:
                return update(state, step)
            return *improve(state, step), {"tokens": 7 + step}

        def spied_evaluate(state):
            spy("evaluate", 0)
            return evaluate(state)

        def spied_save(step, *args, **more):
            spy("save", step)
            save(step, *args, **more)

        def spied_write(values):
            spy("row", values["step"])
            write(values)

        checkpoints.save, log.write = spied_save, spied_write
        with closing(log):
            return train_loop.run(
                state,
                progress,
                start=start,
                update=spied_update,
                evaluate=spied_evaluate,
                checkpoints=checkpoints,
                log=log,
                **settings,
            )


def rows(folder: Path) -> list[dict]:
    return [
        {k: v for k, v in row.items() if k.partition("/")[0] not in metric_log.Log.CLOCK}
        for row in read_jsonl(folder / "metrics.jsonl")
    ]


def outcome(folder: Path) -> tuple:
    """Rows, and of every checkpoint kept its bits and its loop."""
    shape = jax.ShapeDtypeStruct((4,), jnp.float32, sharding=jnp.zeros(4).sharding)
    shapes = {"params": {"w": shape}, "opt_state": {"m": shape}}
    kept = {}
    with closing(Checkpoints(folder / "checkpoints")) as checkpoints:
        for path in (folder / "checkpoints").iterdir():
            parts = checkpoints.restore(int(path.name), shapes)
            bits = [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(parts)]
            kept[path.name] = bits, checkpoints.loop(int(path.name))
    return rows(folder), kept


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    return go(folder), *outcome(folder)


def test_undisturbed(undisturbed):
    progress, found, kept = undisturbed
    assert [row["step"] for row in found] == list(range(1, STEPS + 1))
    assert [row["tokens"] for row in found] == [7 + step for step in range(STEPS)]
    values = {r["step"]: r["validation/loss"] for r in found if "validation/loss" in r}
    assert list(values) == [4, 8, 12, 16, 20, 24]
    best = min(values, key=values.get)
    assert best != STEPS  # else the test says little
    assert progress == (best, values[best], list(values)[::-1].index(best), True, "")
    assert kept.keys() == {str(best), str(STEPS)}


@pytest.mark.parametrize("seed", range(8))
def test_killed_at_any_moment(undisturbed, tmp_path, seed):
    """Before an update, an evaluation, a row or a save; also a second and a third time."""
    rng = random.Random(seed)
    for _ in range(3):
        countdown = rng.randrange(1, 40)

        def spy(what, number):
            nonlocal countdown
            countdown -= 1
            if not countdown:
                raise Killed

        try:
            go(tmp_path, spy=spy)
        except Killed:
            if rng.random() < 0.5:
                with (tmp_path / "metrics.jsonl").open("a") as file:
                    file.write('{"step": 3, "lo')
        else:
            break
    if countdown <= 0:
        go(tmp_path)
    assert outcome(tmp_path) == undisturbed[1:]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_after_the_step(undisturbed, tmp_path, number):
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]

    def spy(what, step):
        if (what, step) == ("update", 6):
            signal.raise_signal(number)

    with pytest.raises(KeyboardInterrupt, match=r"^interrupted; step 7 is saved$"):
        go(tmp_path, spy=spy)
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before
    assert [row["step"] for row in rows(tmp_path)] == list(range(1, 8))
    go(tmp_path)
    assert outcome(tmp_path) == undisturbed[1:]


def test_a_second_signal_stops_at_once(tmp_path):
    def spy(what, step):
        if (what, step) == ("update", 6):
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            pytest.fail("not stopped")

    with pytest.raises(KeyboardInterrupt):
        go(tmp_path, spy=spy)
    assert len(rows(tmp_path)) < 7


def test_patience(tmp_path):
    """The third evaluation is the best; two without improvement follow."""
    values = iter([3.0, 2.0, 1.0, 1.0, 1.5, 0.0])
    judged = lambda state: {"validation/loss": next(values)}  # noqa: E731
    progress = go(tmp_path, evaluate=judged, patience=2)
    assert progress == (12, 1.0, 2, True, "")
    assert rows(tmp_path)[-1]["step"] == 20
    assert outcome(tmp_path)[1].keys() == {"12", "20"}


def test_selection_by_another_figure(tmp_path):
    values = iter([0.2, 0.6, 0.6, 0.4, 0.1, 0.5])
    judged = lambda state: {"accuracy": next(values)}  # noqa: E731
    progress = go(tmp_path, evaluate=judged, select=lambda figures: -figures["accuracy"])
    assert progress[:3] == (8, -0.6, 4)  # the first of equals


def test_saves(tmp_path):
    saved = []

    def spy(what, step):
        saved.append(step) if what == "save" else None

    go(tmp_path / "a", spy=spy, save_every=0, eval_every=0)
    assert saved == [STEPS]
    del saved[:]
    go(tmp_path / "b", spy=spy, save_every=7, eval_every=0)
    assert saved == [7, 14, 21, STEPS]
    del saved[:]
    values = iter([2.0, 3.0, 1.0])
    judged = lambda state: {"validation/loss": next(values)}  # noqa: E731
    go(tmp_path / "c", spy=spy, save_every=0, eval_every=10, evaluate=judged)
    assert saved == [10, STEPS]  # the last step is evaluated whatever eval_every is


@pytest.mark.parametrize("name", ["loss", "grad_norm"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_figures_that_are_not_finite(tmp_path, name, value):
    def update(state, step):
        state, found = improve(state, step)
        return state, found | ({name: jnp.float32(value)} if step == 12 else {}), {"tokens": 1}

    with pytest.raises(InputError) as caught:
        go(tmp_path, update=update, eval_every=0)
    assert str(caught.value).startswith(
        f"step 13: {name} is {value}; stopped, the last good checkpoint is step 10; lower"
    )
    assert [row["step"] for row in rows(tmp_path)] == list(range(1, 13))
    assert outcome(tmp_path)[1].keys() == {"10"}


def test_an_evaluation_that_is_not_finite(tmp_path):
    values = iter([0.5, math.nan])
    judged = lambda state: {"validation/loss": next(values)}  # noqa: E731
    with pytest.raises(
        InputError, match=r"step 8: validation/loss is nan; .* checkpoint is step 5"
    ):
        go(tmp_path, evaluate=judged)
    assert rows(tmp_path)[-1]["step"] == 7


def test_the_clock_does_not_count_evaluations(tmp_path, capsys):
    def slow(state):
        time.sleep(0.3)
        return judge(state)

    go(tmp_path, evaluate=slow, steps=8)
    found = read_jsonl(tmp_path / "metrics.jsonl")
    for row in found:
        assert 0 < row["time/step"] < 0.3
        assert row["tokens_per_second"] == pytest.approx(row["tokens"] / row["time/step"])
    assert "0 compilations after warm-up" in capsys.readouterr().out


def test_compilations_are_counted(tmp_path, capsys):
    def update(state, step):
        return *jax.jit(lambda s: improve(s, step))(state), {
            "tokens": 1
        }  # a new one every time

    go(tmp_path, update=update, steps=6, eval_every=0)
    assert "6 compilations after warm-up" in capsys.readouterr().out


def test_tensorboard_gets_the_rows(tmp_path, monkeypatch):
    written = []

    class SummaryWriter:
        def __init__(self, folder, purge_step):
            assert (folder, purge_step) == (str(tmp_path / "tensorboard"), 3)

        def add_scalar(self, name, value, step):
            written.append((name, value, step))

        def close(self):
            written.append("closed")

    module = types.SimpleNamespace(SummaryWriter=SummaryWriter)
    monkeypatch.setitem(sys.modules, "tensorboardX", module)
    with closing(metric_log.Log(tmp_path, step=2, steps=4, tensorboard=True)) as log:
        log.write({"step": 3, "loss": 0.5, "seconds": 0.1})
    assert written == [("loss", 0.5, 3), ("seconds", 0.1, 3), "closed"]


def test_rows_are_json(tmp_path):
    with closing(metric_log.Log(tmp_path, step=0, steps=2)) as log:
        log.write({"step": 1, "loss": 0.5, "extra": math.inf})
        log.write({"step": 2, "loss": math.nan, "extra": 1})
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line, parse_constant=pytest.fail) for line in lines] == [
        {"step": 1, "loss": 0.5, "extra": None},
        {"step": 2, "loss": None, "extra": 1},
    ]
