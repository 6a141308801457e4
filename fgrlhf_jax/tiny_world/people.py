"""The embedded world's simulated people: fallible demonstrators, a noisy rater and an editor.

Each fact is easy, medium or a misconception, for all demonstrators alike; a misconception is nearly
always the same wrong word. A model that imitates them therefore mixes right and wrong answers.
Every rate is a field of ``Rates``.
"""

import dataclasses
import functools
import math
import random

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.tiny_world import tasks
from fgrlhf_jax.tiny_world.judge import align_words, gold_score
from fgrlhf_jax.tiny_world.tasks import Slot, answer_slots, fill_slots
from fgrlhf_jax.tiny_world.words import FACTS, FILLERS, KIND_OF, NUMBERS, RUDE


@dataclasses.dataclass(frozen=True)
class Rates:
    """Rates of simulated people; raises InputError for values out of range."""

    easy: float = 0.35  # share of the facts
    medium: float = 0.35  # share of the facts; the others are misconceptions
    wrong_easy: float = 0.2
    wrong_medium: float = 0.4
    wrong_misconception: float = 0.62
    same_wrong: float = 0.9  # that a mistake on a misconception is its usual wrong word
    wrong_algorithmic: float = 0.3  # reverse, repeat and count
    filler: float = 0.04  # per word, before it
    rude: float = 0.03  # per word, before it
    omission: float = 0.04
    repetition: float = 0.03
    repair: float = 0.8  # that the editor repairs a flaw
    damage: float = 0.02  # that the editor makes a right content word wrong
    temperature: float = 0.35  # of a preference, in units of the gold score
    deletion: float = 0.0  # that a repair of a wrong word removes it instead of replacing it
    flaws: int = 99  # largest number of flaws that the editor repairs

    def __post_init__(self):
        for name, value in dataclasses.asdict(self).items():
            if name == "temperature" and not value > 0:
                raise InputError(f"temperature: {value} is not above 0")
            if name == "flaws" and not value >= 1:
                raise InputError(f"flaws: {value} is not at least 1")
            if name not in ("temperature", "flaws") and not 0 <= value <= 1:
                raise InputError(f"{name}: {value} is not between 0 and 1")
        if self.easy + self.medium > 1:
            raise InputError(f"easy + medium: {self.easy} + {self.medium} is more than 1")


DEFAULT = Rates()
FAIR = Rates(repair=0.4, deletion=0.3, flaws=2)  # an editor who repairs fewer flaws


@functools.cache
def _fact_ranks() -> dict[tuple[str, str], float]:
    """(family, fact) → rank in [0, 1) of the fact in its family, sorted by a hash."""
    facts = {family: list(members) for family, members in FACTS.items()} | {"list": list(KIND_OF)}
    return {
        (family, fact): rank / len(members)
        for family, members in facts.items()
        for rank, fact in enumerate(
            sorted(members, key=lambda fact: tasks.stable_hash(f"{family}/{fact}"))
        )
    }


def difficulty(slot: Slot, rates: Rates = DEFAULT) -> str:
    """Difficulty of a content slot: easy, medium, misconception, or algorithmic without a fact."""
    if not slot.fact:
        return "algorithmic"
    rank = _fact_ranks()[slot.family, slot.fact]
    if rank < rates.easy:
        return "easy"
    return "medium" if rank < rates.easy + rates.medium else "misconception"


def _wrong_word(slot: Slot, kind: str, rng: random.Random, rates: Rates) -> str:
    wrong = tasks.wrong_words(slot)
    if kind == "misconception" and rng.random() < rates.same_wrong:
        return wrong[tasks.stable_hash(f"{slot.family}/{slot.fact}") % len(wrong)]
    return rng.choice(wrong)


def write_demonstration(prompt: str, rng: random.Random, rates: Rates = DEFAULT) -> str:
    """A demonstrator's imperfect answer of at most ``tasks.MAX_RESPONSE`` words."""
    words, shift = [], 0  # shift: error of a running total
    for slot in _swap_sorted(fill_slots(answer_slots(prompt), rng), rng, rates):
        if rng.random() < rates.filler:
            words.append(rng.choice(FILLERS))
        if rng.random() < rates.rude:
            words.append(rng.choice(RUDE))
        if rng.random() < rates.omission:
            continue
        if shift:
            slot = slot._replace(word=NUMBERS[(NUMBERS.index(slot.word) + shift) % len(NUMBERS)])
        word = slot.word
        if slot.family and slot.family != "sort":
            kind = difficulty(slot, rates)
            if rng.random() < getattr(rates, f"wrong_{kind}"):
                word = _wrong_word(slot, kind, rng, rates)
                if slot.family == "total":
                    shift += NUMBERS.index(word) - NUMBERS.index(slot.word)
        words += [word] * (2 if rng.random() < rates.repetition else 1)
    return " ".join(words[: tasks.MAX_RESPONSE])


def _swap_sorted(slots: list[Slot], rng: random.Random, rates: Rates) -> list[Slot]:
    """Slots with mistakes in sorting: numbers swapped with the next, perhaps several times."""
    slots = list(slots)
    for i in range(len(slots) - 1):
        if slots[i].family == "sort" and rng.random() < rates.wrong_algorithmic:
            slots[i], slots[i + 1] = slots[i + 1], slots[i]
    return slots


def prefer(
    prompt: str, response_1: str, response_2: str, rng: random.Random, rates: Rates = DEFAULT
) -> int:
    """The preferred response, 1 or 2, drawn by Bradley-Terry on the gold scores."""
    margin = gold_score(prompt, response_1) - gold_score(prompt, response_2)
    return 1 if rng.random() < 0.5 * (1 + math.tanh(margin / rates.temperature / 2)) else 2


def edit_response(prompt: str, response: str, rng: random.Random, rates: Rates = DEFAULT) -> str:
    """A response, which may be any text, after an imperfect minimal edit, which may be empty.

    The editor repairs each flaw with probability ``repair``, and at most ``flaws`` of them: it
    replaces a wrong word (or, with probability ``deletion``, removes it), inserts a missing word or
    removes an extra word. It makes a right content word wrong with probability ``damage``. For a
    missing list member it inserts a random member that the response lacks.
    """
    words, answer = response.split(), answer_slots(prompt)
    script = align_words(answer, words)
    for step in script:
        if step.right and answer[step.slot].is_open:
            answer[step.slot] = Slot(words[step.word], "list", words[step.word])
    answer, edited, repaired = fill_slots(answer, rng), [], {}  # repaired: index -> old word
    for index, step in enumerate(script):
        word = "" if step.word is None else words[step.word]
        slot = None if step.slot is None else answer[step.slot]
        if not step.right:
            if rng.random() < rates.repair:
                repaired[index] = word
                is_wrong = word and slot and rates.deletion
                is_deleted = is_wrong and rng.random() < rates.deletion
                word = slot.word if slot and not is_deleted else ""
        elif slot.family and rng.random() < rates.damage:
            word = rng.choice(tasks.wrong_words(slot))
        edited.append(word)
    for index in rng.sample(list(repaired), max(0, len(repaired) - rates.flaws)):
        edited[index] = repaired[index]
    return " ".join(filter(None, edited))
