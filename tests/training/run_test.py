"""The loop with a toy in the place of a model: every moment of a stop, cheaply."""

import math
import os
import random
import shutil
import signal
import time
from contextlib import closing
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from bad_input_cases import damage

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.runtime import interrupt, metric_log, sharding
from fgrlhf_jax.runtime.checkpoint import Checkpoints
from fgrlhf_jax.runtime.files import read_jsonl
from fgrlhf_jax.runtime.optim import TrainState, abstract_state, apply_gradients
from fgrlhf_jax.training import run as training

STEPS = 24
DAMAGES = int(os.environ.get("FGRLHF_DAMAGES", "10"))
OPTIMIZER = optax.sgd(0.05, momentum=0.9)


class Killed(BaseException):
    """As little as a process that is killed gets to clean up."""


@jax.jit
def improve(state: TrainState, step) -> tuple[TrainState, dict]:
    """Momentum towards a target that depends on the step."""
    grads = {"w": state.params["w"] - jnp.sin(step * jnp.arange(1.0, 5.0))}
    loss = jnp.mean(grads["w"] ** 2)
    metrics = {"loss": loss, "accuracy": jnp.float32(0.5), "grad_norm": jnp.sqrt(loss)}
    return apply_gradients(state, grads, OPTIMIZER), metrics


class Toy:
    """``spy`` is told of everything that happens before it does; ``losses`` are of evaluations."""

    steps, eval_every, patience, overlaps, problem = STEPS, 4, 0, True, ""
    data, optimizer = "digest", OPTIMIZER

    def __init__(self, spy=lambda event, step: None, losses=None, **changes):
        self.spy, self.losses = spy, losses and iter(losses)
        self.mesh = sharding.make_mesh("1,1,1", jax.devices()[:1])
        params = jax.eval_shape(self.initial_params)
        params = sharding.abstract(params, self.mesh)
        self.abstract = abstract_state(params, OPTIMIZER, self.mesh)
        self.bar, self.memory = {"loss": ".4f"}, {"updates": 0}
        vars(self).update(changes)

    def initial_params(self) -> dict:
        return {"w": jnp.zeros(4)}

    def prepare(self, state, start) -> dict:
        return {}

    def update(self, state, step):
        self.spy("update", step)
        self.memory = {"updates": self.memory["updates"] + 1}
        state, metrics = improve(state, step)
        return state, metrics | {"tokens": 7 + step}

    def evaluate(self, params, step) -> dict:
        self.spy("evaluate", step)
        computed = float(jnp.sin(7 * params["w"]).mean())
        return {"validation/loss": next(self.losses) if self.losses else computed}

    def value(self, evaluation) -> float:
        return -evaluation["validation/loss"]


@pytest.fixture(scope="module")
def go():
    """Start or go on in a folder; returns what ``run`` does."""
    save, write = Checkpoints.save, metric_log.RowFile.append
    spies = []

    def spied(event, function, step_of):
        def call(self, value, *args, **options):
            spies[-1](event, step_of(value))
            return function(self, value, *args, **options)

        return call

    def go(folder: Path, trainer: Toy, save_every: int = 5, rate: float = 0.1, **options):
        spies.append(trainer.spy)
        config = training.ConfigDict(
            {"save_every": save_every, "max_to_keep": 1, "tensorboard": False}
            | {"rate": rate, "profile": 0, "max_seconds": 0.0}
            | options
        )
        return training.run(config, trainer, folder)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoints, "save", spied("save", save, lambda step: step))
        patch.setattr(metric_log.RowFile, "append", spied("row", write, lambda row: row["step"]))
        yield go


def rows(folder: Path) -> list[dict]:
    return [
        {k: v for k, v in row.items() if k.partition("/")[0] not in metric_log.Log.CLOCK}
        for row in read_jsonl(folder / "metrics.jsonl")
    ]


def outcome(folder: Path) -> tuple:
    """Rows, and of every checkpoint its bits and its progress."""
    abstract, saved = Toy().abstract._asdict(), {}
    with closing(Checkpoints(folder / "checkpoints")) as checkpoints:
        for step in checkpoints.steps:
            parts = checkpoints.restore(step, abstract)
            bits = [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(parts)]
            # The log has a clock.
            saved[step] = bits, training.Progress(**checkpoints.loop(step))._replace(log={})
    return rows(folder), saved


