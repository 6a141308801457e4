"""Instructions to token sequences: what is kept, cut and left out, and where padding goes."""

import numpy as np
import pytest

from fgrlhf_jax.data import records, templates
from fgrlhf_jax.data.demonstrations import (
    Demonstration,
    encode_demonstrations,
    pad_demonstrations,
)
from fgrlhf_jax.data.prompts import encode_prompts, pad_prompts
from fgrlhf_jax.errors import InputError
from fgrlhf_jax.tiny_world.words import make_tokenizer, vocabulary

TOKENIZER = make_tokenizer()
EOS = TOKENIZER.eos_token_id
OPTIONS = {"template": "plain", "max_length": 12, "max_prompt_length": 6}


def ids(text: str) -> list[int]:
    return TOKENIZER(text, add_special_tokens=False)["input_ids"]


def rows(*pairs: tuple[str, str]) -> list[records.Instruction]:
    return [records.Instruction(prompt, "", output) for prompt, output in pairs]


def encode(some, **changes):
    return encode_demonstrations(some, TOKENIZER, **(OPTIONS | changes))


A, B, C, D = vocabulary()[:4]
SHORT = (f"{A} {B}", f"{C} {D} {C}")


def test_an_example_is_the_prompt_and_then_the_response_with_its_end():
    (one,), counts = encode(rows(SHORT))
    prompt, cut = templates.encode_prompt(TOKENIZER, "plain", SHORT[0], "", None)
    assert not cut
    assert one.tokens.tolist() == [*prompt, *ids(SHORT[1]), EOS]
    assert one.tokens.dtype == np.int32
    assert one.prompt_length == len(prompt)
    assert counts == {
        "rows": 1,
        "kept": 1,
        "dropped_empty": 0,
        "dropped_overlong": 0,
        "truncated": 0,
    }
    (open_ended,), _ = encode(rows(SHORT), append_eos=False)
    assert open_ended.tokens.tolist() == one.tokens.tolist()[:-1]


@pytest.mark.parametrize("overlong", ["truncate", "drop"])
def test_what_is_too_long_is_cut_or_left_out_and_counted(overlong):
    long_response = (SHORT[0], " ".join([C, D] * 9))
    long_prompt = (" ".join([A, B] * 9), D)
    room = OPTIONS["max_length"] - len(encode(rows(SHORT))[0][0].tokens[:-4])
    fits = (SHORT[0], " ".join([C] * (room - 1)))  # with its EOS exactly max_length
    made, counts = encode(rows(long_response, SHORT, long_prompt, fits), overlong=overlong)
    assert counts["rows"] == 4
    lengths = [len(one.tokens) for one in made]
    if overlong == "drop":
        assert counts == {
            "rows": 4,
            "kept": 2,
            "dropped_empty": 0,
            "dropped_overlong": 2,
            "truncated": 0,
        }
        assert [one.tokens[-1] for one in made] == [EOS, EOS]
        assert lengths[1] == OPTIONS["max_length"]
        return
    assert counts == {
        "rows": 4,
        "kept": 4,
        "dropped_empty": 0,
        "dropped_overlong": 0,
        "truncated": 2,
    }
    assert lengths[0] == OPTIONS["max_length"]
    # The tail goes, the end of sequence with it: what was cut off did not end there.
    response = made[0].tokens[made[0].prompt_length :].tolist()
    assert response == ids(long_response[1])[: len(response)]
    assert made[2].prompt_length == OPTIONS["max_prompt_length"]
    assert made[2].tokens[made[2].prompt_length :].tolist() == [*ids(D), EOS]
    assert made[3].tokens[-1] == EOS


def test_the_input_is_cut_before_the_instruction():
    row = records.Instruction(f"{A} {B}", " ".join([C] * 20), D)
    (one,), counts = encode([row], max_prompt_length=8)
    said = one.tokens[: one.prompt_length].tolist()
    assert one.prompt_length <= 8
    assert set(ids(f"{A} {B}")) <= set(said)
    assert counts["truncated"] == 1


