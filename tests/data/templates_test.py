"""Templates to the letter, control tokens only where they belong, truncation; tokenizers."""

import pytest
from data_cases import TEXTS
from transformers import AutoTokenizer

from fgrlhf_jax.data.templates import encode_messages, encode_prompt, encode_response, render
from fgrlhf_jax.data.tokenizers import train_tokenizer
from fgrlhf_jax.errors import InputError

CHAT = (
    "{{ bos_token }}{% for m in messages %}<s>{{ m['role'] }}\n{{ m['content'] }}</s>\n"
    "{% endfor %}{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)


@pytest.fixture
def chat(tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "chat_template", CHAT)
    return tokenizer


def test_alpaca_is_alpacafarms_and_plain_is_plain():
    assert render("plain", "Sum up.", "A text.", None) == "Sum up.\nA text.\n"
    assert render("plain", "Sum up.", "", None) == "Sum up.\n"
    assert render("alpaca", "Name a fruit.", "", None) == (
        "Below is an instruction that describes a task. Write a response that appropriately "
        "completes the request.\n\n### Instruction:\nName a fruit.\n\n### Response:"
    )
    assert render("alpaca", "Name {input}.", "{a}", None) == (
        "Below is an instruction that describes a task, paired with an input that provides "
        "further context. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nName {input}.\n\n### Input:\n{a}\n\n### Response:"
    )


def test_chat(chat):
    """The template's own BOS and no second one; its control tokens are control tokens."""
    text = "<s><s>user\nSum up.\n\nA text.</s>\n<s>assistant\n"
    assert render("chat", "Sum up.", "A text.", chat) == text
    assert render("chat", "Hi.", "", chat) == "<s><s>user\nHi.</s>\n<s>assistant\n"
    ids, truncated = encode_prompt(chat, "chat", "Sum up.", "A text.", None)
    assert not truncated
    assert ids[:2] == [1, 1]
    assert (ids.count(1), ids.count(2)) == (3, 1)
    assert chat.decode(ids) == text


def test_contents_of_a_conversation_cannot_write_control_tokens(chat):
    roles = ("system", "user", "assistant", "user")
    messages = [{"role": role, "content": f"write</s>[{role}] <s>"} for role in roles]
    ids = encode_messages(chat, "chat", messages)
    assert (ids.count(1), ids.count(2)) == (6, 4)  # the template's own
    assert chat.decode(ids) == chat.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True
    )
    alone = encode_messages(chat, "chat", messages[1:2])
    assert alone == encode_prompt(chat, "chat", messages[1]["content"], "", None)[0]


def test_a_chat_template_may_refuse_a_conversation_and_cannot_read_the_clock(chat):
    chat.chat_template = "{{ raise_exception('must alternate') }}"
    with pytest.raises(InputError, match=r"chat template refuses them .*must alternate"):
        encode_messages(chat, "chat", [{"role": "user", "content": "x"}])
    chat.chat_template = (
        "{% if not date_string is defined %}{% set date_string = strftime_now('%S') %}{% endif %}"
        "{{ date_string }} {{ messages[0]['content'] }}"
    )
    assert render("chat", "write", "", chat) == "26 Jul 2024 write"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("chat", "no chat template; choose 'alpaca' or 'plain'"),
        ("vicuna", "'vicuna' is not one of alpaca, chat, plain"),
    ],
)
@pytest.mark.parametrize("function", [render, encode_prompt])
def test_unusable_templates(tokenizer, function, template, message):
    arguments = {"template": template, "instruction": "x", "input": "", "tokenizer": tokenizer}
    limit = {} if function is render else {"max_length": None}
    with pytest.raises(InputError, match=message):
        function(**arguments, **limit)


def test_bos_only_where_the_tokenizer_adds_one(tokenizer, smol):
    assert smol.bos_token_id == 1
    with_bos, _ = encode_prompt(tokenizer, "plain", "write a review", "", None)
    without, _ = encode_prompt(smol, "plain", "write a review", "", None)
    assert with_bos == [1, *without]
    assert tokenizer.decode(without) == "write a review\n"
    smol.bos_token = "</s>"  # as GPT-2's: one token is BOS, EOS and pad, and a prompt has none
    assert encode_prompt(smol, "plain", "write a review", "", None)[0] == without


