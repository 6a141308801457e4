"""Two processes with two devices each do what one with four does; stop, fail and go on together."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import ppo_cases
import pytest
import safetensors.numpy
from ppo_cases import saved, without_clock

from fgrlhf_jax.runtime import run_dir as run_folder
from fgrlhf_jax.runtime import sharding
from fgrlhf_jax.runtime.files import write_jsonl
from fgrlhf_jax.tiny_world.datasets import make_feedback, make_instructions
from launch import ppo, sft, train_rm
from launch.shared import config_files

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_compilation")]

COMMANDS = {
    "sft": (sft, "configs/sft.py:tiny"),
    "train_rm": (train_rm, "configs/rm.py:tiny,token_edit"),
    "ppo": (ppo, ppo_cases.DEFAULT),
}
SUPERVISED = {
    "steps": 4,
    "save_every": 2,
    "eval_every": 2,
    "batch_size": 8,
    "micro_batch_size": 4,
    "data__template": "plain",
    "data__max_length": 64,
    "data__max_prompt_length": 40,
    "optimizer__learning_rate": 1e-3,
}
JUDGE = """
import jax

def judge(prompts, responses):
    with open(__file__ + ".calls", "a") as calls:
        calls.write(f"{jax.process_index()} of {jax.process_count()}\\n")
    return [len(response.split()) / 7 for response in responses]
"""
PRIMITIVES = """
import os, sys
import jax
import numpy as np
from fgrlhf_jax.runtime import multihost, sharding
from fgrlhf_jax.errors import InputError

number = int(sys.argv[2])
jax.distributed.initialize(sys.argv[1], 2, number)

def result(call, *args):
    try:
        return call(*args)
    except InputError as error:
        return f"error: {error}"

def fail():
    raise InputError(f"from process {number}")

