"""Responses that repeat themselves or copy their prompt, a policy's ways to collect rewards.

A judge and a language model's probability may both like such responses: repeated text is likely.
"""

_WORDS = 4  # words of a sequence


def repeated(response: str) -> float:
    """Share of a response's sequences of four words that stood in it before; 0 without any."""
    sequences = _sequences(response)
    return 1 - len(set(sequences)) / len(sequences) if sequences else 0.0


def copied(response: str, prompt: str) -> float:
    """Share of a response's sequences of four words that stand in the prompt; 0 without any."""
    sequences, known = _sequences(response), set(_sequences(prompt))
    return sum(s in known for s in sequences) / len(sequences) if sequences else 0.0


def _sequences(text: str) -> list[tuple[str, ...]]:
    words = text.casefold().split()
    return list(zip(*(words[start:] for start in range(_WORDS)), strict=False))
