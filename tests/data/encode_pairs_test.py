"""Pairs and padding: masks follow from lengths, and no row is lost silently."""

import dataclasses

import numpy as np
import pytest
from layout_cases import layouts
from tokenizers.normalizers import Lowercase

from fgrlhf_jax.data.alignment import align
from fgrlhf_jax.data.demonstrations import encode_demonstrations
from fgrlhf_jax.data.pairs import Pair, encode_pairs, pad_pairs, span_labels
from fgrlhf_jax.data.records import Edit, Instruction, Preference, better_and_worse
from fgrlhf_jax.data.templates import encode_prompt, encode_response, encode_text
from fgrlhf_jax.errors import InputError

EDITS = [
    Edit("write a review", "of the film", "the film was dull", "the film was really good"),
    Edit("write a review", "", "the film was was bad", "the film was bad"),  # only deletes
    Edit("write", "what you saw", "the town", "the short town"),  # only inserts
    Edit("review the town", "", "bad", "good"),
]
PREFERENCES = [
    Preference("write a review", "", "the film was good", "the actors saw what", 1),
    Preference("write a review", "", "bad", "the film was really bright", 2),
]
SETTINGS = {"template": "plain", "max_length": 64, "max_prompt_length": 32}
CUT = {"max_length": 24, "max_prompt_length": 12, "overlong": "truncate"}
TAIL = " and the actors were really good" * 4
LONG = [  # they fit, do not fit, or lose every changed token when cut at 24 columns
    EDITS[0],
    Edit("write", "", "dull film" + TAIL, "bright film" + TAIL),  # long responses
    Edit("write", "", "the film" + TAIL + " bad", "the film" + TAIL + " good"),  # at the end
    Edit("write", "of the film" * 9, "dull", "bright"),  # a long prompt
    Edit("write", "", "the film", "the film" + TAIL),  # one side is long
    Edit("write", "", "the film was bad" + TAIL, "bad" + TAIL[:33]),  # the other side is
]


def encode(records, tokenizer, **changes):
    """Pairs, and counts of rows, kept, dropped_overlong, truncated, unchanged."""
    pairs, counts = encode_pairs(records, tokenizer, **SETTINGS | changes)
    names = ("rows", "kept", "dropped_overlong", "truncated", "unchanged")
    return pairs, tuple(counts[name] for name in names)


def check(pair: Pair, record, tokenizer, method="levenshtein", limits=SETTINGS, append_eos=True):
    """The pair is the prompt, and the alignment of the whole responses seen through a window."""
    prompt, _ = encode_prompt(tokenizer, "plain", record, limits["max_prompt_length"])
    ids = [encode_text(tokenizer, text) + [2] * append_eos for text in better_and_worse(record)]
    whole, start, room = align(*ids, method), len(prompt), limits["max_length"] - len(prompt)
    partner, end_j = whole.partner_i[:room], len(ids[1][:room])
    visible = np.where((partner >= 0) & (partner < end_j), partner + start, -1)
    assert pair.start_i == pair.start_j == start
    for name, dtype, part in (
        ("tokens_i", np.int32, prompt + ids[0][:room]),
        ("tokens_j", np.int32, prompt + ids[1][:room]),
        ("changed_i", bool, [*[False] * start, *whole.changed_i[:room]]),
        ("changed_j", bool, [*[False] * start, *whole.changed_j[:room]]),
        ("partner", np.int32, [*[-1] * start, *visible]),
    ):
        assert getattr(pair, name).dtype == dtype
        np.testing.assert_array_equal(getattr(pair, name), part)
    assert max(len(pair.tokens_i), len(pair.tokens_j)) <= limits["max_length"]
    np.testing.assert_array_equal(pair.tokens_i[: pair.common], pair.tokens_j[: pair.common])
    assert start <= pair.common
    assert pair.length == len(pair.tokens_i) + len(pair.tokens_j) - pair.common


