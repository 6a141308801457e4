r"""The table of a reward model on any file of pairs.

python -m launch.evaluate_rm --config.reward_model=DIR --config.test=FILE \
                             [--config.output=FILE.json]
"""

from fgrlhf_jax.data import records
from fgrlhf_jax.data.bucketing import make_buckets
from fgrlhf_jax.functional import pair_metrics
from fgrlhf_jax.reward_model import scorer as reward_eval
from fgrlhf_jax.runtime.files import write_json
from launch.shared import cli

CONFIG = "configs/evaluate_rm.py"


def main(config) -> None:
    output = cli.check_output(config.output, (".json",))
    cli.check_kept([output] if config.output else [], [config.test])
    rows = records.read(config.test)
    scorer = reward_eval.load(config.reward_model, mesh=config.mesh, dtype=config.dtype)
    data = scorer.meta.data | {"overlong": config.overlong}
    data["max_length"] = reward_eval.length_limit(scorer, config.max_length)
    pairs = reward_eval.encode(rows, config.test, scorer.tokenizer, data)
    buckets = make_buckets(data["max_length"])
    predict = reward_eval.Predictor(
        scorer.model, scorer.meta.settings, scorer.mesh, buckets, config.batch_size
    )
    result = {"test": reward_eval.tables(predict, scorer, pairs, rows)}
    print(pair_metrics.format_table(result))
    if config.output:
        write_json(output, result)


if __name__ == "__main__":
    cli.command(main, CONFIG, __doc__)
