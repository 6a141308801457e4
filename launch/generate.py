"""Sample a model's responses to a file of prompts.

python -m launch.generate --config.model=FOLDER --config.prompts=FILE --config.output=FILE.json
                          [--config.temperature=0] [--config.FIELD=VALUE …]

Writes a JSON list in alpaca_eval's output format: instruction (followed by the input), output,
generator; and also input, raw_instruction or messages, length (tokens), finished, logprob (unless
greedy; under the sampling distribution) and, with a reward_model, the response's reward
(normalized, summed over its tokens), best first. Only --config.overwrite overwrites a file. Without
flags, it trains a policy on the embedded world and samples responses to its prompts.
"""

import dataclasses
import sys

from tqdm import tqdm

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.models import hf_load
from fgrlhf_jax.models.language_model import LanguageModel, SamplingParams
from fgrlhf_jax.models.responses import generate_responses
from fgrlhf_jax.reward_model.guide import check_fits, load_guide
from fgrlhf_jax.reward_model.scorer import RewardModel
from fgrlhf_jax.runtime.files import write_json
from fgrlhf_jax.tiny_world.datasets import make_instructions
from launch import sft
from launch.shared import cli, embedded, reading

CONFIG = "configs/generate.py"
TERMINAL_ROWS = 5


def main(config) -> None:
    sampling_params = SamplingParams(
        config.temperature, config.top_k, config.top_p, config.max_new_tokens, config.int8_cache
    )
    check(config)
    output = cli.check_output(config, (".json",), [config.prompts])
    if config.prompts:
        prompts = reading.read(config, config.prompts, "prompts")
    else:
        prompts = make_instructions(64, "test", config.seed)
    prompts = prompts[: config.limit or (len(prompts) if config.output else TERMINAL_ROWS)]
    cli.use_devices()
    path = config.model or embedded.ensure_trained(sft.main, "configs/sft.py:tiny", config.mesh)
    model = LanguageModel.load(
        path,
        mesh=config.mesh,
        dtype=config.dtype,
        template=config.template,
        max_new_tokens=config.max_new_tokens,
        lazy=True,
        log=log,
    )
    settings = {"template": model.template, "max_new_tokens": config.max_new_tokens}
    trained = settings | {n: value for n, value in hf_load.encoding_settings(path).items() if value}
    differs = [f"{name}={trained[name]}" for name in settings if trained[name] != settings[name]]
    note = f", though the model was fine-tuned with {', '.join(differs)}" if differs else ""
    log(", ".join(f"{name}={value}" for name, value in settings.items()) + note)
    guide = load_guide(config.guide, model, config.guide_beta) if config.guide else None
    options = {
        "generator": config.generator or path,
        "max_prompt_length": config.max_prompt_length,
        "overlong": config.overlong,
        "guide": guide,
        "score": make_score(config, model) if config.reward_model else None,
        "batch_size": config.batch_size,
        "progress": lambda batches: tqdm(
            batches, f"at most {config.max_new_tokens} tokens each", unit="batch"
        ),
    }
    sampled = config.samples - config.greedy_last
    sizes = {"samples": config.best_of or sampled, "keep": sampled, "seed": config.seed}
    rows = generate_responses(model, prompts, sampling_params, **options, **sizes, log=log)
    if config.greedy_last:
        greedy = dataclasses.replace(sampling_params, temperature=0.0)
        last = generate_responses(model, prompts, greedy, **options, log=lambda line: None)
        groups = [[*rows[n * sampled : (n + 1) * sampled], row] for n, row in enumerate(last)]
        rows = [row for group in groups for row in group]
    if config.output:
        write_json(output, rows)
        cut = sum(not row["finished"] for row in rows)
        note = f", {cut} of them cut at max_new_tokens={config.max_new_tokens}" if cut else ""
        print(f"{len(rows)} responses in {output}{note}")
        return
    for row in rows:
        print(f"\n{row['instruction']}".rstrip())
        print(f"> {row['output']}{'' if row['finished'] else ' …'}")


def check(config) -> None:
    """Raises InputError if ``best_of`` or ``greedy_last`` contradicts other fields."""
    if config.greedy_last and (config.samples < 2 or not config.temperature):
        raise InputError(
            f"greedy_last=True: needs samples to draw beside the greedy response, but samples="
            f"{config.samples} and temperature={config.temperature}; give 2 and 1, say"
        )
    if not config.best_of:
        return
    if not config.reward_model:
        raise InputError(
            f"best_of={config.best_of}: something must choose; give --config.reward_model=…"
        )
    if config.best_of < config.samples:
        raise InputError(
            f"best_of={config.best_of} is less than samples={config.samples}; raise it"
        )
    if config.temperature == 0:
        raise InputError(
            f"best_of={config.best_of}: with temperature=0 all of them are the same; give "
            "--config.temperature=1"
        )


def make_score(config, model: LanguageModel):
    """A scoring function for :func:`generate_responses`: a response's summed normalized reward."""
    path = config.reward_model
    reward_model = RewardModel.load(path, mesh=config.mesh, dtype=config.dtype)
    check_fits("reward_model", path, reward_model.meta, model)

    def score(rows: list[tuple[list[int], int]]) -> list[float]:
        reward_model.length_limit(max(len(ids) for ids, _ in rows))
        rewards = reward_model.score_ids(rows, batch_size=config.batch_size)
        return [float(reward_T.sum()) for reward_T in rewards]

    return score


def log(text: str) -> None:
    """Prints to stderr, apart from the responses."""
    print(text, file=sys.stderr)


if __name__ == "__main__":
    cli.command(main, CONFIG, __doc__)
