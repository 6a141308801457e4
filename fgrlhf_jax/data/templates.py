"""Prompt templates, and the one place where text becomes the ids of a prompt or a response.

The ids are those of the whole rendered text: a response is encoded behind its prompt, and which
tokens are the response's follows from the characters that they cover. Text of a record is data: a
"</s>" written in it is spelt out, it never becomes the tokenizer's control token (the chat
template's own control tokens do).
"""

import bisect
import dataclasses
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import NamedTuple

import tokenizers

from fgrlhf_jax.data.records import Message, Record, shown_prompt
from fgrlhf_jax.data.tokenizers import Tokenizer
from fgrlhf_jax.errors import InputError

TEMPLATES = ("alpaca", "chat", "plain")

ENCODING = "whole text"  # what an export says of its ids; earlier versions joined pieces

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
_OTHER_TEMPLATE = "--config.template=alpaca (or plain; in a training run --config.data.template=…)"


class Encoded(NamedTuple):
    """A prompt and a response behind it.

    Attributes:
      ids: of both.
      start: the first id of the response; one that covers characters of both is the response's.
      spans: the (start, end) characters of the response that each of ``ids[start:]`` covers.
    """

    ids: list[int]
    start: int
    spans: list[tuple[int, int]]


class _Parts(NamedTuple):
    """A rendered text: the prompt, the response as written, what stands between and behind."""

    prompt: str
    opening: str = ""
    response: str = ""
    closing: str = ""


class _Tokens(NamedTuple):
    """The ids of a text, the characters of each, and {place: characters} of its control tokens."""

    ids: list[int]
    offsets: list[tuple[int, int]]
    controls: dict[int, tuple[int, int]]