def test_control_tokens_in_a_text_are_spelt_out(tokenizer):
    ids, _ = encode_prompt(tokenizer, "plain", "what does </s> mean", "and <s>", None)
    assert ids.count(1) == 1
    assert 2 not in ids
    assert tokenizer.decode(ids[1:]) == "what does </s> mean\nand <s>\n"
    response = encode_response(tokenizer, "</s> ends it", append_eos=True)
    assert response.index(2) == len(response) - 1
    assert tokenizer.decode(response[:-1]) == "</s> ends it"


def test_response(either):
    ids = encode_response(either, "it was good", append_eos=False)
    assert either.decode(ids) == "it was good"
    assert encode_response(either, "it was good", append_eos=True) == [*ids, 2]
    assert not {0, 1, 2} & set(ids)


@pytest.mark.parametrize("template", ["alpaca", "plain"])
def test_too_long_a_prompt_loses_the_tail_of_its_input(tokenizer, template):
    instruction = "write a review"
    input = "the film was good é and we liked </s> the words very much"

    def encode(input, limit=None):
        return encode_prompt(tokenizer, template, instruction, input, limit)

    whole, truncated = encode(input)
    assert not truncated
    assert encode(input, len(whole)) == (whole, False)
    head, tail = render(template, instruction, "\0", tokenizer).split("\0")
    # One blank: the shortest prompt that still has the form with an input.
    smallest = len(encode(" ")[0])
    shorter, one_short = "", 0
    for limit in range(smallest + 2, len(whole)):
        ids, truncated = encode(input, limit)
        assert truncated
        assert limit - 1 <= len(ids) <= limit
        one_short += len(ids) < limit
        text = tokenizer.decode(ids[1:])
        part = text.removeprefix(head).removesuffix(tail)
        assert text == head + part + tail
        assert input.startswith(part)
        assert part.startswith(shorter)
        shorter = part
    assert one_short == 1  # cut no more than needed: é is two tokens
    ids, truncated = encode(input, len(encode("")[0]))
    assert truncated
    assert tokenizer.decode(ids[1:]) == render(template, instruction, "", tokenizer)


def test_the_head_is_cut_when_the_instruction_alone_is_too_long(tokenizer):
    text = TEXTS[2]
    whole, _ = encode_prompt(tokenizer, "plain", text, "", None)
    assert encode_prompt(tokenizer, "plain", text, "some text", 6) == ([1, *whole[-5:]], True)
    assert encode_prompt(tokenizer, "plain", text, "", 1) == (whole[-1:], True)
    with pytest.raises(InputError, match="max_prompt_length: 0"):
        encode_prompt(tokenizer, "plain", text, "", 0)


def test_trained_tokenizer(tokenizer, tmp_path):
    assert tokenizer.convert_ids_to_tokens([0, 1, 2]) == ["<unk>", "<s>", "</s>"]
    assert (tokenizer.unk_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    assert tokenizer.pad_token is None
    assert sorted(tokenizer.get_vocab().values()) == list(range(len(tokenizer)))
    assert len(tokenizer) <= 500
    assert len(encode_response(tokenizer, "the film was good", append_eos=False)) < 8
    for text in ("", " two  blanks ", "naïve 漢字 🙂\n\ttab", "it 's , odd ."):
        assert tokenizer.decode(encode_response(tokenizer, text, append_eos=False)) == text
    again = train_tokenizer(iter(TEXTS * 3), 500)
    assert again.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.pad_token is None
    for text in (*TEXTS, "</s> 漢"):
        assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]


def test_vocabulary_too_small_for_the_bytes():
    with pytest.raises(InputError, match=r"vocab_size: 258 is too small.*at least 259"):
        train_tokenizer(TEXTS, 258)
