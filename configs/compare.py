"""Comparison of learners on your edits: ``--config=configs/compare.py:VARIANT``.

VARIANT selects learning rates and lengths by model; the settings are those of the same variant of
configs/pipeline.py:

  tiny      the embedded world's model, or a model trained on it
  cad       the small LLaMA of configs/sft.py:cad
  smollm2   SmolLM2-135M by adapters
  llama_7b  LLaMA-7B (all weights; --config.lora.rank=16 for adapters)

The arms are those of configs/pipeline.py, so ``--config.arms.NAME.learner=…`` adds one here too.
"""

from ml_collections import ConfigDict

from configs import pipeline
from configs.base import LORA
from configs.common import MODEL, SOURCE, TEMPLATE
from configs.fields import Field, check_argument, collect_fields

_OWN = {
    "Files": {
        "edits": Field("", f'edits: {SOURCE}; "": the embedded world\'s'),
        "model": Field("", f'{MODEL} that all arms start from; "" only if edits is empty too'),
    },
    "All commands": {"template": TEMPLATE},
}
# Fields that edits and model determine.
_GIVEN = ("embedded", "files.edits", "files.sft", "task")
FIELDS = {
    name: field
    for name, field in collect_fields(
        pipeline.GROUPS,
        LORA,
        _OWN,
        first="run_dir edits model judge run_arms budget budget_amount seeds template "
        "max_prompt_length max_new_tokens lora.rank",
        defaults={"run_dir": "runs/compare", "title": "Which learner for these edits?"},
    ).items()
    if name not in _GIVEN
}
# sft_longer continues sft_edits, so that it has the total budget of edits_then_token's two stages.
ARMS = "sft_edits,dpo,ddpo,state_action,sft_longer,edits_then_token"
# Updates per training: about as many as PPO of that size makes by default.
VARIANTS = {"tiny": 320, "cad": 240, "smollm2": 80, "llama_7b": 1560}


def get_config(argument: str = "tiny"):
    check_argument(f"compare.py:{argument}", argument, VARIANTS)
    config = pipeline.get_config(argument)
    with config.unlocked():
        config.run_dir = f"runs/compare_{argument}"
        config.title = FIELDS["title"].default
        config.judge = config.judge_name = config.template = ""
        config.run_arms = ARMS
        config.budget, config.budget_amount = "updates", float(VARIANTS[argument])
        config.edits = ""
        for name in _GIVEN:
            group, _, field = name.rpartition(".")
            del (config[group] if group else config)[field]
    return config


def to_study(config: ConfigDict, template: str) -> ConfigDict:
    """Converts to a config of launch.pipeline; ``template`` is used only with ``config.edits``."""
    study, values = pipeline.get_config("cad" if config.edits else "tiny"), config.to_dict()
    edits = values.pop("edits")
    if edits:
        values["template"] = template
    else:
        if not config.judge:
            values |= {"judge": study.judge, "judge_name": config.judge_name or study.judge_name}
        values["template"] = config.template or study.template
    with study.unlocked():
        study.update(values)
        study.files.edits = edits
    return study
