"""How minimal an edit is: by hand, against the textbook, and on what is no edit at all."""

import itertools
import random

import pytest

from fgrlhf_jax.feedback.edits.minimality import (
    FAULTS,
    EditMetrics,
    find_fault,
    is_refusal,
    mark_changes,
    measure,
    split_words,
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Don't stop-gap, it’s 1!", ["Don't", "stop-gap", ",", "it’s", "1", "!"]),
        ("'quoted' -dash- a--b", ["'", "quoted", "'", "-", "dash", "-", "a", "-", "-", "b"]),
        ("  naïve\n\n\tcafé  ", ["naïve", "café"]),
        ("猫が好き ok", ["猫", "が", "好", "き", "ok"]),
        ("abc猫def", ["abc", "猫", "def"]),
        ("हिन्दी में लिखा", ["हिन्दी", "में", "लिखा"]),
        ("e\u0301te\u0301-la\u0300, o\u0301", ["e\u0301te\u0301-la\u0300", ",", "o\u0301"]),
        ("か\u3099く ❤\ufe0f", ["か\u3099", "く", "❤\ufe0f"]),
        ("\u0301a", ["\u0301", "a"]),
        ("", []),
        (" \n\t", []),
    ],
)
def test_words(text, words):
    assert split_words(text) == words


# original, edited, kind, words taken out and put in, number of changes.
BY_HAND = [
    ("a b c", "a b c", "none", (0, 0), 0),
    ("a b c", "a  b\nc", "none", (0, 0), 0),
    ("a c", "a b c", "insert", (0, 1), 1),
    ("a b c d", "b c", "delete", (2, 0), 2),
    ("a b c", "a x c", "replace", (1, 1), 1),
    ("a b c", "a x y c", "replace", (1, 2), 1),  # one change, though a word longer
    ("a b c d", "x b c y", "replace", (2, 2), 2),
    ("a b c", "x b c d", "mixed", (1, 2), 2),
    ("a b c d", "b c d e", "mixed", (1, 1), 2),
    ("a b", "x y", "replace", (2, 2), 1),
    ("a b", "", "delete", (2, 0), 1),
    ("", "a", "insert", (0, 1), 1),
    ("", "", "none", (0, 0), 0),
    ("The end.", "The end!", "replace", (1, 1), 1),
]


@pytest.mark.parametrize(("original", "edited", "kind", "moved", "changes"), BY_HAND)
def test_metrics_by_hand(original, edited, kind, moved, changes):
    before, after = len(split_words(original)), len(split_words(edited))
    assert measure(original, edited) == EditMetrics(
        kind=kind,
        word_change_ratio=sum(moved) / max(1, before + after),
        token_change_ratio=None,
        length_change=after - before,
        words_original=before,
        words_edited=after,
        changes=changes,
    )


def test_tokens_have_a_ratio_of_their_own():
    metrics = measure("abc", "abd", encode=lambda text: [ord(c) for c in text])
    assert metrics.word_change_ratio == 1
    assert metrics.token_change_ratio == pytest.approx(2 / 6)


def random_pairs(n: int):
    rng = random.Random(0)
    for _ in range(n):
        original = [rng.choice("abcdefgh.,") for _ in range(rng.randrange(0, 14))]
        edited = [rng.choice("abxy.") if rng.random() < 0.2 else word for word in original]
        edited = [word for word in edited if rng.random() > 0.15]
        for _ in range(rng.randrange(3)):
            edited.insert(rng.randrange(len(edited) + 1), rng.choice("abxy"))
        blanks = [rng.choice([" ", "\n", "  ", "\t \n"]) for _ in range(40)]
        yield tuple(
            "".join(word + blank for word, blank in zip(side, blanks, strict=False))
            for side in (original, edited)
        )


