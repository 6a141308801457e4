"""The texts of tokens add up to the decoded text, for any ids and both kinds of tokenizers."""

import numpy as np
import pytest
from layout_cases import sentencepiece
from transformers import PreTrainedTokenizerFast

from fgrlhf_jax.data.tokenizers import decode, token_texts, train_tokenizer

TEXTS = [
    "Emoji \N{SLIGHTLY SMILING FACE}\N{FAMILY}\u200d\N{WAVING HAND SIGN}\U0001f3fd end",
    "你好,世界。 日本語と한국어 mixed with English",
    "  leading spaces\n\n\ttabs and\r\nline ends: 1234.  ",
    "naïve café \u0301 \ufffd already there",
]


def byte_level() -> PreTrainedTokenizerFast:
    return train_tokenizer(TEXTS * 3, 330)


def byte_fallback() -> PreTrainedTokenizerFast:
    """As LLaMA-1 and 2: spaces become ▁, unknown characters bytes, decoding drops a space."""
    return sentencepiece(None)


def encode(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("make_tokenizer", [byte_level, byte_fallback])
def test_texts_add_up(make_tokenizer):
    """Sampled ids need not be text: bytes that never become a character, stray specials."""
    tokenizer, rng = make_tokenizer(), np.random.default_rng(0)
    ids = [[*encode(tokenizer, text), tokenizer.eos_token_id] for text in TEXTS]
    ids += [rng.integers(0, len(tokenizer), length % 12).tolist() for length in range(200)]
    for row in ids:
        texts = token_texts(tokenizer, row)
        assert (len(texts), "".join(texts)) == (len(row), decode(tokenizer, row))
    if make_tokenizer is byte_level:  # no text is lost
        assert ["".join(token_texts(tokenizer, row[:-1])) for row in ids[:4]] == TEXTS


def test_a_character_belongs_to_the_token_that_completes_it():
    tokenizer = train_tokenizer(["ab"], 259)  # bytes only
    assert token_texts(tokenizer, encode(tokenizer, "a😀b")) == ["a", "", "", "", "😀", "b"]
