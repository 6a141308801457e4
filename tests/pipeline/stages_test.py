"""Stages run once and in order, report failures, and resume after interruptions."""

import contextlib
import dataclasses
import json
import os
import runpy
import signal
import sys
import threading
import time
from pathlib import Path
from unittest import mock

import pytest
from processes import InThisProcess

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.pipeline import stages, starter
from fgrlhf_jax.pipeline.stages import Stage
from fgrlhf_jax.runtime.files import write_json

# Like the commands: a finished output is not written again. Its text names its inputs.
COMMAND = """
import os, pathlib, signal, sys, time
name, output, *needs = sys.argv[1:]
output = pathlib.Path(output)
if name == "wrong":
    sys.exit("noise\\nerror: a.jsonl:3: is not what it should be")
if name == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
if name == "slow":
    time.sleep(60)
if name != "silent" and not output.exists():
    made_from = [pathlib.Path(need).read_text() for need in needs]
    output.write_text(f"{name}({','.join(made_from)})")
"""


@pytest.fixture
def make_stage(tmp_path, monkeypatch):
    (tmp_path / "command_of_a_test.py").write_text(COMMAND)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(starter, "MODULES", ())

    def make_stage(name, output, *needs: Stage, argument=None) -> Stage:
        inputs = [str(need.output) for need in needs]
        words = ("command_of_a_test", argument or name, str(output), *inputs)
        return Stage(name, words, output, tuple(need.name for need in needs))

    return make_stage


def run(folder, *made, workers=1) -> list[str]:
    """Runs stages and returns their progress messages."""
    messages = []
    stages.run(made, folder, workers=workers, say=messages.append)
    return messages


@pytest.mark.parametrize("workers", [1, 3])
def test_each_runs_once_after_what_it_needs(make_stage, tmp_path, workers):
    a = make_stage("a", tmp_path / "run" / "a")
    b = make_stage("b", tmp_path / "run" / "b", a)
    c = make_stage("c", tmp_path / "run" / "c", a, b)
    for _ in range(2):
        messages = run(tmp_path / "run", c, a, b, workers=workers)
        assert c.output.read_text() == "c(a(),b(a()))"
    assert messages == ["3 of 3 stages are already done"]
    assert stages.seconds([a, b, c], tmp_path / "run").keys() == {"a", "b", "c"}
    # Its output is in the run folder itself, which is not set aside.
    a.output.unlink()
    run(tmp_path / "run", c, a, b)
    assert [path.name for path in tmp_path.glob("run*")] == ["run"]


def test_the_longest_chain_starts_first_and_then_what_needs_most(make_stage, tmp_path):
    a, b, c = (make_stage(name, tmp_path / name) for name in "abc")
    then = make_stage("then", tmp_path / "then", c)
    last = make_stage("last", tmp_path / "last", then, b)
    messages = run(tmp_path, a, b, c, then, last)
    finished = [message.split()[1].removesuffix(":") for message in messages]
    assert finished == ["c", "then", "b", "last", "a"]


def test_a_broken_cache_entry_is_removed(make_stage, tmp_path):
    cache = tmp_path / "cache"
    cache.mkdir()
    for name in ("half-cache", "whole-cache", "whole-atime"):
        (cache / name).touch()
    run(tmp_path, make_stage("a", tmp_path / "a"))
    assert {path.name for path in cache.glob("[!.]*")} == {"whole-cache", "whole-atime"}


def test_another_command_is_refused_and_named(make_stage, tmp_path):
    a = dataclasses.replace(make_stage("a", tmp_path / "a"), fields={"sizes.x": 1, "y": ""})
    run(tmp_path, a)
    other = dataclasses.replace(make_stage("a", tmp_path / "a", argument="other"), fields={"y": ""})
    with pytest.raises(InputError, match=r"stage a was made with a, sizes.x=1, not with other; us"):
        run(tmp_path, other)
    marker = json.loads((tmp_path / "stages" / "a.json").read_text())
    write_json(tmp_path / "stages" / "a.json", {k: v for k, v in marker.items() if k != "needs"})
    with pytest.raises(InputError, match="holds a run of an earlier version"):
        run(tmp_path, a)


