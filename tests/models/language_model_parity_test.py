"""SmolLM2-135M-Instruct against transformers' own reading of the GGUF file: logits, generation."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_cases

from fgrlhf_jax.models import heads
from fgrlhf_jax.models.language_model import LanguageModel, SamplingParams
from fgrlhf_jax.models.sizes import SIZES

pytestmark = pytest.mark.parity

TEXTS = (
    "Paris",
    "The capital of France is",
    "def add(a, b):\n    return",
    "Once upon a time, in a village by the sea, there lived an old man who",
    "Q: What is 2 + 2?\nA:",
    "Water boils at 100 degrees Celsius. At the top of a high mountain, however, it boils at",
    "Dear Sir or Madam,\n\nI am writing to complain about",
    "The capital of France is Paris, and the capital of Italy is",
)
NEW = 64


@pytest.fixture(scope="module")
def model(smollm2) -> LanguageModel:
    """On one device; samples to the last token, whatever is drawn."""
    with pytest.MonkeyPatch.context() as patch:
        tiny_cases.one_device(patch)
        return dataclasses.replace(LanguageModel.load(smollm2, lazy=True), end_ids=())


@pytest.fixture(scope="module")
def prompts(model) -> list[list[int]]:
    return [model.tokenizer.encode(text) for text in TEXTS]


@pytest.fixture(scope="module")
def theirs(smollm2):
    import torch
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(
        smollm2.parent, gguf_file=smollm2.name, dtype=torch.float32
    ).eval()


def their_logits(theirs, ids) -> np.ndarray:
    import torch

    with torch.no_grad():
        return theirs(torch.tensor([list(ids)])).logits[0].numpy()


def test_logits_are_those_of_each_text_alone(model, prompts, theirs):
    size = SIZES["smollm2_135m"]
    initializer_range = model.module.cfg.initializer_range
    assert model.module.cfg == dataclasses.replace(size, initializer_range=initializer_range)
    assert model.template == "chat"
    expected = [their_logits(theirs, ids) for ids in prompts]
    apply, params = jax.jit(model.module.apply), model.read_params()
    width = max(map(len, prompts)) + 3
    for side in ("left", "right"):
        tokens, mask = tiny_cases.laid_out(prompts, side, model.tokenizer.pad_token_id, width)
        args = tokens, *heads.positions_and_mask(jnp.asarray(mask))
        logits = apply({"params": params}, *args)
        for row, real, want in zip(logits, mask, expected, strict=True):
            np.testing.assert_allclose(row[real], want, rtol=0, atol=2e-3)
    assert model.tokenizer.decode(expected[-1][-1].argmax()) == " Rome"


def test_greedy_generation_is_transformers(model, prompts, theirs):
    """Token for token, 64 tokens after each of 8 prompts of different lengths.

    Where the two most likely tokens are within 1e-3 of each other, rounding decides; from there on
    the two texts are of different prompts.
    """
    import torch

    width = max(map(len, prompts))
    assert len({len(ids) for ids in prompts}) > 6
    theirs.generation_config.eos_token_id = None  # to the last token, whatever is drawn
    left, mask = tiny_cases.laid_out(prompts, "left", model.tokenizer.pad_token_id, width)
    with torch.no_grad():
        expected = theirs.generate(
            torch.tensor(left),
            attention_mask=torch.tensor(mask).long(),
            max_new_tokens=NEW,
            do_sample=False,
            pad_token_id=model.tokenizer.pad_token_id,
        )[:, width:].numpy()
    assert expected.shape == (8, NEW)
    options = {"seed": 0, "streams": [(n, 0) for n in range(8)], "batch_size": 8}
    ours = model.generate_from_ids(prompts, SamplingParams(max_new_tokens=NEW), **options)
    for prompt, ids, wanted in zip(prompts, ours.ids, expected, strict=True):
        differing = np.flatnonzero(np.array(ids) != wanted)
        if differing.size:
            first = differing[0]
            logits = their_logits(theirs, [*prompt, *wanted[:first]])[-1]
            best = np.argsort(-logits)[:2]
            print(f"token {first} after {prompt}: the two best {best} {logits[best]}")
            assert set(best) == {ids[first], wanted[first]}
            assert logits[best[0]] - logits[best[1]] < 1e-3
