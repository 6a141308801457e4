r"""Measure the win rate of a model's responses against a reference's, by a judge's verdicts.

python -m launch.evaluate --config.outputs=A.json[,C.json] --config.reference=B.json \
    --config.judge=llm --config.provider=anthropic|openai|local --config.model=NAME \
    --config.output=FILE.json [--config.both_orders] [--dry-run]
python -m launch.evaluate … --config.judge=MODULE:FUNCTION      a Python function scores responses
python -m launch.evaluate --config.annotations=A.json[,C.json]  from annotations of alpaca_eval
python -m launch.evaluate --config.edits=FILE --config.model=FOLDER [--config.reference=FOLDER]
                        without a judge: how often a policy prefers inserted to removed text

Prints the win rate ± standard error, draws, unparsed replies, the length of both sides, the win
rate at equal length and how often the response shown first won; for two models also their
difference with a paired-bootstrap interval; with --config.fluency_model=FOLDER the log-probability
of the responses under that model. However a run ends, the same command resumes it: no reply that
arrived is lost or requested again. Without flags, it compares the embedded world's edits with their
originals.
"""

from itertools import islice
from pathlib import Path

from fgrlhf_jax.data.records import Instruction
from fgrlhf_jax.data.sources import split_sources
from fgrlhf_jax.errors import InputError
from fgrlhf_jax.feedback.judges import alpaca_eval, pairs
from fgrlhf_jax.feedback.judges.alpaca_eval import Comparison
from fgrlhf_jax.functional import correction as correction_metrics
from fgrlhf_jax.functional.length_control import MINIMAL, Difficulty
from fgrlhf_jax.runtime.files import write_json
from fgrlhf_jax.tiny_world.datasets import make_feedback
from launch.shared import cli, judging, llm, reading

CONFIG = "configs/evaluate.py"
Models = list[list[Comparison]]  # the comparisons of one or two models


def main(config) -> None:
    if config.edits:
        evaluate_corrections(config)
        return
    output, judge = check(config)
    difficulty = alpaca_eval.read_difficulty(config.difficulty) if config.difficulty else None
    if config.annotations:
        paths = split_sources(config.annotations)
        models = select(config, [alpaca_eval.read(path) for path in paths])
    else:
        models = judge_models(config, judge)
    if models is None:  # a dry run
        return
    judging.print_unparsed([row for rows in models for row in rows])
    result = summarize(models, config.seed, difficulty)
    if config.fluency_model:
        add_fluency(config, models, [result, *filter(None, [result.get("other")])])
    print(table(result))
    if config.output:
        write_json(output, result)
        print(output)


def evaluate_corrections(config) -> None:
    """Prints the correction accuracy of a policy, and its gain over a second policy if given."""
    for field in ("outputs", "annotations", "difficulty", "fluency_model"):
        if config[field]:
            raise InputError(
                f"{field}={config[field]}: cannot be used with edits; drop one of them"
            )
    if not config.model:
        raise InputError("model is empty; give --config.model=FOLDER of the policy")
    from fgrlhf_jax.training import correction  # seconds to import

    output = cli.check_output(config, (".json",), [config.edits])
    edits = reading.read(config, config.edits)
    edits = edits[: config.limit] if config.limit else edits
    models = [load_model(config, path) for path in (config.model, config.reference) if path]
    result = correction.evaluate(models[0], edits, *models[1:], batch_size=config.local.batch_size)
    print(correction_metrics.format_table(result))
    if config.output:
        names = {"model": config.model, "compared_with": config.reference, "edits": config.edits}
        write_json(output, names | result)
        print(output)


def load_model(config, path: str):
    """A ``LanguageModel`` with ``local``'s mesh, dtype and template; reads its weights later."""
    from fgrlhf_jax.models.language_model import LanguageModel

    cli.use_devices()
    options = {name: config.local[name] for name in ("mesh", "dtype", "template")}
    return LanguageModel.load(path, **options, lazy=True)


def add_fluency(config, models: Models, results: list[dict]) -> None:
    """Adds log-probabilities of the model's and the reference's responses to each result."""
    from fgrlhf_jax.training import correction

    judge = load_model(config, config.fluency_model)
    for rows, result in zip(models, results, strict=True):
        prompts = [Instruction(row.instruction, row.input, "", row.messages) for row in rows]
        result["fluency_model"] = config.fluency_model
        for name, texts in (
            ("fluency", [row.output_2 for row in rows]),
            ("reference_fluency", [row.output_1 for row in rows]),
        ):
            result[name] = correction.fluency(judge, prompts, texts, config.local.batch_size)


def check(config) -> tuple[Path, str]:
    """The output and the judge; raises InputError for fields that contradict each other."""
    if config.annotations:
        if config.outputs or config.reference:
            raise InputError(
                "annotations are judged already; give either them or outputs and reference"
            )
        if config.dry_run:
            raise InputError("dry_run sends no requests, and annotations need none; drop it")
    elif bool(config.outputs) != bool(config.reference):
        field = "reference" if config.outputs else "outputs"
        raise InputError(f"{field} is empty; give --config.outputs=FILE --config.reference=FILE")
    spec = config.annotations or config.outputs
    files = split_sources(spec) if spec else []
    if len(files) > 2:
        raise InputError("one or two models are evaluated at a time; give at most two files")
    read, extra = [*files, config.reference, config.difficulty], []
    if not config.annotations:
        extra = [judging.annotations_path(config.output, 1 + n) for n in range(len(files) or 1)]
    output = cli.check_output(config, (".json",), read, extra=extra)
    return output, "" if config.annotations else judging.check(config, has_files=bool(files))


