"""Compare learners on your edits: each starts from the same model and has the same budget.

python -m launch.compare --config.edits=FILE --config.model=FOLDER --config.run_dir=DIR
                         [--config=configs/compare.py:tiny|cad|smollm2|llama_7b]
                         [--config.budget=updates|seconds] [--config.budget_amount=N]
                         [--config.judge=MODULE:FUNCTION] [--config.FIELD=VALUE …]

The arms: SFT on the edits, DPO, dense DPO, PPO with token rewards, SFT followed by PPO. A tenth of
the prompts is held out, half of it for the test. Without a judge, arms are ranked by correction
accuracy on the held-out edits. Without edits, it compares on the embedded world, where all arms
start from a policy that is trained first; the budget does not include that training. The same
command resumes. DIR/report.html recommends an arm; DIR/report.json has it as "recommendation".
"""

from collections.abc import Sequence

import numpy as np
from ml_collections import ConfigDict

from configs import compare
from fgrlhf_jax.data.records import Edit
from fgrlhf_jax.data.templates import encode_prompt, encode_text
from fgrlhf_jax.data.tokenizers import Tokenizer
from fgrlhf_jax.errors import InputError
from fgrlhf_jax.models import hf_load
from fgrlhf_jax.pipeline import datasets
from launch import pipeline
from launch.shared import cli

CONFIG = "configs/compare.py:tiny"
SAMPLE_SIZE = 500  # edits that are tokenized for the lengths, spread over the file
MIN_PROMPTS = 30  # fewer test prompts cause a warning


def check(config: ConfigDict) -> None:
    """Raises InputError if only one of edits and model is given."""
    if bool(config.edits) != bool(config.model):
        missing = "model" if config.edits else "edits"
        raise InputError(
            f"{missing} is empty; give --config.edits=FILE and --config.model=FOLDER, or neither "
            "to use the embedded world"
        )
    if not config.edits and config.imitate.config != "configs/sft.py:tiny":
        raise InputError("edits is empty; give --config.edits=FILE (only tiny has its own)")


def describe(
    config: ConfigDict, edits: Sequence[Edit], tokenizer: Tokenizer, template: str
) -> list[str]:
    """Lines to print before training: lengths, shares of truncated rows, too few test prompts.

    Raises InputError if the template alone exceeds ``max_prompt_length``.
    """
    try:
        encode_prompt(tokenizer, template, edits[0], config.max_prompt_length)
    except InputError as error:
        raise InputError(
            f"{error}, or take the lengths of another kind of model: "
            f"--config=configs/compare.py:{'|'.join(compare.VARIANTS)}"
        ) from error
    sample = edits[:: -(-len(edits) // SAMPLE_SIZE)]
    prompts = np.array([len(encode_prompt(tokenizer, template, edit)[0]) for edit in sample])
    responses = np.array([len(encode_text(tokenizer, edit.edited)) for edit in sample])
    lines = [
        f"{len(edits)} edits; half of the prompts have more than {np.median(prompts):.0f} tokens, "
        f"half of the edited responses more than {np.median(responses):.0f}"
    ]
    for name, lengths, text in (
        ("max_prompt_length", prompts, "prompts are longer, and cut"),
        ("max_new_tokens", responses, "edited responses are longer than what will be sampled"),
    ):
        if (longer := np.mean(lengths > config[name])) > 0.1:
            lines.append(f"{name}={config[name]}: {100 * longer:.0f} % of the {text}")
    distinct = len(datasets.distinct_prompts(edits))
    held_out = config.files.test or config.files.edits_validation
    if not held_out and (few := round(distinct / 20)) < MIN_PROMPTS:
        lines.append(
            f"of {distinct} prompts about {few} are held out for the report, too few to show much; "
            "give --config.files.test=FILE of prompts, which need no responses"
        )
    return lines


def main(config: ConfigDict) -> None:
    check(config)
    template = config.template
    if config.model:
        hf_load.check_language_model(config.model)
        tokenizer = hf_load.load_tokenizer(config.model)
        template = hf_load.resolve_template(config.model, tokenizer, template)
        edits = datasets.read_kind(Edit, config.edits)
        print("\n".join(describe(config, edits, tokenizer, template)))
    pipeline.main(compare.to_study(config, template))


if __name__ == "__main__":
    cli.command(main, CONFIG, __doc__)
