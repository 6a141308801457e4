"""The embedded world's instructions and their right answers.

There are seven families of instructions, with answers of content words joined by template words:

    opposite of hot , big and slow             the opposite of hot is cold , big is small and …
    capital of peru and cuba                   the capital of peru is lima and cuba is havana
    colour of snow and grass                   the colour of snow is white and grass is green
    list two fruits three tools                fruits are pear plum , tools are saw axe drill
    count three to six and nine to seven       three four five six , nine eight seven
    reverse pear saw dog cow                   the reverse is cow dog saw pear
    repeat pear saw dog twice                  pear pear , saw saw , dog dog

In a list any members of the kind are right, in any order, each once. Every family has over 7,000
prompts. A hash of a prompt's text assigns it to one set, so sets are disjoint.

The fair world has two more families, in which one mistake makes several words wrong:

    small to big ten two six                   the small to big is two six ten
    three and two four                         the count is three five nine  (running totals)

In the fair world two fifths of the facts and kinds are held out: prompts of validation and test ask
only for these, feedback prompts for none of them, and prompts of demonstrations and PPO mix both.
Prompts with the same words in another order are in the same set.
"""

import functools
import hashlib
import itertools
import random
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.tiny_world.words import FACTS, FAMILIES, FAR_REACHING, KIND_OF, KINDS, NUMBERS

WORLDS = ("easy", "fair")
HELD_OUT_SHARE = 0.4  # share of each family's facts without feedback in the fair world
SET_SHARES = {"sft": 0.5, "feedback": 0.2, "ppo": 0.15, "validation": 0.05, "test": 0.1}
MAX_PROMPT, MAX_RESPONSE = 8, 21  # words
CONTENT, TEMPLATE = 10, 1  # weights; whole numbers, so that their sums are exact

_THINGS = tuple(KIND_OF)
_RANGES = [(a, b) for a, b in itertools.product(range(15), repeat=2) if 2 <= abs(a - b) <= 5]
_SIZES = {n: [s for s in itertools.product((2, 3, 4), repeat=n) if sum(s) <= 8] for n in (2, 3)}


class Slot(NamedTuple):
    """A place in the right answer: a template word, or a content word, which has a family.

    ``fact`` is the fact that determines the word, or "" if the prompt alone does. A list's slot is
    open until it is filled: any member of the kind ``fact`` is right in it.
    """

    word: str
    family: str = ""
    fact: str = ""

    @property
    def weight(self) -> int:
        return CONTENT if self.family else TEMPLATE

    @property
    def is_open(self) -> bool:
        return self.word == _OPEN


_OPEN = "<any>"


def prompt_set(prompt: str, world: str = "easy") -> str:
    """The set of ``SET_SHARES`` that a prompt belongs to, a function of its text only.

    In the fair world word order does not matter, but whether the prompt asks for held-out facts.
    """
    if world == "easy":
        return _choose_by_hash(SET_SHARES, prompt)
    family, *rest = prompt.split()
    facts = FACTS.get(family, KINDS if family == "list" else {})
    is_held_out = frozenset(word in held_out_facts(family) for word in rest if word in facts)
    names = {
        frozenset(): SET_SHARES,  # the prompt asks for no fact
        frozenset({False}): ("feedback",),
        frozenset({True}): ("validation", "test"),
        frozenset({False, True}): ("sft", "ppo"),
    }[is_held_out]
    return _choose_by_hash(names, " ".join(sorted(prompt.split())))


def _choose_by_hash(names: Iterable[str], text: str) -> str:
    """One of the sets ``names`` by a hash, with probabilities proportional to ``SET_SHARES``."""
    shares = {name: SET_SHARES[name] for name in names}
    position = stable_hash(text) / 2**64 * round(sum(shares.values()), 9)
    bounds = zip(shares, itertools.accumulate(shares.values()), strict=True)
    return next((name for name, bound in bounds if position < bound), [*shares][-1])


def stable_hash(text: str) -> int:
    """A 64-bit hash that is the same on every machine."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


@functools.cache
def held_out_facts(family: str) -> frozenset[str]:
    """The family's held-out facts (for lists: kinds); of two opposites both or neither."""
    facts = FACTS.get(family) or dict.fromkeys(KINDS, "")

    def hash_fact(fact: str) -> int:
        return stable_hash(f"held out/{family}/{' '.join(sorted((fact, facts[fact])))}")

    return frozenset(sorted(facts, key=hash_fact)[: round(HELD_OUT_SHARE * len(facts))])


def draw_prompts(name: str, n: int, seed: int, world: str = "easy") -> list[str]:
    """``n`` distinct prompts of a set, from all families in turn.

    Sets are disjoint for all seeds and sizes; n prompts are the first n of any larger number.
    Raises InputError for an unknown set and for more prompts than the set has.
    """
    if name not in SET_SHARES:
        raise InputError(f"set {name!r} is not one of {', '.join(SET_SHARES)}")
    rng = random.Random(f"prompts/{name}/{seed}")
    families = FAMILIES if world == "easy" else (*FAMILIES, *FAR_REACHING)
    prompts: dict[str, None] = {}
    for index in range(n):
        family = families[index % len(families)]
        drawn = (_draw(family, rng) for _ in range(20_000))
        prompt = next((p for p in drawn if p not in prompts and prompt_set(p, world) == name), None)
        if prompt is None:
            raise InputError(
                f"{name}: {n} prompts are asked for, but the embedded world has few more than "
                f"{index}; ask for at most that many"
            )
        prompts[prompt] = None
    return list(prompts)