def changed_words(tokenizer, pair: Pair) -> tuple[str, str]:
    sides = ((pair.tokens_i, pair.changed_i), (pair.tokens_j, pair.changed_j))
    return tuple(tokenizer.decode(tokens[changed]).strip() for tokens, changed in sides)


@pytest.mark.parametrize("append_eos", [True, False])
def test_edits(either, append_eos):
    """Any tokenizer: EOS is a response token, matched on both sides, whatever the pad token."""
    pairs, counts = encode(EDITS, either, append_eos=append_eos)
    assert counts == (4, 4, 0, 0, 0)
    assert [pair.row for pair in pairs] == [0, 1, 2, 3]
    for pair, edit in zip(pairs, EDITS, strict=True):
        check(pair, edit, either, append_eos=append_eos)
        if append_eos:
            assert pair.tokens_i[-1] == pair.tokens_j[-1] == 2
            assert pair.partner[-1] == len(pair.tokens_j) - 1
    words = [changed_words(either, pair) for pair in pairs]
    assert words == [("really good", "dull"), ("", "was"), ("short", ""), ("good", "bad")]


def test_positional_alignment(tokenizer):
    (pair,), _ = encode(EDITS[2:3], tokenizer, alignment="positional")
    check(pair, EDITS[2], tokenizer, "positional")
    assert changed_words(tokenizer, pair)[0] == "short town</s>"


def test_preferences_beside_edits(tokenizer):
    """The preferred output is side i, and every response token counts: Eq. 4 is Eq. 3."""
    pairs, counts = encode([EDITS[0], *PREFERENCES], tokenizer)
    assert ([pair.row for pair in pairs], counts) == ([0, 1, 2], (3, 3, 0, 0, 0))
    check(pairs[0], EDITS[0], tokenizer)
    for pair, record in zip(pairs[1:], PREFERENCES, strict=True):
        check(pair, record, tokenizer, None)
        assert pair.changed_i[pair.start_i :].all()
        assert pair.changed_j[pair.start_j :].all()
        assert (pair.partner == -1).all()


def test_overlong_rows_are_dropped_or_truncated_and_counted(tokenizer):
    pairs, counts = encode(LONG, tokenizer, **CUT | {"overlong": "drop"})
    assert ([pair.row for pair in pairs], counts) == ([0], (6, 1, 5, 0, 0))
    pairs, counts = encode(LONG, tokenizer, **CUT)
    assert ([pair.row for pair in pairs], counts) == ([0, 1, 3, 4, 5], (6, 5, 0, 4, 1))
    for pair in pairs:
        check(pair, LONG[pair.row], tokenizer, limits=CUT)
        assert pair.changed_i.any() or pair.changed_j.any()
    # A response that was cut has no EOS, the other side of the same pair keeps its own.
    long_pair, _, one_sided, deleted = pairs[1:]
    assert 2 not in [*long_pair.tokens_i, *long_pair.tokens_j, *one_sided.tokens_i]
    assert one_sided.tokens_j[-1] == 2
    # Where the partner was cut away: unchanged, and alone.
    assert not deleted.changed_i[-1]
    assert deleted.partner[-1] == -1
    eos = len(one_sided.tokens_j) - 1
    assert not one_sided.changed_j[eos]
    assert eos not in one_sided.partner


def test_exact_fit_is_not_overlong(tokenizer):
    (whole,), _ = encode(EDITS[:1], tokenizer)
    fits = {"max_length": len(whole.tokens_i), "max_prompt_length": whole.start_i}
    for overlong in ("drop", "truncate"):
        (pair,), counts = encode(EDITS[:1], tokenizer, **fits, overlong=overlong)
        assert counts == (1, 1, 0, 0, 0)
        check(pair, EDITS[0], tokenizer)
    for name in fits:
        with pytest.raises(InputError, match="1 longer than"):
            encode(EDITS[:1], tokenizer, **fits | {name: fits[name] - 1})


