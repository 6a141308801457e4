"""Train a reward model.

python -m launch.train_rm --config=configs/rm.py:MODEL[,LOSS] [--config.FIELD=VALUE …]

With no flag at all it makes its own small data and trains tiny,token_edit. The same command on the
same run_dir goes on where it stopped. It writes config.json, metrics.jsonl, checkpoints/, export/
(a Hugging Face folder) and eval.json to run_dir.
"""

import json
from pathlib import Path

from fgrlhf_jax.functional import pair_metrics
from fgrlhf_jax.reward_model import train
from fgrlhf_jax.runtime import run_dir as run_folder
from fgrlhf_jax.tiny_world.words import make_tokenizer
from launch.shared import cli, embedded, reading

CONFIG = "configs/rm.py:tiny,token_edit"


def check(config) -> None:
    """Raises InputError for a value that no data or model could make right."""
    cli.check_run(config)


def main(config) -> None:
    check(config)
    cli.use_devices(config)
    run_folder.check_run(config)
    folder = Path(config.run_dir)
    if run_folder.read_finished(folder):
        print(f"{config.run_dir} is finished; its table again:")
        result = json.loads((folder / "eval.json").read_bytes())
    elif config.train:
        result = train.run(config, reading.read_sets(config, config.train, "pairs"))
    else:
        cli.check_embedded(config)
        run_folder.lock(config.run_dir)
        sets = embedded.pairs(folder / "data", config.seed)
        result = train.run(config, sets, make_tokenizer())
    print(pair_metrics.format_table(result))


if __name__ == "__main__":
    cli.command(main, CONFIG, __doc__)
