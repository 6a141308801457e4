"""Judges decide which of two responses is better: a language model, or a Python function.

    comparisons -> requests (each pair in a random order, or in both) -> replies -> verdicts
                -> preferences -> labels to train on, optionally with noise

The order in which a model is shown two responses is a hash of the seed, the prompt and both texts,
not of which one is the reference's. So a repeated run, and one with swapped sides, send the same
requests. Identical responses are a draw without a request, as in alpaca_eval.
"""

import functools
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

from fgrlhf_jax.data import records
from fgrlhf_jax.errors import InputError
from fgrlhf_jax.feedback.judges import verdicts
from fgrlhf_jax.feedback.judges.alpaca_eval import Comparison, Verdict, prompt_key
from fgrlhf_jax.feedback.llm.answers import one_field
from fgrlhf_jax.feedback.llm.client import LENGTH, REFUSAL, Rejected, Reply, Request
from fgrlhf_jax.feedback.llm.template import PromptTemplate, choose_unused
from fgrlhf_jax.functional import win_rate
from fgrlhf_jax.runtime import user_function

FIELDS = ("instruction", "input", "first", "second", "reply_form")
LABELS = ("A", "B", "tie")


class Question(NamedTuple):
    """A request about one comparison, the output it shows first, and the form of its reply."""

    number: int  # of the comparison, from 0
    shown_first: int  # 1 | 2
    request: Request
    marker: str | None  # as for verdicts.parse


def load_template(path: str = "") -> PromptTemplate:
    """Loads a file that shows the instruction and both responses; "" is the default template."""
    default = Path(__file__).with_name("assets").joinpath("judge.jinja").read_text(encoding="utf-8")
    return PromptTemplate(path, default, FIELDS, ("instruction", "first", "second"))


def build_questions(
    comparisons: Sequence[Comparison],
    template: PromptTemplate,
    *,
    seed: int,
    both_orders: bool,
    max_tokens: int,
    temperature: float = 0.0,
    labels: Sequence[str] = LABELS,
    as_json: bool = False,
) -> list[Question]:
    """Returns the requests in the order of the comparisons; none for identical outputs.

    Args:
      labels: names of the verdicts for the first response, the second, and a draw.
      as_json: whether the server enforces a schema. If not, and the template shows no
        ``reply_form`` (it asks for a label and nothing else), the label is the whole reply.
    """
    with_input = sum(bool(row.input.strip()) for row in comparisons)
    if with_input and not template.shows("input"):
        raise InputError(
            f"the template shows no {{{{ input }}}}, and {with_input} rows have one; add it"
        )
    marked = template.shows("reply_form")
    questions, schema = [], one_field("verdict", enum=list(labels)) if as_json else None
    for number, comparison in enumerate(comparisons):
        if comparison.output_1 == comparison.output_2:
            continue
        outputs = {1: comparison.output_1, 2: comparison.output_2}
        first = _lesser_or_other(comparison, "order", seed)
        for shown in (first, 3 - first)[: 1 + both_orders]:
            texts = [*records.shown_prompt(comparison), outputs[shown], outputs[3 - shown]]
            marker = None if as_json else choose_unused("VERDICT{}:", "-", texts) if marked else ""
            texts.append(verdicts.describe(labels, marker))
            prompt = template.fill(dict(zip(FIELDS, texts, strict=True))).strip()
            request = Request(prompt, max_tokens=max_tokens, temperature=temperature, schema=schema)
            questions.append(Question(number, shown, request, marker))
    return questions


def _hash_of_pair(comparison: Comparison, purpose: str, seed: int) -> float:
    """Hashes a purpose, a seed, the prompt and the unordered outputs to a number in [0, 1)."""
    outputs = sorted((comparison.output_1, comparison.output_2))
    parts = [purpose, seed, prompt_key(comparison), *outputs]
    digest = hashlib.sha256(json.dumps(parts).encode()).digest()
    return int.from_bytes(digest[:7], "big") / 2**56


def _lesser_or_other(comparison: Comparison, purpose: str, seed: int) -> int:
    """Chooses output 1 or 2 by a hash: the same text if the sides are swapped."""
    lesser = 1 if comparison.output_1 < comparison.output_2 else 2
    return lesser if _hash_of_pair(comparison, purpose, seed) < 0.5 else 3 - lesser


