"""Model and data-set cards: the README.md of an export or of an uploaded file of feedback."""

import contextlib
import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path

import huggingface_hub

from fgrlhf_jax.models import hf_files, peft, quantize
from fgrlhf_jax.models.lora import Lora
from fgrlhf_jax.runtime import versions

FOLDER = "export"  # where the usage block finds the model; launch.push puts the hub id there
# transformers' name of the model type: title, and the hub's name of its task.
_KINDS = {
    "CausalLM": ("Language model", "text-generation"),
    "TokenClassification": ("Token reward model", "token-classification"),
    "SequenceClassification": ("Sequence reward model", "text-classification"),
}

_UNITS = {  # end of a figure's name: its unit
    "accuracy": "of the tokens",
    **dict.fromkeys(("sampled", "greedy", "written"), "of the places that people edited"),
    "kl": "nats a response",
    "length": "tokens a response",
    "loss": "nats a token",
    "moved": "nats a token that nobody changed",
    "n": "rows",
    "preferred": "of the pairs",
    "reference_kl": "nats a response",
    **dict.fromkeys(("reward", "reward_with_missing_eos"), "a response, normalized"),
    "unfinished": "of the responses",
}


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where a model comes from.

    Attributes:
      base: the checkpoint that it was trained from, "" for random weights.
      data: the training rows, as the config names them.
      figures: final measurements, as text.
      rewards: the reward model or function that it was trained with, if any.
      base_digest: for an adapter, the digest from ``hf_load.load_base`` of its base; "" if the
        files of ``base`` are certain to be unchanged.
    """

    base: str = ""
    data: str = ""
    figures: str = ""
    rewards: str = ""
    base_digest: str = ""


def format_figures(figures: Mapping[str, float]) -> str:
    """One line per figure, with its unit."""
    return "\n".join(
        f"{name:24} {value:.6g} {_UNITS.get(name.rpartition('/')[2], '')}".rstrip()
        for name, value in figures.items()
    )


def model_card(
    kind: str,
    template: str,
    response: str,
    origin: Origin,
    dtype: str,
    adapter: Lora | None = None,
    merged: bool = False,
) -> str:
    """The card of an export; arguments without an explanation here are those of ``hf_save.save``.

    Args:
      kind: the transformers class suffix, "CausalLM" and so on; others are this project's own.
      response: the text of the response "An apple." after the usage block's prompt; "" if the
        tokenizer's chat template does not give the ids that the model was trained on.
    """
    facts = _adapter_facts(adapter, origin.base, merged) if adapter else {}
    adapter = None if merged else adapter
    title, task = _KINDS.get(kind, ("Token reward model with a state-action head", None))
    response = repr(response) if task and response else ""
    data = huggingface_hub.ModelCardData(
        base_model=_base_model(origin.base),
        base_model_relation="adapter" if adapter else None,
        datasets=[*filter(None, map(_hub_id, origin.data.split(",")))] or None,
        library_name="fgrlhf_jax" if not response else "peft" if adapter else "transformers",
        pipeline_tag=task,
        tags=["fgrlhf_jax"] if kind == "CausalLM" else ["fgrlhf_jax", "reward-model"],
    )
    facts |= {
        "Trained from": origin.base or "random weights",
        **({"Rewards from": origin.rewards} if origin.rewards else {}),
        "Weights": dtype,
        "Training rows": origin.data or "of the embedded world",
        "Template of prompts": template or "unknown",
        "Command": f"`{versions.describe_command()}` (`--config.run_dir=…` is left out)",
        "Versions": versions.describe_versions(),
    }
    own_class = "LanguageModel" if kind == "CausalLM" else "RewardModel"
    values = {"title": title, "kind": kind, "response": response, "ours": own_class, "facts": facts}
    values["adapter"] = adapter
    return _render("model_card.md", data, **values, figures=origin.figures)


def _adapter_facts(adapter: Lora, base: str, merged: bool) -> dict[str, str]:
    scale = "alpha / sqrt(rank)" if adapter.rslora else "alpha / rank"
    trained_on = f"the base in {adapter.base_dtype}"
    if change := quantize.ROUNDING.get(adapter.base_dtype):
        trained_on += f", which changes a number of its linear layers by at most {change}; "
        trained_on += (
            "the weights here are these rounded numbers with the adapter, as they were trained"
            if merged
            else "on the base as it is the figures differ"
        )
    return {
        **({"Adapter merged into": base} if merged else {"Adapter of": peft.base_name(base)}),
        "Rank": f"{adapter.rank}, scaled by {scale} = {adapter.scale:g}",
        "Trained on": trained_on,
    }


def dataset_card(name: str, file: str, **values: str | Mapping[str, str]) -> str:
    """The card of a file of edits, preferences or instructions, in the hub's repository ``name``.

    ``values`` are ``made``, the origin of the rows; ``columns``, the content of each column; and
    ``figures``, counts and measurements.
    """
    files = [{"config_name": "default", "data_files": file}]
    data = huggingface_hub.DatasetCardData(configs=files, tags=["fgrlhf_jax"])
    return _render("dataset_card.md", data, name=name, **values)


def _render(file: str, data: huggingface_hub.CardData, **values) -> str:
    path = str(Path(__file__).with_name(file))
    card = huggingface_hub.RepoCard.from_template(data, template_path=path, **values)
    return f"{card}".strip() + "\n"


def _hub_id(source: str) -> str:
    """ORG/NAME if a config's source is on the hub, else ""."""
    name = source.strip().partition(":")[0]
    return name if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not Path(name).exists() else ""


def _base_model(base: str) -> str | None:
    """The hub id of ``base``, or, for an export of this project, of its base."""
    if name := _hub_id(base):
        return name
    with contextlib.suppress(Exception):  # a folder of another program may have any card, or none
        return huggingface_hub.metadata_load(hf_files.resolve(base) / "README.md")["base_model"]
    return None
