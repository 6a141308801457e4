"""Gold scores by hand and by brute force; rewards of words and tokens sum to the score."""

import itertools
import random
from collections import Counter

import pytest
from rapidfuzz.distance import Levenshtein

from fgrlhf_jax.data.templates import encode_text
from fgrlhf_jax.data.tokenizers import train_tokenizer
from fgrlhf_jax.errors import InputError
from fgrlhf_jax.tiny_world import judge as gold
from fgrlhf_jax.tiny_world.judge import END, align_words, gold_score, judge, word_rewards
from fgrlhf_jax.tiny_world.people import Rates, edit_response, write_demonstration
from fgrlhf_jax.tiny_world.tasks import Slot, answer_slots, draw_prompts, fill_slots
from fgrlhf_jax.tiny_world.words import KIND_OF, KINDS, RUDE, make_tokenizer

CAPITAL = "capital of peru and cuba"  # the capital of peru is lima and cuba is havana: 20 + 8
LIST = "list two fruits two tools"  # fruits are . . , tools are . .: 40 + 5
TWICE = "repeat pear saw twice"  # pear pear , saw saw: 40 + 1


@pytest.fixture(scope="module")
def drafts() -> list[tuple[str, str]]:
    """Prompts with demonstrations, and with random or far too many words."""
    rng = random.Random(0)
    prompts = draw_prompts("test", 210, 0)
    rows = [(prompt, write_demonstration(prompt, rng)) for prompt in prompts]
    for prompt in prompts:
        near = [*prompt.split(), *(slot.word for slot in fill_slots(answer_slots(prompt))), *RUDE]
        rows.append((prompt, " ".join(rng.choices(near, k=rng.randint(0, 30)))))
    return rows


@pytest.mark.parametrize(
    ("prompt", "response", "expected", "total"),
    [
        (CAPITAL, "the capital of peru is lima and cuba is havana", 28, 28),
        (CAPITAL, "", 0, 28),
        (CAPITAL, "the capital of peru is paris and cuba is havana", 28 - 10 - 3, 28),
        (CAPITAL, "the capital of peru is and cuba is havana", 28 - 10, 28),
        (CAPITAL, "the capital of peru is stupid lima and cuba is havana", 28 - 10, 28),
        (CAPITAL, "the capital of peru um is lima and cuba is havana", 28 - 3, 28),
        (CAPITAL, "havana lima", 10 - 3, 28),  # only one of two swapped words counts
        (CAPITAL, "tokyo giraffe", -6, 28),
        (LIST, "fruits are apple pear , tools are hammer saw", 45, 45),
        (LIST, "fruits are plum plum , tools are saw axe", 45 - 10 - 3, 45),
        (LIST, "fruits are plum pear lemon , tools are saw axe", 45 - 3, 45),
        (LIST, "fruits are saw pear , tools are saw axe", 45 - 10 - 3, 45),  # saw counts below
        (LIST, "fruits are pear , are saw axe", 45 - 10 - 1, 45),
        (LIST, "pear fruits are plum lemon , tools are saw axe", 45 - 3, 45),
        (LIST, "fruits are dog plum , tools are pear axe", 45 - 20 - 6, 45),  # pear is no tool
        (LIST, "are dog plum , are pear axe", 1 + 30 - 9, 45),  # no kind is named
        (TWICE, " ".join(["pear"] * 100), 20 - 3 * 98, 41),
    ],
)
def test_gold_scores_by_hand(prompt, response, expected, total):
    assert gold_score(prompt, response) == expected / total
    assert gold_score(prompt, response, finished=False) == (expected - 10) / total


def points(prompt: str, response: str, finished: bool = True) -> list[int]:
    total = sum(slot.weight for slot in answer_slots(prompt))
    return [round(part * total, 9) for part in word_rewards(prompt, response.split(), finished)]


def test_word_rewards_by_hand():
    # "of capital" for "capital of": only one word matches, the first.
    response = "the of capital um peru is lima and dumb cuba is tokyo tokyo"
    assert points(CAPITAL, response) == [1, 1, -3, -3, 1, 1, 10, 1, -10, 1, 1, -3, -3, 0]
    assert points(CAPITAL, "", finished=False) == [-10]
    # The second word of a repetition is extra.
    assert points(TWICE, "pear pear pear , saw saw") == [10, 10, -3, 1, 10, 10, 0]
    # In a count the word that replaces another is wrong: the first six, for five.
    run = "count three to six and nine to seven"
    assert points(run, "three four six six , nine eight") == [10, 10, -3, 10, 1, 10, 10, 0]


def brute_force(answer, words) -> int:
    """Largest weight over all ways to leave out words and slots, without dynamic programming."""
    if not answer or not words:
        return 0
    slot, *rest = answer
    best = brute_force(rest, words)
    for at, word in enumerate(words):
        if slot.word == word:
            best = max(best, slot.weight + brute_force(rest, words[at + 1 :]))
    return best


def matched_weight(answer, words) -> int:
    return sum(answer[step.slot].weight for step in align_words(answer, words) if step.right)


