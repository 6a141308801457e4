"""Settings by model for SFT, reward models, DPO and PPO: ``--config=FILE.py:MODEL``.

MODEL is one of

  tiny           random weights on the embedded world; under two minutes on two cores
  cad            a small LLaMA from random weights, with a tokenizer trained on your file
  smollm2        SmolLM2-135M, all weights (give its path)
  llama_7b       AlpacaFarm's setting for LLaMA-7B on 8 x 80 GB (give its path)
  llama_7b_lora  the same with adapters on one device of 80 GB; for PPO with smaller rollouts
  llama3_2_1b    Llama-3.2-1B with adapters on one device of 16 GB

DPO and PPO start from a policy of that kind; PPO also needs a reward model and prompts.
"""

from collections.abc import Mapping

from ml_collections import ConfigDict

from configs.fields import Field, make_config

# Each value is a key of models.sizes.SIZES.
SIZES = {
    "tiny": "tiny",
    "cad": "small",
    "smollm2": "smollm2_135m",
    "llama_7b": "llama_7b",
    "llama_7b_lora": "llama_7b",
    "llama3_2_1b": "llama3_2_1b",
}
# A model inherits the settings of the model that it extends; its own override them.
EXTENDS = {"llama_7b_lora": "llama_7b", "llama3_2_1b": "llama_7b_lora"}
# Settings for every command.
COMMON = {
    "smollm2": {"model.remat": True},
    "llama_7b": {"model.dtype": "bfloat16", "model.remat": True},
    "llama_7b_lora": {"lora.rank": 16, "lora.base_dtype": "bfloat16"},
}

# Settings for reward models and DPO, which learn from pairs.
PAIRS = {
    "tiny": {
        "data.max_length": 128,
        "data.max_prompt_length": 64,
        "data.buckets": 3,
        "batch_size": 32,
        "steps": 250,
    },
    # A limit of 256 tokens would truncate three quarters of the film reviews.
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
    """Builds a locked config: the defaults of its fields, overridden by the settings of a model.

    Later tables of ``settings`` override earlier ones; the field ``size`` holds the architecture.
    """
    config, lineage = make_config(fields), [model]
    config.update_from_flattened_dict({size: SIZES[model]})
    while lineage[0] in EXTENDS:
        lineage.insert(0, EXTENDS[lineage[0]])
    for ancestor in lineage:
        for table in (COMMON, *settings):
            config.update_from_flattened_dict(table.get(ancestor, {}))
    return config
