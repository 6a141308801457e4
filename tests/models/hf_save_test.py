"""Exports: torch reads them and gets our numbers, and they are written whole or not at all."""

import functools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from hf_cases import CFG, MODULES, SHAPES, abstract, random_params, same, save, tokenizer
from safetensors import SafetensorError

from fgrlhf_jax.data.tokenizers import train_tokenizer
from fgrlhf_jax.errors import InputError
from fgrlhf_jax.models import heads, hf_load, hf_save


@pytest.fixture
def saved(tmp_path):
    return functools.partial(save, tmp_path / "model")


# --- Torch reads what we write ---


@pytest.mark.parity
@pytest.mark.parametrize("pad", ["none", "eos"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_torch_gives_our_rewards_in_padded_batches(tmp_path, side, pad):
    import torch
    import transformers

    words = train_tokenizer(["the cat sat on the mat"], 300)
    words.pad_token = words.eos_token if pad == "eos" else None
    texts = ["the cat sat on the mat", "a dog", "mat"]
    for architecture, auto in (
        (hf_save.TOKEN_REWARD, transformers.AutoModelForTokenClassification),
        (hf_save.SEQUENCE_REWARD, transformers.AutoModelForSequenceClassification),
    ):
        module, folder = MODULES[architecture], tmp_path / architecture
        params = random_params(module)
        hf_save.save(folder, params, CFG, words, architecture=architecture)
        theirs, info = auto.from_pretrained(folder, output_loading_info=True)
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]
        assert theirs.config.num_labels == 1

        their_tokenizer = transformers.AutoTokenizer.from_pretrained(folder, padding_side=side)
        assert theirs.config.pad_token_id == their_tokenizer.pad_token_id
        assert theirs.config.pad_token_id != theirs.config.eos_token_id
        ended = [text + words.eos_token for text in texts]
        batch = their_tokenizer(ended, padding=True, return_tensors="pt")
        with torch.no_grad():
            got = theirs.eval()(**batch).logits.numpy()
        tokens, mask = batch["input_ids"].numpy(), batch["attention_mask"].numpy() > 0
        assert not mask.all()
        last = mask.shape[1] - 1 - mask[:, ::-1].argmax(1)
        assert (tokens[np.arange(3), last] == words.eos_token_id).all()
        args = (jnp.asarray(tokens), *heads.positions_and_mask(jnp.asarray(mask)))
        ours = np.asarray(jax.jit(module.apply)({"params": params}, *args))
        if architecture == hf_save.TOKEN_REWARD:
            np.testing.assert_allclose(got[..., 0][mask], ours[mask], rtol=1e-4, atol=1e-5)
        else:
            ours = ours[np.arange(3), last]
            np.testing.assert_allclose(got[:, 0], ours, rtol=1e-4, atol=1e-5)
    assert words.pad_token == (words.eos_token if pad == "eos" else None)


@pytest.mark.parity
@pytest.mark.parametrize("shape", SHAPES)
def test_torch_gives_our_logits(saved, shape):
    import torch
    import transformers

    module = heads.CausalLM(SHAPES[shape])
    folder, params = saved(module=module, max_shard_bytes=20_000)
    auto = transformers.AutoModelForCausalLM
    theirs, info = auto.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    tokens = np.random.default_rng(0).integers(0, 300, (2, 40))
    args = (jnp.asarray(tokens), *heads.positions_and_mask(jnp.ones((2, 40), bool)))
    with torch.no_grad():
        want = theirs(torch.from_numpy(tokens)).logits.numpy()
    got = jax.jit(module.apply)({"params": params}, *args)
    np.testing.assert_allclose(got, want, atol=1e-4 * np.abs(want).max())


@pytest.mark.parity
def test_transformers_refuses_the_state_action_head(saved):
    import transformers

    folder, _ = saved(hf_save.STATE_ACTION)
    with pytest.raises(ValueError, match="fgrlhf_state_action_reward"):
        transformers.AutoModelForTokenClassification.from_pretrained(folder)
    assert "transformers has no class for it" in (folder / "README.md").read_text()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_weights_are_rounded_to_the_dtype_and_half_as_large(saved, dtype):
    folder, params = saved(dtype=dtype)
    file = folder / "model.safetensors"
    assert {str(tensor.dtype) for tensor in safetensors.numpy.load_file(file).values()} == {dtype}
    assert json.loads((folder / "config.json").read_text())["torch_dtype"] == dtype
    rounded = jax.tree.map(lambda x: x.astype(dtype).astype(jnp.float32), params)
    same(hf_load.load_params(folder, abstract(MODULES[hf_save.LANGUAGE_MODEL])), rounded)


# --- Whole or not at all ---


def test_numbers_beyond_the_dtype_leave_the_last_export(saved):
    folder, params = saved()
    before = (folder / "model.safetensors").read_bytes()
    params["lm_head"]["kernel"] = params["lm_head"]["kernel"].at[3, 3].set(1e6)
    options = {"architecture": hf_save.LANGUAGE_MODEL, "dtype": "float16"}
    with pytest.raises(InputError, match=r"export\.dtype=float16: lm_head\.weight has numbers"):
        hf_save.save(folder, params, CFG, tokenizer(), **options)
    assert (folder / "model.safetensors").read_bytes() == before
    assert [child.name for child in folder.parent.iterdir()] == ["model"]


FULL = "(No space left on device); free some space and run the same command again"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(28, ""), FULL),
        (SafetensorError("I/O error: Os { code: 28, kind: StorageFull, …"), FULL),
        (
            PermissionError(13, ""),
            "(Permission denied); correct this and run the same command again",
        ),
        (SafetensorError("something else"), "(something else); correct this"),
    ],
)
def test_what_cannot_be_written_leaves_the_last_export(saved, monkeypatch, error, message):
    folder, params = saved(hf_save.TOKEN_REWARD)

    def full(*_, **__):
        raise error

    monkeypatch.setattr(safetensors.numpy, "save_file", full)
    with pytest.raises(InputError, match=re.escape(f"the model cannot be written {message}")):
        saved(hf_save.TOKEN_REWARD)
    assert [child.name for child in folder.parent.iterdir()] == ["model"]
    same(hf_load.load_params(folder, abstract(MODULES[hf_save.TOKEN_REWARD])), params)


