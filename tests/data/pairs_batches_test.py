"""Pairs and padding: masks follow from lengths, and no row is lost silently."""

import dataclasses

import numpy as np
import pytest
from tokenizers.normalizers import Lowercase
from tokenizers.processors import ByteLevel
from transformers import AutoTokenizer

from fgrlhf_jax.data.alignment import align
from fgrlhf_jax.data.pairs import Pair, encode_pairs, pad_pairs, span_labels
from fgrlhf_jax.data.records import Edit, Instruction, Preference
from fgrlhf_jax.data.templates import encode_prompt, encode_response
from fgrlhf_jax.data.tokenizers import check_vocabulary, train_tokenizer
from fgrlhf_jax.errors import InputError

TEXTS = [
    "the film was dull and the actors were bad",
    "the film was bright and the actors were really good",
    "write a short review of what you saw in the town",
]
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


@pytest.fixture(scope="module")
def tokenizer():
    """As LLaMA's: puts a BOS first, has no pad token."""
    return train_tokenizer(TEXTS * 3, 500)


@pytest.fixture(scope="module")
def smol(tokenizer, tmp_path_factory):
    """As SmolLM2's: puts no BOS first, its pad token is its EOS."""
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save_pretrained(folder)
    other = AutoTokenizer.from_pretrained(folder, pad_token="</s>")
    other.backend_tokenizer.post_processor = ByteLevel(trim_offsets=True)
    assert other.pad_token_id == other.eos_token_id == 2
    return other


def response(pair: Pair, side: str) -> list[int]:
    return getattr(pair, f"tokens_{side}")[pair.prompt_length :].tolist()


def changed(pair: Pair, side: str) -> np.ndarray:
    return getattr(pair, f"changed_{side}")[pair.prompt_length :]


def became(*numbers: int) -> list[tuple[str, int]]:
    names = ("rows", "kept", "dropped_overlong", "truncated", "unchanged")
    return list(zip(names, numbers, strict=True))


def words(tokenizer, pair: Pair, side: str) -> list[str]:
    """The changed words of a side."""
    ids = np.array(response(pair, side))[changed(pair, side)]
    return tokenizer.decode(ids).split()


# --- encode_pairs -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tokenizer", "smol"])
def test_edits(request, name):
    """Any tokenizer: EOS is a response token, matched on both sides, whatever the pad token."""
    tokenizer = request.getfixturevalue(name)
    pairs, counts = encode_pairs(EDITS, tokenizer, **SETTINGS)
    assert list(counts.items()) == became(4, 4, 0, 0, 0)
    assert [pair.row for pair in pairs] == [0, 1, 2, 3]
    for pair, edit in zip(pairs, EDITS, strict=True):
        prompt, _ = encode_prompt(tokenizer, "plain", edit.instruction, edit.input, None)
        assert pair.prompt_length == len(prompt)
        assert pair.tokens_i[: len(prompt)].tolist() == prompt
        assert pair.tokens_j[: len(prompt)].tolist() == prompt
        assert response(pair, "i") == [*encode_response(tokenizer, edit.edited, False), 2]
        assert response(pair, "j") == [*encode_response(tokenizer, edit.original, False), 2]
        for side in "ij":
            tokens, mask = getattr(pair, f"tokens_{side}"), getattr(pair, f"changed_{side}")
            assert tokens.dtype == np.int32
            assert mask.dtype == bool
            assert mask.shape == tokens.shape
            assert not mask[: len(prompt)].any()
            assert not mask[-1]  # the EOS
        assert pair.partner.dtype == np.int32
        assert pair.partner[-1] == len(pair.tokens_j) - 1
        assert (pair.partner[: len(prompt)] == -1).all()
        np.testing.assert_array_equal(pair.partner[len(prompt) :] == -1, changed(pair, "i"))
        matched = pair.partner >= 0
        np.testing.assert_array_equal(
            pair.tokens_i[matched], pair.tokens_j[pair.partner[matched]]
        )
        assert pair.length == max(len(pair.tokens_i), len(pair.tokens_j))
    assert words(tokenizer, pairs[0], "i") == ["really", "good"]
    assert words(tokenizer, pairs[0], "j") == ["dull"]
    assert words(tokenizer, pairs[1], "i") == []
    assert words(tokenizer, pairs[1], "j") == ["was"]
    assert words(tokenizer, pairs[2], "i") == ["short"]
    assert words(tokenizer, pairs[2], "j") == []


