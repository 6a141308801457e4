"""``fgrlhf COMMAND`` runs a command, lists them, and names the close match of a misspelt one."""

import importlib.metadata

import processes
import pytest

from launch.__main__ import list_commands, main


def test_it_is_installed():
    scripts = importlib.metadata.distribution("fgrlhf_jax").entry_points
    assert [script.load() for script in scripts.select(name="fgrlhf")] == [main]


def test_it_lists_the_commands():
    run = processes.python("-m", "launch")
    lines = run.stdout.splitlines()
    assert (run.returncode, run.stderr) == (0, "")
    assert {"ppo", "train_rm", "pipeline"} <= list_commands().keys()
    for name, text in list_commands().items():
        (line,) = [line for line in lines if line.split()[:1] == [name]]
        assert text
        assert line.endswith(f"  {text}")
        assert len(line) <= 120


@pytest.mark.parametrize(
    ("name", "hint"),
    [("trian_rm", "did you mean train_rm?"), ("xyz", "fgrlhf alone lists the commands")],
)
def test_an_unknown_command(name, hint):
    run = processes.python("-m", "launch", name, "--config=x")
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr == f"error: {name!r} is no command; {hint}\n"


def test_flags_and_status_are_the_commands_own():
    run = processes.python("-m", "launch", "sft", "--config.setps=1")
    assert run.returncode == 2
    assert run.stderr.startswith("error: --config.setps: there is no such field; did you mean s")
