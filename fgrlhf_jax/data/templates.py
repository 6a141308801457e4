"""Prompt templates, and the tokenization of every prompt and response.

The whole rendered text is encoded at once, prompt and response; the characters that a token covers
decide whether it belongs to the response. Text of a record is data: a "</s>" in it is spelt out and
never becomes the tokenizer's control token (the chat template's own control tokens do).
"""

import bisect
import dataclasses
import functools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from fgrlhf_jax.data import chat
from fgrlhf_jax.data.conversations import join_prompt
from fgrlhf_jax.data.records import Message, Record, is_finished, shown_prompt
from fgrlhf_jax.data.tokenizers import Tokenizer
from fgrlhf_jax.errors import InputError

TEMPLATES = ("alpaca", "chat", "plain")

ENCODING = "whole text"  # recorded in exports; earlier versions encoded prompt and response apart

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


class Encoded(NamedTuple):
    """An encoded prompt with its response.

    Attributes:
      ids: token ids of both.
      start: index of the response's first id; a token that covers characters of both counts.
      spans: for each of ``ids[start:]`` the (start, end) characters of the response it covers.
    """

    ids: list[int]
    start: int
    spans: list[tuple[int, int]]


def check_template(template: str, tokenizer: "Tokenizer | None") -> None:
    """Raises InputError for an unknown template, and for "chat" without a chat template."""
    if template not in TEMPLATES:
        raise InputError(f"template={template}: is not one of {', '.join(TEMPLATES)}")
    if template == "chat" and not getattr(tokenizer, "chat_template", None):
        raise InputError(
            f"template=chat: the tokenizer has no chat template; give {chat.OTHER_TEMPLATE}, or "
            "copy chat_template.jinja of a model that has one into this model's folder"
        )
    if template == "chat" and not chat.shows_user(tokenizer, str(tokenizer.chat_template)):
        raise InputError(
            "template=chat: the model's chat template does not write the user's text; it may "
            f"require messages in parts; give {chat.OTHER_TEMPLATE}"
        )


def check_limits(overlong: str, max_prompt_length: int, max_length: int | None = None) -> None:
    """Raises InputError for an unknown ``overlong``, or lengths that leave no response tokens."""
    if overlong not in ("drop", "truncate"):
        raise InputError(f"overlong: {overlong!r} is neither 'drop' nor 'truncate'")
    if max_length is not None and not 0 < max_prompt_length < max_length:
        raise InputError(
            f"data.max_prompt_length={max_prompt_length}: must be above 0 and below "
            f"data.max_length={max_length}, to leave room for a response; change either"
        )


def turns(record: Record) -> tuple[Message, ...]:
    """The turns of a record before its response."""
    return record.messages or (Message("user", join_prompt(record.instruction, record.input)),)


def render(tokenizer: "Tokenizer | None", template: str, record: Record) -> str:
    """Renders the text of a prompt.

    Args:
      tokenizer: used by "chat" only.
      template: "alpaca" is AlpacaFarm's, with separate variants for an empty and a non-empty input;
        it ends with "### Response:". "chat" is the tokenizer's chat template with the record's
        turns (an instruction is one turn: instruction, blank line, input) and the opening of the
        assistant's turn. "plain" is instruction, newline, and, unless empty, input, newline. For
        "alpaca" and "plain" a system message begins the instruction, and several turns become one
        instruction, their transcript.

    Raises:
      InputError: as :func:`check_template`, and if the chat template rejects the turns.
    """
    check_template(template, tokenizer)
    if template == "chat":
        return chat.render_chat(tokenizer, turns(record))
    instruction, input = shown_prompt(record)
    if [message.role for message in record.messages] == ["system", "user"]:
        instruction = "\n\n".join(message.content for message in record.messages)
    if template == "alpaca":
        text = _ALPACA_INPUT if input.strip() else _ALPACA
        return text.format(instruction=instruction, input=input)
    return f"{instruction}\n{input}\n" if input.strip() else f"{instruction}\n"


def encode_prompt(
    tokenizer: Tokenizer, template: str, record: Record, max_length: int | None = None
) -> tuple[list[int], bool]:
    """Returns (ids, truncated) of a record's prompt, shortened by :func:`fit_prompt`."""
    _, ids, truncated = fit_prompt(tokenizer, template, record, max_length)
    return ids, truncated


def encode_prompts(
    records: Sequence[Record],
    tokenizer: Tokenizer,
    *,
    template: str,
    max_prompt_length: int,
    overlong: str,
) -> tuple[list[list[int]], list[int], dict[str, int]]:
    """Encodes the usable prompts; returns ids, numbers of their records, and counts.

    Args:
      records: of any kind; their responses are ignored.
      overlong: "drop" leaves out prompts longer than ``max_prompt_length``, "truncate" shortens
        them (:func:`fit_prompt`).

    Raises:
      InputError: no prompt is left.
    """
    check_limits(overlong, max_prompt_length)
    prompts, rows = [], []
    counts = {"prompts": len(records), "kept": 0, "dropped_overlong": 0, "truncated": 0}
    for row, record in enumerate(records):
        _, ids, truncated = fit_prompt(tokenizer, template, record, max_prompt_length)
        if truncated and overlong == "drop":
            counts["dropped_overlong"] += 1
            continue
        counts["truncated"] += truncated
        prompts.append(ids)
        rows.append(row)
    counts["kept"] = len(prompts)
    if not prompts:
        raise InputError(
            f"all {len(records)} prompts are longer than max_prompt_length {max_prompt_length}; "
            "raise it, or set overlong='truncate'"
        )
    return prompts, rows, counts