def check_template(template: str, tokenizer: "Tokenizer | None") -> None:
    """Raises InputError for an unknown template, and for "chat" without a chat template."""
    if template not in TEMPLATES:
        raise InputError(f"template={template}: is not one of {', '.join(TEMPLATES)}")
    if template == "chat" and not getattr(tokenizer, "chat_template", None):
        raise InputError(
            f"template=chat: the tokenizer has no chat template; give {_OTHER_TEMPLATE}, or a "
            "model that has one"
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


def plain_text(instruction: str, input: str) -> str:
    """What a judge or a person is shown as the prompt: instruction, blank line, input."""
    return f"{instruction}\n\n{input}" if input else instruction


def turns(record: Record) -> tuple[Message, ...]:
    """The turns before the response."""
    return record.messages or (Message("user", plain_text(record.instruction, record.input)),)


def render(tokenizer: "Tokenizer | None", template: str, record: Record) -> str:
    """The prompt's text.

    Args:
      tokenizer: read by "chat" only.
      template: "alpaca" is AlpacaFarm's, ending in "### Response:" with nothing after it; whether
        the input is empty decides its variant. "chat" is the tokenizer's chat template with the
        record's turns (of an instruction one: instruction, blank line, input) and the opening of
        the assistant's. "plain" is instruction, newline, and input, newline when there is one. For
        "alpaca" and "plain" a system message is the beginning of the instruction, and several turns
        are one instruction, their transcript.

    Raises:
      InputError: as :func:`check_template`, and where a chat template refuses the turns.
    """
    check_template(template, tokenizer)
    if template == "chat":
        return _render_chat(tokenizer, turns(record))
    instruction, input = shown_prompt(record)
    if [message.role for message in record.messages] == ["system", "user"]:
        instruction = "\n\n".join(message.content for message in record.messages)
    if template == "alpaca":
        text = _ALPACA_INPUT if input else _ALPACA
        return text.format(instruction=instruction, input=input)
    return f"{instruction}\n{input}\n" if input else f"{instruction}\n"


def encode_prompt(
    tokenizer: Tokenizer, template: str, record: Record, max_length: int | None = None
) -> tuple[list[int], bool]:
    """(ids, truncated) of a record's prompt, as :func:`fit_prompt` shortens it."""
    _, ids, truncated = fit_prompt(tokenizer, template, record, max_length)
    return ids, truncated


def fit_prompt(
    tokenizer: Tokenizer, template: str, record: Record, max_length: int | None
) -> tuple[Record, list[int], bool]:
    """(record, ids, truncated): a record whose prompt has at most ``max_length`` tokens.

    The template stays whole, the text is cut. Of several turns the oldest go first, then the tail
    of the last one, then the tail of the system message. Of an instruction the tail of its input
    goes first, then its own. BOS is there if and only if the tokenizer (for "chat": its template)
    adds one; an EOS never is.

    Raises:
      InputError: as :func:`render`, and where the template alone is too long.
    """

    def encode(shorter: Record) -> list[int]:
        return _encode(tokenizer, template, shorter).ids

    ids = encode(record)
    if max_length is None or len(ids) <= max_length:
        return record, ids, False
    for shorter in _without_old_turns(record):
        record = shorter
        if len(ids := encode(record)) <= max_length:
            return record, ids, True
    for cut, length in _cuts(record):
        fits = bisect.bisect_right(
            range(length + 1), max_length, key=lambda keep: len(encode(cut(keep)))
        )
        record = cut(max(fits - 1, 0))
        if fits:
            return record, encode(record), True
    raise InputError(
        f"max_prompt_length={max_length}: the template {template!r} alone has "
        f"{len(encode(record))} tokens; raise it"
    )


def encode_response(
    tokenizer: Tokenizer, template: str, record: Record, response: str, append_eos: bool = True
) -> Encoded:
    """The ids of a record's prompt and of a response to it.

    With "chat" the response is rendered as the chat template renders an assistant's turn, up to the
    control token that ends it. Where the template writes no such token, or not the response as it
    is, and with the other templates, the response follows the prompt and the tokenizer's EOS ends
    it.

    Args:
      append_eos: whether the response ends with a control token.

    Raises:
      InputError: as :func:`render`.
    """
    return _encode(tokenizer, template, record, response, append_eos)


def encode_text(tokenizer: Tokenizer, text: str) -> list[int]:
    """The ids of a text by itself, control tokens in it spelt out."""
    return _tokenize(tokenizer, text).ids


def check_end_of_turn(tokenizer: Tokenizer, template: str, ends: Collection[int]) -> str:
    """A sentence where what ends a response in training does not end a generated one, else ""."""
    closing, end = "", tokenizer.eos_token_id
    if template == "chat":
        try:
            parts = _chat_parts(tokenizer, (Message("user", "a"),), "a")
        except InputError:  # it wants other turns, which a file may have
            return ""
        closing = parts.closing.strip()
        tokens = _tokenize(tokenizer, parts.closing, control=True)
        end = next((tokens.ids[place] for place in tokens.controls), None if closing else end)
    if end in ends:
        return ""
    written = closing if end is None else tokenizer.convert_ids_to_tokens(end)
    known = ", ".join(tokenizer.convert_ids_to_tokens([i for i in ends if i < len(tokenizer)]))
    return (
        f"template={template} ends a turn with {written!r:.60}, and a response ends with {known}: "
        "it may run on; correct eos_token_id in generation_config.json or give another template"
    )


def _encode(
    tokenizer: Tokenizer,
    template: str,
    record: Record,
    response: str | None = None,
    append_eos: bool = False,
) -> Encoded:
    check_template(template, tokenizer)
    if template == "chat":
        parts, tokens = _encode_chat(tokenizer, turns(record), response)
    else:
        parts = _Parts(render(tokenizer, template, record), response=response or "")
        tokens = _tokenize(tokenizer, "".join(parts))
        # A letter, since "" would look the same if only an EOS equal to the BOS was appended.
        first = tokenizer("a", verbose=False)["input_ids"][:1]
        if first == [tokenizer.bos_token_id]:
            tokens = _Tokens(first + tokens.ids, [(0, 0), *tokens.offsets], {})
    ids = tokens.ids
    if response is None:
        return Encoded(ids, len(ids), [])
    begin = len(parts.prompt + parts.opening)
    stop = begin + len(parts.response)
    # A control token may cover blanks around it too, which are not its own.
    places = [tokens.controls.get(k, offset) for k, offset in enumerate(tokens.offsets)]
    first = next((k for k, (_, b) in enumerate(places) if b > len(parts.prompt)), len(ids))
    last = next((k for k, (a, _) in enumerate(places) if k >= first and a >= stop), len(ids))
    end = next((k for k in tokens.controls if places[k][0] >= stop), None)
    blanks = len(response) - len(response.lstrip())
    begin += len(parts.response) - len(parts.response.lstrip()) - blanks
    spans = [(max(a - begin, 0), max(b - begin, 0)) for a, b in places[first:last]]
    if not append_eos:
        ids = ids[:last]
    elif end is None:
        ids = [*ids[:last], tokenizer.eos_token_id]
    else:
        ids = ids[: end + 1]
    return Encoded(ids, first, spans + [(0, 0)] * (len(ids) - first - len(spans)))


def _render_chat(tokenizer: Tokenizer, messages: Sequence[Message], answer=None) -> str:
    answers = [] if answer is None else [Message("assistant", answer)]
    try:
        return tokenizer.apply_chat_template(
            [dataclasses.asdict(message) for message in [*messages, *answers]],
            tokenize=False,
            add_generation_prompt=answer is None,
            date_string="26 Jul 2024",  # Llama 3's default: a prompt must not read the clock
        )
    except Exception as error:  # a template is a program, which may raise anything
        roles = ", ".join(message.role for message in messages)
        raise InputError(
            f"template=chat: the model's chat template refuses a prompt of {roles}: "
            f"{' '.join(str(error).split())[:300]}; give other messages, or {_OTHER_TEMPLATE}"
        ) from error


def _chat_parts(tokenizer: Tokenizer, messages: Sequence[Message], response: str | None) -> _Parts:
    """Prompt and response as the chat template writes them, or one after the other.

    The latter where the template does not write an assistant's last turn right behind this prompt,
    or another text than the response. Where it writes it is seen from another text in its place.
    """
    prompt = _render_chat(tokenizer, messages)
    if response is None:
        return _Parts(prompt)
    try:
        whole = _render_chat(tokenizer, messages, response)
        probe = _absent([message.content for message in messages])
        before, _, after = _render_chat(tokenizer, messages, probe).partition(probe)
    except InputError:  # some templates want the user's turn last
        whole, before, after = "", prompt, ""
    written = whole[len(before) : len(whole) - len(after)]
    opening = before[len(prompt) :]
    if (
        whole == prompt + opening + written + after
        and written.strip() == response.strip()
        and not _tokenize(tokenizer, opening, control=True).controls
    ):
        return _Parts(prompt, opening, written, after)
    return _Parts(prompt, response=response)


def _encode_chat(
    tokenizer: Tokenizer, messages: Sequence[Message], response: str | None
) -> tuple[_Parts, _Tokens]:
    """The rendered text and its ids.

    Where a message spells a control token, this is hidden while the template runs. Then the
    template's own control tokens get names that nobody has typed, and a tokenizer that knows them
    by these names only reads the whole.
    """
    parts = _chat_parts(tokenizer, messages, response)
    text = "".join(parts)
    tokens = _tokenize(tokenizer, text, control=True)
    contents = [message.content for message in messages] + [response or ""]
    spelt = {text[start:end] for start, end in tokens.controls.values()}
    spelt = sorted((s for s in spelt if any(s in c for c in contents)), key=len, reverse=True)
    if not spelt:
        return parts, tokens

    mark = _absent(contents)
    pattern = re.compile("|".join(map(re.escape, spelt)))

    def hide(content: str) -> str:
        return pattern.sub(lambda match: f"{mark}-{spelt.index(match[0])}-", content)

    def name_controls(part: str) -> str:
        ids, _, controls = _tokenize(tokenizer, part, control=True)
        for place, (start, end) in reversed(controls.items()):
            part = f"{part[:start]}{mark}+{ids[place]}+{part[end:]}"
        return re.sub(f"{mark}-([0-9]+)-", lambda match: spelt[int(match[1])], part)

    hidden = [dataclasses.replace(message, content=hide(message.content)) for message in messages]
    parts = _chat_parts(tokenizer, hidden, response if response is None else hide(response))
    parts = _Parts(*map(name_controls, parts))

    backend, ours = tokenizer.backend_tokenizer, {}
    renamed = tokenizers.Tokenizer(backend.model)
    renamed.normalizer, renamed.pre_tokenizer = backend.normalizer, backend.pre_tokenizer
    for index, token in backend.get_added_tokens_decoder().items():
        content = f"{mark}+{index}+" if token.special else token.content
        flags = {flag: getattr(token, flag) for flag in ("single_word", "lstrip", "rstrip")}
        added = tokenizers.AddedToken(content, normalized=token.normalized, **flags)
        renamed.add_tokens([added])
        ours[renamed.token_to_id(content)] = index, token.special
    encoding = renamed.encode("".join(parts), add_special_tokens=False)
    ids = [ours.get(i, (i, False))[0] for i in encoding.ids]
    text = "".join(parts)
    controls = {
        k: _core(text, span)
        for k, (i, span) in enumerate(zip(encoding.ids, encoding.offsets, strict=True))
        if ours.get(i, (i, False))[1]
    }
    return parts, _Tokens(ids, encoding.offsets, controls)


def _tokenize(tokenizer: Tokenizer, text: str, *, control: bool = False) -> _Tokens:
    """The ids of a text; ``control``: control tokens in it are read as such, else spelt out."""
    encoded = tokenizer(
        text,
        add_special_tokens=False,
        split_special_tokens=not control,
        return_offsets_mapping=True,
        verbose=False,
    )
    ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
    added = tokenizer.backend_tokenizer.get_added_tokens_decoder() if control else {}
    controls = {
        place: _core(text, offsets[place])
        for place, index in enumerate(ids)
        if index in added and added[index].special
    }
    # An unknown character has a control token's id and is none.
    unknown = [k for k, span in controls.items() if ids[k] == tokenizer.unk_token_id]
    for place in unknown:
        start, end = controls[place]
        if text[start:end] != tokenizer.unk_token:
            del controls[place]
    return _Tokens(ids, offsets, controls)


def _absent(texts: Sequence[str]) -> str:
    """Private-use characters that none of the texts has."""
    mark = "\ue000"
    while any(mark in text for text in texts):
        mark += "\ue000"
    return mark


def _core(text: str, span: tuple[int, int]) -> tuple[int, int]:
    """A span without the blanks at its ends."""
    covered = text[slice(*span)]
    start = span[0] + len(covered) - len(covered.lstrip())
    return start, start + len(covered.strip())


def _without_old_turns(record: Record) -> Iterator[Record]:
    """The record without its oldest turns: ever fewer, from a user's turn on, the system's kept."""
    system = [message for message in record.messages[:1] if message.role == "system"]
    starts = [n for n, message in enumerate(record.messages) if message.role == "user"]
    for start in starts[1:]:
        yield dataclasses.replace(record, messages=(*system, *record.messages[start:]))


def _cuts(record: Record) -> Iterator[tuple[Callable[[int], Record], int]]:
    """Functions from a number of characters to the record with that much of a text, and its length.

    In the order in which texts are cut; ahead of the next one its predecessor is empty.
    """
    if not record.messages:
        length = len(record.instruction)

        def cut(keep: int) -> Record:
            input = record.input[: max(keep - length, 0)]
            return dataclasses.replace(record, instruction=record.instruction[:keep], input=input)

        yield cut, length + len(record.input)
        return

    messages = list(record.messages)
    for index in reversed(range(len(messages))):

        def cut(keep: int, index: int = index, turns: tuple = tuple(messages)) -> Record:
            turn = dataclasses.replace(turns[index], content=turns[index].content[:keep])
            return dataclasses.replace(record, messages=(*turns[:index], turn, *turns[index + 1 :]))

        yield cut, len(messages[index].content)
        messages[index] = dataclasses.replace(messages[index], content="")
