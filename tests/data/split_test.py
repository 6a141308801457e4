"""Training and validation rows: no prompt on both sides, and a row's side is its own."""

import pytest

from fgrlhf_jax.data.records import Edit, Instruction, prompt_id
from fgrlhf_jax.data.split import split
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
    spelt = [Instruction(f"Sum  up.\nCafe\u0301 {n}", "", "") for n in range(200)]
    rows = [Instruction("Sum up.", f"Caf\u00e9 {n}", "") for n in range(200)]
    sides = [{*map(prompt_id, side)} for side in split(rows + spelt, 0.2, seed=0)]
    assert sides[0].isdisjoint(sides[1])


def test_split_is_a_function_of_seed_and_prompt():
    records = many(2000)
    validation = split(records, 0.2, seed=0)[1]
    assert split(records, 0.2, seed=0)[1] == validation
    assert split(records, 0.2, seed=1)[1] != validation
    # A row's side does not depend on the others, and a smaller share is a part of a larger.
    assert split(records[500:], 0.2, seed=0)[1] == [r for r in validation if int(r.output) >= 500]
    assert set(split(records, 0.1, seed=0)[1]) < set(validation)
    spaced = [Instruction(f" {r.instruction}\n", r.input, r.output) for r in records]
    assert [r.output for r in split(spaced, 0.2, seed=0)[1]] == [r.output for r in validation]
    # One instruction for every row, as in a file of summaries: an empty side would be refused.
    split([Instruction("Sum up.", f"{n}", "") for n in range(200)], 0.5, seed=0)


def test_one_prompt_for_all_rows_is_split_by_what_rows_share(capsys):
    """Here an edit and the edit of its edit; no text is on both sides."""
    texts = [(f"{n}", f"{n} better") for n in range(300)]
    texts += [(f"{n} better", f"{n} best") for n in range(300)]
    sides = split([Edit("Improve.", "", *pair) for pair in texts], 0.1, seed=0)
    assert "the 600 rows have 1 prompts; validation is split off by" in capsys.readouterr().out
    train, validation = ({t for e in side for t in (e.original, e.edited)} for side in sides)
    assert not train & validation
    assert 40 < len(sides[1]) < 80


def test_a_small_share_of_few_prompts_is_one_of_them(capsys):
    rows = [Instruction(f"{n % 5}", "", f"{n}") for n in range(20)]
    for seed in range(9):
        train, validation = split(rows[:19], 0.001, seed)
        assert len({row.instruction for row in validation}) == 1
        assert len({row.instruction for row in train}) == 4
    line = "of 19 rows (validation_share=0.001 is none of 5 prompts); give --config.validation or a"
    assert line in capsys.readouterr().out


@pytest.mark.parametrize(("share", "prompts"), [(0.1, 4), (0.05, 2), (0.5, 20), (0.99, 39)])
def test_an_exact_share_is_what_was_asked_for(share, prompts, capsys):
    rows = [Instruction(f"{n % 40}", "", f"{n}") for n in range(200)]
    held_out = set()
    for seed in range(20):
        train, validation = split(rows, share, seed, exact=True)
        assert len({row.instruction for row in validation}) == prompts
        assert len(train) + len(validation) == 200
        assert not {row.instruction for row in train} & {row.instruction for row in validation}
        held_out |= {row.instruction for row in validation}
    assert len(held_out) > 20
    smaller, larger = (set(split(rows, s, 0, exact=True)[1]) for s in (0.1, 0.5))
    assert smaller < larger
    assert ("smaller share" in capsys.readouterr().out) == (share == 0.99)


@pytest.mark.parametrize(("share", "side"), [(0.0, "validation"), (1.0, "training")])
def test_split_with_an_empty_side(share, side):
    with pytest.raises(InputError, match=f"of 50 rows none is left for {side}"):
        split(many(50), share, seed=0)
