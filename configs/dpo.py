"""Learning from pairs without a reward model: ``--config=configs/dpo.py:MODEL[,LOSS]``.

MODEL is one of

  tiny      the embedded world's policy; under two minutes on two cores
  cad       the small LLaMA of configs/sft.py:cad
  smollm2   SmolLM2-135M, all weights
  llama_7b  LLaMA-7B on 8 x 80 GB
  llama_7b_lora  the same by adapters on one device of 80 GB
  llama3_2_1b    Llama-3.2-1B by adapters on one device of 16 GB

each from the policy in --config.policy, and LOSS is dpo (default), ddpo, salt or figa.
"""

from configs.base import SUPERVISED, SUPERVISED_FIRST
from configs.common import MODEL, SOURCE
from configs.fields import Field, check_argument, collect_fields, make_config
from fgrlhf_jax.data.alignment import METHODS
from fgrlhf_jax.data.templates import TEMPLATES
from fgrlhf_jax.functional.preference_losses import LOSSES
from fgrlhf_jax.models.llama import SIZES

GROUPS = {
    "Loss": {
        "loss": Field(
            "dpo",
            "DPO | dense DPO, with weights on changed tokens | likelihood of what was put in and "
            "kept, unlikelihood of what was taken out | FIGA",
            choices=LOSSES,
        ),
        "beta": Field(0.1, "of dpo, ddpo: how near to stay to the start", at_least=1e-6),
        "dense.gamma": Field(5.0, "of ddpo: weight of changed tokens; 1 is dpo", at_least=0),
        "dense.normalize": Field(False, "of ddpo: divide by the sum of the weights"),
        "weights.inserted": Field(1.0, "of salt, figa: weight of changed tokens put in"),
        "weights.kept": Field(1.0, "of salt, figa: of the other tokens of the better response"),
        "weights.removed": Field(1.0, "of salt, figa: of changed tokens taken out", at_least=0),
        "weights.original": Field(0.0, "of salt, figa: of the other tokens of the original"),
        "figa_limit": Field(
            0.6, "nats: a token taken out that is as unlikely is let alone", at_least=0
        ),
        "data.alignment": Field("levenshtein", "what finds the changed tokens", choices=METHODS),
    },
    "Data": {
        "train": Field("", f'edits or preferences: {SOURCE}; "" makes the embedded data, for tiny'),
        "data.template": Field(
            "", 'format of a prompt; "": as in launch.generate', choices=("", *TEMPLATES)
        ),
    },
    "Model": {
        "policy": Field("", f"{MODEL} to start from; also the reference"),
        "model.size": Field("tiny", "architecture in launch.plan without it", choices=tuple(SIZES)),
    },
}
# What only random weights have.
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


def get_config(argument: str = "tiny,dpo"):
    model, _, loss = argument.partition(",")
    loss = loss or "dpo"
    check_argument(f"dpo.py:{argument}", model, VARIANTS, "model")
    check_argument(f"dpo.py:{argument}", loss, LOSSES, "loss")
    config = make_config(FIELDS)
    config.loss = loss
    config.run_dir = f"runs/dpo_{model}_{loss}"
    if loss == "salt":
        config.weights.removed = 0.1
        config.weights.original = 1.0
    if loss == "figa":
        config.weights.kept = 0.0
        config.weights.removed = 0.5
    VARIANTS[model](config)
    return config


def tiny(config):
    config.data.max_length = 128
    config.data.max_prompt_length = 64
    config.data.buckets = 3
    config.batch_size = 32
    config.steps = 250
    config.eval_every = 50
    config.save_every = 100
    # At 3e-4 DPO leaves the language, at 1e-3 FIGA does.
    config.optimizer.learning_rate = {"ddpo": 3e-4, "salt": 1e-3}.get(config.loss, 1e-4)


def cad(config):
    config.model.size = "small"
    config.data.max_length = 512
    config.data.max_prompt_length = 128
    config.epochs = 3
    config.eval_every = 25
    config.optimizer.learning_rate = 3e-4


def smollm2(config):
    config.model.size = "smollm2_135m"
    config.model.remat = True
    config.data.max_length = 384
    config.data.max_prompt_length = 256
    config.batch_size = 8
    config.micro_batch_size = 4
    config.eval_every = 20
    config.optimizer.learning_rate = 5e-6


def llama_7b(config):
    config.model.size = "llama_7b"
    config.model.dtype = "bfloat16"
    config.model.remat = True
    config.batch_size = 32
    config.micro_batch_size = 16


def llama_7b_lora(config):
    llama_7b(config)
    config.lora.rank = 16
    config.lora.base_dtype = "bfloat16"
    config.micro_batch_size = 8
    config.optimizer.learning_rate = 2e-5


def llama3_2_1b(config):
    llama_7b_lora(config)
    config.model.size = "llama3_2_1b"
    config.micro_batch_size = 2


VARIANTS = {
    "tiny": tiny,
    "cad": cad,
    "smollm2": smollm2,
    "llama_7b": llama_7b,
    "llama_7b_lora": llama_7b_lora,
    "llama3_2_1b": llama3_2_1b,
}
