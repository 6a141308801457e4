"""A language model in use: a response depends on its prompt and key, not on its company."""

import json
import re
import shutil
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pandas
import ppo_cases
import pytest
import tiny_cases
from ml_collections import ConfigDict

from fgrlhf_jax.data.records import Instruction, Preference
from fgrlhf_jax.errors import InputError
from fgrlhf_jax.models import heads
from fgrlhf_jax.models.language_model import LanguageModel, SamplingParams
from fgrlhf_jax.models.responses import generate_responses
from fgrlhf_jax.ppo import checks
from fgrlhf_jax.runtime.files import write_jsonl
from fgrlhf_jax.tiny_world.datasets import make_instructions
from fgrlhf_jax.tiny_world.words import make_tokenizer
from launch import generate

PROMPTS = make_instructions(7, "test", 0)
TEXTS = [prompt.instruction for prompt in PROMPTS]
LONG = Instruction(" ".join(["apple"] * 40), "", "")
SAMPLED = SamplingParams(temperature=1.0, max_new_tokens=6)
GREEDY = SamplingParams(max_new_tokens=6)
OPTIONS = {"generator": "mine", "max_prompt_length": 16, "batch_size": 16, "samples": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    run = tmp_path_factory.mktemp("run")
    ppo_cases.save_policy(run / "export", template="plain")
    return str(run)


@pytest.fixture(scope="module")
def model(folder) -> LanguageModel:
    with pytest.MonkeyPatch.context() as patch:
        tiny_cases.one_device(patch)
        return LanguageModel.load(folder)


@pytest.fixture(scope="module")
def sampled(model) -> list[dict]:
    return generate_responses(model, PROMPTS, SAMPLED, **OPTIONS)


def same(ours: list[dict], theirs: list[dict]) -> None:
    for row, other in zip(ours, theirs, strict=True):
        assert row | {"logprob": 0} == other | {"logprob": 0}
        assert row.get("logprob") == pytest.approx(other.get("logprob"), abs=1e-4)


def test_rows_are_those_of_alpaca_eval_with_what_a_response_cost(sampled):
    assert len(sampled) == 2 * len(PROMPTS)
    for number, row in enumerate(sampled):
        prompt = PROMPTS[number // 2]
        assert " ".join(row) == "instruction input output generator length finished logprob"
        assert (row["instruction"], row["input"]) == (prompt.instruction, prompt.input)
        assert row["generator"] == "mine"
        assert 1 <= row["length"] <= 6
        assert row["finished"] or row["length"] == 6
        assert row["logprob"] < 0
        assert "</s>" not in row["output"]
    assert {row["finished"] for row in sampled} == {True, False}
    pairs = zip(sampled[::2], sampled[1::2], strict=True)
    assert np.mean([one["output"] != two["output"] for one, two in pairs]) > 0.5


def test_the_seed_changes_the_draw_and_the_size_of_a_batch_nothing(model, sampled):
    other = generate_responses(model, PROMPTS, SAMPLED, **OPTIONS, seed=1)
    assert [row["output"] for row in other] != [row["output"] for row in sampled]
    options = OPTIONS | {"batch_size": 3}
    same(generate_responses(model, PROMPTS, SAMPLED, **options), sampled)


def test_a_prompt_has_the_key_of_its_row_and_long_ones_are_left_out_or_cut(model, sampled):
    """Fewer rows, other rows in their places, rows left out because they are too long."""
    messages = []
    options = OPTIONS | {"log": messages.append}
    same(generate_responses(model, PROMPTS[:4], SAMPLED, **options), sampled[:8])
    assert messages == []
    others = [LONG, PROMPTS[1], LONG, *PROMPTS[3:]]
    rest = generate_responses(model, others, SAMPLED, **options, overlong="drop")
    same(rest, [*sampled[2:4], *sampled[6:]])
    assert messages == ["7 prompts, 5 kept, 2 dropped_overlong, 0 truncated"]
    rest = generate_responses(model, others, SAMPLED, **options)
    assert len(rest) == 14
    assert messages[1:] == ["7 prompts, 7 kept, 0 dropped_overlong, 2 truncated"]


def test_the_same_prompt_twice_is_answered_twice(model):
    responses = model.generate([TEXTS[0]] * 8, SAMPLED)
    assert len(set(responses.texts)) > 2
    greedy = model.generate([TEXTS[0]] * 8, GREEDY)
    assert len(set(greedy.texts)) == 1
    assert not greedy.logprobs.any()


def test_log_probabilities_are_those_of_a_pass_over_the_whole_text(model):
    responses = model.generate(TEXTS * 2, SAMPLED, seed=3, batch_size=14)

    params = model.read_params()

    @jax.jit
    def logprobs_of(tokens_S):
        positions_and_mask = heads.positions_and_mask(jnp.ones((1, 24), bool))
        args = tokens_S[None], *positions_and_mask
        return jax.nn.log_softmax(model.module.apply({"params": params}, *args)[0])

    for row, text in enumerate(TEXTS * 2):
        ids, logprob_T = responses.ids[row], responses.logprobs[row]
        prompt = model.encode(text)
        tokens = np.array(prompt + ids)
        expected = np.asarray(logprobs_of(np.pad(tokens, (0, 24 - len(tokens)))))
        columns = np.arange(len(prompt), len(tokens))
        expected = expected[columns - 1, tokens[columns]]
        np.testing.assert_allclose(logprob_T[: len(ids)], expected, atol=1e-4)
        assert not logprob_T[len(ids) :].any()
        assert responses.finished[row] == (ids[-1] in model.end_ids)
    ids = [i for i in responses.ids[0] if i not in model.end_ids]
    assert responses.texts[0] == model.tokenizer.decode(ids)


def test_a_prompt_is_a_text_a_record_or_messages(model):
    text = TEXTS[0]
    same_prompt = [
        text,
        Instruction(text, "", "an output is not read"),
        Preference(text, "", "nor", "these", 1),
        {"instruction": text},
        {"instruction": text, "input": None, "output": "nor this"},
        [{"role": "user", "content": text}],
    ]
    assert len({tuple(model.encode(prompt)) for prompt in same_prompt}) == 1
    system = {"role": "system", "content": "be brief"}
    assert model.encode([system, same_prompt[-1][0]]) == model.encode(f"be brief\n\n{text}")
    with_input = {"instruction": "a", "input": "b"}
    assert model.encode(with_input) == model.encode(Instruction("a", "b", ""))


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (7, "prompt: messages: is not a list of messages"),
        ({"text": "x"}, "prompt: misses the field 'instruction'"),
        (["x"], "is not a message with a role"),
        ([], "prompt: messages is empty; give a prompt"),
        ([{"role": "tool", "content": "x"}], '"tool".* is not a message with a role'),
        ("apple " * 59, r"max_new_tokens=6 are more than the model's 64 positions"),
    ],
)
def test_what_cannot_be_answered_is_refused(model, prompt, message):
    with pytest.raises(InputError, match=message):
        model.generate([TEXTS[0], prompt], GREEDY)