def test_alignment_has_the_greatest_weight():
    rng = random.Random(1)
    weights = Counter()
    for _ in range(3000):
        letters = "abcd"[: rng.randint(1, 4)]
        families = rng.choices(["", "count"], k=rng.randint(0, 6))
        answer = [Slot(rng.choice(letters), family) for family in families]
        words = rng.choices([*letters, "um", "x"], k=rng.randint(0, 7))
        weight = matched_weight(answer, words)
        assert weight == brute_force(answer, words)
        weights[weight] += 1
    assert len(weights) > 15


def test_a_list_takes_any_members_once():
    """Brute force over all choices of members, each at the one place where it counts."""
    rng = random.Random(2)
    for _ in range(150):
        kinds = rng.sample(list(KINDS), 2)
        prompt = f"list two {kinds[0]} two {kinds[1]}"
        near = [*kinds, "are", ",", *KINDS[kinds[0]][:3], *KINDS[kinds[1]][:3], "um"]
        words = rng.choices(near, k=rng.randint(0, 9))
        part, counted = None, {}  # place -> the member that counts there
        for at, word in enumerate(words):
            part = word if word in kinds and word not in words[:at] else part
            known = KIND_OF.get(word)
            if (part == known or known not in words) and word not in counted.values():
                counted[at] = word
        seen = [counted.get(n, "-" if w in KIND_OF else w) for n, w in enumerate(words)]
        choices = [itertools.permutations([*KINDS[kind][:3], "none"], 2) for kind in kinds]
        slots, best = answer_slots(prompt), 0
        for first, second in itertools.product(*choices):
            members = iter([*first, *second])
            answer = [s._replace(word=next(members)) if s.family else s for s in slots]
            best = max(best, brute_force(answer, seen))
        assert matched_weight(slots, words) == best, words


def test_word_rewards_add_up_to_the_score(drafts):
    for prompt, response in drafts:
        right = " ".join(slot.word for slot in fill_slots(answer_slots(prompt)))
        assert gold_score(prompt, right) == 1
        assert gold_score(prompt, "") == 0
        for finished in (True, False):
            score = gold_score(prompt, response, finished)
            parts = word_rewards(prompt, response.split(), finished)
            assert len(parts) == len(response.split()) + 1
            assert sum(parts) == pytest.approx(score, abs=1e-12)
            assert score <= 1
            assert (parts[-1] < 0) == (not finished)
    prompts, responses = zip(*drafts, strict=True)
    ended = [n % 2 == 0 for n in range(len(drafts))]
    expected = [gold_score(*row, end) for row, end in zip(drafts, ended, strict=True)]
    assert judge(prompts, responses, finished=ended) == expected


def test_an_editor_without_noise_leaves_nothing_to_change(drafts):
    """Except for lists, it changes as many words as ``words_to_change`` counts."""
    assert gold.words_to_change(LIST, "fruits are plum plum , tools are saw dog") == 2
    for number, (prompt, response) in enumerate(drafts):
        left = gold.words_to_change(prompt, response)
        assert (left == 0) == (gold_score(prompt, response) == 1)
        edited = edit_response(prompt, response, random.Random(number), Rates(repair=1, damage=0))
        assert gold.words_to_change(prompt, edited) == 0
        changed = Levenshtein.distance(response.split(), edited.split())
        assert changed == left or (prompt.startswith("list") and changed >= left)


@pytest.mark.parametrize("whole_words", [True, False])
@pytest.mark.parametrize("ended", [True, False])
def test_oracle_rewards(drafts, whole_words, ended):
    """A word's reward is at the last token that overlaps it, the end's at the last token."""
    texts = [text for row in drafts[:20] for text in row]
    tokenizer = make_tokenizer() if whole_words else train_tokenizer(texts, 330)
    prompts, responses = zip(*drafts, strict=True)
    tokens = [
        [tokenizer.decode([i]) for i in encode_text(tokenizer, text) + [2] * ended]
        for text in responses
    ]
    rewards = gold.oracle_rewards(prompts, responses, tokens)
    assert [len(row) for row in rewards] == [len(row) for row in tokens]
    assert (sum(map(len, tokens)) > 1.5 * sum(len(t.split()) for t in responses)) != whole_words
    for row, texts, (prompt, response) in zip(rewards, tokens, drafts, strict=True):
        if row:
            parts = word_rewards(prompt, response.split(), ended)
            assert sum(row) == pytest.approx(sum(parts), abs=1e-12)
            # Up to the end of every whole word, rewards of tokens and words sum to the same.
            for n in range(len(texts) - 1):
                if texts[n + 1].startswith(" "):
                    words = len("".join(texts[: n + 1]).split())
                    assert sum(row[: n + 1]) == pytest.approx(sum(parts[:words]), abs=1e-12)


def test_oracle_rewards_by_hand():
    rows = [[], [END], ["the"], ["lima", "<s>", END], [END, "lima"], ["\n"]]
    rows += [["th", "e cap", "ital", " of", " pe", "ru is ", "", "lima", "\n", END]]
    rewards = gold.oracle_rewards([CAPITAL] * 7, [""] * 7, rows)
    expected = [[], [0], [1 - 10], [0, -3, 0], [0, -3 - 10], [-10]]
    expected += [[0, 1, 1, 1, 0, 2, 0, 10, 0, 0]]
    assert rewards == [[p / 28 for p in row] for row in expected]
    with pytest.raises(InputError, match="no instruction"):
        judge(["say hello"], ["hello"])
