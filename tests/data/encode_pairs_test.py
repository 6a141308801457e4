"""Pairs and padding: masks follow from lengths, and no row is lost silently."""

import dataclasses

import numpy as np
import pytest
from tokenizers.normalizers import Lowercase

from fgrlhf_jax.data.alignment import align
from fgrlhf_jax.data.pairs import Pair, encode_pairs, pad_pairs, span_labels
from fgrlhf_jax.data.records import Edit, Instruction, Preference, better_and_worse
from fgrlhf_jax.data.templates import encode_prompt, encode_response
from fgrlhf_jax.data.tokenizers import check_vocabulary
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
CUT = SETTINGS | {"max_length": 24, "max_prompt_length": 12, "overlong": "truncate"}


def response(pair: Pair, side: str) -> list[int]:
    return getattr(pair, f"tokens_{side}")[pair.prompt_length :].tolist()


def changed(pair: Pair, side: str) -> np.ndarray:
    return getattr(pair, f"changed_{side}")[pair.prompt_length :]


def counts_of(*numbers: int) -> dict[str, int]:
    names = ("rows", "kept", "dropped_overlong", "truncated", "unchanged")
    return dict(zip(names, numbers, strict=True))


def changed_words(tokenizer, pair: Pair) -> tuple[str, str]:
    ids = [np.array(response(pair, side))[changed(pair, side)] for side in "ij"]
    return tuple(tokenizer.decode(side).strip() for side in ids)


# --- encode_pairs -----------------------------------------------------------------------------


def test_edits(either):
    """Any tokenizer: EOS is a response token, matched on both sides, whatever the pad token."""
    pairs, counts = encode_pairs(EDITS, either, **SETTINGS)
    assert counts == counts_of(4, 4, 0, 0, 0)
    assert [pair.row for pair in pairs] == [0, 1, 2, 3]
    for pair, edit in zip(pairs, EDITS, strict=True):
        prompt, _ = encode_prompt(either, "plain", edit.instruction, edit.input, None)
        assert pair.prompt_length == len(prompt)
        assert response(pair, "i") == [*encode_response(either, edit.edited, False), 2]
        assert response(pair, "j") == [*encode_response(either, edit.original, False), 2]
        for side in "ij":
            tokens, mask = getattr(pair, f"tokens_{side}"), getattr(pair, f"changed_{side}")
            assert (tokens.dtype, mask.dtype, mask.shape) == (np.int32, bool, tokens.shape)
            assert tokens[: len(prompt)].tolist() == prompt
            assert not mask[: len(prompt)].any()
            assert not mask[-1]  # the EOS
        assert pair.partner.dtype == np.int32
        assert pair.partner[-1] == len(pair.tokens_j) - 1
        assert (pair.partner[: len(prompt)] == -1).all()
        np.testing.assert_array_equal(pair.partner[len(prompt) :] == -1, changed(pair, "i"))
        matched = pair.partner >= 0
        partners = pair.tokens_j[pair.partner[matched]]
        np.testing.assert_array_equal(pair.tokens_i[matched], partners)
        assert pair.length == max(len(pair.tokens_i), len(pair.tokens_j))
    words = [changed_words(either, pair) for pair in pairs]
    assert words == [("really good", "dull"), ("", "was"), ("short", ""), ("good", "bad")]


def test_without_eos(tokenizer):
    pairs, _ = encode_pairs(EDITS, tokenizer, append_eos=False, **SETTINGS)
    with_eos, _ = encode_pairs(EDITS, tokenizer, **SETTINGS)
    for pair, longer in zip(pairs, with_eos, strict=True):
        for name in ("tokens_i", "tokens_j", "changed_i", "changed_j", "partner"):
            np.testing.assert_array_equal(getattr(pair, name), getattr(longer, name)[:-1])


def test_positional_alignment(tokenizer):
    (pair,), _ = encode_pairs(EDITS[2:3], tokenizer, alignment="positional", **SETTINGS)
    ids = [encode_response(tokenizer, text, True) for text in better_and_worse(EDITS[2])]
    expected = align(*ids, method="positional")
    np.testing.assert_array_equal(changed(pair, "i"), expected.changed_i)
    np.testing.assert_array_equal(changed(pair, "j"), expected.changed_j)
    assert changed_words(tokenizer, pair)[0] == "short town</s>"