def test_without_eos(tokenizer):
    pairs, _ = encode_pairs(EDITS, tokenizer, append_eos=False, **SETTINGS)
    with_eos, _ = encode_pairs(EDITS, tokenizer, **SETTINGS)
    for pair, longer in zip(pairs, with_eos, strict=True):
        for name in ("tokens_i", "tokens_j", "changed_i", "changed_j", "partner"):
            np.testing.assert_array_equal(getattr(pair, name), getattr(longer, name)[:-1])


def test_positional_alignment(tokenizer):
    edit = EDITS[2]
    pairs, _ = encode_pairs([edit], tokenizer, alignment="positional", **SETTINGS)
    ids = [encode_response(tokenizer, text, True) for text in (edit.edited, edit.original)]
    wanted = align(*ids, method="positional")
    np.testing.assert_array_equal(changed(pairs[0], "i"), wanted.changed_i)
    np.testing.assert_array_equal(changed(pairs[0], "j"), wanted.changed_j)
    assert words(tokenizer, pairs[0], "i") == ["short", "town</s>"]


def test_preferences(tokenizer):
    """The preferred output is side i, and every response token counts: Eq. 4 is Eq. 3."""
    pairs, counts = encode_pairs(PREFERENCES, tokenizer, **SETTINGS)
    assert counts["kept"] == 2
    for pair, better, worse in zip(
        pairs,
        ("the film was good", "the film was really bright"),
        ("the actors saw what", "bad"),
        strict=True,
    ):
        assert response(pair, "i") == encode_response(tokenizer, better, True)
        assert response(pair, "j") == encode_response(tokenizer, worse, True)
        assert changed(pair, "i").all()
        assert changed(pair, "j").all()
        assert (pair.partner == -1).all()
        assert not pair.changed_i[: pair.prompt_length].any()
        assert not pair.changed_j[: pair.prompt_length].any()


def test_edits_and_preferences_together(tokenizer):
    mixed = [EDITS[0], PREFERENCES[0], EDITS[1]]
    pairs, _ = encode_pairs(mixed, tokenizer, **SETTINGS)
    assert [pair.row for pair in pairs] == [0, 1, 2]
    assert [(pair.partner >= 0).any() for pair in pairs] == [True, False, True]


def long_edits() -> list[Edit]:
    """Edits that fit, do not fit, or lose every changed token when cut at 24 columns."""
    tail = " and the actors were really good" * 4
    return [
        EDITS[0],
        Edit("write", "", "dull film" + tail, "bright film" + tail),  # long responses
        Edit(
            "write", "", "the film" + tail + " bad", "the film" + tail + " good"
        ),  # at the end
        Edit("write", "of the film" * 9, "dull", "bright"),  # a long prompt
        Edit("write", "", "the film", "the film" + tail),  # one side is long
        Edit("write", "", "the film was bad" + tail, "bad" + tail[:33]),  # the other side is
    ]


def test_overlong_rows_are_dropped_and_counted(tokenizer):
    settings = SETTINGS | {"max_length": 24, "max_prompt_length": 12}
    pairs, counts = encode_pairs(long_edits(), tokenizer, **settings)
    assert [pair.row for pair in pairs] == [0]
    assert list(counts.items()) == became(6, 1, 5, 0, 0)


