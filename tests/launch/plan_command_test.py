"""``launch.plan``: what it refuses, what it writes, and what it prints of a run that never fits."""

import json
import re
import sys
from itertools import chain
from pathlib import Path

import processes
import pytest
import tiny_cases

from fgrlhf_jax.plan.memory import format_advice, format_table
from launch import plan as command
from launch.shared import process

pytestmark = pytest.mark.slow

BAD = {
    "--mesh=2,2": "mesh='2,2': give data,fsdp,tensor as three sizes whose product is the",
    "--config.minibatch_size=20": "micro_batch_size=20 does not divide over data x fsdp = 8 dev",
    "--config.minibatch_size=16 --config.rollout_batch_size=72": "rollout_batch_size=72 is not a",
    "--config.policy=org/model": "org/model: is no local folder or .gguf file, and a plan",
    "--devices=0": "--devices=0: must be at least 1",
    "--devices=100000": "--devices=100000: must be at most 4096",
    "--memory=80GB": "--memory=80GB: must be a number",
    "--json": "--json=: give a value",
    "--memory=nan": "--memory=nan: must be finite",
    "-memory -5": "--memory=-5: must be at least 0.0001",
    "--device=h1000": "--device=h1000: is not one of h200, h100, a100, v5p, v5e, v6e",
    "--efficiency=1.5": "--efficiency=1.5: must be at most 1",
    "--lengths=org/texts": "--lengths=org/texts: tokenizing texts needs a model; give --c",
    "--json=plan.json": "exists; choose another, or overwrite it with --overwrite",
    "--json=nowhere/plan.json": "--json=nowhere/plan.json: the folder nowhere does not exist",
}


@pytest.mark.parametrize("argument", BAD)
def test_bad_input_is_one_sentence(argument, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plan.json").touch()
    monkeypatch.setattr(command, "use_virtual_devices", lambda devices: None)
    monkeypatch.setattr(process, "prepare", lambda: None)
    monkeypatch.setattr(sys, "argv", ["plan", "--config=configs/ppo.py:tiny", *argument.split()])
    with pytest.raises(SystemExit) as stopped:
        command.command()
    err = capsys.readouterr().err
    assert stopped.value.code == 2
    assert re.fullmatch(r"error: [^\n]+\n", err)
    assert BAD[argument] in err


def test_the_json_has_the_documented_keys(tmp_path, monkeypatch):
    tiny_cases.one_device(monkeypatch)
    monkeypatch.setattr(command, "use_virtual_devices", lambda devices: None)
    monkeypatch.setattr(process, "prepare", lambda: None)
    arguments = ["--config=configs/ppo.py:tiny,token", "--devices=1", f"--json={tmp_path / 'plan'}"]
    monkeypatch.setattr(sys, "argv", ["plan", *arguments])
    command.command()  # any exit status but 0 would be an exception
    plan = json.loads((tmp_path / "plan").read_text())
    table = Path("docs/scaling.md").read_text().split("| key | contents |\n|---|---|\n")[1]
    cells = [line.split("|")[1:3] for line in table.split("\n\n")[0].splitlines()]
    documented = [[re.findall("`(.+?)`", cell) for cell in row] for row in cells]
    assert {*chain(*(keys for keys, _ in documented))} == plan.keys()
    parts = {keys[0]: {*contents} for keys, contents in documented}
    roof = plan["roofline"]
    assert roof["stages"].keys() == {"prefill", "decode", "score_rollout", "update"}
    assert all(step.keys() == parts["steps"] for step in plan["steps"].values())
    assert all(parts["roofline"] == roof.keys() | stage.keys() for stage in roof["stages"].values())
    assert (plan["fits"], plan["change"]) == (True, None)


def test_the_command(tmp_path):
    """As many devices as asked for, whatever the environment says; models that never fit."""
    output = tmp_path / "plan.json"
    arguments = ["--config", "configs/rm.py:tiny", "--devices", "4", "--mesh=1,-1,2"]
    arguments += ["--memory=0.0001", f"--json={output}", "--config.data.max_length=64"]
    arguments += ["--config.model.remat=True", "--config.model.dtype=bfloat16"]  # little to try
    environment = {"JAX_PLATFORMS": "", "JAX_NUM_CPU_DEVICES": "2"}
    done = processes.python("-m", "launch.plan", *arguments, **environment)
    assert (done.returncode, done.stderr) == (1, "")  # nothing is compiled
    plan = json.loads(output.read_text())
    assert done.stdout == f"{format_table(plan)}\n{format_advice(None, 1e5)}\n"
    assert plan["mesh"] == {"data": 1, "fsdp": 2, "tensor": 2}
    assert (plan["devices"], plan["change"], plan["fits"]) == (4, None, False)
