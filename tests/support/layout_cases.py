"""Small tokenizers and chat templates like those of LLaMA-family checkpoints.

They follow the public formats; vocabularies are trained on the few sentences below.
"""

import json
import random
import unicodedata

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from fgrlhf_jax.data import templates
from fgrlhf_jax.data.records import Instruction, Message
from fgrlhf_jax.data.tokenizers import decode

TEXT = [
    "Name the capital of France.\n\nParis is the capital, and it has 2 million people.\n",
    "user\nassistant\nsystem\nYou are a helpful assistant.  Answer in one line:\n",
    "[INST] Hello there [/INST] good morning <<SYS>> be brief <</SYS>> <|user|> <|assistant|>",
    "### Instruction:\nWrite a short review.\n\n### Response: The film was dull; we left early.",
    "    return [x for x in range(10)]\n\ttabs and a naïve café, 1,234.56 — “quoted”\n\n",
]
SYSTEM_FIRST = (
    "{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}"
    "{% set system = '<<SYS>>\\n' + messages[0]['content'].strip() + '\\n<</SYS>>\\n\\n' %}"
    "{% else %}{% set rest = messages %}{% set system = '' %}{% endif %}"
    "{% for m in rest %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate user/assistant') }}{% endif %}"
    "{% set text = system + m['content'] if loop.first else m['content'] %}"
    "{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + text.strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + text | trim + ' ' + eos_token }}{% endif %}{% endfor %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}"
    "{{ '[INST] ' + m['content'] + ' [/INST]' }}{% elif m['role'] == 'assistant' %}"
    "{{ m['content'] + eos_token + ' ' }}{% else %}"
    "{{ raise_exception('Only user and assistant roles are supported') }}{% endif %}{% endfor %}"
)
MISTRAL_3 = (  # [INST] is a control token here
    MISTRAL.replace(" [/INST]", "[/INST]")
    .replace("eos_token + ' '", "eos_token")
    .replace("{{ m['content']", "{{ ' ' + m['content'] | trim")
)
ZEPHYR = (
    "{% for m in messages %}\n{% if m['role'] == 'user' %}\n"
    "{{ '<|user|>\n' + m['content'] + eos_token }}\n{% elif m['role'] == 'system' %}\n"
    "{{ '<|system|>\n' + m['content'] + eos_token }}\n{% else %}\n"
    "{{ '<|assistant|>\n' + m['content'] + eos_token }}\n{% endif %}\n"
    "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}"
)
LLAMA_3 = (
    "{% for m in messages %}{% set text = '<|start_header_id|>' + m['role'] + "
    "'<|end_header_id|>\n\n' + m['content'] | trim + '<|eot_id|>' %}"
    "{{ bos_token + text if loop.first else text }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
CHATML = (
    "{% if messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>'"
    " + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_THOUGHT = "('<think>\\n\\n</think>\\n\\n' if m['role'] == 'assistant' and loop.last else '')"
THINKING = CHATML.replace("m['content']", f"{_THOUGHT} + m['content']")  # as Qwen 3 writes
LLAMA_3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _train(pre_tokenizer, vocab_size: int, **options) -> dict:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, show_progress=False, **options)
    tokenizer.train_from_iterator(TEXT * 5, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return {"vocab": model["vocab"], "merges": [tuple(merge) for merge in model["merges"]]}


def sentencepiece(chat: str | None, *, legacy: bool = True, control=()) -> PreTrainedTokenizerFast:
    """Like LLaMA 1 and 2: ▁ for a blank, one ▁ in front (legacy: also after control tokens)."""
    trained = _train(pre_tokenizers.Metaspace(prepend_scheme="always"), 420)
    names = ["<unk>", "<s>", "</s>", *control, *(f"<0x{byte:02X}>" for byte in range(256))]
    vocab = {name: index for index, name in enumerate([*names, *trained["vocab"]])}
    model = models.BPE(
        vocab, trained["merges"], unk_token="<unk>", fuse_unk=True, byte_fallback=True
    )
    tokenizer = Tokenizer(model)
    if legacy:
        steps = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        tokenizer.normalizer = normalizers.Sequence(steps)
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)])
    tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in names[:3]])
    tokenizer.add_special_tokens(list(control))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        chat_template=chat,
    )


def byte_level(chat: str, split, control, *, bos: str | None, eos: str, normalizer=None):
    """GPT-2's and its successors'; ``bos``: put before a text."""
    steps = [*split, pre_tokenizers.ByteLevel(False, use_regex=len(split) != 1 or bos is None)]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer = Tokenizer(models.BPE(**_train(pre_tokenizer, 420, initial_alphabet=alphabet)))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizer, decoders.ByteLevel()
    if normalizer:
        tokenizer.normalizer = normalizer
    tokenizer.add_special_tokens(list(control))
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=bos, eos_token=eos, chat_template=chat
    )


