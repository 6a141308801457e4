"""How minimal an edit is: by hand, against the textbook, and on what is no edit at all."""

import random

import pytest

from fgrlhf_jax.data.words import split_words
from fgrlhf_jax.feedback.edits.minimality import FAULTS, EditMetrics, find_fault, measure

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
    ("a b", "", "delete", (2, 0), 1),
    ("", "a", "insert", (0, 1), 1),
    ("", "", "none", (0, 0), 0),
    ("The end.", "The end!", "replace", (1, 1), 1),
]


@pytest.mark.parametrize(("original", "edited", "kind", "moved", "changes"), BY_HAND)
def test_metrics_by_hand(original, edited, kind, moved, changes):
    before, after = len(split_words(original)), len(split_words(edited))
    ratio = sum(moved) / max(1, before + after)
    expected = EditMetrics(kind, ratio, None, after - before, before, after, changes)
    assert measure(original, edited) == expected


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


LONG = " ".join(f"word{n}" for n in range(30))
ORIGINAL = f"The capital of France is Lyon. It is long. {LONG}. The end is here."
CODE = (
    "def f(x):\n    y = x\n" + "\n".join(f"    z{n} = y + {n}" for n in range(9)) + "\n    return y"
)


@pytest.mark.parametrize(
    "edited",
    [
        "The capital of France is Paris. It is long. [The rest of the response remains unchanged]",
        "The capital of France is Paris. It is long. (rest unchanged)",
        "The capital of France is Paris.\n\n*(Der Rest bleibt unverändert.)*",
        "The capital of France is Paris. 【其余部分不变】",
        "The capital of France is Paris. It is long...",
        "The capital of France is Paris. It is long. …",
        "… of France is Paris. …",
        "The capital of France is Paris. [...] The end is here.",
        "The capital of France is Paris. It is long.\n\n... (the rest stays the same) ...",
        "The capital of France is Paris. It is long.\n<rest unchanged>",
        "The capital of France is Paris.\n\n<!-- unchanged -->\nThe end is here.",
        "The capital of France is Paris. It is long.\n--- reste inchangé ---",
        "The capital of France is Paris. It is long. …and the rest.",
        "The capital of France is Paris. It is long. *rest omitted*",
        "The capital of France is Paris. It is long.\n«reste inchangé»",
        "The capital of France is Paris. It is long.\n※以下略\nThe end is here.",
        "The capital of France is Paris. It is long.\n> unchanged\nThe end is here.",
        "The capital of France is Paris. It is long. &hellip;",
    ],
)
def test_a_remark_in_the_place_of_what_is_left_out(edited):
    assert find_fault(ORIGINAL, edited) == "elided"
    assert find_fault(f"Well ... … {ORIGINAL}", f"Well ... … {edited}") == "elided"
    short = ORIGINAL.replace(LONG, " ".join(LONG.split()[:9]))
    assert find_fault(short, edited) == "elided"
    assert find_fault(edited, edited.replace("Paris", "Rome"), 1.0) == ""


@pytest.mark.parametrize(
    "end", ["The rest remains the same.", "# unchanged", "\n\nDer Rest bleibt so.", "以下略"]
)
def test_a_few_words_that_stand_for_the_end_or_the_middle(end):
    for more in ("", "\n\nThe end is here."):
        edited = f"The capital of France is Paris. It is long. {end}{more}"
        assert find_fault(ORIGINAL, edited) == "elided"
        assert find_fault(ORIGINAL.replace("word", "the "), edited) == "elided"
    spelt = str.maketrans("0123456789", "abcdefghij")
    for words in ("Wordb wordh wordbj.", "It was in 1998."):  # of the original, a fact
        edited = f"The capital of France is Paris. It is long. {words} The end is here."
        assert find_fault(ORIGINAL.translate(spelt), edited) == ""
    other = f"{end} It has parks , a river and a bridge or two or three"
    assert find_fault(ORIGINAL, f"The capital of France is Paris. It is long. {other}") == ""


def test_code_that_is_left_out():
    for line in ("# ... rest of the code stays the same", "// unchanged", "    ..."):
        assert find_fault(CODE, f"def f(x):\n    y = 2 * x\n{line}\n    return y") == "elided"
    assert find_fault(CODE, "def f(x):\n    y = x\n    print(max)") == ""


def test_an_edit_may_have_brackets_and_leave_out_much():
    other = ORIGINAL.replace(" ".join(LONG.split()[20:]), "that runs … through all of the old town")
    assert find_fault(ORIGINAL, other) == ""  # about as much is put in there
    shorter = ORIGINAL.replace(LONG, " ".join(LONG.split()[:22]))
    assert find_fault(ORIGINAL, "The capital of France is Paris. It is long.") == ""
    for text, city in ((ORIGINAL, "Paris (see it)"), (ORIGINAL, "… Paris"), (shorter, "P [1]")):
        assert find_fault(ORIGINAL, text.replace("Lyon", city)) == ""


@pytest.mark.parametrize(
    ("edited", "most", "fault"),
    [
        (" \n", 1.0, "empty"),
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
