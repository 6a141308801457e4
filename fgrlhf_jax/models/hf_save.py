"""Writes parameters to a Hugging Face or PEFT folder, with tokenizer and checksums."""

import contextlib
import copy
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from safetensors import SafetensorError

from fgrlhf_jax.data.templates import ENCODING
from fgrlhf_jax.errors import InputError
from fgrlhf_jax.models import checksums, hf_load, hf_names, hf_tensors, lora, peft
from fgrlhf_jax.models.cards import Origin, model_card
from fgrlhf_jax.models.chat_template import with_chat_template
from fgrlhf_jax.models.hf_names import STATE_ACTION_TYPE
from fgrlhf_jax.models.llama import LlamaConfig
from fgrlhf_jax.models.lora import Lora
from fgrlhf_jax.runtime.files import advice, system_error

LANGUAGE_MODEL = "LlamaForCausalLM"
TOKEN_REWARD = "LlamaForTokenClassification"
SEQUENCE_REWARD = "LlamaForSequenceClassification"
STATE_ACTION = "FgrlhfStateActionRewardModel"  # transformers has no class for it
NO_ORIGIN = Origin()
_CONTROL = ("bos", "eos", "pad")
# Label of the only output, which transformers' pipeline prints beside the "score" it computes.
LABEL = "reward (the logit; its softmax, the score here, is always 1)"


def save(
    folder: str | os.PathLike,
    params: Any,
    cfg: LlamaConfig,
    tokenizer: Any,
    *,
    architecture: str,
    extra: dict | None = None,
    dtype: str = "float32",
    origin: Origin = NO_ORIGIN,
    adapter: Lora | None = None,
    merged: bool = False,
    max_shard_bytes: int = 2 << 30,
) -> str:
    """Writes a Hugging Face folder, completely or not at all; an existing one is replaced.

    Args:
      params: ``{"backbone": ...}`` with the ``lm_head`` or ``head`` of the architecture, and "lora"
        if it has an adapter.
      architecture: LANGUAGE_MODEL, TOKEN_REWARD, SEQUENCE_REWARD (without bias, as in transformers)
        or STATE_ACTION, unknown to transformers.
      extra: goes into config.json under "fgrlhf", with the checksum of each file. Its "data" has
        the prompt template and how responses end.
      dtype: float32 | bfloat16 | float16, of the stored weights.
      origin: for the card; a language model keeps the generation_config.json of its base.
      adapter: the settings of "lora", whose base is that of ``origin``. The adapter is written in
        PEFT's format, with any head.
      merged: whether to add the adapter to the weights instead, each as it is written; quantized
        weights are written as they were computed with.

    Returns a sentence on what was written and what can load it.

    Raises:
      InputError: if the folder cannot be written or the disk is full; an existing folder stays.
      ValueError: if the parameters do not belong to the architecture.
    """
    folder, extra = Path(folder), {"encoding": ENCODING} | (extra or {})
    is_whole, base = adapter is None or merged, ""
    if not is_whole:
        params = lora.without_base(params)
        base = peft.base_name(origin.base)
        digest = origin.base_digest or hf_load.base_digest(origin.base)
        extra["base"] = {"path": base, "digest": digest, "dtype": adapter.base_dtype}
    tensors = hf_tensors.stored_tensors(params, is_whole)
    has_bias = _check_heads(tensors, cfg, architecture, is_whole)
    config, generation, tokenizer, response = _describe(
        cfg, tokenizer, architecture, extra, origin.base
    )
    config |= {"torch_dtype": dtype}
    if architecture != LANGUAGE_MODEL:  # otherwise adapters with token rewards would load without
        config |= {"token_classification_bias": has_bias}
    with _atomic_folder(folder) as temporary:
        options = {"scale": cfg.lora_scale, "dtype": jnp.dtype(dtype)}
        files = hf_tensors.write(temporary, tensors, max_shard_bytes, is_whole, **options)
        if jax.process_index() == 0:
            kind = architecture.removeprefix("LlamaFor")
            template = _data(config).get("template", "")
            usage = "" if base.endswith(".gguf") else response
            card = model_card(kind, template, usage, origin, dtype, adapter, merged)
            (temporary / "README.md").write_text(card, encoding="utf-8")
            tokenizer.save_pretrained(temporary)
            if architecture == LANGUAGE_MODEL:
                (temporary / "generation_config.json").write_text(json.dumps(generation, indent=2))
            if not is_whole:
                fields = peft.adapter_config(adapter, list(tensors), architecture, base)
                (temporary / checksums.ADAPTER).write_text(json.dumps(fields, indent=2))
            checksums.write_config(temporary, config)
            for file in files:  # the library makes them private, ignoring the umask
                shutil.copymode(temporary / "README.md", temporary / file)
    return _note(folder, architecture, config, bool(response), base)


def _check_heads(
    tensors: dict[str, tuple], cfg: LlamaConfig, architecture: str, is_whole: bool
) -> bool:
    """Whether the head has a bias; raises ValueError for heads of another architecture."""
    heads = {name for name in tensors if not name.startswith("model.")}
    bias = heads & {"score.bias"}
    # The gate is a matrix for heads that do not read the state after the action.
    gate = tensors.get("head.gate")
    state_head = set() if gate and gate[0].ndim == 2 else {"score.weight"}
    expected = {
        LANGUAGE_MODEL: {"lm_head.weight"} if is_whole and not cfg.tie_embeddings else set(),
        TOKEN_REWARD: {"score.weight"} | bias,
        SEQUENCE_REWARD: {"score.weight"},
        STATE_ACTION: {"head.gate", *state_head, *(["head.unembed"] if is_whole else [])} | bias,
    }[architecture]
    if heads != expected:
        raise ValueError(f"{architecture} has {sorted(expected)}, not {sorted(heads)}")
    return bool(bias)