def test_overlong_rows_are_truncated_and_counted(tokenizer):
    edits = long_edits()
    settings = SETTINGS | {"max_length": 24, "max_prompt_length": 12, "overlong": "truncate"}
    pairs, counts = encode_pairs(edits, tokenizer, **settings)
    assert [pair.row for pair in pairs] == [0, 1, 3, 4, 5]
    assert list(counts.items()) == became(6, 5, 0, 4, 1)
    for pair in pairs:
        edit = edits[pair.row]
        assert pair.length <= 24
        prompt, _ = encode_prompt(tokenizer, "plain", edit.instruction, edit.input, 12)
        assert pair.tokens_i[: pair.prompt_length].tolist() == prompt
        # The alignment is that of the whole responses, seen through the window.
        ids = [encode_response(tokenizer, text, True) for text in (edit.edited, edit.original)]
        whole, room = align(*ids), 24 - len(prompt)
        for side, full, mask in zip("ij", ids, (whole.changed_i, whole.changed_j), strict=True):
            assert response(pair, side) == full[:room]
            np.testing.assert_array_equal(changed(pair, side), mask[:room])
        assert pair.changed_i.any() or pair.changed_j.any()
        partner = pair.partner[len(prompt) :]
        kept = whole.partner_i[:room]
        np.testing.assert_array_equal(
            partner, np.where((kept >= 0) & (kept < room), kept + len(prompt), -1)
        )
    # A response that was cut has no EOS, the other side of the same pair keeps its own.
    long_pair, _, one_sided, deleted = pairs[1:]
    assert 2 not in response(long_pair, "i")
    assert 2 not in response(long_pair, "j")
    assert one_sided.tokens_j[-1] == 2
    assert 2 not in one_sided.tokens_i
    # Where the partner was cut away: unchanged, and alone.
    assert not deleted.changed_i[-1]
    assert deleted.partner[-1] == -1
    eos = len(one_sided.tokens_j) - 1
    assert not one_sided.changed_j[eos]
    assert eos not in one_sided.partner


def test_exact_fit_is_not_overlong(tokenizer):
    whole, _ = encode_pairs(EDITS[:1], tokenizer, **SETTINGS)
    fits = SETTINGS | {"max_length": whole[0].length}
    fits["max_prompt_length"] = whole[0].prompt_length
    for overlong in ("drop", "truncate"):
        pairs, counts = encode_pairs(EDITS[:1], tokenizer, overlong=overlong, **fits)
        assert counts["kept"] == 1
        assert counts["truncated"] == 0
        np.testing.assert_array_equal(pairs[0].tokens_i, whole[0].tokens_i)
    for name in ("max_length", "max_prompt_length"):
        with pytest.raises(InputError, match="1 longer than"):
            encode_pairs(EDITS[:1], tokenizer, **fits | {name: fits[name] - 1})


def test_pairs_without_a_gradient_are_dropped_and_counted(smol, tmp_path):
    """The change is lost to the tokenizer, or cut away."""
    smol.save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    tokenizer.backend_tokenizer.normalizer = Lowercase()
    tail = "the film was good " * 9
    rows = [
        EDITS[0],
        Edit("write", "", "the Film", "the film"),
        Edit("write", "", tail + "bad", tail + "good"),
        Preference("write", "", tail + "bad", tail + "good", 1),
    ]
    settings = SETTINGS | {"max_length": 24, "max_prompt_length": 12, "overlong": "truncate"}
    pairs, counts = encode_pairs(rows, tokenizer, **settings)
    assert [pair.row for pair in pairs] == [0]
    assert list(counts.items()) == became(4, 1, 0, 0, 3)


def test_unusable_records_and_settings(tokenizer):
    with pytest.raises(
        InputError, match="not from Instruction rows; give a file with original"
    ):
        encode_pairs([Instruction("a", "", "b")], tokenizer, **SETTINGS)
    with pytest.raises(InputError, match=r"no pair is left of 4 rows \(4 longer than"):
        encode_pairs(EDITS, tokenizer, template="alpaca", max_length=9, max_prompt_length=8)
    with pytest.raises(InputError, match="overlong: 'keep' is neither 'drop' nor 'truncate'"):
        encode_pairs(EDITS, tokenizer, overlong="keep", **SETTINGS)
    for length in (0, 64, 65):
        with pytest.raises(InputError, match=f"max_prompt_length: {length} must be"):
            encode_pairs(EDITS, tokenizer, **SETTINGS | {"max_prompt_length": length})


