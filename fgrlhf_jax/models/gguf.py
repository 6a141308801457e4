"""GGUF, llama.cpp's format: config, tokenizer and (often quantized) weights in one file.

Read with the ``gguf`` package (the extra of that name), without torch.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.models.hf_names import TENSOR_NAMES, Stored, as_input_error
from fgrlhf_jax.models.llama import LlamaConfig, RopeScaling, inverse_frequencies

_LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# GGUF's name of a byte-level vocabulary: how it splits text before merging.
_PRE_TOKENIZERS = {
    "default": [pre_tokenizers.ByteLevel(False)],
    "smollm": [pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(False)],
    "llama-bpe": [
        pre_tokenizers.Split(Regex(_LLAMA3_SPLIT), "isolated"),
        pre_tokenizers.ByteLevel(False, use_regex=False),
    ],
}
_CONTROL, _USER_DEFINED = 3, 4  # token types matched whole in text; control tokens are special


def read_config(file: Path) -> LlamaConfig:
    """The model's shape; raises InputError for another architecture or malformed metadata."""
    reader = _reader(file)
    kind = _field(reader, "general.architecture")
    if kind != "llama":
        raise InputError(f"{file}: architecture is {kind!r}; only LLaMA-like models can be read")
    scaling = _field(reader, "llama.rope.scaling.type", "none")
    if scaling != "none" or _field(reader, "llama.expert_count", 0):
        raise InputError(f"{file}: rotary scaling of type {scaling!r} or experts not supported")
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    with as_input_error(file, "has a missing or malformed field"):
        heads = _field(reader, "llama.attention.head_count")
        width = _field(reader, "llama.embedding_length")
        head_dim = _field(reader, "llama.attention.key_length", width // heads)
        for name in ("rope.dimension_count", "attention.value_length"):
            if (value := _field(reader, f"llama.{name}", head_dim)) != head_dim:
                reason = f"llama.{name} is {value} where heads are {head_dim} wide"
                raise InputError(f"{file}: {reason}; only LLaMA-like models can be read")
        cfg = LlamaConfig(
            vocab_size=int(tensors["token_embd.weight"].shape[1]),
            hidden_size=width,
            intermediate_size=_field(reader, "llama.feed_forward_length"),
            num_layers=_field(reader, "llama.block_count"),
            num_heads=heads,
            num_kv_heads=_field(reader, "llama.attention.head_count_kv", heads),
            head_dim=head_dim,
            rope_theta=_field(reader, "llama.rope.freq_base", 10000.0),
            norm_eps=round(_field(reader, "llama.attention.layer_norm_rms_epsilon"), 12),
            max_position=_field(reader, "llama.context_length"),
            tie_embeddings="output.weight" not in tensors,
            attention_bias="blk.0.attn_q.bias" in tensors,
            mlp_bias="blk.0.ffn_up.bias" in tensors,
        )
    if "rope_freqs.weight" not in tensors:
        return cfg
    # GGUF stores divisors of the frequencies, not the scaling; Llama 3.1's and 3.2's are known.
    divisor = np.asarray(tensors["rope_freqs.weight"].data, np.float32).reshape(-1)
    scaled = dataclasses.replace(cfg, rope_scaling=RopeScaling(factor=float(divisor.max())))
    expected = np.asarray(inverse_frequencies(cfg) / inverse_frequencies(scaled))
    if expected.shape != divisor.shape or not np.allclose(expected, divisor, rtol=1e-3):
        raise InputError(f"{file}: its rotary scaling is not Llama 3's; give a folder instead")
    return scaled


def read_tensors(file: Path) -> dict[str, Stored]:
    """All tensors, lazily read, by their Hugging Face names and in Hugging Face's layout."""
    cfg = read_config(file)
    names = {}
    for param, gguf_name, name in TENSOR_NAMES:
        heads = {"q": cfg.num_heads, "k": cfg.num_kv_heads}.get(param.split("/")[-2], 0)
        names |= {name.format(i): (gguf_name.format(i), heads) for i in range(cfg.num_layers)}
    stored = {}
    for tensor in _reader(file).tensors:
        name, heads = names.get(tensor.name, (tensor.name, 0))
        shape = tuple(int(size) for size in tensor.shape[::-1])
        stored[name] = Stored(shape, functools.partial(_read_tensor, tensor, shape, heads))
    stored.pop("rope_freqs.weight", None)
    return stored


def load_tokenizer(file: Path):
    """The tokenizer: byte-level BPE, or the SentencePiece of LLaMA-1/2, with its chat template.

    Raises InputError for any other kind.
    """
    from transformers import LlamaTokenizer, PreTrainedTokenizerFast

    field = functools.partial(_field, _reader(file))
    kind, pre = field("tokenizer.ggml.model"), field("tokenizer.ggml.pre", "default")
    if kind == "llama":
        pre = "blank" if field("tokenizer.ggml.add_space_prefix", True) else "no blank in front"
    if pre not in {"gpt2": _PRE_TOKENIZERS, "llama": ("blank",)}.get(kind, ()):
        raise InputError(f"{file}: its tokenizer ({kind}, {pre}) is unknown; give a folder instead")
    with as_input_error(file, "has no usable tokenizer"):
        tokens = field("tokenizer.ggml.tokens")
        vocabulary = {token: i for i, token in enumerate(tokens)}
        options = {
            "add_bos_token": bool(field("tokenizer.ggml.add_bos_token", kind == "llama")),
            "model_max_length": field("llama.context_length"),
            "chat_template": field("tokenizer.chat_template"),
            "clean_up_tokenization_spaces": False,
        }
        for role, name in {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}.items():
            index = field(f"tokenizer.ggml.{name}_token_id")
            options[f"{role}_token"] = None if index is None else tokens[index]
        if kind == "gpt2":
            merges = [tuple(merge.split(" ")) for merge in field("tokenizer.ggml.merges")]
            model = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
            model.pre_tokenizer = pre_tokenizers.Sequence(_PRE_TOKENIZERS[pre])
            model.decoder = decoders.ByteLevel()
            tokenizer = PreTrainedTokenizerFast(tokenizer_object=model, **options)
        else:
            merges = _merges(vocabulary, field("tokenizer.ggml.scores"))
            tokenizer = LlamaTokenizer(vocab=vocabulary, merges=merges, **options)
        types = field("tokenizer.ggml.token_type", [])
        by_type = {
            kind: [token for token, i in zip(tokens, types, strict=False) if i == kind]
            for kind in (_CONTROL, _USER_DEFINED)
        }
        tokenizer.add_special_tokens({"additional_special_tokens": by_type[_CONTROL]})
        tokenizer.add_tokens([AddedToken(t, normalized=False) for t in by_type[_USER_DEFINED]])
    return tokenizer


def end_ids(file: Path) -> tuple[int, ...]:
    """The tokens that end a response."""
    names = (f"tokenizer.ggml.{name}_token_id" for name in ("eos", "eot"))
    ids = (_field(_reader(file), name) for name in names)
    return tuple({int(i): None for i in ids if i is not None})


def _merges(vocabulary: dict[str, int], scores: list[float]) -> list[tuple[str, str]]:
    """Merges from SentencePiece's scores: two tokens merge if their concatenation is a token."""
    return [
        (token[:cut], token[cut:])
        for token in sorted(vocabulary, key=lambda token: -scores[vocabulary[token]])
        for cut in range(1, len(token))
        if token[:cut] in vocabulary and token[cut:] in vocabulary
    ]


def _read_tensor(tensor, shape: tuple[int, ...], heads: int) -> np.ndarray:
    import gguf

    value = np.array(gguf.quants.dequantize(tensor.data, tensor.tensor_type), np.float32)
    if heads:
        # llama.cpp stores both members of a rotary pair side by side, Hugging Face H/2 apart.
        value = value.reshape(heads, -1, 2, *shape[1:]).swapaxes(1, 2)
    return value.reshape(shape)


def _field(reader, name: str, default: Any = None) -> Any:
    field = reader.fields.get(name)
    return default if field is None else field.contents()


def _reader(file: Path):
    stat = file.stat()
    return _parse(file, stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=1)  # parsing the vocabulary takes seconds, and three functions need it
def _parse(file: Path, size: int, modified: int):
    try:
        import gguf
    except ImportError as error:
        raise InputError(f"{file}: to read it, pip install 'fgrlhf_jax[gguf]'") from error
    with as_input_error(file, "is no GGUF file, damaged or cut short"):
        return gguf.GGUFReader(file)
