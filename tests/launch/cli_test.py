"""What commands share: prompts, which need no responses, and demonstrations, which do."""

import subprocess
import sys

import pytest

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.ppo import train as ppo_loop
from fgrlhf_jax.runtime.files import write_jsonl
from launch import evaluate_rm, generate, ppo, score, sft
from launch.shared import cli


def parse(*flags: str, default: str):
    words = [f"--config.{flag}" for flag in flags]
    return cli.parse(["", *words], default)


ROWS = [{"instruction": f"say {n}", "dataset": "helpful_base"} for n in range(200)]


class ReachedError(Exception):
    """With what a command goes on."""


@pytest.fixture
def prompts(tmp_path) -> str:
    write_jsonl(tmp_path / "prompts.jsonl", ROWS)
    return str(tmp_path / "prompts.jsonl")


@pytest.mark.parametrize(
    ("command", "names"),
    [(generate, ["prompts"]), (ppo, ["prompts"]), (ppo, ["prompts", "validation"])],
)
def test_prompts_need_no_output(monkeypatch, prompts, command, names):
    def reach(*given, **_):
        raise ReachedError(*given)

    monkeypatch.setattr(generate.hf_load, "learned_template", lambda path: "")
    monkeypatch.setattr(generate.LanguageModel, "load", lambda path, **_: None)
    monkeypatch.setattr(generate, "generate_responses", reach)
    monkeypatch.setattr(ppo_loop, "run", reach)
    default, *usual = {
        generate: ["configs/generate.py", "output=x.json", "model=m"],
        ppo: ["configs/ppo.py:tiny", "policy=p", "reward_model=r"],
    }[command]
    words = [f"{name}={prompts}" for name in names] + usual
    with pytest.raises(ReachedError) as reached:
        command.main(parse(*words, default=default))
    rows = [row for given in reached.value.args if isinstance(given, list) for row in given]
    assert {row.instruction for row in rows} == {row["instruction"] for row in ROWS}
    assert {row.output for row in rows} == {""}


@pytest.mark.parametrize("name", ["train", "validation"])
def test_demonstrations_need_one(prompts, tmp_path, name):
    given = {"train": f"{tmp_path}/good.jsonl", "validation": f"{tmp_path}/good.jsonl"}
    write_jsonl(given["train"], [{"instruction": "say it", "output": "it"}] * 9)
    words = [f"{key}={path}" for key, path in (given | {name: prompts}).items()]
    config = parse(*words, f"run_dir={tmp_path / 'run'}", default="configs/sft.py:tiny")
    with pytest.raises(InputError) as caught:
        sft.main(config)
    assert str(caught.value).startswith(f"{prompts}:1: misses the field 'output' (it has instr")
    assert not (tmp_path / "run").exists()


def test_nobody_reads_on():
    """As with `| head`: no traceback."""
    words = [sys.executable, "-m", "launch.data", "--config.samples=0"]
    run = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    run.stdout.close()
    with run.stderr:
        said = run.stderr.read().decode()
    assert (run.wait(), said) == (141, "")


@pytest.mark.parametrize(
    ("module", "config", "field"),
    [
        (score, "score", "input"),
        (evaluate_rm, "evaluate_rm", "test"),
        (generate, "generate", "prompts"),
    ],
)
def test_what_is_read_is_not_written_over(tmp_path, module, config, field):
    suffix = ".jsonl" if module is score else ".json"
    path = tmp_path / f"rows{suffix}"
    path.write_text("[]")
    with pytest.raises(InputError, match="would write over"):
        module.main(
            cli.parse(
                ["", f"--config.{field}={path}", f"--config.output={path}"],
                f"configs/{config}.py",
            )
        )
    assert path.read_text() == "[]"
