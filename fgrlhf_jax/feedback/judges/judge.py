"""A judge says which of two responses is better: a language model, or a Python function.

    comparisons -> requests (every pair in an order of its own, or in both) -> replies -> verdicts
                -> preferences -> labels to train on, with noise where it is wanted

The order in which a model is shown two responses is a hash of the seed, the prompt and the two
texts, whichever of them is the reference's: the same run asks the same, and a pair whose sides are
swapped asks the same too. Identical responses are a draw that nobody is asked about, as in
alpaca_eval.
"""

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from fgrlhf_jax.data.templates import plain_text
from fgrlhf_jax.errors import InputError
from fgrlhf_jax.feedback.judges import verdicts
from fgrlhf_jax.feedback.judges.alpaca_eval import Comparison, Verdict
from fgrlhf_jax.feedback.llm.client import LENGTH, REFUSAL, Reply, Request
from fgrlhf_jax.feedback.llm.requests import Rejected
from fgrlhf_jax.feedback.llm.template import PromptTemplate
from fgrlhf_jax.functional import win_rate
from fgrlhf_jax.runtime import user_function

FIELDS = ("instruction", "input", "first", "second")
TEMPLATE = """\
Two responses to the same instruction are below. Say which of them is better.

Think of a careful person who gave the instruction: does the response do what was asked, is what it
says true, is it of use, is it clear? Being longer is no merit, and neither is being shown first.

<instruction>
{{ instruction }}
</instruction>
{% if input %}

<input>
{{ input }}
</input>
{% endif %}

<response_a>
{{ first }}
</response_a>

<response_b>
{{ second }}
</response_b>

Which response is better? Answer with one word and nothing else: A, B or tie.
"""


class Question(NamedTuple):
    """One request: which comparison it is about, and which of its outputs it shows first."""

    number: int
    shown_first: int  # 1 | 2
    request: Request


def template(path: str = "") -> PromptTemplate:
    """The template of a file, the default one for ""; it shows the instruction and both responses.

    Raises:
      InputError: for a file that cannot be read or is no such template.
    """
    return PromptTemplate(path, TEMPLATE, FIELDS, ("instruction", "first", "second"))


def questions(
    comparisons: Sequence[Comparison],
    template: PromptTemplate,
    *,
    seed: int,
    both_orders: bool,
    max_tokens: int,
    temperature: float = 0.0,
) -> list[Question]:
    """What is to be asked, in the order of the comparisons; nothing of identical outputs.

    Raises:
      InputError: when the template shows no input though rows have one, or fails on a row.
    """
    rows = sum(bool(one.input.strip()) for one in comparisons)
    if rows and not template.shows("input"):
        raise InputError(
            f"the template shows no {{{{ input }}}}, and {rows} rows have one; add it"
        )
    asked = []
    for number, one in enumerate(comparisons):
        if one.output_1 == one.output_2:
            continue
        outputs = {1: one.output_1, 2: one.output_2}
        lesser = min(outputs, key=outputs.get)
        first = lesser if hashed("order", seed, one) < 0.5 else 3 - lesser
        for shown in (first, 3 - first)[: 1 + both_orders]:
            fields = {
                "instruction": one.instruction,
                "input": one.input,
                "first": outputs[shown],
                "second": outputs[3 - shown],
            }
            prompt = template.fill(fields).strip()
            request = Request(prompt, max_tokens=max_tokens, temperature=temperature)
            asked.append(Question(number, shown, request))
    return asked


def hashed(purpose: str, seed: int, one: Comparison) -> float:
    """In [0, 1), for one purpose: of the seed, the prompt and the two outputs in no order."""
    parts = [purpose, seed, *one.prompt, *sorted((one.output_1, one.output_2))]
    digest = hashlib.sha256(json.dumps(parts).encode()).digest()
    return int.from_bytes(digest[:7], "big") / 2**56


