"""Loads reward models: their modules, the meaning of their rewards, and their weights.

The path of a reward model may name several models:

    A,B,C                           an ensemble, whose rewards are the pessimistic mean
    POLICY:REFERENCE[:WEIGHT]       log pi(a_t | s_t) - WEIGHT log pi_ref(a_t | s_t); 1 without
"""

import dataclasses
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fgrlhf_jax.data import templates
from fgrlhf_jax.data.alignment import METHODS
from fgrlhf_jax.data.tokenizers import check_same
from fgrlhf_jax.errors import InputError
from fgrlhf_jax.functional.reward_losses import LOSSES
from fgrlhf_jax.models import checksums, heads, hf_files, hf_load, llama
from fgrlhf_jax.reward_model.combined import Ensemble, LogRatio, RewardModule
from fgrlhf_jax.reward_model.model import Normalization, level_of

# Fields of the training that an export must have, with a check of each value.
_CHECKS: dict[str, Callable[[Any], bool]] = {
    "head": lambda value: value in heads.HEADS,
    "loss": lambda value: value in LOSSES,
    "template": lambda value: value in templates.TEMPLATES,
    "alignment": lambda value: value in METHODS,
    "overlong": lambda value: value in ("truncate", "drop"),
    "append_eos": lambda value: isinstance(value, bool),
    "max_length": lambda value: type(value) is int,
    "max_prompt_length": lambda value: type(value) is int and value > 0,
    "mean": lambda value: isinstance(value, int | float) and -1e30 < value < 1e30,
    "std": lambda value: isinstance(value, int | float) and 1e-30 < value < 1e30,
}


@dataclasses.dataclass(frozen=True)
class RewardMeta:
    """The meaning of a reward model's rewards; stored as ``fgrlhf`` in its ``config.json``."""

    head: str  # one of heads.HEADS
    settings: dict  # the training loss and the weights of its terms
    normalization: Normalization  # scales its rewards to about one unit per response
    data: dict  # the arguments of encode_pairs in training

    @property
    def level(self) -> str:
        """The level of the rewards: "token" or "sequence"."""
        return level_of(self.settings["loss"])


def make_module(cfg: llama.LlamaConfig, loss: str, head: str) -> heads.TokenValueModel:
    """The module for a loss; raises InputError for an action head with a sequence score.

    The sequence variant has no bias: Bradley-Terry does not depend on it, and Adam would follow the
    rounding errors of its zero gradient.
    """
    level, is_confidence = level_of(loss), loss == "tlcr"
    if head != "after" and level == "sequence":
        raise InputError(f"model.head={head} needs a token loss; use head=after")
    return heads.TokenValueModel(cfg, head, use_bias=level == "token", bounded=is_confidence)


def read_module(path: str | os.PathLike, **compute) -> tuple[heads.TokenValueModel, RewardMeta]:
    """Module and metadata of a reward model in a run folder, its ``export``, or on the hub.

    ``compute`` are computational fields of LlamaConfig, such as ``dtype``. Raises InputError if the
    folder is missing, is not a reward model of this project, or was changed.
    """
    folder = hf_files.resolve(path)
    file = checksums.config_file(folder)
    stored = hf_files.read_json(file).get("fgrlhf") if file.is_file() else None
    match stored:
        case {"head": head, "settings": dict(settings), "calibration": dict(scale), "data": data}:
            values = {"head": head, **settings, **scale, **data}
        case _:
            raise InputError(
                f"{path}: is not a reward model of launch.train_rm (no usable export/config.json); "
                "give the run_dir of a finished run"
            )
    faults = [
        f"{name}={values.get(name)!r:.60}"
        for name, is_valid in _CHECKS.items()
        if not is_valid(values.get(name))
    ]
    if not faults and values["max_prompt_length"] >= values["max_length"]:
        faults = ["max_prompt_length is not below max_length"]
    if faults:
        raise InputError(
            f"{file}: no reward model was trained with {', '.join(faults)}; use a sound copy"
        )
    if stored.get("encoding") != templates.ENCODING:
        print(
            f"{path}: was trained when prompt and response were encoded apart; around their border "
            "its token ids may differ from now, so compare its numbers with those of its own time "
            "only, or train it anew",
            file=sys.stderr,
        )
    cfg = dataclasses.replace(hf_load.read_config(folder), **compute)
    normalization = Normalization(scale["mean"], scale["std"])
    return make_module(cfg, values["loss"], head), RewardMeta(head, settings, normalization, data)