def test_pairs_without_a_gradient_are_dropped_and_counted(smol):
    """The change is lost to the tokenizer, or cut away."""
    smol.backend_tokenizer.normalizer = Lowercase()
    end = "the film was good " * 9
    rows = [
        EDITS[0],
        Edit("write", "", "the Film", "the film"),
        Edit("write", "", end + "bad", end + "good"),
        Preference("write", "", end + "bad", end + "good", 1),
    ]
    pairs, counts = encode(rows, smol, **CUT)
    assert ([pair.row for pair in pairs], counts) == ([0], (4, 1, 0, 0, 3))


@pytest.mark.parametrize(
    ("record", "changes", "message"),
    [
        (EDITS[0], {"max_length": 9, "max_prompt_length": 8}, r"left of 1 rows \(1 longer"),
        (LONG[2], CUT, r"without a changed token\); raise the lengths, or give other data"),
        (EDITS[0], {"overlong": "keep"}, "overlong: 'keep' is neither 'drop' nor 'truncate'"),
        *(
            (EDITS[0], {"max_prompt_length": length}, f"max_prompt_length={length}: must be")
            for length in (0, 64, 65)
        ),
    ],
)
def test_unusable_records_and_settings(tokenizer, record, changes, message):
    with pytest.raises(InputError, match=message):
        encode([record], tokenizer, **changes)


@pytest.mark.parametrize("append_eos", [True, False])
def test_span_labels(either, append_eos):
    text = "the film was dull, a naïve 漢字 and the actors </s> were bad"
    encoded = encode_response(either, "plain", EDITS[0], text, append_eos)
    ids = encoded.ids[encoded.start :]

    def marked(*parts: str, margin: int = 0) -> str:
        starts = [text.index(part) for part in parts]
        spans = [
            (max(start - margin, 0), start + len(part) + margin)
            for start, part in zip(starts, parts, strict=True)
        ]
        labels = span_labels(encoded.spans, text, spans)
        assert (labels.dtype, labels.shape) == (bool, (len(ids),))
        return either.decode(np.array(ids, int)[labels]).strip()

    assert marked() == ""
    assert marked("was", margin=1) == "was"  # blanks beside it belong to neither word
    assert marked("dull", "漢字") == "dull漢字"
    for part in ("the film", "漢", "bad", "</s>", " a "):
        assert marked(part) == part.strip()
    inside = marked("ctor")  # part of a token marks it
    assert "ctor" in inside
    assert "the" not in inside


@pytest.mark.parametrize("name", ["Zephyr", "Llama-3"])
def test_sides_may_share_tokens_with_the_prompt_and_error_spans_are_marked(name):
    """One response begins with a line end, as its prompt ends; columns are each side's own."""
    tokenizer, _ = layouts()[name]
    tokenizer.backend_tokenizer.add_tokens(["\n\n\n", "\n\nIt"])
    row = Edit("write", "", "\nIt was dull.", "It was good.", error_spans=((8, 12),))
    (pair,), _ = encode([row], tokenizer, template="chat", max_length=200, max_prompt_length=150)
    for side, text in (("i", "It was good."), ("j", "It was dull.")):
        tokens, start = getattr(pair, f"tokens_{side}"), getattr(pair, f"start_{side}")
        assert tokenizer.decode(tokens[start:-1]).strip() == text
    matched = np.flatnonzero(pair.partner >= 0)
    assert (pair.tokens_i[matched] == pair.tokens_j[pair.partner[matched]]).all()
    assert matched[-1] == len(pair.tokens_i) - 1
    assert tokenizer.decode(pair.tokens_j[pair.marked_j]).strip() == "dull"
    assert not encode([EDITS[0]], tokenizer)[0][0].marked_j.any()