def judge_models(config, judge: str) -> Models | None:
    """Judges the pairs of each model; returns None after a dry run."""
    if config.outputs:
        paths = split_sources(config.outputs)
        reference = reading.read_with_rows(config, config.reference)
        models = [
            pairs.match_files(
                pairs.Responses(path, reading.read_with_rows(config, path)),
                pairs.Responses(config.reference, reference),
                config.common,
            )
            for path in paths
        ]
    else:
        edits, _ = make_feedback(judging.EMBEDDED_ROWS, config.seed)
        names = {"generator_1": "the original", "generator_2": "the edit"}
        rows = ((edit.instruction, edit.input, edit.original, edit.edited) for edit in edits)
        models = [[Comparison(*row, **names) for row in rows]]
    models = select(config, models)
    # One call for both models, so that the limits hold for the run and not for each model.
    judged = judging.judge_pairs(config, [row for rows in models for row in rows], judge)
    if judged is None:
        return None
    remaining = iter(judged)
    models = [list(islice(remaining, len(rows))) for rows in models]
    if config.output:
        for number, rows in enumerate(models, 1):
            path = judging.annotations_path(config.output, number)
            alpaca_eval.write(path, rows)
            print(f"annotations: {path}")
    return models


def select(config, models: Models) -> Models:
    """The first ``limit`` rows of the first model (0: all), and the other's for the same prompts.

    With ``common``, rows whose prompt only one model has are dropped first.
    """
    if config.common:
        models = common_prompts(models)
    if not config.limit:
        return models
    limited = models[0][: config.limit]
    return [limited, *(common_prompts([limited, rows])[1] for rows in models[1:])]


def common_prompts(models: Models) -> Models:
    """The rows whose prompts all models have."""
    by_prompt = [alpaca_eval.by_prompt(rows) for rows in models]
    common = set.intersection(*map(set, by_prompt))
    if not common:
        raise InputError("the two models have no prompt in common")
    return [[row for key, row in rows.items() if key in common] for rows in by_prompt]


def summarize(models: Models, seed: int, difficulty: Difficulty | None) -> dict:
    """Results of the first model; "other" has the second's, "paired" their difference."""
    results = []
    for rows in models:
        names = {"model": rows[0].generator_2, "reference": rows[0].generator_1}
        names["annotator"] = rows[0].annotator
        results.append({**names, **alpaca_eval.summarize(rows, difficulty)})
    if len(models) == 1:
        return results[0]
    paired = alpaca_eval.paired_difference(*models, seed)
    return {**results[0], "other": results[1], "paired": paired}


def table(result: dict) -> str:
    """The results as lines of text."""
    lines = model_lines(result)
    if "other" in result:
        paired = result["paired"]
        lines += ["", *model_lines(result["other"]), ""]
        lines.append(
            f"difference      {paired['difference']:+.2f} points, 95 % interval "
            f"{paired['low']:+.2f} to {paired['high']:+.2f} (paired bootstrap, {paired['n']} "
            f"prompts); not better in {100 * paired['not_better']:.1f} % of its rounds"
        )
    return "\n".join(lines)


def model_lines(result: dict) -> list[str]:
    title = f"{result['model'] or 'the model'} against {result['reference'] or 'the reference'}"
    controlled = result["length_controlled_win_rate"]
    if controlled is None:
        at_equal_length = f"not available: {result['length_controlled_reason']}"
    else:
        at_equal_length = percent(controlled, result["length_controlled_se"])
        at_equal_length += f" (alpaca_eval's {result['length_controlled_name']}"
        if result["length_controlled_name"] == MINIMAL:
            at_equal_length += "; a leaderboard's takes --config.difficulty=FILE"
        at_equal_length += ")"
    lines = [
        title + (f", judged by {result['annotator']}" if result["annotator"] else ""),
        f"win rate        {percent(result['win_rate'], result['se'])}, 95 % interval "
        f"{result['win_rate_low']:.2f} to {result['win_rate_high']:.2f}, over {result['n']}: "
        f"{result['wins']} won, {result['losses']} lost, {result['draws']} draws; "
        f"{result['unparsed']} unparsed",
        f"at equal length {at_equal_length}",
        f"length          {result['length']:.1f} characters, the reference's "
        f"{result['reference_length']:.1f}",
    ]
    if "fluency_model" in result:
        fluency, reference = (nats(result[name]) for name in ("fluency", "reference_fluency"))
        lines.append(
            f"fluency         {fluency} nats a token under {result['fluency_model']}, the "
            f"reference's {reference}"
        )
    if result["first_shown"] is not None:
        lines.append(
            f"shown first     won {result['first_shown']:.1f} % of {result['verdicts']} verdicts "
            "for one response (50 % without a position bias)"
        )
    return lines


def nats(row: dict) -> str:
    if row["mean"] is None:
        return "-"
    return f"{row['mean']:.3f}" + ("" if row["se"] is None else f" ± {row['se']:.3f}")


def percent(value: float, error: float | None) -> str:
    return f"{value:.2f} %" if not error else f"{value:.2f} ± {error:.2f} %"


if __name__ == "__main__":
    llm.command(main, CONFIG, __doc__)
