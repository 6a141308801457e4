"""Responses that repeat themselves, each other or their prompt: ways to collect rewards.

A judge and a language model's probability may both like such responses: repeated text is likely.
"""

from collections import Counter
from collections.abc import Sequence

from fgrlhf_jax.data.words import split_words

_WORDS = 4  # words of a sequence, without punctuation


def repeated(response: str) -> float:
    """Share of a response's sequences of four words that stood in it before; 0 without any."""
    sequences = _sequences(response)
    return 1 - len(set(sequences)) / len(sequences) if sequences else 0.0


def copied(response: str, prompt: str) -> float:
    """Share of a response's sequences of four words that stand in the prompt; 0 without any."""
    sequences, known = _sequences(response), set(_sequences(prompt))
    return sum(s in known for s in sequences) / len(sequences) if sequences else 0.0


def same_phrase(responses: Sequence[str], prompts: Sequence[str]) -> float:
    """Share of the responses that contain the same four words, the most frequent ones.

    A response's sequences that stand in its prompt do not count.
    """
    counts = Counter(
        sequence
        for response, prompt in zip(responses, prompts, strict=True)
        for sequence in {*_sequences(response)} - {*_sequences(prompt)}
    )
    return max(counts.values(), default=0) / len(responses)


def _sequences(text: str) -> list[tuple[str, ...]]:
    words = [word.casefold() for word in split_words(text) if word[0].isalnum()]
    return list(zip(*(words[start:] for start in range(_WORDS)), strict=False))
