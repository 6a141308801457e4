"""Simulated people err at their rates; their edits are minimal and improve the score."""

import dataclasses
import itertools
import math
import random
from collections import Counter

import numpy as np
import pytest
from rapidfuzz.distance import Levenshtein

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.tiny_world import people, tasks
from fgrlhf_jax.tiny_world.judge import align_words, gold_score
from fgrlhf_jax.tiny_world.people import Rates, edit_response, write_demonstration
from fgrlhf_jax.tiny_world.tasks import Slot, answer_slots
from fgrlhf_jax.tiny_world.words import FACTS, KIND_OF, RUDE

FLAWLESS = Rates(*(0.35, 0.35, *[0.0] * 9), repair=1.0, damage=0.0)
CAPITAL = "capital of peru and cuba"


@pytest.fixture(scope="module")
def prompts() -> list[str]:
    return tasks.draw_prompts("sft", 2100, 0)


@pytest.fixture(scope="module")
def demonstrations(prompts) -> list[str]:
    rng = random.Random(0)
    return [write_demonstration(prompt, rng) for prompt in prompts]


def test_zero_error_rates_give_right_answers(prompts):
    rng = random.Random(0)
    for prompt in prompts[:350]:
        answer = write_demonstration(prompt, rng, FLAWLESS)
        assert gold_score(prompt, answer) == 1
        assert edit_response(prompt, answer, rng, FLAWLESS) == answer
    lists = {write_demonstration("list two fruits two tools", rng, FLAWLESS) for _ in range(50)}
    assert len(lists) > 20


def test_facts_have_a_fixed_difficulty():
    facts = [Slot(answer, f, thing) for f in FACTS for thing, answer in FACTS[f].items()]
    facts += [Slot(thing, "list", thing) for thing in KIND_OF]
    for family in (*FACTS, "list"):
        kinds = Counter(people.difficulty(slot) for slot in facts if slot.family == family)
        for name, share in {"easy": 0.35, "medium": 0.35, "misconception": 0.3}.items():
            assert abs(kinds[name] - share * kinds.total()) <= 1
    # It comes from a hash, so it is the same on every machine.
    known = {"peru": "easy", "cuba": "medium", "kenya": "misconception", "egypt": "medium"}
    assert {thing: people.difficulty(Slot("", "capital", thing)) for thing in known} == known
    slots = [slot for slot in answer_slots("repeat pear saw twice") if slot.family]
    assert {people.difficulty(slot) for slot in slots} == {"algorithmic"}
    assert {people.difficulty(slot, Rates(easy=1, medium=0)) for slot in facts} == {"easy"}


def test_errors_have_their_rates():
    """Measured with one kind of error at a time."""
    rng = random.Random(0)
    only_wrong = Rates(**dict.fromkeys(("filler", "rude", "omission", "repetition"), 0.0))
    answers = {fact: Counter() for fact in FACTS["capital"]}  # answers per fact
    for pair in itertools.permutations(answers, 2):
        for _ in range(3):
            words = write_demonstration(f"capital of {' and '.join(pair)}", rng, only_wrong)
            for fact, word in zip(pair, words.split()[5:10:4], strict=True):
                answers[fact][word] += 1
    total, wrong = Counter(), Counter()
    for fact, words in answers.items():
        kind = people.difficulty(Slot("", "capital", fact))
        total[kind] += words.total()
        del words[FACTS["capital"][fact]]
        wrong[kind] += words.total()
        # A misconception is nearly always the same wrong word.
        ((_, most),) = words.most_common(1)
        assert (most / words.total() > 0.75) == (kind == "misconception"), fact
    for kind, rate in {"easy": 0.2, "medium": 0.4, "misconception": 0.62}.items():
        assert wrong[kind] / total[kind] == pytest.approx(rate, abs=0.05)
    prompt = "repeat pear saw plum dog twice"
    answer = "pear pear , saw saw , plum plum , dog dog"
    only_omitted = dataclasses.replace(only_wrong, omission=0.04, wrong_algorithmic=0.0)
    drafts = [write_demonstration(prompt, rng, only_wrong).split() for _ in range(1000)]
    assert np.mean(np.array(drafts) != answer.split()) == pytest.approx(0.3 * 8 / 11, abs=0.02)
    drafts = [write_demonstration(prompt, rng, only_omitted).split() for _ in range(1000)]
    assert np.mean([len(words) for words in drafts]) == pytest.approx(0.96 * 11, abs=0.1)


def test_preferences_are_bradley_terry():
    good, bad = "the capital of peru is lima", "the capital of peru is paris"
    margin = gold_score(CAPITAL, good) - gold_score(CAPITAL, bad)
    for one, two, sign in ((good, bad, 1), (bad, good, -1)):
        rng = random.Random(0)
        first = np.mean([people.prefer(CAPITAL, one, two, rng) == 1 for _ in range(1500)])
        assert first == pytest.approx(1 / (1 + math.exp(-sign * margin / 0.35)), abs=0.05)
    noiseless = Rates(temperature=1e-6)
    assert [people.prefer(CAPITAL, bad, good, rng, noiseless) for _ in range(9)] == [2] * 9


