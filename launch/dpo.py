"""Learn from edits or preferences without a reward model: DPO, dense DPO, SALT, FIGA.

python -m launch.dpo --config=configs/dpo.py:MODEL[,dpo|ddpo|salt|figa] --config.policy=FOLDER
                     --config.train=FILE [--config.FIELD=VALUE …]

MODEL is tiny, cad, smollm2, llama_7b, llama_7b_lora or llama3_2_1b.
Without flags, it trains a policy by SFT on the embedded world and then tiny,dpo. The same command
on the same run_dir resumes. It writes config.json, metrics.jsonl, checkpoints/, export/ (a Hugging
Face folder with its tokenizer), eval.json and finished.json to run_dir.
"""

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.training import dpo
from launch import sft
from launch.shared import cli, embedded

CONFIG = "configs/dpo.py:tiny,dpo"


def check(config) -> None:
    """Raises InputError for values that are invalid for every data set and model."""
    cli.check_run(config)
    if config.train and not config.policy:
        raise InputError("policy is empty; give --config.policy=FOLDER|HUB_ID, as of launch.sft")


def main(config) -> None:
    check(config)
    if not config.policy:
        cli.use_devices(config)
        config.policy = embedded.ensure_trained(sft.main, "configs/sft.py:tiny", config.mesh)
    result = embedded.train(config, dpo.run, "pairs", embedded.pairs)["validation"]
    print(
        f"validation: {result['n']} pairs, loss {result['loss']:.4f}, the better response is "
        f"preferred in {result['accuracy']:.4f}"
    )


if __name__ == "__main__":
    cli.command(main, CONFIG, __doc__)