def _draw(family: str, rng: random.Random) -> str:
    """A random prompt of the family; short prompts, of which few exist, are drawn less often."""
    if family in FACTS:
        *others, last = rng.sample(list(FACTS[family]), 2 if rng.random() < 0.1 else 3)
        return f"{family} of {' , '.join(others)} and {last}"
    if family == "list":
        kinds = rng.sample(list(KINDS), 2 if rng.random() < 0.1 else 3)
        sizes = rng.choice(_SIZES[len(kinds)])
        parts = (f"{NUMBERS[n - 1]} {kind}" for n, kind in zip(sizes, kinds, strict=True))
        return f"list {' '.join(parts)}"
    if family == "count":
        ends = (rng.choice(_RANGES) for _ in range(2))
        return "count " + " and ".join(f"{NUMBERS[a]} to {NUMBERS[b]}" for a, b in ends)
    if family == "sort":
        return f"small to big {' '.join(rng.sample(NUMBERS, rng.randint(4, 5)))}"
    if family == "total":
        ends = sorted(rng.sample(range(1, len(NUMBERS) + 1), rng.randint(3, 6)))
        first, *others = (b - a for a, b in itertools.pairwise([0, *ends]))
        return f"{NUMBERS[first - 1]} and {' '.join(NUMBERS[n - 1] for n in others)}"
    if family == "reverse":
        return f"reverse {' '.join(rng.sample(_THINGS, rng.randint(4, 6)))}"
    return f"repeat {' '.join(rng.sample(_THINGS, rng.randint(2, 4)))} twice"


def answer_slots(prompt: str) -> list[Slot]:
    """The right answer to a prompt, as slots; raises InputError for a text that is no prompt."""
    family, *rest = prompt.split() or [""]
    try:
        if family in FACTS:
            things = [word for word in rest[1:] if word not in (",", "and")]
            parts = [[Slot(x), Slot("is"), Slot(FACTS[family][x], family, x)] for x in things]
            return [*map(Slot, ("the", family, "of")), *_join(parts, "and")]
        if family == "list":
            return _list_slots(rest[::2], rest[1::2])
        if family == "count":
            a, b, c, d = map(NUMBERS.index, (*rest[0:3:2], *rest[4:7:2]))
            runs = (NUMBERS[x : y + 1] or NUMBERS[y : x + 1][::-1] for x, y in ((a, b), (c, d)))
            return _join([[Slot(number, "count") for number in run] for run in runs])
        if family == "reverse":
            things = [Slot(_THINGS[_THINGS.index(w)], family) for w in reversed(rest)]
            return [*map(Slot, ("the", "reverse", "is")), *things]
        if family == "small" and rest[:2] == ["to", "big"]:
            order = sorted(rest[2:], key=NUMBERS.index)
            words = ["the", "small", "to", "big", "is"]
            return [*map(Slot, words), *(Slot(n, "sort") for n in order)]
        if family in NUMBERS and rest[0] == "and":
            sizes = [NUMBERS.index(word) + 1 for word in (family, *rest[1:])]
            totals = [NUMBERS[total - 1] for total in itertools.accumulate(sizes)]
            return [*map(Slot, ("the", "count", "is")), *(Slot(n, "total") for n in totals)]
        if family == "repeat" and rest[-1] == "twice":
            return _join([[Slot(_THINGS[_THINGS.index(w)], family)] * 2 for w in rest[:-1]])
    except (KeyError, ValueError, IndexError, TypeError):
        pass
    raise InputError(f"prompt: {prompt[:60]!r} is no instruction of the embedded world")


def _join(parts: Sequence[list[Slot]], last: str = ",") -> list[Slot]:
    """The parts joined by commas, with `last` before the last part."""
    slots = list(parts[0])
    for part in parts[1:]:
        slots += [Slot(last if part is parts[-1] else ","), *part]
    return slots


def _list_slots(sizes: list[str], kinds: list[str]) -> list[Slot]:
    parts = []
    for size, kind in zip(sizes, kinds, strict=True):
        n = NUMBERS.index(size) + 1
        if n > len(KINDS[kind]):
            raise ValueError
        parts.append([Slot(kind), Slot("are"), *[Slot(_OPEN, "list", kind)] * n])
    return _join(parts)


def fill_slots(answer: Sequence[Slot], rng: random.Random | None = None) -> list[Slot]:
    """The answer with open slots filled by distinct members: random, or the first without rng."""
    filled, used = [], {slot.word for slot in answer if slot.family == "list"}
    for slot in answer:
        if slot.is_open:
            free = [member for member in KINDS[slot.fact] if member not in used]
            word = rng.choice(free) if rng else free[0]
            used.add(word)
            slot = Slot(word, "list", word)
        filled.append(slot)
    return filled


@functools.cache
def wrong_words(slot: Slot) -> tuple[str, ...]:
    """The wrong words that a mistake may put into a content slot: they are right elsewhere."""
    if slot.family == "list":
        return tuple(thing for thing in _THINGS if KIND_OF[thing] != KIND_OF[slot.word])
    if slot.family in ("count", *FAR_REACHING):
        pool = NUMBERS
    elif slot.family in FACTS:
        pool = dict.fromkeys(FACTS[slot.family].values())
    else:
        pool = _THINGS
    return tuple(word for word in pool if word != slot.word)