def judge_by_replies(
    comparisons: Sequence[Comparison],
    questions: Sequence[Question],
    replies: Iterable[Reply | Rejected],
    annotator: str,
    labels: Sequence[str] = LABELS,
) -> list[Comparison]:
    """Returns the comparisons with the preferences in the replies to ``questions``."""
    judged = [replace(row, verdicts=(), annotator=annotator) for row in comparisons]
    for question, reply in zip(questions, replies, strict=True):
        row, choice, text = judged[question.number], None, getattr(reply, "text", "")
        if isinstance(reply, Rejected):
            reason = f"no reply: {reply.reason}"
        elif reply.stop == REFUSAL:
            reason = "the judge refused"
        elif reply.stop == LENGTH:
            reason = "the judge's reply was cut; raise max_new_tokens"
        else:
            choice = verdicts.parse(text, labels, question.marker)
            form = "the last line" if question.marker else "the whole reply"
            reason = row.reason if choice else f"{form} is not in the requested form"
        read = *row.verdicts, Verdict(question.shown_first, choice, text)
        judged[question.number] = replace(row, verdicts=read, reason=reason)
    return [replace(row, preference=combine_verdicts(row.verdicts)) for row in judged]


def combine_verdicts(of_row: Sequence[Verdict]) -> float | None:
    """Returns the preference of all verdicts: a draw if they differ, None if one has no choice."""
    if any(verdict.choice is None for verdict in of_row):
        return None
    preferences = set()
    for shown_first, choice, _ in of_row:
        chosen = shown_first if choice == verdicts.FIRST else 3 - shown_first
        preferences.add(1.5 if choice == verdicts.TIE else float(chosen))
    return preferences.pop() if len(preferences) == 1 else 1.5


def judge_by_function(comparisons: Sequence[Comparison], name: str) -> list[Comparison]:
    """Returns the comparisons with the preferences of a function, called once for each side.

    ``module:function`` scores responses as a reward function does; equal scores are a draw.
    """
    score = functools.partial(user_function.score_responses, user_function.load(name), name)
    prompts = [records.prompt_text(row) for row in comparisons]
    model = [row.output_2 for row in comparisons], [row.finished_2 for row in comparisons]
    other = [row.output_1 for row in comparisons], [row.finished_1 for row in comparisons]
    scores = [score(prompts, texts, finished=ended) for texts, ended in (model, other)]
    return [
        replace(row, preference=float(1 + outcome), annotator=name)
        for row, outcome in zip(comparisons, win_rate.outcomes(*scores), strict=True)
    ]


def make_labels(
    comparisons: Sequence[Comparison], *, noise: float, draws: str, seed: int
) -> tuple[list[dict], Counter]:
    """Returns preferences as AlpacaFarm's rows, and the numbers of unparsed, draws and flipped.

    Args:
      noise: share of labels that are flipped, chosen by a hash (AlpacaFarm's simulated annotators
        flip a quarter, `p_label_flip` in alpaca_eval's pairwise_evaluator.py).
      draws: "drop", or "random": a hash decides.
    """
    rows, counts = [], Counter(dict.fromkeys(("unparsed", "draws", "flipped"), 0))
    for comparison in comparisons:
        preference = comparison.preference
        if preference is None:
            counts["unparsed"] += 1
            continue
        if preference == 1.5:
            counts["draws"] += 1
            if draws == "drop" or comparison.output_1 == comparison.output_2:
                continue
            preference = _lesser_or_other(comparison, "draw", seed)
        better = 1 if preference < 1.5 else 2
        if _hash_of_pair(comparison, "noise", seed) < noise:
            counts["flipped"] += 1
            better = 3 - better
        fields = asdict(comparison)
        prompt = ("messages",) if comparison.messages else ("instruction", "input")
        names = *prompt, "output_1", "output_2", *(["annotator"] if comparison.annotator else [])
        row = {name: fields[name] for name in names} | {"preference": better}
        rows.append(row | records.unfinished_fields(comparison))
    return rows, counts
