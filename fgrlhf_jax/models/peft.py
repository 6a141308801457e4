"""Adapters in Hugging Face PEFT's format: a folder with ``adapter_config.json``, A, B and any head.

Every function accepts the path of any model: a model of whole weights is its own base.
"""

import functools
import hashlib
import operator
import os
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.models import checksums, hf_files
from fgrlhf_jax.models.checksums import ADAPTER, BASE_FIELD
from fgrlhf_jax.models.hf_names import HF_NAME, LINEAR, Stored, as_input_error
from fgrlhf_jax.models.lora import Lora

PREFIX = "base_model.model."  # of all tensor names in the file
# Unknown to peft on purpose: otherwise it would load the rest and give wrong rewards.
STATE_ACTION = "FGRLHF_STATE_ACTION_LORA"
LM_HEAD = "lm_head.weight"
_A = ".lora_A.weight"
_TASKS = {"ForCausalLM": "CAUSAL_LM", "ForSequenceClassification": "SEQ_CLS"}
_TASKS |= {"ForTokenClassification": "TOKEN_CLS"}
_MODULES = {name.rpartition(".")[2]: name for name in LINEAR.values()}
_HEADS = ("score", "classifier")  # peft lists both for every classifier
# Fields without effect on the product of A and B; all others must have neutral values.
_IGNORED = (
    "auto_mapping base_model_name_or_path corda_config ensure_weight_tying eva_config "
    "exclude_modules fan_in_fan_out inference_mode layers_pattern loftq_config lora_alpha "
    "lora_dropout lora_ga_config megatron_config megatron_core modules_to_save peft_type "
    "peft_version qalora_group_size r runtime_config target_modules task_type use_rslora "
    "velora_config"
)
_NEUTRAL = {
    "bias": (None, "none"),
    "revision": (None, "main"),
    "init_lora_weights": (None, True, False, "gaussian", "eva", "orthogonal"),
}


def base_of(path: str | os.PathLike) -> Path:
    """The local folder or GGUF file with a model's whole weights.

    Raises InputError for an unsupported kind of adapter, or one whose base cannot be found.
    """
    folder = hf_files.resolve(path)
    if not checksums.is_adapter(folder):
        return folder
    name = _base_name(folder)
    try:
        base = hf_files.resolve(name)
    except InputError as error:
        raise _without_base(folder, str(error)) from error
    if checksums.is_adapter(base):
        raise _unfit(folder, f"its base {base} is an adapter too")
    return base


def base_name(path: str | os.PathLike) -> str:
    """The portable name of a model's base: its hub id, or else its absolute path."""
    folder = hf_files.resolve(path)
    name = _base_name(folder) if checksums.is_adapter(folder) else str(path)
    return str(hf_files.resolve(name).absolute()) if os.path.exists(name) else name


def _base_name(folder: Path) -> str:
    """The base's name as peft reads it, or else relative to the adapter's folder."""
    name = _settings(folder)[BASE_FIELD]
    is_inside = name and not os.path.exists(name) and os.path.exists(folder / name)
    return str(folder / name) if is_inside else name


def read_lora(path: str | os.PathLike) -> Lora | None:
    """The settings of an adapter; None for a model with whole weights."""
    folder = hf_files.resolve(path)
    if not checksums.is_adapter(folder):
        return None
    config = _settings(folder)
    modules = {_module(name) for name in read_tensors(folder) if name.endswith(_A)}
    layers = [layer for layer, module in LINEAR.items() if module in modules]
    targets = "." if len(layers) == len(LINEAR) else f"^({'|'.join(layers)})$"
    return Lora(config["r"], config["lora_alpha"], targets, bool(config.get("use_rslora")))


def check_same(path: str | os.PathLike, lora: Lora) -> None:
    """Raises InputError if ``path`` is an adapter of other settings; ``base_dtype`` may differ."""
    if (saved := read_lora(path)) is None:
        return
    for name in ("rank", "alpha", "rslora", "targets"):
        value_of = _target_layers if name == "targets" else operator.attrgetter(name)
        if value_of(lora) != value_of(saved):
            raise InputError(
                f"lora.{name}={getattr(lora, name)}: the adapter in {path} has another; "
                f"go on with --config.lora.{name}='{getattr(saved, name)}', or give its base, "
                f"{base_name(path)}, for a new one"
            )


def _target_layers(lora: Lora) -> list[str]:
    return [name for name in LINEAR if re.search(lora.targets, name)]