@pytest.fixture(scope="module")
def undisturbed(go, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    return go(folder, Toy()), *outcome(folder)


def test_undisturbed(undisturbed):
    (step, params), metrics, saved = undisturbed
    assert [row["step"] for row in metrics] == list(range(1, STEPS + 1))
    assert [row["tokens"] for row in metrics] == [7 + step for step in range(STEPS)]
    values = {r["step"]: r["validation/loss"] for r in metrics if "validation/loss" in r}
    assert list(values) == [4, 8, 12, 16, 20, 24]
    best = min(values, key=values.get)
    assert best != STEPS  # else the test says little
    assert saved.keys() == {best, STEPS}
    stale = list(values)[::-1].index(best)
    progress = training.Progress("digest", {"updates": STEPS}, {}, {}, best, -values[best], stale)
    assert saved[STEPS][1]._replace(config={}) == progress._replace(done=True)
    assert step == best
    assert np.asarray(params["w"]).tobytes() in saved[best][0]


@pytest.mark.parametrize("seed", range(6))
def test_killed_at_any_moment(undisturbed, go, tmp_path, seed):
    """Before an update, an evaluation, a row or a save; also a second and a third time."""
    rng = random.Random(seed)
    for _ in range(3):
        countdown = rng.randrange(1, 40)

        def spy(event, step):
            nonlocal countdown
            countdown -= 1
            if not countdown:
                raise Killed

        try:
            go(tmp_path, Toy(spy))
        except Killed:
            if rng.random() < 0.5:
                with (tmp_path / "metrics.jsonl").open("a") as file:
                    file.write('{"step": 3, "lo')
        else:
            break
    if countdown <= 0:
        go(tmp_path, Toy())
    assert outcome(tmp_path) == undisturbed[1:]


@pytest.mark.parametrize("overlaps", [True, False])
def test_a_limit_of_seconds(undisturbed, go, tmp_path, monkeypatch, capsys, overlaps):
    """Those of earlier starts count; each update is what it is without a limit."""
    now, killed, fetch = 0.0, False, metric_log.to_floats

    def kill(event, step):
        nonlocal killed
        if (event, step, killed) == ("update", 5, False):
            killed = True
            raise Killed

    def wait(tree):
        nonlocal now
        now += 1
        return fetch(tree)

    def clock() -> float:
        nonlocal now
        now += 1e-9
        return now

    monkeypatch.setattr(metric_log.time, "perf_counter", clock)
    monkeypatch.setattr(metric_log, "to_floats", wait)
    with pytest.raises(Killed):
        go(tmp_path, Toy(kill, overlaps=overlaps), save_every=2, max_seconds=5.9)
    go(tmp_path, Toy(kill, overlaps=overlaps), save_every=2, max_seconds=5.9)
    step, params = go(tmp_path, Toy(), save_every=2, max_seconds=5.9)
    metrics, saved = outcome(tmp_path)
    assert [row["step"] for row in metrics] == list(range(1, 7))
    assert metrics[:4] == undisturbed[1][:4]
    assert "validation/loss" in metrics[-1]  # the last one is evaluated, whatever its number
    bar = capsys.readouterr().err
    assert ("step" in bar, "%" in bar) == (True, False)  # nobody knows how many are to come
    assert saved[6][1].done
    assert np.asarray(params["w"]).tobytes() in saved[step][0]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_after_the_step(undisturbed, go, tmp_path, number):
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]

    def spy(event, step):
        if (event, step) == ("update", 6):
            signal.raise_signal(number)

    with pytest.raises(KeyboardInterrupt, match=r"^interrupted; step 7 is saved$"):
        go(tmp_path, Toy(spy))
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before
    assert [row["step"] for row in rows(tmp_path)] == list(range(1, 8))
    go(tmp_path, Toy())
    assert outcome(tmp_path) == undisturbed[1:]


def test_a_second_signal_stops_at_once(go, tmp_path):
    def spy(event, step):
        if (event, step) == ("update", 6):
            signal.raise_signal(signal.SIGINT)
            time.sleep(interrupt.DUPLICATE_TIME)
            signal.raise_signal(signal.SIGINT)
            pytest.fail("not stopped")

    with pytest.raises(KeyboardInterrupt):
        go(tmp_path, Toy(spy))
    assert len(rows(tmp_path)) < 7


def test_patience(go, tmp_path):
    """The third evaluation is the best, the first of equals; two without improvement follow."""
    step, _ = go(tmp_path, Toy(losses=[3.0, 2.0, 1.0, 1.0, 1.5, 0.0], patience=2))
    metrics, saved = outcome(tmp_path)
    assert saved[20][1][4:] == (12, -1.0, 2, True)
    assert (step, metrics[-1]["step"], saved.keys()) == (12, 20, {12, 20})
    assert go(tmp_path, Toy())[0] == 12  # it is done


@pytest.mark.parametrize(
    ("save_every", "eval_every", "values", "saved"),
    [
        (0, 0, [], [STEPS]),
        (7, 0, [], [7, 14, 21, STEPS]),
        (0, 10, [2.0, 3.0, 1.0], [10, STEPS]),  # the last step is always evaluated
    ],
)
def test_saves(go, tmp_path, save_every, eval_every, values, saved):
    steps = []

    def spy(event, step):
        steps.append(step) if event == "save" else None

    go(tmp_path, Toy(spy, values, eval_every=eval_every), save_every)
    assert steps == saved


