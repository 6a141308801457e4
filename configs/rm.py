"""Reward models from edits or preferences: ``--config=configs/rm.py:MODEL[,LOSS]``.

MODEL is one of

  tiny      random weights on data it makes itself; under two minutes on two cores
  cad       a small LLaMA from random weights, with a tokenizer trained on your file of edits
  smollm2   full fine-tuning of SmolLM2-135M (give --config.model.path)
  llama_7b  AlpacaFarm's setting for LLaMA-7B on 8 x 80 GB (give --config.model.path)
  llama_7b_lora  the same by adapters on one device of 80 GB
  llama3_2_1b    Llama-3.2-1B by adapters on one device of 16 GB

and LOSS is token_edit (default), token_full, tlcr or sequence.
"""

from configs.base import SUPERVISED, SUPERVISED_FIRST
from configs.fields import Field, check_argument, collect_fields, make_config
from fgrlhf_jax.data.alignment import METHODS
from fgrlhf_jax.functional.reward_losses import CENTER_WEIGHT, LOSSES, SCALES
from fgrlhf_jax.models.llama import HEADS

GROUPS = {
    "Reward model": {
        "loss": Field(
            "token_edit",
            "rewards of changed tokens | of every token | the confidence that a token was put in, "
            "not taken out | one score a response",
            choices=LOSSES,
        ),
        "center_weight": Field(
            CENTER_WEIGHT,
            "pulls rewards of unchanged tokens to 0; 0 is the paper's Equation 4",
            at_least=0,
        ),
        "center_scale": Field(
            "score",
            "what is pulled: r / T, as Equation 4 adds it up | r, at 0.3 the default of old",
            choices=SCALES,
        ),
        "consistency_weight": Field(
            0.0, "pulls rewards of the same token on both sides together", at_least=0
        ),
        "model.head": Field(
            "after",
            "reward read from the state at a token | also of it in the state before | of that "
            "alone, so that every next token has a price",
            choices=HEADS,
        ),
        "model.head_init": Field(
            "normal",
            "AlpacaFarm's N(0, 1/sqrt(D + 1)), or no noise to unlearn",
            choices=("normal", "zero"),
        ),
        "data.alignment": Field("levenshtein", "what finds the changed tokens", choices=METHODS),
        "normalization_pairs": Field(
            512, "validation pairs, at most, that set the scale of the rewards", at_least=1
        ),
    },
    "Data": {"test": Field("", "rows of the final table; as train")},
}
FIELDS = collect_fields(
    *SUPERVISED,
    GROUPS,
    first=f"{SUPERVISED_FIRST} loss",
    defaults={"run_dir": "runs/rm"},
)


def get_config(argument: str = "tiny,token_edit"):
    model, _, loss = argument.partition(",")
    loss = loss or "token_edit"
    check_argument(f"rm.py:{argument}", model, VARIANTS, "model")
    check_argument(f"rm.py:{argument}", loss, LOSSES, "loss")
    config = make_config(FIELDS)
    config.loss = loss
    if loss in ("sequence", "tlcr"):  # which has a class of its own for unchanged tokens
        config.center_weight = 0.0
    config.run_dir = f"runs/rm_{model}_{loss}"
    VARIANTS[model](config)
    return config


def tiny(config):
    config.model.vocab_size = 1024
    config.data.template = "plain"
    config.data.max_length = 128
    config.data.max_prompt_length = 64
    config.data.buckets = 3
    config.batch_size = 32
    config.steps = 250
    config.eval_every = 50
    config.save_every = 100
    config.optimizer.learning_rate = 3e-3


def cad(config):
    config.model.size = "small"
    config.model.vocab_size = 4096
    config.data.max_length = 512  # at 256, three quarters of the film reviews are cut
    config.data.max_prompt_length = 128
    config.steps = 300
    config.eval_every = 25
    config.optimizer.learning_rate = 2e-3


def smollm2(config):
    config.model.size = "smollm2_135m"
    config.model.head_init = "zero"
    config.model.remat = True
    config.data.template = "chat"
    config.data.max_length = 384
    config.data.max_prompt_length = 256
    config.batch_size = 8
    config.micro_batch_size = 4
    config.eval_every = 20
    config.optimizer.learning_rate = 1e-4


def llama_7b(config):
    config.model.size = "llama_7b"
    config.model.dtype = "bfloat16"
    config.model.remat = True
    config.data.max_length = 512
    config.batch_size = 16
    config.epochs = 1
    config.optimizer.learning_rate = 3e-6


def llama_7b_lora(config):
    llama_7b(config)
    config.lora.rank = 16
    config.lora.base_dtype = "bfloat16"
    config.micro_batch_size = 8
    config.optimizer.learning_rate = 1e-4


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
