"""Supervised fine-tuning on instructions, the loss on the response only.

python -m launch.sft --config=configs/sft.py:MODEL [--config.FIELD=VALUE …]

With no flag at all it trains a tiny LLaMA on the embedded world. The same command on the same
run_dir goes on where it stopped. It writes config.json, metrics.jsonl, checkpoints/, export/ (a
Hugging Face folder with its tokenizer) and eval.json to run_dir.
"""

import json
from pathlib import Path

from fgrlhf_jax.runtime import run_dir as run_folder
from fgrlhf_jax.tiny_world.words import make_tokenizer
from fgrlhf_jax.training import sft
from launch.shared import cli, embedded, reading

CONFIG = "configs/sft.py:tiny"


def check(config) -> None:
    """Raises InputError for a value that no data or model could make right."""
    cli.check_run(config)


def main(config) -> None:
    check(config)
    cli.use_devices(config)
    run_folder.check_run(config)
    folder = Path(config.run_dir)
    if run_folder.read_finished(folder):
        print(f"{config.run_dir} is finished; its figures again:")
        result = json.loads((folder / "eval.json").read_bytes())
    elif config.train:
        result = sft.run(config, reading.read_sets(config, config.train, "responses"))
    else:
        cli.check_embedded(config)
        run_folder.lock(config.run_dir)
        sets = embedded.instructions(folder / "data", config.seed)
        result = sft.run(config, sets, make_tokenizer())
    metrics = result["validation"]
    print(
        f"validation: {metrics['n']} demonstrations, loss {metrics['loss']:.4f} nats a token, "
        f"perplexity {metrics['perplexity']:.3f}, greedy token accuracy {metrics['accuracy']:.4f}"
    )


if __name__ == "__main__":
    cli.command(main, CONFIG, __doc__)