def test_preferences_beside_edits(tokenizer):
    """The preferred output is side i, and every response token counts: Eq. 4 is Eq. 3."""
    pairs, counts = encode_pairs([EDITS[0], *PREFERENCES], tokenizer, **SETTINGS)
    assert counts == counts_of(3, 3, 0, 0, 0)
    assert [pair.row for pair in pairs] == [0, 1, 2]
    assert (pairs[0].partner >= 0).any()
    for pair, record in zip(pairs[1:], PREFERENCES, strict=True):
        for side, text in zip("ij", better_and_worse(record), strict=True):
            assert response(pair, side) == encode_response(tokenizer, text, True)
            assert changed(pair, side).all()
            assert not getattr(pair, f"changed_{side}")[: pair.prompt_length].any()
        assert (pair.partner == -1).all()


TAIL = " and the actors were really good" * 4
LONG = [  # they fit, do not fit, or lose every changed token when cut at 24 columns
    EDITS[0],
    Edit("write", "", "dull film" + TAIL, "bright film" + TAIL),  # long responses
    Edit("write", "", "the film" + TAIL + " bad", "the film" + TAIL + " good"),  # at the end
    Edit("write", "of the film" * 9, "dull", "bright"),  # a long prompt
    Edit("write", "", "the film", "the film" + TAIL),  # one side is long
    Edit("write", "", "the film was bad" + TAIL, "bad" + TAIL[:33]),  # the other side is
]


def test_overlong_rows_are_dropped_and_counted(tokenizer):
    pairs, counts = encode_pairs(LONG, tokenizer, **CUT | {"overlong": "drop"})
    assert [pair.row for pair in pairs] == [0]
    assert counts == counts_of(6, 1, 5, 0, 0)


def test_overlong_rows_are_truncated_and_counted(tokenizer):
    pairs, counts = encode_pairs(LONG, tokenizer, **CUT)
    assert [pair.row for pair in pairs] == [0, 1, 3, 4, 5]
    assert counts == counts_of(6, 5, 0, 4, 1)
    for pair in pairs:
        edit = LONG[pair.row]
        assert pair.length <= 24
        prompt, _ = encode_prompt(tokenizer, "plain", edit.instruction, edit.input, 12)
        assert pair.tokens_i[: pair.prompt_length].tolist() == prompt
        # The alignment is that of the whole responses, seen through the window.
        ids = [encode_response(tokenizer, text, True) for text in better_and_worse(edit)]
        whole, room = align(*ids), 24 - len(prompt)
        for side, full, mask in zip("ij", ids, (whole.changed_i, whole.changed_j), strict=True):
            assert response(pair, side) == full[:room]
            np.testing.assert_array_equal(changed(pair, side), mask[:room])
        assert pair.changed_i.any() or pair.changed_j.any()
        partner = whole.partner_i[:room]
        visible = np.where((partner >= 0) & (partner < room), partner + len(prompt), -1)
        np.testing.assert_array_equal(pair.partner[len(prompt) :], visible)
    # A response that was cut has no EOS, the other side of the same pair keeps its own.
    long_pair, _, one_sided, deleted = pairs[1:]
    assert 2 not in response(long_pair, "i") + response(long_pair, "j")
    assert one_sided.tokens_j[-1] == 2
    assert 2 not in one_sided.tokens_i
    # Where the partner was cut away: unchanged, and alone.
    assert not deleted.changed_i[-1]
    assert deleted.partner[-1] == -1
    eos = len(one_sided.tokens_j) - 1
    assert not one_sided.changed_j[eos]
    assert eos not in one_sided.partner


def test_exact_fit_is_not_overlong(tokenizer):
    (whole,), _ = encode_pairs(EDITS[:1], tokenizer, **SETTINGS)
    fits = {"max_length": whole.length, "max_prompt_length": whole.prompt_length}
    for overlong in ("drop", "truncate"):
        options = SETTINGS | fits | {"overlong": overlong}
        (pair,), counts = encode_pairs(EDITS[:1], tokenizer, **options)
        assert counts == counts_of(1, 1, 0, 0, 0)
        np.testing.assert_array_equal(pair.tokens_i, whole.tokens_i)
    for name in fits:
        with pytest.raises(InputError, match="1 longer than"):
            encode_pairs(EDITS[:1], tokenizer, **SETTINGS | fits | {name: fits[name] - 1})


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
    pairs, counts = encode_pairs(rows, smol, **CUT)
    assert [pair.row for pair in pairs] == [0]
    assert counts == counts_of(4, 1, 0, 0, 3)