@pytest.mark.parametrize("bucket", [32, 61])
def test_padding(either, bucket):
    """Every array, cell by cell; also where pad and EOS are one id and 0 is a token."""
    pairs, _ = encode([*EDITS, *PREFERENCES], either)
    pairs[3] = dataclasses.replace(pairs[3], tokens_i=pairs[3].tokens_i * 0, start_i=1)
    batch = pad_pairs(pairs, bucket)
    rows, sides = (6, bucket), (6, 2, bucket)
    integers = ("tokens_BS", "positions_BS", "previous_BS", "partner_BS")
    expected = dict.fromkeys(integers, (rows, "int32")) | {"columns_B2S": (sides, "int32")}
    expected |= {"mask_BS": (rows, "bool"), "branch_BS": (rows, "int8")}
    expected |= dict.fromkeys(("response_B2S", "changed_B2S"), (sides, "bool"))
    expected |= {"weight_B": ((6,), "float32")}
    assert {name: (a.shape, a.dtype.name) for name, a in batch.items()} == expected
    assert batch["weight_B"].tolist() == [1] * 6

    def padded(row, fill=0):
        return [*row, *[fill] * (bucket - len(row))]

    for b, pair in enumerate(pairs):
        for side, letter in enumerate("ij"):
            tokens = getattr(pair, f"tokens_{letter}")
            columns = batch["columns_B2S"][b, side]
            assert not columns[len(tokens) :].any()
            columns = columns[: len(tokens)]
            assert batch["mask_BS"][b, columns].all()
            assert batch["tokens_BS"][b, columns].tolist() == tokens.tolist()
            assert batch["positions_BS"][b, columns].tolist() == [*range(len(tokens))]
            assert batch["previous_BS"][b, columns].tolist() == [0, *columns[:-1]]
            assert set(batch["branch_BS"][b, columns]) <= {0, side + 1}
            response = np.arange(len(tokens)) >= getattr(pair, f"start_{letter}")
            assert batch["response_B2S"][b, side].tolist() == padded(response)
            changed = getattr(pair, f"changed_{letter}")
            assert batch["changed_B2S"][b, side].tolist() == padded(changed)
        assert batch["partner_BS"][b].tolist() == padded(pair.partner, -1)
        assert batch["mask_BS"][b].tolist() == padded([True] * pair.length, False)
        for name in ("tokens", "branch", "positions", "previous"):
            assert not batch[f"{name}_BS"][b, pair.length :].any()
        assert (batch["branch_BS"][b, : pair.length] == 0).sum() == pair.common


def test_rows_that_fill_a_batch_weigh_nothing(tokenizer):
    pairs, _ = encode(EDITS, tokenizer)
    batch = pad_pairs(pairs[:3], 32, batch_size=5)
    assert batch["weight_B"].tolist() == [1, 1, 1, 0, 0]
    for name, array in pad_pairs(pairs[:3], 32).items():
        np.testing.assert_array_equal(batch[name][:3], array)
    # They hold a real row: an empty one would divide by its length of 0.
    assert batch["response_B2S"].any(axis=-1).all()
    for count, size in ((0, 2), (3, 2)):
        with pytest.raises(AssertionError, match=f"{count} rows for a batch of {size}"):
            pad_pairs(pairs[:count], 32, batch_size=size)


def test_a_response_that_was_cut_has_no_eos(tokenizer):
    cut = Edit("write", "", "the dull film and", "the bright film and", finished=False)
    mended = dataclasses.replace(cut, edited="the bright film")
    pair, with_end = encode([cut, mended], tokenizer)[0]
    assert pair.tokens_i[-1] == pair.tokens_j[-1] != 2
    assert with_end.tokens_i[-1] == 2 != with_end.tokens_j[-1]
    assert with_end.changed_i[-1]
    sides = Preference("write", "", "the film", "the town was", 1, finished_2=False)
    (pair,) = encode([sides], tokenizer)[0]
    assert pair.tokens_i[-1] == 2 != pair.tokens_j[-1]
    rows, _ = encode_demonstrations(
        [Instruction("write", "", "the film", finished=ended) for ended in (True, False)],
        tokenizer,
        **SETTINGS,
    )
    assert rows[0].tokens.tolist() == [*rows[1].tokens.tolist(), 2]