def is_classifier(path: str | os.PathLike) -> bool:
    """Whether an adapter's config says that it belongs to a classifier."""
    folder = hf_files.resolve(path)
    task = _settings(folder).get("task_type") if checksums.is_adapter(folder) else None
    return task in ("SEQ_CLS", "TOKEN_CLS")


def has_head(path: str | os.PathLike, head: Iterable[str]) -> bool:
    """Whether an adapter has a reward model's head with these parameter names."""
    folder = hf_files.resolve(path)
    names = {HF_NAME[f"head/{name}"] for name in head}
    return checksums.is_adapter(folder) and names <= read_tensors(folder).keys()


def _unfit(folder: Path, reason: str) -> InputError:
    return InputError(
        f"{folder / ADAPTER}: {reason}, which is not supported; merge the adapter into its base "
        "with peft (merge_and_unload, save_pretrained) and give the merged folder"
    )


def _without_base(folder: Path, reason: str) -> InputError:
    return InputError(
        f"{folder}: the base of this adapter cannot be had ({reason}); write its folder or hub id "
        f"as {BASE_FIELD} into {ADAPTER}"
    )


def _settings(folder: Path) -> dict:
    """adapter_config.json; raises InputError for adapters that this project does not support."""
    config = hf_files.read_json(folder / ADAPTER)
    if config.get("peft_type") not in ("LORA", STATE_ACTION):
        raise _unfit(folder, f"peft_type is {config.get('peft_type')!r:.60}")
    for name, value in config.items():
        if name not in _IGNORED.split() and value not in _NEUTRAL.get(name, (None, False, {}, [])):
            raise _unfit(folder, f"{name} is {value!r:.60}")
    lists = {name: config.get(name) for name in ("target_modules", "modules_to_save")}
    targets, saved = (map(str, x if isinstance(x, list) else ()) for x in lists.values())
    unknown = {name for name in saved if name not in _HEADS}
    unknown |= {name for name in targets if name.rpartition(".")[2] not in _MODULES}
    if unknown:
        raise _unfit(folder, f"it adapts {', '.join(sorted(unknown))}")
    if not config.get(BASE_FIELD):
        raise _without_base(folder, "it names none")
    with as_input_error(folder / ADAPTER, "has a missing or malformed field"):
        rank, alpha = config["r"], float(config["lora_alpha"])
        if type(rank) is not int or rank < 1 or not isinstance(config[BASE_FIELD], str):
            raise ValueError(f"r={rank!r}, {BASE_FIELD}={config[BASE_FIELD]!r}")
    return config | {"lora_alpha": alpha}


def read_tensors(folder: Path) -> dict[str, Stored]:
    """An adapter's tensors, read lazily, by their names without the prefix.

    Raises InputError for tensors of modules that cannot have an adapter here.
    """
    tensors = {}
    for stored_name, tensor in hf_files.read_tensors(folder).items():
        name = stored_name.removeprefix(PREFIX)
        name = f"model.{name}" if name.startswith("layers.") else name  # of a bare LlamaModel
        if _module(name) not in _MODULES.values() and not re.match(r"(score|head)\.", name):
            raise _unfit(folder, f"it has {stored_name}")
        tensors[name] = tensor
    return tensors


def _module(name: str) -> str:
    """``self_attn.q_proj`` of ``model.layers.0.self_attn.q_proj.lora_A.weight``; "" of others."""
    match = re.fullmatch(r"model\.layers\.\d+\.(.+)\.lora_[AB]\.weight", name)
    return match[1] if match else ""


def add_adapter(folder: Path, base: dict[str, Stored], *, merged: bool) -> dict[str, Stored]:
    """The tensors of a base together with those of the adapter in ``folder``, if there is one.

    With ``merged`` kernels are W + scale B A, each computed as it is read. Raises InputError if the
    adapter does not fit the base.
    """
    if not checksums.is_adapter(folder):
        return base
    adapter, scale = read_tensors(folder), read_lora(folder).scale
    _check_fit(folder, adapter, base)
    stored = base | adapter
    for name in adapter if merged else ():
        if name.endswith(_A):
            kernel, b = (name.replace(_A, end) for end in (".weight", ".lora_B.weight"))
            read = functools.partial(_merge, base[kernel], adapter[name], adapter[b], scale)
            stored[kernel] = Stored(base[kernel].shape, read)
    return stored


def _merge(kernel: Stored, a: Stored, b: Stored, scale: float) -> np.ndarray:
    kernel_OI, a_RI, b_OR = (np.asarray(x.read(), np.float32) for x in (kernel, a, b))
    return kernel_OI + np.float32(scale) * (b_OR @ a_RI)


