r"""Label pairs of responses with a judge; launch.train_rm learns from the preferences.

python -m launch.collect_preferences --config.input=FILE --config.output=FILE.jsonl \
    --config.judge=llm --config.provider=anthropic|openai|local --config.model=NAME [--dry-run]
python -m launch.collect_preferences … --config.judge=MODULE:FUNCTION

FILE holds two responses per row (output_1 and output_2; labels are ignored) or several rows per
prompt, as launch.generate writes with samples=2. label_noise flips a share of the labels, as
AlpacaFarm's simulated annotators do. However a run ends, the same command resumes it: no reply that
arrived is lost or requested again. Without flags, it labels pairs of the embedded world.
"""

from collections import Counter

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.feedback.judges import alpaca_eval, pairs
from fgrlhf_jax.feedback.judges.alpaca_eval import Comparison
from fgrlhf_jax.feedback.judges.judge import make_labels
from fgrlhf_jax.runtime.files import write_jsonl
from fgrlhf_jax.tiny_world.datasets import make_feedback
from launch.shared import cli, judging, llm, reading

CONFIG = "configs/collect_preferences.py"


def main(config) -> None:
    annotations = judging.annotations_path(config.output)
    output = cli.check_output(config, (".jsonl",), [config.input], extra=[annotations])
    judge = judging.check(config, has_files=bool(config.input))
    rows, left_out = read(config)
    judged = judging.judge_pairs(config, rows[: config.limit or None], judge)
    if judged is None:  # a dry run
        return
    if config.output:
        alpaca_eval.write(annotations, judged)
        print(f"annotations: {annotations}")
    judging.print_unparsed(judged)
    labels, counts = make_labels(
        judged, noise=config.label_noise, draws=config.draws, seed=config.seed
    )
    report(config, judged, len(labels), counts, left_out)
    if not labels:
        raise InputError(
            f"none of {len(judged)} pairs has a label; set draws=random to keep the draws, or see "
            "the judge's replies in the annotations"
        )
    if config.output:
        write_jsonl(output, labels)
        print(
            f"{output}\nnext: python -m launch.train_rm --config=configs/rm.py:smollm2,sequence "
            f"--config.model.path=MODEL --config.train={output}"
        )


def read(config) -> tuple[list[Comparison], Counter]:
    """Reads the pairs; also returns counts of left-out rows by reason."""
    if config.input:
        rows = reading.read_with_rows(config, config.input, "candidates")
        return pairs.pair_responses(pairs.Responses(config.input, rows))
    _, rows = make_feedback(judging.EMBEDDED_ROWS, config.seed)
    texts = ((row.instruction, row.input, row.output_1, row.output_2) for row in rows)
    return [Comparison(*row) for row in texts], Counter()


def report(config, judged: list[Comparison], labels: int, counts: Counter, left_out: Counter):
    """Prints counts of labels, draws and left-out rows, and which side is preferred."""
    for reason, count in left_out.items():
        if count:
            print(f"left out: {count} {reason}")
    draws = "kept at random" if config.draws == "random" else "dropped"
    print(
        f"{labels} preferences of {len(judged)} pairs; {counts['draws']} draws {draws}, "
        f"{counts['unparsed']} unparsed, {counts['flipped']} labels flipped "
        f"(label_noise={config.label_noise:g})"
    )
    first_shown, verdicts = alpaca_eval.position_bias(judged)
    if first_shown is not None:
        print(f"shown first: won {first_shown:.1f} % of {verdicts} verdicts for one response")
    decided = [row.preference > 1.5 for row in judged if row.preference not in (None, 1.5)]
    if decided:
        second = 100 * sum(decided) / len(decided)
        print(f"the judge prefers the second response in {second:.1f} % of {len(decided)}")


if __name__ == "__main__":
    llm.command(main, CONFIG, __doc__)