@pytest.mark.parametrize(
    ("some", "changes", "says"),
    [
        (rows((A, ""), (A, " ")), {}, "no demonstration is left of 2: 2 have an empty output"),
        ([records.Edit(A, "", B, C)], {}, "row 1: has no demonstration"),
        (rows((A, " ".join([B] * 30))), {"overlong": "drop"}, "no demonstration is left of 1"),
        ([], {}, "no demonstration is left of 0"),
        (rows(SHORT), {"max_prompt_length": 12}, "must be above 0 and below max_length 12"),
        (rows(SHORT), {"max_prompt_length": 0}, "must be above 0 and below max_length 12"),
        (rows(SHORT), {"overlong": "cut"}, "overlong: 'cut' is neither 'drop' nor 'truncate'"),
        (rows(SHORT), {"template": "fancy"}, "template: 'fancy' is not one of alpaca, chat"),
    ],
)
def test_what_cannot_be_used_is_refused(some, changes, says):
    with pytest.raises(InputError, match=says):
        encode(some, **changes)


def test_examples_are_padded_on_the_right_and_masks_come_from_lengths():
    """The tokens 0 and EOS are tokens like any other."""
    made = [
        Demonstration(np.array([0, 5, 0, EOS], np.int32), 2),
        Demonstration(np.array([7, EOS, 0], np.int32), 1),
    ]
    batch = pad_demonstrations(made, 6, batch_size=4)
    assert batch["tokens_BS"].tolist() == [
        [0, 5, 0, EOS, 0, 0],
        [7, EOS, 0, 0, 0, 0],
        [7, EOS, 0, 0, 0, 0],
        [7, EOS, 0, 0, 0, 0],
    ]
    assert batch["mask_BS"].sum(axis=1).tolist() == [4, 3, 3, 3]
    assert batch["mask_BS"][:, 0].all()
    assert [np.flatnonzero(row).tolist() for row in batch["response_BS"]] == [
        [2, 3],
        [1, 2],
        [1, 2],
        [1, 2],
    ]
    assert batch["weight_B"].tolist() == [1, 1, 0, 0]
    kinds = {name: value.dtype.name for name, value in batch.items()}
    assert kinds == {
        "tokens_BS": "int32",
        "mask_BS": "bool",
        "response_BS": "bool",
        "weight_B": "float32",
    }
    alone = pad_demonstrations(made, 6)
    for name in batch:
        np.testing.assert_array_equal(alone[name], batch[name][:2])


@pytest.mark.parametrize("overlong", ["drop", "truncate"])
def test_prompts_of_any_record_and_the_numbers_of_those_kept(overlong):
    some = [
        records.Edit(f"{A} {B}", "", C, D),
        records.Instruction(" ".join([A, B] * 9), "", ""),
        records.Instruction(f"{C} {D}", "", ""),
    ]
    made, numbers, counts = encode_prompts(
        some, TOKENIZER, template="plain", max_prompt_length=6, overlong=overlong
    )
    whole = [
        templates.encode_prompt(TOKENIZER, "plain", row.instruction, "", None)[0]
        for row in some
    ]
    whether = {"dropped_overlong": overlong == "drop", "truncated": overlong == "truncate"}
    assert counts == {"prompts": 3, "kept": len(made), **whether}
    if overlong == "drop":
        assert numbers == [0, 2]
        assert made == [whole[0], whole[2]]
    else:
        assert numbers == [0, 1, 2]
        assert made[::2] == whole[::2]
        assert len(made[1]) == 6


@pytest.mark.parametrize(
    ("overlong", "says"),
    [
        ("drop", "all 2 prompts are longer than max_prompt_length 1; raise it, or set"),
        ("leave", "overlong: 'leave' is neither 'drop' nor 'truncate'"),
    ],
)
def test_prompts_that_cannot_be_used_are_refused(overlong, says):
    with pytest.raises(InputError, match=says):
        encode_prompts(
            rows(SHORT, SHORT),
            TOKENIZER,
            template="plain",
            max_prompt_length=1,
            overlong=overlong,
        )


def test_prompts_are_padded_on_the_left():
    tokens, mask = pad_prompts([[0, 5, EOS], [EOS], [1, 2, 3, 4]], 4)
    assert tokens.tolist() == [[0, 0, 5, EOS], [0, 0, 0, EOS], [1, 2, 3, 4]]
    assert mask.tolist() == [
        [False, True, True, True],
        [False, False, False, True],
        [True] * 4,
    ]
    assert (tokens.dtype, mask.dtype) == (np.int32, bool)
