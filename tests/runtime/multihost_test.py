"""Two processes with two devices each do what one with four does; they stop and go on together."""

import json
import re
import shutil
import threading
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import ppo_cases
import pytest
import safetensors.numpy
from host_cases import Pair
from ppo_cases import saved, without_clock

from fgrlhf_jax.runtime import run_dir as run_folder
from fgrlhf_jax.runtime import sharding
from fgrlhf_jax.runtime.files import write_jsonl
from fgrlhf_jax.tiny_world.datasets import make_feedback, make_instructions
from launch import ppo, sft, train_rm
from launch.shared import config_files

pytestmark = [pytest.mark.slow, pytest.mark.long]

COMMANDS = {
    "sft": (sft, "configs/sft.py:tiny"),
    "train_rm": (train_rm, "configs/rm.py:tiny,token_edit"),
    "ppo": (ppo, ppo_cases.DEFAULT),
}
SUPERVISED = {"steps": 4, "save_every": 2, "eval_every": 2, "batch_size": 8, "micro_batch_size": 4}
SUPERVISED |= {"data__max_length": 64, "data__max_prompt_length": 40, "data__buckets": 1}
SUPERVISED |= {"data__template": "plain", "optimizer__learning_rate": 1e-3}
JUDGE = """
import jax

def judge(prompts, responses):
    with open(__file__ + ".calls", "a") as calls:
        calls.write(f"{jax.process_index()} of {jax.process_count()}\\n")
    return [len(response.split()) / 7 for response in responses]
"""
# What each process of a pair does: the primitives, then command after command.
WORKER = """
import json, sys
from pathlib import Path
import jax
import numpy as np
from fgrlhf_jax.runtime import multihost, sharding
from fgrlhf_jax.errors import InputError
from launch import ppo, sft, train_rm
from launch.shared import cli, process

address, number, commands = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
process.prepare()
jax.distributed.initialize(address, 2, number)

def result(call, *args):
    try:
        return call(*args)
    except InputError as error:
        return f"error: {error}"

def fail(kind=InputError):
    raise kind(f"from process {number}")

value = result(multihost.from_process_0, lambda: (number, 1 / 3, np.arange(3.0), "x" * 1000))
results = [[value[0], value[1] == 1 / 3, value[2].sum(), len(value[3])]]
results.append(result(multihost.from_process_0, lambda: None))
results.append(result(multihost.from_process_0, fail))
try:
    results.append(result(multihost.from_process_0, lambda: fail(OverflowError)))
except OverflowError as error:
    results.append(f"raised {error}")
results.append(result(multihost.check_same, "same", "words"))
results.append(result(multihost.check_same, f"word {number}", "words"))
rows = np.arange(8.0).reshape(4, 2)
batch = sharding.put_batch(rows, sharding.make_mesh("1,-1,1"))
results.append([len(batch.addressable_shards), np.array_equal(sharding.to_host(batch), rows)])
results.append(np.array_equal(sharding.to_host(rows), rows))  # what every process has already
# Not printed: the collectives' own lines, from threads of theirs, would come in between.
(Path(__file__).parent / f"results-{number}.json").write_text(json.dumps(results))

process.prepare = cli.use_devices = lambda *_: None  # done
for command, config, *flags in commands:
    print(f"== {command}", flush=True)
    sys.argv = [command, *flags]
    cli.command({"ppo": ppo, "sft": sft, "train_rm": train_rm}[command].main, config, "")
"""


def in_one_process(command: str, fields: dict) -> Path:
    """The same command in this process, with as many devices; returns the run folder."""
    module, default = COMMANDS[command]
    make = sharding.make_mesh
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, "make_mesh", lambda shape: make(shape, jax.devices()[:4]))
        try:
            module.main(config_files.parse(["", *ppo_cases.flags(fields)], default))
        finally:
            run_folder.unlock()
    return Path(fields["run_dir"])


def make_files(folder: Path) -> Path:
    """A small policy and reward model, and data of every kind."""
    ppo_cases.world(folder)
    for name, seed in (("train", 0), ("held_out", 1)):
        edits, preferences = make_feedback(16, seed)
        write_jsonl(folder / f"{name}_pairs.jsonl", edits + preferences)
        purpose = {"train": "sft", "held_out": "validation"}[name]
        write_jsonl(folder / f"{name}_texts.jsonl", make_instructions(20, purpose, seed))
    return folder


def supervised(files: Path, kind: str, **changes) -> dict:
    return {
        **SUPERVISED,
        "train": files / f"train_{kind}.jsonl",
        "validation": files / f"held_out_{kind}.jsonl",
        "model__path": files / "policy",
        **changes,
    }


def assert_close(ours, theirs) -> None:
    """The same names and texts, and numbers that are the same but for rounding."""
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        if isinstance(one, float | np.ndarray):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
        else:
            assert one == other


