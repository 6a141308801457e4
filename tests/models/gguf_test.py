"""GGUF files: small ones written here, and the tokenizer of SmolLM2-135M-Instruct."""

import dataclasses
import functools
import json

import hf_cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import tiny_cases

from fgrlhf_jax.data.tokenizers import train_tokenizer
from fgrlhf_jax.errors import InputError
from fgrlhf_jax.models import heads, hf_load, hf_save
from fgrlhf_jax.models.llama import LlamaConfig, RopeScaling

pytestmark = pytest.mark.parity

CFG = LlamaConfig(300, 32, 64, 2, 4, 2, 8, norm_eps=1e-6, rope_theta=5e5, max_position=64)
SHAPES = {
    "tied": dataclasses.replace(CFG, tie_embeddings=True),
    "biases": dataclasses.replace(CFG, attention_bias=True, mlp_bias=True),
}


def abstract(cfg):
    return hf_cases.abstract(heads.CausalLM(cfg))


@pytest.fixture(scope="module")
def tokenizer():
    tokenizer = train_tokenizer(["the cat sat on the mat", "a dog ate 12 cats"], 300)
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    return tokenizer


def write_gguf(file, cfg, tensors, tokenizer, *, arch="llama", types=(), fields=(), extra=()):
    """What llama.cpp's converter makes of a folder's tensors, by its own table of names."""
    import gguf

    writer = gguf.GGUFWriter(file, arch)
    writer.add_context_length(cfg.max_position)
    writer.add_embedding_length(cfg.hidden_size)
    writer.add_block_count(cfg.num_layers)
    writer.add_feed_forward_length(cfg.intermediate_size)
    writer.add_head_count(cfg.num_heads)
    writer.add_head_count_kv(cfg.num_kv_heads)
    writer.add_layer_norm_rms_eps(cfg.norm_eps)
    writer.add_rope_freq_base(cfg.rope_theta)
    tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    bpe = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if i < 3 else 1 for i in range(len(tokens))])
    writer.add_token_merges([" ".join(merge) for merge in bpe["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(True)
    writer.add_chat_template(tokenizer.chat_template)
    for add, *values in fields:
        getattr(writer, add)(*values)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, cfg.num_layers)
    for name, value in tensors.items():
        for part, number in (("q_proj", cfg.num_heads), ("k_proj", cfg.num_kv_heads)):
            if part in name:  # as LlamaModel.permute there
                split = (number, 2, value.shape[0] // number // 2, *value.shape[1:])
                value = value.reshape(split).swapaxes(1, 2).reshape(value.shape)
        kind = gguf.GGMLQuantizationType[dict(types).get(name, "F32")]
        stored = gguf.quants.quantize(value, kind)
        name = names.get_name(name, try_suffixes=(".weight", ".bias"))
        writer.add_tensor(name, stored, raw_dtype=kind)
    for name, value in extra:
        writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def written(tmp_path, tokenizer):
    """Writes random weights as a folder and as a GGUF file; returns both and the weights."""

    def write(cfg=CFG, **options):
        rng = np.random.default_rng(0)
        params = jax.tree.map(
            lambda x: jnp.asarray(rng.standard_normal(x.shape), jnp.float32), abstract(cfg)
        )
        folder, file = tmp_path / "folder", tmp_path / "model.gguf"
        hf_save.save(folder, params, cfg, tokenizer, architecture=hf_save.LANGUAGE_MODEL)
        tensors = safetensors.numpy.load_file(folder / "model.safetensors")
        write_gguf(file, cfg, tensors, tokenizer, **options)
        return file, params, tensors

    return write


@pytest.mark.parametrize("shape", SHAPES)
def test_a_gguf_file_is_the_folder_it_was_made_of(written, shape, tokenizer):
    cfg = SHAPES[shape]
    file, params, _ = written(cfg)
    assert hf_load.read_config(file) == cfg
    hf_cases.same(hf_load.load_params(file, abstract(cfg)), params)
    theirs = hf_load.load_tokenizer(file)
    for text in ("the cat sat", "  two  spaces\n", "é 123</s>"):
        assert theirs.encode(text) == tokenizer.encode(text)
        assert theirs.decode(theirs.encode(text)) == tokenizer.decode(tokenizer.encode(text))
    assert theirs.chat_template == tokenizer.chat_template
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (1, 2, None)


def test_an_adapter_of_a_gguf_file(written, tmp_path, tokenizer):
    """Which peft cannot load; the digest of its base is that of the folder it was made of."""
    file, params, _ = written()
    folder, adapter = hf_cases.save_adapter(tmp_path / "adapter", file, module=heads.CausalLM(CFG))
    assert hf_load.read_config(folder) == CFG
    assert hf_load.base_digest(folder) == hf_load.base_digest(tmp_path / "folder")
    merged = tiny_cases.merged(params | adapter, hf_cases.ADAPTER.scale)
    loaded = hf_load.load_params(folder, abstract(CFG))
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=2e-6), loaded, merged)
    assert 'LanguageModel.load("export")' in (folder / "README.md").read_text()


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_1"])
def test_quantized_tensors(written, kind):
    import gguf

    name = "model.layers.1.mlp.down_proj.weight"
    file, params, tensors = written(types={name: kind}.items())
    kind = gguf.GGMLQuantizationType[kind]
    want = gguf.quants.dequantize(gguf.quants.quantize(tensors[name], kind), kind)
    read = hf_load.load_params(file, abstract(CFG))
    got, exact = (each["backbone"]["layers"]["mlp"]["down"]["kernel"] for each in (read, params))
    np.testing.assert_array_equal(got[1].T, want)
    assert np.abs(got - exact).max() > 0


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama3_frequencies(written, factor):
    scaled = dataclasses.replace(CFG, rope_scaling=RopeScaling(factor=factor))
    # llama.cpp's converter, a frequency at a time
    divisors = []
    for frequency in 5e5 ** -(np.arange(0, 8, 2) / 8):
        wavelength = 2 * np.pi / frequency
        if wavelength < 8192 / 4:
            divisors.append(1)
        elif wavelength > 8192:
            divisors.append(factor)
        else:
            smooth = (8192 / wavelength - 1) / (4 - 1)
            divisors.append(1 / ((1 - smooth) / factor + smooth))
    file, _, _ = written(extra=[("rope_freqs.weight", np.array(divisors, np.float32))])
    assert hf_load.read_config(file) == scaled
    hf_load.load_params(file, abstract(CFG))
    file, _, _ = written(extra=[("rope_freqs.weight", np.array([1, 2, 3, factor], np.float32))])
    with pytest.raises(InputError, match="rotary scaling is not Llama 3's"):
        hf_load.read_config(file)


def test_a_sentencepiece_vocabulary(written):
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "▁", *"abcd"]
    pieces += ["bc", "▁a", "ab", "▁abc"]  # best first, as SentencePiece has them
    pieces += ["<own>"]  # of the user's: whole wherever it stands, and no control token
    types = [2, 3, 3] + [6] * 256 + [1] * 8 + [1, 4]
    fields = [
        ("add_tokenizer_model", "llama"),
        ("add_token_list", pieces),
        ("add_token_types", types),
        ("add_token_scores", [-float(i) for i in range(len(pieces))]),
        ("add_eot_token_id", 7),
    ]
    file, _, _ = written(fields=fields)
    tokenizer = hf_load.load_tokenizer(file)
    assert hf_load.end_ids(file, tokenizer) == (2, 7)
    # bc is merged before ab, ▁a before ▁abc; é falls back to its two bytes
    for text, want in (
        ("abc", ["<s>", "▁abc"]),
        ("d ab", ["<s>", "▁", "d", "▁a", "b"]),
        ("dab", ["<s>", "▁", "d", "ab"]),
        ("d<own>", ["<s>", "▁", "d", "<own>"]),
        ("é", ["<s>", "▁", "<0xC3>", "<0xA9>"]),
    ):
        assert tokenizer.convert_ids_to_tokens(tokenizer.encode(text)) == want
        assert tokenizer.decode(tokenizer.encode(text), skip_special_tokens=True) == text
    file, _, _ = written(fields=[*fields, ("add_add_space_prefix", False)])
    with pytest.raises(InputError, match="no blank in front"):
        hf_load.load_tokenizer(file)


