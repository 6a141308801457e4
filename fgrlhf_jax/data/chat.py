"""Chat templates: renders conversations as text and ids, with no control tokens but the template's.

It also checks that a tokenizer's control tokens fit a model.
"""

import contextlib
import dataclasses
import datetime
import functools
import re
import secrets
from collections.abc import Collection, Sequence
from typing import NamedTuple

import tokenizers
from rapidfuzz.distance import Prefix

from fgrlhf_jax.data.records import Message
from fgrlhf_jax.data.tokenizers import Tokenizer
from fgrlhf_jax.errors import InputError

OTHER_TEMPLATE = "--config.template=alpaca (or plain)"
_MARKER = f"\ue000{secrets.token_hex(8)}"  # private use character and a random text
# Prompts must not depend on the clock: the day is always Llama 3's default.
_DATE_FORMATS = (f"%{form}" for form in (*"aAbBdeDFHIjmMpSTuUwWyYZ", "-d", "-e", "-m", "-H", "-I"))
_FIXED_DATE = {form: datetime.datetime(2024, 7, 26, 12).strftime(form) for form in _DATE_FORMATS}
_FORMAT = "form" + "".join(f"|replace({name!r}, {value!r})" for name, value in _FIXED_DATE.items())
_STRFTIME = f"{{% macro strftime_now(form) %}}{{{{ {_FORMAT} }}}}{{% endmacro %}}{{{{ '' }}}}"
_TOKEN_FLAGS = ("single_word", "lstrip", "rstrip", "normalized")  # of an added token


class Parts(NamedTuple):
    """A rendered text: prompt, template text before the response, response, and text after it."""

    prompt: str
    opening: str = ""
    response: str = ""
    closing: str = ""


class Tokens(NamedTuple):
    """The ids of a text, the character span of each, and {index: span} of its control tokens."""

    ids: list[int]
    offsets: list[tuple[int, int]]
    controls: dict[int, tuple[int, int]]


def render_chat(
    tokenizer: Tokenizer, messages: Sequence[Message], answer: str | None = None
) -> str:
    """Renders messages and the opening of the assistant's turn, or the turn with an answer.

    Raises InputError with the template's error message if it fails.
    """
    reply = [] if answer is None else [Message("assistant", answer)]
    try:
        source = tokenizer.get_chat_template()
        return tokenizer.apply_chat_template(
            [dataclasses.asdict(message) for message in [*messages, *reply]],
            tokenize=False,
            add_generation_prompt=answer is None,
            chat_template=f"{_STRFTIME if 'strftime_now' in source else ''}{source}",
            date_string="26 Jul 2024",
        )
    except Exception as error:  # a template is a program, which may raise anything
        roles = ", ".join(message.role for message in messages)
        raise InputError(
            f"template=chat: the model's chat template refuses a prompt of {roles}: "
            f"{' '.join(str(error).split())[:300]}; give other messages, or {OTHER_TEMPLATE}"
        ) from error


@functools.lru_cache(maxsize=16)
def shows_user(tokenizer: Tokenizer, template: str) -> bool:
    """Whether the chat template writes the user's text; templates for message parts may not."""
    with contextlib.suppress(InputError):  # reported when a prompt is encoded
        first, second = (
            render_chat(tokenizer, [Message("user", text)]) for text in ("say 5>", "say 7>")
        )
        return first != second
    return True


def check_opening(tokenizer: Tokenizer) -> str:
    """A warning if the chat template does not write answers directly after its prompt, else ""."""
    opening = ""
    with contextlib.suppress(InputError):  # it wants other turns, which a file may have
        texts = [render_chat(tokenizer, [Message("user", "a")], answer) for answer in (None, "b")]
        opening = texts[0][Prefix.similarity(*texts) :]
    reason = f"prompts end with {opening!r:.60}, which is not written before a given response"
    advice = "give responses that continue it, such as a thought with its end"
    return f"template=chat: {reason}; {advice}" if opening else ""


