"""``fgrlhf COMMAND`` runs a command, lists them, and names the close match of a misspelt one."""

import importlib.metadata
import sys

import processes
import pytest

from launch.__main__ import list_commands, main
from launch.shared import process


def test_it_is_installed():
    scripts = importlib.metadata.distribution("fgrlhf_jax").entry_points
    assert [script.load() for script in scripts.select(name="fgrlhf")] == [main]


def test_it_lists_the_commands_and_knows_no_other(monkeypatch, capsys):
    monkeypatch.setattr(process, "begin", lambda: None)
    monkeypatch.setattr(sys, "argv", ["fgrlhf"])
    main()
    lines = capsys.readouterr().out.splitlines()
    assert {"ppo", "train_rm", "pipeline"} <= list_commands().keys()
    for name, text in list_commands().items():
        (line,) = [line for line in lines if line.split()[:1] == [name]]
        assert text
        assert line.endswith(f"  {text}")
        assert len(line) <= 120
    for name, hint in (("trian_rm", "did you mean train_rm?"), ("xyz", "fgrlhf alone lists the")):
        monkeypatch.setattr(sys, "argv", ["fgrlhf", name])
        with pytest.raises(SystemExit, match="2"):
            main()
        assert f"error: {name!r} is no command; {hint}" in capsys.readouterr().err


def test_flags_and_status_are_the_commands_own():
    run = processes.python("-m", "launch", "data", "--config.sampels=1")
    assert run.returncode == 2
    assert run.stderr == "error: --config.sampels: there is no such field; did you mean samples?\n"
