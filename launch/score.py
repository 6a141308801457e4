r"""Compute the reward of every token of responses, as JSONL, a coloured page, a picture or text.

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
from fgrlhf_jax.reward_model.token_rewards import ScoredResponse
from fgrlhf_jax.runtime.files import write_jsonl, write_text
from launch.shared import cli, embedded, reading

CONFIG = "configs/score.py"
TERMINAL_ROWS = 5


def main(config) -> None:
    output = cli.check_output(config, (".jsonl", ".html", ".svg"), [config.input])
    embedded.check_embedded_exists(config, "reward_model", "input")
    records_and_rows = reading.read_with_rows(config, config.input)
    shown = config.limit or (len(records_and_rows) if config.output else TERMINAL_ROWS)
    rows = [row for _, row in records_and_rows[:shown]]
    inputs = [record for record, _ in records_and_rows[:shown]]
    cli.use_devices()
    options = {name: config[name] for name in ("mesh", "dtype", "ensemble_penalty")}
    reward_model = RewardModel.load(config.reward_model, **options)
    max_length = reward_model.length_limit(config.max_length)
    longest_prompt = reward_model.meta.data["max_prompt_length"]
    if max_length <= longest_prompt:
        raise InputError(
            f"max_length={max_length} leaves no tokens for responses after prompts of up to "
            f"{longest_prompt} tokens; raise it"
        )
    scored = reward_model.score_all(
        inputs,
        max_length=max_length,
        normalized=config.normalized,
        batch_size=config.batch_size,
        progress=lambda batches: tqdm(batches, unit="batch"),
    )
    truncated = sum(response.truncated for responses in scored for response in responses)
    if truncated:
        print(f"{truncated} prompts or responses were truncated", file=sys.stderr)
    views = [*map(view, inputs, scored)]
    match output.suffix:
        case ".jsonl":
            write_jsonl(output, map(add_rewards, rows, scored))
        case ".html":
            title = f"Token rewards: {config.reward_model} on {config.input}"
            write_text(output, heatmap.to_html(views, title=title))
        case ".svg":
            write_text(output, heatmap.to_svg(views))
        case _:
            limit = heatmap.colour_limit(views)
            for row in views:
                print(heatmap.to_terminal(row, colour=sys.stdout.isatty(), limit=limit))
            return
    print(f"{len(rows)} rows with token rewards in {output}")


def view(record: records.Record, responses: list[ScoredResponse]) -> dict:
    """A row for ``report.heatmap``."""
    sides = [dataclasses.asdict(response) for response in responses]
    for side in sides:
        side["finished"] = records.is_finished(record, side["label"])
        if isinstance(record, records.Preference):
            is_better = side["label"] == records.sides(record)[0]
            side["label"] += ", preferred" if is_better else ", rejected"
    return records.prompt_fields(record) | {"sides": sides}


def add_rewards(row: dict, responses: list[ScoredResponse]) -> dict:
    """A copy of a file's row with the tokens and rewards added."""
    result = dict(row)
    for number, response in enumerate(responses):
        prefix = f"{response.label}_" if number else ""
        result[f"{prefix}tokens"] = response.tokens
        result[f"{prefix}rewards"] = response.rewards
    return result


if __name__ == "__main__":
    cli.command(main, CONFIG, __doc__)