@contextlib.contextmanager
def _atomic_folder(folder: Path) -> Iterator[Path]:
    """A new folder that replaces ``folder`` after the with-block has written all of it.

    Raises InputError if it cannot be written; an existing folder stays.
    """
    new, old = (folder.with_name(f".{folder.name}.{name}") for name in ("tmp", "old"))
    is_first = jax.process_index() == 0
    try:
        if is_first:
            shutil.rmtree(new, ignore_errors=True)
            new.mkdir(parents=True)
        yield new
        if is_first:
            shutil.rmtree(old, ignore_errors=True)
            if folder.exists():  # a folder that is not empty cannot be renamed over
                folder.rename(old)
            new.rename(folder)
            shutil.rmtree(old, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        cause = system_error(error)
        raise InputError(
            f"{folder}: the model cannot be written ({cause.strerror}); {advice(cause)}"
        ) from error
    finally:
        if is_first:
            shutil.rmtree(new, ignore_errors=True)


def _data(config: dict) -> dict:
    """The encoding settings of the training data."""
    return config["fgrlhf"].get("data", {})


def _describe(
    cfg: LlamaConfig, tokenizer, architecture: str, extra: dict, base: str
) -> tuple[dict, dict, Any, str]:
    """config.json, generation_config.json, the tokenizer, and the response in the card's usage."""
    if scaling := cfg.rope_scaling:
        scaling = {"rope_type": "llama3"} | hf_names.write_fields(scaling, hf_names.ROPE_FIELDS)
    config = hf_names.write_fields(cfg, hf_names.CONFIG_FIELDS) | {
        "architectures": [architecture],
        "model_type": STATE_ACTION_TYPE if architecture == STATE_ACTION else "llama",
        "num_key_value_heads": cfg.num_kv_heads,
        "head_dim": cfg.head_dim,
        "hidden_act": "silu",
        "rope_theta": cfg.rope_theta,
        "rope_scaling": scaling,
        "fgrlhf": extra,
    }
    tokenizer = _with_pad_token(tokenizer, cfg.vocab_size, architecture)
    ends, response, generation = set(), "", {}
    if template := _data(config).get("template", ""):
        append_eos = _data(config).get("append_eos", True)
        tokenizer, response, ends = with_chat_template(tokenizer, template, append_eos)
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in _CONTROL}
    if architecture == LANGUAGE_MODEL:
        ends = ends | {tokenizer.eos_token_id, *(hf_load.end_ids(base, tokenizer) if base else ())}
        ids["eos_token_id"] = sorted(ends) if len(ends) > 1 else tokenizer.eos_token_id
        generation = (hf_load.read_generation_config(base) if base else {}) | ids
    else:
        label = LABEL if architecture == TOKEN_REWARD else "reward"
        config |= {"id2label": {"0": label}, "label2id": {label: 0}}
        config |= {"problem_type": "regression", "classifier_dropout": 0.0}
    return config | ids, generation, tokenizer, response


def _with_pad_token(tokenizer, vocab_size: int, architecture: str):
    """A copy whose pad token has an embedding in the model; a reward model's may be None."""
    tokenizer = copy.deepcopy(tokenizer)
    if (tokenizer.pad_token_id or 0) >= vocab_size:
        tokenizer.pad_token = None
    if architecture == LANGUAGE_MODEL:
        # A new tokenizer saves only the settings in init_kwargs.
        tokenizer.init_kwargs["padding_side"] = tokenizer.padding_side = "left"
        if tokenizer.pad_token is None:
            unknown = tokenizer.unk_token_id
            is_embedded = unknown is not None and unknown < vocab_size
            tokenizer.pad_token = tokenizer.unk_token if is_embedded else tokenizer.eos_token
        return tokenizer
    # transformers scores the last token that is not the pad token, which must not be EOS.
    ends = {tokenizer.eos_token_id, tokenizer.bos_token_id, None}
    if tokenizer.pad_token_id in ends:
        special = [tokenizer.unk_token_id, *sorted(tokenizer.all_special_ids)]
        special += sorted(tokenizer.added_tokens_decoder)
        if unused := [i for i in special if i not in ends and i < vocab_size]:
            tokenizer.pad_token = tokenizer.convert_ids_to_tokens(unused[0])
    return tokenizer


def _note(folder: Path, architecture: str, config: dict, has_template: bool, base: str) -> str:
    library, auto = ("peft", "AutoPeftModel") if base else ("transformers", "AutoModel")
    folder = f"{folder}: adapter of {base}," if base else f"{folder}:"
    if architecture == STATE_ACTION:
        return (
            f"{folder} a reward model whose head reads state and action, in a form of our own; "
            f"{library} has no class for it and refuses to load it, so use fgrlhf_jax"
        )
    if base.endswith(".gguf"):
        return f"{folder} in peft's form, but peft does not read GGUF files, so use fgrlhf_jax"
    note = f"{folder} loads in {library} as {auto}{architecture.removeprefix('Llama')}"
    if config.get("fgrlhf", {}).get("settings", {}).get("loss") == "tlcr":
        note += "; its logits v give the rewards tanh(v / 2)"
    if "template" in _data(config) and not has_template:
        note += "; no chat template gives the ids of its prompts, so use fgrlhf_jax for them"
    if architecture == SEQUENCE_REWARD and config["pad_token_id"] is None:
        note += "; its tokenizer has no token to pad with, so give it one sequence at a time"
    return note
