"""Chat templates: a conversation as text and ids, with no control token but the template's.

And whether a tokenizer's control tokens go with a model.
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
_UNTYPED = f"\ue000{secrets.token_hex(8)}"  # private use, and not to be guessed
# A prompt must not read the clock: it is always Llama 3's default day.
_FORMS = (f"%{form}" for form in (*"aAbBdeDFHIjmMpSTuUwWyYZ", "-d", "-e", "-m", "-H", "-I"))
_DAY = {form: datetime.datetime(2024, 7, 26, 12).strftime(form) for form in _FORMS}
_FORM = "form" + "".join(f"|replace({name!r}, {value!r})" for name, value in _DAY.items())
_CLOCK = f"{{% macro strftime_now(form) %}}{{{{ {_FORM} }}}}{{% endmacro %}}{{{{ '' }}}}"
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized")  # of an added token


class Parts(NamedTuple):
    """A rendered text: the prompt, the response as written, what stands between and behind."""

    prompt: str
    opening: str = ""
    response: str = ""
    closing: str = ""


class Tokens(NamedTuple):
    """The ids of a text, the characters of each, and {place: characters} of its control tokens."""

    ids: list[int]
    offsets: list[tuple[int, int]]
    controls: dict[int, tuple[int, int]]


def render_chat(
    tokenizer: Tokenizer, messages: Sequence[Message], answer: str | None = None
) -> str:
    """Messages and the opening of the assistant's turn, or with an answer in it.

    Raises InputError with the template's words, where it fails.
    """
    answers = [] if answer is None else [Message("assistant", answer)]
    try:
        source = tokenizer.get_chat_template()
        return tokenizer.apply_chat_template(
            [dataclasses.asdict(message) for message in [*messages, *answers]],
            tokenize=False,
            add_generation_prompt=answer is None,
            chat_template=f"{_CLOCK if 'strftime_now' in source else ''}{source}",
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
    """Whether its chat template writes what the user says; one for parts of messages may not."""
    with contextlib.suppress(InputError):  # of which encoding a prompt tells
        first, second = (
            render_chat(tokenizer, [Message("user", text)]) for text in ("say 5>", "say 7>")
        )
        return first != second
    return True


def check_opening(tokenizer: Tokenizer) -> str:
    """A sentence where the chat template writes no answer right behind its prompt, else ""."""
    opened = ""
    with contextlib.suppress(InputError):  # it wants other turns, which a file may have
        texts = [render_chat(tokenizer, [Message("user", "a")], answer) for answer in (None, "b")]
        opened = texts[0][Prefix.similarity(*texts) :]
    advice = "so give responses that go on from there, as with a thought and its end"
    said = f"a prompt ends with {opened!r:.60}, which is not written before an answer of a file"
    return f"template=chat: {said}; {advice}" if opened else ""


def chat_parts(tokenizer: Tokenizer, messages: Sequence[Message], response: str | None) -> Parts:
    """Prompt and response as the chat template writes them, or one after the other.

    The latter where the template does not write an assistant's last turn right behind this prompt,
    or another text than the response. Where it writes it is seen from another text in its place.
    """
    prompt = render_chat(tokenizer, messages)
    if response is None:
        return Parts(prompt)
    answer = f"{_UNTYPED}="  # a message may hold hidden names, which begin alike
    try:
        whole = render_chat(tokenizer, messages, response)
        before, _, after = render_chat(tokenizer, messages, answer).partition(answer)
    except InputError:  # some templates want the user's turn last
        whole, before, after = "", prompt, ""
    written = whole[len(before) : len(whole) - len(after)]
    opening = before[len(prompt) :]
    if (
        whole == prompt + opening + written + after
        and written.strip() == response.strip()
        and not tokenize(tokenizer, opening, control=True).controls
    ):
        return Parts(prompt, opening, written, after)
    return Parts(prompt, response=response)


def encode_chat(
    tokenizer: Tokenizer, messages: Sequence[Message], response: str | None
) -> tuple[Parts, Tokens]:
    """The rendered text and its ids.

    Where the text has other control tokens than that of other messages has, a message may spell
    one, or its text and the template's together. Then it is seen where the template's own are, and
    these get names that nobody has typed; a tokenizer that knows them by these names only reads the
    whole.
    """
    parts = chat_parts(tokenizer, messages, response)
    text = "".join(parts)
    tokens = tokenize(tokenizer, text, control=True)
    roles = tuple(message.role for message in messages)
    own = own_controls(tokenizer, str(tokenizer.chat_template), roles, response is None)
    if [tokens.ids[place] for place in tokens.controls] == own:
        return parts, tokens
    parts = _name_controls(tokenizer, messages, response, parts, tokens)

    text, backend, ours, special = "".join(parts), tokenizer.backend_tokenizer, {}, set()
    renamed = tokenizers.Tokenizer(backend.model)
    renamed.normalizer, renamed.pre_tokenizer = backend.normalizer, backend.pre_tokenizer
    for index, token in backend.get_added_tokens_decoder().items():
        content = f"{_UNTYPED}+{index}+" if token.special else token.content
        flags = {name: getattr(token, name) for name in _FLAGS}
        renamed.add_tokens([tokenizers.AddedToken(content, **flags)])
        ours[renamed.token_to_id(content)] = index
        special |= {renamed.token_to_id(content)} if token.special else set()
    encoding = renamed.encode(text, add_special_tokens=False)
    tokens = _tokens(text, encoding.ids, encoding.offsets, special)
    return parts, tokens._replace(ids=[ours.get(i, i) for i in tokens.ids])


@functools.lru_cache(maxsize=256)
def own_controls(
    tokenizer: Tokenizer, template: str, roles: tuple[str, ...], is_prompt: bool
) -> list[int] | None:
    """The ids of the control tokens around short messages; None where the template refuses them."""
    messages = [Message(role, "a") for role in roles]
    try:
        parts = chat_parts(tokenizer, messages, None if is_prompt else "a")
    except InputError:
        return None
    tokens = tokenize(tokenizer, "".join(parts), control=True)
    return [tokens.ids[place] for place in tokens.controls]


def _name_controls(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    response: str | None,
    parts: Parts,
    tokens: Tokens,
) -> Parts:
    """The rendered text with names in place of the template's own control tokens.

    While the template runs, characters of the messages stand between two signs: all; or, where it
    then writes another text, which depends on theirs, the outer ones and one of every control
    token; or the latter alone.
    """
    contents = "".join([*(message.content for message in messages), response or ""])
    before, behind = [chr(code) for code in range(0xE100, 0xF8FF) if chr(code) not in contents][:2]
    spelt = {"".join(parts)[start:end] for start, end in tokens.controls.values()} - {""}
    firsts = [rf"{re.escape(token[0])}(?={re.escape(token[1:])})" for token in sorted(spelt)]
    unmark = str.maketrans("", "", before + behind)

    def render(patterns: Sequence[str]) -> Parts:
        def mark(content: str) -> str:
            return re.sub(
                "|".join(patterns),
                lambda match: f"{match[0][:-1]}{before}{match[0][-1]}{behind}",
                content,
            )

        marked = [dataclasses.replace(turn, content=mark(turn.content)) for turn in messages]
        return chat_parts(tokenizer, marked, None if response is None else mark(response))

    for patterns in ([r"\S"], [*firsts, r"\A\s*\S", r"\S(?=\s*\Z)"]):
        with contextlib.suppress(InputError):
            marked = render(patterns)
            if Parts(*(part.translate(unmark) for part in marked)) == parts:
                break
    else:
        marked = render(firsts or ["(?!)"])
    names = []
    for part in marked:
        ids, _, controls = tokenize(tokenizer, part, control=True)
        for place, (start, end) in reversed(controls.items()):
            if end - start > 1 or part[start - 1 : start] != before:  # else a message spells it
                part = f"{part[:start]}{_UNTYPED}+{ids[place]}+{part[end:]}"
        names.append(part.translate(unmark))
    return Parts(*names)


def tokenize(tokenizer: Tokenizer, text: str, *, control: bool = False) -> Tokens:
    """The ids of a text; ``control``: control tokens in it are read as such, else spelt out."""
    encoded = tokenizer(
        text,
        add_special_tokens=False,
        split_special_tokens=not control,
        return_offsets_mapping=True,
        verbose=False,
    )
    added = tokenizer.backend_tokenizer.get_added_tokens_decoder() if control else {}
    special = {index for index, token in added.items() if token.special}
    tokens = _tokens(text, encoded["input_ids"], encoded["offset_mapping"], special)
    for place, (start, end) in [*tokens.controls.items()]:
        if tokens.ids[place] == tokenizer.unk_token_id and text[start:end] != tokenizer.unk_token:
            del tokens.controls[place]  # an unknown character
    return tokens


def _tokens(text: str, ids: list[int], offsets: list[tuple[int, int]], special) -> Tokens:
    """With the places of the ``special`` ids, whose characters may have blanks around them."""
    controls = {}
    for place, index in enumerate(ids):
        if index in special:
            start, end = offsets[place]
            covered = text[start:end]
            start += len(covered) - len(covered.lstrip())
            controls[place] = start, start + len(covered.strip())
    return Tokens(ids, offsets, controls)


def check_vocabulary(tokenizer: Tokenizer, vocab_size: int, template: str = "chat") -> None:
    """Raises InputError if text or template can give an id beyond the model's embedding.

    A control token without a row, such as one added to pad with, is fine unless it is BOS or EOS or
    the chat template writes it, in one piece or in several: nothing else makes one of a text.
    """
    added = tokenizer.added_tokens_decoder
    written = {tokenizer.bos_token_id, tokenizer.eos_token_id}
    if template == "chat" and (source := str(tokenizer.chat_template or "")):
        written |= {index for index, token in added.items() if token.content in source}
        for roles in (("user",), ("system", "user"), ("user", "assistant", "user")):
            for is_prompt in (True, False):
                written.update(own_controls(tokenizer, source, roles, is_prompt) or ())
    beyond = {
        index: token
        for token, index in tokenizer.get_vocab().items()
        if index >= vocab_size
        if not (index in added and added[index].special) or index in written
    }
    if beyond:
        raise InputError(
            f"tokenizer: {len(beyond)} of its tokens, such as {beyond[max(beyond)]!r} with id "
            f"{max(beyond)}, do not fit the model's vocabulary of {vocab_size}; use the tokenizer "
            "that belongs to the checkpoint"
        )


def check_end_of_turn(tokenizer: Tokenizer, template: str, ends: Collection[int]) -> str:
    """A sentence where what ends a response in training does not end a generated one, else ""."""
    parts = Parts("")
    if template == "chat":
        with contextlib.suppress(InputError):  # it wants other turns, which a file may have
            parts = chat_parts(tokenizer, (Message("user", "a"),), "a")
    tokens = tokenize(tokenizer, parts.closing, control=True)
    written = [tokenizer.convert_ids_to_tokens(tokens.ids[place]) for place in tokens.controls]
    end = [*written, parts.closing.strip() or tokenizer.eos_token][0]
    known = tokenizer.convert_ids_to_tokens([i for i in ends if i < len(tokenizer)])
    if end in known:
        return ""
    return (
        f"template={template} ends a turn with {end!r:.60}, and a response ends with "
        f"{', '.join(known)}: it may run on; correct eos_token_id in generation_config.json or "
        "give another template"
    )