def by_model(
    comparisons: Sequence[Comparison],
    asked: Sequence[Question],
    replies: Iterable[Reply | Rejected],
    annotator: str,
) -> list[Comparison]:
    """The comparisons with the preferences that follow from the replies to ``asked``."""
    said: dict[int, list[Verdict]] = {number: [] for number in range(len(comparisons))}
    reasons: dict[int, str] = {}
    for question, reply in zip(asked, replies, strict=True):
        if isinstance(reply, Rejected):
            verdict, text, reason = None, "", f"no reply: {reply.reason}"
        elif reply.stop == REFUSAL:
            verdict, text, reason = None, reply.text, "the judge refused"
        elif reply.stop == LENGTH:
            verdict, text = verdicts.parse_line(reply.text), reply.text
            reason = "the judge's reply was cut; raise max_new_tokens"
        else:
            verdict, text = verdicts.parse(reply.text), reply.text
            reason = f"no verdict in {' '.join(text.split())[:80]!r}"
        said[question.number].append(Verdict(question.shown_first, verdict, text))
        if verdict is None:
            reasons[question.number] = reason
    return [
        dataclasses.replace(
            one,
            preference=preference(said[number]),
            verdicts=tuple(said[number]),
            reason=reasons.get(number, ""),
            annotator=annotator,
        )
        for number, one in enumerate(comparisons)
    ]


def preference(said: Sequence[Verdict]) -> float | None:
    """Of one order, or of both: a draw unless they agree; None if one of them is no verdict."""
    votes = {
        verdicts.FIRST: lambda shown: float(shown),
        verdicts.SECOND: lambda shown: float(3 - shown),
        verdicts.TIE: lambda shown: 1.5,
    }
    if any(one.said is None for one in said):
        return None
    found = {votes[one.said](one.shown_first) for one in said}
    return found.pop() if len(found) == 1 else 1.5


def by_function(comparisons: Sequence[Comparison], name: str) -> list[Comparison]:
    """The same by a function ``module:function``, called once for each side.

    It is given prompts and responses and returns a score for each, as a reward function does
    (``reward_function``); equal scores are a draw.
    """
    function = user_function.load(name)
    prompts = [plain_text(one.instruction, one.input) for one in comparisons]
    scores = [
        user_function.call(
            function,
            name,
            prompts,
            [getattr(one, f"output_{side}") for one in comparisons],
            finished=[getattr(one, f"finished_{side}") for one in comparisons],
        )
        for side in (2, 1)
    ]
    won = win_rate.outcomes(*scores)
    return [
        dataclasses.replace(one, preference=float(1 + outcome), annotator=name)
        for one, outcome in zip(comparisons, won, strict=True)
    ]


class Labels(NamedTuple):
    """Preferences to train on, as AlpacaFarm has them, and what became of the rows."""

    rows: list[dict]
    counts: Counter


def labels(judged: Sequence[Comparison], *, noise: float, draws: str, seed: int) -> Labels:
    """Rows of instruction, input, output_1, output_2, preference (1 or 2) and annotator.

    Args:
      noise: share of labels that are flipped, whichever a hash says (AlpacaFarm's simulated
        annotators flip a quarter, `p_label_flip` in alpaca_eval's pairwise_evaluator.py).
      draws: "drop", or "random": a hash decides.
    """
    rows, counts = [], Counter(dict.fromkeys(("unparsed", "draws", "flipped"), 0))
    for one in judged:
        better = one.preference
        if better is None:
            counts["unparsed"] += 1
            continue
        if better == 1.5:
            counts["draws"] += 1
            if draws == "drop" or one.output_1 == one.output_2:
                continue
            lesser = 1 if one.output_1 < one.output_2 else 2
            better = lesser if hashed("draw", seed, one) < 0.5 else 3 - lesser
        better = 1 if better < 1.5 else 2
        if hashed("noise", seed, one) < noise:
            counts["flipped"] += 1
            better = 3 - better
        row = {name: getattr(one, name) for name in ("instruction", "input")}
        row |= {"output_1": one.output_1, "output_2": one.output_2, "preference": better}
        rows.append(row | ({"annotator": one.annotator} if one.annotator else {}))
    return Labels(rows, counts)
