"""How minimal an edit is: by hand and against a textbook distance; replies that are no edits."""

import random

import pytest

from fgrlhf_jax.data.words import split_words
from fgrlhf_jax.feedback.edits.minimality import FAULTS, EditMetrics, find_fault, measure


@pytest.mark.parametrize(
    ("original", "edited", "kind", "moved", "changes"),  # moved: deleted and inserted words
    [
        *(("a b c", edited, "none", 0, 0) for edited in ("a b c", "a  b\nc")),
        *(("a c", "a b c", "insert", 1, 1), ("a b c d", "b c", "delete", 2, 2)),
        ("a b c", "a x c", "replace", 2, 1),
        ("a b c", "a x y c", "replace", 3, 1),  # one change, though a word longer
        *(("a b c d", "x b c y", "replace", 4, 2), ("a b c", "x b c d", "mixed", 3, 2)),
        *(("a b", "", "delete", 2, 1), ("", "a", "insert", 1, 1), ("", "", "none", 0, 0)),
        ("The end.", "The end!", "replace", 2, 1),
    ],
)
def test_metrics_by_hand(original, edited, kind, moved, changes):
    before, after = len(split_words(original)), len(split_words(edited))
    ratio = moved / max(1, before + after)
    expected = EditMetrics(kind, ratio, None, after - before, before, after, changes)
    assert measure(original, edited) == expected


def test_the_change_ratio_of_tokens():
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
    """The textbook edit distance in words; a replacement costs ``replace``."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        left, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            cost = min(row[j] + 1, row[j - 1] + 1, left + (0 if x == y else replace))
            left, row[j] = row[j], cost
    return row[-1]


def is_subsequence(few: list[str], many: list[str]) -> bool:
    rest = iter(many)
    return all(word in rest for word in few)


def test_ratio_and_kind_by_their_definition():
    """Between two bounds: the distance without replacements, and twice Levenshtein's distance."""
    for original, edited in random_pairs(300):
        before, after = split_words(original), split_words(edited)
        metrics = measure(original, edited)
        moved = metrics.word_change_ratio * max(1, len(before) + len(after))
        least, most = distance(before, after, 2), 2 * distance(before, after, 1)
        assert least - 1e-9 <= moved <= most + 1e-9
        assert (metrics.kind == "delete") == (is_subsequence(after, before) and before != after)
        assert (metrics.kind == "insert") == (is_subsequence(before, after) and before != after)
        assert (metrics.kind == "none") == (before == after)


LONG = " ".join(f"word{n}" for n in range(30))
END = "The end is here."
ORIGINAL = f"The capital of France is Lyon. It is long. {LONG}. {END}"
PARIS = "The capital of France is Paris."
START = f"{PARIS} It is long."
CODE = "\n    ".join(["def f(x):", "y = x", *(f"z{n} = y + {n}" for n in range(9)), "return y"])


@pytest.mark.parametrize(
    "edited",
    [
        *(f"{START} [The rest of the response remains unchanged]", f"{START} (rest unchanged)"),
        *(f"{PARIS}\n\n*(Der Rest bleibt unverändert.)*", f"{PARIS} 【其余部分不变】"),
        *(f"{START[:-1]}...", f"{START} …", f"{START} …and the rest.", f"{START} &hellip;"),
        *("… of France is Paris. …", f"{PARIS} [...] {END}", f"{START} *rest omitted*"),
        *(f"{START}\n\n... (the rest stays the same) ...", f"{START}\n<rest unchanged>"),
        *(f"{PARIS}\n\n<!-- unchanged -->\n{END}", f"{START}\n--- reste inchangé ---"),
        *(f"{START}\n«reste inchangé»", f"{START}\n※以下略\n{END}", f"{START}\n> unchanged\n{END}"),
    ],
)
def test_a_remark_in_place_of_omitted_text(edited):
    assert find_fault(ORIGINAL, edited) == "elided"
    assert find_fault(f"Well ... … {ORIGINAL}", f"Well ... … {edited}") == "elided"
    short = ORIGINAL.replace(LONG, " ".join(LONG.split()[:9]))
    assert find_fault(short, edited) == "elided"
    assert find_fault(edited, edited.replace("Paris", "Rome"), 1.0) == ""


@pytest.mark.parametrize(
    ("start", "end"),
    [
        *((START, end) for end in (" The rest is the same.", " # x", "\n\nDer Rest.", " 以下略")),
        *((PARIS[:-1], end) for end in (" (as before)", " *(der Rest)*", " _so on_", "（不变）")),
        *((PARIS[:-1], end) for end in (" // same", " -- same", ", — same")),
    ],
)
def test_a_few_words_in_place_of_the_end_or_the_middle(start, end):
    for more in ("", f"\n\n{END}"):
        edited = f"{start}{end}{more}"
        assert find_fault(ORIGINAL, edited) == "elided"
        assert find_fault(ORIGINAL.replace("word", "the "), edited) == "elided"
    spelt = str.maketrans("0123456789", "abcdefghij")
    for words in ("Wordb wordh wordbj.", "It was in 1998.", "so (in 1998)"):  # known, facts
        assert find_fault(ORIGINAL.translate(spelt), f"{START} {words} {END}") == ""
    other = f"{end} Now with parks , a river and a bridge or two or three"
    assert find_fault(ORIGINAL, f"{start}{other}") == ""


def test_omitted_code():
    for line in ("# ... rest of the code stays the same", "// unchanged", "    ..."):
        assert find_fault(CODE, f"def f(x):\n    y = 2 * x\n{line}\n    return y") == "elided"
    assert find_fault(CODE, "def f(x):\n    y = x\n    print(max)") == ""


def test_an_edit_may_have_brackets_and_omit_much():
    other = ORIGINAL.replace(" ".join(LONG.split()[20:]), "that runs … through all of the old town")
    assert find_fault(ORIGINAL, other) == ""  # about as much is inserted there
    shorter = ORIGINAL.replace(LONG, " ".join(LONG.split()[:22]))
    assert find_fault(ORIGINAL, START) == ""
    for text, city in ((ORIGINAL, "Paris (see it)"), (ORIGINAL, "… Paris"), (shorter, "P [1]")):
        assert find_fault(ORIGINAL, text.replace("Lyon", city)) == ""


@pytest.mark.parametrize(
    ("edited", "most", "fault"),
    [
        *((" \n", 1.0, "empty"), ("a  b c\nd ", 1.0, "unchanged")),
        *(("a b c x", 0.25, ""), ("a b c x", 0.24, "rewritten")),
        *(("w x y z", 1.0, ""), ("w x y z", 0.99, "rewritten")),
        ("a b c d e", 0.0, "rewritten"),
    ],
)
def test_faults(edited, most, fault):
    assert find_fault("a b c d", edited, most) == fault
    assert fault in (*FAULTS, "")