def chat_parts(tokenizer: Tokenizer, messages: Sequence[Message], response: str | None) -> Parts:
    """Prompt and response as the chat template renders them, or else simply concatenated.

    They are concatenated if the template does not write the assistant's last turn directly after
    this prompt, or changes the response. A placeholder shows where the template writes it.
    """
    prompt = render_chat(tokenizer, messages)
    if response is None:
        return Parts(prompt)
    marker = f"{_MARKER}="  # differs from _UNTYPED names that a message may contain
    try:
        rendered = render_chat(tokenizer, messages, response)
        before, _, after = render_chat(tokenizer, messages, marker).partition(marker)
    except InputError:  # some templates require the user's turn last
        rendered, before, after = "", prompt, ""
    inserted = rendered[len(before) : len(rendered) - len(after)]
    opening = before[len(prompt) :]
    if (
        rendered == prompt + opening + inserted + after
        and inserted.strip() == response.strip()
        and not tokenize(tokenizer, opening, control=True).controls
    ):
        return Parts(prompt, opening, inserted, after)
    return Parts(prompt, response=response)


def encode_chat(
    tokenizer: Tokenizer, messages: Sequence[Message], response: str | None
) -> tuple[Parts, Tokens]:
    """Renders a conversation; returns the text and its ids.

    If the text has other control tokens than short test messages give, a message may spell one, or
    a message and the template together. Then the template's own control tokens get random names,
    and a tokenizer that knows them only by these names encodes the text.
    """
    parts = chat_parts(tokenizer, messages, response)
    text = "".join(parts)
    tokens = tokenize(tokenizer, text, control=True)
    roles = tuple(message.role for message in messages)
    expected = template_controls(tokenizer, str(tokenizer.chat_template), roles, response is None)
    if [tokens.ids[position] for position in tokens.controls] == expected:
        return parts, tokens
    parts = _mark_controls(tokenizer, messages, response, parts, tokens)

    text, backend, original_id, special = "".join(parts), tokenizer.backend_tokenizer, {}, set()
    renamed = tokenizers.Tokenizer(backend.model)
    renamed.normalizer, renamed.pre_tokenizer = backend.normalizer, backend.pre_tokenizer
    for index, token in backend.get_added_tokens_decoder().items():
        content = f"{_MARKER}+{index}+" if token.special else token.content
        flags = {name: getattr(token, name) for name in _TOKEN_FLAGS}
        renamed.add_tokens([tokenizers.AddedToken(content, **flags)])
        original_id[renamed.token_to_id(content)] = index
        special |= {renamed.token_to_id(content)} if token.special else set()
    encoding = renamed.encode(text, add_special_tokens=False)
    tokens = _tokens(text, encoding.ids, encoding.offsets, special)
    return parts, tokens._replace(ids=[original_id.get(i, i) for i in tokens.ids])


@functools.lru_cache(maxsize=256)
def template_controls(
    tokenizer: Tokenizer, template: str, roles: tuple[str, ...], is_prompt: bool
) -> list[int] | None:
    """The ids of the control tokens around short messages; None if the template rejects them."""
    messages = [Message(role, "a") for role in roles]
    try:
        parts = chat_parts(tokenizer, messages, None if is_prompt else "a")
    except InputError:
        return None
    tokens = tokenize(tokenizer, "".join(parts), control=True)
    return [tokens.ids[index] for index in tokens.controls]


def _mark_controls(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    response: str | None,
    parts: Parts,
    tokens: Tokens,
) -> Parts:
    """Replaces the template's own control tokens in the rendered text by names.

    To find them, it renders messages whose characters are enclosed in two marks: all characters; or
    if the template then writes another text, the outer ones and one of every spelt control token;
    or only the latter.
    """
    contents = "".join([*(message.content for message in messages), response or ""])
    left, right = [chr(code) for code in range(0xE100, 0xF8FF) if chr(code) not in contents][:2]
    spellings = {"".join(parts)[start:end] for start, end in tokens.controls.values()} - {""}
    splits = [rf"{re.escape(token[0])}(?={re.escape(token[1:])})" for token in sorted(spellings)]
    marks = str.maketrans("", "", left + right)

    def render(patterns: Sequence[str]) -> Parts:
        def mark(content: str) -> str:
            return re.sub(
                "|".join(patterns),
                lambda match: f"{match[0][:-1]}{left}{match[0][-1]}{right}",
                content,
            )

        marked = [dataclasses.replace(turn, content=mark(turn.content)) for turn in messages]
        return chat_parts(tokenizer, marked, None if response is None else mark(response))

    for patterns in ([r"\S"], [*splits, r"\A\s*\S", r"\S(?=\s*\Z)"]):
        with contextlib.suppress(InputError):
            marked = render(patterns)
            if Parts(*(part.translate(marks) for part in marked)) == parts:
                break
    else:
        marked = render(splits or ["(?!)"])
    texts = []
    for part in marked:
        ids, _, controls = tokenize(tokenizer, part, control=True)
        for index, (start, end) in reversed(controls.items()):
            if end - start > 1 or part[start - 1 : start] != left:  # not from a message
                part = f"{part[:start]}{_MARKER}+{ids[index]}+{part[end:]}"
        texts.append(part.translate(marks))
    return Parts(*texts)


