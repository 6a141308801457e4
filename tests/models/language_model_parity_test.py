"""SmolLM2-135M-Instruct against transformers' own reading of the GGUF file: logits, generation."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_cases

from fgrlhf_jax.models import llama
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
OPTIONS = {"seed": 0, "streams": [(n, 0) for n in range(8)], "batch_size": 8}


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


@pytest.fixture(scope="module")
def our_logits(model):
    """float32[B, S, V] of padded rows; one program for all rows of one shape."""

    our_params = model.read_params()

    @jax.jit
    def logits_of(params, tokens_BS, mask_BS):
        positions_and_mask = llama.positions_and_mask(mask_BS)
        return model.module.apply({"params": params}, tokens_BS, *positions_and_mask)

    return lambda *rows: np.asarray(logits_of(our_params, *map(jnp.asarray, rows)))


def their_logits(theirs, ids) -> np.ndarray:
    import torch

    with torch.no_grad():
        return theirs(torch.tensor([list(ids)])).logits[0].numpy()


def test_logits_are_those_of_each_text_alone(model, prompts, theirs, our_logits):
    size = SIZES["smollm2_135m"]
    initializer_range = model.module.cfg.initializer_range
    assert model.module.cfg == dataclasses.replace(size, initializer_range=initializer_range)
    assert model.template == "chat"
    expected = [their_logits(theirs, ids) for ids in prompts]
    width = max(map(len, prompts)) + 3
    for side in ("left", "right"):
        tokens, mask = tiny_cases.laid_out(prompts, side, model.tokenizer.pad_token_id, width)
        logits = our_logits(tokens, mask)
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
    ours = model.generate_from_ids(prompts, SamplingParams(max_new_tokens=NEW), **OPTIONS)
    for prompt, ids, wanted in zip(prompts, ours.ids, expected, strict=True):
        differing = np.flatnonzero(np.array(ids) != wanted)
        if differing.size:
            first = differing[0]
            logits = their_logits(theirs, [*prompt, *wanted[:first]])[-1]
            best = np.argsort(-logits)[:2]
            print(f"token {first} after {prompt}: the two best {best} {logits[best]}")
            assert set(best) == {ids[first], wanted[first]}
            assert logits[best[0]] - logits[best[1]] < 1e-3


def test_log_probabilities_of_samples_are_those_of_a_full_pass(model, prompts, theirs, our_logits):
    params = SamplingParams(temperature=0.8, max_new_tokens=16)
    samples = model.generate_from_ids(prompts, params, **OPTIONS)
    rows = [prompt + ids for prompt, ids in zip(prompts, samples.ids, strict=True)]
    tokens, mask = tiny_cases.laid_out(rows, "right", 0, max(map(len, rows)))
    logits = our_logits(tokens, mask)
    for number, (row, prompt) in enumerate(zip(rows, prompts, strict=True)):
        columns = np.arange(len(prompt), len(row))
        for full in (logits[number], their_logits(theirs, row)):
            logprobs = jax.nn.log_softmax(full[columns - 1] / 0.8)
            expected = np.asarray(logprobs)[np.arange(16), np.array(row)[columns]]
            np.testing.assert_allclose(samples.logprobs[number], expected, atol=1e-4)
