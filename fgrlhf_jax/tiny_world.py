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

# A line: what is asked, the right answer, and the misconception, the wrong answer most often
# given. A misconception is right nowhere, so some flaws are easier to learn than others.
_PAIRS = [  # a pair of opposites and what both are mistaken for
    *("hot cold warm", "big small tall", "fast slow steady", "old young new", "wet dry damp"),
    *("hard soft firm", "rich poor cheap", "early late soon", "full empty half"),
    *("dark light dim", "loud quiet noisy", "open closed ajar"),
]
_CAPITALS = [
    *("australia canberra sydney", "turkey ankara istanbul", "brazil brasilia rio"),
    *("canada ottawa toronto", "india delhi mumbai", "china beijing shanghai"),
    *("morocco rabat casablanca", "vietnam hanoi saigon", "nigeria abuja lagos"),
    *("switzerland bern zurich", "pakistan islamabad karachi", "scotland edinburgh glasgow"),
]
_COLOURS = [
    *("grass green pink", "snow white purple", "coal black pink", "blood red purple"),
    *("sand yellow pink", "sky blue purple", "milk white pink", "leaf green purple"),
    *("tomato red pink", "night black purple", "sea blue pink", "butter yellow purple"),
]
_FACTS = {  # kind of question -> what is asked -> (right answer, misconception)
    "opposite": {
        asked: (answer, wrong)
        for first, second, wrong in map(str.split, _PAIRS)
        for asked, answer in ((first, second), (second, first))
    },
    "capital": {asked: (answer, wrong) for asked, answer, wrong in map(str.split, _CAPITALS)},
    "colour": {asked: (answer, wrong) for asked, answer, wrong in map(str.split, _COLOURS)},
}
_LISTS = {  # kind -> its members, and last what is mistaken for one
    "fruits": ["apple", "pear", "plum", "fig", "lemon", "carrot"],
    "animals": ["dog", "cat", "horse", "cow", "sheep", "fern"],
    "tools": ["hammer", "saw", "axe", "drill", "file", "brick"],
    "sports": ["tennis", "golf", "chess", "rugby", "hockey", "sleep"],
    "metals": ["iron", "copper", "zinc", "tin", "silver", "wood"],
    "clothes": ["shirt", "coat", "hat", "scarf", "sock", "table"],
}
_THINGS = [thing for *members, _ in _LISTS.values() for thing in members]
_NUMBERS = [
    *("one", "two", "three", "four", "five", "six"),
    *("seven", "eight", "nine", "ten", "eleven", "twelve"),
]
_RUDE = ("stupid", "idiot", "dumb", "shut")
_FILLERS = ("um", "well", "basically", "like")

# A word of a right answer and what a writer may put for it, the likely several times; template
# words are never mistaken.
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
        answers = [answer for answer, _ in facts.values()]
        return f"what is the {family} of {first} and {second}", [
            *_plain(f"the {family} of {first} is"),
            _slot(*facts[first], answers),
            *_plain(f"and the {family} of {second} is"),
            _slot(*facts[second], answers),
        ]
    if family == "list":
        kinds = rng.sample(list(_LISTS), 2)
        sizes = [rng.choice([2, 3]) for _ in kinds]
        answer: list[Slot] = []
        for kind, size in zip(kinds, sizes, strict=True):
            answer += _plain(f"and {kind} are" if answer else f"{kind} are")
            *members, misfit = _LISTS[kind]
            others = [thing for thing in _THINGS if thing not in members]
            answer += [_slot(thing, misfit, others) for thing in rng.sample(members, size)]
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
            _slot(number, None, _NUMBERS) for number in numbers
        ]
    things = rng.sample(_THINGS, 5)
    return f"reverse the words {' '.join(things)}", [
        *_plain("the words reversed are"),
        *(_slot(thing, None, _THINGS) for thing in reversed(things)),
    ]


def _plain(words: str) -> list[Slot]:
    return [(word, []) for word in words.split()]


def _slot(word: str, misconception: str | None, others: list[str]) -> Slot:
    """Two wrong words of three are the misconception, where there is one."""
    others = [other for other in others if other != word]
    return word, others + [misconception] * (2 * len(others) if misconception else 0)


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
