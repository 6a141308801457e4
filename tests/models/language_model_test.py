"""Answers to prompts: the same for a prompt whatever it is asked with."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import ppo_cases
import pytest

from fgrlhf_jax.data import records
from fgrlhf_jax.data.prompts import encode_prompts
from fgrlhf_jax.errors import InputError
from fgrlhf_jax.models import language_model, llama
from fgrlhf_jax.runtime.files import write_jsonl
from fgrlhf_jax.tiny_world.datasets import make_instructions
from launch import generate
from launch.shared import cli

pytestmark = pytest.mark.usefixtures("quick_compilation")

ROWS = make_instructions(7, "test", 0)
OPTIONS = {"template": "plain", "max_prompt_length": 16, "max_new_tokens": 6, "batch_size": 8}


@pytest.fixture(scope="module", autouse=True)
def one_device():
    with pytest.MonkeyPatch.context() as patch:
        ppo_cases.one_device(patch)
        yield


@pytest.fixture(scope="module")
def policy(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("run")
    return str(ppo_cases.save_policy(folder / "export", template="plain"))


def same(ours: list[dict], theirs: list[dict]) -> None:
    assert len(ours) == len(theirs)
    for one, two in zip(ours, theirs, strict=True):
        assert one | {"logprob": 0} == two | {"logprob": 0}
        assert one["logprob"] == pytest.approx(two["logprob"], abs=1e-4)


@pytest.fixture(scope="module")
def sampled(policy, quick_compilation) -> list[dict]:
    return language_model.answer(policy, ROWS, temperature=1.0, samples=2, **OPTIONS)


def test_a_row_is_as_alpaca_eval_has_it_and_says_how_it_was_said(sampled, policy):
    assert len(sampled) == 2 * len(ROWS)
    for number, row in enumerate(sampled):
        asked = ROWS[number // 2]
        assert list(row)[:4] == ["instruction", "input", "output", "generator"]
        assert row.keys() == {
            *("instruction", "input", "output", "generator", "length", "finished", "logprob")
        }
        assert (row["instruction"], row["input"]) == (asked.instruction, asked.input)
        assert row["generator"] == policy
        assert 1 <= row["length"] <= 6
        assert row["finished"] or row["length"] == 6
        assert row["logprob"] < 0
        assert "</s>" not in row["output"]
    assert {row["finished"] for row in sampled} == {True, False}


def test_samples_of_a_prompt_differ(sampled):
    differing = [
        one["output"] != two["output"]
        for one, two in zip(sampled[::2], sampled[1::2], strict=True)
    ]
    assert np.mean(differing) > 0.5


def test_a_seed_is_another_draw(policy, sampled):
    other = language_model.answer(policy, ROWS, temperature=1.0, samples=2, seed=1, **OPTIONS)
    assert [row["output"] for row in other] != [row["output"] for row in sampled]


@pytest.mark.parametrize("batch_size", [3, 64])
def test_the_size_of_a_batch_changes_nothing(policy, sampled, batch_size):
    options = OPTIONS | {"batch_size": batch_size}
    same(language_model.answer(policy, ROWS, temperature=1.0, samples=2, **options), sampled)


def test_a_prompt_has_the_key_of_its_row_whatever_else_is_asked(policy, sampled):
    """Fewer rows, other rows in their places, rows left out because they are too long."""
    some = language_model.answer(policy, ROWS[:4], temperature=1.0, samples=2, **OPTIONS)
    same(some, sampled[:8])
    long = records.Instruction(" ".join(["apple"] * 40), "", "")
    others = [long, ROWS[1], long, *ROWS[3:]]
    options = OPTIONS | {"overlong": "drop"}
    kept = language_model.answer(policy, others, temperature=1.0, samples=2, **options)
    same(kept, [*sampled[2:4], *sampled[6:]])


@pytest.mark.parametrize("overlong", ["drop", "truncate"])
def test_prompts_that_are_left_out_or_cut_are_counted(policy, overlong):
    long = records.Instruction(" ".join(["apple"] * 40), "", "")
    options, said = OPTIONS | {"overlong": overlong}, []
    language_model.answer(policy, ROWS, **options, say=said.append)
    assert said == []
    language_model.answer(policy, [*ROWS, long], **options, say=said.append)
    assert (
        said
        == {
            "drop": ["8 prompts, 7 kept, 1 dropped_overlong, 0 truncated"],
            "truncate": ["8 prompts, 8 kept, 0 dropped_overlong, 1 truncated"],
        }[overlong]
    )


def test_the_same_prompt_twice_is_answered_twice(policy):
    rows = language_model.answer(policy, [ROWS[0]] * 8, temperature=1.0, **OPTIONS)
    assert len({row["output"] for row in rows}) > 2
    greedy = language_model.answer(policy, [ROWS[0]] * 8, **OPTIONS)
    assert len({row["output"] for row in greedy}) == 1
    assert {row["logprob"] for row in greedy} == {0.0}


def test_the_log_probability_is_that_of_the_whole_response(policy):
    """By a pass over prompt and response, read back from the words."""
    options = OPTIONS | {"batch_size": 64, "samples": 8, "temperature": 1.0}
    answers = language_model.answer(policy, ROWS, **options)
    ids = {ppo_cases.TOKENIZER.decode([n]): n for n in range(len(ppo_cases.TOKENIZER))}
    model = ppo_cases.POLICY
    params = ppo_cases.policy_params()
    prompts, _, _ = encode_prompts(
        ROWS, ppo_cases.TOKENIZER, template="plain", max_prompt_length=16, overlong="drop"
    )

    @jax.jit
    def logprobs(tokens_S):
        where = llama.positions_and_mask(jnp.ones((1, 24), bool))
        return jax.nn.log_softmax(model.apply({"params": params}, tokens_S[None], *where)[0])

    checked = 0
    for number, row in enumerate(answers):
        if row["length"] - row["finished"] > 1:  # one word can be read back for sure
            continue
        said = [ids[row["output"]]] if row["output"] else []
        said += [ppo_cases.TOKENIZER.eos_token_id] * row["finished"]
        prompt = prompts[number // 8]
        whole = np.array([*prompt, *said])
        found = np.asarray(logprobs(np.pad(whole, (0, 24 - len(whole)))))
        places = np.arange(len(prompt), len(whole))
        assert row["logprob"] == pytest.approx(found[places - 1, whole[places]].sum(), abs=1e-4)
        checked += 1
    assert checked > 3


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"max_new_tokens": 60}, r"max_new_tokens=60 are more than the model's 64 positions"),
        ({"max_prompt_length": 1, "overlong": "drop"}, "all 7 prompts are longer than"),
    ],
)
def test_what_cannot_be_answered_is_refused(policy, changes, says):
    with pytest.raises(InputError, match=says):
        language_model.answer(policy, ROWS, **(OPTIONS | changes))


def test_the_command_writes_a_file(policy, tmp_path, capsys):
    """Given the run folder; with the template that the model was fine-tuned with."""
    write_jsonl(tmp_path / "asked.jsonl", ROWS)
    fields = {
        "model": policy.removesuffix("/export"),
        "prompts": tmp_path / "asked.jsonl",
        "output": tmp_path / "said.json",
        "generator": "mine",
        "limit": 5,
        "max_prompt_length": 16,
        "max_new_tokens": 6,
        "batch_size": 8,
    }
    generate.main(cli.parse(["", *ppo_cases.flags(fields)], "configs/generate.py"))
    made = json.loads((tmp_path / "said.json").read_text())
    greedy = language_model.answer(policy, ROWS[:5], generator="mine", **OPTIONS)
    same(made, greedy)
    assert "5 responses in" in capsys.readouterr().out
    generate.main(
        cli.parse(["", *ppo_cases.flags(fields | {"output": ""})], "configs/generate.py")
    )
    out, err = capsys.readouterr()
    assert "fine-tuned" not in err
    for row in greedy:
        shown = "" if row["finished"] else " …"
        assert f"{row['instruction']}\n> {row['output']}{shown}\n" in out
    generate.main(
        cli.parse(
            ["", *ppo_cases.flags(fields | {"template": "alpaca"})], "configs/generate.py"
        )
    )
    err = capsys.readouterr().err
    assert "template=alpaca, though the model was fine-tuned with plain" in err
    assert "5 prompts, 5 kept, 0 dropped_overlong, 5 truncated" in err
