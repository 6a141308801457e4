"""Templates and text to token ids: the one place where text becomes a prompt or a response.

Prompt and response are encoded apart, so that both sides of a pair share exactly the same
prompt ids and the response's ids never depend on the prompt. Text of a record is data: a "</s>"
written in it is spelt out, it never becomes the tokenizer's control token (the chat template's
own control tokens do).
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from fgrlhf_jax.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

TEMPLATES = ("alpaca", "chat", "plain")

_ALPACA = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:"
)
_ALPACA_INPUT = (
    "Below is an instruction that describes a task, "
    "paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:"
)


def render(
    template: str, instruction: str, input: str, tokenizer: "PreTrainedTokenizerFast | None"
) -> str:
    """The prompt's text. Whether the input is empty decides the variant.

    "alpaca": AlpacaFarm's, ending in "### Response:" with nothing after it. "chat": the
    tokenizer's chat template with one user turn (instruction, blank line, input) and the
    opening of the assistant's. "plain": instruction, newline, and input, newline when there is
    one. Only "chat" uses the tokenizer. Raises InputError for an unknown template, and for
    "chat" when the tokenizer has no chat template.
    """
    if template == "alpaca":
        text = _ALPACA_INPUT if input else _ALPACA
        return text.format(instruction=instruction, input=input)
    if template == "plain":
        return f"{instruction}\n{input}\n" if input else f"{instruction}\n"
    if template == "chat":
        if not getattr(tokenizer, "chat_template", None):
            raise InputError(
                "template: the tokenizer has no chat template; choose 'alpaca' or 'plain', "
                "or a model that has one."
            )
        content = plain_text(instruction, input)
        return tokenizer.apply_chat_template(
            [{"role": "user", "content": content}],
            tokenize=False,
            add_generation_prompt=True,
            date_string="26 Jul 2024",  # Llama 3's default: a prompt must not read the clock
        )
    raise InputError(f"template: {template!r} is not one of {', '.join(TEMPLATES)}.")


def plain_text(instruction: str, input: str) -> str:
    """What a judge or a person is shown as the prompt: instruction, blank line, input."""
    return f"{instruction}\n\n{input}" if input else instruction


def _text_ids(tokenizer: "PreTrainedTokenizerFast", text: str) -> list[int]:
    """Ids of plain text: no special tokens added, none read out of the text."""
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)[
        "input_ids"
    ]


def _adds_bos(tokenizer: "PreTrainedTokenizerFast") -> bool:
    # A letter rather than nothing: of a tokenizer that only appends an EOS equal to its BOS, ""
    # would look the same.
    ids = tokenizer("a", verbose=False)["input_ids"]
    return tokenizer.bos_token_id is not None and ids[0] == tokenizer.bos_token_id


def _prompt_ids(
    tokenizer: "PreTrainedTokenizerFast", template: str, instruction: str, input: str
) -> list[int]:
    if template == "chat":
        return _chat_ids(tokenizer, instruction, input)
    bos = [tokenizer.bos_token_id] if _adds_bos(tokenizer) else []
    return bos + _text_ids(tokenizer, render(template, instruction, input, tokenizer))


def _chat_ids(tokenizer: "PreTrainedTokenizerFast", instruction: str, input: str) -> list[int]:
    """The template's own text has control tokens (BOS included); the user's, between, has none."""
    mark = "\ue000\ue001"  # private-use characters, to find where the template puts the user's text
    before, found, after = render("chat", mark, "", tokenizer).partition(mark)
    content = plain_text(instruction, input)
    if not found or mark in after:
        before, content, after = render("chat", instruction, input, tokenizer), "", ""

    def control_ids(text):
        return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

    return control_ids(before) + _text_ids(tokenizer, content) + control_ids(after)


def encode_prompt(
    tokenizer: "PreTrainedTokenizerFast",
    template: str,
    instruction: str,
    input: str,
    max_length: int | None,
) -> tuple[list[int], bool]:
    """(ids, truncated) of a prompt of at most `max_length` tokens (None: any), BOS included.

    BOS is there if and only if the tokenizer (for "chat": its template) adds one; an EOS never
    is. Too long a prompt loses the tail of its input, token by token, so that template and
    instruction stay whole; if it does not fit even without the input, its head is cut, behind
    the BOS. Raises InputError as `render`, and if max_length < 1.
    """
    ids = _prompt_ids(tokenizer, template, instruction, input)
    if max_length is None or len(ids) <= max_length:
        return ids, False
    if max_length < 1:
        raise InputError(f"max_prompt_length: {max_length} leaves no room for a prompt.")
    ends = [
        end
        for _, end in tokenizer(
            input, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )["offset_mapping"]
    ]
    keep = len(ends) - (len(ids) - max_length)
    # Tokens may merge differently once the tail is gone, hence a loop; it nearly always ends at
    # its first turn.
    while keep > 0:
        ids = _prompt_ids(tokenizer, template, instruction, input[: ends[keep - 1]])
        if len(ids) <= max_length:
            return ids, True
        keep -= len(ids) - max_length
    ids = _prompt_ids(tokenizer, template, instruction, "")
    if len(ids) > max_length:
        bos = ids[:1] if ids[0] == tokenizer.bos_token_id and max_length > 1 else []
        ids = bos + ids[len(ids) - max_length + len(bos) :]
    return ids, True


def encode_response(
    tokenizer: "PreTrainedTokenizerFast", text: str, append_eos: bool
) -> list[int]:
    """Ids of a response, with the EOS id at the end if `append_eos`; no other special token."""
    ids = _text_ids(tokenizer, text)
    return [*ids, tokenizer.eos_token_id] if append_eos else ids


def pieces(tokenizer: "PreTrainedTokenizerFast", ids: Sequence[int]) -> list[str]:
    """One string a token; together they are exactly what the tokenizer decodes, with specials.

    A character whose bytes are spread over several tokens belongs to the one that completes it;
    the tokens before it get an empty string.
    """
    ids = list(ids)

    def decode(count):
        return tokenizer.decode(
            ids[:count], skip_special_tokens=False, clean_up_tokenization_spaces=False
        )

    # Tokens are cut where the text of the tokens so far stops agreeing with the whole: an
    # unfinished character decodes to U+FFFD, which the whole does not have there.
    whole, cuts = decode(len(ids)), [0]
    for count in range(1, len(ids)):
        text, cut = decode(count), cuts[-1]
        while cut < min(len(text), len(whole)) and text[cut] == whole[cut]:
            cut += 1
        cuts.append(cut)
    return [whole[a:b] for a, b in zip(cuts, [*cuts[1:], len(whole)], strict=True)][: len(ids)]


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> "PreTrainedTokenizerFast":
    """A byte-level BPE tokenizer of at most `vocab_size` tokens, a function of `texts` only.

    Ids 0, 1, 2 are <unk>, <s> (BOS, put before every prompt) and </s> (EOS); there is no pad
    token, as in LLaMA. Every text can be encoded and comes back unchanged. Raises InputError if
    vocab_size cannot hold the 256 bytes.
    """
    from transformers import PreTrainedTokenizerFast  # slow to import, seldom needed here

    special = ["<unk>", "<s>", "</s>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    if vocab_size < len(special) + len(alphabet):
        raise InputError(
            f"vocab_size: {vocab_size} is too small for a byte-level tokenizer; "
            f"use at least {len(special) + len(alphabet)}."
        )
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=special,
            initial_alphabet=alphabet,
            show_progress=False,
        ),
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        clean_up_tokenization_spaces=False,
    )
