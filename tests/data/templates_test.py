"""Ids are the model's own, control tokens only where they belong, truncation; tokenizers."""

import pytest
from data_cases import TEXTS
from layout_cases import CHATML, differences, layouts, texts
from transformers import AutoTokenizer

from fgrlhf_jax.data.chat import check_end_of_turn, check_opening
from fgrlhf_jax.data.records import Instruction, Message
from fgrlhf_jax.data.templates import (
    encode_prompt,
    encode_response,
    encode_text,
    fit_prompt,
    render,
)
from fgrlhf_jax.data.tokenizers import train_tokenizer
from fgrlhf_jax.errors import InputError

LAYOUTS = layouts()
LLAMA_2, _ = LAYOUTS["Llama-2-chat"]
LLAMA_3, _ = LAYOUTS["Llama-3"]
QUESTION = Instruction("Name the capital of France.", "", "")


def conversation(*contents: str, system: str = "") -> Instruction:
    """The user and the assistant by turns, the user last."""
    messages = [Message("system", system)] if system else []
    for number, content in enumerate(contents):
        messages.append(Message("assistant" if number % 2 else "user", content))
    return Instruction("", "", "", messages=tuple(messages))


@pytest.mark.parametrize("name", LAYOUTS)
def test_ids_are_those_of_the_whole_rendered_text(name):
    """Of prompts and of prompts with responses, of several turns and a system message too."""
    tokenizer, template = LAYOUTS[name]
    prompts, responses = texts(60, TEXTS, 1), texts(60, TEXTS, 2)
    for n, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        messages = [{"role": "user", "content": prompt}]
        if template == "chat" and n % 3 == 1:
            before = ("user", prompts[n - 1]), ("assistant", responses[n - 1])
            messages = [*({"role": role, "content": text} for role, text in before), *messages]
        if template == "chat" and n % 2 and "Mistral" not in name:
            messages = [{"role": "system", "content": prompts[n - 1]}, *messages]
        assert differences(tokenizer, template, messages, response) == []


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_response_is_the_same_behind_a_prompt_that_spells_control_tokens(name):
    tokenizer, template = LAYOUTS[name]

    def response_ids(prompt):
        ids, start, _ = encode_response(tokenizer, template, Instruction(prompt, "", ""), "Paris.")
        return ids[start:]

    for token in map(str, tokenizer.added_tokens_decoder.values()):
        assert response_ids(f"a{token} b") == response_ids("a b")


COMPOSED = [
    ("{{ '<|' + m.content + '|>' }}", "eot_id"),
    ("{{ '<' + m.content }}", "|eot_id|> b"),
    ("{{ m.content + 'id|>' }}", "a <|eot_"),
    ("{{ m.content | replace('#', '') }}", "a <|e#ot_id|> b"),
    ("{{ m.content.split('\n') | join }}", "a <|eot\n_id|> b"),
    ("{{ m.content | lower }}", "a <|EOT_ID|> b"),
    ("{{ m.content[2:] }}", "a <|eot_id|> b"),
    ("{% if m.content[-1] == '>' %}{{ m.content }}{% endif %}", "a <|eot_id|>"),
]


@pytest.mark.parametrize(("turn", "content"), COMPOSED)
def test_a_template_makes_no_control_token_of_a_message(turn, content, monkeypatch):
    """Where its text and the template's together are one, or what the template makes of it."""
    tokenizer, _ = layouts()["Llama-3"]
    start, end = "<|start_header_id|>", "<|eot_id|>"
    tokenizer.chat_template = (
        f"{{% for m in messages %}}{start}{turn}{end}{{% endfor %}}"
        f"{{% if add_generation_prompt %}}{start}{{% endif %}}"
    )
    text = render(tokenizer, "chat", conversation(content))
    assert text.count(end) == 2
    ids, _ = encode_prompt(tokenizer, "chat", conversation(content))
    assert tokenizer.decode(ids) == text
    names = tokenizer.convert_ids_to_tokens(ids)
    assert [name for name in names if name in (start, end)] == [start, end, start]
    ids, first, _ = encode_response(tokenizer, "chat", conversation("a b"), content)
    names = tokenizer.convert_ids_to_tokens(ids)
    assert [name for name in names if name in (start, end)] == [start, end, start, end]
    assert tokenizer.decode(ids[first:-1]) in (content, f"<|{content}|>", text[19:-29])


@pytest.mark.parametrize("name", LAYOUTS)
def test_ids_are_the_same_where_control_tokens_are_looked_for(name, monkeypatch):
    tokenizer, template = LAYOUTS[name]
    records = [conversation(*texts(3, TEXTS, seed)) for seed in range(9)]
    expected = [encode_response(tokenizer, template, record, "a b") for record in records]
    monkeypatch.setattr("fgrlhf_jax.data.chat.template_controls", lambda *_: None)
    assert [encode_response(tokenizer, template, record, "a b") for record in records] == expected