@pytest.mark.parametrize(
    ("record", "changes", "message"),
    [
        (Instruction("a", "", "b"), {}, "not from Instruction rows; give a file with original"),
        (
            EDITS[0],
            {"template": "alpaca", "max_length": 9, "max_prompt_length": 8},
            r"no pair is left of 1 rows \(1 longer than",
        ),
        (EDITS[0], {"overlong": "keep"}, "overlong: 'keep' is neither 'drop' nor 'truncate'"),
        *(
            (EDITS[0], {"max_prompt_length": length}, f"max_prompt_length: {length} must be")
            for length in (0, 64, 65)
        ),
    ],
)
def test_unusable_records_and_settings(tokenizer, record, changes, message):
    with pytest.raises(InputError, match=message):
        encode_pairs([record], tokenizer, **SETTINGS | changes)


def test_vocabulary(tokenizer):
    check_vocabulary(tokenizer, len(tokenizer))
    with pytest.raises(InputError, match=rf"its {len(tokenizer)} ids do not fit .* of 300"):
        check_vocabulary(tokenizer, 300)


# --- span_labels ------------------------------------------------------------------------------


@pytest.mark.parametrize("append_eos", [True, False])
def test_span_labels(either, append_eos):
    text = "the film was dull, a naïve 漢字 and the actors </s> were bad"
    ids = encode_response(either, text, append_eos)

    def marked(*parts: str, margin: int = 0) -> str:
        starts = [text.index(part) for part in parts]
        spans = [
            (max(start - margin, 0), start + len(part) + margin)
            for start, part in zip(starts, parts, strict=True)
        ]
        labels = span_labels(either, text, spans, append_eos)
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


# --- pad_pairs --------------------------------------------------------------------------------


@pytest.mark.parametrize("bucket", [32, 61])
def test_padding(either, bucket):
    """Every array, cell by cell; also where pad and EOS are one id and 0 is a token."""
    pairs, _ = encode_pairs([*EDITS, *PREFERENCES], either, **SETTINGS)
    pairs[3] = dataclasses.replace(pairs[3], tokens_i=pairs[3].tokens_i * 0)
    batch = pad_pairs(pairs, bucket)
    sides = (6, 2, bucket)
    assert {name: (a.shape, a.dtype.name) for name, a in batch.items()} == {
        "tokens_B2S": (sides, "int32"),
        "mask_B2S": (sides, "bool"),
        "response_B2S": (sides, "bool"),
        "changed_B2S": (sides, "bool"),
        "partner_BS": ((6, bucket), "int32"),
        "weight_B": ((6,), "float32"),
    }
    assert batch["weight_B"].tolist() == [1] * 6
    for b, pair in enumerate(pairs):
        for side, letter in enumerate("ij"):
            tokens, mask = getattr(pair, f"tokens_{letter}"), getattr(pair, f"changed_{letter}")
            for s in range(bucket):
                real = s < len(tokens)
                assert batch["tokens_B2S"][b, side, s] == (tokens[s] if real else 0)
                assert batch["mask_B2S"][b, side, s] == real
                in_response = real and s >= pair.prompt_length
                assert batch["response_B2S"][b, side, s] == in_response
                assert batch["changed_B2S"][b, side, s] == (real and mask[s])
        padded = [*pair.partner, *[-1] * (bucket - len(pair.partner))]
        assert batch["partner_BS"][b].tolist() == padded


def test_rows_that_fill_a_batch_weigh_nothing(tokenizer):
    pairs, _ = encode_pairs(EDITS, tokenizer, **SETTINGS)
    batch = pad_pairs(pairs[:3], 32, batch_size=5)
    assert batch["weight_B"].tolist() == [1, 1, 1, 0, 0]
    for name, array in pad_pairs(pairs[:3], 32).items():
        np.testing.assert_array_equal(batch[name][:3], array)
    # They hold a real row: an empty one would divide by its length of 0.
    assert batch["response_B2S"].any(axis=-1).all()
    for count, size in ((0, 2), (3, 2)):
        with pytest.raises(AssertionError, match=f"{count} rows for a batch of {size}"):
            pad_pairs(pairs[:count], 32, batch_size=size)
