"""A chat template for a model trained with "alpaca" or "plain": others write its prompts by it."""

import copy
import json

from fgrlhf_jax.data import templates
from fgrlhf_jax.data.records import Instruction, Message
from fgrlhf_jax.data.tokenizers import Tokenizer

EXAMPLE = Instruction("Name a fruit.", "", "An apple.")
_MARKS = "\ue000", "\ue001"  # private use: no template writes them
_CASES = (
    EXAMPLE,
    Instruction("Translate\nthis {x}.", "Un «café»?", " Yes. "),
    Instruction("", "", "No.", (Message("system", "Be brief."), Message("user", "Why?"))),
    Instruction(
        "", "", "", (Message("user", "a"), Message("assistant", "b"), Message("user", "c"))
    ),
)
# One user's turn, behind a system message or not, is the instruction; more are a transcript.
_JINJA = """\
{%- set answered = messages[-1].role == "assistant" -%}
{%- set turns = messages[:-1] if answered else messages -%}
{%- set several = turns | map(attribute="role") | list not in [["user"], ["system", "user"]] -%}
{%- set prompt = namespace(text="") -%}
{%- for turn in turns -%}
{%- set name = (turn.role | capitalize) + ": " if several else "" -%}
{%- set blank = "" if loop.first else "\\n\\n" -%}
{%- set prompt.text = prompt.text + blank + name + turn.content -%}
{%- endfor -%}
{%- if messages[0].input -%}
{%- set prompt.text = A + prompt.text + B + messages[0].input + C -%}
{%- else -%}
{%- set prompt.text = D + prompt.text + E -%}
{%- endif -%}
{{- START + prompt.text -}}
{%- if answered -%}{{- messages[-1].content + eos_token -}}{%- endif -%}
"""


def add_chat_template(tokenizer: Tokenizer, template: str) -> "Tokenizer | None":
    """A tokenizer whose chat template gives the ids of ``template``; None where that cannot be.

    Args:
      template: alpaca | chat | plain; of "chat" the tokenizer has its own.
    """
    if template == "chat":
        return tokenizer
    parts = {}
    for names, marks in (("ABC", _MARKS), ("DE", (_MARKS[0], ""))):
        text = templates.render(tokenizer, template, Instruction(*marks, ""))
        for mark in filter(None, marks):
            text = text.replace(mark, "\0")
        parts |= dict(zip(names, text.split("\0"), strict=True))
    tokenizer = copy.deepcopy(tokenizer)
    bos = json.dumps(tokenizer.bos_token or "")
    # Whether a tokenizer puts BOS first, and a blank before the first word, is tried out.
    blank = '("" if prompt.text[:1] in " ▁" else " ")'
    for start in ('""', bos, f"{bos} + {blank}"):
        source = _JINJA.replace("START", start)
        for name, text in parts.items():
            source = source.replace(f" {name} ", f" {json.dumps(text)} ")
        tokenizer.chat_template = source.replace("\n", "")
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
    want = templates.encode_response(tokenizer, template, EXAMPLE, output, append_eos).ids
    end = tokenizer.decode(want[-1:]) if append_eos else ""
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    messages.append({"role": "assistant", "content": output})
    whole = tokenizer.apply_chat_template(messages, tokenize=False).removeprefix(prompt)
    parts = whole.partition(end)[0] + end if end else "", whole.partition(output)[0] + output
    for text in (*parts, output + end):
        if tokenizer(prompt + text, add_special_tokens=False)["input_ids"] == want:
            return text
    return ""