def test_a_stage_with_more_needs_resumes_from_its_output(make_stage, tmp_path):
    a, b, d = (make_stage(name, tmp_path / name / "out") for name in "abd")
    few, more, most = (
        dataclasses.replace(make_stage("c", tmp_path / "c" / "out"), needs=needs)
        for needs in (("a",), ("a", "b"), ("a", "b", "d"))
    )
    run(tmp_path, a, few)
    (tmp_path / "c" / "kept").touch()
    assert [line.split()[1] for line in run(tmp_path, a, b, more)[1:]] == ["b:", "c:"]
    assert run(tmp_path, a, few) == ["2 of 2 stages are already done"]
    # If interrupted then, it resumes again.
    interrupted = mock.patch.object(stages, "_start", side_effect=KeyboardInterrupt)
    run(tmp_path, d)
    with interrupted, pytest.raises(KeyboardInterrupt):
        run(tmp_path, a, b, d, most)
    assert [line.split()[1] for line in run(tmp_path, a, b, d, most)[1:]] == ["c:"]
    assert (tmp_path / "c" / "kept").exists()
    # All stages that it depended on must still be done.
    b.output.unlink()
    assert "c runs again (it depends on b)" in " ".join(run(tmp_path, a, b, d, most))
    assert not (tmp_path / "c" / "kept").exists()


@pytest.mark.parametrize("text", ["", '{"command": [', "[]", '{"command": ["a"], "seconds": "1"}'])
def test_a_damaged_marker_is_named(make_stage, tmp_path, text):
    run(tmp_path, make_stage("a", tmp_path / "a"))
    (tmp_path / "stages" / "a.json").write_text(text)
    with pytest.raises(InputError, match=r"stages/a.json: is .*; delete it, and stage a runs"):
        run(tmp_path, make_stage("a", tmp_path / "a"))


def test_changed_results_of_a_stage_are_named(make_stage, tmp_path):
    """Also changes to other files beside its output."""
    a = make_stage("a", tmp_path / "home" / "a.json")
    a.output.parent.mkdir()
    beside = a.output.with_name("more.json")
    beside.write_text("1")
    run(tmp_path, a)
    for path in (a.output, beside):
        content = path.read_bytes()
        path.write_bytes(content + b" ")
        with pytest.raises(InputError, match=f"{path.name}: changed since stage a wrote it"):
            run(tmp_path, a)
        path.write_bytes(content)
    assert run(tmp_path, a) == ["1 of 1 stages are already done"]


def test_a_failure_is_reported_and_finished_stages_stay(make_stage, tmp_path):
    a = make_stage("a", tmp_path / "a")
    wrong = make_stage("wrong", tmp_path / "wrong", a)
    b = make_stage("b", tmp_path / "b", wrong)
    message = r"stage wrong failed with status 1: a\.jsonl:3: is not .* \(see .*wrong\.log\)"
    with pytest.raises(InputError, match=message):
        run(tmp_path, a, wrong, b)
    assert a.output.exists()
    assert not b.output.exists()
    assert json.loads((tmp_path / "stages" / "a.json").read_text())["command"][1] == "a"
    log = tmp_path / "logs" / "killed.log"
    log.write_text("error: of an earlier start\nfailed with status 2\n")
    with pytest.raises(InputError, match="stage killed failed with status -9: it was killed, p"):
        run(tmp_path, make_stage("killed", tmp_path / "killed"))
    log.with_name("silent.log").write_text(log.read_text())
    with pytest.raises(InputError, match="stage silent failed with status 0: it printed nothing"):
        run(tmp_path, make_stage("silent", tmp_path / "silent"))
    with pytest.raises(ValueError, match="no stage makes"):
        run(tmp_path, b)


def test_the_command_is_shown_as_typed_in_a_shell():
    stage = Stage("x", ("launch.sft", "--config=a"), Path("x"), (), {"N": "2"})
    assert stage.shell_command() == "N=2 python -m launch.sft --config=a"


# --- deleted, interrupted and killed -----------------------------------------------------------

MADE_FROM = {"a": "a({})", "b": "b(a({}))", "c": "c(b(a({})))", "d": "d({})"}
MADE_FROM["e"] = "e(b(a({})),d({}))"


def run_here(command) -> None:
    module, *arguments = command
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [module, *arguments])
        runpy.run_path(f"{os.environ['PYTHONPATH']}/{module}.py")


@pytest.fixture
def study(make_stage, tmp_path, monkeypatch):
    """Stages a → b → c and e, and d → e; b is a file beside the folders of c and e."""
    monkeypatch.setattr(stages, "Starter", lambda environment: InThisProcess(run_here))
    monkeypatch.setattr(stages.time, "sleep", lambda seconds: None)
    folder, source = tmp_path / "run", Stage("source", (), tmp_path / "source")
    source.output.write_text("1")
    a = make_stage("a", folder / "a" / "out", source)
    b = make_stage("b", folder / "home" / "b", a)
    d = make_stage("d", folder / "d" / "out", source)
    c = make_stage("c", folder / "home" / "c" / "out", b)
    e = make_stage("e", folder / "home" / "e" / "out", b, d)
    made = [dataclasses.replace(a, needs=()), b, dataclasses.replace(d, needs=()), c, e]
    outputs = {stage.name: stage.output for stage in made}
    return tmp_path, outputs, lambda: run(folder, *made, workers=2)


