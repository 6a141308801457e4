"""Prompt templates, and the one place where text becomes the ids of a prompt or a response.

Prompt and response are encoded apart, so that both sides of a pair share exactly the same
prompt ids and the response's ids never depend on the prompt. Text of a record is data: a "</s>"
written in it is spelt out, it never becomes the tokenizer's control token (the chat template's
own control tokens do).
"""

import re
from collections.abc import Mapping, Sequence

import jinja2

from fgrlhf_jax.data.tokenizers import Tokenizer
from fgrlhf_jax.errors import InputError

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


def check_template(template: str, tokenizer: "Tokenizer | None") -> None:
    """Raises InputError for an unknown template, and for "chat" without a chat template."""
    if template not in TEMPLATES:
        raise InputError(f"template: {template!r} is not one of {', '.join(TEMPLATES)}.")
    if template == "chat" and not getattr(tokenizer, "chat_template", None):
        raise InputError(
            "template: the tokenizer has no chat template; choose 'alpaca' or 'plain', "
            "or a model that has one."
        )


def check_limits(overlong: str, max_prompt_length: int, max_length: int | None = None) -> None:
    """Raises InputError unless "drop" or "truncate", and where no response would have room."""
    if overlong not in ("drop", "truncate"):
        raise InputError(f"overlong: {overlong!r} is neither 'drop' nor 'truncate'.")
    if max_length is not None and not 0 < max_prompt_length < max_length:
        raise InputError(
            f"max_prompt_length: {max_prompt_length} must be above 0 and below "
            f"max_length {max_length}, to leave room for a response."
        )


def render(template: str, instruction: str, input: str, tokenizer: "Tokenizer | None") -> str:
    """The prompt's text; whether the input is empty decides the variant.

    Args:
      template: "alpaca" is AlpacaFarm's, ending in "### Response:" with nothing after it. "chat" is
        the tokenizer's chat template with one user turn (instruction, blank line, input) and the
        opening of the assistant's. "plain" is instruction, newline, and input, newline when there
        is one.
      tokenizer: read by "chat" only.

    Raises:
      InputError: as :func:`check_template`.
    """
    check_template(template, tokenizer)
    if template == "alpaca":
        text = _ALPACA_INPUT if input else _ALPACA
        return text.format(instruction=instruction, input=input)
    if template == "plain":
        return f"{instruction}\n{input}\n" if input else f"{instruction}\n"
    return _render_chat(_chat(instruction, input), tokenizer)


