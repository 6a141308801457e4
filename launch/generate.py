"""Responses of a model to a file of prompts.

python -m launch.generate --config.model=FOLDER --config.prompts=FILE --config.output=FILE.json
                          [--config.temperature=0] [--config.FIELD=VALUE …]

Writes a JSON list in the output format of alpaca_eval: instruction, output, generator, and beside
them input, length (tokens), finished and logprob. With no flag at all it answers prompts of the
embedded world, after training a policy there.
"""

import sys

from tqdm import tqdm

from fgrlhf_jax.data import records
from fgrlhf_jax.errors import InputError
from fgrlhf_jax.models import hf_load, language_model
from fgrlhf_jax.runtime.files import write_json
from fgrlhf_jax.tiny_world.datasets import make_instructions
from launch import sft
from launch.shared import cli, embedded

CHOICES = {
    "template": ("", "alpaca", "chat", "plain"),
    "overlong": ("truncate", "drop"),
    "dtype": ("float32", "bfloat16"),
}
AT_LEAST = {
    **dict.fromkeys(("samples", "max_prompt_length", "max_new_tokens", "batch_size"), 1),
    **dict.fromkeys(("temperature", "top_k", "seed", "limit"), 0),
    "top_p": 1e-6,
}
TERMINAL_ROWS = 5


def main(config) -> None:
    cli.check(config, choices=CHOICES, at_least=AT_LEAST)
    if config.top_p > 1:
        raise InputError(f"top_p={config.top_p} must be at most 1")
    output = cli.check_output(config.output, (".json",))
    cli.check_kept([output] if config.output else [], [config.prompts])
    options = config.to_dict()
    for name in ("model", "prompts", "output", "limit"):
        options.pop(name)
    if config.prompts:
        rows = records.read(config.prompts, prompts=True)
    else:
        rows = make_instructions(64, "test", config.seed)
    rows = rows[: config.limit or (len(rows) if config.output else TERMINAL_ROWS)]
    model = config.model or embedded.ensure_trained(sft.main, "configs/sft.py:tiny")
    own = hf_load.learned_template(model)
    options["template"] = config.template or own or "alpaca"
    made = language_model.answer(
        model, rows, **options, progress=lambda batches: tqdm(batches, unit="batch"), say=say
    )
    if own not in ("", options["template"]):
        say(f"template={config.template}, though the model was fine-tuned with {own}")
    if config.output:
        write_json(output, made)
        print(f"{len(made)} responses in {output}")
        return
    for row in made:
        print(f"\n{row['instruction']}\n{row['input']}".rstrip())
        print(f"> {row['output']}{'' if row['finished'] else ' …'}")


def say(text: str) -> None:
    """Beside the responses."""
    print(text, file=sys.stderr)


if __name__ == "__main__":
    cli.command(main, "configs/generate.py", __doc__)
