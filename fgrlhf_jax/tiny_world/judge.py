"""The embedded world's judge: an exact score of a response, and its exact reward of each word.

The judge aligns a response with the right answer so that the total weight of matched words is
maximal (content 10, template 1: a weighted longest common subsequence). The gold score is

    (weight of matched words - 3 per unmatched word - 10 per rude word - 10 if it does not end)
    / weight of the whole answer

so the best score is 1, an empty response scores 0, and a wrong word is worse than a missing one.
The score is a sum over words, which gives an exact reward of every word; a missing word earns 0.
In a list, a member of a kind counts once, at its first place between the name of its kind and the
name of the next; if the response does not name the kind, at its first place in the response.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

from rapidfuzz.distance import Levenshtein

from fgrlhf_jax.tiny_world.tasks import Slot, answer_slots, fill_slots
from fgrlhf_jax.tiny_world.words import FILLERS, KIND_OF, KINDS, RUDE

EXTRA, INSULT, UNFINISHED = 3, 10, 10  # penalties, in the unit of the slots' weights
END = "</s>"

_SCALE = 100  # so that the smallest weight outweighs all replacements of right words by wrong ones


class Step(NamedTuple):
    """A step of the edit script: word and slot (indices); None for a missing or extra word."""

    word: int | None
    slot: int | None
    right: bool


def align_words(answer: Sequence[Slot], words: Sequence[str]) -> list[Step]:
    """The edit script from a response's words to the right answer, both in order.

    It maximizes the weight of matched words. Ties: the script in which most wrong words replace a
    right word (content before template; rude words and fillers replace nothing), then the script
    that uses the earliest words.
    """
    targets = [f"<{slot.fact}>" if slot.is_open else slot.word for slot in answer]
    right = [slot.weight * _SCALE for slot in answer]
    wrong = [2 if slot.family else 1 for slot in answer]
    zero = [0] * len(answer)
    value = []  # value[j][i] of word j in slot i
    for word, name in zip(words, _name_kinds(targets, words), strict=True):
        partial = zero if word in RUDE or word in FILLERS else wrong
        columns = zip(targets, right, partial, strict=True)
        value.append([full if name == target else part for target, full, part in columns])

    n, m = len(answer), len(words)
    best = [[0] * (n + 1)]  # best[j][i] for words from j and slots from i; here j = m
    for row in reversed(value):
        next_row, this_row, top = best[-1], [0] * (n + 1), 0
        for i in range(n - 1, -1, -1):
            top = max(top, next_row[i], row[i] + next_row[i + 1])
            this_row[i] = top
        best.append(this_row)
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


def _name_kinds(targets: Sequence[str], words: Sequence[str]) -> list[str]:
    """The words, with ``<kind>`` for each word that counts as a member of a list's kind."""
    names = list(words)
    kinds = [kind for kind in KINDS if f"<{kind}>" in targets and kind in words]
    starts = sorted(map(words.index, kinds))
    for word in dict.fromkeys(words):
        kind = KIND_OF.get(word)
        if f"<{kind}>" not in targets:
            continue
        start, end = 0, len(words)
        if kind in words:
            start = words.index(kind)
            end = next((later for later in starts if later > start), end)
        if word in words[start:end]:
            names[words.index(word, start)] = f"<{kind}>"
    return names


def _points(prompt: str, words: Sequence[str], finished: bool) -> tuple[list[int], int]:
    """Points of every word, then of the end, and the total weight of the answer."""
    answer = answer_slots(prompt)
    points = [-INSULT if word in RUDE else -EXTRA for word in words]
    for step in align_words(answer, words):
        if step.right:
            points[step.word] = answer[step.slot].weight
    points.append(0 if finished else -UNFINISHED)
    return points, sum(slot.weight for slot in answer)


def gold_score(prompt: str, response: str, finished: bool = True) -> float:
    """The exact score of a response: at most 1, for a right answer; 0 for an empty response.

    Raises InputError, as all functions here, if the prompt is not of this world.
    """
    points, total = _points(prompt, response.split(), finished)
    return sum(points) / total


def word_rewards(prompt: str, words: Sequence[str], finished: bool = True) -> list[float]:
    """The gold score as one reward per word, followed by the reward of the end of the response."""
    points, total = _points(prompt, words, finished)
    return [point / total for point in points]


def words_to_change(prompt: str, response: str) -> int:
    """The number of words that an editor without mistakes would still change.

    This is the Levenshtein distance in words from the response to the right answer. For a list, the
    right answer keeps the response's right members and fills other slots with members it lacks.
    """
    words, answer = response.split(), answer_slots(prompt)
    for step in align_words(answer, words):
        if step.right and answer[step.slot].is_open:
            answer[step.slot] = Slot(words[step.word], "list", words[step.word])
    return Levenshtein.distance(words, [slot.word for slot in fill_slots(answer)])


def judge(
    prompts: Sequence[str], responses: Sequence[str], finished: Sequence[bool] | None = None
) -> list[float]:
    """The gold score of each response, as a reward function or judge for the commands.

    Without ``finished`` all responses count as complete.
    """
    finished = [True] * len(prompts) if finished is None else finished
    return [gold_score(*row) for row in zip(prompts, responses, finished, strict=True)]


def oracle_rewards(
    prompts: Sequence[str], responses: Sequence[str], tokens: Sequence[Sequence[str]]
) -> list[list[float]]:
    """The gold score of each response as one reward per token.

    A word's reward goes to the last token that overlaps the word, however tokens split words.
    Without "</s>" the last token also gets the penalty for the missing end. The judged text is that
    of the tokens, including control tokens.

    Args:
      tokens: texts of the sampled tokens, which concatenate to the response; the last is "</s>" if
        the response ended.
    """
    return [_token_rewards(p, t) for p, _, t in zip(prompts, responses, tokens, strict=True)]


def _token_rewards(prompt: str, tokens: Sequence[str]) -> list[float]:
    finished = bool(tokens) and tokens[-1] == END
    texts = tokens[:-1] if finished else tokens
    rewards = [0.0] * len(tokens)
    if not rewards:
        return rewards
    words = list(re.finditer(r"\S+", "".join(texts)))
    *parts, end = word_rewards(prompt, [word.group() for word in words], finished)
    rewards[-1] += end
    token, end_char = 0, len(texts[0]) if texts else 0  # number of characters up to the token's end
    for word, part in zip(words, parts, strict=True):
        while end_char < word.end():
            token += 1
            end_char += len(texts[token])
        rewards[token] += part
    return rewards
