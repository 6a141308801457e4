"""Responses to a file of prompts: what ``launch.generate`` needs."""

from configs.common import DTYPE, INT8_CACHE, MESH, MODEL, OVERLONG, OVERWRITE, READING
from configs.fields import Field, collect_fields, make_config
from fgrlhf_jax.data.templates import TEMPLATES

GROUPS = {
    "Files": {
        "model": Field("", f'{MODEL}; "": the embedded world\'s, trained if missing'),
        "prompts": Field("", 'FILE; "": prompts of the embedded world'),
        "output": Field("", 'FILE.json in the format of alpaca_eval; "" prints'),
        "overwrite": OVERWRITE,
        "generator": Field("", 'the model\'s name in the file; "" is model'),
        "limit": Field(0, "prompts; 0: all", at_least=0),
    },
    "Sampling": {
        "temperature": Field(0.0, "0: greedy", at_least=0),
        "top_k": Field(0, "likeliest tokens to sample from; 0: all", at_least=0),
        "top_p": Field(1.0, "probability to sample from", at_least=1e-6, at_most=1),
        "samples": Field(1, "responses a prompt", at_least=1),
        "greedy_last": Field(False, "the last of them is decoded greedily"),
        "seed": Field(0, "of sampling", at_least=0),
        "max_new_tokens": Field(300, "tokens of a response", at_least=1),
    },
    "Reward models": {
        "guide": Field(
            "",
            "run_dir of launch.train_rm with model.head=action: every token is drawn from the "
            "model times exp(reward / guide_beta)",
        ),
        "guide_beta": Field(
            1.0, "rewards that a nat away from the model must bring, as kl.coef", at_least=1e-6
        ),
        "reward_model": Field("", "run_dir of launch.train_rm: ranks the responses to a prompt"),
        "best_of": Field(0, "samples of which reward_model picks the best; 0: samples", at_least=0),
    },
    "Prompts": {
        "template": Field(
            "",
            'format of a prompt; "": what the model was fine-tuned with here, or else chat where '
            "its tokenizer has a chat template, or else alpaca",
            choices=("", *TEMPLATES),
        ),
        "max_prompt_length": Field(256, "tokens of a prompt", at_least=1),
        "overlong": Field("truncate", "what becomes of longer prompts", choices=OVERLONG),
    },
    "Devices and precision": {
        "batch_size": Field(32, "prompts at a time", at_least=1),
        "mesh": MESH,
        "dtype": DTYPE,
        "int8_cache": INT8_CACHE,
    },
}
FIELDS = collect_fields(
    GROUPS,
    READING,
    first="model prompts output limit temperature samples seed max_new_tokens template guide "
    "guide_beta reward_model best_of batch_size",
)


def get_config():
    return make_config(FIELDS)
