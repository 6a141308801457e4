"""Tokenizers: decoding, the text of each token, comparison, and training a small one."""

import importlib
import os
from collections.abc import Iterable, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, TypeAlias

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from fgrlhf_jax.errors import InputError

if TYPE_CHECKING:
    import transformers

Tokenizer: TypeAlias = "transformers.PreTrainedTokenizerFast"  # importing it takes seconds


def decode(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """Decodes ids to their exact text, with control tokens and unchanged blanks."""
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def token_texts(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    """The text of each token, with control tokens; concatenated, they are the decoded text.

    A character whose bytes are spread over several tokens belongs to the last of them; the others
    get an empty string.
    """
    ids = list(ids)
    # A cut is where the decoded prefix stops agreeing with the whole text: an incomplete character
    # decodes to U+FFFD.
    full, cuts = decode(tokenizer, ids), [0]
    for count in range(1, len(ids)):
        prefix, cut = decode(tokenizer, ids[:count]), cuts[-1]
        while cut < min(len(prefix), len(full)) and prefix[cut] == full[cut]:
            cut += 1
        cuts.append(cut)
    return [full[a:b] for a, b in zip(cuts, [*cuts[1:], len(full)], strict=True)][: len(ids)]


def check_same(policy: Tokenizer, reward: Tokenizer, model: str, reward_model: str) -> None:
    """Raises InputError if two tokenizers differ in vocabulary or EOS, with the differences.

    ``model`` and ``reward_model`` name their models in the message, such as ``policy=FOLDER``.
    """
    policy_ids, reward_ids = policy.get_vocab(), reward.get_vocab()
    differing = sorted(
        t for t in policy_ids.keys() | reward_ids.keys() if policy_ids.get(t) != reward_ids.get(t)
    )
    if differing:
        token = differing[0]
        difference = (
            f"{len(policy_ids)} against {len(reward_ids)} tokens, {len(differing)} of them "
            f"different, for example {token!r} is {policy_ids.get(token, 'missing')} and "
            f"{reward_ids.get(token, 'missing')}"
        )
    elif policy.eos_token_id != reward.eos_token_id:
        difference = f"the end of sequence is {policy.eos_token!r} and {reward.eos_token!r}"
    else:
        return
    raise InputError(
        f"{model} and {reward_model} have different tokenizers ({difference}); rewards belong to "
        "token ids, so train the reward model from this model's checkpoint"
    )


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Trains a byte-level BPE tokenizer of at most ``vocab_size`` tokens; deterministic.

    Ids 0, 1, 2 are <unk>, <s> (BOS, before every prompt) and </s> (EOS); there is no pad token, as
    in LLaMA. Every text decodes to itself after encoding.

    Raises InputError for a ``vocab_size`` that cannot hold the 256 bytes.
    """
    special = ["<unk>", "<s>", "</s>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    if vocab_size < (smallest := len(special) + len(alphabet)):
        reason = f"{vocab_size} is too small for a byte-level tokenizer; use at least {smallest}"
        raise InputError(f"vocab_size: {reason}")
    tokenizer = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return wrap_tokenizer(tokenizer)


def import_transformers() -> ModuleType:
    """Imports transformers without its advice to install torch; the import is slow.

    Only its tokenizers are used, never its models.
    """
    name = "TRANSFORMERS_NO_ADVISORY_WARNINGS"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        return importlib.import_module("transformers")
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before


def wrap_tokenizer(tokenizer: tokenizers.Tokenizer) -> Tokenizer:
    """Wraps a tokenizer for transformers; <s> begins a prompt and </s> ends a response."""
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
    )
    return import_transformers().PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        clean_up_tokenization_spaces=False,
    )