@pytest.mark.parametrize(
    ("kind", "missing"), [("state_action", "kernel"), ("action", "gate"), ("action", "unembed")]
)
def test_a_head_without_one_of_its_parts_is_not_written(tmp_path, kind, missing):
    module = heads.TokenValueModel(CFG, kind)
    params = random_params(module)
    del params["head"][missing]
    with pytest.raises(ValueError, match=r"FgrlhfStateActionRewardModel has \["):
        hf_save.save(tmp_path / "rm", params, CFG, tokenizer(), architecture=hf_save.STATE_ACTION)
    assert save(tmp_path / "rm", hf_save.STATE_ACTION, module)[0].is_dir()


def test_what_cannot_be_written_is_refused(tmp_path):
    """A folder within a file; parameters of another architecture."""
    (tmp_path / "file").write_text("")
    params = random_params(MODULES[hf_save.TOKEN_REWARD])
    export = functools.partial(hf_save.save, params=params, cfg=CFG, tokenizer=tokenizer())
    with pytest.raises(InputError, match="cannot be written"):
        export(tmp_path / "file" / "x", architecture=hf_save.TOKEN_REWARD)
    for architecture in (hf_save.LANGUAGE_MODEL, hf_save.SEQUENCE_REWARD, hf_save.STATE_ACTION):
        with pytest.raises(ValueError, match=architecture):
            export(tmp_path / "x", architecture=architecture)
    assert [child.name for child in tmp_path.iterdir()] == ["file"]
