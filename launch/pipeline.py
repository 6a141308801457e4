"""Run the whole method: supervised fine-tuning, feedback, reward models, PPO, win rates, a report.

python -m launch.pipeline [--config=configs/pipeline.py:tiny|study|cad|smollm2|llama_7b]
                          [--config.run_dir=DIR] [--config.seeds=N] [--config.FIELD=VALUE …]

Flags of the commands that it runs:
  --config.ppo.flags=steps=20,kl.coef=0.1   of launch.ppo; likewise sft, rm, imitate and dpo
  --config.arms.oracle.flags=steps=20       of one arm; these override ppo.flags
Both override the defaults in this config (ppo.defaults, arms.oracle.defaults).

Your own arm, in addition to those of configs/pipeline.py:
  --config.arms.mine.learner=dpo --config.arms.mine.flags=beta=0.3 --config.run_arms=sft_edits,mine

Every stage is a separate command; stages exchange files in run_dir. The same command resumes and
skips finished stages. run_dir/logs has the output of each stage. At the end it writes report.json,
report.md and report.html.
"""

import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import jax
from ml_collections import ConfigDict

from configs.arms import ARMS
from fgrlhf_jax.errors import InputError
from fgrlhf_jax.pipeline import arms, commands, stages, tasks
from fgrlhf_jax.pipeline.results import gather
from fgrlhf_jax.pipeline.stages import Stage
from fgrlhf_jax.report.content import build_report, to_json
from fgrlhf_jax.report.markdown import to_markdown
from fgrlhf_jax.report.page import to_html
from fgrlhf_jax.runtime import run_dir as run_folder
from fgrlhf_jax.runtime import user_function, versions
from fgrlhf_jax.runtime.files import read_json, write_text
from launch.shared import budget, cli, stage_checks

CONFIG = "configs/pipeline.py:tiny"


def check(config: ConfigDict) -> None:
    """Raises InputError for invalid or contradictory values."""
    cli.check_run_dir(config)
    names = arms.select(config)
    own_arms = config.arms.keys() - ARMS.keys()
    if unused := sorted(own_arms.difference(names)):
        raise InputError(f"arms.{unused[0]}: is not trained; add it to run_arms={config.run_arms}")
    cli.check_adapters(config)
    files = [name for name, value in config.files.items() if value]
    if config.embedded and files:
        raise InputError(
            f"files.{files[0]} is given to a config of the embedded world; use pipeline.py:cad"
        )
    if not config.files.edits and not config.embedded:
        raise InputError("files.edits is empty; give --config.files.edits=…")
    if config.judge and user_function.accepts(user_function.load(config.judge), "tokens"):
        raise InputError(
            f"judge={config.judge}: takes tokens, which are not stored for the test prompts; let "
            "it take prompts, responses and finished"
        )


def check_folder(config: ConfigDict, folder: Path, planned: Sequence[Stage]) -> None:
    """Raises InputError if a finished stage had other settings; names the changed fields."""
    if not [*folder.glob("stages/*.json")]:
        run_folder.check_run(config)  # the folder may hold another run
        return
    remedy = "put back a copy of it, or choose another run_dir"
    saved = run_folder.flatten(read_json(folder / "config.json", {}, remedy))
    values = run_folder.config_values(config).items()
    current = {name: value for name, value in values if name in saved}
    differing = run_folder.differing_fields(saved, saved | current)
    try:
        stages.find_done(planned, folder)
    except InputError as error:
        raise InputError(f"{differing}: {error}" if differing else str(error)) from error


def write_report(config: ConfigDict, folder: Path, planned: Sequence[Stage], seconds: float) -> str:
    """Writes report.json, report.md and report.html; returns the text of report.md."""
    names = arms.select(config)
    labels = {arms.BASE: "The model as it is" if config.model else "SFT"}
    labels |= arms.selected(config, "arms", names)
    study = gather(config, folder, labels, arms.selected(config, "reward_models", names))
    study["seconds"] = stages.seconds(planned, folder)
    training = stages.training_seconds(planned, folder)
    for name, arm in study["arms"].items():
        arm["oracle"] = name in config.arms and config.arms[name].reward == arms.ORACLE
        for seed, run in enumerate(arm["runs"]):
            run["seconds"] = training.get(f"seed_{seed}/{name}")
    study["commands"] = {stage.name: stage.shell_command() for stage in planned}
    study["about"] |= {
        "Command": shlex.join(["python", "-m", f"launch.{Path(sys.argv[0]).stem}", *sys.argv[1:]]),
        "Duration": f"{sum(study['seconds'].values()):.0f} s of stages; this call {seconds:.0f} s",
        "Versions": versions.describe_versions(),
        "Commit": versions.describe_commit() or "not a checkout",
    }
    report = build_report(study)
    text = to_markdown(report)
    write_text(folder / "report.json", to_json(report))
    write_text(folder / "report.md", text)
    write_text(folder / "report.html", to_html(report))
    return text


def main(config: ConfigDict) -> None:
    if config.task:
        if config.task.startswith(("answers", "tables")):
            cli.use_devices()
        tasks.run_task(config)
        return
    check(config)
    jax.config.update("jax_platforms", "cpu")  # leave the accelerators to the stages
    started = time.perf_counter()
    planned = commands.build_stages(config, Path(config.run_dir))
    stage_checks.check_commands(planned)
    stage_checks.check_data(config, planned)
    planned = budget.limit_stages(config, planned)
    folder = Path(config.run_dir)
    check_folder(config, folder, planned)
    run_folder.lock(folder)
    run_folder.write_config(folder, config)
    print(f"{len(planned)} stages; their output is in {folder / 'logs'}")
    stages.run(planned, folder, workers=config.workers)
    seconds = time.perf_counter() - started
    text = write_report(config, folder, planned, seconds)
    # The conclusion and Table 1, without Markdown escapes.
    print("\n## ".join(text.split("\n## ")[:2]).replace("\\", ""))
    print(f"{seconds:.0f} s; the report is in {folder / 'report.html'}")


if __name__ == "__main__":
    cli.command(main, CONFIG, __doc__)
