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
from configs.fields import Field, check_argument, collect_fields
from configs.models import PAIRS, make_model_config
from fgrlhf_jax.data.alignment import METHODS
from fgrlhf_jax.functional.reward_losses import CENTER_WEIGHT, LOSSES, SCALES
from fgrlhf_jax.models.heads import HEADS

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
    *SUPERVISED, GROUPS, first=f"{SUPERVISED_FIRST} loss", defaults={"run_dir": "runs/rm"}
)


VARIANTS = {
    "tiny": {"data.template": "plain", "model.vocab_size": 1024, "optimizer.learning_rate": 3e-3},
    "cad": {"model.vocab_size": 4096, "steps": 300, "optimizer.learning_rate": 2e-3},
    "smollm2": {
        "data.template": "chat",
        "model.head_init": "zero",
        "optimizer.learning_rate": 1e-4,
    },
    "llama_7b": {},  # the defaults are its
    "llama_7b_lora": {"micro_batch_size": 8, "optimizer.learning_rate": 1e-4},
    "llama3_2_1b": {"micro_batch_size": 4},
}


def get_config(argument: str = "tiny,token_edit"):
    model, _, loss = argument.partition(",")
    loss = loss or "token_edit"
    check_argument(f"rm.py:{argument}", model, VARIANTS, "model")
    check_argument(f"rm.py:{argument}", loss, LOSSES, "loss")
    config = make_model_config(FIELDS, model, PAIRS, VARIANTS)
    config.loss = loss
    if loss in ("sequence", "tlcr"):  # which has a class of its own for unchanged tokens
        config.center_weight = 0.0
    config.run_dir = f"runs/rm_{model}_{loss}"
    return config
