"""Stages run once, in their order, and say what failed."""

import contextlib
import json
import sys
from pathlib import Path

import pytest

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.pipeline import stages

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


# Like our commands: what is finished is not made again. Its text says what it was made from.
COMMAND = """
import pathlib, sys
output, *needs = map(pathlib.Path, sys.argv[1:])
if not output.exists():
    made = [need.read_text() for need in needs]
    output.write_text(f"{output.parts[-2]}({','.join(made)})")
"""


@pytest.fixture
def study(tmp_path, monkeypatch):
    """Stages a -> b -> c and e, and d of its own; b is a file beside the folders of c and e."""
    (tmp_path / "command_of_a_test.py").write_text(COMMAND)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    folder = tmp_path / "run"
    (tmp_path / "given").write_text("1")
    outputs = {
        "a": folder / "a" / "out",
        "b": folder / "home" / "b",
        "c": folder / "home" / "c" / "out",
        "d": folder / "d" / "out",
        "e": folder / "home" / "e" / "out",
    }
    needs = {"b": ("a",), "c": ("b",), "e": ("b", "d")}
    stages_ = []
    for name in "abdce":
        read = [outputs[need] for need in needs.get(name, ())] or [tmp_path / "given"]
        words = ("command_of_a_test", *map(str, [outputs[name], *read]))
        stages_.append(stages.Stage(name, words, outputs[name], needs.get(name, ())))

    def run() -> list[str]:
        """What is said."""
        said = []
        stages.run(stages_, folder, workers=2, say=said.append)
        return said

    return tmp_path, outputs, run


MADE = {
    "a": "a({})",
    "b": "home(a({}))",
    "c": "c(home(a({})))",
    "d": "d({})",
    "e": "e(home(a({})),d({}))",
}


def made_from(outputs, given: dict[str, int]) -> None:
    """Everything is of what was given when it was made; d may be older."""
    for name, path in outputs.items():
        numbers = [given["a"], given["d"]] if name == "e" else [given.get(name, given["a"])]
        assert path.read_text() == MADE[name].format(*numbers)


@pytest.mark.parametrize("deleted", ["output", "marker", "both"])
def test_what_was_made_from_a_deleted_stage_is_made_again(study, deleted):
    path, outputs, run = study
    run()
    for number in (2, 3):
        (path / "given").write_text(str(number))
        if deleted != "marker":
            outputs["a"].unlink()
        if deleted != "output":
            (path / "run" / "stages" / "a.json").unlink()
        said = run()
        made_from(outputs, {"a": number, "d": 1})
        kept = f"{path}/run/home/c.old-{number - 1}"
        assert f"c is made again (made from a); the old one is kept: {kept}" in said
        assert sum("made again" in line for line in said) == 4
        assert run() == ["5 of 5 stages are there already"]
    assert (path / "run/home/b.old-1").read_text() == "home(a(1))"
    assert (path / "run/home/c.old-2/out").read_text() == "c(home(a(2)))"
    assert not (path / "run/d.old-1").exists()


def test_what_comes_before_a_deleted_stage_stays(study):
    path, outputs, run = study
    run()
    (path / "given").write_text("2")
    outputs["e"].unlink()
    (path / "run/home/e/checkpoint").touch()
    said = run()
    made_from(outputs, {"a": 1, "d": 1})
    assert sum("made again" in line for line in said) == 1
    assert not outputs["e"].with_name("checkpoint").exists()


def test_an_interrupted_stage_goes_on_unless_what_it_needs_was_deleted(study):
    path, outputs, run = study
    run()
    half = outputs["e"].with_name("checkpoint")
    half.touch()
    for gone in (outputs["e"], path / "run/stages/e.json"):
        gone.unlink()
    run()
    assert half.exists()
    for gone in (outputs["e"], path / "run/stages/e.json", outputs["a"]):
        gone.unlink()
    run()
    assert not half.exists()
    assert (path / "run/home/e.old-1/checkpoint").exists()
    # Also where it is interrupted while it is made again.
    outputs["e"].unlink()
    half.touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages.subprocess, "Popen", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run()
    half.parent.mkdir(exist_ok=True)
    half.touch()
    run()
    assert half.exists()


def interrupted(*_, **__):
    raise KeyboardInterrupt


def test_the_run_folder_itself_stays(make):
    """Where the output of the only stage is in it."""
    folder, stage = make
    for _ in range(2):
        stages.run([stage("a")], folder, workers=1)
        (folder / "a").unlink()
    assert [path.name for path in folder.parent.glob("run*")] == ["run"]


@pytest.mark.parametrize("renames", range(8))
def test_killed_while_setting_aside(study, monkeypatch, renames):
    path, outputs, run = study
    run()
    (path / "given").write_text("2")
    outputs["a"].unlink()
    rename, left = Path.rename, iter(range(renames))

    def killed(self, target):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return rename(self, target)

    with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        patch.setattr(Path, "rename", killed)
        run()
    run()
    made_from(outputs, {"a": 2, "d": 1})


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