def distance(a: list[str], b: list[str], replace: int) -> int:
    """Words to insert and delete, where replacing one costs `replace`, by the textbook."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        left, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            cost = min(row[j] + 1, row[j - 1] + 1, left + (0 if x == y else replace))
            left, row[j] = row[j], cost
    return row[-1]


def is_part(few: list[str], many: list[str]) -> bool:
    """Whether the words are some of the others, in their order."""
    rest = iter(many)
    return all(word in rest for word in few)


def test_ratio_and_kind_by_their_definition():
    """No script moves fewer words than one of insertions and deletions alone; none with fewer
    steps than Levenshtein's, each of which moves two words at most."""
    for original, edited in random_pairs(300):
        before, after = split_words(original), split_words(edited)
        metrics = measure(original, edited)
        moved = metrics.word_change_ratio * max(1, len(before) + len(after))
        least, most = distance(before, after, 2), 2 * distance(before, after, 1)
        assert least - 1e-9 <= moved <= most + 1e-9
        assert (metrics.kind == "delete") == (is_part(after, before) and before != after)
        assert (metrics.kind == "insert") == (is_part(before, after) and before != after)
        assert (metrics.kind == "none") == (before == after)


def test_spans_add_up_and_mark_what_changed():
    for original, edited in random_pairs(300):
        sides = mark_changes(original, edited)
        assert tuple("".join(span.text for span in side) for side in sides) == (
            original,
            edited,
        )
        for side in sides:
            assert all(a.changed != b.changed for a, b in itertools.pairwise(side))
        before, after = (
            [w for span in side if not span.changed for w in split_words(span.text)]
            for side in sides
        )
        assert before == after
    assert mark_changes(
        "The old red car, here, stopped.\n", "The car, here,  stopped at once."
    ) == (
        [("The ", False), ("old red", True), (" car, here, stopped.\n", False)],
        [("The car, here,  stopped ", False), ("at once", True), (".", False)],
    )


REFUSALS = [
    "I'm sorry, but I can't help with that.",
    "I’m sorry, but I can’t assist with that request.",
    "I cannot fulfill your request. I'm just an AI.",
    "As an AI language model, I cannot provide opinions.",
    "I apologize, but I'm not able to edit this response.",
    "Sorry, I can't do that.",
    "Unfortunately, I am unable to make those changes.",
    "I must decline to answer.",
    "I won't rewrite this.",
    "I don't feel comfortable helping with that.",
    "**I'm really sorry, but I must decline this request.**",
    "I am sorry, I cannot answer that question. It is inappropriate.",
    "I'm afraid I can't create such content.",
]
ANSWERS = [
    "I'm sorry to hear that. What can I help you with?",
    "I can't believe it! The film is great.",
    "I am so sorry for your loss.",
    "Sorry, the shop is closed; I can't come.",
    "No, you cannot cook an egg in the sun.",
    "I cannot recommend this film enough. It helps.",
    "I'm sorry I can't come to your party.",
    "You cannot change the password here. I will help.",
    "Unfortunately, the train was late.",
    "",
]


def test_refusals():
    for text in REFUSALS:
        assert is_refusal(text), text
        assert is_refusal(f"\n  {text.upper()}"), text
        assert find_fault("The capital of France is Lyon.", text) == "refusal", text
    assert not list(filter(is_refusal, ANSWERS))


def test_a_refusal_may_be_edited_and_an_edit_may_begin_with_a_reservation():
    original = "I'm sorry, but I can't help with that."
    assert find_fault(original, "I'm sorry, but I cannot help you with weapons.") == ""
    answer = " ".join(f"word{n}" for n in range(30))
    edited = f"As an AI language model, I cannot give advice. However, {answer}"
    assert find_fault(answer, edited) == ""


@pytest.mark.parametrize(
    ("edited", "most", "fault"),
    [
        ("", 1.0, "empty"),
        (" \n", 1.0, "empty"),
        ("a b c d", 1.0, "unchanged"),
        ("a  b c\nd ", 1.0, "unchanged"),
        ("a b c x", 0.25, ""),
        ("a b c x", 0.24, "rewritten"),
        ("w x y z", 1.0, ""),
        ("w x y z", 0.99, "rewritten"),
        ("a b c d e", 0.0, "rewritten"),
    ],
)
def test_faults(edited, most, fault):
    assert find_fault("a b c d", edited, most) == fault
    assert fault in (*FAULTS, "")
