"""Demonstrations that are imitated in every update beside the rollout (PPO-ptx)."""

from collections.abc import Sequence

import numpy as np
from ml_collections import ConfigDict

from fgrlhf_jax.data.bucketing import pad_right
from fgrlhf_jax.data.demonstrations import Demonstration, encode_demonstrations
from fgrlhf_jax.errors import InputError
from fgrlhf_jax.ppo import rollout
from fgrlhf_jax.ppo.algorithm import Rows


def encode(records: list, config: ConfigDict, tokenizer, template: str) -> list[Demonstration]:
    """Encodes records as demonstrations, as for SFT; prints how many were left out or cut.

    Responses have at most ``data.max_new_tokens`` tokens, like sampled ones. Raises InputError if
    fewer are left than one update imitates.
    """
    max_prompt, limit = config.data.max_prompt_length, config.data.max_new_tokens
    limits = {"max_length": max_prompt + limit, "max_prompt_length": max_prompt}
    options = {"template": template, "overlong": config.data.overlong, **limits}
    try:
        rows, counts = encode_demonstrations(records, tokenizer, **options)
    except InputError as error:
        raise InputError(f"ptx_edits={config.ptx_edits}: {error}") from error
    fitting = [row for row in rows if len(row.tokens) <= row.prompt_length + limit]
    counts["longer_responses"] = len(rows) - len(fitting)
    if config.data.overlong == "drop":
        rows = fitting
    rows = [Demonstration(r.tokens[: r.prompt_length + limit], r.prompt_length) for r in rows]
    counts["kept"] = len(rows)
    print("ptx_edits: " + ", ".join(f"{n} {label}" for label, n in counts.items()))
    if len(rows) < config.minibatch_size:
        raise InputError(
            f"ptx_edits={config.ptx_edits}: {len(rows)} are left to imitate, fewer than "
            f"minibatch_size={config.minibatch_size}; give more, or lower that"
        )
    return rows


def draw(
    demonstrations: Sequence[Demonstration], config: ConfigDict, columns: int, step: int
) -> Rows | None:
    """Host arrays [U, minibatch, ...] for the U minibatches of a step; a pure function of the step.

    The longest demonstration has at most S = ``columns`` tokens. None if there are none.
    """
    if not demonstrations:
        return None
    size, T = config.minibatch_size, config.data.max_new_tokens
    updates = config.ppo_epochs * (config.rollout_batch_size // size)
    numbers = [
        rollout.rows_of_step(len(demonstrations), size, seed=config.seed, step=update)
        for update in range(step * updates, (step + 1) * updates)
    ]
    rows = [demonstrations[number] for number in np.concatenate(numbers)]
    tokens_RS = pad_right([row.tokens for row in rows], columns)
    start_R = np.array([row.prompt_length for row in rows], np.int32)
    length_R = np.array([len(row.tokens) for row in rows]) - start_R
    response_RT = np.arange(T)[None] < length_R[:, None]
    arrays = (x.reshape(updates, size, *x.shape[1:]) for x in (tokens_RS, start_R, response_RT))
    return Rows(*arrays)
