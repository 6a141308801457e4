"""What SmolLM2-135M-Instruct says, against transformers' own generation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_cases

from fgrlhf_jax.models import hf_load, llama, sampling
from fgrlhf_jax.runtime import sharding

pytestmark = pytest.mark.parity

TEXTS = (
    "Paris",
    "The capital of France is",
    "def add(a, b):\n    return",
    "Once upon a time, in a village by the sea, there lived an old man who",
    "Q: What is 2 + 2?\nA:",
    "Water boils at 100 degrees Celsius. At the top of a high mountain, however, it boils at",
    "Dear Sir or Madam,\n\nI am writing to complain about",
    "The three primary colours are red,",
)
NEW = 64


def test_smollm2_says_what_transformers_says(smollm2):
    """Greedy, token for token, 64 tokens after each of 8 prompts of different lengths.

    Where the two most likely tokens are within 1e-3 of each other, rounding decides; from there on
    the two texts are of different prompts.
    """
    import torch
    import transformers

    tokenizer = hf_load.load_tokenizer(smollm2)
    rows = [tokenizer.encode(text) for text in TEXTS]
    width = max(map(len, rows))
    assert len({len(row) for row in rows}) > 6
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        smollm2.parent, gguf_file=smollm2.name, dtype=torch.float32
    ).eval()
    theirs.generation_config.eos_token_id = None  # to the last token, whatever is said
    left, mask = tiny_cases.laid_out(rows, "left", tokenizer.pad_token_id, width)
    with torch.no_grad():
        expected = theirs.generate(
            torch.tensor(left),
            attention_mask=torch.tensor(mask).long(),
            max_new_tokens=NEW,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id,
        )[:, width:].numpy()
    assert expected.shape == (8, NEW)

    cfg = hf_load.read_config(smollm2)
    model = llama.CausalLM(cfg)
    mesh = sharding.make_mesh("1,-1,1")
    params = hf_load.load_params(smollm2, llama.abstract_params(model, mesh))
    keys = sampling.row_keys(jax.random.key(0), 8)
    options = {"model": model, "eos": -1, "max_new": NEW}
    for side in ("left", "right"):
        tokens, mask = tiny_cases.laid_out(rows, side, tokenizer.pad_token_id, width)
        prompt = tokens.astype(np.int32), mask
        out = sampling.generate(params, *prompt, keys, temperature=0.0, **options)
        said = np.asarray(out.tokens_BT)
        for row, ours, wanted in zip(rows, said, expected, strict=True):
            differing = np.flatnonzero(ours != wanted)
            if not differing.size:
                continue
            at = differing[0]
            with torch.no_grad():
                logits = theirs(torch.tensor([[*row, *wanted[:at]]])).logits[0, -1]
            best = logits.topk(2)
            print(f"{side}, token {at} after {row}: the two best {best}")
            assert set(best.indices.tolist()) == {int(ours[at]), int(wanted[at])}
            assert float(best.values[0] - best.values[1]) < 1e-3

    out = sampling.generate(params, *prompt, keys, temperature=0.8, unroll=False, **options)
    for row, said, logprobs in zip(rows, out.tokens_BT, out.logprob_BT, strict=True):
        whole = [*row, *np.asarray(said).tolist()]
        padded = np.zeros((1, width + NEW), np.int32)
        padded[0, : len(whole)] = whole
        found = full_logprobs(params, jnp.asarray(padded), model)[len(row) - 1 : len(whole) - 1]
        picked = np.asarray(found)[np.arange(NEW), whole[len(row) :]]
        np.testing.assert_allclose(logprobs, picked, atol=1e-4)
        with torch.no_grad():
            logits = theirs(torch.tensor([whole])).logits[0, len(row) - 1 : -1] / 0.8
        picked = torch.log_softmax(logits, -1)[torch.arange(NEW), whole[len(row) :]]
        np.testing.assert_allclose(logprobs, picked.numpy(), atol=1e-4)


@jax.jit(static_argnums=2)
def full_logprobs(params, tokens_1S, model):
    where = llama.positions_and_mask(jnp.ones_like(tokens_1S, bool))
    return jax.nn.log_softmax(model.apply({"params": params}, tokens_1S, *where)[0] / 0.8)