value = result(multihost.from_first, lambda: (number, 1 / 3, np.arange(3.0), "x" * 1000))
print(value[0], value[1] == 1 / 3, value[2].sum(), len(value[3]))
print(result(multihost.from_first, lambda: None))
print(result(multihost.from_first, fail))
print(result(multihost.check_same, "same", "words"))
print(result(multihost.check_same, f"word {number}", "words"))
rows = np.arange(8.0).reshape(4, 2)
batch = sharding.put_batch(rows, sharding.make_mesh("1,-1,1"))
print(len(batch.addressable_shards), np.array_equal(sharding.to_host(batch), rows))
print(np.array_equal(sharding.to_host(rows), rows))  # what every process has already
"""


class Pair:
    """Two processes that find each other, each with two devices and an output of its own."""

    def __init__(self, arguments: list[str], output: Path, path: Path = Path()):
        """``PORT`` and ``NUMBER`` in the arguments are the coordinator's and the process's."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        root = Path(__file__).parents[2]
        cache = Path(jax.config.jax_compilation_cache_dir) / "commands"
        environment = os.environ | {
            "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
            "PYTHONPATH": os.pathsep.join(map(str, (root, path))),
        }
        self.outputs = [output.with_name(f"{output.name}.{number}") for number in "01"]
        self.processes = []
        for number, file in enumerate(self.outputs):
            words = [a.replace("PORT", port).replace("NUMBER", str(number)) for a in arguments]
            with file.open("w") as stream:
                command = [sys.executable, *words]
                self.processes.append(
                    subprocess.Popen(
                        command, stdout=stream, stderr=stream, cwd=root, env=environment
                    )
                )

    def until(self, condition) -> "Pair":
        """Wait for it, while both run."""
        deadline = time.monotonic() + 240
        while not condition():
            running = all(process.poll() is None for process in self.processes)
            if not running or time.monotonic() > deadline:
                self.kill()
                pytest.fail("\n".join(self.texts()))
            time.sleep(0.002)
        return self

    def kill(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait(60)

    def texts(self) -> list[str]:
        return [file.read_text() for file in self.outputs]

    def end(self, status: int = 0) -> list[str]:
        """Waits for both, which must end with this status; returns their outputs."""
        deadline = time.monotonic() + 240
        try:
            codes = [p.wait(max(0, deadline - time.monotonic())) for p in self.processes]
        finally:
            self.kill()
        assert codes == [status, status], "\n".join(self.texts())
        return self.texts()


def in_two_processes(command: str, fields: dict) -> Pair:
    """A command in two processes; ``fields`` with "__" for the dots."""
    joined = {
        "distributed": True,
        "coordinator": "127.0.0.1:PORT",
        "num_processes": 2,
        "process_id": "NUMBER",
    }
    flags = ppo_cases.flags({**fields, **joined})
    _, default = COMMANDS[command]
    run_dir = Path(fields["run_dir"])
    return Pair(
        ["-m", f"launch.{command}", f"--config={default}", *flags], run_dir, run_dir.parent
    )


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


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """A small policy and reward model, and data of every kind."""
    folder = tmp_path_factory.mktemp("files")
    ppo_cases.world(folder)
    for name, seed in (("train", 0), ("held_out", 1)):
        edits, preferences = make_feedback(16, seed)
        write_jsonl(folder / f"{name}_pairs.jsonl", edits + preferences)
        purpose = {"train": "sft", "held_out": "validation"}[name]
        write_jsonl(folder / f"{name}_texts.jsonl", make_instructions(20, purpose, seed))
    return folder


def supervised(files: Path, kind: str, run_dir: Path, **changes) -> dict:
    fields = {
        "train": files / f"train_{kind}.jsonl",
        "validation": files / f"held_out_{kind}.jsonl",
        "model__path": files / "policy",
        "run_dir": run_dir,
    }
    return {**SUPERVISED, **fields, **changes}


def assert_close(ours, theirs) -> None:
    """The same names and texts, and numbers that are the same but for rounding."""
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys()
        for name in ours:
            assert_close(ours[name], theirs[name])
    elif isinstance(ours, list):
        assert len(ours) == len(theirs)
        for pair in zip(ours, theirs, strict=True):
            assert_close(*pair)
    elif isinstance(ours, float | np.ndarray):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    else:
        assert ours == theirs


def assert_same_run(ours: Path, theirs: Path) -> None:
    """What two runs left, but for the clock and rounding."""
    assert_close(without_clock(ours), without_clock(theirs))
    assert saved(ours) == saved(theirs)
    names = [
        {p.relative_to(d).as_posix() for p in d.rglob("*") if p.is_file()}
        for d in (ours / "export", theirs / "export")
    ]
    assert names[0] == names[1]
    for name in ("export/tokenizer.json", "export/tokenizer_config.json"):
        assert (ours / name).read_bytes() == (theirs / name).read_bytes()
    weights = [
        safetensors.numpy.load_file(d / "export/model.safetensors") for d in (ours, theirs)
    ]
    assert_close(*weights)
    configs = [json.loads((d / "export/config.json").read_text()) for d in (ours, theirs)]
    for config in configs:
        config["fgrlhf"].pop("sha256")
    assert_close(*configs)
    for name in ("eval.json", "finished.json"):
        if (theirs / name).exists():
            assert_close(*(json.loads((d / name).read_text()) for d in (ours, theirs)))


def check_output(texts: list[str]) -> None:
    """Only process 0 has a bar; neither has a traceback."""
    assert not [text for text in texts if "Traceback" in text], texts
    assert ["100%|" in text for text in texts] == [True, False], texts


def test_train_rm(files, tmp_path):
    """Replicas in two processes, tensors split within each."""
    mesh = {"mesh": "2,1,2"}
    pair = in_two_processes("train_rm", supervised(files, "pairs", tmp_path / "two", **mesh))
    one = in_one_process("train_rm", supervised(files, "pairs", tmp_path / "one", **mesh))
    texts = pair.end()
    assert_same_run(tmp_path / "two", one)
    check_output(texts)
    assert all("validation  preferences" in text for text in texts)


def test_sft_stopped_and_gone_on_with(files, tmp_path):
    """A signal to one process stops both after the same step, however early it comes."""
    changes = {"steps": 12, "eval_every": 6, "save_every": 0}
    fields = supervised(files, "texts", tmp_path / "two", **changes)
    pair = in_two_processes("sft", fields)
    pair.until((tmp_path / "two" / "config.json").exists)
    pair.processes[1].send_signal(signal.SIGTERM)
    texts = pair.end(130)
    step = saved(tmp_path / "two")[-1]
    assert step < 12
    for text in texts:
        last = f"interrupted; step {step} is saved; run the same command to go on"
        assert text.splitlines()[-1] == last
    assert not (tmp_path / "two" / "export").exists()

    pair = in_two_processes("sft", fields)
    one = in_one_process("sft", fields | {"run_dir": tmp_path / "one"})
    check_output(pair.end())
    assert_same_run(tmp_path / "two", one)

    # What they saved, one process can read.
    copy = shutil.copytree(tmp_path / "two", tmp_path / "copy")
    shutil.rmtree(copy / "export")
    (copy / "eval.json").unlink()
    in_one_process("sft", fields | {"run_dir": copy})
    again, before = (d / "export/model.safetensors" for d in (copy, tmp_path / "two"))
    assert again.read_bytes() == before.read_bytes()


def test_ppo(files, tmp_path, monkeypatch):
    """Parameters split over both processes; only process 0 calls the judge."""
    (tmp_path / "our_judge.py").write_text(JUDGE)
    world = ppo_cases.World(
        *(files / name for name in ("policy", "token", "sequence")),
        *(files / f"{name}.jsonl" for name in ("ppo", "validation")),
    )
    changes = {"judge": "our_judge:judge", "validation_prompts": 16}
    fields = ppo_cases.fields(world, tmp_path / "two", **changes)
    pair = in_two_processes("ppo", fields)
    monkeypatch.syspath_prepend(tmp_path)
    one = in_one_process("ppo", fields | {"run_dir": tmp_path / "one"})
    check_output(pair.end())
    assert_same_run(tmp_path / "two", one)
    assert_close(*(ppo_cases.kept_samples(d) for d in (tmp_path / "two", one)))
    calls = (tmp_path / "our_judge.py.calls").read_text().splitlines()
    assert sorted(calls) == ["0 of 1"] * 3 + ["0 of 2"] * 3


def test_primitives(tmp_path):
    script = tmp_path / "primitives.py"
    script.write_text(PRIMITIVES)
    outputs = Pair([str(script), "127.0.0.1:PORT", "NUMBER"], tmp_path / "output").end()
    for text in outputs:
        lines = [line for line in text.splitlines() if "Gloo" not in line]
        assert lines == [
            "0 True 3.0 1000",
            "None",
            "error: from process 0",
            "None",
            "error: process 1 has words other than those of process 0; start all processes with "
            "the same flags and the same files",
            "2 True",
            "True",
        ]
