"""Cards: the README.md that tells people and the hub what a model or a file of feedback is."""

import contextlib
import dataclasses
import re
import string
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import huggingface_hub

from fgrlhf_jax.data import hub_datasets
from fgrlhf_jax.runtime import versions

FOLDER = "export"  # where the usage block finds the model; launch.push puts the hub id there

_LOAD = """\
import torch
from transformers import AutoModelFor$kind, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("$folder")
model = AutoModelFor$kind.from_pretrained("$folder", dtype=torch.float32)
messages = [{"role": "user", "content": "Name a fruit."}]
"""
_GENERATE = """\
options = {"add_generation_prompt": True, "return_dict": True, "return_tensors": "pt"}
batch = tokenizer.apply_chat_template(messages, **options)
ids = model.generate(**batch, max_new_tokens=64, do_sample=False)
print(tokenizer.decode(ids[0, batch["input_ids"].shape[1] :], skip_special_tokens=True))
"""
_SCORE = """\
prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
options = {"add_special_tokens": False, "return_offsets_mapping": True, "return_tensors": "pt"}
batch = tokenizer(prompt + $response, **options)
is_response = batch.pop("offset_mapping")[0, :, 1] > len(prompt)
scale = model.config.fgrlhf["calibration"]
rewards = (model(**batch).logits[0].detach() - scale["mean"]) / scale["std"]
"""
_PRINT_TOKENS = """\
for token, (reward,) in zip(batch["input_ids"][0, is_response], rewards[is_response].tolist()):
    print(f"{reward:+.4f} {tokenizer.decode(token)!r}")
"""
_OURS = """\
from fgrlhf_jax import $ours

model = $ours.load("$folder")
"""
_TOKENS = """\
Every token of a response has a reward, the one that `launch.score` gives. **Not with
`pipeline("token-classification")`**: it applies a softmax to the outputs of each token, and of a
single output that is 1.0, whatever the reward is.

"""
_SEQUENCE = "A response has one score, that of its last token in `launch.score`.\n\n"
# By transformers' name for it: title, the hub's name of its task, usage, and what to know.
_KINDS = {
    "CausalLM": ("Language model", "text-generation", _LOAD + _GENERATE, ""),
    "TokenClassification": (
        "Token reward model",
        "token-classification",
        _LOAD + _SCORE + _PRINT_TOKENS,
        _TOKENS,
    ),
    "SequenceClassification": (
        "Sequence reward model",
        "text-classification",
        _LOAD + _SCORE + 'print(f"{rewards.item():+.4f}")\n',
        _SEQUENCE,
    ),
}
_OTHER = (
    *("Token reward model with a state-action head", None, ""),
    "The head is a form of our own: transformers has no class for it.\n\n",
)


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where a model comes from.

    Attributes:
      base: the checkpoint that it was trained from, "" for random weights.
      data: the training rows, as the config names them.
      figures: what was measured at the end, as text.
    """

    base: str = ""
    data: str = ""
    figures: str = ""


def format_figures(figures: Mapping[str, float]) -> str:
    """A line for each."""
    return "\n".join(f"{name:24} {value:.6g}" for name, value in figures.items())


def model_card(kind: str, template: str, response: str, origin: Origin) -> str:
    """The card of an export.

    Args:
      kind: what transformers loads it as, "CausalLM" and so on; any other is a form of our own.
      template: how its prompts are written.
      response: what stands behind the prompt of the usage block for "An apple."; "" where the
        tokenizer's chat template does not give the ids that the model was trained on.
    """
    title, task, usage, note = _KINDS.get(kind, _OTHER)
    usage = (response and usage) or _OURS
    front = huggingface_hub.ModelCardData(
        base_model=_base_model(origin.base),
        datasets=[s.partition(":")[0] for s in origin.data.split(",") if _is_on_hub(s)] or None,
        library_name="fgrlhf_jax" if usage is _OURS else "transformers",
        pipeline_tag=task,
        tags=["fgrlhf_jax"] if kind == "CausalLM" else ["fgrlhf_jax", "reward-model"],
    )
    facts = {
        "Trained from": origin.base or "random weights",
        "Training rows": origin.data or "of the embedded world",
        "Template of prompts": template or "unknown",
        "Command": f"`{versions.describe_command()}`",
        "Versions": versions.describe_versions(),
    }
    names = {"kind": kind, "folder": FOLDER, "response": repr(response)}
    names["ours"] = "LanguageModel" if kind == "CausalLM" else "RewardModel"
    usage = string.Template(usage).substitute(names)
    text = f"# {title}\n\n## Use\n\n```python\n{usage}```\n\n{note}## Origin\n\n{_table(facts)}"
    return _card(front, text + (f"\n```text\n{origin.figures}\n```\n" if origin.figures else ""))


def dataset_card(
    name: str, file: str, columns: Mapping[str, str], figures: Mapping[str, str], made: str
) -> str:
    """The card of a file of edits, preferences or instructions.

    Args:
      name: on the hub.
      columns: what each column holds.
      made: how the rows came about.
    """
    files = [{"config_name": "default", "data_files": file}]
    front = huggingface_hub.DatasetCardData(configs=files, tags=["fgrlhf_jax"])
    return _card(
        front,
        f"# {name}\n\n{made}\n\n{_table(figures)}\n## Columns\n\n{_table(columns)}\n"
        f"## Use\n\n```bash\npython -m launch.train_rm --config.train={name}\n```\n",
    )


def _card(front: Any, text: str) -> str:
    return f"---\n{front.to_yaml()}\n---\n\n{text}"


def _table(rows: Mapping[str, str]) -> str:
    cells = [("", ""), ("---", "---"), *rows.items()]
    return "".join("| {} | {} |\n".format(*(c.replace("|", "\\|") for c in row)) for row in cells)


def _is_on_hub(source: str) -> bool:
    name = source.strip().partition(":")[0]
    return hub_datasets.is_dataset(name) and not Path(name).exists()


def _base_model(base: str) -> str | None:
    """The hub id that the hub can link to: ``base``, or what an export of ours came from."""
    if re.fullmatch(r"[\w.-]+/[\w.-]+", base) and not Path(base).exists():
        return base
    cards = [Path(base, "README.md"), Path(base, FOLDER, "README.md")] if base else []
    with contextlib.suppress(OSError, ValueError):
        metadata = [huggingface_hub.metadata_load(card) for card in cards if card.is_file()]
        return (metadata[-1] or {}).get("base_model") if metadata else None