def test_alpaca_is_alpacafarms_and_plain_is_plain():
    def written(template, *fields):
        return render(None, template, Instruction(*fields, ""))

    assert written("plain", "Sum up.", "A text.") == "Sum up.\nA text.\n"
    assert written("plain", "Sum up.", "") == "Sum up.\n"
    assert written("alpaca", "Name a fruit.", "\n") == (
        "Below is an instruction that describes a task. Write a response that appropriately "
        "completes the request.\n\n### Instruction:\nName a fruit.\n\n### Response:"
    )
    assert written("alpaca", "Name {input}.", "{a}") == (
        "Below is an instruction that describes a task, paired with an input that provides "
        "further context. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nName {input}.\n\n### Input:\n{a}\n\n### Response:"
    )
    turns = conversation("Hi.", "Hello.", "Who are you?", system="Be brief.")
    transcript = "System: Be brief.\n\nUser: Hi.\n\nAssistant: Hello.\n\nUser: Who are you?\n"
    assert render(None, "plain", turns) == transcript
    assert render(None, "plain", conversation("Hi.", system="Be brief.")) == "Be brief.\n\nHi.\n"


def test_an_instruction_is_a_turn_of_the_user():
    record, same = Instruction("Sum up.", "A text.", ""), conversation("Sum up.\n\nA text.")
    assert render(LLAMA_2, "chat", record) == "<s>[INST] Sum up.\n\nA text. [/INST]"
    assert encode_prompt(LLAMA_2, "chat", record) == encode_prompt(LLAMA_2, "chat", same)


def test_a_template_that_refuses_turns_is_one_sentence(tokenizer, monkeypatch):
    with pytest.raises(InputError, match=r"refuses a prompt of assistant: roles must alternate"):
        encode_prompt(LLAMA_2, "chat", Instruction("", "", "", (Message("assistant", "a"),)))
    for source, words in (
        ("{{ raise_exception('no\nsystem message') }}", "no system message"),
        ("{{ messages[0].name.first }}", "has no attribute 'name'"),
        ("{{ 'a' + 1 }}", "can only concatenate str"),
        ("{% for %}", "Expected an expression"),
        ("{% for p in messages[-1].content %}{{ p['text'] }}{% endfor %}", "write the user's text"),
    ):
        monkeypatch.setattr(tokenizer, "chat_template", source)
        with pytest.raises(InputError, match=words) as error:
            encode_prompt(tokenizer, "chat", QUESTION)
        assert "--config.template=" in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "source", ["date_string if date_string is defined else 'today'", "strftime_now('%-d %b %Y')"]
)
def test_a_template_cannot_read_the_clock(tokenizer, monkeypatch, source):
    template = f"{{{{ {source} }}}}{{{{ messages[0].content }}}}"
    monkeypatch.setattr(tokenizer, "chat_template", template)
    assert render(tokenizer, "chat", QUESTION) == f"26 Jul 2024{QUESTION.instruction}"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("chat", "no chat template; give --config.template=alpaca"),
        ("vicuna", "template=vicuna: is not one of alpaca, chat, plain"),
    ],
)
@pytest.mark.parametrize("function", [render, encode_prompt])
def test_unusable_templates(tokenizer, function, template, message):
    with pytest.raises(InputError, match=message):
        function(tokenizer, template, QUESTION)


def test_bos_only_where_the_tokenizer_adds_one(tokenizer, smol):
    assert smol.bos_token_id == 1
    with_bos, _ = encode_prompt(tokenizer, "plain", QUESTION)
    without, _ = encode_prompt(smol, "plain", QUESTION)
    assert with_bos == [1, *without]
    assert tokenizer.decode(without) == f"{QUESTION.instruction}\n"
    smol.bos_token = "</s>"  # as GPT-2's: one token is BOS, EOS and pad, and a prompt has none
    assert encode_prompt(smol, "plain", QUESTION)[0] == without