def assert_same_run(ours: Path, theirs: Path) -> None:
    """What two runs left, but for the clock and rounding."""
    assert_close(without_clock(ours), without_clock(theirs))
    assert saved(ours) == saved(theirs)
    exports = [ppo_cases.contents(folder / "export") for folder in (ours, theirs)]
    weights = [safetensors.numpy.load(export.pop("model.safetensors")) for export in exports]
    assert_close(*weights)
    configs = [json.loads(export.pop("config.json")) for export in exports]
    for export in exports:
        export.pop("README.md")  # the figures are rounded
    for config in configs:
        config["fgrlhf"].pop("sha256")
    assert_close(*configs)
    assert exports[0] == exports[1]
    if (theirs / "eval.json").exists():
        assert_close(*(json.loads((d / "eval.json").read_text()) for d in (ours, theirs)))
    steps = {run_folder.read_finished(folder)["step"] for folder in (ours, theirs)}
    assert len(steps) == 1


def check_output(texts: list[str]) -> None:
    """Only process 0 has a bar; neither has a traceback."""
    assert "Traceback" not in "".join(texts), texts
    assert ["100%|" in text for text in texts] == [True, False], texts


class Runs(NamedTuple):
    """Of every command, the folder of two processes, and that of one; what the two printed."""

    fields: dict[str, dict]
    two: dict[str, Path]
    one: dict[str, Path]
    texts: dict[str, list[str]]
    primitives: list[list]  # of each process


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Runs:
    """All commands in one pair of processes, the last one interrupted; meanwhile each in one."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "our_judge.py").write_text(JUDGE)
    (folder / "worker.py").write_text(WORKER)
    files = make_files(folder)
    world = ppo_cases.World(
        *(files / name for name in ("policy", "token", "sequence")),
        *(files / f"{name}.jsonl" for name in ("ppo", "validation")),
    )
    judge = {"judge": "our_judge:judge", "validation_prompts": 16, "steps": 2}
    fields = {
        # Replicas in two processes, tensors split within each.
        "train_rm": supervised(files, "pairs", mesh="2,1,2"),
        # Parameters split over both processes.
        "ppo": ppo_cases.fields(world, Path(), **judge),
        "sft": supervised(files, "texts", steps=12, eval_every=6, save_every=0),
    }
    two, one = ({name: folder / side / name for name in fields} for side in ("two", "one"))
    commands = [
        [
            *(name, COMMANDS[name][1], "--config.distributed=True"),
            *ppo_cases.flags(fields[name] | {"run_dir": str(two[name])}),
        ]
        for name in fields
    ]
    arguments = [str(folder / "worker.py"), "127.0.0.1:PORT", "NUMBER", json.dumps(commands)]
    pair = Pair(arguments, folder)
    stopping = threading.Thread(target=pair.stop, args=[two["sft"] / "config.json"])
    stopping.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        for name in fields:
            in_one_process(name, fields[name] | {"run_dir": one[name]})
    texts = zip(*(re.split("== .*\n", text) for text in pair.end(130)), strict=True)
    stopping.join()
    next(texts)  # before the first command
    primitives = [json.loads((folder / f"results-{n}.json").read_text()) for n in range(2)]
    return Runs(fields, two, one, dict(zip(fields, texts, strict=True)), primitives)


def test_primitives(runs):
    for number, results in enumerate(runs.primitives):
        assert results == [
            [0, True, 3.0, 1000],
            None,
            "error: from process 0",
            ["raised from process 0", "error: OverflowError: from process 0"][number],
            None,
            "error: process 1 has other words than process 0; start all processes with "
            "the same flags and the same files",
            [2, True],
            True,
        ]


@pytest.mark.parametrize("command", ["train_rm", "ppo"])
def test_two_processes_do_what_one_does(runs, command):
    two, one = runs.two[command], runs.one[command]
    assert_same_run(two, one)
    check_output(runs.texts[command])
    if command == "train_rm":
        assert all("validation  preferences" in text for text in runs.texts[command])
    else:  # only process 0 calls the judge
        assert_close(*(ppo_cases.read_samples(folder) for folder in (two, one)))
        calls = (two.parents[1] / "our_judge.py.calls").read_text().splitlines()
        assert sorted(calls) == ["0 of 1"] * 2 + ["0 of 2"] * 2


def test_sft_stopped_and_gone_on_with(runs, tmp_path):
    """A signal to one process stops both after the same step, however early it comes."""
    two, fields = runs.two["sft"], runs.fields["sft"]
    step = saved(two)[-1]
    assert step < 12
    for text in runs.texts["sft"]:
        last = f"interrupted; step {step} is saved; run the same command to go on"
        assert text.splitlines()[-1] == last
    assert not (two / "export").exists()

    joined = {"distributed": True, "coordinator": "127.0.0.1:PORT", "num_processes": 2}
    flags = ppo_cases.flags({**fields, **joined, "process_id": "NUMBER", "run_dir": two})
    check_output(Pair(["-m", "launch.sft", *flags], tmp_path).end())
    assert_same_run(two, runs.one["sft"])

    # What they saved, one process can read.
    copy = shutil.copytree(two, tmp_path / "copy")
    shutil.rmtree(copy / "export")
    (copy / "eval.json").unlink()
    in_one_process("sft", fields | {"run_dir": copy})
    again, before = (d / "export/model.safetensors" for d in (copy, two))
    assert again.read_bytes() == before.read_bytes()
