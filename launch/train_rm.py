"""Train a reward model on edits or preferences.

python -m launch.train_rm --config=configs/rm.py:MODEL[,LOSS] [--config.FIELD=VALUE …]

MODEL is tiny, cad, smollm2, llama_7b, llama_7b_lora or llama3_2_1b.
Without flags, it trains tiny,token_edit on the embedded world. The same command on the same run_dir
resumes. It writes config.json, metrics.jsonl, checkpoints/, export/ (a Hugging Face folder),
eval.json and finished.json to run_dir.
"""

from fgrlhf_jax.functional import pair_metrics
from fgrlhf_jax.reward_model import train
from launch.shared import cli, embedded

CONFIG = "configs/rm.py:tiny,token_edit"
check = cli.check_run


def main(config) -> None:
    print(pair_metrics.format_table(embedded.train(config, train.run, "pairs", embedded.pairs)))


if __name__ == "__main__":
    cli.command(main, CONFIG, __doc__)
