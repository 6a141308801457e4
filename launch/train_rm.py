"""Train a reward model.

python -m launch.train_rm --config=configs/rm.py:MODEL[,LOSS] [--config.FIELD=VALUE …]

With no flag at all it makes its own small data and trains tiny,token_edit. The same command on the
same run_dir goes on where it stopped. It writes config.json, metrics.jsonl, checkpoints/, export/
(a Hugging Face folder) and eval.json to run_dir.
"""

import json
from pathlib import Path

from fgrlhf_jax.functional import pair_metrics, reward_losses
from fgrlhf_jax.reward_model import train as reward_loop
from fgrlhf_jax.runtime import run_dir as run_folder
from fgrlhf_jax.tiny_world.words import make_tokenizer
from launch.shared import cli, embedded

CHOICES = {
    "loss": reward_losses.LOSSES,
    "model.head": ("after", "state_action"),
    "model.head_init": ("normal", "zero"),
}
AT_LEAST = {"normalization_pairs": 1, "center_weight": 0, "consistency_weight": 0}


def check(config) -> None:
    """Raises InputError for a value that no data or model could make right."""
    cli.check(config, choices=CHOICES, at_least=AT_LEAST)
    cli.check_supervised(config)


def main(config) -> None:
    check(config)
    if config.distributed:
        cli.connect(config)
    run_folder.check_run(config)
    finished = Path(config.run_dir) / "eval.json"
    if finished.exists():
        print(f"{config.run_dir} is finished; its table again:")
        result = json.loads(finished.read_text())
    elif config.train:
        result = reward_loop.run(config, cli.read_sets(config))
    else:
        cli.check_embedded(config)
        folder = run_folder.lock(config.run_dir)
        sets = embedded.pairs(folder / "data", config.seed)
        result = reward_loop.run(config, sets, make_tokenizer())
    print(pair_metrics.format_table(result))


if __name__ == "__main__":
    cli.command(main, "configs/rm.py:tiny,token_edit", __doc__)
