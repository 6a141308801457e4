"""Row lengths for a plan: those of real rows, instead of the longest possible rows."""

from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from fgrlhf_jax.data.demonstrations import Demonstration
from fgrlhf_jax.data.pairs import Pair
from fgrlhf_jax.errors import InputError
from fgrlhf_jax.ppo import scoring
from fgrlhf_jax.ppo.algorithm import PPOSettings

NUM_DRAWS = 32  # batches over which the micro-batches are averaged


class Lengths(NamedTuple):
    """Tokens of the prompt and of the response of every row of a file, int[N] each."""

    prompts: np.ndarray
    responses: np.ndarray

    def within(self, max_prompt: int, max_response: int) -> "Lengths":
        """Rows with prompts that fit, with clipped responses; InputError if no prompt fits."""
        short = self.prompts <= max_prompt
        if not short.any():
            raise InputError(
                f"all {len(short)} prompts of --lengths are longer than "
                f"data.max_prompt_length={max_prompt}; raise it"
            )
        return Lengths(self.prompts[short], np.clip(self.responses[short], 1, max_response))

    def draw(self, rows: int) -> list["Lengths"]:
        """``NUM_DRAWS`` random batches of ``rows`` rows, the same in every call."""
        rng = np.random.default_rng(0)
        picks = (rng.integers(len(self.prompts), size=rows) for _ in range(NUM_DRAWS))
        return [Lengths(self.prompts[pick], self.responses[pick]) for pick in picks]


def mean_trips(lengths: Lengths, rows: int, settings: PPOSettings, mesh: Mesh) -> dict[str, float]:
    """Mean number of micro-batches per width, over random rollouts of ``rows`` rows.

    Returns the argument ``trips`` of ``hlo_costs.count``: names of loops -> their iterations.
    """
    with jax.set_mesh(mesh):
        counts = [
            scoring.count_micro_batches(batch.prompts + batch.responses, settings)
            for batch in lengths.draw(rows)
        ]
    means = {width: float(np.mean([count[width] for count in counts])) for width in counts[0]}
    return {f"{scoring.scope(width)}/while": mean for width, mean in means.items()}


def dummy_demonstration(prompt: int, response: int) -> Demonstration:
    """A row with ``prompt`` and ``response`` tokens."""
    return Demonstration(np.zeros(prompt + response, np.int32), prompt)


def dummy_pair(common: int, edited: int, original: int) -> Pair:
    """Two responses with ``common`` first tokens in common and no common tokens after them."""
    columns_i, columns_j = (np.arange(common + n, dtype=np.int32) for n in (edited, original))
    start = max(common, 1)
    changed_i, changed_j = columns_i >= start, columns_j >= start
    return Pair(
        tokens_i=columns_i,
        tokens_j=columns_j + (columns_j >= common),
        start_i=start,
        start_j=start,
        changed_i=changed_i,
        changed_j=changed_j,
        marked_j=changed_j,
        partner=np.where(changed_i, -1, columns_i),
        row=0,
    )