def folders_of(path: str | os.PathLike) -> list[str]:
    """The folders of all models that the path of a reward model names."""
    text = os.fspath(path)
    if Path(text).exists():  # whatever its name
        return [text]
    names = [name.strip() for name in re.split("[,:]", text)]
    return names[:-1] if text.count(":") == 2 else names


def read_modules(
    path: str | os.PathLike, penalty: float, **compute
) -> tuple[RewardModule, RewardMeta]:
    """:func:`read_module` for any reward model path; rewards of several models are normalized.

    The reward of an ensemble is the mean minus ``penalty`` standard deviations. Raises InputError
    as :func:`read_module`, and for models that do not match.
    """
    folders = folders_of(path)
    if len(folders) == 1:
        return read_module(path, **compute)
    if not all(folders):
        raise InputError(f"reward_model={path}: an empty name; give A,B,C or POLICY:REFERENCE")
    if ":" in os.fspath(path):
        return _read_ratio(os.fspath(path), folders, compute)
    modules, metas = zip(*(read_module(folder, **compute) for folder in folders), strict=True)
    for folder, meta in zip(folders[1:], metas[1:], strict=True):
        for description, first, other in (
            ("rewards every", metas[0].level, meta.level),
            ("was trained with the template", metas[0].data["template"], meta.data["template"]),
        ):
            if first != other:
                raise InputError(
                    f"reward_model={path}: {folder} {description} {other}, {folders[0]} {first}; "
                    "an ensemble is of reward models that are alike"
                )
    _check_tokenizers(folders)
    scales = tuple(tuple(meta.normalization) for meta in metas)
    longest = min(meta.data["max_length"] for meta in metas)
    meta = dataclasses.replace(
        metas[0],
        normalization=Normalization(0.0, 1.0),
        data=metas[0].data | {"max_length": longest},
    )
    return Ensemble(modules, scales, penalty), meta


def _read_ratio(path: str, folders: list[str], compute: dict) -> tuple[LogRatio, RewardMeta]:
    """The log-ratio POLICY:REFERENCE[:WEIGHT]; its rewards are in nats, not normalized."""
    *_, weight = path.split(":")
    weight = weight.strip() if path.count(":") == 2 else "1"
    if len(folders) != 2 or not re.fullmatch(r"\d*\.?\d+", weight):
        raise InputError(
            f"reward_model={path}: is not POLICY:REFERENCE or POLICY:REFERENCE:WEIGHT; give the "
            "folders of two language models"
        )
    modules = []
    for folder in folders:
        hf_load.check_language_model(folder)
        cfg = dataclasses.replace(hf_load.read_config(folder), **compute)
        modules.append(heads.CausalLM(cfg))
    sft_templates = [hf_load.trained_template(folder) for folder in folders]
    if all(sft_templates) and sft_templates[0] != sft_templates[1]:
        raise InputError(
            f"reward_model={path}: the two were fine-tuned with the templates "
            f"{' and '.join(sft_templates)}; give models of the same one"
        )
    _check_tokenizers(folders)
    policy, reference = modules
    module = LogRatio(policy, reference if float(weight) else None, float(weight))
    data = {
        "template": sft_templates[0] or sft_templates[1],
        "max_length": module.cfg.max_position,
        "max_prompt_length": module.cfg.max_position - 1,
        "overlong": "truncate",
        "alignment": METHODS[0],
        "append_eos": True,
    }
    settings = {"loss": "token_edit", "consistency_weight": 0.0, "center_weight": 0.0}
    return module, RewardMeta("action", settings, Normalization(0.0, 1.0), data)


def _check_tokenizers(folders: list[str]) -> None:
    """Raises InputError for models with different token ids."""
    first, *others = (hf_load.load_tokenizer(folder) for folder in folders)
    for folder, tokenizer in zip(folders[1:], others, strict=True):
        check_same(first, tokenizer, folders[0], folder)


def load_params(path: str | os.PathLike, abstract: dict) -> dict:
    """Reads ``abstract``, parameters of :func:`read_modules` or parts of them, from the folders."""
    folders = folders_of(path)
    if len(folders) == 1:
        return hf_load.load_params(path, abstract)
    ratio, members = ("policy", "reference"), [f"members_{n}" for n in range(len(folders))]
    parts = zip(ratio if "policy" in abstract else members, folders, strict=True)
    # A log-ratio without a reference does not read its folder.
    return {n: hf_load.load_params(p, abstract[n]) for n, p in parts if n in abstract}
