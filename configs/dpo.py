"""Learning from pairs without a reward model: ``--config=configs/dpo.py:MODEL[,LOSS]``.

MODEL is one of configs/models.py. LOSS is dpo (default), ddpo, salt or figa;
training starts from --config.policy.
"""

from configs.base import SUPERVISED, SUPERVISED_FIRST
from configs.common import ALIGNMENT, MODEL, SOURCE, TEMPLATE
from configs.fields import Field, check_argument, collect_fields
from configs.models import PAIRS, make_model_config
from fgrlhf_jax.functional.preference_losses import LOSSES
from fgrlhf_jax.models.sizes import SIZES

GROUPS = {
    "Loss": {
        "loss": Field(
            "dpo",
            "DPO | dense DPO, which weights changed tokens | SALT: likelihood of inserted and kept "
            "tokens, unlikelihood of removed ones | FIGA",
            choices=LOSSES,
        ),
        "beta": Field(0.1, "dpo, ddpo: strength of the KL constraint", at_least=1e-6),
        "dense.gamma": Field(5.0, "ddpo: weight of changed tokens; 1: as dpo", at_least=0),
        "dense.normalize": Field(False, "ddpo: divide by the sum of the weights"),
        "weights.inserted": Field(1.0, "salt, figa: weight of inserted tokens"),
        "weights.kept": Field(1.0, "salt, figa: weight of the better response's other tokens"),
        "weights.removed": Field(1.0, "salt, figa: weight of removed tokens", at_least=0),
        "weights.original": Field(0.0, "salt, figa: weight of the original's other tokens"),
        "figa_limit": Field(
            0.6, "figa: no loss on removed tokens that cost more nats than this", at_least=0
        ),
        "data.alignment": ALIGNMENT,
    },
    "Data": {
        "train": Field("", f'edits or preferences: {SOURCE}; "": the embedded data, for tiny'),
        "data.template": TEMPLATE,
    },
    "Model": {
        "policy": Field("", f"initial policy and reference: {MODEL}"),
        "model.size": Field(
            "tiny", "architecture in launch.plan if policy is empty", choices=tuple(SIZES)
        ),
    },
}
# Fields of random weights only.
_NOT_HERE = ("model.path", "model.tokenizer", "model.vocab_size")
FIELDS = {
    name: field
    for name, field in collect_fields(
        *SUPERVISED,
        GROUPS,
        first=f"{SUPERVISED_FIRST} policy loss",
        defaults={"run_dir": "runs/dpo", "optimizer.learning_rate": 1e-6},
    ).items()
    if name not in _NOT_HERE
}

VARIANTS = {
    # Outputs degenerate with DPO at 3e-4 and with FIGA at 1e-3.
    "tiny": {"optimizer.learning_rate": 1e-4},
    "cad": {"epochs": 3, "optimizer.learning_rate": 3e-4},
    "smollm2": {"optimizer.learning_rate": 5e-6},
    "llama_7b": {"batch_size": 32, "micro_batch_size": 16},
    "llama_7b_lora": {"micro_batch_size": 8, "optimizer.learning_rate": 2e-5},
    "llama3_2_1b": {"micro_batch_size": 2},
}


def get_config(argument: str = "tiny,dpo"):
    model, _, loss = argument.partition(",")
    loss = loss or "dpo"
    check_argument(f"dpo.py:{argument}", model, VARIANTS, "model")
    check_argument(f"dpo.py:{argument}", loss, LOSSES, "loss")
    config = make_model_config(FIELDS, model, PAIRS, VARIANTS)
    config.loss = loss
    config.run_dir = f"runs/dpo_{model}_{loss}"
    if loss == "salt":
        config.weights.removed = 0.1
        config.weights.original = 1.0
    if loss == "figa":
        config.weights.kept = 0.0
        config.weights.removed = 0.5
    if model == "tiny" and loss in ("ddpo", "salt"):
        config.optimizer.learning_rate = {"ddpo": 3e-4, "salt": 1e-3}[loss]
    return config
