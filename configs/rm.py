"""Reward models from edits or preferences: ``--config=configs/rm.py:MODEL[,LOSS]``.

MODEL is one of configs/models.py. LOSS is token_edit (default), token_full, tlcr or sequence.
"""

from configs.base import SUPERVISED, SUPERVISED_FIRST
from configs.common import ALIGNMENT
from configs.fields import Field, check_argument, collect_fields
from configs.models import PAIRS, make_model_config
from fgrlhf_jax.functional.reward_losses import CENTER_WEIGHT, LOSSES, SCALES
from fgrlhf_jax.models.heads import HEADS

GROUPS = {
    "Reward model": {
        "loss": Field(
            "token_edit",
            "pairwise loss on rewards of changed tokens | of all tokens | classification of "
            "tokens as inserted or removed | pairwise loss on one score per response",
            choices=LOSSES,
        ),
        "center_weight": Field(
            CENTER_WEIGHT,
            "weight of the penalty on rewards of unchanged tokens; 0: the paper's Equation 4",
            at_least=0,
        ),
        "center_scale": Field(
            "score",
            "value penalized: r / T, a token's share of the score | r, an earlier default (with "
            "center_weight=0.3)",
            choices=SCALES,
        ),
        "consistency_weight": Field(
            0.0, "weight of a penalty on reward differences of matched unchanged tokens", at_least=0
        ),
        "model.head": Field(
            "after",
            "reward from the state after a token | from that state and from the state before it | "
            "from the state before only, which gives every possible next token a reward",
            choices=HEADS,
        ),
        "model.head_init": Field(
            "normal", "AlpacaFarm's N(0, 1/sqrt(D + 1)) | zeros", choices=("normal", "zero")
        ),
        "data.alignment": ALIGNMENT,
        "normalization_pairs": Field(
            512, "validation pairs for the rewards' normalization, at most", at_least=1
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
    "llama_7b": {},  # uses the defaults
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
    if loss in ("sequence", "tlcr"):  # tlcr has its own class for unchanged tokens
        config.center_weight = 0.0
    config.run_dir = f"runs/rm_{model}_{loss}"
    return config