def test_a_response_ends_as_the_template_ends_it_or_with_the_eos(tokenizer, monkeypatch):
    ids, start, spans = encode_response(LLAMA_3, "chat", QUESTION, "Paris. ")
    assert ids[-1] == LLAMA_3.convert_tokens_to_ids("<|eot_id|>")
    assert check_end_of_turn(LLAMA_3, "chat", (7, ids[-1])) == ""
    said = "chat ends a turn with '<|eot_id|>', and a response ends with <|end_of_text|>: it may"
    assert said in check_end_of_turn(LLAMA_3, "chat", [ids[-1] - 3])
    assert LLAMA_3.decode(ids[start:-1]) == "Paris."  # the template trims
    assert spans[-1] == (0, 0)
    assert encode_response(LLAMA_3, "chat", QUESTION, "Paris. ", False).ids == ids[:-1]
    for source in (
        "{% for m in messages %}{{ m.content }}: {% endfor %}",  # no control token
        "{% for m in messages %}{{ bos_token }}{{ m.content }}{% endfor %}",  # one in front
        "{% for m in messages %}{{ m.content | upper }}{% endfor %}",  # another text
        "{% if messages[-1].role != 'user' %}{{ raise_exception('no') }}{% endif %}"
        "{{ bos_token }}{{ messages[0].content }}",
    ):
        monkeypatch.setattr(tokenizer, "chat_template", source)
        prompt, _ = encode_prompt(tokenizer, "chat", QUESTION)
        ids, start, spans = encode_response(tokenizer, "chat", QUESTION, "Paris")
        assert ids == [*prompt, *encode_text(tokenizer, "Paris"), tokenizer.eos_token_id]
        assert tokenizer.decode(prompt) == render(tokenizer, "chat", QUESTION)
        assert (start, spans[0][0], spans[-2][1]) == (len(prompt), 0, 5)
        said = check_end_of_turn(tokenizer, "chat", [tokenizer.eos_token_id])
        assert ("ends a turn with ':'" in said) == ("}}: " in source)
    assert check_opening(LLAMA_3) == ""
    thinking = CHATML.replace("assistant\n'", "assistant\n<think>\n'")  # as DeepSeek's
    monkeypatch.setattr(tokenizer, "chat_template", thinking)
    assert "prompts end with '<think>\\n', which is not" in check_opening(tokenizer)


def test_a_token_of_prompt_and_response_is_the_responses(smol):
    smol.backend_tokenizer.add_tokens(["\n\n"])
    prompt, _ = encode_prompt(smol, "plain", QUESTION)
    ids, start, spans = encode_response(smol, "plain", QUESTION, "\nParis", False)
    assert (start, ids[:start]) == (len(prompt) - 1, prompt[:-1])
    assert (smol.decode(ids[start]), spans[0][1]) == ("\n\n", 1)


@pytest.mark.parametrize(
    ("tokenizer", "template"),
    [*((LAYOUTS["LLaMA"][0], name) for name in ("alpaca", "plain")), (LLAMA_2, "chat")],
)
@pytest.mark.parametrize("input", ["", "the film was good é and we liked </s> the words very much"])
def test_too_long_a_prompt_loses_the_tail_of_its_text(tokenizer, template, input):
    """First of the input, then of the instruction; the template stays whole."""
    record = Instruction("write a review of what you saw", input, "")
    ids, _ = encode_prompt(tokenizer, template, record)
    assert encode_prompt(tokenizer, template, record, len(ids)) == (ids, False)
    last = record
    for limit in range(len(ids) - 1, 0, -1):
        try:
            fitted, ids, truncated = fit_prompt(tokenizer, template, record, limit)
        except InputError:
            break
        assert truncated
        assert limit - 3 <= len(ids) <= limit or not fitted.input
        assert ids == encode_prompt(tokenizer, template, fitted)[0]
        assert last.instruction.startswith(fitted.instruction)
        assert last.input.startswith(fitted.input)
        assert not fitted.input or fitted.instruction == record.instruction
        last = fitted
    assert len(last.instruction) < 2
    with pytest.raises(InputError, match=f"max_prompt_length=1: the template '{template}' alone"):
        fit_prompt(tokenizer, template, record, 1)


def test_of_several_turns_the_oldest_go_first():
    record = conversation("one", "two", "three", "four", "five five five", system="be brief")
    sizes, rest = set(), []
    whole = len(encode_prompt(LLAMA_2, "chat", record)[0])
    for limit in range(whole, 0, -1):
        try:
            fitted, ids, _ = fit_prompt(LLAMA_2, "chat", record, limit)
        except InputError:
            break
        assert len(ids) <= limit
        assert fitted.messages[0].role == "system"
        contents = [message.content for message in fitted.messages]
        if not rest or rest[-1] != contents:
            rest.append(contents)
        sizes.add(len(ids))
    assert rest[0] == ["be brief", "one", "two", "three", "four", "five five five"]
    assert rest[1:3] == [["be brief", "three", "four", rest[0][-1]], ["be brief", rest[0][-1]]]
    assert all(r[0] == "be brief" or not r[1] for r in rest)
    assert rest[-1] == ["", ""]
    assert len(sizes) > 10


def test_trained_tokenizer(tokenizer, tmp_path):
    assert tokenizer.convert_ids_to_tokens([0, 1, 2]) == ["<unk>", "<s>", "</s>"]
    assert (tokenizer.unk_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    assert tokenizer.pad_token is None
    assert sorted(tokenizer.get_vocab().values()) == list(range(len(tokenizer)))
    assert len(tokenizer) <= 500
    assert len(encode_text(tokenizer, "the film was good")) < 8
    for text in ("", " two  blanks ", "naïve 漢字 🙂\n\ttab", "it 's , odd ."):
        assert tokenizer.decode(encode_text(tokenizer, text)) == text
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
