"""Demonstrations and prompts as tokens: what is kept, cut and left out, and where padding goes."""

import numpy as np
import pytest

from fgrlhf_jax.data.demonstrations import (
    Demonstration,
    encode_demonstrations,
    pad_demonstrations,
    response_widths,
)
from fgrlhf_jax.data.records import Edit, Instruction
from fgrlhf_jax.data.templates import encode_prompt, encode_prompts, pad_prompts
from fgrlhf_jax.errors import InputError
from fgrlhf_jax.tiny_world.words import make_tokenizer, vocabulary

TOKENIZER = make_tokenizer()
EOS = TOKENIZER.eos_token_id
A, B, C, D = vocabulary()[:4]
SHORT = Instruction(f"{A} {B}", "", f"{C} {D} {C}")


def ids(text: str) -> list[int]:
    return TOKENIZER(text, add_special_tokens=False)["input_ids"]


def encode(rows, **changes):
    options = {"template": "plain", "max_length": 12, "max_prompt_length": 6}
    rows, counts = encode_demonstrations(rows, TOKENIZER, **(options | changes))
    names = ("rows", "kept", "dropped_empty", "dropped_overlong", "truncated")
    return rows, tuple(counts[name] for name in names)


def test_a_demonstration_is_the_prompt_and_then_the_response_with_its_end():
    (row,), counts = encode([SHORT])
    prompt, _ = encode_prompt(TOKENIZER, "plain", SHORT)
    assert row.tokens.tolist() == [*prompt, *ids(SHORT.output), EOS]
    assert row.tokens.dtype == np.int32
    assert row.prompt_length == len(prompt)
    assert counts == (1, 1, 0, 0, 0)
    (open_ended,), _ = encode([SHORT], append_eos=False)
    assert open_ended.tokens.tolist() == row.tokens.tolist()[:-1]


def test_what_is_too_long_is_cut_or_left_out_and_counted():
    long_response = Instruction(SHORT.instruction, "", " ".join([C, D] * 9))
    long_prompt = Instruction(" ".join([A, B] * 9), "", D)
    fits = Instruction(SHORT.instruction, "", " ".join([C] * 7))  # with BOS, newline and EOS 12
    rows = [long_response, SHORT, long_prompt, fits]
    kept, counts = encode(rows, overlong="drop")
    assert counts == (4, 2, 0, 2, 0)
    assert [len(row.tokens) for row in kept] == [8, 12]
    cut, counts = encode(rows)
    assert counts == (4, 4, 0, 0, 2)
    for row, same in zip((cut[1], cut[3]), kept, strict=True):
        np.testing.assert_array_equal(row.tokens, same.tokens)
        assert row.tokens[-1] == EOS
    # The tail goes, the end of sequence with it: what was cut off did not end there.
    assert len(cut[0].tokens) == 12
    response = cut[0].tokens[cut[0].prompt_length :].tolist()
    assert response == ids(long_response.output)[: len(response)]
    assert cut[2].prompt_length == 6
    assert cut[2].tokens[6:].tolist() == [*ids(D), EOS]


@pytest.mark.parametrize(
    ("rows", "changes", "message"),
    [
        ([Instruction(A, "", ""), Instruction(A, "", " ")], {}, "of 2: all have an empty output o"),
        ([Edit(A, "", B, C)], {}, "row 1: has no demonstration"),
        ([Instruction(A, "", f"{B} " * 30)], {"overlong": "drop"}, "no demonstration is left"),
        ([], {}, "no demonstration is left of 0"),
        ([SHORT], {"max_prompt_length": 12}, "must be above 0 and below data.max_length=12"),
        ([SHORT], {"overlong": "cut"}, "overlong: 'cut' is neither 'drop' nor 'truncate'"),
        ([SHORT], {"template": "fancy"}, "template=fancy: is not one of alpaca, chat"),
    ],
)
def test_what_cannot_be_used_is_refused(rows, changes, message):
    with pytest.raises(InputError, match=message):
        encode(rows, **changes)