def test_vocabulary(tokenizer):
    check_vocabulary(tokenizer, len(tokenizer))
    check_vocabulary(tokenizer, len(tokenizer) + 7)
    with pytest.raises(InputError, match=rf"its {len(tokenizer)} ids do not fit .* of 300"):
        check_vocabulary(tokenizer, 300)


# --- span_labels ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tokenizer", "smol"])
@pytest.mark.parametrize("append_eos", [True, False])
def test_span_labels(request, name, append_eos):
    tokenizer = request.getfixturevalue(name)
    text = "the film was dull, a naïve 漢字 and the actors </s> were bad"
    ids = encode_response(tokenizer, text, append_eos)

    def marked(*parts: str, margin: int = 0) -> str:
        spans = []
        for part in parts:
            start = text.index(part)
            spans.append((max(start - margin, 0), start + len(part) + margin))
        labels = span_labels(tokenizer, text, spans, append_eos)
        assert labels.dtype == bool
        assert labels.shape == (len(ids),)
        return tokenizer.decode(np.array(ids, int)[labels]).strip()

    assert marked() == ""
    assert marked("the film") == "the film"
    assert marked("was", margin=1) == "was"  # blanks beside it belong to neither word
    assert marked(" a ") == "a"
    assert marked("dull", "漢字") == "dull漢字"
    assert marked("漢") == "漢"
    assert marked("bad") == "bad"
    assert marked("</s>") == "</s>"
    assert span_labels(tokenizer, "bad film", [(0, 8)], append_eos).tolist() == [
        *[True] * len(encode_response(tokenizer, "bad film", False)),
        *[False] * append_eos,
    ]


def test_span_inside_a_token_marks_it(tokenizer):
    text = "the actors"
    start = text.index("ctor")
    labels = span_labels(tokenizer, text, [(start, start + 4)], True)
    ids = np.array(encode_response(tokenizer, text, True))
    assert "ctor" in tokenizer.decode(ids[labels])
    assert "the" not in tokenizer.decode(ids[labels])


# --- pad_pairs --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tokenizer", "smol"])
@pytest.mark.parametrize("bucket", [32, 61])
def test_padding(request, name, bucket):
    """Every array, cell by cell; also where pad and EOS are one id and 0 is a token."""
    tokenizer = request.getfixturevalue(name)
    pairs, _ = encode_pairs([*EDITS, *PREFERENCES], tokenizer, **SETTINGS)
    pairs[3] = dataclasses.replace(pairs[3], tokens_i=pairs[3].tokens_i * 0)
    batch = pad_pairs(pairs, bucket)
    assert {name: (a.shape, a.dtype.name) for name, a in batch.items()} == {
        "tokens_B2S": ((6, 2, bucket), "int32"),
        "mask_B2S": ((6, 2, bucket), "bool"),
        "response_B2S": ((6, 2, bucket), "bool"),
        "changed_B2S": ((6, 2, bucket), "bool"),
        "partner_BS": ((6, bucket), "int32"),
        "weight_B": ((6,), "float32"),
    }
    assert batch["weight_B"].tolist() == [1] * 6
    for b, pair in enumerate(pairs):
        for side, letter in enumerate("ij"):
            tokens, mask = getattr(pair, f"tokens_{letter}"), getattr(pair, f"changed_{letter}")
            for s in range(bucket):
                real = s < len(tokens)
                cell = {key: batch[f"{key}_B2S"][b, side, s] for key in ("tokens", "mask")}
                assert cell == {"tokens": tokens[s] if real else 0, "mask": real}
                answers = real and s >= pair.prompt_length
                assert batch["response_B2S"][b, side, s] == answers
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
        with pytest.raises(AssertionError, match=f"{count} pairs for {size} rows"):
            pad_pairs(pairs[:count], 32, batch_size=size)
