"""Right answers by hand and by independent code; disjoint sets of prompts."""

import itertools
import random
from collections import Counter

import pytest

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.tiny_world import tasks
from fgrlhf_jax.tiny_world.tasks import SET_SHARES, Slot, answer_slots, draw_prompts, fill_slots
from fgrlhf_jax.tiny_world.words import FACTS, FAMILIES, KIND_OF, KINDS, NUMBERS, vocabulary

# More of each set than any stage takes.
SIZES = {"sft": 16000, "feedback": 6000, "ppo": 5600, "validation": 1050, "test": 2100}


@pytest.fixture(scope="module")
def drawn():
    return {name: draw_prompts(name, size, 0) for name, size in SIZES.items()}


@pytest.mark.parametrize(
    ("prompt", "answer"),  # with content in capitals
    [
        ("opposite of cold and hot", "the opposite of cold is HOT and hot is COLD"),
        ("capital of peru and cuba", "the capital of peru is LIMA and cuba is HAVANA"),
        (
            "colour of tea , pear and sea",
            "the colour of tea is BROWN , pear is GREEN and sea is BLUE",
        ),
        ("list two fruits three tools", "fruits are APPLE PEAR , tools are HAMMER SAW AXE"),
        ("count three to five and nine to seven", "THREE FOUR FIVE , NINE EIGHT SEVEN"),
        ("reverse pear saw dog cow", "the reverse is COW DOG SAW PEAR"),
        ("repeat pear saw twice\n", "PEAR PEAR , SAW SAW"),
        ("small to big ten two six nine", "the small to big is TWO SIX NINE TEN"),
        ("three and two four", "the count is THREE FIVE NINE"),
    ],
)
def test_right_answers_by_hand(prompt, answer):
    slots = fill_slots(answer_slots(prompt))
    assert {slot.weight for slot in slots} == {tasks.CONTENT, tasks.TEMPLATE} == {10, 1}
    texts = (s.word.upper() if s.weight == tasks.CONTENT else s.word for s in slots)
    assert " ".join(texts) == answer


@pytest.mark.parametrize(
    "prompt",
    [
        *("", "hello", "opposite", "opposite of paris", "capital of hot", "list", "list two"),
        *("list two pears", "list six fruits", "count one to two", "count one to two and pear"),
        *("reverse hot", "repeat pear saw", "repeat twice", "repeat hot twice", "twice pear"),
        *("small to big hot", "small ten two", "three two four", "nine and nine"),
    ],
)
def test_a_prompt_of_another_world(prompt):
    with pytest.raises(InputError, match="no instruction of the embedded world"):
        answer_slots(prompt)


def test_sets_are_disjoint_and_large(drawn):
    assert {name: len(texts) for name, texts in drawn.items()} == SIZES
    everything = [prompt for texts in drawn.values() for prompt in texts]
    assert len(set(everything)) == len(everything) > 30_000
    other = {name: draw_prompts(name, 700, seed=1) for name in SET_SHARES}
    for name in SET_SHARES:
        assert {tasks.prompt_set(prompt) for prompt in drawn[name] + other[name]} == {name}
        assert other[name] != drawn[name][:700]
        assert Counter(prompt.split()[0] for prompt in other[name]) == dict.fromkeys(FAMILIES, 100)
    assert draw_prompts("test", 20, 0) == drawn["test"][:20]


def test_a_set_is_a_hash_of_the_text_alone():
    """It must be the same on all machines and in later versions."""
    texts = [f"reverse {a} {b}" for a, b in itertools.permutations(KIND_OF, 2)]
    shares = Counter(map(tasks.prompt_set, texts))
    for name, share in SET_SHARES.items():
        assert abs(shares[name] / len(texts) - share) < 0.03
    assert sum(SET_SHARES.values()) == pytest.approx(1)
    known = "sft feedback ppo feedback feedback test sft validation"
    assert " ".join(map(tasks.prompt_set, texts[:8])) == known


def test_sets_of_the_fair_world():
    sizes = {"sft": 1800, "feedback": 1800, "ppo": 900, "validation": 500, "test": 1500}
    fair = {name: draw_prompts(name, size, 0, "fair") for name, size in sizes.items()}
    assert {name: len(set(texts)) for name, texts in fair.items()} == sizes
    # Prompts with the same words in any order are in one set.
    words = {name: {tuple(sorted(p.split())) for p in texts} for name, texts in fair.items()}
    assert len(set.union(*words.values())) == sum(map(len, words.values()))
    known = {name: {known_by(p) for p in texts} for name, texts in fair.items()}
    facts = {name: frozenset().union(*known[name]) for name in fair}
    assert not facts["feedback"] & (facts["test"] | facts["validation"])
    assert facts["sft"] == facts["ppo"] == facts["feedback"] | facts["test"]
    assert len(facts["test"]) == 10 + 8 + 8 + 4
    # Two opposites are held out together.
    for family, thing in facts["test"]:
        if family == "opposite":
            assert (family, FACTS[family][thing]) in facts["test"]
    families = Counter(prompt.split()[0] for prompt in fair["feedback"][:900])
    numbers = sum(families.pop(number, 0) for number in NUMBERS)
    assert numbers == 100
    assert families == dict.fromkeys([*FAMILIES, "small"], 100)
    assert draw_prompts("test", 20, 0, "fair") == fair["test"][:20]


def known_by(prompt: str) -> frozenset[tuple[str, str]]:
    """The facts and kinds that an answer needs."""
    family, *rest = prompt.split()
    of_family = {**FACTS, "list": KINDS}.get(family, ())
    return frozenset((family, word) for word in rest if word in of_family)


def test_prompts_and_answers_fit(drawn):
    words = set(vocabulary())
    for prompt in drawn["feedback"] + draw_prompts("feedback", 900, 0, "fair"):
        answer = [slot.word for slot in fill_slots(answer_slots(prompt))]
        assert {*prompt.split(), *answer} <= words
        assert len(prompt.split()) <= tasks.MAX_PROMPT
        assert 5 <= len(answer) <= tasks.MAX_RESPONSE - 5  # room for extra words


def test_impossible_requests_for_prompts():
    with pytest.raises(InputError, match="'train' is not one of sft"):
        draw_prompts("train", 3, 0)
    with pytest.raises(InputError, match=r"validation: 90000 prompts .* ask for at most"):
        draw_prompts("validation", 90_000, 0)


def test_fill_takes_each_member_once():
    answer = answer_slots("list four fruits two tools")
    answer[4] = Slot("apple", "list", "apple")  # as the editor keeps right members
    words = [slot.word for slot in fill_slots(answer) if slot.family]
    assert words == ["pear", "plum", "apple", "lemon", "hammer", "saw"]
    drawn = {tuple(fill_slots(answer, random.Random(seed))) for seed in range(50)}
    assert len(drawn) > 30
    assert all(len({slot.word for slot in row if slot.family}) == 6 for row in drawn)


def test_a_wrong_word_is_wrong():
    for prompt in ("opposite of hot and big", "colour of sea and snow", "list two tools"):
        for slot in fill_slots(answer_slots(prompt)):
            if slot.family:
                wrong = tasks.wrong_words(slot)
                assert slot.word not in wrong
                assert len(set(wrong)) == len(wrong) >= 9
    assert not set(tasks.wrong_words(Slot("saw", "list", "saw"))) & set(KINDS["tools"])
