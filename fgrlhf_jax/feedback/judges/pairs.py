"""Pairs of responses to compare: from two files of responses, or from one with several a prompt.

Responses are rows of instruction, input and output, as `launch.generate` writes them and as
alpaca_eval has them; two files are matched by instruction and input.
"""

from collections import Counter
from collections.abc import Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

from fgrlhf_jax.data import records
from fgrlhf_jax.errors import InputError
from fgrlhf_jax.feedback.judges import alpaca_eval
from fgrlhf_jax.feedback.judges.alpaca_eval import Comparison

_SIDES = (("output_1", "output_2"), ("original", "edited"))


def match(outputs: str, reference: str, common: bool = False) -> list[Comparison]:
    """Responses of a model (`output_2`) and of a reference (`output_1`) to the same prompts.

    Args:
      outputs, reference: what ``records.read`` reads, one response a prompt.
      common: compare only the prompts that both have, in place of refusing the others.

    Returns:
      One comparison a prompt, in the order of the reference.

    Raises:
      InputError: for a prompt that stands twice in a file or in only one of them.
    """
    model, other = _responses(outputs), _responses(reference)
    missing = [prompt for prompt in model if prompt not in other]
    unanswered = [prompt for prompt in other if prompt not in model]
    if (missing or unanswered) and not common:
        raise InputError(
            f"{outputs} has {len(missing)} prompts that {reference} lacks, and lacks "
            f"{len(unanswered)} that it has (the first: {(missing + unanswered)[0][0]!r:.60}); "
            "answer the same prompts with both, or set common=True"
        )
    both = [prompt for prompt in other if prompt in model]
    if not both:
        raise InputError(f"{outputs} and {reference} have no prompt in common")
    names = _name(model, outputs), _name(other, reference)
    return [
        Comparison(
            instruction=other[prompt][0].instruction,
            input=other[prompt][0].input,
            output_1=other[prompt][0].output,
            output_2=model[prompt][0].output,
            generator_1=other[prompt][1].get("generator") or names[1],
            generator_2=model[prompt][1].get("generator") or names[0],
            finished_1=_finished(other[prompt][1]),
            finished_2=_finished(model[prompt][1]),
        )
        for prompt in both
    ]


def _responses(spec: str) -> dict[tuple[str, str], tuple[records.Instruction, dict]]:
    """By prompt: the response and its row."""
    found: dict[tuple[str, str], tuple[records.Instruction, dict]] = {}
    for number, (record, row) in enumerate(records.read_with_rows(spec), 1):
        if not isinstance(record, records.Instruction):
            raise InputError(
                f"{spec}:row {number}: is of a pair; give responses: instruction, input, output"
            )
        prompt = record.instruction.strip(), record.input.strip()
        if prompt in found:
            raise InputError(
                f"{spec}:row {number}: its prompt stands there before; give one response a prompt"
            )
        found[prompt] = record, row
    return found


def _name(responses: Mapping, spec: str) -> str:
    """For rows that do not say who made them."""
    named = {str(row.get("generator") or "") for _, row in responses.values()} - {""}
    stems = ", ".join(Path(source).stem for source in records.sources(spec))
    return named.pop() if len(named) == 1 else stems


def _finished(row: Mapping[str, Any]) -> bool:
    return row.get("finished") is not False


def read(path: str) -> tuple[list[Comparison], Counter]:
    """Pairs of one file to be labelled, and how many rows gave none and why.

    Rows have two responses (output_1 and output_2, or original and edited; a label that they may
    have is not looked at), or one, the rows of a prompt following one another (`launch.generate`
    with samples=2): of these the different ones make pairs, first with second, third with fourth.
    Empty and identical responses teach nothing and are left out.

    Raises:
      InputError: for other rows, or when no pair is left.
    """
    rows, left_out = alpaca_eval.read_rows(path), Counter()
    sides = next((names for names in _SIDES if all(name in rows[0] for name in names)), None)
    if sides:
        pairs = _given(rows, sides, path, left_out)
    elif "output" in rows[0]:
        pairs = _sampled(rows, path, left_out)
    else:
        raise InputError(
            f"{path}:row 1: has neither output_1 and output_2 (or original and edited) nor output; "
            "give two responses a row, or several rows a prompt"
        )
    if not pairs:
        said = ", ".join(f"{count} {why}" for why, count in left_out.items())
        raise InputError(f"{path}: holds no pair of two different responses ({said})")
    return pairs, left_out


def _given(rows, sides: tuple[str, str], path: str, left_out: Counter) -> list[Comparison]:
    pairs = []
    for number, row in enumerate(rows, 1):
        prompt = _prompt(row, f"{path}:row {number}")
        one, two = (_text(row, name, f"{path}:row {number}") for name in sides)
        if not (one.strip() and two.strip()):
            left_out["empty responses"] += 1
        elif one == two:
            left_out["identical responses"] += 1
        else:
            made = (str(row.get(f"generator_{side}") or "") for side in (1, 2))
            pairs.append(Comparison(*prompt, one, two, None, *made))
    return pairs


def _sampled(rows, path: str, left_out: Counter) -> list[Comparison]:
    pairs = []
    numbered = ((row, f"{path}:row {number}") for number, row in enumerate(rows, 1))
    for prompt, group in groupby(numbered, key=lambda item: _prompt(*item)):
        different: dict[str, dict] = {}
        for row, where in group:
            text = _text(row, "output", where)
            if not text.strip():
                left_out["empty responses"] += 1
            elif text in different:
                left_out["identical responses"] += 1
            else:
                different[text] = row
        texts = list(different)
        left_out["responses without another"] += len(texts) % 2
        for one, two in zip(texts[::2], texts[1::2], strict=False):
            names = (str(different[text].get("generator") or "") for text in (one, two))
            done = (_finished(different[text]) for text in (one, two))
            made = dict(zip(("generator_1", "generator_2"), names, strict=True))
            made |= dict(zip(("finished_1", "finished_2"), done, strict=True))
            pairs.append(Comparison(*prompt, one, two, **made))
    return pairs


def _prompt(row: Mapping[str, Any], where: str) -> tuple[str, str]:
    prompt = _text(row, "instruction", where), _text({"input": "", **row}, "input", where)
    if not any(text.strip() for text in prompt):
        raise InputError(f"{where}: instruction and input are both empty; give a prompt")
    return prompt


def _text(row: Mapping[str, Any], name: str, where: str) -> str:
    if name not in row:
        raise InputError(f"{where}: misses {name}; every row needs the same fields")
    text = "" if row[name] is None and name == "input" else row[name]
    if not isinstance(text, str):
        raise InputError(f"{where}: {name} is {text!r:.40}, not a string; put a text there")
    return text
