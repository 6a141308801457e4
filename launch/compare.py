"""Which learner for your edits? Every learner on one file, from one model, on one budget.

python -m launch.compare --config.edits=FILE --config.model=FOLDER --config.run_dir=DIR
                         [--config=configs/compare.py:tiny|cad|smollm2|llama_7b]
                         [--config.budget=updates|seconds] [--config.budget_amount=N]
                         [--config.judge=MODULE:FUNCTION] [--config.FIELD=VALUE …]

SFT on the edits, DPO and dense DPO, PPO with token rewards, and SFT followed by PPO, each from the
model as it is. A tenth of the prompts is held out; half of these judge. Without a judge it is
correction accuracy on the held-out edits that does. With no edits it is done on the embedded world.
The same command goes on where it stopped. DIR/report.html says which arm to take and why;
DIR/report.json has it as "recommendation".
"""

from ml_collections import ConfigDict

from configs import compare
from fgrlhf_jax.errors import InputError
from fgrlhf_jax.models import hf_load
from launch import pipeline
from launch.shared import cli

CONFIG = "configs/compare.py:tiny"


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


def main(config: ConfigDict) -> None:
    check(config)
    template = config.template
    if config.model:
        hf_load.check_language_model(config.model)
        tokenizer = hf_load.load_tokenizer(config.model)
        template = hf_load.resolve_template(config.model, tokenizer, template)
    pipeline.main(compare.to_study(config, template))


if __name__ == "__main__":
    cli.command(main, CONFIG, __doc__)
