"""Right answers by hand and by other means; prompts that no two sets share."""

import itertools
import random
from collections import Counter

import pytest

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.tiny_world.tasks import (
    CONTENT,
    MAX_PROMPT,
    MAX_RESPONSE,
    SETS,
    Slot,
    answer_slots,
    canonical_answer,
    draw_prompts,
    fill_slots,
    set_of,
    wrong_words,
)
from fgrlhf_jax.tiny_world.words import FACTS, FAMILIES, KIND_OF, KINDS, NUMBERS, vocabulary

# More of each set than any stage takes.
SIZES = {"sft": 16000, "feedback": 6000, "ppo": 5600, "validation": 1050, "test": 2100}


@pytest.fixture(scope="module")
def drawn():
    return draw_prompts(SIZES, 0)


@pytest.mark.parametrize(
    ("prompt", "answer", "content"),
    [
        (
            "opposite of hot , big and slow",
            "the opposite of hot is cold , big is small and slow is fast",
            "cold small fast",
        ),
        ("opposite of cold and hot", "the opposite of cold is hot and hot is cold", "hot cold"),
        (
            "capital of peru and cuba",
            "the capital of peru is lima and cuba is havana",
            "lima havana",
        ),
        (
            "colour of snow , pear and sea",
            "the colour of snow is white , pear is green and sea is blue",
            "white green blue",
        ),
        (
            "list two fruits three tools",
            "fruits are apple pear , tools are hammer saw axe",
            "apple pear hammer saw axe",
        ),
        (
            "count three to six and nine to seven",
            "three four five six , nine eight seven",
            "three four five six nine eight seven",
        ),
        ("count three to one and one to three", "three two one , one two three", None),
        ("reverse pear saw dog cow", "the reverse is cow dog saw pear", "cow dog saw pear"),
        ("repeat pear saw twice", "pear pear , saw saw", "pear pear saw saw"),
        ("repeat pear saw twice\n", "pear pear , saw saw", "pear pear saw saw"),
    ],
)
def test_right_answers_by_hand(prompt, answer, content):
    words = canonical_answer(prompt)
    assert " ".join(word for word, _ in words) == answer
    assert {weight for _, weight in words} == {10, 1}
    if content:
        assert " ".join(word for word, weight in words if weight == CONTENT) == content


def test_right_answers_of_drawn_prompts(drawn):
    """What the content words have in common with the prompt, family by family."""
    for prompt in drawn["test"]:
        family, *rest = prompt.split()
        content = [word for word, weight in canonical_answer(prompt) if weight == CONTENT]
        if family in FACTS:
            asked = [word for word in rest if word in FACTS[family]]
            assert [FACTS[family][word] for word in asked] == content
            assert len(asked) in (2, 3)
        elif family == "list":
            wanted = Counter(dict(zip(rest[1::2], map(NUMBERS.index, rest[::2]), strict=True)))
            assert Counter(map(KIND_OF.get, content)) == wanted + Counter(wanted.keys())
            assert len(set(content)) == len(content)
        elif family == "count":
            steps = [
                NUMBERS.index(b) - NUMBERS.index(a) for a, b in itertools.pairwise(content)
            ]
            assert sum(abs(step) != 1 for step in steps) <= 1  # between the two runs
            assert {rest[0], rest[2], rest[4], rest[6]} <= {*content}
        elif family == "reverse":
            assert content == rest[::-1]
        else:
            assert content[::2] == content[1::2] == rest[:-1]


@pytest.mark.parametrize(
    "prompt",
    [
        *("", "hello", "opposite", "opposite of paris", "capital of hot", "list", "list two"),
        *("list two pears", "list six fruits", "count one to two", "count one to two and pear"),
        *("reverse hot", "repeat pear saw", "repeat twice", "repeat hot twice", "twice pear"),
    ],
)
def test_a_prompt_of_another_world(prompt):
    with pytest.raises(InputError, match="no instruction of the tiny world"):
        answer_slots(prompt)


def test_sets_are_disjoint_and_large(drawn):
    assert {name: len(texts) for name, texts in drawn.items()} == SIZES
    everything = [prompt for texts in drawn.values() for prompt in texts]
    assert len(set(everything)) == len(everything) > 30_000
    other = draw_prompts(dict.fromkeys(SETS, 700), seed=1)
    for name in SETS:
        assert {set_of(prompt) for prompt in drawn[name] + other[name]} == {name}
        assert other[name] != drawn[name][:700]
        families = Counter(prompt.split()[0] for prompt in other[name])
        assert families == dict.fromkeys(FAMILIES, 100)


def test_a_set_is_a_hash_of_the_text_alone():
    """Other machines and later versions must agree on it."""
    texts = [f"reverse {a} {b}" for a, b in itertools.permutations(KIND_OF, 2)]
    shares = Counter(map(set_of, texts))
    for name, share in SETS.items():
        assert abs(shares[name] / len(texts) - share) < 0.03
    assert sum(SETS.values()) == pytest.approx(1)
    known = "sft feedback ppo feedback feedback test sft validation"
    assert " ".join(map(set_of, texts[:8])) == known


def test_fewer_are_the_first_of_more(drawn):
    few = draw_prompts({"test": 20, "ppo": 7}, 0)
    assert few == {"test": drawn["test"][:20], "ppo": drawn["ppo"][:7]}


def test_prompts_and_answers_fit(drawn):
    words = set(vocabulary())
    for prompt in drawn["feedback"]:
        answer = [word for word, _ in canonical_answer(prompt)]
        assert {*prompt.split(), *answer} <= words
        assert len(prompt.split()) <= MAX_PROMPT
        assert 5 <= len(answer) <= MAX_RESPONSE - 5  # room for what is too much


def test_what_there_is_not():
    with pytest.raises(InputError, match="'train' is not one of sft"):
        draw_prompts({"train": 3}, 0)
    with pytest.raises(InputError, match=r"validation: 90000 prompts .* ask for at most"):
        draw_prompts({"validation": 90_000}, 0)


def test_fill_takes_each_member_once():
    answer = answer_slots("list four fruits two tools")
    assert [slot.word for slot in fill_slots(answer) if slot.family][:4] == [
        *KINDS["fruits"][:4]
    ]
    answer[4] = Slot("apple", "list", "apple")  # as an editor does with what is right already
    words = [slot.word for slot in fill_slots(answer) if slot.family]
    assert words == ["pear", "plum", "apple", "lemon", "hammer", "saw"]
    drawn = {tuple(fill_slots(answer, random.Random(seed))) for seed in range(50)}
    assert len(drawn) > 30
    assert all(len({slot.word for slot in row if slot.family}) == 6 for row in drawn)


def test_a_wrong_word_is_wrong():
    for prompt in ("opposite of hot and big", "colour of sea and snow", "list two tools"):
        for slot in fill_slots(answer_slots(prompt)):
            if slot.family:
                wrong = wrong_words(slot)
                assert slot.word not in wrong
                assert len(set(wrong)) == len(wrong) >= 9
    assert not set(wrong_words(Slot("saw", "list", "saw"))) & set(KINDS["tools"])