def tokenize(tokenizer: Tokenizer, text: str, *, control: bool = False) -> Tokens:
    """Encodes a text; ``control``: parse control tokens in it, instead of spelling them out."""
    # The backend itself: transformers' call takes three times as long, for one text or many.
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = not control
    encoded = backend.encode(text, add_special_tokens=False)
    added = backend.get_added_tokens_decoder() if control else {}
    special = {index for index, token in added.items() if token.special}
    tokens = _tokens(text, encoded.ids, encoded.offsets, special)
    for i, (start, end) in [*tokens.controls.items()]:
        if tokens.ids[i] == tokenizer.unk_token_id and text[start:end] != tokenizer.unk_token:
            del tokens.controls[i]  # an unknown character
    return tokens


def _tokens(text: str, ids: list[int], offsets: list[tuple[int, int]], special) -> Tokens:
    """Adds the spans of the ``special`` ids, without the blanks that they may cover."""
    controls = {}
    for position, index in enumerate(ids):
        if index in special:
            start, end = offsets[position]
            covered = text[start:end]
            start += len(covered) - len(covered.lstrip())
            controls[position] = start, start + len(covered.strip())
    return Tokens(ids, offsets, controls)


def check_vocabulary(tokenizer: Tokenizer, vocab_size: int, template: str = "chat") -> None:
    """Raises InputError if text or template can give an id beyond the model's embedding.

    A control token beyond it, such as an added pad token, is allowed unless it is BOS or EOS or the
    chat template writes it, since texts never become control tokens.
    """
    added = tokenizer.added_tokens_decoder
    used = {tokenizer.bos_token_id, tokenizer.eos_token_id}
    if template == "chat" and (source := str(tokenizer.chat_template or "")):
        used |= {index for index, token in added.items() if token.content in source}
        for roles in (("user",), ("system", "user"), ("user", "assistant", "user")):
            for is_prompt in (True, False):
                used.update(template_controls(tokenizer, source, roles, is_prompt) or ())
    missing = {
        index: token
        for token, index in tokenizer.get_vocab().items()
        if index >= vocab_size
        if not (index in added and added[index].special) or index in used
    }
    if missing:
        raise InputError(
            f"tokenizer: {len(missing)} of its tokens, such as {missing[max(missing)]!r} with id "
            f"{max(missing)}, do not fit the model's vocabulary of {vocab_size}; use the tokenizer "
            "that belongs to the checkpoint"
        )


def check_end_of_turn(tokenizer: Tokenizer, template: str, ends: Collection[int]) -> str:
    """A warning if the token that ends responses in training does not end generation, else ""."""
    parts = Parts("")
    if template == "chat":
        with contextlib.suppress(InputError):  # it requires other turns, which a file may have
            parts = chat_parts(tokenizer, (Message("user", "a"),), "a")
    tokens = tokenize(tokenizer, parts.closing, control=True)
    controls = [tokenizer.convert_ids_to_tokens(tokens.ids[index]) for index in tokens.controls]
    end = [*controls, parts.closing.strip() or tokenizer.eos_token][0]
    stops = tokenizer.convert_ids_to_tokens([i for i in ends if i < len(tokenizer)])
    if end in stops:
        return ""
    return (
        f"template={template} ends a turn with {end!r:.60}, and a response ends with "
        f"{', '.join(stops)}: it may run on; correct eos_token_id in generation_config.json or "
        "give another template"
    )
