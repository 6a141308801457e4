"""A chat template for a model trained with "alpaca" or "plain": others write its prompts by it."""

import contextlib
import copy
import itertools
import json
from pathlib import Path

from fgrlhf_jax.data import templates
from fgrlhf_jax.data.records import Instruction, Message
from fgrlhf_jax.data.tokenizers import Tokenizer

EXAMPLE = Instruction("Name a fruit.", "", "An apple.")
_CASES = (
    EXAMPLE,
    Instruction("Translate\nthis {x}.", "Un «café»?", " Yes. "),
    Instruction("", "", "No.", (Message("system", "Be brief."), Message("user", "Why?"))),
    Instruction("", "", "", tuple(Message(role, "a b") for role in ("user", "assistant", "user"))),
)


def add_chat_template(tokenizer: Tokenizer, template: str) -> "Tokenizer | None":
    """A tokenizer whose chat template gives the ids of ``template``; None where that cannot be.

    Args:
      template: alpaca | chat | plain; of "chat" the tokenizer has its own.
    """
    if template == "chat":
        return tokenizer
    text, text_1 = (
        templates.render(tokenizer, template, Instruction("\0", input, "")).split("\0")
        for input in ("", "\0")
    )
    names = ("head", "tail", "head_1", "middle_1", "tail_1", "bos", "blank")
    source = Path(__file__).with_suffix(".jinja").read_text(encoding="utf-8")
    tokenizer = copy.deepcopy(tokenizer)
    # Whether a tokenizer puts BOS first, and a blank before the first word, is tried out.
    for bos, blank in itertools.product(("", tokenizer.bos_token or ""), ("", " ")):
        values = map(json.dumps, (*text, *text_1, bos, blank))
        lines = [f"{{%- set {n} = {v} -%}}" for n, v in zip(names, values, strict=True)]
        tokenizer.chat_template = "\n".join([*lines, source])
        if all(_agrees(tokenizer, template, case) for case in _CASES):
            return tokenizer
    return None


def _messages(record: Instruction) -> list[dict[str, str]]:
    user = {"role": "user", "content": record.instruction, "input": record.input}
    return [vars(message) for message in record.messages] or [user]


def _agrees(tokenizer: Tokenizer, template: str, record: Instruction) -> bool:
    """Whether both ways give the same ids of a prompt, and of a prompt and response."""
    messages, options = _messages(record), {"tokenize": True, "return_dict": False}
    answered = [*messages, {"role": "assistant", "content": record.output}]
    whole = templates.encode_response(tokenizer, template, record, record.output)
    prompt, _ = templates.encode_prompt(tokenizer, template, record)
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, **options)
    return ids == prompt and tokenizer.apply_chat_template(answered, **options) == whole.ids


def response_text(tokenizer: Tokenizer, template: str, append_eos: bool) -> str:
    """What stands behind a prompt for EXAMPLE's response, its end included.

    Tokenized with the prompt it gives the ids that the model was trained on; "" where no text does.
    """
    messages, output = _messages(EXAMPLE), EXAMPLE.output
    answered = [*messages, {"role": "assistant", "content": output}]
    with contextlib.suppress(Exception):  # a template is a program, which may raise anything
        want = templates.encode_response(tokenizer, template, EXAMPLE, output, append_eos).ids
        end = tokenizer.decode(want[-1:]) if append_eos else ""
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        whole = tokenizer.apply_chat_template(answered, tokenize=False).removeprefix(prompt)
        parts = whole.partition(end)[0] + end if end else "", whole.partition(output)[0] + output
        for text in (*parts, output + end):
            if tokenizer(prompt + text, add_special_tokens=False)["input_ids"] == want:
                return text
    return ""
