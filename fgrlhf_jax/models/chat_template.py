"""Chat templates for models trained with "alpaca" or "plain", so that other tools prompt them."""

import contextlib
import copy
import itertools
import json
from collections.abc import Iterator
from pathlib import Path

from fgrlhf_jax.data import templates
from fgrlhf_jax.data.records import Instruction, Message
from fgrlhf_jax.data.tokenizers import Tokenizer

EXAMPLE = Instruction("Name a fruit.", "", "An apple.")
_CASES = (
    EXAMPLE,
    Instruction("Translate\nthis {x}.", "Un «café»?", " Yes. "),
    Instruction("Say.", "\n", "No."),
    Instruction("", "", "No.", (Message("system", "Be brief."), Message("user", "Why?"))),
    Instruction("", "", "", tuple(Message(role, "a b") for role in ("user", "assistant", "user"))),
)


def with_chat_template(
    tokenizer: Tokenizer, template: str, append_eos: bool
) -> tuple[Tokenizer, str, set[int]]:
    """A tokenizer whose chat template writes the prompts of a model trained with ``template``.

    Args:
      template: alpaca | chat | plain; for "chat" the tokenizer keeps its own.
      append_eos: whether responses ended with a control token in training.

    Returns:
      The tokenizer; the response text to append to EXAMPLE's prompt so that both, tokenized
      together, give the ids of training ("" if no chat template does; the tokenizer then has none);
      and the token that ends a response.
    """
    ends: set[int] = set()
    with contextlib.suppress(Exception):  # a template is a program, which may raise anything
        turn = templates.encode_response(tokenizer, template, EXAMPLE, EXAMPLE.output, append_eos)
        ends = {turn.ids[-1]} if append_eos else ends
        for candidate in _candidates(tokenizer, template):
            if text := _response_text(candidate, turn.ids, tokenizer.decode([*ends])):
                return candidate, text, ends
    if template != "chat":
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.chat_template = None
    return tokenizer, "", ends


def _candidates(tokenizer: Tokenizer, template: str) -> Iterator[Tokenizer]:
    """Tokenizers with chat templates that agree with ``template``."""
    if template == "chat":
        yield tokenizer
        return
    text, text_1 = (
        templates.render(tokenizer, template, Instruction("\0", input, "")).split("\0")
        for input in ("", "\0")
    )
    names = ("head", "tail", "head_1", "middle_1", "tail_1", "bos", "blank")
    source = Path(__file__).with_suffix(".jinja").read_text(encoding="utf-8")
    tokenizer = copy.deepcopy(tokenizer)
    # Variants with and without BOS, and with and without a blank before the first word.
    for bos, blank in itertools.product(("", tokenizer.bos_token or ""), ("", " ")):
        values = map(json.dumps, (*text, *text_1, bos, blank))
        lines = [f"{{%- set {n} = {v} -%}}" for n, v in zip(names, values, strict=True)]
        tokenizer.chat_template = "\n".join([*lines, source])
        if all(_agrees(tokenizer, template, case) for case in _CASES):
            yield tokenizer


def _messages(record: Instruction) -> list[dict[str, str]]:
    user = {"role": "user", "content": record.instruction, "input": record.input}
    return [vars(message) for message in record.messages] or [user]


def _agrees(tokenizer: Tokenizer, template: str, record: Instruction) -> bool:
    """Whether chat template and training give the same ids, for a prompt and with its response."""
    messages, options = _messages(record), {"tokenize": True, "return_dict": False}
    chat = [*messages, {"role": "assistant", "content": record.output}]
    encoded = templates.encode_response(tokenizer, template, record, record.output)
    prompt, _ = templates.encode_prompt(tokenizer, template, record)
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, **options)
    return ids == prompt and tokenizer.apply_chat_template(chat, **options) == encoded.ids


def _response_text(tokenizer: Tokenizer, ids: list[int], end: str) -> str:
    """The text that completes EXAMPLE's prompt to a text with these ids, or ""."""
    messages, output = _messages(EXAMPLE), EXAMPLE.output
    chat = [*messages, {"role": "assistant", "content": output}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    rendered = tokenizer.apply_chat_template(chat, tokenize=False).removeprefix(prompt)
    parts = rendered.partition(end)[0] + end if end else "", rendered.partition(output)[0] + output
    for text in (*parts, output + end):
        if tokenizer(prompt + text, add_special_tokens=False)["input_ids"] == ids:
            return text
    return ""