def test_demonstrations_are_padded_on_the_right_and_masks_come_from_lengths():
    """The tokens 0 and EOS are tokens like any other."""
    rows = [
        Demonstration(np.array([0, 5, 0, EOS], np.int32), 2),
        Demonstration(np.array([7, EOS, 0], np.int32), 1),
    ]
    batch = pad_demonstrations(rows, 6, batch_size=4)
    last = [7, EOS, 0, 0, 0, 0]
    assert batch["tokens_BS"].tolist() == [[0, 5, 0, EOS, 0, 0], last, last, last]
    columns = [np.flatnonzero(row).tolist() for row in batch["mask_BS"]]
    assert columns == [[0, 1, 2, 3], *[[0, 1, 2]] * 3]
    real = zip(batch["columns_BT"], batch["response_BT"], strict=True)
    assert [row[is_real].tolist() for row, is_real in real] == [[2, 3], *[[1, 2]] * 3]
    assert batch["columns_BT"].max() < 6
    assert batch["weight_B"].tolist() == [1, 1, 0, 0]
    types = [array.dtype.name for array in batch.values()]
    assert types == ["int32", "bool", "int32", "bool", "float32"]
    for name, array in pad_demonstrations(rows, 6).items():
        np.testing.assert_array_equal(array, batch[name][:2])


def test_responses_have_as_many_columns_as_the_longest_that_a_batch_can_have():
    """Rows move up to longer buckets; nothing before a token, nothing to imitate."""
    lengths = {(20, 12), (30, 29), (22, 5), (64, 60)}  # tokens, of which prompt
    rows = [Demonstration(np.zeros(n, np.int32), prompt) for n, prompt in sorted(lengths)]
    widths = response_widths(*zip(*sorted(lengths), strict=True), (8, 20, 24, 64))
    assert widths == {8: 8, 20: 8, 24: 24, 64: 24}
    batch = pad_demonstrations(rows[:2], 24, response_width=24)
    assert batch["columns_BT"].shape == batch["response_BT"].shape == (2, 24)
    assert batch["response_BT"].sum(axis=1).tolist() == [8, 17]
    batch = pad_demonstrations([Demonstration(np.zeros(3, np.int32), 0)], 8)
    assert batch["columns_BT"][batch["response_BT"]].tolist() == [1, 2]


@pytest.mark.parametrize("overlong", ["drop", "truncate"])
def test_prompts_of_any_record_and_the_numbers_of_those_kept(overlong):
    records = [Edit(f"{A} {B}", "", C, D), Instruction(f"{A} {B} " * 9, "", ""), SHORT]
    options = {"template": "plain", "max_prompt_length": 6, "overlong": overlong}
    prompts, numbers, counts = encode_prompts(records, TOKENIZER, **options)
    expected = [encode_prompt(TOKENIZER, "plain", r, 6)[0] for r in records]
    dropped = overlong == "drop"
    assert numbers == ([0, 2] if dropped else [0, 1, 2])
    assert prompts == [expected[number] for number in numbers]
    left_out = {"dropped_overlong": dropped, "truncated": not dropped}
    assert counts == {"prompts": 3, "kept": len(prompts), **left_out}
    with pytest.raises(InputError, match="overlong: 'leave' is neither 'drop' nor 'truncate'"):
        encode_prompts(records, TOKENIZER, **options | {"overlong": "leave"})
    if dropped:
        with pytest.raises(InputError, match="all 3 prompts are longer than max_prompt_length 2"):
            encode_prompts(records, TOKENIZER, **options | {"max_prompt_length": 2})


def test_prompts_are_padded_on_the_left():
    tokens, mask = pad_prompts([[0, 5, EOS], [EOS], [1, 2, 3, 4]], 4)
    assert tokens.tolist() == [[0, 0, 5, EOS], [0, 0, 0, EOS], [1, 2, 3, 4]]
    assert [np.flatnonzero(row).tolist() for row in mask] == [[1, 2, 3], [3], [0, 1, 2, 3]]
    assert (tokens.dtype, mask.dtype) == (np.int32, bool)
