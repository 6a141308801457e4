"""Supervised fine-tuning: ``--config=configs/sft.py:MODEL``.

MODEL is one of

  tiny      random weights on the embedded world; about a minute and a half on two cores
  cad       a small LLaMA from random weights, with a tokenizer trained on your file
  smollm2   SmolLM2-135M, all weights (give --config.model.path)
  llama_7b  AlpacaFarm's setting for LLaMA-7B on 8 x 80 GB (give --config.model.path)
  llama_7b_lora  the same by adapters on one device of 80 GB
  llama3_2_1b    Llama-3.2-1B by adapters on one device of 16 GB
"""

from configs.base import SUPERVISED, SUPERVISED_FIRST
from configs.fields import check_argument, collect_fields, make_config

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


def get_config(argument: str = "tiny"):
    check_argument(f"sft.py:{argument}", argument, VARIANTS)
    config = make_config(FIELDS)
    config.run_dir = f"runs/sft_{argument}"
    VARIANTS[argument](config)
    return config


def tiny(config):
    config.data.template = "plain"
    config.model.vocab_size = 1024
    config.data.max_length = 128
    config.data.max_prompt_length = 64
    config.data.buckets = 3
    config.batch_size = 64
    config.steps = 2000
    config.eval_every = 500
    config.save_every = 500
    config.eval_batch_size = 256
    config.optimizer.learning_rate = 4e-3


def cad(config):
    config.model.size = "small"
    config.model.vocab_size = 4096
    config.data.max_length = 128
    config.data.max_prompt_length = 64
    config.batch_size = 32
    config.epochs = 4
    config.eval_every = 100
    config.optimizer.learning_rate = 3e-3


def smollm2(config):
    config.model.size = "smollm2_135m"
    config.model.remat = True
    config.data.template = "chat"
    config.batch_size = 8
    config.micro_batch_size = 4
    config.epochs = 1
    config.optimizer.learning_rate = 5e-5


def llama_7b(config):
    config.model.size = "llama_7b"
    config.model.dtype = "bfloat16"
    config.model.remat = True
    config.micro_batch_size = 32


def llama_7b_lora(config):
    llama_7b(config)
    config.lora.rank = 16
    config.lora.base_dtype = "bfloat16"
    config.micro_batch_size = 16
    config.optimizer.learning_rate = 2e-4


def llama3_2_1b(config):
    llama_7b_lora(config)
    config.model.size = "llama3_2_1b"
    config.micro_batch_size = 4


VARIANTS = {
    "tiny": tiny,
    "cad": cad,
    "smollm2": smollm2,
    "llama_7b": llama_7b,
    "llama_7b_lora": llama_7b_lora,
    "llama3_2_1b": llama3_2_1b,
}
