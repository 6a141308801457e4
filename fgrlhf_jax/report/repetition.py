"""Responses that repeat themselves, each other or their prompt: ways to collect rewards.

A judge and a language model's probability may both like such responses: repeated text is likely.
"""

from collections import Counter
from collections.abc import Sequence

_WORDS = 4  # words of a sequence


def repeated(response: str) -> float:
    """Share of a response's sequences of four words that stood in it before; 0 without any."""
    sequences = _sequences(response)
    return 1 - len(set(sequences)) / len(sequences) if sequences else 0.0


def copied(response: str, prompt: str) -> float:
    """Share of a response's sequences of four words that stand in the prompt; 0 without any."""
    sequences, known = _sequences(response), set(_sequences(prompt))
    return sum(s in known for s in sequences) / len(sequences) if sequences else 0.0


def same_opening(responses: Sequence[str]) -> float:
    """Share of the responses that begin with the same four words, the most frequent ones."""
    openings = Counter(" ".join(text.casefold().split()[:_WORDS]) for text in responses)
    return max(openings.values()) / len(responses)


def _sequences(text: str) -> list[tuple[str, ...]]:
    words = text.casefold().split()
    return list(zip(*(words[start:] for start in range(_WORDS)), strict=False))
