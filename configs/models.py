"""The models that SFT, reward models, DPO and PPO have settings for: ``--config=FILE.py:MODEL``."""

from collections.abc import Mapping

from ml_collections import ConfigDict

from configs.fields import Field, make_config

# One of models.sizes.SIZES each.
SIZES = {
    "tiny": "tiny",
    "cad": "small",
    "smollm2": "smollm2_135m",
    "llama_7b": "llama_7b",
    "llama_7b_lora": "llama_7b",
    "llama3_2_1b": "llama3_2_1b",
}
# A model has the settings of the one it extends, and its own in their place.
EXTENDS = {"llama_7b_lora": "llama_7b", "llama3_2_1b": "llama_7b_lora"}
# The settings that every command shares.
COMMON = {
    "smollm2": {"model.remat": True},
    "llama_7b": {"model.dtype": "bfloat16", "model.remat": True},
    "llama_7b_lora": {"lora.rank": 16, "lora.base_dtype": "bfloat16"},
}

# Those that reward models and DPO share, which learn from pairs.
PAIRS = {
    "tiny": {
        "data.max_length": 128,
        "data.max_prompt_length": 64,
        "data.buckets": 3,
        "batch_size": 32,
        "steps": 250,
        "eval_every": 50,
        "save_every": 100,
    },
    # At 256 tokens three quarters of the film reviews are cut.
    "cad": {"data.max_length": 512, "data.max_prompt_length": 128, "eval_every": 25},
    "smollm2": {
        "data.max_length": 384,
        "data.max_prompt_length": 256,
        "batch_size": 8,
        "micro_batch_size": 4,
        "eval_every": 20,
    },
}


def make_model_config(
    fields: Mapping[str, Field],
    model: str,
    *settings: Mapping[str, Mapping],
    size: str = "model.size",
) -> ConfigDict:
    """A locked config with the defaults of its fields and the settings of a model.

    Args:
      fields: of the config, by dotted name.
      model: one of ``SIZES``.
      settings: values by dotted name, by model; later ones replace earlier ones.
      size: the field of the architecture's size.
    """
    config, lineage = make_config(fields), [model]
    config.update_from_flattened_dict({size: SIZES[model]})
    while lineage[0] in EXTENDS:
        lineage.insert(0, EXTENDS[lineage[0]])
    for each in lineage:
        for table in (COMMON, *settings):
            config.update_from_flattened_dict(table.get(each, {}))
    return config
