"""Train and validation: no prompt on both sides, whatever else the file holds."""

import pytest

from fgrlhf_jax.data.records import Instruction, split
from fgrlhf_jax.errors import InputError


def many(count: int) -> list[Instruction]:
    """Rows whose prompts recur: three rows a prompt, told apart by input or instruction."""
    return [Instruction(f"Do {n % 40}.", f"{n % 70}", f"{n}") for n in range(count)]


def test_split_by_prompt():
    records = many(2000)
    train, validation = split(records, 0.2, seed=0)
    prompts = [{(r.instruction, r.input) for r in side} for side in (train, validation)]
    assert not prompts[0] & prompts[1]
    assert sorted(train + validation, key=lambda r: int(r.output)) == records
    for side in (train, validation):
        assert [int(r.output) for r in side] == sorted(int(r.output) for r in side)
    assert 0.12 < len(prompts[1]) / len(prompts[0] | prompts[1]) < 0.28


def test_split_is_a_function_of_seed_and_prompt():
    records = many(2000)
    validation = split(records, 0.2, seed=0)[1]
    assert split(records, 0.2, seed=0)[1] == validation
    assert split(records, 0.2, seed=1)[1] != validation
    # A row's side does not depend on the others, and a smaller share is a part of a larger.
    assert split(records[500:], 0.2, seed=0)[1] == [
        r for r in validation if int(r.output) >= 500
    ]
    assert set(split(records, 0.1, seed=0)[1]) < set(validation)
    spaced = [Instruction(f" {r.instruction}\n", r.input, r.output) for r in records]
    assert [r.output for r in split(spaced, 0.2, seed=0)[1]] == [r.output for r in validation]


def test_split_looks_at_the_input_too():
    """One instruction for every row, as in a file of summaries."""
    train, validation = split([Instruction("Sum up.", f"{n}", "") for n in range(200)], 0.5, 0)
    assert 70 < len(train) < 130
    assert len(train) + len(validation) == 200


@pytest.mark.parametrize(("share", "side"), [(0.0, "validation"), (1.0, "training")])
def test_split_with_an_empty_side(share, side):
    with pytest.raises(InputError, match=f"of 50 rows none is left for {side}"):
        split(many(50), share, seed=0)