def test_prompts_of_a_frame(model):
    texts = model.generate(pandas.DataFrame({"instruction": TEXTS[:2]}), GREEDY).texts
    assert texts == model.generate(TEXTS[:2], GREEDY).texts


def test_a_model_is_shown_in_a_line(model):
    assert len(repr(model)) < 400
    assert f"template={model.template!r}" in repr(model)


def test_other_refused_arguments(model, folder, tmp_path):
    for field, value in (
        *(("temperature", -1.0), ("top_k", -1), ("top_p", 0.0), ("top_p", 1.1)),
        *(("max_new_tokens", 0), ("max_new_tokens", 8.0), ("top_k", 0.5)),
    ):
        with pytest.raises(InputError, match=f"{field}={value} must be"):
            SamplingParams(**{field: value})
    for options, message in (
        ({"dtype": "bf16"}, "dtype='bf16': is not one of float32, bfloat16"),
        ({"mesh": (1, 1, 1)}, r"mesh=\(1, 1, 1\): give data,fsdp,tensor as three sizes"),
    ):
        with pytest.raises(InputError, match=message):
            LanguageModel.load(folder, **options)
    with pytest.raises(InputError, match="batch_size=0 must be at least 1"):
        model.generate(TEXTS, GREEDY, batch_size=0)
    options = OPTIONS | {"max_prompt_length": 2, "overlong": "drop"}
    with pytest.raises(InputError, match="all 7 prompts are longer than"):
        generate_responses(model, PROMPTS, GREEDY, **options)
    with pytest.raises(InputError, match="model is empty"):
        LanguageModel.load("")
    assert LanguageModel.load(folder, dtype=jnp.bfloat16, lazy=True).module.cfg.dtype == "bfloat16"
    shutil.copytree(folder, tmp_path / "run")  # refused before the weights are read
    (tmp_path / "run" / "export" / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"max_new_tokens=64 leaves no room .* 64 positions"):
        LanguageModel.load(tmp_path / "run", max_new_tokens=64)