def _chat(instruction: str, input: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": plain_text(instruction, input)}]


def _render_chat(messages: list[dict[str, str]], tokenizer: Tokenizer) -> str:
    return tokenizer.apply_chat_template(
        messages,
        tokenize=False,
        add_generation_prompt=True,
        date_string="26 Jul 2024",  # Llama 3's default: a prompt must not read the clock
    )


def plain_text(instruction: str, input: str) -> str:
    """What a judge or a person is shown as the prompt: instruction, blank line, input."""
    return f"{instruction}\n\n{input}" if input else instruction


def encode_text(tokenizer: Tokenizer, text: str, *, control: bool = False, **options) -> Mapping:
    """The tokenizer's output for ``text``; ``control``: control tokens in it are read as such."""
    return tokenizer(
        text,
        add_special_tokens=False,
        split_special_tokens=not control,
        verbose=False,
        **options,
    )


def _prompt_ids(tokenizer: Tokenizer, template: str, instruction: str, input: str) -> list[int]:
    check_template(template, tokenizer)
    if template == "chat":
        return _chat_ids(tokenizer, _chat(instruction, input))
    ids = encode_text(tokenizer, render(template, instruction, input, tokenizer))["input_ids"]
    # A letter, since "" would look the same if only an EOS equal to the BOS was appended.
    first = tokenizer("a", verbose=False)["input_ids"][:1]
    return first + ids if first == [tokenizer.bos_token_id] else ids


def _chat_ids(tokenizer: Tokenizer, messages: list[dict[str, str]]) -> list[int]:
    """The template's own text has control tokens (BOS included); the messages' contents have none.

    Private-use characters in the place of each content show where the template puts it. Contents of
    a template that does not put each of them once, in order, are read with its own text.
    """
    marks = [f"\ue000{number}\ue001" for number in range(len(messages))]
    marked = [message | {"content": mark} for message, mark in zip(messages, marks, strict=True)]
    parts = re.split("(\ue000[0-9]+\ue001)", _render_chat(marked, tokenizer))
    if parts[1::2] != marks:
        parts = [_render_chat(messages, tokenizer)]
    else:
        parts[1::2] = [message["content"] for message in messages]
    ids = []
    for number, text in enumerate(parts):  # the template's text and contents by turns
        ids += encode_text(tokenizer, text, control=number % 2 == 0)["input_ids"]
    return ids


def encode_messages(
    tokenizer: Tokenizer, template: str, messages: Sequence[Mapping[str, str]]
) -> list[int]:
    """Token ids of a conversation, up to where the assistant's next turn begins.

    Args:
      messages: {"role": "system" | "user" | "assistant", "content": text} each. A template other
        than "chat" takes one user message, behind a system message or not.

    Raises:
      InputError: for other messages, and as :func:`check_template`.
    """
    check_template(template, tokenizer)
    for message in messages if isinstance(messages, Sequence) else [messages]:
        match message:
            case {"role": str(), "content": str()}:
                continue
        raise InputError(
            f"messages: {str(message)[:80]} is not a message; give "
            '{"role": "user", "content": "…"}.'
        )
    roles = [message["role"] for message in messages]
    if template == "chat" and roles:
        try:
            return _chat_ids(tokenizer, [dict(message) for message in messages])
        except jinja2.TemplateError as error:
            reason = f"the model's chat template refuses them ({error})"
            raise InputError(f"messages: {reason}.") from error
    if roles not in (["user"], ["system", "user"]):
        raise InputError(
            f"messages: the template {template!r} takes one user message, perhaps behind a system "
            f"message, not {', '.join(roles) or 'none'}; use a model with a chat template."
        )
    text = "\n\n".join(message["content"] for message in messages)
    return _prompt_ids(tokenizer, template, text, "")


def encode_prompt(
    tokenizer: Tokenizer, template: str, instruction: str, input: str, max_length: int | None
) -> tuple[list[int], bool]:
    """(ids, truncated) of a prompt of at most ``max_length`` tokens (None: any), BOS included.

    BOS is there if and only if the tokenizer (for "chat": its template) adds one; an EOS never
    is. Too long a prompt loses the tail of its input, token by token, so that template and
    instruction stay whole; if it does not fit even without the input, its head is cut, behind
    the BOS.

    Raises:
      InputError: as :func:`check_template`, and for ``max_length`` below 1.
    """
    ids = _prompt_ids(tokenizer, template, instruction, input)
    if max_length is None or len(ids) <= max_length:
        return ids, False
    if max_length < 1:
        raise InputError(f"max_prompt_length: {max_length} leaves no room for a prompt.")
    offsets = encode_text(tokenizer, input, return_offsets_mapping=True)["offset_mapping"]
    keep = len(offsets) - (len(ids) - max_length)
    while keep > 0:  # nearly always once, but tokens may merge differently once the tail is gone
        ids = _prompt_ids(tokenizer, template, instruction, input[: offsets[keep - 1][1]])
        if len(ids) <= max_length:
            return ids, True
        keep -= len(ids) - max_length
    ids = _prompt_ids(tokenizer, template, instruction, "")
    if len(ids) > max_length:
        bos = ids[:1] if ids[0] == tokenizer.bos_token_id and max_length > 1 else []
        ids = bos + ids[len(ids) - max_length + len(bos) :]
    return ids, True


def encode_response(tokenizer: Tokenizer, text: str, append_eos: bool) -> list[int]:
    """Ids of a response, with the EOS id at the end if ``append_eos``; no other special token."""
    ids = encode_text(tokenizer, text)["input_ids"]
    return [*ids, tokenizer.eos_token_id] if append_eos else ids
