r"""How often a judge prefers a model's responses to a reference's: win rate ± standard error.

python -m launch.evaluate --config.outputs=A.json[,C.json] --config.reference=B.json \
    --config.judge=llm --config.provider=anthropic|openai|local --config.model=NAME \
    --config.output=FILE.json [--config.both_orders] [--dry-run]
python -m launch.evaluate … --config.judge=MODULE:FUNCTION      a Python function scores responses
python -m launch.evaluate --config.annotations=A.json[,C.json]  from annotations of alpaca_eval

Prints draws, unparsed replies, the length of both sides, the win rate at equal length and how often
the response shown first was preferred; of two models also their difference, with an interval of the
paired bootstrap. Shares are in percent. However a run ends, the same command goes on: no reply
that arrived is lost or asked for again. With no flag it compares the embedded world's edits with
their originals.
"""

from collections import Counter
from itertools import islice
from pathlib import Path

from fgrlhf_jax.data import records
from fgrlhf_jax.errors import InputError
from fgrlhf_jax.feedback.judges import alpaca_eval, pairs
from fgrlhf_jax.feedback.judges.alpaca_eval import Comparison
from fgrlhf_jax.runtime.files import write_json
from fgrlhf_jax.tiny_world.datasets import make_feedback
from launch.shared import asking, cli, judging


def main(config) -> None:
    cli.check(config, at_least={"seed": 0, "limit": 0})
    output = cli.check_output(config.output, (".json",))
    name = check(config)
    sets = read(config) if config.annotations else judge(config, name)
    if sets is None:  # a dry run
        return
    result = figures(sets, config.seed)
    print(table(result))
    for reason, count in Counter(c.reason for s in sets for c in s if c.reason).most_common(3):
        print(f"unparsed: {count} × {reason}")
    if config.output:
        write_json(output, result)
        print(output)


def check(config) -> str:
    """The judge; raises InputError unless it is clear what is to be evaluated."""
    if config.annotations:
        if config.outputs or config.reference:
            raise InputError(
                "annotations are judged already; give either them or outputs and reference"
            )
        if config.dry_run:
            raise InputError(
                "dry_run asks nothing, and annotations need nothing asked; drop it"
            )
    elif bool(config.outputs) != bool(config.reference):
        field = "reference" if config.outputs else "outputs"
        raise InputError(
            f"{field} is empty; give --config.outputs=FILE --config.reference=FILE"
        )
    given = files(config.annotations or config.outputs)
    if len(given) > 2:
        raise InputError("one or two models are evaluated at a time; give at most two files")
    written = [Path(config.output)] if config.output else []
    if config.output and not config.annotations:
        written += [judging.annotations_path(config.output, n) for n in (1, 2)]
    cli.check_kept(written, [*given, config.reference])
    return judging.check(config, bool(given)) if not config.annotations else ""


def files(spec: str) -> list[str]:
    """One of each model."""
    return records.sources(spec) if spec else []


def read(config) -> list[list[Comparison]]:
    """The annotations of each model."""
    sets = [alpaca_eval.read(path) for path in files(config.annotations)]
    sets = common(sets) if config.common else sets
    return first(sets, config.limit)


def judge(config, name: str) -> list[list[Comparison]] | None:
    """The pairs of each model with the judge's preferences; None after a dry run."""
    if config.outputs:
        sets = [
            pairs.match(path, config.reference, config.common) for path in files(config.outputs)
        ]
        sets = common(sets) if config.common else sets
    else:
        edits, _ = make_feedback(judging.EMBEDDED_ROWS, config.seed)
        names = {"generator_1": "the original", "generator_2": "the edit"}
        sets = [
            [
                Comparison(edit.instruction, edit.input, edit.original, edit.edited, **names)
                for edit in edits
            ]
        ]
    sets = first(sets, config.limit)
    # In one go, so that the limits are of the run and not of a model.
    rows = judging.judged(config, [one for rows in sets for one in rows], name)
    if rows is None:
        return None
    left = iter(rows)
    sets = [list(islice(left, len(one))) for one in sets]
    if config.output:
        for number, one in enumerate(sets, 1):
            print(f"annotations: {judging.keep(config, one, number)}")
    return sets


def common(sets: list[list[Comparison]]) -> list[list[Comparison]]:
    """What is about prompts that all have."""
    prompts = set.intersection(*({one.prompt for one in rows} for rows in sets))
    if not prompts:
        raise InputError("the two models have no prompt in common")
    return [[one for one in rows if one.prompt in prompts] for rows in sets]


def first(sets: list[list[Comparison]], limit: int) -> list[list[Comparison]]:
    """So many rows of the first model (0: all), and those of the other about the same prompts."""
    if not limit:
        return sets
    model = sets[0][:limit]
    return [model, *(common([model, rows])[1] for rows in sets[1:])]


def figures(sets: list[list[Comparison]], seed: int) -> dict:
    """Of the first model; "other" are those of the second, "paired" their difference."""
    found = []
    for rows in sets:
        names = {
            "model": rows[0].generator_2,
            "reference": rows[0].generator_1,
            "annotator": rows[0].annotator,
        }
        found.append(names | alpaca_eval.summary(rows))
    if len(sets) == 1:
        return found[0]
    return {**found[0], "other": found[1], "paired": alpaca_eval.paired(*sets, seed)}


def table(result: dict) -> str:
    """The figures as lines of text."""
    lines = []
    for one in (result, result.get("other")):
        if one:
            lines += [*lines_of(one), ""]
    if paired := result.get("paired"):
        lines.append(
            f"difference      {paired['difference']:+.4f} points, 95 % interval "
            f"{paired['low']:+.4f} to {paired['high']:+.4f} (paired bootstrap, {paired['n']} "
            f"prompts); not better in {100 * paired['not_better']:.1f} % of its rounds"
        )
    return "\n".join(lines).rstrip()


def lines_of(one: dict) -> list[str]:
    title = f"{one['model'] or 'the model'} against {one['reference'] or 'the reference'}"
    equal = one["length_controlled_win_rate"]
    lines = [
        title + (f", judged by {one['annotator']}" if one["annotator"] else ""),
        f"win rate        {share(one['win_rate'], one['se'])} over {one['n']}: {one['wins']} won, "
        f"{one['losses']} lost, {one['draws']} draws; {one['unparsed']} unparsed",
        "at equal length "
        + (
            f"not to be had: {one['length_controlled_reason']}"
            if equal is None
            else f"{share(equal, one['length_controlled_se'])} (length-controlled)"
        ),
        f"length          {one['length']:.1f} characters, the reference's "
        f"{one['reference_length']:.1f}",
    ]
    if one["first_shown"] is not None:
        lines.append(
            f"shown first     won {one['first_shown']:.1f} % of {one['verdicts']} verdicts for "
            "one response (50 % without a position bias)"
        )
    return lines


def share(value: float, error: float | None) -> str:
    return f"{value:.4f} %" if error is None else f"{value:.4f} ± {error:.4f} %"


if __name__ == "__main__":
    asking.command(main, "configs/evaluate.py", __doc__)
