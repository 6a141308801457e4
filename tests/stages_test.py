"""Stages run once, in their order, and say what failed."""

import json
import sys

import pytest

from fgrlhf_jax import stages
from fgrlhf_jax.errors import InputError

MODULE = """
import pathlib, sys, time
name, output, *needs = sys.argv[1:]
assert all(pathlib.Path(need).exists() for need in needs), "started too early"
if name == "wrong":
    sys.exit("noise\\nerror: a.jsonl:3: is not what it should be")
if name != "silent":
    with open(output, "a") as file:
        file.write(name)
"""


@pytest.fixture
def make(tmp_path, monkeypatch):
    (tmp_path / "stage_of_a_test.py").write_text(MODULE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    folder = tmp_path / "run"
    folder.mkdir()

    def stage(name, *needs, word=None):
        outputs = [str(folder / need) for need in needs]
        words = ("stage_of_a_test", word or name, str(folder / name), *outputs)
        return stages.Stage(name, words, folder / name, needs)

    return folder, stage


@pytest.mark.parametrize("workers", [1, 3])
def test_each_runs_once_after_what_it_needs(make, workers):
    folder, stage = make
    made = [stage("c", "a", "b"), stage("a"), stage("b", "a")]
    said = []
    stages.run(made, folder, workers=workers, say=said.append)
    stages.run(made, folder, workers=workers, say=said.append)
    assert [(folder / name).read_text() for name in "abc"] == ["a", "b", "c"]
    assert said[-1] == "3 of 3 stages are there already"
    assert stages.seconds(made, folder).keys() == {"a", "b", "c"}
    (folder / "b").unlink()
    stages.run(made, folder, workers=workers, say=said.append)
    assert [(folder / name).read_text() for name in "abc"] == ["a", "b", "c"]


def test_another_command_is_refused_and_named(make):
    folder, stage = make
    stages.run([stage("a")], folder, workers=1)
    with pytest.raises(InputError, match=r"stage a was made with another config \(a, other\)"):
        stages.run([stage("a", word="other")], folder, workers=1)


def test_a_failure_is_said_and_what_is_done_stays(make):
    folder, stage = make
    made = [stage("a"), stage("wrong", "a"), stage("b", "wrong")]
    with pytest.raises(
        InputError, match=r"stage wrong failed with status 1: a\.jsonl:3: is not"
    ):
        stages.run(made, folder, workers=1)
    assert (folder / "a").exists()
    assert not (folder / "b").exists()
    assert json.loads((folder / "stages" / "a.json").read_text())["command"][1] == "a"
    with pytest.raises(InputError, match="stage silent failed with status 0"):
        stages.run([stage("silent")], folder, workers=1)


def test_what_nothing_makes_is_an_error(make):
    folder, stage = make
    with pytest.raises(ValueError, match="nothing makes"):
        stages.run([stage("b", "a")], folder, workers=1)


def test_the_command_is_shown_as_it_is_typed(make):
    _, stage = make
    one = stages.Stage("x", ("launch.sft", "--config=a"), make[0], (), {"N": "2"})
    assert one.shown() == "N=2 python -m launch.sft --config=a"
    assert stage("a").shown().startswith("python -m stage_of_a_test")
    assert sys.executable  # what runs it
