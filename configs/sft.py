"""Supervised fine-tuning: ``--config=configs/sft.py:MODEL``.

MODEL is one of configs/models.py.
"""

from configs.base import SUPERVISED, SUPERVISED_FIRST
from configs.fields import check_argument, collect_fields
from configs.models import make_model_config

FIELDS = collect_fields(
    *SUPERVISED,
    first=SUPERVISED_FIRST,
    defaults={
        "run_dir": "runs/sft",
        "data.max_prompt_length": 256,
        "batch_size": 128,
        "epochs": 3,
        "optimizer.learning_rate": 2e-5,
    },
)

VARIANTS = {
    "tiny": {
        "data.template": "plain",
        "data.max_length": 128,
        "data.max_prompt_length": 64,
        "data.buckets": 3,
        "model.vocab_size": 1024,
        "batch_size": 64,
        "steps": 2000,
        "eval_every": 500,
        "save_every": 500,
        "eval_batch_size": 256,
        "optimizer.learning_rate": 4e-3,
    },
    "cad": {
        "data.max_length": 128,
        "data.max_prompt_length": 64,
        "model.vocab_size": 4096,
        "batch_size": 32,
        "epochs": 4,
        "eval_every": 100,
        "optimizer.learning_rate": 3e-3,
    },
    "smollm2": {
        "data.template": "chat",
        "batch_size": 8,
        "micro_batch_size": 4,
        "epochs": 1,
        "optimizer.learning_rate": 5e-5,
    },
    "llama_7b": {"micro_batch_size": 32},
    "llama_7b_lora": {"micro_batch_size": 16, "optimizer.learning_rate": 2e-4},
    "llama3_2_1b": {"micro_batch_size": 4},
}


def get_config(argument: str = "tiny"):
    check_argument(f"sft.py:{argument}", argument, VARIANTS)
    config = make_model_config(FIELDS, argument, VARIANTS)
    config.run_dir = f"runs/sft_{argument}"
    return config
