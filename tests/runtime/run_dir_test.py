"""One run folder is for one process at a time, which loses it only by ending."""

import contextlib
import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import bad_input_cases
import jax
import pytest

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.runtime import interrupt
from fgrlhf_jax.runtime import run_dir as run_folder
from fgrlhf_jax.runtime.files import write_json
from launch import pipeline, ppo, sft, train_rm
from launch.shared import cli, config_files, embedded

HOLDER = """
import subprocess, sys
from pathlib import Path
from fgrlhf_jax.runtime.files import Lock
folder = Path(sys.argv[1])
folder.mkdir(parents=True, exist_ok=True)
lock = Lock(folder / ".lock")
null = subprocess.DEVNULL
child = subprocess.Popen(["sleep", "60"], stdout=null, stdin=null, close_fds=False)
print(child.pid, flush=True)
sys.stdin.read()
"""


class Holder:
    """Another process that has run folders; and a program that it started, which outlives it."""

    def __init__(self, folder: Path):
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
        )
        self.pid = self.process.pid
        self.child = int(self.process.stdout.readline())

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def hold():
    """Starts a :class:`Holder` of a folder; it ends with the test."""
    holders = []

    def hold(folder: Path) -> Holder:
        holders.append(Holder(folder))
        return holders[-1]

    yield hold
    for holder in holders:
        holder.kill()
        os.kill(holder.child, signal.SIGKILL)


def config_of(run_dir: Path):
    return config_files.parse(["", f"--config.run_dir={run_dir}"], "configs/sft.py:tiny")


def test_a_folder_in_use_is_refused_until_its_process_is_killed(hold, tmp_path):
    run_dir = tmp_path / "run"
    holder = hold(run_dir)
    before = bad_input_cases.read_files(tmp_path)
    with pytest.raises(InputError) as caught:
        run_folder.open_run(config_of(run_dir))
    assert str(caught.value) == (
        f"run_dir={run_dir}: another process (PID {holder.pid}) is running there; wait for it or "
        "choose another run_dir"
    )
    assert bad_input_cases.read_files(tmp_path) == before
    holder.kill()
    os.kill(holder.child, 0)  # what it started lives on, and has no lock
    run_folder.open_run(config_of(run_dir))
    assert json.loads((run_dir / "config.json").read_text())["run_dir"] == str(run_dir)
    assert (run_dir / ".lock").read_text() == str(os.getpid())


def test_a_stage_waits_for_one_that_still_saves(hold, tmp_path, monkeypatch, capsys):
    run_dir = tmp_path / "run"
    holder = hold(run_dir)
    monkeypatch.setenv(interrupt.PARENT_PID, "1")
    is_ending = threading.Event()

    def end():
        is_ending.set()
        holder.kill()

    timer = threading.Timer(0.3, end)
    timer.start()
    run_folder.lock(run_dir)
    assert is_ending.is_set()
    timer.join()
    assert f"waiting for process {holder.pid}" in capsys.readouterr().out
    assert (run_dir / ".lock").read_text() == str(os.getpid())


def test_the_same_process_may_come_again(hold, tmp_path):
    config = config_of(tmp_path / "run")
    for _ in range(2):
        run_folder.open_run(config)
    os.symlink(tmp_path / "run", tmp_path / "link")
    run_folder.lock(tmp_path / "link")
    # Also when a person deleted the folder: the new one has a lock of its own.
    shutil.rmtree(tmp_path / "run")
    holder = hold(tmp_path / "run")
    with pytest.raises(InputError, match=f"another process \\(PID {holder.pid}\\)"):
        run_folder.open_run(config)


def test_where_there_are_no_locks_it_goes_on(monkeypatch, tmp_path):
    def flock(file, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    assert (run_folder.open_run(config_of(tmp_path / "run")) / "config.json").exists()


def test_the_first_of_several_processes_locks_for_all(hold, monkeypatch, tmp_path):
    hold(tmp_path / "run")
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    assert run_folder.open_run(config_of(tmp_path / "run")) == tmp_path / "run"
    run_folder.lock(tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("spec", "saved", "message"),
    [
        ("configs/ppo.py:tiny", {"lam": 1.0, "clip": 0.2}, "lam is now gae_lambda, clip is now"),
        ("configs/ppo.py:tiny", {"sampling": {"unroll": True}}, r"sampling\.unroll was removed"),
    ],
)
def test_a_run_of_an_earlier_version_is_refused_with_the_new_names(spec, saved, message, tmp_path):
    write_json(tmp_path / "config.json", {"run_dir": str(tmp_path)} | saved)
    (tmp_path / "metrics.jsonl").touch()
    config = config_files.parse(["", f"--config.run_dir={tmp_path}"], spec)
    with pytest.raises(InputError, match=rf"of an earlier version, .*\({message}"):
        run_folder.check_run(config)


def test_every_command_refuses_a_folder_in_use(hold, monkeypatch, refused, tmp_path):
    """On the embedded data too, which would be the first that it writes."""
    monkeypatch.setattr(embedded, "ensure_trained", lambda *args: str(tmp_path))
    holder = hold(tmp_path / "run")
    before = bad_input_cases.read_files(tmp_path)
    for module in (train_rm, sft, ppo, pipeline):
        message = refused(module, run_dir=tmp_path / "run")
        assert f"another process (PID {holder.pid}) is running" in message
    assert bad_input_cases.read_files(tmp_path) == before


def test_a_command_that_ends_gives_its_folder_back(hold, monkeypatch, tmp_path):
    """Also where its process lives on: a test, a notebook."""
    monkeypatch.setattr(sys, "argv", ["sft", f"--config.run_dir={tmp_path / 'run'}"])
    for error in (None, SystemExit):

        def main(config, error=error):
            assert run_folder.open_run(config).joinpath(".lock").read_text() == str(os.getpid())
            if error:
                raise error

        with pytest.raises(error) if error else contextlib.nullcontext():
            cli.command(main, "configs/sft.py:tiny", "")
        assert not (tmp_path / "run" / ".lock").exists()
    hold(tmp_path / "run")  # which would wait if it had to


def test_a_pipeline_does_not_refuse_its_own_stages(hold, tmp_path):
    config = config_files.load("configs/pipeline.py:tiny")
    with config.unlocked():
        config.run_dir = str(tmp_path)
        for name in ("sft", "feedback", "ppo", "validation", "test"):
            config.world[name] = 10
    write_json(tmp_path / "config.json", json.loads(config.to_json()))
    hold(tmp_path)
    words = [f"--config.run_dir={tmp_path}", "--config.task=data"]
    pipeline.main(config_files.parse(["", *words], "configs/pipeline.py:tiny"))
    assert (tmp_path / "data" / "test.jsonl").exists()
    run_folder.open_run(config_of(tmp_path / "sft"))  # a folder below has its own lock