def assert_made_from(outputs, source: int, d: int = 1) -> None:
    """Asserts that all outputs derive from this version of the source; d may be older."""
    for name, path in outputs.items():
        states = {"d": [d], "e": [source, d]}.get(name, [source])
        assert path.read_text() == MADE_FROM[name].format(*states)


@pytest.mark.parametrize("deleted", ["output", "marker", "both"])
def test_stages_that_depend_on_a_deleted_stage_run_again(study, deleted):
    path, outputs, run_study = study
    run_study()
    for number in (2, 3):
        (path / "source").write_text(str(number))
        if deleted != "marker":
            outputs["a"].unlink()
        if deleted != "output":
            (path / "run" / "stages" / "a.json").unlink()
        messages = run_study()
        assert_made_from(outputs, number)
        old = f"{path}/run/home/c.old-{number - 1}"
        assert f"c runs again (it depends on a); its old output is kept: {old}" in messages
        assert sum("runs again" in message for message in messages) == 4
    assert run_study() == ["5 of 5 stages are already done"]
    assert (path / "run/home/b.old-1").read_text() == "b(a(1))"
    assert (path / "run/home/c.old-2/out").read_text() == "c(b(a(2)))"
    assert not (path / "run/d.old-1").exists()


def test_the_needs_of_a_deleted_stage_stay(study):
    path, outputs, run_study = study
    run_study()
    (path / "source").write_text("2")
    outputs["e"].unlink()
    (path / "run/home/e/checkpoint").touch()
    messages = run_study()
    assert_made_from(outputs, 1)
    assert sum("runs again" in message for message in messages) == 1
    assert not outputs["e"].with_name("checkpoint").exists()


def test_an_interrupted_stage_resumes_unless_its_needs_were_deleted(study):
    path, outputs, run_study = study
    run_study()
    checkpoint, marker = outputs["e"].with_name("checkpoint"), path / "run/stages/e.json"
    checkpoint.touch()
    for deleted in (outputs["e"], marker):
        deleted.unlink()
    run_study()
    assert checkpoint.exists()
    for deleted in (outputs["e"], marker, outputs["a"]):
        deleted.unlink()
    run_study()
    assert not checkpoint.exists()
    assert (path / "run/home/e.old-1/checkpoint").exists()
    # Also if it is interrupted while it runs again.
    outputs["e"].unlink()
    checkpoint.touch()
    interrupted = mock.patch.object(stages, "_start", side_effect=KeyboardInterrupt)
    with interrupted, pytest.raises(KeyboardInterrupt):
        run_study()
    checkpoint.parent.mkdir(exist_ok=True)
    checkpoint.touch()
    run_study()
    assert checkpoint.exists()


@pytest.mark.parametrize("renames", range(8))
def test_killed_while_setting_aside(study, monkeypatch, renames):
    path, outputs, run_study = study
    run_study()
    (path / "source").write_text("2")
    outputs["a"].unlink()
    rename, left = Path.rename, iter(range(renames))

    def killed(self, target):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return rename(self, target)

    with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        patch.setattr(Path, "rename", killed)
        run_study()
    run_study()
    assert_made_from(outputs, 2)


class Recorded(starter.Starter):
    """Records its server's last request and response."""

    last, seen = None, {}

    def __enter__(self):
        Recorded.last, Recorded.seen = self, {}
        return super().__enter__()

    def statuses(self) -> dict[int, int]:
        ended = super().statuses()
        self.seen.update(ended)
        return ended


def test_signals_in_quick_succession_stop_all_stages(make_stage, tmp_path, monkeypatch):
    """As sent by `timeout` (to the process and its group) and by Slurm (to all its processes)."""

    def send():
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
        os.kill(Recorded.last._server.pid, signal.SIGTERM)

    slow = [make_stage(name, tmp_path / "run" / name, argument="slow") for name in "ab"]
    monkeypatch.setattr(stages, "Starter", Recorded)
    before = signal.getsignal(signal.SIGTERM)
    timer = threading.Timer(0.7, send)
    timer.start()
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", *slow, workers=2)
    timer.join()
    assert time.monotonic() - started < 20
    assert signal.getsignal(signal.SIGTERM) is before
    assert [*Recorded.seen.values()] == [-signal.SIGTERM] * 2


def test_two_stages_that_fail_at_once(make_stage, tmp_path, monkeypatch):
    class Late(Recorded):
        def statuses(self) -> dict[int, int]:
            assert len(self.seen) < 2, "who has ended is asked for again"
            while len(self.seen) < 2:
                super().statuses()
            return self.seen

    monkeypatch.setattr(stages, "Starter", Late)
    wrong = [make_stage(name, tmp_path / name, argument="wrong") for name in "ab"]
    with pytest.raises(
        InputError, match=r"stage [ab] failed with status 1: a\.jsonl:3: is not what"
    ):
        run(tmp_path, *wrong, workers=2)