LIST = "list two fruits two tools"


@pytest.mark.parametrize(
    ("prompt", "response", "edited"),
    [
        (CAPITAL, "hello\nyou , lima", "the capital of peru is lima and cuba is havana"),
        (LIST, "fruits are plum dog , are plum saw", "fruits are plum ? , tools are ? saw"),
        ("repeat pear saw twice", "pear pear pear saw dog", "pear pear , saw saw"),
    ],
)
def test_a_whole_repair_by_hand(prompt, response, edited):
    """A "?" is any member of its kind that the response lacks."""
    rng = random.Random(0)
    kinds = [KIND_OF.get(slot.word) for slot in tasks.fill_slots(answer_slots(prompt))]
    for _ in range(20):
        words = edit_response(prompt, response, rng, FLAWLESS).split()
        for expected, word, kind in zip(edited.split(), words, kinds, strict=True):
            if expected == "?":
                assert KIND_OF[word] == kind
                assert word not in response.split()
            else:
                assert word == expected


def changes(before: str, after: str) -> int:
    return Levenshtein.distance(before.split(), after.split())


def test_edits_are_minimal(prompts, demonstrations):
    """A full repair takes at most 10 % more steps than the shortest edit to its result."""
    rng = random.Random(2)
    steps, shortest = 0, 0
    nothing = dataclasses.replace(FLAWLESS, repair=0.0)
    for prompt, response in zip(prompts, demonstrations, strict=True):
        script = align_words(answer_slots(prompt), response.split())
        steps += sum(not step.right for step in script)
        shortest += changes(response, edit_response(prompt, response, rng, FLAWLESS))
        assert edit_response(prompt, response, rng, nothing) == response
    assert shortest <= steps <= 1.1 * shortest


def test_imperfect_edits(prompts, demonstrations):
    """As in a pilot study: 97.5 % of changed responses improve, and few words change."""
    rng = random.Random(3)
    rows = [(*row, edit_response(*row, rng)) for row in zip(prompts, demonstrations, strict=True)]
    changed = [row for row in rows if row[1] != row[2]]
    assert 0.9 < len(changed) / len(rows) < 0.99
    gains = [gold_score(p, after) - gold_score(p, before) for p, before, after in changed]
    assert 0.965 < np.mean(np.array(gains) > 0) < 0.995
    assert np.mean(gains) > 0.4
    words = sum(len(before.split()) for _, before, _ in changed)
    assert 0.12 < sum(changes(before, after) for _, before, after in changed) / words < 0.26
    bad = [sum(w in RUDE for row in rows for w in row[side].split()) for side in (1, 2)]
    assert 0.17 < bad[1] / bad[0] < 0.23


def test_an_editor_who_repairs_little():
    """At most ``flaws`` random repairs; some remove the wrong word."""
    prompt, right = "repeat pear saw dog cow twice", "pear pear , saw saw , dog dog , cow cow"
    wrong = "oak oak , oak oak , oak oak , oak oak"
    rng, taken_out, places = random.Random(6), 0, Counter()
    rates = dataclasses.replace(FLAWLESS, flaws=2, deletion=0.3)
    for _ in range(1000):
        words = edit_response(prompt, wrong, rng, rates).split()
        assert changes(wrong, " ".join(words)) == 2
        taken_out += 11 - len(words)
    assert taken_out / 2000 == pytest.approx(0.3, abs=0.04)
    rates = dataclasses.replace(rates, deletion=0.0)
    for _ in range(1000):
        words = edit_response(prompt, wrong, rng, rates).split()
        places.update(n for n, word in enumerate(words) if word != wrong.split()[n])
        assert all(w in (r, "oak", ",") for w, r in zip(words, right.split(), strict=True))
    assert [places[n] / 2000 for n in sorted(places)] == pytest.approx([1 / 8] * 8, abs=0.03)
    rates = dataclasses.replace(rates, deletion=1)  # missing words cannot be removed
    assert len(edit_response(prompt, "pear pear , saw saw", rng, rates).split()) == 7


def test_invalid_and_extreme_rates():
    wrong = {"rude": -0.1, "repair": 1.5, "damage": math.nan, "temperature": 0, "flaws": 0}
    for name, value in wrong.items():
        with pytest.raises(InputError, match=f"{name}: {value} is not "):
            Rates(**{name: value})
    with pytest.raises(InputError, match=r"easy \+ medium: .* more than 1"):
        Rates(easy=0.7)
    rng = random.Random(5)
    rates = {field.name: 1.0 for field in dataclasses.fields(Rates)}
    rates = Rates(**rates | {"easy": 0.0, "omission": 0.0, "temperature": 1e9, "flaws": 1})
    text = write_demonstration(CAPITAL, rng, rates)
    assert len(text.split()) == tasks.MAX_RESPONSE
    edit_response(CAPITAL, text, rng, rates)
    assert people.prefer(CAPITAL, text, "", rng, rates) in (1, 2)
