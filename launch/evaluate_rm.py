r"""Evaluate a reward model on a file of edits or preferences and print a table.

python -m launch.evaluate_rm --config.reward_model=DIR --config.test=FILE \
                             [--config.output=FILE.json]
"""

from fgrlhf_jax.functional import pair_metrics
from fgrlhf_jax.reward_model.scorer import RewardModel
from fgrlhf_jax.reward_model.train import evaluate
from fgrlhf_jax.runtime.files import write_json
from launch.shared import cli, embedded, reading

CONFIG = "configs/evaluate_rm.py"


def main(config) -> None:
    output = cli.check_output(config, (".json",), [config.test])
    embedded.check_embedded_exists(config, "reward_model", "test")
    rows = reading.read(config, config.test, "pairs")
    cli.use_devices()
    options = {name: config[name] for name in ("mesh", "dtype", "ensemble_penalty")}
    reward_model = RewardModel.load(config.reward_model, **options)
    tables = evaluate(
        reward_model,
        {config.test: rows},
        batch_size=config.batch_size,
        overlong=config.overlong,
        max_length=reward_model.length_limit(config.max_length),
    )
    result = {"test": tables[config.test]}
    print(pair_metrics.format_table(result))
    if config.output:
        write_json(output, result)


if __name__ == "__main__":
    cli.command(main, CONFIG, __doc__)
