"""Data of the embedded world as records: demonstrations, edits and preferences.

A prompt is the instruction of a record with an empty input, and belongs to exactly one set. Data
are a function of the seed; n rows are the first n of any larger number.
"""

import random
from collections.abc import Sequence

from fgrlhf_jax.data.records import Edit, Instruction, Preference
from fgrlhf_jax.tiny_world import people
from fgrlhf_jax.tiny_world.people import DEFAULT, Rates, write_demonstration
from fgrlhf_jax.tiny_world.tasks import draw_prompts


def make_instructions(
    count: int, set_name: str, seed: int, rates: Rates = DEFAULT, world: str = "easy"
) -> list[Instruction]:
    """``count`` distinct prompts of a set, each with a demonstration; world: easy | fair."""
    rng = random.Random(f"demonstrations/{set_name}/{seed}")
    prompts = draw_prompts(set_name, count, seed, world)
    return [Instruction(prompt, "", write_demonstration(prompt, rng, rates)) for prompt in prompts]


def collect_feedback(
    prompts: Sequence[str],
    responses_1: Sequence[str],
    responses_2: Sequence[str],
    seed: int,
    rates: Rates = DEFAULT,
) -> tuple[list[Edit], list[Preference]]:
    """Feedback on two responses to each prompt: a preference, and an edit of the worse response.

    Preferences between equal responses, edits without a change, and empty responses are left out.
    The feedback on a row does not depend on other rows.
    """
    edits, preferences = [], []
    for index, row in enumerate(zip(prompts, responses_1, responses_2, strict=True)):
        rng = random.Random(f"feedback/{seed}/{index}")
        edit, preference = _feedback(*row, rng, rates, f"tiny/{seed}/{index}")
        edits += [edit] if edit else []
        preferences += [preference] if preference else []
    return edits, preferences


def make_feedback(count: int, seed: int) -> tuple[list[Edit], list[Preference]]:
    """``count`` edits and preferences on demonstrators' responses to the same feedback prompts."""
    rng = random.Random(f"generate/{seed}")
    rows = []
    for index, prompt in enumerate(draw_prompts("feedback", count, seed)):
        row = (None, None)
        while None in row:
            drafts = [write_demonstration(prompt, rng) for _ in range(2)]
            row = _feedback(prompt, *drafts, rng, DEFAULT, f"tiny/{seed}/{index}")
        rows.append(row)
    return [edit for edit, _ in rows], [preference for _, preference in rows]


def _feedback(
    prompt: str, response_1: str, response_2: str, rng: random.Random, rates: Rates, id: str
) -> tuple[Edit | None, Preference | None]:
    better = people.prefer(prompt, response_1, response_2, rng, rates)
    preference = None
    if response_1.strip() and response_2.strip() and response_1 != response_2:
        preference = Preference(prompt, "", response_1, response_2, better, id=id)
    worse = response_2 if better == 1 else response_1
    edited = people.edit_response(prompt, worse, rng, rates)
    if not worse.strip() or not edited or edited.split() == worse.split():
        return None, preference
    return Edit(prompt, "", worse, edited, id=id), preference
