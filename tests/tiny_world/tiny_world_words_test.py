"""The vocabulary covers all answers, and the tokenizer restores every text."""

import random

import pytest
from transformers import AutoTokenizer

from fgrlhf_jax.data.records import Instruction
from fgrlhf_jax.data.templates import encode_prompt, encode_text
from fgrlhf_jax.tiny_world import words
from fgrlhf_jax.tiny_world.tasks import MAX_PROMPT, draw_prompts

WORDS = words.vocabulary()


@pytest.fixture(scope="module")
def tokenizer():
    return words.make_tokenizer()


def test_vocabulary():
    assert 180 <= len(WORDS) == len(set(WORDS)) <= 220
    assert all(word == word.lower() and word.split() == [word] for word in WORDS)
    assert not {*words.RUDE} & {*words.FILLERS}
    # Each thing has one kind, and no answer contains a rude word or a filler.
    assert len(words.KIND_OF) == sum(map(len, words.KINDS.values()))
    for family, facts in words.FACTS.items():
        assert not {*facts.values()} & {*words.RUDE, *words.FILLERS}, family


def test_texts_are_restored_with_one_token_per_word(tokenizer):
    rng = random.Random(0)
    for _ in range(200):
        text = " ".join(rng.choices(WORDS, k=rng.randint(0, 20)))
        ids = encode_text(tokenizer, text)
        assert tokenizer.decode(ids) == "".join(tokenizer.decode([i]) for i in ids) == text
        offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        parts = [text[start:end] for start, end in offsets["offset_mapping"]]
        assert "".join(parts) == text
        assert [part.strip() for part in parts] == text.split()
    ids = tokenizer.convert_tokens_to_ids([" is", "hot", "\n", " ,", "is"])  # as may be sampled
    assert 0 not in ids
    assert tokenizer.decode(ids) == " ishot\n ,is"


def test_prompts(tokenizer):
    for prompt in draw_prompts("test", 350, 0):
        ids, cut = encode_prompt(tokenizer, "plain", Instruction(prompt, "", ""))
        assert (ids[0], 0 in ids, cut) == (tokenizer.bos_token_id, False, False)
        assert tokenizer.decode(ids[1:]) == f"{prompt}\n"
        assert len(ids) <= MAX_PROMPT + 2  # BOS and the newline


def test_other_words_are_unknown_and_spell_no_control_token(tokenizer):
    for text in ("</s>", "hot </s>", "<s> cold", "<unk>", "hot</s>", "giraffe", "hot  cold"):
        ids = encode_text(tokenizer, text)
        assert 0 in ids
        assert not {1, 2} & set(ids), text


def test_the_tokenizer_is_reproducible_and_survives_saving(tokenizer, tmp_path):
    assert len(tokenizer) == 4 + 2 * len(WORDS) < 400
    assert words.make_tokenizer().backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    for each in (tokenizer, loaded):
        assert (each.unk_token_id, each.bos_token_id, each.eos_token_id) == (0, 1, 2)
        assert each.pad_token is None
    assert loaded.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()