def _check_fit(folder: Path, adapter: dict[str, Stored], base: dict[str, Stored]) -> None:
    """Raises an InputError that names the first tensor that does not fit this base."""
    rank = _settings(folder)["r"]
    shapes = {}
    modules = dict.fromkeys(_module(name) for name in adapter if name.endswith(_A))
    for name, kernel in base.items():
        match = re.fullmatch(r"model\.layers\.\d+\.(.+)\.weight", name)
        if match and match[1] in modules:
            stem = name.removesuffix(".weight")
            shapes |= {f"{stem}{_A}": (rank, kernel.shape[1])}
            shapes |= {f"{stem}.lora_B.weight": (kernel.shape[0], rank)}
    stored = {name: tensor.shape for name, tensor in adapter.items() if _module(name)}
    for name in [*shapes, *stored]:
        if shapes.get(name) != stored.get(name):
            actual, expected = (
                f"is {list(x[name])}" if name in x else "is not there" for x in (stored, shapes)
            )
            raise InputError(
                f"{folder}: is an adapter of another base than {base_name(folder)}: {name} "
                f"{actual} where that of this base {expected}; write the right one as "
                f"{BASE_FIELD} into {ADAPTER}"
            )


def recorded_digest(path: str | os.PathLike) -> str:
    """The recorded digest of the base that an adapter was trained on; "" if there is none."""
    return str(recorded_base(path).get("digest", ""))


def recorded_base(path: str | os.PathLike) -> dict:
    """Recorded path, digest and dtype of the base that an adapter was trained on, if any."""
    folder = hf_files.resolve(path)
    file = checksums.config_file(folder)
    if not checksums.is_adapter(folder) or not file.is_file():
        return {}
    base = hf_files.read_json(file).get("fgrlhf", {}).get("base", {})
    return base if isinstance(base, dict) else {}


def digest_as_read(stored: dict[str, Stored], digests: dict[str, str]) -> dict[str, Stored]:
    """The same tensors; reading one stores its digest in ``digests``."""

    def read(name: str) -> np.ndarray:
        value = np.ascontiguousarray(stored[name].read())
        digests[name] = hashlib.sha256(value.view(np.uint8)).hexdigest()
        return value

    return {
        name: Stored(tensor.shape, functools.partial(read, name)) for name, tensor in stored.items()
    }


def base_digest(digests: dict[str, str]) -> str:
    """Digest of a backbone's tensors, in any files; then "+" and that of the LM head, if read."""
    lines = (f"{name} {digests[name]}\n" for name in sorted(digests) if name.startswith("model."))
    backbone = hashlib.sha256("".join(lines).encode()).hexdigest()
    return "+".join([backbone, *(digests[name] for name in [LM_HEAD] if name in digests)])


def is_same_base(digest: str, other: str) -> bool:
    """Whether two digests identify the same base; the head counts only if both include it."""
    return all(a == b for a, b in zip(digest.split("+"), other.split("+"), strict=False))


def check_base(folder: Path, digests: dict[str, str]) -> None:
    """Raises InputError if an adapter was trained on another base than the one just read.

    ``digests`` are those of the tensors read; without the backbone there is no check.
    """
    recorded = recorded_digest(folder)
    is_read = recorded and "model.norm.weight" in digests
    if is_read and not is_same_base(recorded, base_digest(digests)):
        raise InputError(
            f"{folder}: is an adapter of another base: the weights in {base_name(folder)} are not "
            f"those that it was trained on; write the right ones as {BASE_FIELD} into {ADAPTER}"
        )


def adapter_config(lora: Lora, names: list[str], architecture: str, base: str) -> dict:
    """The adapter_config.json of an export; omitted fields have peft's defaults.

    ``names`` are those of its tensors, without the prefix; ``architecture`` is transformers' class
    of the model, or one of ours; ``base`` see :func:`base_name`.
    """
    task = _TASKS.get(architecture.removeprefix("Llama"))
    modules = {_module(name).rpartition(".")[2] for name in names if name.endswith(_A)}
    alpha = int(lora.alpha) if float(lora.alpha).is_integer() else lora.alpha
    return {
        "peft_type": "LORA" if task else STATE_ACTION,
        "task_type": task,
        BASE_FIELD: base,
        "inference_mode": True,
        "r": lora.rank,
        "lora_alpha": alpha,
        "use_rslora": lora.rslora,
        "target_modules": sorted(modules),
        "modules_to_save": None if task == "CAUSAL_LM" else ["score"],
        "bias": "none",
    }
