"""The tiny world's judge: how good a response is, exactly, and what each of its words is worth.

A response is aligned with the right answer so that the matched words have the greatest weight
(content 10, template 1: a weighted longest common subsequence). Its gold score is

    (weight of what matched - 3 a word too many - 10 a rude word - 10 if it does not end)
    / weight of the whole answer

so 1 is the best, nothing said is 0, and a wrong word is worse than none. The score is a sum over
words, hence an exact reward of every word: what is missing is not earned, and that is all.
In a list a member of a kind counts once, where it first stands between the name of its kind and
the name of the next; where its kind is not named, where it first stands at all.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

from fgrlhf_jax.tiny_world.tasks import Slot, slots
from fgrlhf_jax.tiny_world.words import FILLERS, KIND_OF, KINDS, RUDE

EXTRA, INSULT, UNFINISHED = 3, 10, 10  # in the unit of the slots' weights
END = "</s>"

_SCALE = 100  # the least weight counts more than all wrong words that stand for right ones


class Step(NamedTuple):
    """One step from a response to the right answer; None is a missing word or one too many."""

    word: int | None
    slot: int | None
    right: bool


def align(answer: Sequence[Slot], words: Sequence[str]) -> list[Step]:
    """The script that leads from the words to the answer, both in order.

    What is right has the greatest weight there can be. Among such scripts it is the one where
    most wrong words stand for a right one (for content before template; rude words and fillers
    stand for nothing), and among these the one that uses the earliest words.
    """
    wanted = [f"<{slot.fact}>" if slot.is_open else slot.word for slot in answer]
    right = [slot.weight * _SCALE for slot in answer]
    wrong = [2 if slot.family else 1 for slot in answer]
    nothing = [0] * len(answer)
    value = []  # of each word in each slot
    for word, name in zip(words, _names(wanted, words), strict=True):
        instead = nothing if word in RUDE or word in FILLERS else wrong
        value.append(
            [r if name == w else s for w, r, s in zip(wanted, right, instead, strict=True)]
        )

    n, m = len(answer), len(words)
    best = [[0] * (n + 1)]  # of the words from j on in the slots from i on; here j = m
    for row in reversed(value):
        below, here, top = best[-1], [0] * (n + 1), 0
        for i in range(n - 1, -1, -1):
            top = max(top, below[i], row[i] + below[i + 1])
            here[i] = top
        best.append(here)
    best.reverse()

    script, i, j = [], 0, 0
    while i < n or j < m:
        pair = value[j][i] if i < n and j < m else 0
        if pair and best[j][i] == pair + best[j + 1][i + 1]:
            script.append(Step(j, i, pair == right[i]))
            i, j = i + 1, j + 1
        elif i < n and best[j][i] == best[j][i + 1]:
            script.append(Step(None, i, False))
            i += 1
        else:
            script.append(Step(j, None, False))
            j += 1
    return script


def _names(wanted: Sequence[str], words: Sequence[str]) -> list[str]:
    """The words, but `<kind>` where a member of a kind that a list asks for counts."""
    names = list(words)
    starts = sorted(
        {words.index(word) for word in KINDS if f"<{word}>" in wanted and word in words}
    )
    for word in dict.fromkeys(words):
        kind = KIND_OF.get(word)
        if f"<{kind}>" not in wanted:
            continue
        start, end = 0, len(words)
        if kind in words:
            start = words.index(kind)
            end = next((other for other in starts if other > start), end)
        if word in words[start:end]:
            names[words.index(word, start)] = f"<{kind}>"
    return names


def _points(prompt: str, words: Sequence[str], finished: bool) -> tuple[list[int], int]:
    """Of every word and of the end, and the weight of the whole answer."""
    answer = slots(prompt)
    points = [-INSULT if word in RUDE else -EXTRA for word in words]
    for step in align(answer, words):
        if step.right:
            points[step.word] = answer[step.slot].weight
    points.append(0 if finished else -UNFINISHED)
    return points, sum(slot.weight for slot in answer)


def gold(prompt: str, response: str, finished: bool = True) -> float:
    """How good the response is: at most 1, which a right answer has; 0 if it says nothing.

    Raises InputError if the prompt is not of this world; so do all functions here.
    """
    points, total = _points(prompt, response.split(), finished)
    return sum(points) / total


def credits(prompt: str, words: Sequence[str], finished: bool = True) -> list[float]:
    """Every word's part of the gold score, and last the part of the end, present or not."""
    points, total = _points(prompt, words, finished)
    return [point / total for point in points]


def judge(
    prompts: Sequence[str], responses: Sequence[str], finished: Sequence[bool] | None = None
) -> list[float]:
    """The gold score of each response: a reward function or a judge for the commands.

    finished: for each response whether it ended by itself; None: all did.
    """
    finished = [True] * len(prompts) if finished is None else finished
    return [gold(*row) for row in zip(prompts, responses, finished, strict=True)]


def oracle_rewards(
    prompts: Sequence[str], responses: Sequence[str], tokens: Sequence[Sequence[str]]
) -> list[list[float]]:
    """The gold score of each response as a reward of each of its tokens.

    tokens: the texts of the sampled tokens, which make up the response when strung together;
    the last is "</s>" where the response ended. Tokens may split words as they like: the last
    one that touches a word has the word's part. Without "</s>" the last token also bears the
    missing end. What is judged is the text of the tokens, a control token sampled within it too.
    """
    return [_token_rewards(p, t) for p, _, t in zip(prompts, responses, tokens, strict=True)]


def _token_rewards(prompt: str, tokens: Sequence[str]) -> list[float]:
    finished = bool(tokens) and tokens[-1] == END
    texts = tokens[:-1] if finished else tokens
    rewards = [0.0] * len(tokens)
    if not rewards:
        return rewards
    words = list(re.finditer(r"\S+", "".join(texts)))
    *parts, end = credits(prompt, [word.group() for word in words], finished)
    rewards[-1] += end
    token, reached = 0, len(texts[0]) if texts else 0  # characters up to the token's end
    for word, part in zip(words, parts, strict=True):
        while reached < word.end():
            token += 1
            reached += len(texts[token])
        rewards[token] += part
    return rewards
