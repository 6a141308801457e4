"""An export in the hands of others: its card's usage block, its chat template, its defaults."""

import contextlib
import copy
import io
import json
import re

import huggingface_hub
import layout_cases
import ppo_cases
import pytest
import transformers

from fgrlhf_jax.data import templates
from fgrlhf_jax.data.records import Instruction
from fgrlhf_jax.models import chat_template, hf_load, hf_save
from fgrlhf_jax.models.cards import Origin
from fgrlhf_jax.models.language_model import LanguageModel, SamplingParams
from fgrlhf_jax.reward_model.scorer import RewardModel


def run_usage(folder, monkeypatch) -> str:
    """What the block of Python in the card prints."""
    monkeypatch.chdir(folder.parent)
    (block,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.S)
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(block, {})
    return out.getvalue()


@pytest.mark.parity
@pytest.mark.parametrize("loss", ["token_edit", "sequence"])
@pytest.mark.parametrize(("template", "adapter"), [("plain", False), ("alpaca", True)])
def test_the_card_gives_the_rewards_of_score(tmp_path, monkeypatch, loss, template, adapter):
    data = {"template": template, "max_prompt_length": 48, "max_length": 64}
    monkeypatch.setattr(ppo_cases, "DATA", ppo_cases.DATA | data)
    base = ppo_cases.save_policy(tmp_path / "base") if adapter else None
    folder = ppo_cases.save_reward_model(tmp_path, loss, base=base) / "export"
    assert (folder / "config.json").exists() != adapter
    printed = run_usage(folder, monkeypatch).splitlines()
    record = {"instruction": "Name a fruit.", "output": "An apple."}
    (scored,) = RewardModel.load(folder).score([record])
    rewards = scored.rewards[-1:] if loss == "sequence" else scored.rewards
    assert [float(line.split(" ")[0]) for line in printed] == pytest.approx(rewards, abs=1e-4)
    if loss == "token_edit":
        assert "".join(eval(line.split(" ", 1)[1]) for line in printed) == "".join(scored.tokens)


@pytest.mark.parity
@pytest.mark.parametrize("adapter", [False, True])
def test_the_card_of_a_language_model_generates_what_we_do(tmp_path, monkeypatch, adapter):
    data = {"template": "alpaca", "append_eos": True}
    base = ppo_cases.save_policy(tmp_path / "base") if adapter else None
    folder = ppo_cases.save_policy(tmp_path / "export", base=base, **data)
    ours = LanguageModel.load(folder).generate(["Name a fruit."], SamplingParams(max_new_tokens=20))
    text = ppo_cases.TOKENIZER.decode(ours.ids[0], skip_special_tokens=True)
    printed = run_usage(folder, monkeypatch)
    assert printed.startswith(text) if adapter else printed == f"{text}\n"


@pytest.mark.parity
def test_a_pipeline_says_what_its_numbers_are_not(tmp_path):
    folder = ppo_cases.save_reward_model(tmp_path, "token_edit") / "export"
    tokens = transformers.pipeline("token-classification", model=str(folder))("say hello")
    assert {token["entity"] for token in tokens} == {hf_save.LABEL}
    assert {token["score"] for token in tokens} == {1.0}
    assert 'Not with\n`pipeline("token-classification")`' in (folder / "README.md").read_text()


TEXTS = [text for text in layout_cases.texts(60, layout_cases.TEXT) if "<" not in text]


@pytest.mark.parametrize("template", ["alpaca", "plain"])
@pytest.mark.parametrize("layout", layout_cases.layouts())
def test_the_exported_chat_template_gives_our_ids(layout, template):
    tokenizer = layout_cases.layouts()[layout][0]
    tokenizer, *_ = chat_template.with_chat_template(tokenizer, template, True)
    options = {"tokenize": True, "return_dict": False}
    for text, response in zip(TEXTS, TEXTS[::-1], strict=True):
        for record in (Instruction(text, "", ""), Instruction(response, text, "")):
            message = {"role": "user", "content": record.instruction, "input": record.input}
            answer = {"role": "assistant", "content": response}
            prompt, _ = templates.encode_prompt(tokenizer, template, record)
            whole = templates.encode_response(tokenizer, template, record, response)
            ids = tokenizer.apply_chat_template([message], add_generation_prompt=True, **options)
            assert ids == prompt
            assert tokenizer.apply_chat_template([message, answer], **options) == whole.ids


