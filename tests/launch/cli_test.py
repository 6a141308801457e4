"""What commands share: which rows they need, what they write over, how faults end them."""

import errno
import signal
import subprocess
import sys
from unittest import mock

import jax
import processes
import pytest

from fgrlhf_jax.runtime.files import write_jsonl
from fgrlhf_jax.runtime.interrupt import PARENT_PID
from launch import (
    annotate,
    collect_preferences,
    data,
    edit_report,
    evaluate,
    evaluate_rm,
    generate,
    ppo,
    score,
    sft,
)
from launch.shared import cli, config_files

ROWS = [{"instruction": f"say {n}", "dataset": "helpful_base"} for n in range(200)]


@pytest.fixture
def prompts(tmp_path) -> str:
    write_jsonl(tmp_path / "prompts.jsonl", ROWS)
    return str(tmp_path / "prompts.jsonl")


class ReachedError(Exception):
    """With the arguments of the function that a command would go on with."""


@pytest.mark.parametrize(
    ("command", "fields"),
    [
        (generate, "prompts=ROWS output=x.json model=m"),
        (ppo, "prompts=ROWS validation=ROWS policy=p reward_model=r"),
    ],
)
def test_prompts_need_no_output(monkeypatch, prompts, command, fields):
    def reach(*arguments, **_):
        raise ReachedError(*arguments)

    monkeypatch.setattr(generate.hf_load, "encoding_settings", lambda path: {})
    monkeypatch.setattr(generate.LanguageModel, "load", mock.MagicMock())
    monkeypatch.setattr(generate, "generate_responses", reach)
    monkeypatch.setattr(ppo, "run", reach)
    overrides = [f"--config.{each}" for each in fields.replace("ROWS", prompts).split()]
    with pytest.raises(ReachedError) as reached:
        command.main(config_files.parse(["", *overrides], command.CONFIG))
    lists = [argument for argument in reached.value.args if isinstance(argument, list)]
    rows = [row for each in lists for row in each]
    assert {row.instruction for row in rows} == {row["instruction"] for row in ROWS}
    assert {row.output for row in rows} == {""}


@pytest.mark.parametrize("name", ["train", "validation"])
def test_demonstrations_need_one(refused, prompts, tmp_path, name):
    write_jsonl(tmp_path / "good.jsonl", [{"instruction": "say it", "output": "it"}] * 9)
    files = dict.fromkeys(("train", "validation"), tmp_path / "good.jsonl") | {name: prompts}
    message = refused(sft, **files, run_dir=tmp_path / "run")
    assert message.startswith(f"{prompts}:1: misses the field 'output' (it has instr")


@pytest.mark.parametrize(
    ("command", "field"), [(score, "input"), (evaluate_rm, "test"), (generate, "prompts")]
)
def test_what_is_read_is_not_written_over(refused, tmp_path, command, field):
    path = tmp_path / ("rows.jsonl" if command is score else "rows.json")
    path.write_text("[]")
    assert "would overwrite" in refused(command, **{field: path, "output": path})
    assert path.read_text() == "[]"


OUTPUTS = [
    (data, "output", "x.jsonl", {"input": "ROWS", "to": "prompts"}),
    (generate, "output", "x.json", {}),
    (score, "output", "x.html", {"input": "ROWS"}),
    (evaluate_rm, "output", "x.json", {"test": "ROWS"}),
    (edit_report, "output", "x.html", {}),
    (evaluate, "output", "x.annotations.json", {}),
    (evaluate, "output", "x.annotations_2.json", {"outputs": "ROWS,ROWS", "reference": "ROWS"}),
    (collect_preferences, "output", "x.annotations.json", {}),
    (annotate, "export", "x.json", {}),
]


@pytest.mark.parametrize(("command", "field", "name", "fields"), OUTPUTS)
def test_no_command_writes_over_a_file_unless_it_is_told(
    refused, prompts, tmp_path, command, field, name, fields
):
    path = tmp_path / name
    path.write_text("mine")
    fields = {key: value.replace("ROWS", prompts) for key, value in fields.items()}
    suffix = ".jsonl" if command is collect_preferences else path.suffix
    output = tmp_path / f"x{suffix}"
    message = refused(command, **fields, **{field: output})
    assert f"{field}={path}: exists; choose another, or overwrite it with" in message
    assert path.read_text() == "mine"


def test_numbers_are_of_32_bits_whatever_the_shell_has():
    code = "from launch.shared import process; process.begin(); import jax; "
    run = processes.python("-c", f"{code} print(jax.numpy.ones(1, int).dtype)", JAX_ENABLE_X64="1")
    assert run.stdout == "int32\n"


def test_a_stage_whose_pipeline_has_ended_does_not_begin():
    """It may have ended before the kernel was asked to report it."""
    ended = subprocess.Popen(["true"])
    ended.wait()
    code = "from launch.shared import process; process.prepare()"
    result = processes.python("-c", code, **{PARENT_PID: str(ended.pid)})
    assert result.returncode == -signal.SIGINT
    assert result.stderr.splitlines()[-1] == "KeyboardInterrupt"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of\nmemory allocating 9 bytes."),
            "out of memory (RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.); use fewer",
        ),
        (MemoryError("Unable to allocate 9 TiB"), "out of memory (Unable to allocate 9 TiB); use"),
        (OSError(errno.ENOSPC, "No space left"), "No space left; free some space and run"),
        (OSError(errno.EIO, "It broke", "a/b"), "a/b: cannot be used (It broke); give another"),
    ],
)
def test_faults_of_the_machine(refused, monkeypatch, error, message):
    def main(config):
        raise error

    monkeypatch.setattr(score, "main", main)
    assert refused(score).startswith(message)


def test_what_is_no_fault_of_the_users_is_raised(monkeypatch):
    """With its traceback: it is a fault of ours."""

    def main(config):
        raise ValueError("ours")

    monkeypatch.setattr(sys, "argv", ["score"])
    with pytest.raises(ValueError, match="ours"):
        cli.command(main, score.CONFIG, "")