@pytest.mark.parametrize(("name", "value"), [("loss", math.nan), ("grad_norm", math.inf)])
def test_a_metric_that_is_not_finite(go, tmp_path, name, value):
    class Failing(Toy):
        def update(self, state, step):
            state, metrics = super().update(state, step)
            return state, metrics | ({name: jnp.float32(value)} if step == 12 else {})

    with pytest.raises(InputError) as caught:
        go(tmp_path, Failing(eval_every=0))
    assert str(caught.value).startswith(
        f"step 13: {name} is {value}; stopped, the last good checkpoint is step 10; lower"
    )
    metrics, saved = outcome(tmp_path)
    assert [row["step"] for row in metrics] == list(range(1, 13))
    assert saved.keys() == {10}


def test_an_evaluation_that_is_not_finite(go, tmp_path):
    with pytest.raises(InputError, match=r"step 8: validation/loss is nan; .*point is step 5"):
        go(tmp_path, Toy(losses=[0.5, math.nan]))
    assert rows(tmp_path)[-1]["step"] == 7


def test_a_problem_stops_the_run_with_its_state_saved(go, tmp_path):
    class Worried(Toy):
        @property
        def problem(self) -> str:
            return "too much" if self.memory["updates"] == 7 else ""

    for _ in range(2):  # a second start says so again
        with pytest.raises(InputError, match=r"^too much$"):
            go(tmp_path, Worried())
        metrics, saved = outcome(tmp_path)
        assert (metrics[-1]["step"], max(saved)) == (7, 7)


def test_rows_without_a_checkpoint_are_made_again_and_it_is_said(go, tmp_path, capsys):
    go(tmp_path, Toy())
    made = outcome(tmp_path)
    assert "begins again" not in capsys.readouterr().out
    shutil.rmtree(tmp_path / "checkpoints")
    go(tmp_path, Toy())
    said = f"{tmp_path}/metrics.jsonl: has rows, but there is no checkpoint of them; the run begins"
    assert said in capsys.readouterr().out
    chex.assert_trees_all_equal(outcome(tmp_path), made)


def test_other_data_and_another_config_are_refused(go, tmp_path):
    """The checkpoint knows both, whatever became of config.json."""
    go(tmp_path, Toy())
    with pytest.raises(InputError, match="data or the tokenizer has changed since step 24"):
        go(tmp_path, Toy(data="other"))
    with pytest.raises(InputError, match=r"of another config: rate \(saved 0.1, now 0.2\); choose"):
        go(tmp_path, Toy(), rate=0.2)


@pytest.fixture(scope="module")
def halves(go, tmp_path_factory) -> list[Path]:
    """Two runs that were interrupted, the second one with other data."""

    def spy(event, step):
        if (event, step) == ("update", 13):
            signal.raise_signal(signal.SIGINT)

    folders = [tmp_path_factory.mktemp("half") for _ in range(2)]
    for folder, data in zip(folders, ("digest", "other"), strict=True):
        with pytest.raises(KeyboardInterrupt):
            go(folder, Toy(spy, data=data))
    return folders


@pytest.mark.parametrize("seed", range(DAMAGES))
def test_no_damage_changes_a_number(undisturbed, halves, go, tmp_path, seed):
    """A run whose folder was damaged ends as if nothing had happened, or in one sentence."""
    rng = random.Random(seed)
    folder = shutil.copytree(halves[0], tmp_path / "run")
    path = rng.choice(sorted(path for path in folder.rglob("*") if path.is_file()))
    how = rng.choice(["delete", "swap", "empty", "cut", "flip"])
    damage(path, how, rng, halves[1] / path.relative_to(folder))
    sentence = ""
    try:
        go(folder, Toy())
    except InputError as error:
        sentence = str(error)
    if sentence:
        assert sentence.startswith((str(tmp_path), "run_dir="))
        assert "\n" not in sentence
        assert len(sentence) < 1000
    else:
        assert outcome(folder) == undisturbed[1:]


def test_the_clock_does_not_count_evaluations(go, tmp_path, capsys):
    class Slow(Toy):
        def evaluate(self, params, step) -> dict:
            time.sleep(0.3)
            return super().evaluate(params, step)

    go(tmp_path, Slow(steps=8))
    for row in read_jsonl(tmp_path / "metrics.jsonl"):
        assert 0 < row["time/step"] < 0.3
        assert row["tokens_per_second"] == pytest.approx(row["tokens"] / row["time/step"])


def test_a_step_is_traced(go, tmp_path):
    with pytest.raises(InputError, match=r"^profile=9: the run has 8 steps; name one of them$"):
        go(tmp_path, Toy(steps=8), profile=9)
    assert not (tmp_path / "profile").exists()
    go(tmp_path, Toy(steps=8), profile=3)
    names = {path.name for path in (tmp_path / "profile").rglob("*")}
    assert "perfetto_trace.json.gz" in names
    assert any(name.endswith(".xplane.pb") for name in names)


def test_compilations_are_counted(go, tmp_path, capsys):
    class Compiling(Toy):
        def update(self, state, step):
            state, metrics = jax.jit(lambda s: improve(s, step))(state)  # a new one every time
            return state, metrics | {"tokens": 1}

    for trainer, count in ((Toy, 0), (Compiling, 5)):
        go(tmp_path / trainer.__name__, trainer(steps=6, eval_every=0))
        assert f"{count} compilations after the first update" in capsys.readouterr().out
