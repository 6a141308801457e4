"""Loads config, tokenizer and parameters from Hugging Face folders, hub ids and GGUF files.

Tensors are read one by one into arrays that are already sharded, so the host never holds a whole
model. Torch is not needed; GGUF needs the extra ``gguf``.
"""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from fgrlhf_jax.data.tokenizers import import_transformers
from fgrlhf_jax.errors import InputError
from fgrlhf_jax.models import checksums, gguf, hf_fill, hf_names, lora, peft, quantize
from fgrlhf_jax.models.hf_files import read_json, read_tensors, resolve
from fgrlhf_jax.models.hf_names import STATE_ACTION_TYPE
from fgrlhf_jax.models.llama import LlamaConfig, RopeScaling
from fgrlhf_jax.runtime import sharding


def read_config(path: str | os.PathLike) -> LlamaConfig:
    """The model's shape, from config.json or a GGUF file's metadata; an adapter has its base's.

    A missing rope_theta is 10000, as in LLaMA's first folders, unless its writer always writes one.
    Raises InputError, naming the field, for another architecture, an unknown rotary scaling or
    activation, and missing or inconsistent fields.
    """
    path = peft.base_of(path)
    if path.suffix == ".gguf":
        return gguf.read_config(path)
    file = path / checksums.CONFIG
    config = read_json(file)
    kind = config.get("model_type")
    if kind not in ("llama", "mistral", STATE_ACTION_TYPE):
        raise InputError(f"{file}: model_type is {kind!r}; only LLaMA-like models can be read")
    if kind == "mistral" and config.get("sliding_window", 4096) is not None:
        raise InputError(f"{file}: sliding_window is not supported; use a LLaMA model")
    if config.get("hidden_act", "silu") != "silu":
        raise InputError(f"{file}: hidden_act is {config['hidden_act']!r}, not 'silu'")
    # transformers 5 writes rope_parameters; earlier versions rope_theta and rope_scaling.
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    with hf_names.as_input_error(file, "has a missing or malformed field"):
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind not in ("default", "llama3"):
            raise InputError(f"{file}: rotary scaling {kind!r} is not supported, only 'llama3'")
        if rope.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0)) != 1.0:
            raise InputError(f"{file}: partial_rotary_factor must be 1; use a LLaMA model")
        fields = hf_names.read_fields(config, hf_names.CONFIG_FIELDS)
        scaling = hf_names.read_fields(rope, hf_names.ROPE_FIELDS) if kind == "llama3" else {}
        if min(scaling.values(), default=1) <= 0:
            raise InputError(f"{file}: the numbers of rope_scaling must be above 0; correct them")
        heads, width = fields["num_heads"], fields["hidden_size"]
        is_written = "fgrlhf" in config or "rope_parameters" in config  # by us, by transformers 5
        theta = rope if rope.get("rope_theta") is not None else config
        return LlamaConfig(
            **fields,
            num_kv_heads=hf_names.read_number(config, "num_key_value_heads", int, heads),
            head_dim=hf_names.read_number(config, "head_dim", int, heads and width // heads),
            rope_theta=hf_names.read_number(
                theta, "rope_theta", float, None if is_written else 10000.0
            ),
            rope_scaling=RopeScaling(**scaling) if scaling else None,
        )


def check_language_model(path: str | os.PathLike) -> None:
    """Raises InputError for a reward model or another classifier."""
    names = re.findall(r"\w+", str(_read_part(path, checksums.CONFIG).get("architectures")))
    is_classifier = any(name.endswith(("Classification", "RewardModel")) for name in names)
    if is_classifier or peft.is_classifier(path):
        raise InputError(
            f"{path}: is a reward model ({', '.join(names)}), and a language model is expected "
            "here; give the one that it was trained from, or another"
        )


def encoding_settings(path: str) -> dict:
    """The encoding settings of a model trained by this project; {} for other models."""
    return _read_part(path, checksums.CONFIG).get("fgrlhf", {}).get("data", {})


def trained_template(path: str) -> str:
    """The prompt template of a model fine-tuned by this project; "" for other models."""
    return encoding_settings(path).get("template", "")


def resolve_template(path: str, tokenizer, template: str = "") -> str:
    """``template``, else that of fine-tuning, else chat if the tokenizer has one, else alpaca."""
    fallback = "chat" if getattr(tokenizer, "chat_template", None) else "alpaca"
    return template or trained_template(path) or fallback


def read_generation_config(path: str | os.PathLike) -> dict:
    """A model's generation_config.json; {} if it has none."""
    config = _read_part(path, "generation_config.json")
    return {name: value for name, value in config.items() if not name.startswith("_")}


def end_ids(
    path: str | os.PathLike, tokenizer, log: Callable[[str], None] = lambda line: None
) -> tuple[int, ...]:
    """The tokens that end a response: all EOS ids of generation_config.json, else of config.json.

    Without these, the tokenizer's EOS and, for a GGUF file, its end of turn. Added are those
    stop_strings of generation_config.json that are single tokens; ``log`` receives a line about
    others. Raises InputError for invalid token ids.
    """
    local = resolve(path)
    if local.suffix == ".gguf":
        return gguf.end_ids(local)
    generation = read_generation_config(path)
    stops = generation.get("stop_strings") or []
    texts = [str(text) for text in (stops if isinstance(stops, list) else [stops])]
    tokens = tokenizer.get_added_vocab() if texts else {}
    if unknown := ", ".join(repr(text) for text in texts if text not in tokens):
        log(
            f"{path}: stop_strings={unknown:.100} in generation_config.json are no tokens of their "
            "own, and end no response here: it may run on; cut it there"
        )
    for config in (generation, _read_part(path, checksums.CONFIG)):
        ids = config.get("eos_token_id")
        ids = [i for i in (ids if isinstance(ids, list) else [ids]) if i is not None]
        if invalid := [i for i in ids if type(i) is not int or i < 0]:
            raise InputError(f"{path}: eos_token_id={invalid[0]!r:.40} is no token id; correct it")
        if ids:
            break
    ids = [*(ids or [tokenizer.eos_token_id]), *(tokens[text] for text in texts if text in tokens)]
    return tuple(dict.fromkeys(ids))


def _read_part(path: str | os.PathLike, name: str) -> dict:
    """One of the JSON files of a folder, or else of its base; {} if there is none."""
    folder = resolve(path)
    file = checksums.config_file(folder) if name == checksums.CONFIG else folder / name
    if not file.is_file():
        file = peft.base_of(folder) / name
    return read_json(file) if file.is_file() else {}


def load_tokenizer(path: str | os.PathLike):
    """The fast tokenizer of a folder or a GGUF file, a ``PreTrainedTokenizerFast``.

    An adapter without a tokenizer has its base's. A missing pad token, or one equal to the EOS, is
    fine, because masks never come from token ids.

    Raises InputError if there is no tokenizer or it has no end-of-sequence token.
    """
    path = resolve(path)
    if checksums.is_adapter(path) and not _has_tokenizer(path):
        path = peft.base_of(path)
    import_transformers()
    tokenizer = gguf.load_tokenizer(path) if path.suffix == ".gguf" else _folder_tokenizer(path)
    with hf_names.as_input_error(path, "has no usable tokenizer"):
        tokenizer("a", verbose=False)  # settings of a wrong type raise here
    if tokenizer.eos_token_id is None:
        raise InputError(f"{path}: the tokenizer has no EOS token; set eos_token in its config")
    return tokenizer


def _has_tokenizer(folder: Path) -> bool:
    return any([*folder.glob("tokenizer.*"), *folder.glob("vocab.*")])


def _folder_tokenizer(folder: Path):
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    options, sentencepiece = _read_part(folder, "tokenizer_config.json"), folder / "tokenizer.model"
    if not _has_tokenizer(folder) and "auto_map" not in options:
        raise InputError(f"{folder}: has no tokenizer.json or tokenizer.model; put one there")
    if sentencepiece.is_file() and not (folder / "tokenizer.json").is_file():
        # Keep SentencePiece's own ids, and put LLaMA's BOS before a text.
        flags = {"legacy": True, "add_bos_token": options.get("add_bos_token", True)}
        with hf_names.as_input_error(sentencepiece, "is no SentencePiece model"):
            return PreTrainedTokenizerFast.from_pretrained(str(folder), **flags)
    # AutoTokenizer needs a known model type in config.json; a tokenizer's folder may have none.
    config = folder / checksums.CONFIG
    is_own = not config.exists() or read_json(config).get("model_type") == STATE_ACTION_TYPE
    kind = PreTrainedTokenizerFast if is_own else AutoTokenizer
    with hf_names.as_input_error(folder, "has no usable tokenizer"):
        try:
            return kind.from_pretrained(str(folder), trust_remote_code=False)
        except ValueError as error:
            if "auto_map" not in options:
                raise
            raise InputError(
                f"{folder}: its tokenizer is code of its own (auto_map in tokenizer_config.json), "
                "which is never run; remove auto_map and tokenizer_class if its tokenizer.json is "
                "enough, or give another model"
            ) from error


def load_params(path: str | os.PathLike, abstract: Any) -> Any:
    """Loads the parameters in ``abstract`` from a checkpoint, tensor by tensor.

    An adapter is added to the weights of its base.

    Args:
      path: folder, GGUF file or hub id.
      abstract: a tree of ``jax.ShapeDtypeStruct`` (or arrays) named like the parameters of llama.py
        and lora.py, or any part of it; each leaf's dtype and sharding are those of the result. A
        ``quantize.Quantized`` kernel is quantized layer by layer as it is read. ``head/unembed``
        comes from the LM head (or the tied embedding) if the checkpoint has no such tensor.

    Raises InputError for all missing, surplus and misshapen tensors in one message; for files that
    are truncated or differ from the checksums of an export; for NaN or infinite weights; for an
    adapter of another base.
    """
    stored, digests = _base_tensors(path), {}
    if peft.recorded_digest(path):
        stored = peft.digest_as_read(stored, digests)
    return _load(resolve(path), abstract, stored, digests, merged=True)


def load_base(path: str | os.PathLike, abstract: Any) -> tuple[Any, str]:
    """The base of a model and its digest, both from the same read of the files.

    ``abstract`` is as for :func:`load_params`, with the whole backbone and without an adapter.
    """
    digests: dict[str, str] = {}
    stored = peft.digest_as_read(_base_tensors(path), digests)
    params = _load(resolve(path), abstract, stored, digests, merged=False)
    return params, peft.base_digest(digests)


def _load(path: Path, abstract: Any, stored: dict, digests: dict[str, str], *, merged: bool) -> Any:
    """Fills ``abstract`` from ``stored``, the tensors of the base of ``path``, and its adapter."""
    stored = peft.add_adapter(path, stored, merged=merged)
    embedding = stored.get("model.embed_tokens.weight")
    if embedding and "lm_head.weight" not in stored and read_config(path).tie_embeddings:
        stored["lm_head.weight"] = embedding
    if "lm_head.weight" in stored:
        stored.setdefault("head.unembed", stored["lm_head.weight"])

    leaves, tree = jax.tree_util.tree_flatten_with_path(abstract, is_leaf=quantize.is_quantized)
    leaves = [(sharding.path_name(key_path), leaf) for key_path, leaf in leaves]
    hf_fill.check_fit(path, stored, leaves)
    invalid, arrays = [], []
    for param, leaf in leaves:
        array = None
        for number, name in enumerate(hf_names.stored_names(param, leaf.shape)):
            array, finite = hf_fill.place(array, number, stored[name], param, leaf)
            invalid += [] if finite else [name]
        arrays.append(array)
    if invalid:
        names = ", ".join(invalid)
        raise InputError(f"{path}: NaN or infinite numbers in {names}; use a sound copy")
    peft.check_base(path, digests)
    return jax.tree_util.tree_unflatten(tree, arrays)


def initial_adapter(path: str | os.PathLike, key: jax.Array, abstract: dict) -> dict:
    """The adapter that training starts from: that in ``path``, or a new one for whole weights."""
    if peft.read_lora(path) is None:
        return lora.init_adapter(key, abstract)
    return load_params(path, {"lora": abstract})["lora"]


def _base_tensors(path: str | os.PathLike) -> dict[str, hf_names.Stored]:
    """The tensors of the whole weights' files, read lazily."""
    base = peft.base_of(path)
    if base.suffix == ".gguf":
        return gguf.read_tensors(base)
    stored = read_tensors(base)
    if "embed_tokens.weight" in stored:  # a bare LlamaModel
        return {n if hf_fill.HEADS.match(n) else f"model.{n}": t for n, t in stored.items()}
    return stored


def base_digest(path: str | os.PathLike) -> str:
    """The digest that identifies a base, see :func:`peft.is_same_base`; an adapter has its base's.

    Adapters of this project record it; otherwise the weights are read. For a run in progress use
    :func:`load_base`, because its files may have been replaced since.
    """
    if recorded := peft.recorded_digest(path):
        return recorded
    stored, digests = _base_tensors(path), {}
    for name, tensor in peft.digest_as_read(stored, digests).items():
        if name.startswith(("model.", peft.LM_HEAD)) and not hf_fill.BUFFER.match(name):
            tensor.read()
    return peft.base_digest(digests)
