"""Fine-tune a model on instructions with responses; the loss is on response tokens only.

python -m launch.sft --config=configs/sft.py:MODEL [--config.FIELD=VALUE …]

MODEL is tiny, cad, smollm2, llama_7b, llama_7b_lora or llama3_2_1b.
Without flags, it trains a tiny LLaMA on the embedded world. The same command on the same run_dir
resumes. It writes config.json, metrics.jsonl, checkpoints/, export/ (a Hugging Face folder with its
tokenizer), eval.json and finished.json to run_dir.
"""

from fgrlhf_jax.training import sft
from launch.shared import cli, embedded

CONFIG = "configs/sft.py:tiny"
check = cli.check_run


def main(config) -> None:
    metrics = embedded.train(config, sft.run, "responses", embedded.instructions)["validation"]
    print(
        f"validation: {metrics['n']} demonstrations, loss {metrics['loss']:.4f} nats a token, "
        f"perplexity {metrics['perplexity']:.3f}, greedy token accuracy {metrics['accuracy']:.4f}"
    )


if __name__ == "__main__":
    cli.command(main, CONFIG, __doc__)
