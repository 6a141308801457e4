"""Train a policy by PPO, RLOO, GRPO or distillation, with a reward per token or per response.

python -m launch.ppo --config=configs/ppo.py:MODEL[,token|sequence] --config.policy=FOLDER
                     --config.reward_model=DIR --config.prompts=FILE [--config.FIELD=VALUE …]

MODEL is tiny, cad, smollm2, llama_7b, llama_7b_lora or llama3_2_1b.
Without flags, it trains an SFT policy and a reward model on the embedded world, and then runs PPO.
The same command on the same run_dir resumes. It writes config.json, metrics.jsonl, samples.jsonl,
checkpoints/, export/ (a Hugging Face folder) and finished.json to run_dir.
"""

from pathlib import Path

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.ppo.train import run
from fgrlhf_jax.runtime import run_dir as run_folder
from fgrlhf_jax.runtime.files import read_jsonl
from launch import sft, train_rm
from launch.shared import cli, embedded, reading

CONFIG = "configs/ppo.py:tiny,token"


def check(config) -> None:
    """Raises InputError for values that are invalid for every data set and model."""
    cli.check_run(config)
    if config.inference_dtype != "float32" and config.model.dtype == "float32":
        raise InputError(
            f"inference_dtype={config.inference_dtype}: would round the reference, which the "
            "policy with model.dtype=float32 is compared with; give "
            "--config.model.dtype=bfloat16 too"
        )
    if config.kl.target and config.kl.horizon < config.rollout_batch_size:
        raise InputError(
            f"kl.horizon={config.kl.horizon:g} is less than the "
            f"rollout_batch_size={config.rollout_batch_size} responses of one step; raise it"
        )
    if config.kl.target and not (config.kl.coef and config.kl.in_reward):
        raise InputError(
            f"kl.target={config.kl.target:g} adapts the KL's coefficient in the reward, and "
            f"kl.coef={config.kl.coef:g}, kl.in_reward={config.kl.in_reward} leave none; give "
            "--config.kl.coef above 0 with kl.in_reward=True, or kl.target=0"
        )
    if bool(config.ptx_weight) != bool(config.ptx_edits):
        raise InputError(
            f"ptx_weight={config.ptx_weight:g} and ptx_edits={config.ptx_edits!r}: imitation needs "
            "a weight above 0 and a file; give both or neither"
        )


def main(config) -> None:
    check(config)
    cli.use_devices(config)
    paths = {name: config[name] for name in ("policy", "prompts")}
    paths["reward_model"] = config.reward_model or config.reward_function
    if any(paths.values()) and not all(paths.values()):
        missing = [name for name, value in paths.items() if not value]
        raise InputError(
            f"{' and '.join(missing)} must be given too: --config.{missing[0]}=… (without "
            f"{', '.join(paths)}, the embedded world is used)"
        )
    if all(paths.values()):
        sets = reading.read_sets(config, config.prompts, "prompts")
    else:
        check_embedded(config)
        loss = "sequence" if config.level == "sequence" else "token_edit"
        config.policy = embedded.ensure_trained(sft.main, "configs/sft.py:tiny", config.mesh)
        spec = f"configs/rm.py:tiny,{loss}"
        config.reward_model = embedded.ensure_trained(train_rm.main, spec, config.mesh)
        run_folder.check_run(config)
        folder = run_folder.lock(config.run_dir)
        sets = embedded.instructions(folder / "data", config.seed, "ppo", 4000, 256)
    edits = reading.read(config, config.ptx_edits, "responses") if config.ptx_edits else []
    folder = run(config, sets["train"], sets["validation"], edits)
    print(summary(folder))


def check_embedded(config) -> None:
    """Raises InputError if a config without paths is not for the embedded world."""
    if config.validation or config.size != "tiny":
        raise InputError(
            "policy, reward_model and prompts are empty; give --config.policy=… and the others "
            "(only tiny trains its own models, and has its own prompts)"
        )


def summary(folder: Path) -> str:
    """A table of the first and the last evaluation."""
    rows = [row for row in read_jsonl(folder / "metrics.jsonl") if "validation/kl" in row]
    names = [name for name in rows[0] if name.startswith("validation/")]
    lines = [f"{'':12}{'step 0':>12}{'step ' + str(rows[-1]['step']):>12}"]
    for name in names:
        label = name.removeprefix("validation/")
        lines.append(f"{label:12}{rows[0][name]:12.3f}{rows[-1][name]:12.3f}")
    return "\n".join(lines)


if __name__ == "__main__":
    cli.command(main, CONFIG, __doc__)
