"""The tiny world, as other files see it: its parts, and its data as records and files.

tiny_words.py has the vocabulary and the tokenizer, tiny_tasks.py instructions and right answers,
tiny_judge.py the gold score, tiny_people.py demonstrators, preferences and the editor. A prompt
is the instruction of a record whose input is empty, and belongs to one set only. All data are a
function of the seed, and fewer rows are the first of more.
"""

import os
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

from fgrlhf_jax.data.records import Edit, Instruction, Preference
from fgrlhf_jax.runtime.files import write_jsonl
from fgrlhf_jax.tiny_world.judge import credits, gold, judge, oracle_rewards
from fgrlhf_jax.tiny_world.people import DEFAULT, Rates, demonstration, edit, prefer
from fgrlhf_jax.tiny_world.tasks import SETS, canonical, prompts
from fgrlhf_jax.tiny_world.words import FAMILIES, tokenizer, vocabulary

__all__ = [
    "FAMILIES",
    "SETS",
    "Rates",
    "canonical",
    "credits",
    "demonstration",
    "edit",
    "feedback",
    "generate",
    "gold",
    "instructions",
    "judge",
    "oracle_rewards",
    "prefer",
    "prompts",
    "tokenizer",
    "vocabulary",
    "write_data",
]


def instructions(n: int, set_name: str, seed: int, rates: Rates = DEFAULT) -> list[Instruction]:
    """n distinct prompts of a set, each with a demonstration."""
    rng = random.Random(f"demonstrations/{set_name}/{seed}")
    chosen = prompts({set_name: n}, seed)[set_name]
    return [Instruction(prompt, "", demonstration(prompt, rng, rates)) for prompt in chosen]


def write_data(
    folder: str | os.PathLike, sizes: Mapping[str, int], seed: int, rates: Rates = DEFAULT
) -> dict[str, Path]:
    """Writes SET.jsonl, instructions with demonstrations, for every set named in `sizes`."""
    paths = {name: Path(folder) / f"{name}.jsonl" for name in sizes}
    for name, n in sizes.items():
        write_jsonl(paths[name], instructions(n, name, seed, rates))
    return paths


def feedback(
    asked: Sequence[str],
    ones: Sequence[str],
    twos: Sequence[str],
    seed: int,
    rates: Rates = DEFAULT,
) -> tuple[list[Edit], list[Preference]]:
    """What people say to two responses a prompt: a preference, and an edit of the worse one.

    Left out are preferences between equal responses, edits that change nothing, and empty
    responses. What is said of a row depends on no other row.
    """
    edits, preferences = [], []
    for index, (prompt, one, two) in enumerate(zip(asked, ones, twos, strict=True)):
        rng = random.Random(f"feedback/{seed}/{index}")
        edited, preference = _feedback(prompt, one, two, rng, rates, f"tiny/{seed}/{index}")
        edits += [edited] if edited else []
        preferences += [preference] if preference else []
    return edits, preferences


def generate(n: int, seed: int) -> tuple[list[Edit], list[Preference]]:
    """n edits and n preferences on the same n feedback prompts, of what demonstrators wrote."""
    rng = random.Random(f"generate/{seed}")
    rows = []
    for index, prompt in enumerate(prompts({"feedback": n}, seed)["feedback"]):
        row = (None, None)
        while None in row:
            drafts = [demonstration(prompt, rng) for _ in range(2)]
            row = _feedback(prompt, *drafts, rng, DEFAULT, f"tiny/{seed}/{index}")
        rows.append(row)
    return [edited for edited, _ in rows], [preference for _, preference in rows]


def _feedback(
    prompt: str, one: str, two: str, rng: random.Random, rates: Rates, name: str
) -> tuple[Edit | None, Preference | None]:
    better = prefer(prompt, one, two, rng, rates)
    preference = None
    if one.strip() and two.strip() and one != two:
        preference = Preference(prompt, "", one, two, better, id=name)
    worse = two if better == 1 else one
    edited = edit(prompt, worse, rng, rates)
    if not worse.strip() or not edited or edited.split() == worse.split():
        return None, preference
    return Edit(prompt, "", worse, edited, id=name), preference
