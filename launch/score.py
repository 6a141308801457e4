r"""The reward of every token of given responses: JSONL, a coloured page or picture, the terminal.

python -m launch.score --config.reward_model=DIR --config.input=FILE.jsonl \
                       [--config.output=FILE.jsonl|FILE.html|FILE.svg]

Rows gain "tokens" and "rewards" for their response (output, original, or output_1), and for the
second one of a pair "edited_tokens", "edited_rewards" or "output_2_tokens", "output_2_rewards".
"""

import dataclasses
import sys

from tqdm import tqdm

from fgrlhf_jax.data import records
from fgrlhf_jax.errors import InputError
from fgrlhf_jax.report import heatmap
from fgrlhf_jax.reward_model.scorer import RewardModel
from fgrlhf_jax.runtime.files import write_jsonl, write_text
from launch.shared import cli

CONFIG = "configs/score.py"
TERMINAL_ROWS = 5


def main(config) -> None:
    output = cli.check_output(config.output, (".jsonl", ".html", ".svg"))
    cli.check_not_overwritten([output] if config.output else [], [config.input])
    read = records.read_with_rows(config.input)
    read = read[: config.limit or (len(read) if config.output else TERMINAL_ROWS)]
    rows = [record for record, _ in read]
    reward_model = RewardModel.load(config.reward_model, mesh=config.mesh, dtype=config.dtype)
    max_length = reward_model.length_limit(config.max_length)
    longest_prompt = reward_model.meta.data["max_prompt_length"]
    if max_length <= longest_prompt:
        raise InputError(
            f"max_length={max_length} leaves no room behind prompts of up to {longest_prompt} "
            "tokens; raise it"
        )
    scored = reward_model.score_all(
        rows,
        max_length=max_length,
        normalized=config.calibrated,
        batch_size=config.batch_size,
        progress=lambda batches: tqdm(batches, unit="batch"),
    )
    truncated = sum(side.truncated for sides in scored for side in sides)
    if truncated:
        print(
            f"{truncated} prompts or responses were cut to the model's lengths", file=sys.stderr
        )
    if output.suffix == ".html":
        page = heatmap.to_html(
            [view(row, sides) for row, sides in zip(rows, scored, strict=True)],
            title=f"Token rewards: {config.reward_model} on {config.input}",
        )
        write_text(output, page)
    elif output.suffix == ".svg":
        pairs = zip(rows, scored, strict=True)
        write_text(output, heatmap.to_svg([view(row, sides) for row, sides in pairs]))
    elif config.output:
        gain = (gained(row, sides) for (_, row), sides in zip(read, scored, strict=True))
        write_jsonl(output, gain)
    else:
        views = [view(row, sides) for row, sides in zip(rows, scored, strict=True)]
        limit = heatmap.colour_limit(views)
        for row in views:
            print(heatmap.to_terminal(row, colour=sys.stdout.isatty(), limit=limit))


def view(row, sides) -> dict:
    return {
        "instruction": row.instruction,
        "input": row.input,
        "sides": [dataclasses.asdict(side) for side in sides],
    }


def gained(row: dict, sides) -> dict:
    """The row as it was given, with its tokens and rewards."""
    result = dict(row)
    for number, side in enumerate(sides):
        prefix = f"{side.label}_" if number else ""
        result[f"{prefix}tokens"], result[f"{prefix}rewards"] = side.tokens, side.rewards
    return result


if __name__ == "__main__":
    cli.command(main, CONFIG, __doc__)