def layouts() -> dict[str, tuple[PreTrainedTokenizerFast, str]]:
    """{name: (tokenizer, template)}"""
    split = [pre_tokenizers.Split(Regex(LLAMA_3_SPLIT), "isolated")]
    headers = ["<|begin_of_text|>", "<|end_of_text|>"]
    headers += ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    marks = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    smol = [pre_tokenizers.Digits(individual_digits=True)]
    return {
        "LLaMA": (sentencepiece(None), "alpaca"),
        "Llama-2-chat": (sentencepiece(SYSTEM_FIRST), "chat"),
        "Mistral-Instruct": (sentencepiece(MISTRAL), "chat"),
        "Mistral-Instruct-v0.3": (
            sentencepiece(MISTRAL_3, legacy=False, control=["[INST]", "[/INST]"]),
            "chat",
        ),
        "TinyLlama-Chat": (sentencepiece(ZEPHYR, legacy=False), "chat"),
        "Zephyr": (sentencepiece(ZEPHYR), "chat"),
        "Llama-3": (byte_level(LLAMA_3, split, headers, bos=headers[0], eos="<|eot_id|>"), "chat"),
        "SmolLM2": (byte_level(CHATML, smol, marks, bos=None, eos="<|im_end|>"), "chat"),
        "Qwen2.5": (
            byte_level(
                CHATML, split, marks, bos=None, eos="<|im_end|>", normalizer=normalizers.NFC()
            ),
            "chat",
        ),
        "Qwen3, another EOS": (
            byte_level(THINKING, smol, marks, bos=None, eos="<|endoftext|>"),
            "chat",
        ),
    }


LOOK_ALIKES = ["<s>", "</s>", "<unk>", "[INST]", "[/INST]", "<|im_end|>", "<|im_start|>"]
LOOK_ALIKES += ["<|eot_id|>", "<|end_header_id|>", "<|begin_of_text|>", "<|endoftext|>"]


def texts(count: int, sentences: list[str], seed: int = 0) -> list[str]:
    """Sentences, random characters and control tokens' texts, with blanks at their ends."""
    rng, made = random.Random(seed), []
    blanks = ["", "", "", " ", "\n", "\n\n", "  \t", "\u00a0", "\r\n"]
    planes = [(0x20, 0x7F), (0x20, 0x7F), (0xA0, 0x250), (0x3040, 0x9FFF), (0x1F300, 0x1F6FF)]
    planes += [(0x300, 0x36F), (0x590, 0x700), (0xE000, 0xE0FF), (0xF0000, 0xF00FF)]
    while len(made) < count:
        kind = len(made) % 4
        if kind < 2:
            text = rng.choice(sentences)
        else:
            spans = [rng.choice(planes) for _ in range(rng.randrange(1, 9))]
            text = "".join(chr(rng.randrange(*span)) for span in spans for _ in range(3))
        if kind == 3:
            words = text.split(" ")
            for _ in range(rng.randrange(1, 4)):
                words.insert(rng.randrange(len(words) + 1), rng.choice(LOOK_ALIKES))
            text = rng.choice(["", " "]).join(words)
        text = rng.choice(blanks) + text + rng.choice(blanks)
        if text.strip():
            made.append(text)
    return made


def differences(tokenizer, template: str, messages: list[dict], response: str) -> list[str]:
    """Faults in this project's ids of a conversation and a response, as texts; [] if none."""
    turns = tuple(Message(**message) for message in messages)
    record = Instruction(*("", "", ""), turns if template == "chat" else ())
    record = record if template == "chat" else Instruction(messages[-1]["content"], "", "")
    prompt, _ = templates.encode_prompt(tokenizer, template, record)
    whole = templates.encode_response(tokenizer, template, record, response)
    added = tokenizer.added_tokens_decoder.items()
    special = {i for i, token in added if token.special and str(token) != "<unk>"}

    def ids_of(messages: list[dict], **options) -> list[int]:
        if template == "chat":
            return tokenizer.apply_chat_template(messages, **options)["input_ids"]
        text = templates.render(tokenizer, template, record)
        return tokenizer(text + messages[-1]["content"] if len(messages) > 1 else text)["input_ids"]

    answer = [*messages, {"role": "assistant", "content": response}]
    theirs, their_whole = ids_of(messages, add_generation_prompt=True), ids_of(answer)
    their_whole += [] if template == "chat" else [tokenizer.eos_token_id]
    while their_whole[-1] not in special:  # text of the template after the end of a turn
        their_whole.pop()
    contents, found = [message["content"] for message in answer], []
    names = [*(tokenizer.convert_ids_to_tokens(i) for i in special), "<unk>"]
    if any(name in content for name in names for content in contents):
        neutral = ids_of([m | {"content": "a"} for m in messages], add_generation_prompt=True)
        expected = [i for i in neutral if i in special] if template == "chat" else [1]
        if [i for i in prompt if i in special] != expected:
            found.append("control tokens in the prompt")
        if [i for i in whole.ids[whole.start :] if i in special] != whole.ids[-1:]:
            found.append("control tokens in the response")
        normal = unicodedata.normalize("NFC", decode(tokenizer, whole.ids))
        lost = [c for c in contents if unicodedata.normalize("NFC", c.strip()) not in normal]
        found += [f"text lost: {content!r} in {normal!r}" for content in lost]
    elif (prompt, whole.ids) != (theirs, their_whole):
        found.append(f"{prompt} {whole.ids} against {theirs} {their_whole}")
    if template == "chat" and len(prompt) - whole.start not in (0, 1):  # "\n\n" is one token
        found.append(f"start {whole.start} behind a prompt of {len(prompt)}")
    covered = {k for a, b in whole.spans for k in range(a, b)}
    seen = [k for k, c in enumerate(response) if not (c.isspace() or unicodedata.combining(c))]
    if missed := [k for k in seen if k not in covered]:
        found.append(f"characters {missed} of {response!r} have no token")
    return found