def test_a_card_without_a_usable_chat_template_names_our_own_class(tmp_path, monkeypatch):
    raising = copy.deepcopy(ppo_cases.TOKENIZER)
    raising.chat_template = "{{ raise_exception('no') }}"
    chat = ppo_cases.save_policy(tmp_path / "chat", raising, template="chat")
    monkeypatch.setattr(chat_template, "_agrees", lambda *_: False)
    alpaca = ppo_cases.save_policy(tmp_path / "alpaca", template="alpaca")
    assert hf_load.load_tokenizer(alpaca).chat_template is None
    for policy in (chat, alpaca):
        assert 'LanguageModel.load("export")' in (policy / "README.md").read_text()


def test_a_card_names_what_the_hub_can_link_to(tmp_path):
    first = ppo_cases.save_policy(tmp_path / "first")
    card = huggingface_hub.ModelCard.load(first / "README.md")
    assert (card.data.base_model, card.data.datasets) == (None, None)
    card.data.base_model = "org/base"
    card.save(first / "README.md")
    origin = Origin(str(first), f"org/rows:default, {tmp_path}/x.jsonl", "loss 0.5")
    second = ppo_cases.save_policy(tmp_path / "second", origin=origin)
    card = huggingface_hub.ModelCard.load(second / "README.md")
    assert (card.data.base_model, card.data.datasets) == ("org/base", ["org/rows"])
    assert "loss 0.5" in card.text
    (first / "README.md").write_text("---\n: [\n---\n")
    ppo_cases.save_policy(tmp_path / "third", origin=origin)


def test_generation_keeps_the_defaults_of_the_base_and_all_ends(tmp_path):
    base = ppo_cases.save_policy(tmp_path / "base")
    defaults = {"temperature": 0.6, "eos_token_id": [7, 9], "_from_model_config": True}
    (base / "generation_config.json").write_text(json.dumps(defaults))
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"fgrlhf": {}}))
    tokenizer = copy.deepcopy(ppo_cases.TOKENIZER)
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    assert tokenizer.pad_token_id == ppo_cases.CFG.vocab_size
    policy = ppo_cases.save_policy(tmp_path / "policy", tokenizer, origin=Origin(str(base)))
    generation = transformers.GenerationConfig.from_pretrained(policy)
    assert generation.eos_token_id == [2, 7, 9]
    assert generation.temperature == 0.6
    assert generation.pad_token_id == ppo_cases.TOKENIZER.unk_token_id
    config = json.loads((policy / "config.json").read_text())
    assert (config["eos_token_id"], config["pad_token_id"]) == ([2, 7, 9], 0)
    assert hf_load.load_tokenizer(policy).pad_token == "<unk>"
    chat = copy.deepcopy(ppo_cases.TOKENIZER)
    chat.chat_template = "{% for m in messages %}{{ m.content }}<unk>{% endfor %}"
    policy = ppo_cases.save_policy(tmp_path / "chat", chat, template="chat")
    assert hf_load.end_ids(policy, chat) == (0, 2)


@pytest.mark.parametrize(
    ("control", "pad"),
    [({"pad_token": "<s>"}, "<s>"), ({}, "<unk>"), ({"unk_token": None}, "</s>")],
)
def test_a_language_model_takes_prompts_of_several_lengths_at_once(tmp_path, control, pad):
    source = copy.deepcopy(ppo_cases.TOKENIZER)
    for name, token in control.items():
        setattr(source, name, token)
    folder = ppo_cases.save_policy(tmp_path / "export", source, template="plain")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert (tokenizer.pad_token, len(tokenizer)) == (pad, len(source))
    turns = [[{"role": "user", "content": text}] for text in ("say hello", "say")]
    batch = tokenizer.apply_chat_template(turns, add_generation_prompt=True, padding=True)
    for turn, ids, mask in zip(turns, batch["input_ids"], batch["attention_mask"], strict=True):
        record = Instruction(turn[0]["content"], "", "")
        prompt, _ = templates.encode_prompt(source, "plain", record)
        assert ids[mask.index(1) :] == prompt
    assert batch["attention_mask"][1][0] == 0