@pytest.mark.parametrize(
    ("read", "field", "message"),
    [
        (hf_load.read_config, ("add_string", "llama.rope.scaling.type", "yarn"), "'yarn'"),
        (hf_load.read_config, ("add_expert_count", 4), "experts"),
        (hf_load.read_config, ("add_rope_dimension_count", 4), "rope.dimension_count is 4 where h"),
        (hf_load.read_config, ("add_value_length", 4), "value_length is 4 where heads are 8 wide"),
        (hf_load.load_tokenizer, ("add_tokenizer_model", "rwkv"), r"\(.*rwkv.*\) is unknown"),
        (hf_load.load_tokenizer, ("add_tokenizer_pre", "rwkv"), r"\(.*rwkv.*\) is unknown"),
    ],
)
def test_what_cannot_be_read_is_refused(written, read, field, message):
    file, _, _ = written(fields=[field])
    with pytest.raises(InputError, match=message):
        read(file)
    file, _, _ = written(arch="gemma")
    with pytest.raises(InputError, match="architecture is 'gemma'"):
        hf_load.read_config(file)


def test_damaged_files(written):
    file, _, _ = written()
    whole = file.read_bytes()
    load = functools.partial(hf_load.load_params, file, abstract(CFG))
    damaged = [whole[:n] for n in (0, 3, 40, 2000, len(whole) // 2, len(whole) - 400)]
    for at in (0, 5, 24):  # magic, version, length of the first key
        damaged.append(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    for content in damaged:
        file.write_bytes(content)
        with pytest.raises(InputError, match="is no GGUF file, damaged or cut short"):
            load()
    file.write_bytes(whole)
    load()


# --- SmolLM2-135M-Instruct ---


def test_smollm2_tokenizer(smollm2):
    tokenizer = hf_load.load_tokenizer(smollm2)
    assert len(tokenizer) == 49152
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|im_start|>", "<|im_end|>")
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 2
    assert tokenizer.tokenize("in 2024") == ["in", "Ġ", "2", "0", "2", "4"]
    chat = [{"role": "user", "content": "Hi"}]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert ids.count(tokenizer.eos_token_id) == 2
    end = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(ids).endswith(end)
