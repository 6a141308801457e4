"""Which learner for your edits? Every learner on one file, from one model, on one budget.

python -m launch.compare --config.edits=FILE --config.model=FOLDER --config.run_dir=DIR
                         [--config=configs/compare.py:tiny|cad|smollm2|llama_7b]
                         [--config.budget=updates|seconds] [--config.budget_amount=N]
                         [--config.judge=MODULE:FUNCTION] [--config.FIELD=VALUE …]

SFT on the edits, DPO and dense DPO, PPO with token rewards, and SFT followed by PPO, each from the
model as it is. A tenth of the prompts is held out; half of these judge. Without a judge it is
correction accuracy on the held-out edits that does. With no edits it is done on the embedded world,
where all arms start from a policy that is trained first, in full: the budget is that of the arms.
The same command goes on where it stopped. DIR/report.html says which arm to take and why;
DIR/report.json has it as "recommendation".
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
LOOKED_AT = 500  # edits, spread over the file
FEW = 30  # test prompts


def check(config: ConfigDict) -> None:
    """Raises InputError where edits or the model are missing."""
    if bool(config.edits) != bool(config.model):
        missing = "model" if config.edits else "edits"
        raise InputError(
            f"{missing} is empty; give --config.edits=FILE and --config.model=FOLDER, or neither: "
            "then everything is of the embedded world"
        )
    if not config.edits and config.imitate.config != "configs/sft.py:tiny":
        raise InputError("edits is empty; give --config.edits=FILE (only tiny has its own)")


def describe(
    config: ConfigDict, edits: Sequence[Edit], tokenizer: Tokenizer, template: str
) -> list[str]:
    """Lines to read before hours of training: what is cut, and how few prompts judge.

    Raises InputError where the template alone is longer than a prompt may be.
    """
    try:
        encode_prompt(tokenizer, template, edits[0], config.max_prompt_length)
    except InputError as error:
        raise InputError(
            f"{error}, or take the lengths of another kind of model: "
            f"--config=configs/compare.py:{'|'.join(compare.VARIANTS)}"
        ) from error
    some = edits[:: -(-len(edits) // LOOKED_AT)]
    prompts = np.array([len(encode_prompt(tokenizer, template, edit)[0]) for edit in some])
    responses = np.array([len(encode_text(tokenizer, edit.edited)) for edit in some])
    lines = [
        f"{len(edits)} edits; half of the prompts have more than {np.median(prompts):.0f} tokens, "
        f"half of the edited responses more than {np.median(responses):.0f}"
    ]
    for name, lengths, what in (
        ("max_prompt_length", prompts, "prompts are longer, and cut"),
        ("max_new_tokens", responses, "edited responses are longer than what will be sampled"),
    ):
        if (longer := np.mean(lengths > config[name])) > 0.1:
            lines.append(f"{name}={config[name]}: {100 * longer:.0f} % of the {what}")
    distinct = len(datasets.distinct_prompts(edits))
    held_out = config.files.test or config.files.edits_validation
    if not held_out and (few := round(distinct / 20)) < FEW:
        lines.append(
            f"of {distinct} prompts about {few} will judge, too few to show much; give "
            "--config.files.test=FILE of prompts, which need no responses"
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