def pad_prompts(prompts: Sequence[Sequence[int]], width: int) -> tuple[np.ndarray, np.ndarray]:
    """tokens_BP int32 and mask_BP bool, padded on the left, so that responses follow directly."""
    tokens_BP = np.zeros((len(prompts), width), np.int32)
    mask_BP = np.zeros((len(prompts), width), bool)
    for b, ids in enumerate(prompts):
        tokens_BP[b, width - len(ids) :] = ids
        mask_BP[b, width - len(ids) :] = True
    return tokens_BP, mask_BP


def fit_prompt(
    tokenizer: Tokenizer, template: str, record: Record, max_length: int | None
) -> tuple[Record, list[int], bool]:
    """Shortens a prompt to at most ``max_length`` tokens; returns (record, ids, truncated).

    The template stays whole; the text is cut: of several turns first the oldest, then the end of
    the last one, then the end of the system message; of an instruction first the end of its input,
    then its own. The ids have BOS if and only if the tokenizer (for "chat": its template) adds it,
    and no EOS.

    Raises InputError as :func:`render`, and if the template alone is too long.
    """

    def encode(shorter: Record) -> list[int]:
        return encode_response(tokenizer, template, shorter, None).ids

    ids = encode(record)
    if max_length is None or len(ids) <= max_length:
        return record, ids, False
    messages = record.messages
    system = tuple(message for message in messages[:1] if message.role == "system")
    for start in [n for n, message in enumerate(messages) if message.role == "user"][1:]:
        record = dataclasses.replace(record, messages=system + messages[start:])
        if len(ids := encode(record)) <= max_length:
            return record, ids, True
    sizes = range(sum(map(len, _texts(record))) + 1)
    fits = bisect.bisect_right(sizes, max_length, key=lambda size: len(encode(_cut(record, size))))
    record = _cut(record, max(fits - 1, 0))
    ids = encode(record)
    if not fits:
        raise InputError(
            f"max_prompt_length={max_length}: the template {template!r} alone has {len(ids)} "
            "tokens; raise it"
        )
    return record, ids, True


def _texts(record: Record) -> list[str]:
    return [turn.content for turn in record.messages] or [record.instruction, record.input]


def _cut(record: Record, length: int) -> Record:
    """Cuts the prompt's texts to ``length`` characters in total."""
    texts = []
    for text in _texts(record):
        texts.append(text[: max(length, 0)])
        length -= len(text)
    if not record.messages:
        return dataclasses.replace(record, instruction=texts[0], input=texts[1])
    turns = zip(record.messages, texts, strict=True)
    messages = (dataclasses.replace(message, content=text) for message, text in turns)
    return dataclasses.replace(record, messages=tuple(messages))


def encode_responses(
    tokenizer: Tokenizer,
    template: str,
    record: Record,
    names: Iterable[str],
    *,
    max_prompt_length: int,
    append_eos: bool,
) -> tuple[list[Encoded], bool]:
    """Encodes the responses in the fields ``names``; also whether the prompt was truncated.

    With ``append_eos``, complete responses end with a control token.
    """
    record, _, truncated = fit_prompt(tokenizer, template, record, max_prompt_length)
    encode = functools.partial(encode_response, tokenizer, template, record)
    parts = ((getattr(record, name), append_eos and is_finished(record, name)) for name in names)
    return [encode(*part) for part in parts], truncated


def encode_text(tokenizer: Tokenizer, text: str) -> list[int]:
    """Encodes a single text; control tokens in it are spelt out."""
    return chat.tokenize(tokenizer, text).ids


def encode_response(
    tokenizer: Tokenizer,
    template: str,
    record: Record,
    response: str | None,
    append_eos: bool = True,
) -> Encoded:
    """Encodes a record's prompt and a response to it.

    With "chat", the response is rendered as an assistant's turn, up to the control token that ends
    it. If the template writes no such token or changes the response, and with other templates, the
    response directly follows the prompt and the tokenizer's EOS ends it.

    Args:
      response: None for the prompt alone.
      append_eos: whether the response ends with a control token.

    Raises:
      InputError: as :func:`render`.
    """
    check_template(template, tokenizer)
    if template == "chat":
        parts, tokens = chat.encode_chat(tokenizer, turns(record), response)
    else:
        parts = chat.Parts(render(tokenizer, template, record), response=response or "")
        tokens = chat.tokenize(tokenizer, "".join(parts))
        # Encode a letter: "" would give the same id if only an EOS equal to BOS were appended.
        first = tokenizer.backend_tokenizer.encode("a").ids[:1]
        if first == [tokenizer.bos_token_id]:
            tokens = chat.Tokens(first + tokens.ids, [(0, 0), *tokens.offsets], {})
    ids = tokens.ids
    if response is None:
        return Encoded(ids, len(ids), [])
    start_char = len(parts.prompt + parts.opening)
    end_char = start_char + len(parts.response)
    # A control token may cover blanks around it; these do not count.
    chars = [tokens.controls.get(k, offset) for k, offset in enumerate(tokens.offsets)]
    first = next((k for k, (_, b) in enumerate(chars) if b > len(parts.prompt)), len(ids))
    last = next((k for k, (a, _) in enumerate(chars) if k >= first and a >= end_char), len(ids))
    end = next((k for k in tokens.controls if chars[k][0] >= end_char), None)
    blanks = len(response) - len(response.lstrip())
    start_char += len(parts.response) - len(parts.response.lstrip()) - blanks
    spans = [(max(a - start_char, 0), max(b - start_char, 0)) for a, b in chars[first:last]]
    if not append_eos:
        ids = ids[:last]
    elif end is None:
        ids = [*ids[:last], tokenizer.eos_token_id]
    else:
        ids = ids[: end + 1]
    return Encoded(ids, first, spans + [(0, 0)] * (len(ids) - first - len(spans)))