def test_the_template_is_the_learned_one_or_chat_or_alpaca(tmp_path, model, monkeypatch, capsys):
    monkeypatch.setattr(generate, "generate_responses", lambda *_, **__: [])
    assert model.template == "plain"
    plain, with_chat = make_tokenizer(), make_tokenizer()
    with_chat.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    for name, tokenizer, data, template in (
        ("ours", with_chat, {"template": "alpaca", "max_new_tokens": 9}, "alpaca"),
        ("theirs", with_chat, {}, "chat"),
        ("base", plain, {}, "alpaca"),
    ):
        path = ppo_cases.save_policy(tmp_path / name, tokenizer, **data)
        assert LanguageModel.load(path).template == template, name
        ppo_cases.launch(generate, {"model": path, "limit": 1, "max_new_tokens": 6})
        note = ", though the model was fine-tuned with max_new_tokens=9" if "9" in str(data) else ""
        assert capsys.readouterr().err == f"template={template}, max_new_tokens=6{note}\n"
        config = {"policy": str(path), "reward_function": "", "data": {"template": ""}}
        models = SimpleNamespace(meta=None)
        assert checks.resolve_template(ConfigDict(config), models, tokenizer) == template, name
    with pytest.raises(InputError, match="the tokenizer has no chat template"):
        LanguageModel.load(tmp_path / "base", template="chat")
    with pytest.raises(InputError, match="template=poem: is not one of"):
        LanguageModel.load(tmp_path / "base", template="poem")


def test_an_input_joins_the_instruction(model):
    """What alpaca_eval matches and shows is the instruction alone."""
    prompts = [Instruction("say", text, "") for text in ("a", "b")]
    rows = generate_responses(model, prompts, GREEDY, **OPTIONS | {"samples": 1})
    assert [row["instruction"] for row in rows] == ["say\n\na", "say\n\nb"]
    assert [(row["raw_instruction"], row["input"]) for row in rows] == [("say", "a"), ("say", "b")]


def test_the_command_writes_a_file_or_prints(folder, model, tmp_path, capsys):
    """With the template that the model was fine-tuned with, or another and a warning."""
    write_jsonl(tmp_path / "prompts.jsonl", PROMPTS)
    files = {"prompts": tmp_path / "prompts.jsonl", "output": tmp_path / "responses.json"}
    fields = {"model": folder, "generator": "mine", "limit": 5, **files}
    fields |= {"max_prompt_length": 16, "max_new_tokens": 6, "batch_size": 16}

    def run(**changes):
        ppo_cases.launch(generate, fields | changes)
        return capsys.readouterr()

    out, err = run(max_new_tokens=1)
    assert re.search(r"5 responses in .*json, [1-5] of them cut at max_new_tokens=1\n", out)
    assert "at most 1 tokens each: " in err
    assert run(overwrite=True).out.endswith("responses.json\n")
    rows = json.loads((tmp_path / "responses.json").read_text())
    same(rows, generate_responses(model, PROMPTS[:5], GREEDY, **OPTIONS | {"samples": 1}))
    assert "logprob" not in rows[0]  # 0 of every greedy token would say nothing
    with pytest.raises(InputError, match=r"responses\.json: exists; choose another, or overwrite"):
        run()
    run(overwrite=True, samples=3, temperature=1.0, greedy_last=True)
    mixed = json.loads((tmp_path / "responses.json").read_text())
    same(mixed[2::3], rows)
    drawn = generate_responses(model, PROMPTS[:5], SAMPLED, **OPTIONS | {"samples": 2})
    same([row for n, row in enumerate(mixed) if n % 3 < 2], drawn)
    with pytest.raises(InputError, match="greedy_last=True: needs samples to draw"):
        run(overwrite=True, samples=1, temperature=1.0, greedy_last=True)
    out, err = run(output="")
    assert "fine-tuned" not in err
    for row in rows:
        ellipsis = "" if row["finished"] else " …"
        assert f"{row['instruction']}\n> {row['output']}{ellipsis}\n" in out
    err = run(template="alpaca", max_prompt_length=28, overwrite=True).err
    assert "max_new_tokens=6, though the model was fine-tuned with template=plain" in err
    assert "5 prompts, 5 kept, 0 dropped_overlong, 5 truncated" in err
