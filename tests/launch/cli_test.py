"""What commands share: flags for those of a pipeline, in the dicts that are open and nowhere else;
files of prompts, which need no responses, and of demonstrations, which do."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from fgrlhf_jax.data import records
from fgrlhf_jax.errors import InputError
from fgrlhf_jax.models import language_model
from fgrlhf_jax.ppo import train as ppo_loop
from launch import evaluate_rm, generate, pipeline, ppo, score, sft
from launch.shared import cli

DEFAULT = "configs/pipeline.py:tiny"


def parse(*flags: str, open_dicts=pipeline.FLAGS, default: str = DEFAULT):
    words = [f"--config.{flag}" for flag in flags]
    return cli.parse(["", *words], default, open_dicts)


def refused(*flags: str, **options) -> str:
    with pytest.raises(InputError) as caught:
        parse(*flags, **options)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("40", 40),
        ("-1", -1),
        ("0.2", 0.2),
        ("1e-3", 1e-3),
        ("True", True),
        ("plain", "plain"),
        ("", ""),
        ("a=b,c", "a=b,c"),
        ("[1]", "[1]"),
        ("None", "None"),
        ("007", "007"),
    ],
)
def test_a_new_key_has_the_type_of_its_literal(text, value):
    flags = parse(f"ppo.flags.new={text}").ppo.flags
    assert flags.to_dict() == {"eval_every": 5, "new": value}
    assert type(flags.new) is type(value)


def test_dots_are_the_keys_own():
    config = parse("ppo.flags.kl.coef=1", "ppo.flags.kl.coef=0.2", "arms.oracle.lam=0.9")
    assert config.ppo.flags.kl__coef == 0.2  # the last one, of whatever type
    assert config.arms.oracle.to_dict() == {"kl__coef": 0.03, "lam": 0.9}
    config = parse("sft.flags.data.max_length=40", "sft.flags.data__max_prompt_length=20")
    assert config.sft.flags.data__max_length == 40  # which the config has already
    assert config.sft.flags.data__max_prompt_length == 20
    assert config.is_locked
    with pytest.raises(AttributeError):
        config.ppo.flags.other = 1


@pytest.mark.parametrize(
    ("flag", "says"),
    [
        ("new=1", "--config.new: there is no such field"),
        ("sft.new=1", "--config.sft.new: there is no such field"),
        (
            "ppo.flag.steps=1",
            "--config.ppo.flag.steps: there is no such field; did you mean ppo.flags.steps?",
        ),
        ("arms.oracel.steps=1", "did you mean arms.oracle.steps?"),
        ("arms.sft_edits.steps=1", "--config.arms.sft_edits.steps: there is no such field"),
        ("ppo.flags.new", "--config.ppo.flags.new: there is no such field"),
        ("ppo.flags.eval_every=often", "eval_every"),
    ],
)
def test_everything_else_is_refused(flag, says):
    assert says in refused(flag)


def test_open_are_the_dicts_that_the_command_names():
    assert "no such field" in refused("ppo.flags.new=1", open_dicts=())
    assert "no such field" in refused("ppo.flags.new=1", open_dicts=("ppo.flag",))
    assert "no such field" in refused("ppo.flags.new=1", default="configs/sft.py:tiny")


def test_help_names_them(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["pipeline", "--help", "--config.ppo.flags.new=1"])
    cli.command(pipeline.main, DEFAULT, "doc", pipeline.FLAGS)
    lines = capsys.readouterr().out.splitlines()
    assert "  --config.ppo.flags.new=1" in lines
    assert "  --config.arms.oracle.FIELD=VALUE" in lines


def words(config, name: str) -> tuple[str, ...]:
    made = pipeline.make_stages(config, Path("run"))
    pipeline.check_flags(made)
    (stage,) = [stage for stage in made if stage.name == name]
    return stage.command


def test_they_reach_their_command():
    config = parse("arms.oracle.steps=40", "ppo.flags.gamma=0.9", "rm.flags.batch_size=16")
    assert {"--config.steps=40", "--config.gamma=0.9"} <= {*words(config, "seed_0/oracle")}
    other = words(config, "seed_0/fine_grained")
    assert "--config.gamma=0.9" in other
    assert "--config.steps=40" not in other
    assert "--config.batch_size=16" in words(config, "seed_0/rm_edits")


@pytest.mark.parametrize(
    ("flag", "says"),
    [
        (
            "ppo.flags.kl.coeff",
            "stage seed_0/ppo_rlhf: --config.kl.coeff: there is no such field",
        ),
        ("arms.oracle.stepps", "stage seed_0/oracle: --config.stepps: there is no such field"),
        ("sft.flags.optimiser.eps", "did you mean optimizer.eps?"),
        ("imitate.flags.batch_sise", "stage seed_0/sft_edits: --config.batch_sise"),
        ("rm.flags.center_wieght", "did you mean center_weight?"),
        ("ppo.flags.critic", "critic='1' is not one of separate, shared"),
        ("sft.flags.select", "stage sft: select='1' is not one of loss, accuracy"),
        ("rm.flags.calibration_pairs", "stage seed_0/rm_preferences: "),
    ],
)
def test_a_misspelt_flag_is_found_before_anything_runs(monkeypatch, tmp_path, flag, says):
    monkeypatch.delattr(pipeline.stages, "run")
    value = "-1" if "pairs" in flag else "1"
    config = parse(f"{flag}={value}", f"run_dir={tmp_path / 'run'}")
    with pytest.raises(InputError, match=re.escape(says)):
        pipeline.main(config)
    assert list(tmp_path.iterdir()) == []


def test_the_command_itself(tmp_path):
    flags = [f"--config.run_dir={tmp_path / 'run'}", "--config.ppo.flags.kl.coeff=0.2"]
    ended = subprocess.run(
        [sys.executable, "-m", "launch.pipeline", *flags],
        cwd=cli.ROOT,
        capture_output=True,
        text=True,
    )
    assert (ended.returncode, ended.stderr) == (
        2,
        "error: stage seed_0/ppo_rlhf: --config.kl.coeff: there is no such field; "
        "did you mean kl.coef?\n",
    )
    assert list(tmp_path.iterdir()) == []


# --- files of prompts, and of demonstrations ---------------------------------------------------

ROWS = [{"instruction": f"say {n}", "dataset": "helpful_base"} for n in range(200)]


class ReachedError(Exception):
    """With what a command goes on."""


@pytest.fixture
def prompts(tmp_path) -> str:
    records.write_jsonl(tmp_path / "prompts.jsonl", ROWS)
    return str(tmp_path / "prompts.jsonl")


@pytest.mark.parametrize(
    ("command", "names"),
    [(generate, ["prompts"]), (ppo, ["prompts"]), (ppo, ["prompts", "validation"])],
)
def test_prompts_need_no_output(monkeypatch, prompts, command, names):
    def reach(*given, **_):
        raise ReachedError(*given)

    monkeypatch.setattr(generate.hf_load, "learned_template", lambda path: "")
    monkeypatch.setattr(language_model, "answer", reach)
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
    records.write_jsonl(given["train"], [{"instruction": "say it", "output": "it"}] * 9)
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
