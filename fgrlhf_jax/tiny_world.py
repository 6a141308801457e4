"""A tiny world of under 200 words: instructions, flawed responses, their edits, preferences.

Six families (opposites, capitals, colours, lists, counting, reversing) make several hundred
distinct prompts, and the same facts return in other company, so a model of two layers learns in
a few hundred steps what is wrong, also on prompts it has not seen. A draft has wrong words,
rude words, fillers, omissions and repetitions; an edit repairs each with probability 0.8.
"""

import math
import random
from collections.abc import Iterable

from fgrlhf_jax.records import Edit, Preference


def _facts(*pairs: str) -> dict[str, str]:
    return dict(pair.split() for pair in pairs)


_OPPOSITES = _facts(
    *("hot cold", "big small", "fast slow", "old young", "up down", "left right", "wet dry"),
    *("open closed", "hard soft", "high low", "rich poor", "early late", "full empty"),
    "dark light",
)
_FACTS = {  # kind of question -> thing asked -> answer
    "opposite": _OPPOSITES | {second: first for first, second in _OPPOSITES.items()},
    "capital": _facts(
        *("france paris", "japan tokyo", "italy rome", "spain madrid", "egypt cairo"),
        *("peru lima", "norway oslo", "cuba havana", "greece athens", "kenya nairobi"),
        *("chile santiago", "austria vienna", "russia moscow", "china beijing"),
    ),
    "colour": _facts(
        *("grass green", "snow white", "coal black", "blood red", "sand yellow", "sky blue"),
        *("milk white", "leaf green", "tomato red", "night black", "sea blue"),
        *("butter yellow", "mud brown", "coffee brown"),
    ),
}
_LISTS = {
    "fruits": ["apple", "pear", "plum", "fig", "lemon", "cherry"],
    "animals": ["dog", "cat", "horse", "cow", "sheep", "goat"],
    "tools": ["hammer", "saw", "axe", "drill", "file", "knife"],
    "sports": ["tennis", "golf", "chess", "rugby", "hockey", "judo"],
    "metals": ["iron", "copper", "zinc", "tin", "silver", "nickel"],
    "clothes": ["shirt", "coat", "hat", "scarf", "sock", "glove"],
    "birds": ["eagle", "owl", "robin", "duck", "swan", "crow"],
}
_THINGS = [thing for members in _LISTS.values() for thing in members]
_NUMBERS = [
    *("one", "two", "three", "four", "five", "six"),
    *("seven", "eight", "nine", "ten", "eleven", "twelve"),
]
_RUDE = ("stupid", "idiot", "dumb", "shut")
_FILLERS = ("um", "well", "basically", "like")

# A word of a right answer with the words that would be wrong there; none for template words.
Slot = tuple[str, list[str]]
# What stands in a draft and what should stand there, either of them perhaps nothing.
Unit = tuple[str, str]


def generate(n: int, seed: int) -> tuple[list[Edit], list[Preference]]:
    """n edits and n preferences on the same n prompts (not all distinct), a function of seed.

    A preference follows the number of flaws, with Bradley-Terry noise: one flaw fewer wins with
    probability 0.88.
    """
    rng = random.Random(seed)
    edits, preferences = [], []
    for index in range(n):
        instruction, answer = _task(rng)
        original, edited = "", ""
        while original == edited:
            draft = _draft(rng, answer)
            original = _text(given for given, _ in draft)
            edited = _text(right if rng.random() < 0.8 else given for given, right in draft)
        edits.append(Edit(instruction, "", original, edited, id=f"tiny/{seed}/{index}"))

        one, two = "", ""
        while one == two:
            drafts = [_draft(rng, answer) for _ in range(2)]
            one, two = (_text(given for given, _ in draft) for draft in drafts)
        flaws = [sum(given != right for given, right in draft) for draft in drafts]
        better = 1 if rng.random() < 1 / (1 + math.exp(-2 * (flaws[1] - flaws[0]))) else 2
        preferences.append(
            Preference(instruction, "", one, two, better, id=f"tiny/{seed}/{index}")
        )
    return edits, preferences


def _task(rng: random.Random) -> tuple[str, list[Slot]]:
    """An instruction and its right answer."""
    family = rng.choice([*_FACTS, "list", "count", "reverse"])
    if family in _FACTS:
        facts = _FACTS[family]
        first, second = rng.sample(list(facts), 2)
        answers = list(dict.fromkeys(facts.values()))
        return f"what is the {family} of {first} and {second}", [
            *_plain(f"the {family} of {first} is"),
            _slot(facts[first], answers),
            *_plain(f"and the {family} of {second} is"),
            _slot(facts[second], answers),
        ]
    if family == "list":
        kinds = rng.sample(list(_LISTS), 2)
        sizes = [rng.choice([2, 3]) for _ in kinds]
        answer: list[Slot] = []
        for kind, size in zip(kinds, sizes, strict=True):
            answer += _plain(f"and {kind} are" if answer else f"{kind} are")
            wrong = [thing for thing in _THINGS if thing not in _LISTS[kind]]
            answer += [(thing, wrong) for thing in rng.sample(_LISTS[kind], size)]
        wanted = " and ".join(
            f"{_NUMBERS[size - 1]} {kind}" for kind, size in zip(kinds, sizes, strict=True)
        )
        return f"list {wanted}", answer
    if family == "count":
        start, end = rng.sample(range(len(_NUMBERS)), 2)
        while abs(start - end) < 5:
            start, end = rng.sample(range(len(_NUMBERS)), 2)
        step = 1 if end > start else -1
        numbers = _NUMBERS[start::step][: abs(end - start) + 1]
        return f"count from {numbers[0]} to {numbers[-1]}", [
            _slot(number, _NUMBERS) for number in numbers
        ]
    things = rng.sample(_THINGS, 5)
    return f"reverse the words {' '.join(things)}", [
        *_plain("the words reversed are"),
        *(_slot(thing, _THINGS) for thing in reversed(things)),
    ]


def _plain(words: str) -> list[Slot]:
    return [(word, []) for word in words.split()]


def _slot(word: str, alternatives: list[str]) -> Slot:
    return word, [other for other in alternatives if other != word]


def _draft(rng: random.Random, answer: list[Slot]) -> list[Unit]:
    """The answer as an imperfect writer gives it, with at least one flaw."""
    while True:
        units: list[Unit] = []
        for word, wrong in answer:
            chance = rng.random()
            if wrong and chance < 0.2:
                units.append((rng.choice(wrong), word))
            elif wrong and chance < 0.24:
                units.append(("", word))
            else:
                units.append((word, word))
                if chance > 0.97:
                    units.append((word, ""))
            if rng.random() < 0.06:
                units.append((rng.choice(rng.choice([_RUDE, _FILLERS])), ""))
        if any(given != right for given, right in units):
            return units


def _text(words: Iterable[str]) -> str:
    return " ".join(word for word in words if word)
